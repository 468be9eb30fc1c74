//! Contract of queues and workers, on every store.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Result;
use common::{Log, Note, Slow, Urgent, log_worker, running};
use scale_queue::outcome::{Discard, Snooze};
use scale_queue::{Context, Error, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;
use tokio::sync::Barrier;

/// Defines a test of each case on each store, so that each can be run alone: `cargo test
/// --all-features --test contract redis::strict_order_is_strict`.
macro_rules! on_every_store {
    ($($case:ident),* $(,)?) => {
        on_store! { memory: memory; $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis: redis; $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis_cluster: redis_cluster; $($case),* }
        #[cfg(feature = "redis")]
        on_store! { redis_sentinel: redis_sentinel; $($case),* }
        #[cfg(feature = "sqlite")]
        on_store! { sqlite: sqlite; $($case),* }
        #[cfg(feature = "postgres")]
        on_store! { postgres: postgres; $($case),* }
        #[cfg(feature = "postgres")]
        on_store! { pgbouncer: pgbouncer; $($case),* }
        #[cfg(feature = "mysql")]
        on_store! { mariadb: mariadb; $($case),* }
    };
}

macro_rules! on_store {
    ($name:ident: $store:ident; $($case:ident),*) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() -> anyhow::Result<()> {
                    let (queue, _folder) = crate::stores::$store(stringify!($case)).await?;
                    super::$case(&queue).await
                }
            )*
        }
    };
}

on_every_store! {
    every_job_is_done_once,
    failures_are_tried_again_and_end_dead,
    a_push_may_say_how_often_and_how_long,
    special_errors_have_their_meaning,
    unique_jobs_exist_once,
    delayed_jobs_wait_for_their_time,
    the_dead_are_revived_or_forgotten_together,
    a_chain_goes_link_by_link_and_survives_a_death,
    strict_order_is_strict,
    weighted_order_starves_nobody,
    a_pause_holds,
    a_stop_hands_back_what_has_not_ended,
    an_idle_worker_is_woken,
    a_wake_is_passed_on_by_who_cannot_use_it,
    a_job_due_in_the_midst_of_a_look_is_not_forgotten,
}

/// Creates a queue with a separate application name, on a server that all cases share.
pub(crate) mod stores {
    use anyhow::Result;
    use scale_queue::Queue;
    #[cfg(any(feature = "redis", feature = "postgres", feature = "mysql"))]
    use testkit::Shared;

    /// A queue, and the folder of its file.
    type OnStore = (Queue, Option<tempfile::TempDir>);

    pub(crate) async fn memory(_: &str) -> Result<OnStore> {
        Ok((Queue::memory(), None))
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::Redis> = Shared::new();
        let server = SERVER.get(testkit::Redis::start).await?;
        Ok((Queue::connect(&server.url(), app).await?, None))
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_cluster(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::RedisCluster> = Shared::new();
        let server = SERVER.get(testkit::RedisCluster::start).await?;
        Ok((Queue::connect(&server.url(), app).await?, None))
    }

    #[cfg(feature = "redis")]
    pub(crate) async fn redis_sentinel(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::RedisSentinel> = Shared::new();
        let server = SERVER.get(testkit::RedisSentinel::start).await?;
        Ok((Queue::connect(&server.url(), app).await?, None))
    }

    /// A separate file for each case.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn sqlite(app: &str) -> Result<OnStore> {
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display());
        Ok((Queue::connect(&url, app).await?, Some(folder)))
    }

    #[cfg(feature = "postgres")]
    pub(crate) async fn postgres(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::Postgres> = Shared::new();
        let server = SERVER.get(|| testkit::Postgres::start(0)).await?;
        let queue = Queue::builder(&server.node(0).url(), app).migrate(true);
        Ok((queue.connect().await?, None))
    }

    /// Behind a pooler that gives each transaction another connection.
    #[cfg(feature = "postgres")]
    pub(crate) async fn pgbouncer(app: &str) -> Result<OnStore> {
        static SERVER: Shared<(testkit::Postgres, testkit::Pooler)> = Shared::new();
        let start = || async {
            let server = testkit::Postgres::start(0).await?;
            let pooler = testkit::Pooler::pgbouncer_by_transactions(server.node(0).port()).await?;
            Ok((server, pooler))
        };
        let (_, pooler) = SERVER.get(start).await?;
        let queue = Queue::builder(&pooler.url(), app).transaction_pooling(true).migrate(true);
        Ok((queue.connect().await?, None))
    }

    #[cfg(feature = "mysql")]
    pub(crate) async fn mariadb(app: &str) -> Result<OnStore> {
        static SERVER: Shared<testkit::MariaDb> = Shared::new();
        let server = SERVER.get(|| testkit::MariaDb::start(0)).await?;
        let queue = Queue::builder(&server.node(0).url(), app).migrate(true);
        Ok((queue.connect().await?, None))
    }
}

