//! What jobs share: batches, limits, progress, cancellation, a look at what is there. On every store.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::{Log, Note, log_worker, running};
use parking_lot::Mutex;
use scale_queue::worker::BoxError;
use scale_queue::{Context, Job, Limit, Queue, Retry, Seal, State, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

async fn contract(queue: &Queue) -> Result<()> {
    a_batch_counts_each_job_once_and_is_followed_by_one_job(queue).await?;
    a_death_cancels_a_batch_and_a_revival_completes_it(queue).await?;
    a_lenient_batch_goes_on(queue).await?;
    a_batch_pushed_twice_is_one(queue).await?;
    a_job_that_kills_its_workers_is_given_up_and_its_batch_hears_of_it(queue).await?;
    places_are_never_exceeded(queue).await?;
    turns_are_evenly_spaced(queue).await?;
    a_job_says_how_far_it_is(queue).await?;
    a_job_is_cancelled_wherever_it_is(queue).await?;
    jobs_are_listed_and_drained(queue).await?;
    balanced_order_starves_nobody(queue).await?;
    what_is_carried_arrives(queue).await?;
    a_sealed_payload_is_read_by_its_workers_alone(queue).await?;
    Ok(())
}

/// A part of a batch: fails until `broken` is mended.
#[derive(Clone, Serialize, Deserialize)]
struct Part {
    n: u32,
    fails: bool,
}

impl Job for Part {
    const NAME: &'static str = "part";
    const QUEUE: &'static str = "parts";
    const RETRY: Retry = Retry::never();
}

#[derive(Clone, Serialize, Deserialize)]
struct After {
    what: String,
}

impl Job for After {
    const NAME: &'static str = "after";
    const QUEUE: &'static str = "after";
}

#[derive(Clone, Default)]
struct Seen {
    parts: Arc<Mutex<HashMap<u32, u32>>>,
    after: Arc<Mutex<Vec<String>>>,
    mended: Arc<AtomicBool>,
}

impl Seen {
    fn worker(&self, queue: &Queue) -> Worker {
        let (parts, after, mended) = (Arc::clone(&self.parts), Arc::clone(&self.after), Arc::clone(&self.mended));
        Worker::new(queue)
            .queues(["parts", "after"])
            .concurrency(4)
            .handle(move |part: Part, context: Context| {
                assert!(context.batch.is_some());
                *parts.lock().entry(part.n).or_default() += 1;
                let fails = part.fails && !mended.load(SeqCst);
                async move { if fails { Err("broken") } else { Ok(()) } }
            })
            .handle(move |job: After, _| {
                after.lock().push(job.what);
                async { Ok::<(), std::io::Error>(()) }
            })
    }

    async fn after(&self, words: &[&str]) -> Result<()> {
        let all = async || {
            let mut seen = self.after.lock().clone();
            seen.sort_unstable();
            (seen == words).then_some(())
        };
        eventually("the jobs after a batch", all).await.with_context(|| format!("{:?}", self.after.lock()))
    }
}

fn after(what: &str) -> After {
    After { what: what.into() }
}

async fn a_batch_counts_each_job_once_and_is_followed_by_one_job(queue: &Queue) -> Result<()> {
    let seen = Seen::default();
    let workers = running((0..3).map(|_| seen.worker(queue)));
    let parts = (0..600).map(|n| Part { n, fails: false });
    let batch = queue.batch().jobs(parts).then(after("then")).catch(after("catch")).finally(after("finally"));
    let id = batch.push().await?;
    seen.after(&["finally", "then"]).await?;
    let status = queue.batch_status(&id).await?.unwrap();
    assert_eq!((status.total, status.done, status.dead, status.cancelled), (600, 600, 0, false));
    assert!(status.is_over() && (status.fraction() - 1.0).abs() < 1e-9);
    assert!(seen.parts.lock().len() == 600 && seen.parts.lock().values().all(|runs| *runs == 1));
    assert_eq!(queue.batch_status("unknown").await?, None);
    assert!(!queue.cancel_batch("unknown").await?);
    assert!(queue.batch().push().await.is_err(), "a batch of nothing");
    workers.stop().await
}

async fn a_death_cancels_a_batch_and_a_revival_completes_it(queue: &Queue) -> Result<()> {
    let seen = Seen::default();
    queue.pause("parts").await?;
    let id = {
        let parts = (0..50).map(|n| Part { n, fails: n == 0 });
        queue.batch().jobs(parts).then(after("then")).catch(after("catch")).finally(after("finally")).push().await?
    };
    queue.resume("parts").await?;
    let workers = running([seen.worker(queue).concurrency(1)]);
    seen.after(&["catch", "finally"]).await?;
    let status = queue.batch_status(&id).await?.unwrap();
    assert_eq!((status.done, status.dead, status.cancelled), (49, 1, true), "those that had not begun ended unrun");
    assert!(seen.parts.lock().len() < 50, "{}", seen.parts.lock().len());
    seen.mended.store(true, SeqCst);
    let dead = queue.dead("parts", 0, 10).await?.pop().unwrap();
    queue.revive("parts", &dead).await?;
    seen.after(&["catch", "finally", "then"]).await?;
    assert_eq!(queue.batch_status(&id).await?.unwrap().dead, 0);
    workers.stop().await
}

async fn a_lenient_batch_goes_on(queue: &Queue) -> Result<()> {
    let seen = Seen::default();
    let parts = (0..30).map(|n| Part { n, fails: n % 10 == 0 });
    let batch = queue.batch().jobs(parts).allow_failures().then(after("then")).finally(after("finally"));
    let id = batch.push().await?;
    let workers = running([seen.worker(queue)]);
    seen.after(&["finally"]).await?;
    let status = queue.batch_status(&id).await?.unwrap();
    assert_eq!((status.done, status.dead, status.cancelled), (27, 3, false));
    assert_eq!(seen.parts.lock().len(), 30);
    workers.stop().await?;
    assert_eq!(queue.forget_all("parts").await?, 3);
    Ok(())
}

async fn a_batch_pushed_twice_is_one(queue: &Queue) -> Result<()> {
    let seen = Seen::default();
    for _ in 0..2 {
        let parts = (0..10).map(|n| Part { n, fails: false });
        assert_eq!(queue.batch().jobs(parts).named("import.7").then(after("then")).push().await?, "import.7");
    }
    let workers = running([seen.worker(queue)]);
    seen.after(&["then"]).await?;
    workers.stop().await?;
    assert_eq!(queue.stats("parts").await?.waiting, 0);
    assert!(seen.parts.lock().values().all(|runs| *runs == 1));
    assert!(queue.batch().named("no spaces").job(Part { n: 1, fails: false }).push().await.is_err());
    Ok(())
}

#[derive(Clone, Serialize, Deserialize)]
struct Deadly;

impl Job for Deadly {
    const NAME: &'static str = "deadly";
    const QUEUE: &'static str = "deadly";
    const RETRY: Retry = Retry::exponential(20).first(Duration::from_millis(1)).longest(Duration::from_millis(1));
}

async fn a_job_that_kills_its_workers_is_given_up_and_its_batch_hears_of_it(queue: &Queue) -> Result<()> {
    let seen = Seen::default();
    let last = Arc::new(AtomicUsize::new(0));
    let worker = || {
        let last = Arc::clone(&last);
        seen.worker(queue).queues(["deadly", "after"]).lease(Duration::from_millis(300)).handle(
            move |_: Deadly, context: Context| {
                let last = Arc::clone(&last);
                async move {
                    last.store(context.attempt.into(), SeqCst);
                    if context.attempt == 20 {
                        // It takes its worker along.
                        std::future::pending::<()>().await;
                    }
                    Err::<(), _>("not yet")
                }
            },
        )
    };
    let id = queue.batch().job(Deadly).catch(after("catch")).finally(after("finally")).push().await?;
    let doomed = running([worker()]);
    eventually("its last attempt", async || (last.load(SeqCst) == 20).then_some(())).await?;
    doomed.kill();
    let workers = running([worker()]);
    seen.after(&["catch", "finally"]).await?;
    let dead = eventually("its death", async || queue.dead("deadly", 0, 10).await.ok()?.pop()).await?;
    assert_eq!((dead.reason.as_str(), dead.failed), ("its workers died too often", 20));
    assert_eq!(last.load(SeqCst), 20, "it was tried once more");
    let status = queue.batch_status(&id).await?.unwrap();
    assert_eq!((status.done, status.dead), (0, 1));
    workers.stop().await?;
    assert_eq!(queue.forget_all("deadly").await?, 1);
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Narrow {
    account: u8,
}

impl Job for Narrow {
    const NAME: &'static str = "narrow";
    const QUEUE: &'static str = "narrow";

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::concurrent(format!("account:{}", self.account), 2)]
    }
}

