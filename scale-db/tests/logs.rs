//! Lines of the log that an operator needs.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use scale_db::Db;
use sqlx::Postgres as Pg;
use testkit::{Log, Postgres, eventually};

/// A replica that gets no reads costs nothing but the primary's time, so nobody notices without a
/// line of the log.
#[tokio::test]
async fn a_replica_without_reads_is_logged_once_and_so_is_its_return() -> Result<()> {
    let (log, _recording) = Log::record();
    let pg = Postgres::start(1).await?;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let db = Db::<Pg>::builder(pg.node(0).url())
        .replica(pg.node(1).url())
        .replica(format!("postgres://shop:secret@{nobody}/shop"))
        .monitor_interval(Duration::from_millis(50))
        .max_replica_lag(Duration::from_millis(500))
        .connect()
        .await?;
    let (gone, back) = ("gets no statements", "gets statements again");
    let logged = async |what: &str, words: &[&str]| {
        eventually(what, async || (log.lines_with(words) == 1).then_some(())).await
    };
    logged("the unreachable replica", &[gone, "node=2", &nobody]).await?;
    let place = format!(":{}", pg.node(1).port());
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    pg.caught_up().await?;
    eventually("a usable replica", async || db.nodes()[1].fit.then_some(())).await?;
    pg.node(1).pause_replay().await?;
    eventually("the line about the lag", async || {
        sqlx::query("insert into t values (1)").execute(&db).await.ok()?;
        (log.lines_with(&[gone, "node=1", &place, "lag"]) == 1).then_some(())
    })
    .await?;
    pg.node(1).resume_replay().await?;
    logged("the return", &[back, "node=1", &place]).await?;
    assert_eq!((log.lines_with(&[gone]), log.lines_with(&["secret"])), (2, 0), "each once");
    Ok(())
}
