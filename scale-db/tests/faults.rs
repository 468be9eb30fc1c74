//! Replicas that become silent, refuse connections or are full.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::Result;
use futures_util::TryStreamExt;
use scale_db::router::Verdict;
use scale_db::{Builder, Db};
use sqlx::postgres::PgRow;
use sqlx::{Executor, Postgres as Pg, SqlSafeStr, Statement};
use testkit::{DEADLINE, Postgres, Proxy, eventually};

fn over(urls: &[String]) -> Builder<Pg> {
    let interval = Duration::from_millis(100);
    let builder =
        Db::<Pg>::builder(&urls[0]).monitor_interval(interval).safe_function("inet_server_port");
    urls[1..].iter().fold(builder, Builder::replica)
}

async fn fit(db: &Db<Pg>, count: usize) -> Result<()> {
    eventually("nodes to be fit", async || {
        (db.nodes().iter().filter(|n| n.fit).count() == count).then_some(())
    })
    .await
}

async fn port(db: &Db<Pg>) -> Result<u16, sqlx::Error> {
    Ok(sqlx::query_scalar::<_, i32>("select inet_server_port() as port").fetch_one(db).await?
        as u16)
}

/// A primary and a replica, each behind a proxy.
async fn proxied(
    pg: &Postgres,
    settings: impl Fn(Builder<Pg>) -> Builder<Pg>,
) -> Result<(Db<Pg>, Proxy, Proxy)> {
    let (primary, replica) =
        (Proxy::start(pg.node(0).port()).await?, Proxy::start(pg.node(1).port()).await?);
    let url = |proxy: &Proxy| format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
    let db = settings(over(&[url(&primary), url(&replica)])).connect().await?;
    sqlx::query("create table t as select generate_series(1, 10) as n").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 2).await?;
    Ok((db, primary, replica))
}

#[tokio::test]
async fn reads_under_way_on_a_replica_that_falls_silent_are_repeated() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let (db, _primary, replica) = proxied(&pg, |b| b).await?;
    for _ in 0..20 {
        port(&db).await?;
    }
    replica.cut();
    let reads = (0..6).map(|_| port(&db));
    // Long before the statement timeout of 30 s.
    let ports =
        tokio::time::timeout(DEADLINE / 3, futures_util::future::try_join_all(reads)).await??;
    assert_eq!(ports, [pg.node(0).port(); 6]);
    let streamed: Vec<PgRow> =
        tokio::time::timeout(DEADLINE / 3, sqlx::query("select n from t").fetch(&db).try_collect())
            .await??;
    assert_eq!(streamed.len(), 10);
    replica.heal();
    fit(&db, 2).await?;
    eventually("the replica to be read from", async || {
        (port(&db).await.ok()? == pg.node(1).port()).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_stream_whose_node_falls_silent_ends_in_an_error() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let (db, _primary, replica) = proxied(&pg, |b| b).await?;
    let mut rows =
        sqlx::query_scalar::<_, String>("select repeat('x', 10000) from t a, t b, t c, t d")
            .fetch(&db);
    rows.try_next().await?.unwrap();
    replica.cut();
    let rest = tokio::time::timeout(DEADLINE / 3, rows.try_for_each(|_| async { Ok(()) })).await?;
    assert!(matches!(rest, Err(sqlx::Error::Io(_))), "{rest:?}");
    Ok(())
}

#[tokio::test]
async fn a_write_to_a_primary_that_falls_silent_ends_in_time() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let (db, primary, _replica) =
        proxied(&pg, |b| b.statement_timeout(Duration::from_secs(1))).await?;
    primary.cut();
    let write = sqlx::query("insert into t values (11)").execute(&db);
    let error = tokio::time::timeout(DEADLINE / 3, write).await?.unwrap_err();
    assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
    let begin = tokio::time::timeout(DEADLINE / 3, db.begin()).await?;
    assert!(begin.is_err());
    Ok(())
}