async fn every_job_is_done_once(queue: &Queue) -> Result<()> {
    let log = Log::default();
    let workers = running((0..3).map(|_| log_worker(queue, &log)));
    queue.push_many((0..2_000).map(|n| Note { n })).await?;
    let pushes = (2_000..2_500).map(|n| async move { queue.push(Note { n }).await });
    let ids: std::collections::HashSet<_> = futures_util::future::try_join_all(pushes)
        .await?
        .into_iter()
        .map(|pushed| pushed.id)
        .collect();
    assert_eq!(ids.len(), 500);
    log.wait_for(2_500).await?;
    workers.stop().await?;
    assert_eq!(log.sorted(), (0..2_500).collect::<Vec<_>>());
    let stats = queue.stats("notes").await?;
    assert_eq!(
        (stats.waiting, stats.leased, stats.scheduled, stats.dead, stats.done_total),
        (0, 0, 0, 0, 2_500)
    );
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Failing;

impl Job for Failing {
    const NAME: &'static str = "failing";
    const QUEUE: &'static str = "failing";
    const RETRY: Retry = Retry::exponential(3).first(Duration::from_millis(20));
    const TIMEOUT: Duration = Duration::from_millis(100);
}

async fn failures_are_tried_again_and_end_dead(queue: &Queue) -> Result<()> {
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let worker =
        Worker::new(queue).queues(["failing"]).handle(move |_: Failing, context: Context| {
            log.lock().push((context.attempt, context.last_error.clone()));
            async move {
                match context.attempt {
                    1 => panic!("boom"),
                    2 => std::future::pending::<Result<(), _>>().await,
                    _ => Err(std::io::Error::other("x\0".repeat(500_000))),
                }
            }
        });
    let workers = running([worker]);
    let id = queue.push(Failing).await?.id;
    let dead =
        eventually("the job to be dead", async || queue.dead("failing", 0, 10).await.ok()?.pop())
            .await?;
    assert_eq!((dead.id, dead.failed, dead.name.as_str()), (Some(id), 3, "failing"));
    assert!(dead.reason.starts_with("x x x") && dead.reason.len() <= 2_048);
    let attempts = seen.lock().clone();
    assert_eq!(attempts[0], (1, None));
    assert_eq!(attempts[1], (2, Some("panicked: boom".into())));
    assert_eq!(attempts[2], (3, Some("took longer than 100ms".into())));

    assert!(queue.revive("failing", &dead).await?);
    assert!(!queue.revive("failing", &dead).await?, "once");
    eventually("its second life", async || (seen.lock().len() >= 4).then_some(())).await?;
    assert_eq!(seen.lock()[3].0, 1, "its attempts are forgotten");
    workers.stop().await
}

async fn a_push_may_say_how_often_and_how_long(queue: &Queue) -> Result<()> {
    let attempts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&attempts);
    let worker = Worker::new(queue).queues(["stubborn"]).handle(move |_: Failing, _: Context| {
        count.fetch_add(1, SeqCst);
        std::future::pending::<Result<(), std::io::Error>>()
    });
    let workers = running([worker]);
    queue.push(Failing).to("stubborn").attempts(2).timeout(Duration::from_millis(30)).await?;
    let dead =
        eventually("the job to be dead", async || queue.dead("stubborn", 0, 10).await.ok()?.pop())
            .await?;
    assert_eq!(
        (dead.failed, dead.reason.as_str(), attempts.load(SeqCst)),
        (2, "took longer than 30ms", 2)
    );
    // The attempts and the timeout of the push also apply after a revival.
    assert!(queue.revive("stubborn", &dead).await?);
    let dead =
        eventually("its second death", async || queue.dead("stubborn", 0, 10).await.ok()?.pop())
            .await?;
    assert_eq!((dead.failed, attempts.load(SeqCst)), (2, 4));
    assert!(queue.forget("stubborn", &dead).await?);
    workers.stop().await
}

