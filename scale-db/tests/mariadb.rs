//! A MariaDB primary with replicas: roles, lag and positions by GTID, a promotion.
#![cfg(feature = "mysql")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use scale_db::cluster::Role;
use scale_db::sticky::{self, Mark};
use scale_db::{Builder, Db, Position};
use sqlx::MySql;
use testkit::{MariaDb, eventually};

const PORT: &str = "select cast(@@port as signed)";

fn builder(maria: &MariaDb) -> Builder<MySql> {
    let mut nodes = maria.nodes().iter();
    let builder = Db::<MySql>::builder(nodes.next().unwrap().url())
        .monitor_interval(Duration::from_millis(100));
    nodes.fold(builder, |b, node| b.replica(node.url()))
}

async fn port(db: &Db<MySql>) -> Result<u16> {
    Ok(sqlx::query_scalar::<_, i64>(PORT).fetch_one(db.replica()).await? as u16)
}

async fn caught_up(db: &Db<MySql>) -> Result<()> {
    let written = db.position().await?;
    let all = async || db.nodes().iter().all(|n| n.fit && n.position >= written).then_some(());
    eventually("replicas to catch up", all).await
}

#[tokio::test]
async fn a_scope_sees_its_own_writes_while_replay_stands_still() -> Result<()> {
    let maria = MariaDb::start(1).await?;
    let db = builder(&maria).max_replica_lag(Duration::from_mins(10)).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    caught_up(&db).await?;
    assert_eq!(port(&db).await?, maria.node(1).port());
    maria.node(1).pause_replay().await?;
    let count =
        async || sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&db).await;
    let mark = sticky::scope(None, async {
        assert_eq!(count().await?, 0);
        sqlx::query("insert into t values (1)").execute(&db).await?;
        assert_eq!(count().await?, 1, "the same request");
        anyhow::Ok(sticky::mark(&db).await)
    })
    .await?;
    assert!(matches!(mark, Some(Mark::At(p)) if p > Position::default()), "{mark:?}");
    let seen = mark.map(|m| (sticky::id(&db), m));
    assert_eq!(sticky::scope(seen, count()).await?, 1, "the user's next request");
    assert_eq!(sticky::scope(None, count()).await?, 0, "another user still reads from the replica");
    maria.node(1).resume_replay().await?;
    caught_up(&db).await?;
    assert_eq!(sticky::scope(seen, port(&db)).await?, maria.node(1).port(), "back on the replica");
    assert_eq!(sticky::scope(seen, count()).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_lagging_replica_is_left() -> Result<()> {
    let maria = MariaDb::start(1).await?;
    let db = builder(&maria).max_replica_lag(Duration::from_millis(300)).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    caught_up(&db).await?;
    maria.node(1).pause_replay().await?;
    sqlx::query("insert into t values (1)").execute(&db).await?;
    let left = async || db.nodes().iter().any(|n| n.number == 1 && !n.fit).then_some(());
    eventually("the replica to be left", left).await?;
    assert_eq!(sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&db).await?, 1);
    maria.node(1).resume_replay().await?;
    caught_up(&db).await
}

#[tokio::test]
async fn writes_follow_a_promotion_and_never_go_back() -> Result<()> {
    let maria = MariaDb::start(1).await?;
    let db = builder(&maria).primary_wait(Duration::from_secs(10)).connect().await?;
    sqlx::query("create table t (n bigint primary key)").execute(&db).await?;
    caught_up(&db).await?;
    maria.node(0).kill()?;
    assert!(
        sqlx::query("insert into t values (-1)").execute(&db).await.is_err(),
        "its outcome is unknown: not repeated"
    );
    // A write that asks the lost node for a connection may be cut off by the promotion, and is not
    // repeated: the next write begins when the loss is known.
    let lost =
        async || db.nodes().iter().all(|n| n.number != 0 || n.role != Role::Primary).then_some(());
    eventually("the loss to be seen", lost).await?;
    maria.node(1).promote().await?;
    sqlx::query("insert into t values (100)").execute(&db).await?;
    maria.node(0).restart().await?;
    // The old primary returns and reports that it takes writes; MariaDB has no timelines to
    // distinguish the two.
    let leftover =
        async || db.nodes().iter().any(|n| n.number == 0 && n.role == Role::Primary).then_some(());
    eventually("the leftover to be seen", leftover).await?;
    for n in 101..150_i64 {
        sqlx::query("insert into t values (?)").bind(n).execute(&db).await?;
    }
    assert_eq!(maria.node(1).sql("select count(*) from test.t where n >= 100").await?, "50");
    assert_eq!(
        maria.node(0).sql("select count(*) from test.t where n >= 100").await?,
        "0",
        "nothing went to the leftover"
    );
    Ok(())
}