#[tokio::test]
async fn what_a_replica_cannot_do_is_done_by_the_primary_and_remembered() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&pg.urls()).connect().await?;
    sqlx::raw_sql(
        "create unlogged table u (n bigint); insert into u values (1); create sequence numbers",
    )
    .execute(&db)
    .await?;
    pg.caught_up().await?;
    fit(&db, 2).await?;
    let count = "select count(*) from u";
    for _ in 0..3 {
        assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&db).await?, 1);
        assert_eq!(db.router().verdict(count), Verdict::Write);
    }
    // A statement that fails on the primary too is not remembered.
    let missing =
        "select count(*) from u, lateral (select pg_last_wal_replay_lsn()) x, pg_nothing()";
    assert!(sqlx::query(missing).fetch_one(db.replica()).await.is_err());
    // A replica's value of a sequence is ahead by up to 32 numbers.
    for n in 1..4_i64 {
        assert_eq!(
            sqlx::query_scalar::<_, i64>("select nextval('numbers')").fetch_one(&db).await?,
            n
        );
        pg.caught_up().await?;
        assert_eq!(
            sqlx::query_scalar::<_, i64>("select last_value from numbers").fetch_one(&db).await?,
            n
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_default_of_serializable_costs_no_read() -> Result<()> {
    let pg = Postgres::start(1).await?;
    pg.node(0)
        .sql("alter database postgres set default_transaction_isolation = 'serializable'")
        .await?;
    // With this setting, a standby refuses every statement.
    eventually("the setting to reach the replica", async || {
        pg.node(1).sql("select 1").await.err().map(drop)
    })
    .await?;
    let db = over(&pg.urls()).connect().await?;
    assert_eq!(port(&db).await?, pg.node(0).port());
    db.begin_read().await?.commit().await?;
    Ok(())
}

#[tokio::test]
async fn a_changed_table_costs_no_read_and_is_read_on_replicas_again() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&pg.urls()).max_connections(1).connect().await?;
    sqlx::query("create table t as select 1::bigint as n").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 2).await?;
    let all = "select *, inet_server_port() as port from t";
    sqlx::query(all).fetch_one(&db).await?;
    sqlx::query("alter table t add column m text default 'x'").execute(&db).await?;
    pg.caught_up().await?;
    sqlx::query(all).fetch_one(&db).await?;
    assert_eq!(db.router().verdict(all), Verdict::Read, "it is a read still");
    Ok(())
}

#[tokio::test]
async fn a_full_replica_does_not_spill_onto_the_primary() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&pg.urls())
        .max_connections(2)
        .acquire_timeout(Duration::from_millis(300))
        .connect()
        .await?;
    fit(&db, 2).await?;
    let held = [db.begin_read().await?, db.begin_read().await?];
    let full = port(&db).await;
    assert!(matches!(full, Err(sqlx::Error::PoolTimedOut)), "{full:?}");
    assert!(db.nodes()[1].fit, "a full node is not ill");
    drop(held);
    assert_eq!(port(&db).await?, pg.node(1).port());
    // Without replicas, reads use half of the primary's connections, and writes the other half.
    pg.node(1).kill()?;
    fit(&db, 1).await?;
    let held = db.begin().await?;
    let slow = tokio::spawn({
        let db = db.clone();
        async move { sqlx::query("select pg_sleep(1)").execute(db.replica()).await }
    });
    eventually("the slow read", async || (db.nodes()[0].in_flight == 1).then_some(())).await?;
    assert!(matches!(port(&db).await, Err(sqlx::Error::PoolTimedOut)));
    drop(held);
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    slow.await??;
    Ok(())
}

#[tokio::test]
async fn a_statement_is_prepared_though_its_replica_has_died() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&pg.urls())
        .monitor_interval(Duration::from_mins(10))
        .max_connections(1)
        .connect()
        .await?;
    let known = async || {
        port(&db).await.ok()?;
        db.nodes()[1].fit.then_some(())
    };
    eventually("the replica to be known", known).await?;
    let prepare = async |sql: &'static str| (&db).prepare(sql.into_sql_str()).await;
    let before = prepare("select 1::bigint").await?;
    pg.node(1).kill()?;
    let after = prepare("select 2::bigint").await?;
    for (statement, n) in [(before, 1), (after, 2)] {
        assert_eq!(statement.query_scalar::<i64>().fetch_one(&db).await?, n);
    }
    Ok(())
}

/// Starts a primary without replicas and with a long probe interval, and creates a table that
/// counts the side effects of a view.
async fn lone(connections: u32) -> Result<(Postgres, Db<Pg>)> {
    let pg = Postgres::start(0).await?;
    let db = over(&pg.urls())
        .max_connections(connections)
        .monitor_interval(Duration::from_mins(10))
        .connect()
        .await?;
    let charge = format!(
        "create extension dblink; create table log (n bigint); create table t as select 1::bigint n;
         create function charge() returns bigint language plpgsql as $$ begin
             perform dblink_exec('host=127.0.0.1 port={} user=postgres dbname=postgres', 'insert \
             into log values (1)');
             perform pg_terminate_backend(pg_backend_pid());
             return 1;
         end $$;
         create view v as select charge() as n",
        pg.node(0).port()
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(charge)).execute(&db).await?;
    Ok((pg, db))
}

