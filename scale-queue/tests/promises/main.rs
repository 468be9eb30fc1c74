//! Promises that were once broken by an attack on one mechanism, on every store. Each test repeats
//! the attack.
#![cfg(all(
    feature = "redis",
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "cli"
))]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod alarms;
mod batches;
mod crashes;
mod fences;
mod groups;
mod growth;
mod history;
mod limits;
mod logs;
mod operating;
mod options;
mod panics;
mod permits;
mod pushes;
mod results;
mod resumable;
mod rolling;
#[cfg(feature = "schedule")]
mod schedules;

mod server;
#[cfg(feature = "schedule")]
mod stored_schedules;
mod workflows;

/// Defines a test of each case on each store, so that each can be run alone: `cargo test --test
/// promises crashes::redis::`.
macro_rules! on_every_store {
    ($($case:ident),* $(,)?) => {
        crate::on_stores! { memory: "memory"; $($case),* }
        crate::on_stores! { redis: "redis"; $($case),* }
        crate::on_stores! { postgres: "postgres"; $($case),* }
        crate::on_stores! { mariadb: "mariadb"; $($case),* }
        crate::on_stores! { sqlite: "sqlite"; $($case),* }
    };
}
pub(crate) use on_every_store;

macro_rules! on_stores {
    ($store:ident: $kind:literal; $($case:ident),* $(,)?) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() -> anyhow::Result<()> {
                    super::$case(&crate::server::Server::start($kind).await?).await
                }
            )*
        }
    };
}
pub(crate) use on_stores;