async fn places_are_never_exceeded(queue: &Queue) -> Result<()> {
    let (now, most, done): (Arc<[AtomicUsize; 2]>, Arc<AtomicUsize>, Arc<AtomicUsize>) = <_>::default();
    let worker = || {
        let (now, most, done) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&done));
        Worker::new(queue).queues(["narrow"]).concurrency(8).handle(move |job: Narrow, context: Context| {
            let (now, most, done) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&done));
            async move {
                assert_eq!(context.attempt, 1, "waiting for a place is no attempt");
                let running = now[usize::from(job.account)].fetch_add(1, SeqCst) + 1;
                most.fetch_max(running, SeqCst);
                tokio::time::sleep(Duration::from_millis(30)).await;
                now[usize::from(job.account)].fetch_sub(1, SeqCst);
                done.fetch_add(1, SeqCst);
                Ok::<(), std::io::Error>(())
            }
        })
    };
    queue.push_many((0..16).map(|n| Narrow { account: n % 2 })).await?;
    let workers = running([worker(), worker()]);
    eventually("all to have had their place", async || (done.load(SeqCst) == 16).then_some(())).await?;
    assert_eq!(most.load(SeqCst), 2);
    workers.stop().await
}

#[derive(Serialize, Deserialize)]
struct Paced;

