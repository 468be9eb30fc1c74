//! Pushes while Redis does not answer, is gone or is full: they go to an outbox, and each job runs
//! once.
#![cfg(all(feature = "redis", feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::Result;
use common::{Log, Note, log_worker, running};
use futures_util::future::try_join_all;
use scale_queue::{Error, Job, Queue};
use scale_sql::{Database, Options};
use serde::{Deserialize, Serialize};
use testkit::{MariaDb, Postgres, Redis, eventually};

#[derive(Serialize, Deserialize)]
struct Keyed(u32);

impl Job for Keyed {
    const NAME: &'static str = "keyed";
    const QUEUE: &'static str = "notes";

    fn unique_key(&self) -> Option<String> {
        Some(self.0.to_string())
    }
}

async fn failing_over(redis: &Redis, outbox: &str) -> Result<Queue, Error> {
    Queue::builder(&redis.url(), "test").failover(outbox).migrate(true).connect().await
}

/// Returns the number of jobs in the outbox.
async fn in_outbox(database: &Database) -> Result<i64> {
    let text = "select count(*) from scale_queue_outbox";
    let count = scale_sql::Statement::new(database.system(), text).query();
    Ok(count.fetch_one(database).await?.get(0)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_go_on_while_redis_is_stopped_or_gone() -> Result<()> {
    let (postgres, mariadb) = tokio::try_join!(Postgres::start(0), MariaDb::start(0))?;
    let folder = tempfile::tempdir()?;
    let file = format!("sqlite://{}/outbox.db?mode=rwc", folder.path().display());
    for url in [postgres.node(0).url(), mariadb.node(0).url(), file] {
        let redis = Redis::start().await?;
        let queue = failing_over(&redis, &url).await?;
        let other = failing_over(&redis, &url).await?;
        queue.push(Note { n: 0 }).await?;
        // Stopped: it may receive pushes, and run them later, after they were put into the outbox.
        redis.pause()?;
        let pushes = (1..41).map(|n| queue.push(Note { n }).into_future());
        assert!(try_join_all(pushes).await?.iter().all(|pushed| pushed.is_new));
        queue.push_many((41..61).map(|n| Note { n })).await?;
        let many = other.batch().jobs((61..71).map(|n| Note { n }));
        // A batch needs the store itself.
        assert!(many.push().await.is_err());
        for n in 61..71 {
            other.push(Note { n }).await?;
        }
        redis.resume()?;
        let log = Log::default();
        let worker = log_worker(&queue, &log).concurrency(1);
        let workers = running([worker]);
        log.wait_for(71).await?;
        let database = Database::connect(&url, &Options::default()).await?;
        eventually("the outbox to be empty", async || {
            (in_outbox(&database).await.ok()? == 0).then_some(())
        })
        .await?;
        log.settle(&queue).await?;
        assert_eq!(log.sorted(), (0..71).collect::<Vec<_>>(), "each once: {url}");
        let sequential: Vec<_> = log.all().into_iter().filter(|n| *n >= 61).collect();
        assert_eq!(sequential, (61..71).collect::<Vec<_>>(), "in order");
        // It answers again: pushes reach it.
        eventually("the way back", async || {
            queue.push(Note { n: 100 }).await.ok()?;
            (in_outbox(&database).await.ok()? == 0).then_some(())
        })
        .await?;
        workers.stop().await?;
    }
    Ok(())
}

/// A push that Redis has received, and whose answer was lost, is in both places. The job runs once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_in_both_places_runs_once() -> Result<()> {
    let (redis, postgres) = tokio::try_join!(Redis::start(), Postgres::start(0))?;
    let url = postgres.node(0).url();
    let queue = failing_over(&redis, &url).await?;
    queue.push(Note { n: 0 }).await?;
    for round in 0..3 {
        redis.pause()?;
        let first = round * 10 + 1;
        queue.push_many((first..first + 10).map(|n| Note { n })).await?;
        redis.resume()?;
        eventually("all jobs", async || {
            (queue.stats("notes").await.ok()?.waiting == first + 10).then_some(())
        })
        .await?;
    }
    // The stopped server had the pushes in its socket: it has run them, and refused the moved ones.
    let known = redis.command(&["INFO", "commandstats"]).await?;
    assert!(known.contains("evalsha"), "{known}");
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    log.wait_for(31).await?;
    log.settle(&queue).await?;
    workers.stop().await?;
    assert_eq!(log.sorted(), (0..31).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_takes_no_job_from_anyone() -> Result<()> {
    let (redis, postgres) = tokio::try_join!(Redis::start(), Postgres::start(0))?;
    let url = postgres.node(0).url();
    let queue = failing_over(&redis, &url).await?;
    queue.push(Keyed(1)).await?;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await?;
    assert!(queue.push(Keyed(1)).await?.is_new, "the key is checked later");
    queue.push(Keyed(2)).delay(Duration::from_hours(1)).await?;
    let plain = Queue::connect(&redis.url(), "test").await?;
    assert!(matches!(plain.push(Keyed(3)).await, Err(Error::Full)));
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await?;
    let stats = eventually("the moved jobs", async || {
        queue.stats("notes").await.ok().filter(|stats| stats.scheduled == 1)
    })
    .await?;
    assert_eq!(stats.waiting, 1, "one of each key");
    Ok(())
}

/// Only a queue whose jobs are in the outbox waits for it, so that its jobs keep their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outbox_of_one_queue_does_not_delay_another() -> Result<()> {
    let (redis, postgres) = tokio::try_join!(Redis::start(), Postgres::start(0))?;
    let url = postgres.node(0).url();
    let queue = failing_over(&redis, &url).await?;
    let database = Database::connect(&url, &Options::default()).await?;
    redis.kill()?;
    queue.push(Note { n: 1 }).await?;
    // The job stays in the outbox: another transaction holds its row.
    let pool = sqlx::PgPool::connect(&url).await?;
    let mut held = pool.begin().await?;
    sqlx::query("select * from scale_queue_outbox for update").execute(&mut *held).await?;
    redis.restart().await?;
    // The first pushes may still find no connection, and their queues then wait too.
    let mut other = 0;
    eventually("a push that Redis takes", async || {
        other += 1;
        let name = format!("other-{other}");
        queue.push(Note { n: 2 }).to(&name).await.ok()?;
        (queue.stats(&name).await.ok()?.waiting > 0).then_some(())
    })
    .await?;
    let before = in_outbox(&database).await?;
    queue.push(Note { n: 3 }).await?;
    assert_eq!(in_outbox(&database).await?, before + 1, "behind the first job");
    // Nor does a relay move it: of the next looks, none overtakes the first job.
    sqlx::query("create extension if not exists pg_stat_statements").execute(&pool).await?;
    let looks = async || {
        let looks = "select coalesce(sum(calls), 0)::bigint from pg_stat_statements \
            where query like 'select seq%scale_queue_outbox%'";
        sqlx::query_scalar::<_, i64>(looks).fetch_one(&pool).await
    };
    let so_far = looks().await?;
    eventually("two looks", async || (looks().await.ok()? >= so_far + 4).then_some(())).await?;
    assert_eq!(in_outbox(&database).await?, before + 1);
    held.rollback().await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log).concurrency(1)]);
    log.wait_for(2).await?;
    assert_eq!(log.all(), [1, 3]);
    workers.stop().await
}

