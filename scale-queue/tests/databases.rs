//! Promises on databases that were once broken by an attack. Each test repeats the attack.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::{Context, Result};
use common::{Log, Note, log_worker, running};
use scale_queue::store::{
    Database, LimitStore as _, Request, SqlStore, Store, Trial, WorkerId, migrate,
};
use scale_queue::{Job, Queue, Worker};
use scale_sql::{Options, Statement, System};
use serde::{Deserialize, Serialize};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use testkit::{MariaDb, Pooler, Postgres, eventually};

#[derive(Serialize, Deserialize)]
struct Keyed(String);

impl Job for Keyed {
    const NAME: &'static str = "keyed";
    const QUEUE: &'static str = "keyed";

    fn unique_key(&self) -> Option<String> {
        Some(self.0.clone())
    }
}

/// A server of each kind, and its tables.
struct Servers {
    postgres: Postgres,
    mariadb: MariaDb,
}

impl Servers {
    async fn start() -> Result<Self> {
        let (postgres, mariadb) = tokio::try_join!(Postgres::start(0), MariaDb::start(0))?;
        for url in [postgres.node(0).url(), mariadb.node(0).url()] {
            migrate(Database::connect(&url, &Options::default()).await?).await?;
        }
        Ok(Self { postgres, mariadb })
    }

    fn urls(&self) -> [String; 2] {
        [self.postgres.node(0).url(), self.mariadb.node(0).url()]
    }
}

fn asks(max: usize) -> Request<'static> {
    Request {
        done: &[],
        max,
        max_bytes: 1 << 30,
        begins: max,
        lease: Duration::from_millis(50),
        trial: Trial::None,
        lines: &[],
        unhandled_for: Duration::from_mins(1),
    }
}

/// A worker whose lease has expired returns a job and another worker fetches it, while a third
/// worker reclaims the jobs of the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_takes_nothing_from_whom_it_belongs_to_by_now() -> Result<()> {
    let servers = Servers::start().await?;
    for url in servers.urls() {
        let queue = Queue::connect(&url, "test").await?;
        queue.push(Note { n: 1 }).await?;
        let store = std::sync::Arc::new(SqlStore::connect(&url, "test").await?);
        let first: WorkerId = "first".to_owned().into();
        assert_eq!(store.fetch("notes", &first, asks(1)).await?.jobs.len(), 1);
        let database = Database::connect(&url, &Options::default()).await?;
        let expired = "select count(*) from scale_queue_workers where until_ms < {now}";
        let expired = Statement::new(database.system(), expired);
        eventually("its lease to end", async || {
            (expired.query().fetch_one(&database).await.ok()?.get::<i64>(0).ok()? == 1)
                .then_some(())
        })
        .await?;
        let mut tx = database.begin().await?;
        tx.tell("update scale_queue_jobs set worker = 'second'").await?;
        let recovery = tokio::spawn({
            let (store, first) = (store.clone(), first.clone());
            async move { store.reclaim("notes", &first).await }
        });
        let waiting = match database.system() {
            System::Postgres => "select count(*) from pg_locks where not granted",
            // MariaDB caches `innodb_trx` while it is queried more than ten times a second.
            _ => {
                "select cast(variable_value as signed) from information_schema.global_status \
                 where variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'"
            }
        };
        let waiting = Statement::new(database.system(), waiting);
        eventually("the recovery to wait for the row", async || {
            (waiting.query().fetch_one(&database).await.ok()?.get::<i64>(0).ok()? > 0).then_some(())
        })
        .await?;
        tx.commit().await?;
        assert_eq!(recovery.await??.jobs, 0, "{}", database.system());
        assert_eq!(
            store.held("notes", &"second".to_owned().into()).await?.len(),
            1,
            "it is still the second's"
        );
    }
    Ok(())
}

/// Pushes inside a transaction that has the pool's only connection, and inside as many transactions
/// as there are connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_in_a_transaction_needs_no_second_connection() -> Result<()> {
    let servers = Servers::start().await?;
    let [postgres, mariadb] = servers.urls();
    let wait = Duration::from_secs(10);
    let pool =
        PgPoolOptions::new().max_connections(1).acquire_timeout(wait).connect(&postgres).await?;
    let queue = Queue::postgres(pool.clone(), "test").await?;
    let mut tx = pool.begin().await?;
    queue.push_in(&mut *tx, Note { n: 1 }).await?;
    tx.commit().await?;
    let pool =
        MySqlPoolOptions::new().max_connections(2).acquire_timeout(wait).connect(&mariadb).await?;
    let maria = Queue::mysql(pool.clone(), "test").await?;
    let (mut one, mut two) = tokio::try_join!(pool.begin(), pool.begin())?;
    maria.push_in(&mut *one, Note { n: 1 }).await?;
    maria.push_in(&mut *two, Note { n: 2 }).await?;
    one.commit().await?;
    two.commit().await?;
    for (queue, waiting) in [(queue, 1), (maria, 2)] {
        assert_eq!(queue.stats("notes").await?.waiting, waiting);
        let known = async || (queue.queues().await.ok()? == ["notes"]).then_some(());
        eventually("the queue to be known", known).await?;
    }
    Ok(())
}

