//! Pushes: each is stored once or refused with a reason, and is independent of unrelated pushes.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use parking_lot::Mutex;
use scale_queue::outcome::Discard;
use scale_queue::push::PushOptions;
use scale_queue::{Error, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, MySqlConnection, PgConnection, SqliteConnection};
use testkit::{Proxy, Redis, RedisSentinel, eventually};

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

#[derive(Serialize, Deserialize)]
struct Plain {
    n: usize,
}

impl Job for Plain {
    const NAME: &'static str = "plain";
    const RETRY: Retry = Retry::never();
}

#[derive(Serialize, Deserialize)]
struct Keyed {
    key: String,
}

impl Job for Keyed {
    const NAME: &'static str = "keyed";
    const RETRY: Retry = Retry::never();

    fn unique_key(&self) -> Option<String> {
        Some(self.key.clone())
    }
}

fn keyed(key: &str) -> Keyed {
    Keyed { key: key.into() }
}

/// Hostile keys, coalesced with many valid pushes.
async fn a_hostile_key_fails_no_other_push(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    // Longer than the limit of an index, and incompressible.
    let long: String = (0..20_000).map(|_| fastrand::alphanumeric()).collect();
    let keys = ["a\0b", "a b", "\0", "", "ключ", "a,b", "a\\0b", "a'b\"c", long.as_str()];
    let pushes = (0..400).map(|n| {
        let queue = &queue;
        async move {
            let key = if n % 40 == 0 {
                keys[n / 40 % keys.len()].to_owned()
            } else {
                format!("good:{n}")
            };
            queue.push(keyed(&key)).await.map(|pushed| pushed.is_new)
        }
    });
    let plain = (0..100).map(|n| queue.push(Plain { n }).into_future());
    let (keyed_answers, plain_answers) = tokio::join!(join_all(pushes), join_all(plain));
    let failed: Vec<_> = keyed_answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(plain_answers.iter().all(Result::is_ok));
    // Distinct keys stay distinct, whatever their content.
    for key in keys {
        queue.push(keyed(key)).await?;
        assert!(!queue.push(keyed(key)).await?.is_new, "{key:?}");
    }
    assert_eq!(queue.stats("default").await?.waiting, 390 + 100 + keys.len() as u64);
    Ok(())
}

/// A key whose holder ends at the same time.
async fn a_unique_push_that_races_its_holders_end_is_answered(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let ran = Arc::new(AtomicUsize::new(0));
    let worker = || {
        let ran = Arc::clone(&ran);
        Worker::new(&queue).concurrency(20).handle(move |_: Keyed| {
            ran.fetch_add(1, SeqCst);
            async { Ok::<(), std::io::Error>(()) }
        })
    };
    let (workers, other) = ([run(worker()), run(worker())], server.queue().await?);
    let mut stored = 0;
    for _ in 0..60 {
        let pushes = (0..20).map(|n| {
            let queue = if n % 2 == 0 { &queue } else { &other };
            async move { queue.push(keyed("one")).await }
        });
        for answer in join_all(pushes).await {
            stored += usize::from(answer?.is_new);
        }
    }
    until(&queue, "default", "all to be done", is_empty).await?;
    assert_eq!(ran.load(SeqCst), stored, "what was said to be stored was, once");
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}

/// One queue on two runtimes, one of which ends in the middle of a push.
#[test]
fn no_push_depends_on_a_strangers_runtime() -> Result<()> {
    for kind in ["redis", "postgres", "memory"] {
        let main =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (server, queue) = main.block_on(async {
            let server = Server::start(kind).await?;
            let queue = server.queue().await?;
            anyhow::Ok((server, queue))
        })?;
        for n in 0..100 {
            let other = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            other.block_on(async {
                let queue = queue.clone();
                // Enough yields to stop at any point of the push.
                drop(tokio::spawn(async move { drop(queue.push(Plain { n }).await) }));
                for _ in 0..n % 5 {
                    tokio::task::yield_now().await;
                }
            });
            drop(other);
            let push = main.block_on(async {
                tokio::time::timeout(Duration::from_secs(20), queue.push(Plain { n }).into_future())
                    .await
            });
            push??;
        }
        drop(server);
    }
    Ok(())
}