#[derive(Serialize, Deserialize)]
struct Special(String);

impl Job for Special {
    const NAME: &'static str = "special";
    const QUEUE: &'static str = "special";
}

/// Another type under the same name, as after a careless change.
#[derive(Serialize, Deserialize)]
struct Misfit {
    wants: u64,
}

impl Job for Misfit {
    const NAME: &'static str = "special";
    const QUEUE: &'static str = "special";
}

async fn special_errors_have_their_meaning(queue: &Queue) -> Result<()> {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let worker = Worker::new(queue).queues(["special"]).hand_back_for(Duration::ZERO);
    let worker = worker.handle(move |Special(word), context: Context| {
        let run = counted.fetch_add(1, SeqCst);
        async move {
            match word.as_str() {
                "discard" => Err(scale_queue::worker::BoxError::from(Discard::because("never"))),
                _ if run < 3 => {
                    assert_eq!(context.attempt, 1, "not counted");
                    Err(Snooze::after(Duration::from_millis(10)).into())
                }
                _ => Ok(()),
            }
        }
    });
    queue.push(Special("later".into())).await?;
    let workers = running([worker]);
    eventually("the later one", async || {
        (queue.stats("special").await.ok()?.done_total == 1).then_some(())
    })
    .await?;
    queue.push(Special("discard".into())).await?;
    queue.push(Misfit { wants: 1 }).await?;
    let dead = eventually("two dead", async || {
        queue.dead("special", 0, 10).await.ok().filter(|d| d.len() == 2)
    })
    .await?;
    let mut reasons: Vec<_> = dead.into_iter().map(|d| d.reason).collect();
    reasons.sort();
    assert!(reasons[0].starts_with("its content does not fit"), "{reasons:?}");
    assert_eq!(reasons[1], "never");
    assert_eq!(runs.load(SeqCst), 5);
    workers.stop().await
}

#[derive(Serialize, Deserialize)]
struct Once(u32);

impl Job for Once {
    const NAME: &'static str = "once";
    const QUEUE: &'static str = "once";

    fn unique_key(&self) -> Option<String> {
        Some(self.0.to_string())
    }
}

async fn unique_jobs_exist_once(queue: &Queue) -> Result<()> {
    let first = queue.push(Once(1)).await?;
    let second = queue.push(Once(1)).await?;
    assert!(first.is_new && !second.is_new);
    assert_eq!(first.id, second.id);
    assert!(queue.push(Once(2)).await?.is_new);
    assert_eq!(queue.stats("once").await?.waiting, 2);
    let workers = running([Worker::new(queue)
        .queues(["once"])
        .handle(|_: Once| async { Ok::<(), std::io::Error>(()) })]);
    eventually("both to be done", async || {
        (queue.stats("once").await.ok()?.done_total == 2).then_some(())
    })
    .await?;
    assert!(queue.push(Once(1)).await?.is_new, "the key is free again");
    workers.stop().await
}

