//! Jobs in the application's own database: transactions, durability, crashed workers.
#![cfg(all(feature = "postgres", feature = "sqlite", feature = "redis"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::Result;
use common::{Log, Note, log_worker, running};
use scale_queue::relay::Relay;
use scale_queue::{Queue, Worker};
use sqlx::{Connection, PgPool, SqlitePool};
use testkit::{Postgres, Redis, eventually};

/// Returns a queue with its tables created.
async fn made(url: &str) -> Result<Queue, scale_queue::Error> {
    Queue::builder(url, "test").migrate(true).connect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_exists_if_and_only_if_its_transaction_commits() -> Result<()> {
    let server = Postgres::start(0).await?;
    let url = server.node(0).url();
    let queue = made(&url).await?;
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
    let queue = made(&url).await?;
    let mut tx = pool.begin().await?;
    sqlx::query("create table orders (id integer)").execute(&mut *tx).await?;
    queue.push_in(&mut *tx, Note { n: 1 }).await?;
    tx.commit().await?;
    queue.push(Note { n: 2 }).delay(Duration::from_millis(50)).await?;
    drop(queue);
    let queue = made(&url).await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    log.wait_for(2).await?;
    // Both may be due by now, and start at the same time.
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
    assert!(queue.needs_relay() && !made(&url).await?.needs_relay());
    let relay = Relay::new(&queue);
    let pool = PgPool::connect(&url).await?;
    Relay::migrate(&pool).await?;
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
    // A relay that crashes after the push and before its commit: the rows still exist, and are
    // pushed again.
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
    for url in
        [server.node(0).url(), format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display())]
    {
        let queue = made(&url).await?;
        let hang = |_: Note| std::future::pending::<Result<(), std::io::Error>>();
        let lease = Duration::from_millis(300);
        let dying = running([Worker::new(&queue).queues(["notes"]).lease(lease).handle(hang)]);
        queue.push_many((0..5).map(|n| Note { n })).await?;
        eventually("the jobs to be leased", async || {
            (queue.stats("notes").await.ok()?.leased == 5).then_some(())
        })
        .await?;
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

/// Two stores share only the database, like two processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_pushes_and_cancels() -> Result<()> {
    let server = Postgres::start(0).await?;
    let folder = tempfile::tempdir()?;
    for url in
        [server.node(0).url(), format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display())]
    {
        let (here, there) = (made(&url).await?, made(&url).await?);
        let hang = |_: Note| std::future::pending::<Result<(), std::io::Error>>();
        let lease = Duration::from_millis(300);
        let worker = || Worker::new(&here).queues(["notes"]).lease(lease).handle(hang);
        let dying = running([worker()]);
        let leased = async |count| {
            eventually("jobs to be leased", async || {
                (here.stats("notes").await.ok()?.leased == count).then_some(())
            })
            .await
        };
        let dead = async |count| {
            eventually("dead ones", async || {
                (here.stats("notes").await.ok()?.dead == count).then_some(())
            })
            .await
        };
        // A job pushed there is fetched by the worker here within the interval of its change watch,
        // not only at its fallback poll.
        let start = std::time::Instant::now();
        let first = there.push(Note { n: 1 }).await?.id;
        leased(1).await?;
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert!(there.cancel("notes", first).await?);
        dead(1).await?;
        // A cancelled job whose worker stops before it receives the request: the next worker that
        // fetches the job ends it.
        let second = there.push(Note { n: 2 }).await?.id;
        leased(1).await?;
        dying.kill();
        assert!(there.cancel("notes", second).await?);
        let workers = running([worker()]);
        dead(2).await?;
        assert!(here.dead("notes", 0, 10).await?.iter().all(|dead| dead.reason == "cancelled"));
        // After its revival, it is an ordinary job.
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
    let queue = made(&url).await?;
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
    // Several processes may create the tables at the same time.
    let starts = (0..4).map(|_| made(&url));
    futures_util::future::try_join_all(starts).await?;
    Ok(())
}

/// Every connection that a queue opens is encrypted, including the one that listens.
#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_reaches_every_connection() -> Result<()> {
    let authority = testkit::Authority::new()?;
    let server = Postgres::start(0).await?;
    server.node(0).offer_tls(&authority).await?;
    let url = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        server.node(0).url(),
        authority.file().display()
    );
    let queue = made(&url).await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    queue.push_many((0..50).map(|n| Note { n })).await?;
    log.wait_for(50).await?;
    let open = "select count(*) filter (where ssl), count(*) filter (where not ssl), \
         count(*) filter (where query ilike 'listen%') from pg_stat_ssl \
         join pg_stat_activity using (pid) \
         where backend_type = 'client backend' and application_name <> 'psql'";
    let counts = eventually("a connection that listens", async || {
        let counts = server.node(0).sql(open).await.ok()?;
        (!counts.trim().ends_with("|0")).then_some(counts)
    })
    .await?;
    let counts: Vec<u32> = counts.trim().split('|').map(str::parse).collect::<Result<_, _>>()?;
    assert!(counts[0] >= 2 && counts[1] == 0, "{counts:?}");
    let stranger = testkit::Authority::new()?;
    let url = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        server.node(0).url(),
        stranger.file().display()
    );
    let refused = Queue::connect(&url, "test").await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    workers.stop().await
}

/// One pool of one connection, owned by the application, is enough for pushes and a worker on each
/// database system.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_the_applications_is_enough() -> Result<()> {
    let (postgres, mariadb) = tokio::try_join!(Postgres::start(0), testkit::MariaDb::start(0))?;
    let folder = tempfile::tempdir()?;
    let one = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect(&postgres.node(0).url())
        .await?;
    scale_queue::store::migrate(&one).await?;
    let two = sqlx::mysql::MySqlPoolOptions::new()
        .max_connections(1)
        .connect(&mariadb.node(0).url())
        .await?;
    scale_queue::store::migrate(&two).await?;
    let file = format!("sqlite://{}/app.db?mode=rwc", folder.path().display());
    let three = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect(&file).await?;
    let queues = [
        Queue::postgres(one, "test").await?,
        Queue::mysql(two, "test").await?,
        Queue::sqlite(three, "test").await?,
    ];
    for queue in queues {
        let log = Log::default();
        let workers = running([log_worker(&queue, &log)]);
        let pushes = (0..100).map(|n| {
            let queue = queue.clone();
            async move { queue.push(Note { n }).await }
        });
        futures_util::future::try_join_all(pushes).await?;
        log.wait_for(100).await?;
        log.settle(&queue).await?;
        workers.stop().await?;
    }
    Ok(())
}
