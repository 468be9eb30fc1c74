//! A primary with replicas: routing, lag, failures, failover, read your own writes.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;
use scale_db::cluster::Role;
use scale_db::sticky::{self, Mark};
use scale_db::{Builder, Db, Error, NoReplica};
use sqlx::Postgres as Pg;
use testkit::{Postgres, eventually};

const PORT: &str = "select inet_server_port() as port";

fn builder(pg: &Postgres) -> Builder<Pg> {
    let urls = pg.urls();
    let interval = Duration::from_millis(100);
    let builder =
        Db::<Pg>::builder(&urls[0]).monitor_interval(interval).safe_function("inet_server_port");
    urls[1..].iter().fold(builder, scale_db::Builder::replica)
}

async fn port(db: &Db<Pg>) -> Result<u16> {
    Ok(sqlx::query_scalar::<_, i32>(PORT).fetch_one(db).await? as u16)
}

async fn fit(db: &Db<Pg>, count: usize) -> Result<()> {
    eventually("nodes to be fit", async || {
        (db.nodes().iter().filter(|n| n.fit).count() == count).then_some(())
    })
    .await
}

#[tokio::test]
async fn reads_go_to_replicas_and_writes_to_the_primary() -> Result<()> {
    let pg = Postgres::start(2).await?;
    let db = builder(&pg).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 3).await?;
    let mut seen = std::collections::HashSet::new();
    eventually("both replicas to be asked", async || {
        seen.insert(port(&db).await.ok()?);
        (seen.len() > 1).then_some(())
    })
    .await?;
    for _ in 0..100 {
        seen.insert(port(&db).await?);
    }
    assert_eq!(
        seen,
        [pg.node(1).port(), pg.node(2).port()].into(),
        "both replicas, never the primary"
    );
    let written: i32 = sqlx::query_scalar(
        "with i as (insert into t values (1) returning 1) select inet_server_port() from i",
    )
    .fetch_one(&db)
    .await?;
    assert_eq!(written as u16, pg.node(0).port());
    assert_eq!(
        sqlx::query_scalar::<_, i32>(PORT).fetch_one(db.primary()).await? as u16,
        pg.node(0).port()
    );
    let mut tx = db.begin().await?;
    assert_eq!(
        sqlx::query_scalar::<_, i32>(PORT).fetch_one(&mut *tx).await? as u16,
        pg.node(0).port()
    );
    tx.rollback().await?;
    let mut tx = db.begin_read().await?;
    assert_ne!(
        sqlx::query_scalar::<_, i32>(PORT).fetch_one(&mut *tx).await? as u16,
        pg.node(0).port()
    );
    assert!(sqlx::query("insert into t values (9)").execute(&mut *tx).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_write_hidden_in_a_view_is_repeated_on_the_primary_and_remembered() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = builder(&pg).connect().await?;
    sqlx::raw_sql("create sequence s; create view v as select nextval('s') as n")
        .execute(&db)
        .await?;
    pg.caught_up().await?;
    fit(&db, 2).await?;
    for expected in 1..=3_i64 {
        assert_eq!(sqlx::query_scalar::<_, i64>("select n from v").fetch_one(&db).await?, expected);
    }
    assert_eq!(db.router().verdict("select n from v"), scale_db::router::Verdict::Write);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_costs_no_read() -> Result<()> {
    let pg = Postgres::start(2).await?;
    let db = builder(&pg).connect().await?;
    fit(&db, 3).await?;
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (db, stop, reads) = (db.clone(), Arc::clone(&stop), Arc::clone(&reads));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    port(&db).await?;
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    let after = |more: u32| {
        let (reads, goal) = (Arc::clone(&reads), reads.load(Ordering::Relaxed) + more);
        async move {
            eventually("reads to go on", async || {
                (reads.load(Ordering::Relaxed) >= goal).then_some(())
            })
            .await
        }
    };
    after(200).await?;
    pg.node(1).kill()?;
    after(500).await?;
    pg.node(2).kill()?;
    after(500).await?;
    pg.node(1).restart().await?;
    eventually("the replica to be used again", async || {
        (port(&db).await.ok()? == pg.node(1).port()).then_some(())
    })
    .await?;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_follow_a_promotion_and_never_go_back() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = builder(&pg).primary_wait(Duration::from_secs(10)).connect().await?;
    sqlx::query("create table t (n bigint primary key)").execute(&db).await?;
    for n in 0..50_i64 {
        sqlx::query("insert into t values ($1)").bind(n).execute(&db).await?;
    }
    pg.caught_up().await?;
    pg.node(0).kill()?;
    let failed = sqlx::query("insert into t values (-1)").execute(&db).await;
    assert!(failed.is_err(), "a lost connection's outcome is unknown, so it is not repeated");
    pg.node(1).promote().await?;
    // The write itself waits for the new primary.
    sqlx::query("insert into t values (100)").execute(&db).await?;
    pg.node(0).restart().await?;
    let leftover =
        async || db.nodes().iter().any(|n| n.number == 0 && n.role == Role::Primary).then_some(());
    eventually("the leftover to be seen", leftover).await?;
    for n in 101..150_i64 {
        sqlx::query("insert into t values ($1)").bind(n).execute(&db).await?;
        sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&db).await?;
    }
    assert_eq!(pg.node(1).sql("select count(*) from t where n >= 0").await?, "100");
    assert_eq!(
        pg.node(0).sql("select count(*) from t where n >= 100").await?,
        "0",
        "nothing went to the leftover"
    );
    Ok(())
}