/// The name of the application separates the data, on every store that other processes can reach.
async fn applications_are_apart(server: &Server) -> Result<()> {
    let (shop, billing) = (server.queue_of("shop").await?, server.queue_of("billing").await?);
    for n in 0..5 {
        billing.push(Plain { n }).await?;
    }
    billing.push(keyed("one")).await?;
    assert!(shop.push(keyed("one")).await?.is_new, "unique keys");
    let (seen, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (plain, unique) = (Arc::clone(&seen), Arc::clone(&done));
    let worker = Worker::new(&shop).lease(Duration::from_millis(300));
    let worker = run(worker
        .handle(move |_: Plain| {
            plain.fetch_add(1, SeqCst);
            async { Ok::<(), std::io::Error>(()) }
        })
        .handle(move |_: Keyed| {
            unique.fetch_add(1, SeqCst);
            async { Err::<(), _>(Discard::because("no")) }
        }));
    until(&shop, "default", "the shop's own", |stats| stats.dead == 1).await?;
    assert_eq!(shop.stats("default").await?.pushed_total, 1);
    assert_eq!(
        (billing.stats("default").await?.waiting, seen.load(SeqCst), done.load(SeqCst)),
        (6, 0, 1)
    );
    assert!(billing.dead("default", 0, 10).await?.is_empty());
    billing.pause("default").await?;
    assert!(!shop.stats("default").await?.paused);
    shop.batch().named("import").job(Plain { n: 1 }).push().await?;
    assert_eq!(billing.batch_status("import").await?, None);
    assert!(billing.batches(0, 10).await?.is_empty() && billing.workers().await?.is_empty());
    assert_eq!(shop.workers().await?.len(), 1);
    shop.drain("default").await?;
    assert_eq!(billing.stats("default").await?.waiting, 6);
    assert_eq!(billing.queues().await?, ["default"]);
    worker.stop().await
}

/// Jobs that a drain had leased when it was aborted wait again, unchanged.
async fn a_drain_that_dies_half_way_loses_nothing(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push(keyed("held")).await?;
    let batch = queue.batch().allow_failures().jobs((0..2_500).map(|n| Plain { n })).push().await?;
    queue.push(Plain { n: 0 }).delay(Duration::from_hours(1)).await?;
    // Dropped at any await point, as if the process had crashed.
    for turns in 0..40 {
        let mut drain = Box::pin(queue.drain("default"));
        for _ in 0..turns {
            if futures_util::poll!(&mut drain).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    queue.drain("default").await?;
    let left = queue.stats("default").await?;
    assert_eq!(
        (left.waiting, left.scheduled, left.blocked, left.pushed_total),
        (0, 0, 0, 2_502),
        "none is in no state"
    );
    let counted = async || anyhow::Ok(queue.batch_status(&batch).await?.unwrap());
    assert!(u64::from(counted().await?.dead) + left.leased >= 2_500);
    // Jobs leased by aborted drains are reclaimed when the lease of a drain has expired: the test
    // expires these leases in the store.
    match server.kind {
        "redis" => drop(server.redis().command(&["DEL", "test:queue:{default}:leases"]).await?),
        "postgres" | "mariadb" => {
            drop(server.sql("update scale_queue_workers set until_ms = 0").await?);
        }
        _ => return Ok(()),
    }
    let worker = Worker::new(&queue)
        .concurrency(50)
        .handle(|_: Plain| async { Ok::<(), std::io::Error>(()) });
    let worker = run(worker.handle(|_: Keyed| async { Ok::<(), std::io::Error>(()) }));
    let all = async || {
        let status = counted().await.ok()?;
        (status.done + status.dead == 2_500).then_some(())
    };
    eventually("each to be counted", all).await?;
    until(&queue, "default", "what came back to be done", |stats| {
        stats.leased + stats.waiting == 0
    })
    .await?;
    assert!(queue.push(keyed("held")).await?.is_new, "its key is free");
    worker.stop().await
}

/// The follow-up jobs of a batch that the drain ends are not drained.
async fn what_follows_a_drained_batch_runs(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue
        .batch()
        .allow_failures()
        .jobs((0..20).map(|n| Plain { n }))
        .finally(keyed("after"))
        .push()
        .await?;
    assert_eq!(queue.drain("default").await?, 20);
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let worker = run(Worker::new(&queue).handle(move |_: Keyed| {
        count.fetch_add(1, SeqCst);
        async { Ok::<(), std::io::Error>(()) }
    }));
    until(&queue, "default", "it to be done", |stats| stats.done_total == 1 && is_empty(stats))
        .await?;
    assert_eq!(done.load(SeqCst), 1);
    worker.stop().await
}

/// A job that is cancelled before it runs does not count as failed.
async fn a_cancelled_job_has_not_failed(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    for n in 0..5 {
        let pushed = queue.push(Plain { n }).await?;
        assert!(queue.cancel("default", pushed.id).await?);
    }
    let worker = run(Worker::new(&queue).handle(|_: Plain| async { Ok::<(), std::io::Error>(()) }));
    let stats =
        until(&queue, "default", "their end", |stats| stats.dead == 5 && is_empty(stats)).await?;
    assert_eq!((stats.failed_total, stats.done_total), (0, 0));
    worker.stop().await
}

/// The start of a process does not wait for a long transaction of the application, and does not
/// block other processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_no_transaction() -> Result<()> {
    let server = Server::start("postgres").await?;
    let queue = server.queue().await?;
    let mut application = PgConnection::connect(&server.url).await?;
    let mut transaction = application.begin().await?;
    queue.push_in(&mut *transaction, Plain { n: 0 }).await?;
    let starts = (0..5).map(|_| server.queue());
    for started in tokio::time::timeout(Duration::from_secs(20), join_all(starts)).await? {
        tokio::time::timeout(Duration::from_secs(20), started?.push(Plain { n: 1 }).into_future())
            .await??;
    }
    transaction.commit().await?;
    assert_eq!(queue.stats("default").await?.waiting, 6);
    Ok(())
}

/// A revived job holds its key again, unless another job holds the key by then.
async fn a_revived_job_holds_its_key(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let worker = || {
        Worker::new(&queue).handle(|_: Keyed| async { Err::<(), _>(std::io::Error::other("no")) })
    };
    queue.push(keyed("one")).await?;
    let running = run(worker());
    until(&queue, "default", "its death", |stats| stats.dead == 1).await?;
    running.stop().await?;
    let dead = queue.dead("default", 0, 1).await?.remove(0);
    let other = queue.push(keyed("one")).await?;
    assert!(other.is_new && !queue.revive("default", &dead).await?, "another holds it");
    assert_eq!((queue.revive_all("default").await?, queue.stats("default").await?.dead), (0, 1));
    queue.drain("default").await?;
    assert!(queue.revive("default", &dead).await?);
    let again = queue.push(keyed("one")).await?;
    assert_eq!((again.is_new, Some(again.id)), (false, dead.id), "it is its own again");
    Ok(())
}

/// Dead jobs of one megabyte.
async fn large_dead_jobs_are_listed_and_revived(server: &Server) -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Big {
        text: String,
    }
    impl Job for Big {
        const NAME: &'static str = "big";
        const RETRY: Retry = Retry::never();
    }
    const JOBS: usize = 40;
    let queue = server.queue().await?;
    let worker =
        || Worker::new(&queue).handle(|_: Big| async { Err::<(), _>(std::io::Error::other("no")) });
    queue.push_many((0..JOBS).map(|_| Big { text: "x".repeat(1_000_000) })).await?;
    let running = run(worker());
    until(&queue, "default", "all deaths", |stats| stats.dead == JOBS as u64).await?;
    running.stop().await?;
    let page = queue.dead("default", 0, 1_000).await?;
    assert!(!page.is_empty() && page.len() < 10, "{} of them in one answer", page.len());
    let (mut seen, mut offset) = (std::collections::HashSet::new(), 0);
    loop {
        let page = queue.dead("default", offset, 100).await?;
        if page.is_empty() {
            break;
        }
        offset += page.len();
        seen.extend(page.iter().filter_map(|dead| dead.id));
    }
    assert_eq!(seen.len(), JOBS);
    assert!(queue.revive("default", &page[0]).await?);
    assert_eq!(queue.revive_all("default").await?, JOBS - 1);
    let waiting = queue.jobs("default", scale_queue::status::State::Waiting, 0, 1_000).await?;
    assert!(!waiting.is_empty() && waiting.len() < 10);
    assert_eq!(queue.drain("default").await?, JOBS);
    Ok(())
}

/// Keys of batches and chains are released with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_batches_and_chains_keep_no_keys() -> Result<()> {
    let server = Server::start("redis").await?;
    let queue = server.queue().await?;
    // Counts keys that are kept for longer than ten minutes, the time for which the key of an ended
    // job is remembered.
    let count = async || -> Result<usize> {
        let script = "local n = 0 for _, key in ipairs(redis.call('KEYS', '*once:*')) do \
            if redis.call('TTL', key) > 600 then n = n + 1 end end return n";
        Ok(server.redis().command(&["EVAL", script, "0"]).await?.trim().parse()?)
    };
    for n in 0..50 {
        let chain = (0..5).fold(queue.chain(), |chain, _| chain.then(Plain { n }));
        chain.push().await?;
    }
    let batch = queue
        .batch()
        .jobs((0..1_500).map(|n| Plain { n }))
        .then(Plain { n: 1 })
        .finally(Plain { n: 2 });
    let batch = batch.push().await?;
    assert!(count().await? >= 1_500);
    let worker = run(Worker::new(&queue)
        .concurrency(50)
        .handle(|_: Plain| async { Ok::<(), std::io::Error>(()) }));
    until(&queue, "default", "all to be done", |stats| stats.done_total == 250 + 1_500 + 2).await?;
    eventually("no key of theirs that stays", async || (count().await.ok()? == 0).then_some(()))
        .await?;
    let bits = server.redis().command(&["KEYS", "*{batch:*"]).await?;
    assert_eq!(bits.lines().count(), 1, "{bits}: its state alone, for a day");
    let life: i64 = server.redis().command(&["TTL", bits.trim()]).await?.trim().parse()?;
    assert!(life <= 24 * 3_600, "{life} s");
    // Pushed again, the batch has already ended.
    queue.batch().named(&batch).jobs((0..1_500).map(|n| Plain { n })).push().await?;
    assert_eq!(queue.stats("default").await?.waiting, 0);
    worker.stop().await
}