#[tokio::test]
async fn a_view_that_writes_and_loses_its_connection_has_written_once() -> Result<()> {
    let (pg, db) = lone(1).await?;
    assert!(sqlx::query("select n from v").fetch_one(&db).await.is_err());
    assert!(
        sqlx::query("with w as (select n from t) select w.n from w join v on true")
            .fetch_one(&db)
            .await
            .is_err()
    );
    assert_eq!(pg.node(0).sql("select count(*) from log").await?, "2");
    Ok(())
}

#[tokio::test]
async fn a_read_of_tables_alone_is_repeated_on_the_primary() -> Result<()> {
    let (pg, db) = lone(1).await?;
    for read in [
        "select n from t",
        "with w as (select n from t) select n from w",
        "select n from public.t x",
        "select 1::bigint",
    ] {
        assert_eq!(sqlx::query_scalar::<_, i64>(read).fetch_one(&db).await?, 1);
        pg.node(0)
            .sql(
                "select pg_terminate_backend(pid) from pg_stat_activity \
                where pid <> pg_backend_pid() and datname = 'postgres'",
            )
            .await?;
        assert_eq!(sqlx::query_scalar::<_, i64>(read).fetch_one(&db).await?, 1, "{read}");
    }
    Ok(())
}

/// A firewall that drops the existing connections silently, and lets new ones through.
#[tokio::test]
async fn connections_that_fell_silent_give_their_places_back() -> Result<()> {
    let pg = Postgres::start(0).await?;
    let way = Proxy::start(pg.node(0).port()).await?;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", way.port());
    let limits = |b: Builder<Pg>| {
        b.max_connections(3)
            .statement_timeout(Duration::from_secs(1))
            .acquire_timeout(Duration::from_millis(700))
    };
    let db = limits(over(&[url])).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    let sleep = "insert into t select 1 from pg_sleep(30)";
    let under_way: Vec<_> = (0..3)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move { sqlx::query(sleep).execute(&db).await.is_ok() })
        })
        .collect();
    let running = "select count(*) from pg_stat_activity \
        where query like 'insert into t select 1%' and wait_event = 'PgSleep'";
    eventually("three statements", async || {
        (pg.node(0).sql(running).await.ok()? == "3").then_some(())
    })
    .await?;
    way.forget();
    for task in under_way {
        assert!(!task.await?, "it was never answered");
    }
    let again = async || sqlx::query("insert into t values (2)").execute(&db).await.ok();
    eventually("a connection", again).await?;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(eventually("a connection", async || db.acquire().await.ok()).await?);
    }
    // Held connections stay with their holders; a request for a new one does not wait for ever.
    way.cut();
    drop(all);
    let late = tokio::time::timeout(DEADLINE / 3, db.acquire()).await?;
    assert!(late.is_err());
    Ok(())
}

#[tokio::test]
async fn a_row_that_a_write_returns_is_committed() -> Result<()> {
    let pg = Postgres::start(0).await?;
    let db = over(&pg.urls()).connect().await?;
    sqlx::raw_sql(
        "create table parents (id bigint primary key); create table t (n bigint primary \
        key, parent bigint references parents deferrable initially deferred)",
    )
    .execute(&db)
    .await?;
    // The row arrives before the end of its transaction, which fails.
    let insert = "insert into t values (1, 7) returning n";
    assert!(sqlx::query_scalar::<_, i64>(insert).fetch_one(&db).await.is_err());
    assert!(sqlx::query_scalar::<_, i64>(insert).fetch_optional(&db).await.is_err());
    let setup = "alter table t alter parent drop not null; alter table t add slow text";
    sqlx::raw_sql(setup).execute(&db).await?;
    for n in 0..200_i64 {
        let written: i64 = sqlx::query_scalar("insert into t values ($1) returning n")
            .bind(n)
            .fetch_one(&db)
            .await?;
        let seen: i64 = sqlx::query_scalar("select count(*) from t where n = $1")
            .bind(written)
            .fetch_one(db.primary())
            .await?;
        assert_eq!(seen, 1, "by another connection");
    }
    Ok(())
}

#[tokio::test]
async fn a_changed_table_fails_neither_reads_nor_writes() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&pg.urls()).max_connections(3).connect().await?;
    sqlx::raw_sql("create table t (n bigint)").execute(&db).await?;
    pg.caught_up().await?;
    fit(&db, 2).await?;
    let (read, write) = ("select * from t", "insert into t values (1) returning *");
    let both = async || {
        for _ in 0..5 {
            let reads = (0..3).map(|_| sqlx::query(read).fetch_all(&db));
            futures_util::future::try_join_all(reads).await?;
            sqlx::query(read).fetch_all(db.primary()).await?;
            sqlx::query(write).fetch_one(&db).await?;
        }
        Ok::<_, sqlx::Error>(())
    };
    both().await?;
    for column in ["a", "b"] {
        pg.node(0).sql(&format!("alter table t add {column} text default 'x'")).await?;
        both().await?;
        pg.caught_up().await?;
        both().await?;
    }
    assert_eq!(pg.node(0).sql("select count(*) from t").await?, "25", "each ran once");
    Ok(())
}

