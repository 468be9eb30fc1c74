//! Shared state of jobs: batches, limits, progress, cancellation, lists; on every store.
#![allow(clippy::unwrap_used)]

mod batches;
#[path = "../common/mod.rs"]
mod common;
mod encryption;
mod shares;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Result;
use batches::*;
use common::running;
use encryption::an_encrypted_payload_is_read_by_its_workers_alone;
use parking_lot::Mutex;
use scale_queue::status::State;
use scale_queue::{Context, Job, Limit, Queue, Worker};
use serde::{Deserialize, Serialize};
use shares::*;
use testkit::eventually;

async fn contract(queue: &Queue) -> Result<()> {
    a_batch_counts_each_job_once_and_is_followed_by_one_job(queue).await?;
    a_death_cancels_a_batch_and_a_revived_job_runs(queue).await?;
    a_lenient_batch_goes_on(queue).await?;
    a_revival_completes_a_lenient_batch(queue).await?;
    a_batch_pushed_twice_is_one(queue).await?;
    a_job_that_kills_its_workers_is_given_up_and_its_batch_hears_of_it(queue).await?;
    places_are_never_exceeded(queue).await?;
    turns_are_evenly_spaced(queue).await?;
    a_job_says_how_far_it_is(queue).await?;
    a_job_is_cancelled_wherever_it_is(queue).await?;
    jobs_are_listed_and_drained(queue).await?;
    a_queue_keeps_its_places_and_takes_no_more_than_its_most(queue).await?;
    balanced_shares_are_places_however_long_jobs_take(queue).await?;
    balanced_shares_follow_how_late_queues_are(queue).await?;
    what_is_carried_arrives(queue).await?;
    workers_and_batches_are_listed(queue).await?;
    an_encrypted_payload_is_read_by_its_workers_alone(queue).await?;
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
    let (now, most, done): (Arc<[AtomicUsize; 2]>, Arc<AtomicUsize>, Arc<AtomicUsize>) =
        <_>::default();
    let worker = || {
        let (now, most, done) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&done));
        Worker::new(queue).queues(["narrow"]).concurrency(8).handle(
            move |job: Narrow, context: Context| {
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
            },
        )
    };
    queue.push_many((0..16).map(|n| Narrow { account: n % 2 })).await?;
    let workers = running([worker(), worker()]);
    eventually("all to have had their place", async || (done.load(SeqCst) == 16).then_some(()))
        .await?;
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
        Worker::new(queue).queues(["paced"]).concurrency(20).handle(
            move |_: Paced, context: Context| {
                begun.lock().push(Instant::now());
                async move {
                    if context.attempt == 1 { Ok(()) } else { Err("no attempt but the first") }
                }
            },
        )
    };
    queue.push_many((0..20).map(|_| Paced)).await?;
    let workers = running([worker(), worker()]);
    eventually("all turns", async || (begun.lock().len() == 20).then_some(())).await?;
    workers.stop().await?;
    let begun = begun.lock().clone();
    let took = begun[19] - begun[0];
    // Three at once, then 17 rounds of 50 ms.
    assert!(took >= Duration::from_millis(800), "{took:?}");
    for start in 0..20 {
        let within = begun[start..]
            .iter()
            .filter(|at| **at - begun[start] < Duration::from_millis(500))
            .count();
        assert!(
            within <= 15,
            "{within} of 10 and a burst of 3 within half a second, scheduling included"
        );
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
    let worker =
        Worker::new(queue).queues(["long"]).handle(|_: Long, context: Context| async move {
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
        Worker::new(queue).queues(["long"]).concurrency(1).handle(move |_: Long| {
            begun.fetch_add(1, SeqCst);
            let guard = Dropped(Arc::clone(&dropped));
            async move {
                let _guard = guard;
                std::future::pending::<()>().await;
                Ok::<(), std::io::Error>(())
            }
        })
    };
    // One job runs, one waits, one is scheduled.
    let runs = queue.push(Long { n: 10 }).await?.id;
    let workers = running([worker()]);
    eventually("one to run", async || (begun.load(SeqCst) == 1).then_some(())).await?;
    let waits = queue.push(Long { n: 11 }).await?.id;
    let later = queue.push(Long { n: 12 }).delay(Duration::from_millis(300)).await?.id;
    assert!(queue.cancel("long", waits).await? && queue.cancel("long", later).await?);
    assert!(queue.cancel("long", runs).await?);
    eventually("the handler's future to be dropped", async || {
        (dropped.load(SeqCst) == 1).then_some(())
    })
    .await?;
    let all = async || (queue.stats("long").await.ok()?.dead == 3).then_some(());
    eventually("all three among the dead", all).await?;
    let dead = queue.dead("long", 0, 10).await?;
    assert!(dead.iter().all(|dead| dead.reason == "cancelled"), "{dead:?}");
    assert_eq!(begun.load(SeqCst), 1, "the others never began");
    // Their keys are free, and a revived job runs.
    for n in [10, 11, 12] {
        assert!(queue.push(Long { n }).delay(Duration::from_hours(1)).await?.is_new, "{n}");
    }
    let revived = dead.iter().find(|dead| dead.id == Some(waits)).unwrap();
    assert!(!queue.revive("long", revived).await?, "another job holds its key");
    queue.drain("long").await?;
    assert!(queue.revive("long", revived).await?);
    eventually("the revived to run", async || (begun.load(SeqCst) == 2).then_some(())).await?;
    queue.cancel("long", waits).await?;
    eventually("it to be cancelled again", async || (dropped.load(SeqCst) == 2).then_some(()))
        .await?;
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
    assert_eq!(
        (waiting.len(), waiting[0].id, waiting[0].payload.as_str()),
        (2, Some(first), r#"{"n":20}"#)
    );
    assert_eq!(queue.jobs("long", State::Waiting, 1, 10).await?.len(), 1);
    let scheduled = queue.jobs("long", State::Scheduled, 0, 10).await?;
    let due = scheduled[0].due_ms.unwrap() - scheduled[0].pushed_ms;
    assert_eq!((scheduled.len(), scheduled[0].id), (1, Some(later)));
    assert!((3_590_000..3_610_000).contains(&due), "{due}");
    queue.resume("long").await?;
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = Arc::clone(&stop);
    let worker = Worker::new(queue).queues(["long"]).concurrency(1).handle(move |_: Long| {
        let stopped = Arc::clone(&stopped);
        async move {
            stopped.notified().await;
            Ok::<(), std::io::Error>(())
        }
    });
    let workers = running([worker]);
    let leased = eventually("a leased one", async || {
        queue.jobs("long", State::Leased, 0, 10).await.ok()?.into_iter().next()
    })
    .await?;
    assert!(leased.worker.is_some_and(|worker| worker.starts_with("worker-")));
    queue.drain("long").await?;
    let stats = queue.stats("long").await?;
    assert_eq!((stats.waiting, stats.scheduled, stats.dead), (0, 0, 0));
    assert!(
        queue.push(Long { n: 22 }).delay(Duration::from_hours(1)).await?.is_new,
        "its key is free"
    );
    stop.notify_one();
    workers.stop().await?;
    queue.drain("long").await?;
    Ok(())
}

async fn what_is_carried_arrives(queue: &Queue) -> Result<()> {
    let metadata = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&metadata);
    let worker =
        Worker::new(queue).queues(["after"]).handle(move |job: After, context: Context| {
            seen.lock().push((job.what, context.metadata));
            async { Ok::<(), std::io::Error>(()) }
        });
    let tracing = queue.clone().propagating(|| vec![("traceparent".into(), "00-1-2-01".into())]);
    tracing.chain().then(after("a")).then(after("b")).push().await?;
    queue.push(after("c")).await?;
    let workers = running([worker]);
    eventually("three jobs", async || (metadata.lock().len() == 3).then_some(())).await?;
    for (what, metadata) in metadata.lock().iter() {
        assert_eq!(metadata.is_empty(), what == "c", "{what}: a chain goes on in its trace");
    }
    workers.stop().await
}

async fn workers_and_batches_are_listed(queue: &Queue) -> Result<()> {
    let worker = |name: &str| {
        Worker::new(queue)
            .name(name)
            .queues(["listed"])
            .handle(|_: Paced| std::future::pending::<Result<(), std::io::Error>>())
    };
    let (first, second) = (running([worker("first")]), running([worker("second")]));
    let names = async || {
        let workers =
            queue.workers().await?.into_iter().filter(|worker| worker.queues == ["listed"]);
        Ok::<_, scale_queue::Error>(
            workers
                .map(|worker| worker.id.split('-').next().unwrap().to_owned())
                .collect::<Vec<_>>(),
        )
    };
    eventually("both to be there", async || {
        (names().await.ok()? == ["first", "second"]).then_some(())
    })
    .await?;
    first.stop().await?;
    assert_eq!(names().await?, ["second"]);
    second.stop().await?;

    for n in 1..=3 {
        queue.batch().named(&format!("listed.{n}")).jobs((0..n).map(|_| Paced)).push().await?;
        // Pushed again under the same name, it is still one batch.
        queue.batch().named(&format!("listed.{n}")).jobs((0..n).map(|_| Paced)).push().await?;
    }
    let batches = queue.batches(0, 3).await?;
    let seen: Vec<_> = batches
        .iter()
        .map(|batch| (batch.id.as_str(), batch.status.total, batch.status.done))
        .collect();
    assert_eq!(seen, [("listed.3", 3, 0), ("listed.2", 2, 0), ("listed.1", 1, 0)]);
    assert_eq!(queue.batches(1, 1).await?, batches[1..2]);
    queue.drain("paced").await?;
    Ok(())
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

    /// The counts of a batch whose workers crash.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_batch_survives_its_workers() -> Result<()> {
        let server = testkit::Redis::start().await?;
        let queue = Queue::connect(&server.url(), "test").await?;
        let seen = Seen::default();
        let parts = (0..2_000).map(|n| Part { n, fails: false });
        let id =
            queue.batch().jobs(parts).then(after("then")).finally(after("finally")).push().await?;
        for round in 1..=5 {
            let doomed =
                running((0..2).map(|_| seen.worker(&queue).lease(Duration::from_millis(200))));
            let enough =
                async || (queue.batch_status(&id).await.ok()??.done >= round * 200).then_some(());
            eventually("some to be done", enough).await?;
            doomed.kill();
        }
        let workers = running([seen.worker(&queue)]);
        seen.after(&["finally", "then"]).await?;
        let status = queue.batch_status(&id).await?.unwrap();
        assert_eq!(
            (status.done, status.dead),
            (2_000, 0),
            "each counted once, however often it ran"
        );
        workers.stop().await
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite() -> Result<()> {
    let folder = tempfile::tempdir()?;
    contract(
        &Queue::connect(&format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display()), "test")
            .await?,
    )
    .await
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() -> Result<()> {
    let server = testkit::Postgres::start(0).await?;
    contract(&Queue::builder(&server.node(0).url(), "test").migrate(true).connect().await?).await
}

#[cfg(feature = "mysql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() -> Result<()> {
    let server = testkit::MariaDb::start(0).await?;
    contract(&Queue::builder(&server.node(0).url(), "test").migrate(true).connect().await?).await
}