on_every_store! {
    a_hostile_key_fails_no_other_push,
    a_unique_push_that_races_its_holders_end_is_answered,
    a_drain_that_dies_half_way_loses_nothing,
    what_follows_a_drained_batch_runs,
    a_cancelled_job_has_not_failed,
    a_revived_job_holds_its_key,
    large_dead_jobs_are_listed_and_revived,
    jobs_of_one_push_run_in_its_order,
}
mod held {
    use super::a_held_key_delays_no_other_push;

    crate::on_stores! { postgres: "postgres"; a_held_key_delays_no_other_push }
}
mod apps {
    use super::applications_are_apart;

    crate::on_stores! { redis: "redis"; applications_are_apart }
    crate::on_stores! { postgres: "postgres"; applications_are_apart }
    crate::on_stores! { mariadb: "mariadb"; applications_are_apart }
    crate::on_stores! { sqlite: "sqlite"; applications_are_apart }
}

/// In a transaction of the application, an expired key is free, and a held key names its holder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_inside_a_transaction_knows_unique_keys() -> Result<()> {
    async fn check(queue: &Queue, connection: &mut impl scale_queue::store::Enlist) -> Result<()> {
        let first = queue.push(keyed("one")).unique_for(Duration::from_millis(30)).await?;
        let held = queue.push_in(connection, keyed("one")).await?;
        assert!(held.is_new || held.id == first.id);
        let second = eventually("the key's time to be over", async || {
            let pushed = queue.push_in(connection, keyed("one")).await.ok()?;
            (pushed.id != first.id).then_some(pushed)
        })
        .await?;
        let third = queue.push_in(connection, keyed("one")).await?;
        assert_eq!((third.is_new, third.id), (false, second.id));
        Ok(())
    }
    let server = Server::start("postgres").await?;
    let mut connection = PgConnection::connect(&server.url).await?;
    check(&server.queue().await?, &mut connection).await?;
    let server = Server::start("mariadb").await?;
    let mut connection = MySqlConnection::connect(&server.url).await?;
    check(&server.queue().await?, &mut connection).await?;
    let server = Server::start("sqlite").await?;
    let mut connection = SqliteConnection::connect(&server.url).await?;
    check(&server.queue().await?, &mut connection).await
}