#[tokio::test]
async fn a_scope_sees_its_own_writes_while_replay_stands_still() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = builder(&pg).max_replica_lag(Duration::from_mins(10)).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 2).await?;
    pg.node(1).pause_replay().await?;
    let count =
        async || sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&db).await;

    let mark = sticky::scope(None, async {
        assert_eq!(count().await?, 0);
        sqlx::query("insert into t values (1)").execute(&db).await?;
        assert_eq!(count().await?, 1, "the same request");
        anyhow::Ok(sticky::mark(&db).await)
    })
    .await?;
    assert!(matches!(mark, Some(Mark::At(_))), "{mark:?}");
    let seen = mark.map(|m| (sticky::id(&db), m.to_string().parse().unwrap()));
    assert_eq!(sticky::scope(seen, count()).await?, 1, "the user's next request");
    assert_eq!(sticky::scope(None, count()).await?, 0, "another user still reads from the replica");

    pg.node(1).resume_replay().await?;
    pg.caught_up().await?;
    let back =
        async || (sticky::scope(seen, port(&db)).await.ok()? == pg.node(1).port()).then_some(());
    eventually("reads to go back to the replica", back).await?;
    assert_eq!(sticky::scope(seen, count()).await?, 1);
    Ok(())
}

#[tokio::test]
async fn the_layer_carries_the_mark_in_a_cookie() -> Result<()> {
    use http::{Request, Response};
    use tower::{Layer, ServiceExt, service_fn};

    let pg = Postgres::start(1).await?;
    let db = builder(&pg).max_replica_lag(Duration::from_mins(10)).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 2).await?;
    pg.node(1).pause_replay().await?;
    let handler = {
        let db = db.clone();
        move |request: Request<&'static str>| {
            let db = db.clone();
            async move {
                if *request.body() == "write" {
                    sqlx::query("insert into t values (1)").execute(&db).await?;
                }
                Ok::<_, sqlx::Error>(Response::new(
                    sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&db).await?,
                ))
            }
        }
    };
    let app = scale_db::StickyLayer::new(db.clone()).layer(service_fn(handler));
    let read = app.clone().oneshot(Request::new("read")).await?;
    assert!(read.headers().get("set-cookie").is_none());
    let wrote = app.clone().oneshot(Request::new("write")).await?;
    assert_eq!(*wrote.body(), 1);
    let cookie = wrote.headers()["set-cookie"].to_str()?;
    assert!(cookie.contains("HttpOnly; SameSite=Lax; Secure"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let again = Request::builder().header("cookie", format!("other=1; {pair}")).body("read")?;
    assert_eq!(*app.clone().oneshot(again).await?.body(), 1);
    assert_eq!(
        *app.oneshot(Request::builder().header("cookie", "scale_db=garbage").body("read")?)
            .await?
            .body(),
        0
    );
    Ok(())
}

#[tokio::test]
async fn a_lagging_replica_is_left_and_refusal_is_possible() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let lag = Duration::from_millis(300);
    let db = builder(&pg).max_replica_lag(lag).connect().await?;
    let strict = builder(&pg).max_replica_lag(lag).no_replica(NoReplica::Refuse).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 2).await?;
    fit(&strict, 2).await?;
    pg.node(1).pause_replay().await?;
    sqlx::query("insert into t values (1)").execute(&db).await?;
    fit(&db, 1).await?;
    fit(&strict, 1).await?;
    assert_eq!(port(&db).await?, pg.node(0).port());
    assert!(port(&strict).await.unwrap_err().to_string().contains("no replica"));
    pg.node(1).resume_replay().await?;
    fit(&db, 2).await
}