impl Job for Paced {
    const NAME: &'static str = "paced";
    const QUEUE: &'static str = "paced";

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::rate("partner", 20, Duration::from_secs(1)).burst(3)]
    }
}

async fn turns_are_evenly_spaced(queue: &Queue) -> Result<()> {
    let begun = Arc::new(Mutex::new(Vec::new()));
    let worker = || {
        let begun = Arc::clone(&begun);
        Worker::new(queue).queues(["paced"]).concurrency(20).handle(move |_: Paced, context: Context| {
            begun.lock().push(Instant::now());
            async move { if context.attempt == 1 { Ok(()) } else { Err("no attempt but the first") } }
        })
    };
    queue.push_many((0..20).map(|_| Paced)).await?;
    let workers = running([worker(), worker()]);
    eventually("all turns", async || (begun.lock().len() == 20).then_some(())).await?;
    workers.stop().await?;
    let begun = begun.lock().clone();
    let took = begun[19] - begun[0];
    // Three at once, then 17 turns of 50 ms.
    assert!(took >= Duration::from_millis(800), "{took:?}");
    for start in 0..20 {
        let within = begun[start..].iter().filter(|at| **at - begun[start] < Duration::from_millis(500)).count();
        assert!(within <= 15, "{within} of 10 and a burst of 3 within half a second, scheduling included");
    }
    assert_eq!(queue.stats("paced").await?.dead, 0);
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Long {
    n: u32,
}

impl Job for Long {
    const NAME: &'static str = "long";
    const QUEUE: &'static str = "long";

    fn unique_key(&self) -> Option<String> {
        Some(self.n.to_string())
    }
}

async fn a_job_says_how_far_it_is(queue: &Queue) -> Result<()> {
    let worker = Worker::new(queue).queues(["long"]).handle(|_: Long, context: Context| async move {
        context.progress(3, 10, "orders of March").await?;
        Ok::<(), scale_queue::Error>(())
    });
    let id = queue.push(Long { n: 1 }).await?.id;
    assert_eq!(queue.progress(id).await?, None);
    let workers = running([worker]);
    let progress = eventually("a word", async || queue.progress(id).await.ok()?).await?;
    assert_eq!((progress.done, progress.total, progress.note.as_str()), (3, 10, "orders of March"));
    workers.stop().await
}

async fn a_job_is_cancelled_wherever_it_is(queue: &Queue) -> Result<()> {
    let (begun, dropped): (Arc<AtomicUsize>, Arc<AtomicUsize>) = <_>::default();
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let worker = || {
        let (begun, dropped) = (Arc::clone(&begun), Arc::clone(&dropped));
        Worker::new(queue).queues(["long"]).concurrency(1).handle(move |_: Long, _| {
            begun.fetch_add(1, SeqCst);
            let guard = Dropped(Arc::clone(&dropped));
            async move {
                let _guard = guard;
                std::future::pending::<()>().await;
                Ok::<(), std::io::Error>(())
            }
        })
    };
    // One runs, one waits, one is for later.
    let runs = queue.push(Long { n: 10 }).await?.id;
    let workers = running([worker()]);
    eventually("one to run", async || (begun.load(SeqCst) == 1).then_some(())).await?;
    let waits = queue.push(Long { n: 11 }).await?.id;
    let later = queue.push(Long { n: 12 }).delay(Duration::from_millis(300)).await?.id;
    assert!(queue.cancel("long", waits).await? && queue.cancel("long", later).await?);
    assert!(queue.cancel("long", runs).await?);
    eventually("the handler's future to be dropped", async || (dropped.load(SeqCst) == 1).then_some(())).await?;
    let all = async || (queue.stats("long").await.ok()?.dead == 3).then_some(());
    eventually("all three among the dead", all).await?;
    let dead = queue.dead("long", 0, 10).await?;
    assert!(dead.iter().all(|dead| dead.reason == "cancelled"), "{dead:?}");
    assert_eq!(begun.load(SeqCst), 1, "the others never began");
    // Their keys are free, and who is revived runs.
    for n in [10, 11, 12] {
        assert!(queue.push(Long { n }).delay(Duration::from_hours(1)).await?.is_new, "{n}");
    }
    let revived = dead.iter().find(|dead| dead.id == Some(waits)).unwrap();
    assert!(queue.revive("long", revived).await?);
    eventually("the revived to run", async || (begun.load(SeqCst) == 2).then_some(())).await?;
    queue.cancel("long", waits).await?;
    eventually("it to be cancelled again", async || (dropped.load(SeqCst) == 2).then_some(())).await?;
    workers.stop().await?;
    queue.drain("long").await?;
    queue.forget_all("long").await?;
    Ok(())
}

async fn jobs_are_listed_and_drained(queue: &Queue) -> Result<()> {
    queue.pause("long").await?;
    let first = queue.push(Long { n: 20 }).await?.id;
    queue.push(Long { n: 21 }).await?;
    let later = queue.push(Long { n: 22 }).delay(Duration::from_hours(1)).await?.id;
    let waiting = queue.jobs("long", State::Waiting, 0, 10).await?;
    assert_eq!((waiting.len(), waiting[0].id, waiting[0].payload.as_str()), (2, Some(first), r#"{"n":20}"#));
    assert_eq!(queue.jobs("long", State::Waiting, 1, 10).await?.len(), 1);
    let scheduled = queue.jobs("long", State::Scheduled, 0, 10).await?;
    let due = scheduled[0].due_ms.unwrap() - scheduled[0].pushed_ms;
    assert_eq!((scheduled.len(), scheduled[0].id), (1, Some(later)));
    assert!((3_590_000..3_610_000).contains(&due), "{due}");
    queue.resume("long").await?;
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = Arc::clone(&stop);
    let worker = Worker::new(queue).queues(["long"]).concurrency(1).handle(move |_: Long, _| {
        let stopped = Arc::clone(&stopped);
        async move {
            stopped.notified().await;
            Ok::<(), std::io::Error>(())
        }
    });
    let workers = running([worker]);
    let leased =
        eventually("a leased one", async || queue.jobs("long", State::Leased, 0, 10).await.ok()?.into_iter().next()).await?;
    assert!(leased.worker.is_some_and(|worker| worker.starts_with("worker-")));
    queue.drain("long").await?;
    let stats = queue.stats("long").await?;
    assert_eq!((stats.waiting, stats.scheduled, stats.dead), (0, 0, 0));
    assert!(queue.push(Long { n: 22 }).delay(Duration::from_hours(1)).await?.is_new, "its key is free");
    stop.notify_one();
    workers.stop().await?;
    queue.drain("long").await?;
    Ok(())
}

async fn balanced_order_starves_nobody(queue: &Queue) -> Result<()> {
    let log = Log::default();
    queue.pause("notes").await?;
    queue.push_many((0..200).map(|n| Note { n })).await?;
    queue.push_many((1_000..1_200).map(|n| common::Urgent { n })).await?;
    queue.resume("notes").await?;
    let workers = running([log_worker(queue, &log).balanced(["high", "notes"]).concurrency(2)]);
    log.wait_for(400).await?;
    workers.stop().await?;
    assert_eq!(log.sorted().len(), 400, "all are done, and none starved");
    Ok(())
}

/// No cipher, but enough to see who has passed it.
struct Turned(u8);

impl Seal for Turned {
    fn seal(&self, job: &str, payload: &[u8]) -> Result<Vec<u8>, BoxError> {
        if payload.len() > 1_000 {
            return Err("too much for this seal".into());
        }
        Ok([&[self.0], job.as_bytes(), payload].concat().iter().map(|byte| byte ^ 0xA5).collect())
    }

    fn open(&self, job: &str, sealed: &[u8]) -> Result<Vec<u8>, BoxError> {
        let bytes: Vec<u8> = sealed.iter().map(|byte| byte ^ 0xA5).collect();
        let payload = bytes.strip_prefix(&[self.0]).and_then(|rest| rest.strip_prefix(job.as_bytes()));
        payload.map(<[u8]>::to_vec).ok_or_else(|| "not sealed with this key".into())
    }
}

#[derive(Serialize, Deserialize)]
struct Secret {
    text: String,
}

impl Job for Secret {
    const NAME: &'static str = "secret";
    const QUEUE: &'static str = "secrets";
    const RETRY: Retry = Retry::exponential(3).first(Duration::from_millis(1)).longest(Duration::from_millis(1));
}

async fn a_sealed_payload_is_read_by_its_workers_alone(queue: &Queue) -> Result<()> {
    let secret = || Secret { text: "4929-8765".into() };
    let (sealed, other) = (queue.clone().sealed(Turned(1)), queue.clone().sealed(Turned(2)));
    sealed.push(secret()).await?;
    sealed.chain().then(secret()).then(secret()).push().await?;
    sealed.push_many([secret()]).await?;
    let much = sealed.push(Secret { text: "x".repeat(2_000) }).await.unwrap_err();
    assert_eq!(much.to_string(), "job `secret` cannot be sealed: too much for this seal");
    for (handle, shown) in [(&sealed, true), (queue, false)] {
        let listed = handle.jobs("secrets", State::Waiting, 0, 10).await?;
        assert_eq!(listed.len(), 3);
        assert!(listed.iter().all(|job| !job.payload.contains("4929") && (job.payload == "sealed") == shown), "{listed:?}");
    }
    let read = Arc::new(Mutex::new(Vec::new()));
    let worker = |queue: &Queue| {
        let read = Arc::clone(&read);
        Worker::new(queue).queues(["secrets"]).handle(move |job: Secret, _| {
            read.lock().push(job.text);
            async { Ok::<(), std::io::Error>(()) }
        })
    };
    // With another key it is a failure like any other; with the right one it goes on.
    let workers = running([worker(&other)]);
    let dead = eventually("the dead", async || queue.dead("secrets", 0, 10).await.ok().filter(|dead| dead.len() == 3)).await?;
    assert!(dead.iter().all(|dead| dead.reason == "not sealed with this key" && dead.failed == 3), "{dead:?}");
    workers.stop().await?;
    assert!(read.lock().is_empty());
    assert_eq!(queue.revive_all("secrets").await?, 3);
    let workers = running([worker(&sealed)]);
    eventually("all to be read, the chain to its end", async || (read.lock().len() == 4).then_some(())).await?;
    assert!(read.lock().iter().all(|text| text == "4929-8765"));
    workers.stop().await
}

async fn what_is_carried_arrives(queue: &Queue) -> Result<()> {
    let carried = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&carried);
    let worker = Worker::new(queue).queues(["after"]).handle(move |job: After, context: Context| {
        seen.lock().push((job.what, context.carried));
        async { Ok::<(), std::io::Error>(()) }
    });
    let tracing = queue.clone().carrying(|| vec![("traceparent".into(), "00-1-2-01".into())]);
    tracing.chain().then(after("a")).then(after("b")).push().await?;
    queue.push(after("c")).await?;
    let workers = running([worker]);
    eventually("three jobs", async || (carried.lock().len() == 3).then_some(())).await?;
    for (what, carried) in carried.lock().iter() {
        assert_eq!(carried.is_empty(), what == "c", "{what}: a chain goes on in its trace");
    }
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() -> Result<()> {
    contract(&Queue::memory()).await
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn standalone() -> Result<()> {
        let server = testkit::Redis::start().await?;
        contract(&Queue::connect(&server.url(), "test").await?).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cluster() -> Result<()> {
        let cluster = testkit::RedisCluster::start().await?;
        contract(&Queue::connect(&cluster.url(), "test").await?).await
    }

    /// The count of a batch whose workers die.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_batch_survives_its_workers() -> Result<()> {
        let server = testkit::Redis::start().await?;
        let queue = Queue::connect(&server.url(), "test").await?;
        let seen = Seen::default();
        let parts = (0..2_000).map(|n| Part { n, fails: false });
        let id = queue.batch().jobs(parts).then(after("then")).finally(after("finally")).push().await?;
        for round in 1..=5 {
            let doomed = running((0..2).map(|_| seen.worker(&queue).lease(Duration::from_millis(200))));
            let enough = async || (queue.batch_status(&id).await.ok()??.done >= round * 200).then_some(());
            eventually("some to be done", enough).await?;
            doomed.kill();
        }
        let workers = running([seen.worker(&queue)]);
        seen.after(&["finally", "then"]).await?;
        let status = queue.batch_status(&id).await?.unwrap();
        assert_eq!((status.done, status.dead), (2_000, 0), "each counted once, however often it ran");
        workers.stop().await
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite() -> Result<()> {
    let folder = tempfile::tempdir()?;
    contract(&Queue::connect(&format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display()), "test").await?).await
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() -> Result<()> {
    let server = testkit::Postgres::start(0).await?;
    contract(&Queue::connect(&server.node(0).url(), "test").await?).await
}