/// Connects like an application: with a user to whom `read_only` applies; it does not apply to
/// administrators.
async fn as_application(maria: &MariaDb) -> Result<Builder<MySql>> {
    maria
        .node(0)
        .sql(
            "create user app@'%'; grant select, insert, execute on test.* to app@'%'; \
        grant slave monitor, binlog monitor on *.* to app@'%'",
        )
        .await?;
    let url = |n: usize| format!("mysql://app@127.0.0.1:{}/test", maria.node(n).port());
    eventually("the user to reach the replica", async || {
        maria
            .node(1)
            .sql("select 1 from mysql.user where user = 'app'")
            .await
            .ok()
            .filter(|found| found == "1")
            .map(drop)
    })
    .await?;
    Ok(Db::<MySql>::builder(url(0)).replica(url(1)))
}

#[tokio::test]
async fn a_planned_switch_over_fails_no_write() -> Result<()> {
    let maria = MariaDb::start(1).await?;
    maria.node(0).sql("create table test.t (n bigint primary key)").await?;
    // The monitor probes so rarely that a refused write detects the change first.
    let builder = as_application(&maria)
        .await?
        .monitor_interval(Duration::from_secs(3))
        .primary_wait(Duration::from_secs(10));
    let db = builder.connect().await?;
    sqlx::query("insert into t values (1)").execute(&db).await?;
    caught_up(&db).await?;
    maria.node(0).sql("set global read_only = 1").await?;
    maria.node(1).promote().await?;
    for n in 2..5_i64 {
        sqlx::query("insert into t values (?)").bind(n).execute(&db).await?;
    }
    assert_eq!(maria.node(1).sql("select count(*) from test.t").await?, "4");
    Ok(())
}

#[tokio::test]
async fn a_write_hidden_in_a_view_is_repeated_on_the_primary_and_remembered() -> Result<()> {
    let maria = MariaDb::start(1).await?;
    for node in maria.nodes() {
        node.sql("set global log_bin_trust_function_creators = 1").await?;
    }
    maria.node(0).sql("create table test.log (n bigint)").await?;
    let function = "create function test.f() returns bigint modifies sql data begin insert \
        into test.log values (1); return 1; end";
    maria.node(0).sql(&format!("delimiter //\n{function}//")).await?;
    maria.node(0).sql("create sql security invoker view test.v as select test.f() as n").await?;
    let db = as_application(&maria)
        .await?
        .monitor_interval(Duration::from_millis(100))
        .connect()
        .await?;
    caught_up(&db).await?;
    for n in 1..4 {
        assert_eq!(sqlx::query_scalar::<_, i64>("select n from v").fetch_one(&db).await?, 1);
        assert_eq!(
            maria.node(0).sql("select count(*) from test.log").await?,
            n.to_string(),
            "once each"
        );
    }
    assert_eq!(
        db.router().verdict("select n from v"),
        scale_db::router::Verdict::Write,
        "remembered"
    );
    Ok(())
}