/// The last of several debounced pushes counts, and one that came after the job was due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debounced_jobs_of_the_outbox_run_once() -> Result<()> {
    let (redis, postgres) = tokio::try_join!(Redis::start(), Postgres::start(0))?;
    let queue = failing_over(&redis, &postgres.node(0).url()).await?;
    redis.kill()?;
    let wait = Duration::from_millis(300);
    let push = async |n| queue.push(Edited(n)).debounce(wait, Duration::from_mins(1)).await;
    let began = tokio::time::Instant::now();
    for n in 0..5 {
        push(n).await?;
    }
    if began.elapsed() >= wait {
        anyhow::bail!("the machine is too slow for five pushes in {wait:?}");
    }
    tokio::time::sleep_until(tokio::time::Instant::now() + wait * 2).await;
    for n in 5..8 {
        push(n).await?;
    }
    redis.restart().await?;
    let log = Log::default();
    let seen = log.clone();
    let worker = scale_queue::Worker::new(&queue).queues(["notes"]).concurrency(1);
    let workers = running([worker.handle(move |Edited(n): Edited| {
        seen.add(u64::from(n));
        async {}
    })]);
    log.wait_for(2).await?;
    log.settle(&queue).await?;
    workers.stop().await?;
    assert_eq!(log.all(), [4, 7]);
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Edited(u32);

impl Job for Edited {
    const NAME: &'static str = "edited";
    const QUEUE: &'static str = "notes";

    fn unique_key(&self) -> Option<String> {
        Some("the text".into())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_fails_if_nothing_takes_it() -> Result<()> {
    let (redis, postgres) = tokio::try_join!(Redis::start(), Postgres::start(0))?;
    let pool = sqlx::PgPool::connect(&postgres.node(0).url()).await?;
    // The table is missing: the default is to check it.
    let unready = Queue::builder(&redis.url(), "test").failover_pool(pool.clone());
    assert!(matches!(unready.connect().await, Err(Error::Schema(_))));
    scale_queue::relay::Relay::migrate(&pool).await?;
    let queue = Queue::builder(&redis.url(), "test").failover_pool(pool.clone()).connect().await?;
    pool.close().await;
    queue.push(Note { n: 1 }).await?;
    redis.kill()?;
    let error = queue.push(Note { n: 2 }).await.unwrap_err().to_string();
    assert!(error.contains("outbox") && !error.contains("store: the queue's store"), "{error}");
    let wrong = Queue::builder("memory:", "test").failover("sqlite::memory:");
    assert!(matches!(wrong.connect().await, Err(Error::Setting(_))));
    Ok(())
}