async fn delayed_jobs_wait_for_their_time(queue: &Queue) -> Result<()> {
    let log = Log::default();
    let workers = running([log_worker(queue, &log)]);
    queue.push(Note { n: 0 }).at(std::time::SystemTime::UNIX_EPOCH).await?;
    log.wait_for(1).await?;
    // An idle worker wakes by itself, long before it would look again without a reason.
    for (n, count, delay) in [(1, 2, 100), (2, 3, 300)] {
        let (start, delay) = (Instant::now(), Duration::from_millis(delay));
        queue.push(Note { n }).delay(delay).await?;
        log.wait_for(count).await?;
        assert!(start.elapsed() >= delay, "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    }
    assert_eq!(log.all(), [0, 1, 2]);
    // Of two, the one that is due first begins first.
    queue.push(Note { n: 4 }).delay(Duration::from_hours(1)).await?;
    queue.push(Note { n: 3 }).delay(Duration::from_millis(100)).await?;
    log.wait_for(4).await?;
    assert_eq!(log.all(), [0, 1, 2, 3]);
    workers.stop().await
}

/// Its push wakes a worker, which fetches; when it asks for the time of the next fetch, the job is
/// due.
async fn a_job_due_in_the_midst_of_a_look_is_not_forgotten(queue: &Queue) -> Result<()> {
    let log = Log::default();
    let workers = running([log_worker(queue, &log)]);
    log.settle(queue).await?;
    let mut slowest = Duration::ZERO;
    for n in 0..200 {
        let start = Instant::now();
        queue.push(Note { n }).delay(Duration::from_millis(1 + n % 8)).await?;
        log.wait_for(n as usize + 1).await?;
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(5), "{slowest:?}: found by the safety look");
    workers.stop().await
}

async fn the_dead_are_revived_or_forgotten_together(queue: &Queue) -> Result<()> {
    const DEAD: u64 = 1_200;
    let tries = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&tries);
    let worker = Worker::new(queue).queues(["doomed"]).handle(move |_: Doomed| {
        counted.fetch_add(1, SeqCst);
        async { Err::<(), _>(Discard::because("no")) }
    });
    let workers = running([worker]);
    queue.push_many((0..DEAD).map(|_| Doomed)).await?;
    let dead = async |count: u64| {
        eventually("the dead", async || {
            (queue.stats("doomed").await.ok()?.dead == count).then_some(())
        })
        .await
    };
    dead(DEAD).await?;
    assert_eq!(queue.dead("doomed", 0, usize::MAX).await?.len(), 1_000);
    assert!(queue.dead("doomed", usize::MAX, 10).await?.is_empty());
    assert!(queue.dead("doomed", 0, 0).await?.is_empty());

    let one = queue.dead("doomed", 5, 1).await?.remove(0);
    assert!(queue.forget("doomed", &one).await?);
    assert!(!queue.forget("doomed", &one).await?, "once");
    assert!(!queue.revive("doomed", &one).await?, "what is forgotten stays so");
    // The jobs die again as fast as they are revived; the call ends nevertheless.
    let revived = queue.revive_all("doomed").await? as u64;
    assert!(revived >= DEAD - 1, "{revived}");
    eventually("each to be tried once more", async || {
        (tries.load(SeqCst) == DEAD + revived).then_some(())
    })
    .await?;
    dead(DEAD - 1).await?;
    workers.stop().await?;
    assert_eq!(queue.forget_all("doomed").await? as u64, DEAD - 1);
    assert_eq!(queue.forget_all("doomed").await?, 0);
    assert_eq!(queue.stats("doomed").await?.waiting, 0);
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Doomed;

impl Job for Doomed {
    const NAME: &'static str = "doomed";
    const QUEUE: &'static str = "doomed";
}

async fn a_chain_goes_link_by_link_and_survives_a_death(queue: &Queue) -> Result<()> {
    let empty = queue.chain().push().await;
    assert!(matches!(empty, Err(Error::Empty)));
    let mended = Arc::new(AtomicBool::new(false));
    let log = Log::default();
    let (special, works) = (log.clone(), Arc::clone(&mended));
    let worker =
        log_worker(queue, &log).queues(["chained", "notes", "high"]).handle(move |_: Fragile| {
            let works = works.load(SeqCst);
            special.add(2);
            async move { if works { Ok(()) } else { Err(Discard::because("broken")) } }
        });
    let delay = Duration::from_millis(200);
    let chain = queue
        .chain()
        .then(Note { n: 1 })
        .then(Fragile)
        .then_after(delay, Urgent { n: 3 })
        .then(Note { n: 4 });
    let workers = running([worker]);
    assert!(chain.push().await?.is_new);
    let dead = eventually("the second to be dead", async || {
        queue.dead("chained", 0, 10).await.ok()?.pop()
    })
    .await?;
    assert_eq!(log.all(), [1, 2], "what comes after a dead job does not come");
    mended.store(true, SeqCst);
    let start = Instant::now();
    assert!(queue.revive("chained", &dead).await?);
    log.wait_for(5).await?;
    assert!(start.elapsed() >= delay);
    assert_eq!(log.all(), [1, 2, 2, 3, 4]);
    workers.stop().await
}

#[derive(Serialize, Deserialize)]
struct Fragile;

impl Job for Fragile {
    const NAME: &'static str = "fragile";
    const QUEUE: &'static str = "chained";

    /// In a chain, the key is ignored: the chain would end where another job holds the key.
    fn unique_key(&self) -> Option<String> {
        Some("one".into())
    }
}

async fn strict_order_is_strict(queue: &Queue) -> Result<()> {
    for n in 0..10 {
        queue.push(Note { n }).to("low").await?;
        queue.push(Note { n: n + 100 }).to("default").await?;
        queue.push(Urgent { n: n + 200 }).await?;
    }
    let log = Log::default();
    let workers =
        running([log_worker(queue, &log).queues(["high", "default", "low"]).concurrency(1)]);
    log.wait_for(30).await?;
    let expected: Vec<_> = (200..210).chain(100..110).chain(0..10).collect();
    assert_eq!(log.all(), expected);
    workers.stop().await
}

async fn weighted_order_starves_nobody(queue: &Queue) -> Result<()> {
    queue.push_many((0..600).map(|n| Note { n })).await?;
    for n in 0..20 {
        queue.push(Note { n: 1_000 + n }).to("low").await?;
    }
    let log = Log::default();
    let workers =
        running([log_worker(queue, &log).weighted([("notes", 9), ("low", 1)]).concurrency(1)]);
    log.wait_for(620).await?;
    let last_low = log.all().iter().rposition(|n| *n >= 1_000).unwrap();
    assert!(last_low < 600, "the low ones came after {last_low} jobs");
    workers.stop().await
}

async fn a_pause_holds(queue: &Queue) -> Result<()> {
    let log = Log::default();
    queue.pause("notes").await?;
    let workers = running([log_worker(queue, &log)]);
    queue.push(Note { n: 1 }).await?;
    // A job pushed later to a queue that is not paused overtakes it.
    queue.push(Note { n: 2 }).to("high").await?;
    log.wait_for(1).await?;
    assert_eq!((log.all(), queue.stats("notes").await?.waiting), (vec![2], 1));
    assert!(queue.stats("notes").await?.paused);
    queue.resume("notes").await?;
    log.wait_for(2).await?;
    workers.stop().await
}

async fn a_stop_hands_back_what_has_not_ended(queue: &Queue) -> Result<()> {
    let begun = Arc::new(Barrier::new(3));
    let barrier = Arc::clone(&begun);
    let worker =
        Worker::new(queue).queues(["slow"]).concurrency(2).grace(Duration::from_millis(50)).handle(
            move |_: Slow| {
                let barrier = Arc::clone(&barrier);
                async move {
                    barrier.wait().await;
                    std::future::pending::<Result<(), std::io::Error>>().await
                }
            },
        );
    for n in 0..5 {
        queue.push(Slow { n }).await?;
    }
    let workers = running([worker]);
    begun.wait().await;
    let start = Instant::now();
    workers.stop().await?;
    assert!(start.elapsed() < Duration::from_secs(2));
    let stats = queue.stats("slow").await?;
    assert_eq!(
        (stats.waiting, stats.leased, stats.failed_total),
        (5, 0, 0),
        "all back at once, none counted"
    );
    Ok(())
}

async fn an_idle_worker_is_woken(queue: &Queue) -> Result<()> {
    let log = Log::default();
    let workers = running((0..3).map(|_| log_worker(queue, &log)));
    log.settle(queue).await?;
    let mut slowest = Duration::ZERO;
    for n in 0..50 {
        let start = Instant::now();
        queue.push(Note { n }).await?;
        log.wait_for(n as usize + 1).await?;
        slowest = slowest.max(start.elapsed());
    }
    assert!(
        slowest < Duration::from_secs(5),
        "{slowest:?}: found by the safety look, not by a wake"
    );
    workers.stop().await
}

async fn a_wake_is_passed_on_by_who_cannot_use_it(queue: &Queue) -> Result<()> {
    // One worker is stopping, one is busy, one is free; the first two become idle last, so they are
    // woken first.
    let log = Log::default();
    let free = running([log_worker(queue, &log).queues(["notes"])]);
    queue.push(Note { n: 0 }).await?;
    log.wait_for(1).await?;
    let release = Arc::new(tokio::sync::Notify::new());
    let begun = Arc::new(AtomicUsize::new(0));
    let blocked = |name: &str, concurrency: usize| {
        let (release, begun) = (Arc::clone(&release), Arc::clone(&begun));
        Worker::new(queue).queues(["notes", name]).concurrency(concurrency).handle(
            move |_: Slow| {
                let release = Arc::clone(&release);
                begun.fetch_add(1, SeqCst);
                async move {
                    release.notified().await;
                    Ok::<(), std::io::Error>(())
                }
            },
        )
    };
    let (stopping, busy) = (running([blocked("stopping", 4)]), running([blocked("busy", 1)]));
    for name in ["stopping", "busy"] {
        queue.push(Slow { n: 0 }).to(name).await?;
    }
    eventually("the slow jobs to begin", async || (begun.load(SeqCst) == 2).then_some(())).await?;
    let stopped = tokio::spawn(stopping.stop());
    let start = Instant::now();
    for n in 1..20 {
        queue.push(Note { n }).await?;
        log.wait_for(n as usize + 1).await?;
    }
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}: found by safety looks",
        start.elapsed()
    );
    for _ in 0..2 {
        release.notify_one();
    }
    stopped.await??;
    busy.stop().await?;
    free.stop().await
}