#[tokio::test]
async fn transactions_that_read_leave_half_of_the_primary_to_writes() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&pg.urls())
        .max_connections(4)
        .acquire_timeout(Duration::from_millis(300))
        .connect()
        .await?;
    fit(&db, 2).await?;
    pg.node(1).kill()?;
    fit(&db, 1).await?;
    let held = [db.begin_read().await?, db.begin_read().await?];
    assert!(db.begin_read().await.is_err());
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    drop(held);
    db.begin_read().await?.commit().await?;
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_closed_stays_closed() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let db = over(&pg.urls()).connect().await?;
    fit(&db, 2).await?;
    db.close().await;
    let open = async || {
        let mut open = 0;
        for node in pg.nodes() {
            let others = "select count(*) from pg_stat_activity \
                where backend_type = 'client backend' and pid <> pg_backend_pid()";
            open += node.sql(others).await.ok()?.parse::<u32>().ok()?;
        }
        (open == 0).then_some(())
    };
    eventually("all connections to end", open).await?;
    // Long enough for three more probes.
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert!(open().await.is_some(), "a closed database has connected again");
    assert!(matches!(port(&db).await, Err(sqlx::Error::PoolClosed)));
    Ok(())
}

#[tokio::test]
async fn whoever_is_asked_for_addresses_may_fail_in_any_way() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (count, url) = (std::sync::Arc::clone(&asked), pg.urls()[1].clone());
    let db = over(&pg.urls()[..1])
        .discovery_interval(Duration::from_millis(50))
        .discover_with(move || {
            let (n, url) = (count.fetch_add(1, std::sync::atomic::Ordering::Relaxed), url.clone());
            async move {
                assert!(n != 1, "the second time");
                if n == 0 {
                    std::future::pending::<()>().await;
                }
                Ok(vec![url])
            }
        })
        .connect()
        .await?;
    fit(&db, 2).await
}

/// Connections become silent at any moment of their use, including connections that a caller holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_pool_keeps_its_places_though_connections_fall_silent() -> Result<()> {
    let pg = Postgres::start(0).await?;
    let way = Proxy::start(pg.node(0).port()).await?;
    way.delay(Duration::from_millis(2));
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", way.port());
    let limits = |b: Builder<Pg>| {
        b.max_connections(8)
            .statement_timeout(Duration::from_secs(1))
            .acquire_timeout(Duration::from_secs(1))
    };
    let db = limits(over(&[url])).connect().await?;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let busy: Vec<_> = (0..6)
        .map(|_| {
            let (db, stop) = (db.clone(), std::sync::Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = sqlx::query("select 1").execute(&db).await;
                }
            })
        })
        .collect();
    let mut held = db.begin().await?;
    sqlx::query("select 1").execute(&mut *held).await?;
    for _ in 0..2 {
        way.forget();
        eventually("a statement after the silence", async || {
            sqlx::query("select 2").execute(&db).await.ok()
        })
        .await?;
    }
    let _ = tokio::time::timeout(
        Duration::from_millis(100),
        sqlx::query("select 3").execute(&mut *held),
    )
    .await;
    drop(held);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for task in busy {
        tokio::time::timeout(DEADLINE, task).await??;
    }
    // All connections at once.
    let all = async || futures_util::future::try_join_all((0..8).map(|_| db.acquire())).await.ok();
    eventually("all places", all).await?;
    Ok(())
}

#[tokio::test]
async fn a_primary_that_is_slow_once_is_the_primary_still() -> Result<()> {
    let pg = Postgres::start(0).await?;
    let db = over(&pg.urls()).connect().await?;
    sqlx::query("create table t (n bigint)").execute(&db).await?;
    pg.node(0).freeze()?;
    eventually("a late look", async || {
        (db.nodes()[0].role == scale_db::cluster::Role::Down).then_some(())
    })
    .await?;
    // The write waits for the answer, and does not fail because no primary is known.
    let (db_too, pg) = (db.clone(), std::sync::Arc::new(pg));
    let write =
        tokio::spawn(async move { sqlx::query("insert into t values (1)").execute(&db_too).await });
    eventually("the write to be under way", async || {
        (db.nodes()[0].in_flight == 1 || write.is_finished()).then_some(())
    })
    .await?;
    pg.node(0).thaw()?;
    write.await??;
    Ok(())
}
