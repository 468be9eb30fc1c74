//! A few seconds of faults on each store, and on a database. Longer runs:
//! `cargo run --release -p scale-chaos -- queue --minutes 10`.

use std::time::Duration;

use anyhow::{Result, ensure};
use scale_chaos::db;
use scale_chaos::queue::{Outcome, Setting, StoreKind, run};

async fn play(store: StoreKind) -> Result<()> {
    let seed = fastrand::u64(..);
    let program = env!("CARGO_BIN_EXE_scale-chaos").into();
    let outcome =
        run(Setting { store, time: Duration::from_secs(12), seed, program, beside: None }).await?;
    ensure!(outcome.broken() == 0, "seed {seed}\n{}\n{outcome}", Outcome::HEAD);
    ensure!(outcome.pushed > 100, "{outcome}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis() -> Result<()> {
    play(StoreKind::RedisEverysec).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() -> Result<()> {
    play(StoreKind::Postgres).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() -> Result<()> {
    play(StoreKind::Mariadb).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite() -> Result<()> {
    play(StoreKind::Sqlite).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database() -> Result<()> {
    let seed = fastrand::u64(..);
    let program = env!("CARGO_BIN_EXE_scale-chaos").into();
    let outcome = db::run(db::Setting { time: Duration::from_secs(20), seed, program }).await?;
    // The other columns are bounds in time, which a machine that runs all tests at the same time
    // may exceed.
    ensure!(outcome.unseen == 0, "seed {seed}\n{}\n{outcome}", db::Outcome::HEAD);
    ensure!(outcome.written > 100 && outcome.marked > 100, "{outcome}");
    Ok(())
}