#[derive(Serialize, Deserialize)]
struct Listed {
    n: usize,
    key: Option<String>,
}

impl Job for Listed {
    const NAME: &'static str = "listed";

    fn unique_key(&self) -> Option<String> {
        self.key.clone()
    }
}

/// Jobs with keys in another order than their numbers, and jobs without a key between them.
async fn jobs_of_one_push_run_in_its_order(server: &Server) -> Result<()> {
    const COUNT: usize = 60;
    let queue = server.queue().await?;
    let key = |n: usize| (!n.is_multiple_of(3)).then(|| format!("{:04}", (COUNT - n) * 7 % COUNT));
    queue.push_many((0..COUNT).map(|n| Listed { n, key: key(n) })).await?;
    let ran = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ran);
    let worker = run(Worker::new(&queue).concurrency(1).handle(move |job: Listed| {
        seen.lock().push(job.n);
        async {}
    }));
    until(&queue, "default", "all jobs", is_empty).await?;
    worker.stop().await?;
    assert_eq!(*ran.lock(), (0..COUNT).collect::<Vec<_>>());
    let large = "x".repeat(1024 * 1024);
    let push = queue.push(Plain { n: 1 }).metadata("large", &large).await;
    assert!(matches!(push, Err(Error::TooLarge { .. })), "{push:?}");
    let chain = queue.chain().then(Plain { n: 1 }.with(PushOptions::new().metadata("a", &large)));
    assert!(matches!(chain.push().await, Err(Error::TooLarge { .. })));
    Ok(())
}