#[tokio::test]
async fn a_stranger_a_dead_server_and_a_wrong_address_are_told_apart() -> Result<()> {
    let (ours, theirs) = (Postgres::start(0).await?, Postgres::start(0).await?);
    let url = ours.node(0).url();
    let stranger = Db::<Pg>::builder(&url).replica(theirs.node(0).url()).connect().await;
    assert!(matches!(stranger, Err(Error::WrongCluster { node: 1 })), "{stranger:?}");
    let dead = Db::<Pg>::builder("postgres://u:hunter2@127.0.0.1:1/x")
        .acquire_timeout(Duration::from_millis(300))
        .connect()
        .await
        .unwrap_err();
    assert!(matches!(dead, Error::Unreachable(_)), "{dead:?}");
    assert!(!format!("{dead} {dead:?}").contains("hunter2"));
    assert!(matches!(Db::<Pg>::connect("mysql://x").await, Err(Error::Address(_))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_come_and_go_are_found() -> Result<()> {
    let pg = Postgres::start(2).await?;
    let urls = pg.urls();
    let there = Arc::new(std::sync::Mutex::new(vec![urls[1].clone()]));
    let told = Arc::clone(&there);
    let db = Db::<Pg>::builder(&urls[0])
        .monitor_interval(Duration::from_millis(50))
        .discovery_interval(Duration::from_millis(50))
        .discover_with(move || std::future::ready(Ok(told.lock().unwrap().clone())))
        .safe_function("inet_server_port")
        .connect()
        .await?;
    let only = async |node: usize| {
        let port = pg.node(node).port();
        eventually("reads to go there alone", async || {
            for _ in 0..20 {
                if self::port(&db).await.ok()? != port {
                    return None;
                }
            }
            Some(())
        })
        .await
    };
    only(1).await?;
    // A replica leaves and another joins while queries run: no query fails.
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (db, stop) = (db.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                sqlx::query("select pg_sleep(0.002)").execute(&db).await?;
                port(&db).await?;
            }
            anyhow::Ok(())
        })
    };
    *there.lock().unwrap() = vec![urls[2].clone()];
    only(2).await?;
    *there.lock().unwrap() = Vec::new();
    only(2).await?;
    assert_eq!(db.nodes().len(), 2, "an empty answer is no answer");
    // Discovered nodes take over like listed nodes.
    *there.lock().unwrap() = vec![urls[1].clone(), urls[2].clone()];
    fit(&db, 3).await?;
    stop.store(true, Ordering::Relaxed);
    load.await??;

    let by_name = pg.node(1).url().replace("127.0.0.1", "localhost");
    let dns = Db::<Pg>::builder(&urls[0])
        .discover(by_name)
        .monitor_interval(Duration::from_millis(50))
        .connect()
        .await?;
    eventually("the name's address to be used", async || {
        dns.nodes().iter().any(|n| n.number > 0 && n.fit).then_some(())
    })
    .await?;
    let nowhere =
        Db::<Pg>::builder(&urls[0]).discover("postgres://no.such.host.invalid/x").connect().await?;
    assert_eq!(nowhere.nodes().len(), 1, "the primary serves");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heavier_replica_gets_more() -> Result<()> {
    let pg = Postgres::start(2).await?;
    let urls = pg.urls();
    let db = Db::<Pg>::builder(&urls[0])
        .replica(scale_db::Replica::new(&urls[1]).weight(4.0))
        .replica(&urls[2])
        .safe_function("inet_server_port")
        .connect()
        .await?;
    fit(&db, 3).await?;
    let mut heavy = 0;
    for _ in 0..3_000 {
        heavy += u32::from(port(&db).await? == pg.node(1).port());
    }
    assert!(heavy > 1_800, "four of five by weight, less what differs in speed: {heavy} of 3000");
    let none = Db::<Pg>::builder(&urls[0])
        .replica(scale_db::Replica::new(&urls[1]).weight(0.0))
        .connect()
        .await;
    assert!(matches!(none, Err(Error::Address(_))));
    Ok(())
}

/// With a synchronous replica, for applications that accept no loss: acknowledged writes exist
/// after the failover, writes continue within two seconds, and no write goes to the old primary
/// when it returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_in_a_fail_over() -> Result<()> {
    let pg = Postgres::start(1).await?;
    pg.node(0).sql("alter system set synchronous_standby_names = '*'").await?;
    pg.node(0).sql("select pg_reload_conf()").await?;
    let synchronous = async || {
        (pg.node(0).sql("select sync_state from pg_stat_replication").await.ok()? == "sync")
            .then_some(())
    };
    eventually("the replica to be synchronous", synchronous).await?;
    let db = builder(&pg).connect().await?;
    sqlx::query("create table t (n bigint primary key)").execute(&db).await?;
    let (stop, next) =
        (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::atomic::AtomicI64::new(0)));
    let (acknowledged, refused) =
        (Arc::new(std::sync::Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (db, stop, next) = (db.clone(), Arc::clone(&stop), Arc::clone(&next));
            let (acknowledged, refused) = (Arc::clone(&acknowledged), Arc::clone(&refused));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if sqlx::query("insert into t values ($1)").bind(n).execute(&db).await.is_ok() {
                        acknowledged.lock().unwrap().push(n);
                    } else {
                        // Fast and with a type, so that the caller can decide.
                        refused.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            })
        })
        .collect();
    let count = || acknowledged.lock().unwrap().len();
    let more = async |by: usize| {
        let goal = count() + by;
        eventually("writes to go on", async || (count() >= goal).then_some(())).await
    };
    more(200).await?;
    pg.node(0).kill()?;
    eventually("writes to be refused", async || {
        (refused.load(Ordering::Relaxed) > 20).then_some(())
    })
    .await?;
    pg.node(1).promote().await?;
    let promoted = std::time::Instant::now();
    let before = count();
    more(1).await?;
    assert!(promoted.elapsed() < Duration::from_secs(2), "{:?}", promoted.elapsed());
    more(200).await?;
    pg.node(0).restart().await?;
    let leftover =
        async || db.nodes().iter().any(|n| n.number == 0 && n.role == Role::Primary).then_some(());
    eventually("the leftover to be seen", leftover).await?;
    more(200).await?;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await?;
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    let there: std::collections::HashSet<i64> = pg
        .node(1)
        .sql("select n from t")
        .await?
        .lines()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let lost: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged writes are lost: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    let strays: Vec<i64> = pg
        .node(0)
        .sql("select n from t")
        .await?
        .lines()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let after: std::collections::HashSet<_> = acknowledged[before..].iter().collect();
    assert!(strays.iter().all(|n| !after.contains(n)), "writes went to the leftover");
    Ok(())
}