#[cfg(feature = "schedule")]
mod schedules {
    use super::a_schedule_run_by_many_fires_once;

    on_every_store! { a_schedule_run_by_many_fires_once }
}

#[cfg(feature = "schedule")]
async fn a_schedule_run_by_many_fires_once(queue: &Queue) -> Result<()> {
    let log = Log::default();
    let workers = running([log_worker(queue, &log)]);
    let schedulers: Vec<_> = (0..4)
        .map(|_| {
            let every = Duration::from_millis(200);
            let scheduler =
                scale_queue::Scheduler::new(queue).every("tick", every, || Note { n: 7 })?;
            let stop = tokio::time::sleep(Duration::from_millis(1_100));
            Ok(tokio::spawn(scheduler.run(stop)))
        })
        .collect::<Result<_>>()?;
    for scheduler in schedulers {
        scheduler.await?;
    }
    log.settle(queue).await?;
    let fired = log.all().len();
    assert!((4..=6).contains(&fired), "{fired} of 5 or 6 moments");
    workers.stop().await
}

#[tokio::test]
async fn bad_input_is_named() {
    let queue = Queue::memory();
    let error = queue.push(Note { n: 1 }).to("no spaces").await.unwrap_err();
    assert!(matches!(error, scale_queue::Error::Name(_)), "{error}");
    let error = queue.push(Special("x".repeat(2_000_000))).await.unwrap_err();
    assert!(matches!(error, scale_queue::Error::TooLarge { .. }), "{error}");
    let long = (0..101).fold(queue.chain(), |chain, n| chain.then(Note { n }));
    let error = long.push().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "job `note` is one too many: at most 100 jobs are allowed together"
    );
    let error =
        Queue::connect("amqp://somewhere:secret@host", "test").await.unwrap_err().to_string();
    assert!(error.contains("amqp") && !error.contains("secret"), "{error}");
    assert!(Worker::new(&queue).queues(["a b"]).run(async {}).await.is_err());
}