/// A push that waits for an open transaction, which has pushed the same key.
async fn a_held_key_delays_no_other_push(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    sqlx::any::install_default_drivers();
    let mut connection = sqlx::AnyConnection::connect(&server.url).await?;
    let mut tx = connection.begin().await?;
    queue.push_in(&mut *tx, keyed("held")).await?;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.push(keyed("held")).await }
    });
    let waits = "select count(*) from pg_locks where not granted";
    eventually("the push to wait", async || {
        (server.sql(waits).await.ok()?.trim() != "0").then_some(())
    })
    .await?;
    join_all((0..50).map(|n| queue.push(Plain { n }).into_future())).await;
    assert!(!waiting.is_finished(), "the others did not wait with it");
    tx.commit().await?;
    assert!(!waiting.await??.is_new);
    assert_eq!(queue.stats("default").await?.waiting, 51);
    Ok(())
}

/// Several processes create the outbox at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outbox_is_made_once_by_many() -> Result<()> {
    for kind in ["postgres", "mariadb", "sqlite"] {
        let server = Server::start(kind).await?;
        let options = scale_sql::Options::default();
        let migrations = (0..8).map(|_| async {
            let database = scale_sql::Database::connect(&server.url, &options).await?;
            Ok::<_, anyhow::Error>(scale_queue::store::migrate(database).await?)
        });
        for migration in join_all(migrations).await {
            migration.map_err(|error| error.context(kind))?;
        }
    }
    Ok(())
}