#[tokio::test]
async fn a_replica_that_follows_a_leftover_serves_nobody() -> Result<()> {
    let maria = MariaDb::start(2).await?;
    let db = builder(&maria).max_replica_lag(Duration::from_mins(10)).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    caught_up(&db).await?;
    maria.node(0).freeze()?;
    maria.node(1).promote().await?;
    let insert = async |n: i64| {
        sticky::scope(None, async {
            sqlx::query("insert into t values (?)").bind(n).execute(&db).await?;
            Ok::<_, sqlx::Error>(sticky::mark(&db).await)
        })
        .await
    };
    eventually("a write to the new primary", async || {
        insert(0).await.inspect_err(|e| eprintln!("{e:?} {:?}", db.nodes())).ok()
    })
    .await?;
    maria.node(0).thaw()?;
    maria.node(0).sql("create table test.other select seq from test.seq_1_to_1000").await?;
    maria.node(0).sql("insert into test.other values (0)").await?;
    let follower = async || {
        db.nodes().iter().any(|n| n.number == 2 && n.role == Role::Replica && !n.fit).then_some(())
    };
    eventually("the leftover's follower to be left", follower).await?;
    for n in 1..30_i64 {
        let mark = insert(n).await?;
        let count = sqlx::query_scalar::<_, i64>("select count(*) from t where n = ?")
            .bind(n)
            .fetch_one(&db);
        assert_eq!(sticky::scope(mark.map(|m| (sticky::id(&db), m)), count).await?, 1);
    }
    assert_eq!(maria.node(0).sql("select count(*) from test.t").await?.trim(), "0");
    // A new process sees both nodes, and which writes each has.
    let new = builder(&maria).connect().await?;
    assert!(new.nodes()[1].fit && !new.nodes()[0].fit, "{new:?}");
    Ok(())
}

#[tokio::test]
async fn a_late_replica_is_left_with_several_replication_domains_too() -> Result<()> {
    let maria = MariaDb::start(1).await?;
    maria
        .node(0)
        .sql(
            "create table test.t (n bigint); set gtid_domain_id = 7; insert into test.t values (1)",
        )
        .await?;
    let db = builder(&maria).max_replica_lag(Duration::from_millis(300)).connect().await?;
    eventually("the replica to be fit", async || db.nodes()[1].fit.then_some(())).await?;
    assert!(db.position().await.is_err(), "writes have no order");
    maria.node(1).pause_replay().await?;
    maria.node(0).sql("set gtid_domain_id = 7; insert into test.t values (2)").await?;
    let left = async || (!db.nodes()[1].fit && db.nodes()[1].lag.is_some()).then_some(());
    eventually("the replica to be left", left).await?;
    let seen = sticky::scope(None, async {
        sqlx::query("insert into t values (3)").execute(&db).await?;
        Ok::<_, sqlx::Error>(sticky::mark(&db).await)
    });
    assert_eq!(seen.await?, Some(Mark::Primary));
    maria.node(1).resume_replay().await?;
    eventually("the replica to be fit", async || db.nodes()[1].fit.then_some(())).await
}

#[tokio::test]
async fn a_server_that_follows_another_is_a_replica_though_it_takes_writes() -> Result<()> {
    let maria = MariaDb::start(1).await?;
    maria.node(1).sql("set global read_only = 0").await?;
    let db = builder(&maria).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    caught_up(&db).await?;
    let roles = async || db.nodes().iter().map(|n| n.role).collect::<Vec<_>>();
    assert_eq!(roles().await, [Role::Primary, Role::Replica]);
    // It does not become the primary either if its replication is paused or its primary is gone.
    maria.node(1).pause_replay().await?;
    let again = builder(&maria).connect().await?;
    assert_eq!(again.nodes()[1].role, Role::Replica);
    maria.node(0).kill()?;
    eventually("the primary to be missed", async || {
        (db.nodes()[0].role == Role::Down).then_some(())
    })
    .await?;
    assert!(sqlx::query("insert into t values (1)").execute(&db).await.is_err());
    assert_eq!(maria.node(1).sql("select count(*) from test.t").await?.trim(), "0");
    Ok(())
}