/// At MySQL's default isolation level, a transaction reads the state from its beginning; a key that
/// was taken after that is still held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_taken_since_a_transaction_began_is_held() -> Result<()> {
    let servers = Servers::start().await?;
    let [_, url] = servers.urls();
    let queue = Queue::connect(&url, "test").await?;
    let pool = MySqlPoolOptions::new().connect(&url).await?;
    let mut tx = pool.begin().await?;
    sqlx::query("select count(*) from scale_queue_jobs").execute(&mut *tx).await?;
    let holder = queue.push(Keyed("k".to_owned())).await?;
    let held = queue.push_in(&mut *tx, Keyed("k".to_owned())).await?;
    assert_eq!((held.is_new, held.id), (false, holder.id));
    Ok(())
}

/// Many transactions push the same keys in any order: each key goes to one of them, and no
/// transaction is rolled back because of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_pushed_by_many_at_once_are_given_to_one() -> Result<()> {
    let servers = Servers::start().await?;
    for url in servers.urls() {
        let queue = Queue::connect(&url, "test").await?;
        let pushes = (0..12).map(|task: usize| {
            let queue = queue.clone();
            tokio::spawn(async move {
                let mut new = 0;
                for round in 0..10 {
                    let mut keys: Vec<_> = (0..20).map(|n| Keyed(format!("{round}-{n}"))).collect();
                    fastrand::Rng::with_seed(task as u64).shuffle(&mut keys);
                    new +=
                        queue.push_many(keys).await?.iter().filter(|pushed| pushed.is_new).count();
                }
                anyhow::Ok(new)
            })
        });
        let mut new = 0;
        for pushed in futures_util::future::join_all(pushes).await {
            new += pushed??;
        }
        assert_eq!(new, 200);
    }
    Ok(())
}

/// Rows without an application are from versions without applications. An application with an empty
/// name has separate rows, and rows that an old process still writes do not prevent connecting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_before_are_taken_over_whatever_is_there() -> Result<()> {
    let servers = Servers::start().await?;
    for url in servers.urls() {
        let nameless = Queue::connect(&url, "").await?;
        nameless.push(Note { n: 1 }).await?;
        let shop = Queue::connect(&url, "shop").await?;
        shop.push(Note { n: 2 }).await?;
        assert_eq!(
            (nameless.stats("notes").await?.waiting, shop.stats("notes").await?.waiting),
            (1, 1)
        );
    }
    let [url, _] = servers.urls();
    let shop = Queue::connect(&url, "shop").await?;
    let held = shop.push(Keyed("k".to_owned())).await?;
    let database = Database::connect(&url, &Options::default()).await?;
    let mut connection = database.acquire().await?;
    connection
        .tell(
            "insert into scale_queue_queues values ('', 'keyed', 0, 1, 1, 1), ('', 'old', 0, 0, 0, \
             0); \
             insert into scale_queue_jobs (id, app, queue, due_ms, unique_key, unique_until_ms, \
             body) \
             select 'x' || id, '', queue, due_ms, unique_key, unique_until_ms, body \
             from scale_queue_jobs where queue = 'keyed'",
        )
        .await?;
    let again = Queue::connect(&url, "shop").await?;
    assert_eq!(again.stats("keyed").await?.waiting, 2);
    assert!(again.queues().await?.contains(&"old".to_owned()));
    assert_eq!(again.push(Keyed("k".to_owned())).await?.id, held.id);
    Ok(())
}

/// Pushes behind a pooler in transaction mode, on a connection of the application without prepared
/// statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_in_a_transaction_behind_a_pooler_prepares_nothing() -> Result<()> {
    let servers = Servers::start().await?;
    let pooler = Pooler::pgbouncer_by_transactions(servers.postgres.node(0).port()).await?;
    let queue = Queue::builder(&pooler.url(), "test").transaction_pooling(true).connect().await?;
    let options: PgConnectOptions = pooler.url().parse()?;
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .connect_with(options.statement_cache_capacity(0))
        .await?;
    let pushes = (0..200).map(|n| {
        let (queue, pool) = (queue.clone(), pool.clone());
        tokio::spawn(async move {
            let mut tx = pool.begin().await?;
            queue.push_in(&mut *tx, Note { n }).await?;
            tx.commit().await?;
            anyhow::Ok(())
        })
    });
    for pushed in futures_util::future::join_all(pushes).await {
        pushed??;
    }
    assert_eq!(queue.stats("notes").await?.waiting, 200);
    Ok(())
}

