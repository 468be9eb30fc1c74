//! Jobs in the application's own database: transactions, durability, dead workers.
#![cfg(all(feature = "postgres", feature = "sqlite", feature = "redis"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::Result;
use common::{Log, Note, log_worker, running};
use scale_queue::store::Relay;
use scale_queue::{Queue, Worker};
use sqlx::{Connection, PgPool, SqlitePool};
use testkit::{Postgres, Redis, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_exists_if_and_only_if_its_transaction_commits() -> Result<()> {
    let server = Postgres::start(0).await?;
    let url = server.node(0).url();
    let queue = Queue::connect(&url, "test").await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    let pool = PgPool::connect(&url).await?;
    let mut tx = pool.begin().await?;
    queue.push_in(&mut *tx, Note { n: 1 }).await?;
    tx.rollback().await?;
    let mut tx = pool.begin().await?;
    queue.push_in(&mut *tx, Note { n: 2 }).await?;
    assert_eq!(queue.stats("notes").await?.waiting, 0, "nobody sees it yet");
    tx.commit().await?;
    log.wait_for(1).await?;

    sqlx::any::install_default_drivers();
    let mut any = sqlx::AnyConnection::connect(&url).await?;
    queue.push_in(&mut any, Note { n: 3 }).await?;
    log.wait_for(2).await?;
    assert_eq!((log.all(), queue.queues().await?), (vec![2, 3], vec!["notes".to_owned()]));
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sqlite_file_keeps_its_jobs_over_a_restart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}/app.db?mode=rwc", folder.path().display());
    let pool = SqlitePool::connect(&url).await?;
    let queue = Queue::connect(&url, "test").await?;
    let mut tx = pool.begin().await?;
    sqlx::query("create table orders (id integer)").execute(&mut *tx).await?;
    queue.push_in(&mut *tx, Note { n: 1 }).await?;
    tx.commit().await?;
    queue.push(Note { n: 2 }).delay(Duration::from_millis(50)).await?;
    drop(queue);
    let queue = Queue::connect(&url, "test").await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    log.wait_for(2).await?;
    // Both may be due by now, and begin side by side.
    let mut all = log.all();
    all.sort_unstable();
    assert_eq!(all, [1, 2]);
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_brings_jobs_to_redis_once() -> Result<()> {
    let (server, redis) = tokio::try_join!(Postgres::start(0), Redis::start())?;
    let url = server.node(0).url();
    let queue = Queue::connect(&redis.url(), "test").await?;
    assert!(queue.needs_relay() && !Queue::connect(&url, "test").await?.needs_relay());
    let relay = Relay::new(&queue);
    let pool = PgPool::connect(&url).await?;
    Relay::migrate(&mut *pool.acquire().await?).await?;
    let step = async || -> Result<usize> {
        let mut tx = pool.begin().await?;
        let moved = relay.step(&mut *tx).await?;
        tx.commit().await?;
        Ok(moved)
    };
    for n in 0..1_200 {
        let mut tx = pool.begin().await?;
        queue.push_in(&mut *tx, Note { n }).await?;
        if n % 3 == 0 { tx.rollback().await? } else { tx.commit().await? }
    }
    assert_eq!(queue.stats("notes").await?.waiting, 0);
    // A relay that dies after the push and before its commit: the rows are still there, and are pushed again.
    sqlx::query("create table again as select * from scale_queue_outbox").execute(&pool).await?;
    let mut moved = 0;
    while let count @ 1.. = step().await? {
        moved += count;
    }
    assert_eq!(moved, 800);
    let columns = "app, id, queue, delay_ms, unique_key, unique_ms, body";
    let again = format!("insert into scale_queue_outbox ({columns}) select {columns} from again");
    sqlx::query(sqlx::AssertSqlSafe(again)).execute(&pool).await?;
    while step().await? > 0 {}
    assert_eq!(queue.stats("notes").await?.waiting, 800, "the store knew them");

    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    log.wait_for(800).await?;
    assert_eq!(log.sorted(), (0..1_200).filter(|n| n % 3 != 0).collect::<Vec<_>>());
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_workers_jobs_come_back() -> Result<()> {
    let server = Postgres::start(0).await?;
    let folder = tempfile::tempdir()?;
    for url in [server.node(0).url(), format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display())] {
        let queue = Queue::connect(&url, "test").await?;
        let hang = |_: Note, _| std::future::pending::<Result<(), std::io::Error>>();
        let lease = Duration::from_millis(300);
        let dying = running([Worker::new(&queue).queues(["notes"]).lease(lease).handle(hang)]);
        queue.push_many((0..5).map(|n| Note { n })).await?;
        eventually("the jobs to be leased", async || (queue.stats("notes").await.ok()?.leased == 5).then_some(())).await?;
        dying.kill();
        let log = Log::default();
        let workers = running([log_worker(&queue, &log).lease(lease)]);
        log.wait_for(5).await?;
        log.settle(&queue).await?;
        let stats = queue.stats("notes").await?;
        assert_eq!((stats.done_total, stats.failed_total), (5, 5), "the lost attempts count");
        workers.stop().await?;
    }
    Ok(())
}

/// Two stores share nothing but the database, as two processes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_pushes_and_cancels() -> Result<()> {
    let server = Postgres::start(0).await?;
    let folder = tempfile::tempdir()?;
    for url in [server.node(0).url(), format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display())] {
        let (here, there) = (Queue::connect(&url, "test").await?, Queue::connect(&url, "test").await?);
        let hang = |_: Note, _| std::future::pending::<Result<(), std::io::Error>>();
        let lease = Duration::from_millis(300);
        let worker = || Worker::new(&here).queues(["notes"]).lease(lease).handle(hang);
        let dying = running([worker()]);
        let leased = async |count| {
            eventually("jobs to be leased", async || (here.stats("notes").await.ok()?.leased == count).then_some(())).await
        };
        let dead =
            async |count| eventually("dead ones", async || (here.stats("notes").await.ok()?.dead == count).then_some(())).await;
        // Pushed there, the worker here takes it within the time of its watch, not of its safety look.
        let start = std::time::Instant::now();
        let first = there.push(Note { n: 1 }).await?.id;
        leased(1).await?;
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert!(there.cancel("notes", first).await?);
        dead(1).await?;
        // One whose worker is gone before it hears of it: whoever takes it next ends it.
        let second = there.push(Note { n: 2 }).await?.id;
        leased(1).await?;
        dying.kill();
        assert!(there.cancel("notes", second).await?);
        let workers = running([worker()]);
        dead(2).await?;
        assert!(here.dead("notes", 0, 10).await?.iter().all(|dead| dead.reason == "cancelled"));
        // Revived, it is a job like any other.
        let revived = here.dead("notes", 0, 1).await?.remove(0);
        assert!(here.revive("notes", &revived).await?);
        leased(1).await?;
        workers.kill();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_postgres_is_survived() -> Result<()> {
    let server = Postgres::start(0).await?;
    let url = server.node(0).url();
    let queue = Queue::connect(&url, "test").await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    for n in 0..60 {
        if n == 30 {
            server.node(0).restart().await?;
        }
        eventually("a push", async || queue.push(Note { n }).await.ok()).await?;
    }
    eventually("all of them", async || {
        let mut done = log.sorted();
        done.dedup();
        (done.len() == 60).then_some(())
    })
    .await?;
    workers.stop().await?;
    // Several processes may make the tables at once.
    let starts = (0..4).map(|_| Queue::connect(&url, "test"));
    futures_util::future::try_join_all(starts).await?;
    Ok(())
}
