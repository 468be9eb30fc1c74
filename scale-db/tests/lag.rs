//! Replication lag: its limit, and how it is measured with different services and roles.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use scale_db::cluster::{NodeStatus, Role};
use scale_db::sticky::{self, Mark};
use scale_db::{Builder, Db};
use sqlx::Postgres as Pg;
use testkit::{Postgres, eventually};

const MAX: Duration = Duration::from_millis(1_500);

fn over(urls: &[String]) -> Builder<Pg> {
    let builder = Db::<Pg>::builder(&urls[0])
        .monitor_interval(Duration::from_millis(50))
        .max_replica_lag(MAX);
    urls[1..].iter().fold(builder, Builder::replica)
}

async fn replica(db: &Db<Pg>, what: &str, is: impl Fn(&NodeStatus) -> bool) -> Result<()> {
    eventually(what, async || db.nodes().iter().any(|n| n.number == 1 && is(n)).then_some(())).await
}

async fn fit(db: &Db<Pg>) -> Result<()> {
    replica(db, "the replica to be fit", |n| n.fit).await
}

#[tokio::test]
async fn an_exhausted_pool_of_the_primary_lets_no_late_replica_in() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&pg.urls())
        .max_connections(1)
        .acquire_timeout(Duration::from_millis(300))
        .connect()
        .await?;
    let writer = Db::<Pg>::connect(&pg.urls()[0]).await?;
    sqlx::query("create table t (n bigint)").execute(&writer).await?;
    pg.caught_up().await?;
    fit(&db).await?;
    let held = db.begin().await?;
    pg.node(1).pause_replay().await?;
    let stop = tokio::time::Instant::now() + 3 * MAX;
    let mut left = false;
    while tokio::time::Instant::now() < stop {
        sqlx::query("insert into t values (1)").execute(&writer).await?;
        assert!(
            sqlx::query("insert into t values (1)").execute(&db).await.is_err(),
            "the one connection is in use"
        );
        let fit = db.nodes()[1].fit;
        assert!(!(left && fit), "a replica whose replay stands still came back");
        left |= !fit;
    }
    assert!(left && db.nodes()[1].lag.is_some_and(|lag| lag > MAX), "{:?}", db.nodes());
    drop(held);
    Ok(())
}

#[tokio::test]
async fn a_replica_that_is_late_when_a_process_starts_is_not_used_until_it_has_caught_up()
-> Result<()> {
    let pg = Postgres::start(1).await?;
    pg.node(0).sql("create table t as select 1 n").await?;
    pg.caught_up().await?;
    pg.node(1).pause_replay().await?;
    pg.node(0).sql("insert into t values (2)").await?;
    let db = over(&pg.urls()).connect().await?;
    for _ in 0..50 {
        assert_eq!(sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&db).await?, 2);
    }
    assert_eq!((db.nodes()[1].fit, db.nodes()[1].lag), (false, None), "late since who knows when");
    pg.node(1).resume_replay().await?;
    fit(&db).await
}

#[tokio::test]
async fn an_idle_primary_that_begins_a_new_log_file_makes_nobody_late() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&pg.urls()).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    for _ in 0..3 {
        pg.node(0).sql("select pg_switch_wal()").await?;
        pg.caught_up().await?;
        let shown = async || {
            let nodes = db.nodes();
            (nodes[0].position == nodes[1].position && nodes[1].fit).then_some(())
        };
        eventually("both to be at one position", shown).await?;
        sqlx::query("insert into t values (1)").execute(&db).await?;
    }
    Ok(())
}

/// Creates a role that may not call the functions in `denied`.
async fn role(pg: &Postgres, denied: &[&str]) -> Result<Vec<String>> {
    pg.node(0)
        .sql("create role app login; create table t (n bigint); grant all on t to app")
        .await?;
    for function in denied {
        pg.node(0).sql(&format!("revoke execute on function {function} from public")).await?;
    }
    pg.caught_up().await?;
    Ok(pg.urls().iter().map(|url| url.replacen("postgres@", "app@", 1)).collect())
}

async fn write(db: &Db<Pg>) -> Result<Option<Mark>> {
    sticky::scope(None, async {
        sqlx::query("insert into t values (1)").execute(db).await?;
        Ok(sticky::mark(db).await)
    })
    .await
}

const CONTROL: [&str; 2] = ["pg_control_system()", "pg_control_checkpoint()"];
const LSN: [&str; 3] =
    ["pg_current_wal_insert_lsn()", "pg_last_wal_replay_lsn()", "pg_walfile_name(pg_lsn)"];

#[tokio::test]
async fn a_role_that_may_not_read_the_control_file_has_positions() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&role(&pg, &CONTROL).await?).connect().await?;
    fit(&db).await?;
    let mark = write(&db).await?;
    assert!(matches!(mark, Some(Mark::At(_))), "{mark:?}");
    pg.node(1).pause_replay().await?;
    write(&db).await?;
    replica(&db, "the replica to be left", |n| !n.fit && n.lag.is_some_and(|lag| lag > MAX)).await
}

#[tokio::test]
async fn a_replica_that_tells_its_role_alone_is_not_used() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let denied = [&CONTROL[..], &LSN[..]].concat();
    let db = over(&role(&pg, &denied).await?).connect().await?;
    replica(&db, "the replica to be seen", |n| n.role == Role::Replica).await?;
    assert_eq!(write(&db).await?, Some(Mark::Primary));
    assert_eq!(sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&db).await?, 1);
    assert_eq!((db.nodes()[1].fit, db.nodes()[1].lag), (false, None));
    // With more rights, the role reports more on its next connection.
    for function in denied {
        pg.node(0).sql(&format!("grant execute on function {function} to public")).await?;
    }
    pg.caught_up().await?;
    for node in pg.nodes() {
        node.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
            .await?;
    }
    fit(&db).await
}

/// Functions of Amazon Aurora, with the answers given in its manual. Aurora has no LSN functions.
#[tokio::test]
async fn an_aurora_reader_is_used_by_the_lag_that_aurora_tells() -> Result<()> {
    let pg = Postgres::start(1).await?;
    pg.node(0)
        .sql(
            "create table aurora_lag as select 12.5::float8 as ms; grant select \
             on aurora_lag to public; \
             create function aurora_db_instance_identifier() returns text language sql as $$ \
             select 'reader-1' $$; \
             create function aurora_replica_status(out server_id text, out replica_lag_in_msec \
             float8) returns setof record \
             language sql as $$ select 'writer', null::float8 union all select 'reader-1', ms \
             from aurora_lag $$",
        )
        .await?;
    let denied = [&CONTROL[..], &LSN[..]].concat();
    let db = over(&role(&pg, &denied).await?).connect().await?;
    replica(&db, "the reader to be used", |n| n.fit && n.lag == Some(Duration::from_millis(13)))
        .await?;
    assert_eq!(
        write(&db).await?,
        Some(Mark::Primary),
        "where nobody knows positions, the primary is read from"
    );
    pg.node(0).sql("update aurora_lag set ms = 60000").await?;
    replica(&db, "the late reader to be left", |n| !n.fit && n.lag == Some(Duration::from_mins(1)))
        .await
}