/// A pool without autocommit is refused with a message that says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_commit_nothing_are_refused() -> Result<()> {
    let servers = Servers::start().await?;
    let [_, url] = servers.urls();
    let pool = MySqlPoolOptions::new().after_connect(|connection, _| {
        Box::pin(
            async move { sqlx::raw_sql("set autocommit = 0").execute(connection).await.map(drop) },
        )
    });
    let refused = Queue::mysql(pool.connect(&url).await?, "test").await.unwrap_err().to_string();
    assert!(refused.contains("autocommit"), "{refused}");
    Ok(())
}

/// A handle that outlives its runtime receives notifications of other processes on the next
/// runtime.
#[test]
fn a_queue_outlives_its_runtime() -> Result<()> {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (keeper, first, second) = (runtime()?, runtime()?, runtime()?);
    let servers = keeper.block_on(Servers::start())?;
    let mut queues = Vec::new();
    for url in servers.urls() {
        queues.push((url.clone(), first.block_on(Queue::connect(&url, "test"))?));
    }
    first.shutdown_timeout(Duration::from_secs(1));
    second.block_on(async {
        for (url, queue) in queues {
            let log = Log::default();
            let workers = running([log_worker(&queue, &log)]);
            let other = Queue::connect(&url, "test").await?;
            // Each time, the worker becomes idle again.
            for n in 1..=3 {
                other.push(Note { n }).await?;
                log.wait_for(n as usize).await.context(url.clone())?;
                log.settle(&other).await?;
            }
            workers.kill();
        }
        Ok(())
    })
}

/// More jobs at once than a statement can have parameters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_very_wide_worker_is_served() -> Result<()> {
    const JOBS: u64 = 70_000;
    let servers = Servers::start().await?;
    let [_, url] = servers.urls();
    let queue = Queue::connect(&url, "test").await?;
    queue.push_many((0..JOBS).map(|n| Note { n })).await?;
    let worker = Worker::new(&queue).queues(["notes"]).concurrency(50_000);
    let workers = running([worker.handle(|_: Note| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok::<(), std::io::Error>(())
    })]);
    eventually("all to be done", async || {
        let stats = queue.stats("notes").await.ok()?;
        (stats.done_total == JOBS && stats.leased == 0).then_some(())
    })
    .await?;
    workers.stop().await
}

/// A line is empty and gone. While one process is about to remove it once more, another one creates
/// it with a job. Its row stays: without it, nobody would look at the job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_comes_back_is_not_removed() -> Result<()> {
    let postgres = Postgres::start(0).await?;
    let url = postgres.node(0).url();
    migrate(Database::connect(&url, &Options::default()).await?).await?;
    let queue = Queue::connect(&url, "test").await?;
    queue.push(Note { n: 1 }).await?;
    let pool = PgPoolOptions::new().connect(&url).await?;
    // Lets others lock the rows of lines, but not change them.
    let mut opener = pool.begin().await?;
    sqlx::query("lock table scale_queue_lines in share mode").execute(&mut *opener).await?;
    let store = SqlStore::connect(&url, "test").await?;
    let closer = tokio::spawn(async move { store.wake_if_free("key", 1, "notes").await });
    let waits = "select count(*) from pg_locks \
        where not granted and relation = 'scale_queue_lines'::regclass";
    eventually("the removal, or its end", async || {
        let waiting: i64 = sqlx::query_scalar(waits).fetch_one(&pool).await.ok()?;
        (waiting > 0 || closer.is_finished()).then_some(())
    })
    .await?;
    let open = "insert into scale_queue_lines (app, queue, line, retry_ms, pace_us, unhandled) \
        values ('test', 'notes', 'limit:key', 0, 0, 0)";
    sqlx::query(open).execute(&mut *opener).await?;
    let block = "update scale_queue_jobs set line = 'limit:key'";
    sqlx::query(block).execute(&mut *opener).await?;
    opener.commit().await?;
    closer.await??;
    let lines: i64 =
        sqlx::query_scalar("select count(*) from scale_queue_lines").fetch_one(&pool).await?;
    assert_eq!(lines, 1);
    Ok(())
}

/// The process that would have tried a line is gone. On a database without notifications, the idle
/// worker of another process finds it, too, and does not wait for its next look half a minute
/// later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_finds_the_line_of_a_process_that_is_gone() -> Result<()> {
    let mariadb = MariaDb::start(0).await?;
    let url = mariadb.node(0).url();
    migrate(Database::connect(&url, &Options::default()).await?).await?;
    let queue = Queue::connect(&url, "test").await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    queue.push(Note { n: 1 }).await?;
    log.wait_for(1).await?;
    let gone = Queue::connect(&url, "test").await?;
    gone.push(Note { n: 2 }).delay(Duration::from_hours(1)).await?;
    let sql = "update test.scale_queue_jobs set line = 'limit:key', due_ms = 0; \
        insert into test.scale_queue_lines (app, queue, line, retry_ms, pace_us, unhandled) \
        values ('test', 'notes', 'limit:key', 0, 0, 0)";
    mariadb.node(0).sql(sql).await?;
    log.wait_for(2).await?;
    workers.stop().await
}