#[tokio::test]
async fn an_exhausted_pool_is_no_sign_of_illness() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = builder(&pg)
        .max_connections(1)
        .acquire_timeout(Duration::from_millis(200))
        .connect()
        .await?;
    fit(&db, 2).await?;
    let held = (db.begin().await?, db.begin_read().await?);
    // Two seconds are twenty probes of the monitor.
    for _ in 0..10 {
        let error = sqlx::query("select 1").execute(db.primary()).await.unwrap_err();
        assert!(matches!(error, sqlx::Error::PoolTimedOut), "{error:?}");
        assert!(db.nodes().iter().all(|n| n.fit), "{:?}", db.nodes());
    }
    drop(held);
    sqlx::query("select 1").execute(db.primary()).await?;
    port(&db).await?;
    Ok(())
}

#[tokio::test]
async fn of_connections_that_broke_together_one_write_meets_the_first_and_reads_meet_none()
-> Result<()> {
    let pg = Postgres::start(0).await?;
    pg.node(0).sql("create table t (n int)").await?;
    // The interval is long, so that the monitor does not detect the failure first.
    let interval = Duration::from_mins(10);
    let db = Db::<Pg>::builder(&pg.urls()[0])
        .max_connections(4)
        .monitor_interval(interval)
        .connect()
        .await?;
    let write = || sqlx::query("insert into t values (1)").execute(&db);
    let warm = || {
        futures_util::future::try_join_all(
            (0..4).map(|_| sqlx::query("select pg_sleep(0.05)").execute(&db)),
        )
    };
    let cut = async || -> Result<()> {
        warm().await?;
        let mine = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where pid <> pg_backend_pid() and backend_type = 'client backend'";
        pg.node(0).sql(mine).await.map(drop)
    };
    let mut failed = 0;
    for _ in 0..5 {
        cut().await?;
        sqlx::query("select count(*) from t").fetch_one(&db).await?;
        for _ in 0..8 {
            write().await?;
        }
        cut().await?;
        db.begin().await?.commit().await?;
        cut().await?;
        db.begin_read().await?.commit().await?;
        cut().await?;
        sqlx::query("insert into t values (1)").execute(&mut *db.acquire().await?).await?;
        cut().await?;
        for _ in 0..8 {
            failed += u32::from(write().await.is_err());
        }
    }
    assert!(failed <= 5, "{failed} writes failed in five cuts");
    Ok(())
}

/// A name of replicas does not list the one that was promoted: it stays the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_node_leaves_the_name_of_the_replicas_and_is_the_primary() -> Result<()> {
    let server = Postgres::start(1).await?;
    let found = Arc::new(std::sync::Mutex::new(vec![server.node(1).url()]));
    let told = Arc::clone(&found);
    let db = Db::<Pg>::builder(server.node(0).url())
        .monitor_interval(Duration::from_millis(100))
        .discovery_interval(Duration::from_millis(50))
        .primary_wait(Duration::from_secs(10))
        .discover_with(move || std::future::ready(Ok(told.lock().unwrap().clone())))
        .connect()
        .await?;
    sqlx::query("create table t (a int)").execute(&db).await?;
    server.caught_up().await?;
    server.node(0).kill()?;
    // The name changes before this process notices the promotion.
    *found.lock().unwrap() = vec!["postgres://127.0.0.1:2/x".to_owned()];
    server.node(1).promote().await?;
    sqlx::query("insert into t values (1)").execute(&db).await?;
    eventually("another discovery", async || (db.nodes().len() == 3).then_some(())).await?;
    for _ in 0..20 {
        sqlx::query("insert into t values (1)").execute(&db).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