/// Payloads that take longer to transfer than the first timeout of an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_payloads_over_a_slow_link_are_run() -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Big {
        text: String,
    }
    impl Job for Big {
        const NAME: &'static str = "big";
    }
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let near = Queue::connect(&server.url(), "test").await?;
    near.push_many((0..60).map(|_| Big { text: "x".repeat(200 * 1024) })).await?;
    proxy.throttle(4_000_000);
    let far = Queue::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    let worker = || {
        Worker::new(&far)
            .concurrency(50)
            .lease(Duration::from_secs(2))
            .handle(|_: Big| async { Ok::<(), std::io::Error>(()) })
    };
    let workers = [run(worker()), run(worker())];
    let stats = until(&near, "default", "all to be done", |stats| stats.done_total == 60).await?;
    assert_eq!(stats.failed_total, 0, "no lease was lost on the way");
    for worker in workers {
        worker.stop().await?;
    }
    // A push that is larger than the link can transfer within the timeout.
    far.push_many((0..20).map(|_| Big { text: "x".repeat(200 * 1024) })).await?;
    assert_eq!(near.stats("default").await?.waiting, 20);
    Ok(())
}

/// A failover loses pushes that no replica has. None of the lost pushes was acknowledged to a
/// caller that waits for a replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_loses_what_no_replica_has() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let hasty = Queue::connect(&group.url(), "hasty").await?;
    let careful = Queue::builder(&group.url(), "careful")
        .replicas(1, Duration::from_millis(50))
        .connect()
        .await?;
    for n in 0..20 {
        hasty.push(Plain { n }).await?;
        careful.push(Plain { n }).await?;
    }
    // The replica is cut off permanently: its password is rejected by the master.
    group.server(1).command(&["CONFIG", "SET", "masterauth", "wrong"]).await?;
    group.server(0).command(&["CLIENT", "KILL", "TYPE", "replica"]).await?;
    let (mut hastily, mut carefully) = (0, 0);
    for n in 20..40 {
        hastily += u64::from(hasty.push(Plain { n }).await.is_ok());
        carefully += u64::from(careful.push(Plain { n }).await.is_ok());
    }
    assert_eq!((hastily, carefully), (20, 0), "acknowledged");
    group.server(0).kill()?;
    let promoted =
        async || (group.master_port().await.ok()? == group.server(1).port()).then_some(());
    eventually("the replica to be master", promoted).await?;
    let left = async |queue: &Queue| {
        eventually("the new master", async || queue.stats("default").await.ok()).await
    };
    let left = (left(&hasty).await?.waiting, left(&careful).await?.waiting);
    println!(
        "acknowledged and lost: {} of 40 without, {} of 20 with a replica",
        40 - left.0,
        20 - left.1
    );
    assert_eq!(left, (20, 20));
    Ok(())
}

/// A push that waits for replicas reports when they have not confirmed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_waits_for_replicas() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let within = Duration::from_millis(300);
    let queue = Queue::builder(&group.url(), "test").replicas(1, within).connect().await?;
    assert!(queue.push(Plain { n: 1 }).await?.is_new);
    assert!(queue.push(keyed("one")).await?.is_new);
    let picky = Queue::builder(&group.url(), "test").replicas(7, within).connect().await?;
    let error = picky.push(Plain { n: 2 }).await.unwrap_err();
    assert!(matches!(error, Error::Unacknowledged { wanted: 7, .. }), "{error:?}");
    assert_eq!(queue.stats("default").await?.waiting, 3, "it is stored all the same");
    for url in ["memory:", "sqlite://nowhere?mode=rwc"] {
        assert!(matches!(
            Queue::builder(url, "test").replicas(1, within).connect().await,
            Err(Error::Setting(_))
        ));
    }
    Ok(())
}
