//! Limits: never exceeded, checked when a job starts, and fair to the jobs behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::status::State;
use scale_queue::worker::CancelReason;
use scale_queue::{Context, Job, Limit, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::{Proxy, eventually};

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Serialize, Deserialize)]
struct Tenant {
    key: String,
    n: usize,
}

impl Job for Tenant {
    const NAME: &'static str = "tenant";
    const RETRY: Retry = Retry::never();

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::concurrent(self.key.clone(), 1)]
    }
}

fn jobs_of(key: &str, count: usize) -> impl Iterator<Item = Tenant> {
    (0..count).map(move |n| Tenant { key: key.into(), n })
}

#[derive(Serialize, Deserialize)]
struct Paced {
    n: usize,
}

impl Job for Paced {
    const NAME: &'static str = "paced";
    const QUEUE: &'static str = "low";
    const RETRY: Retry = Retry::never();

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::rate("partner", 10, SECOND).burst(2)]
    }
}

type Begun = Arc<Mutex<Vec<(usize, Instant)>>>;

fn paced(queue: &Queue, begun: &Begun) -> Worker {
    let begun = Arc::clone(begun);
    Worker::new(queue).queues(["high", "low"]).concurrency(50).handle(move |job: Paced| {
        begun.lock().push((job.n, Instant::now()));
        async { Ok::<(), std::io::Error>(()) }
    })
}

/// Returns the highest number of jobs that started within any second.
fn most_within_a_second(begun: &Begun) -> usize {
    let begun = begun.lock();
    let within = |start: &Instant| {
        begun.iter().filter(|(_, at)| *at >= *start && *at - *start < SECOND).count()
    };
    begun.iter().map(|(_, start)| within(start)).max().unwrap_or(0)
}

/// After a period without workers, jobs start at the rate, not all at once.
async fn a_pause_gives_no_more_than_the_burst(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push_many((0..60).map(|n| Paced { n })).await?;
    let begun = Begun::default();
    let worker = run(paced(&queue, &begun));
    eventually("some to begin", async || (begun.lock().len() >= 10).then_some(())).await?;
    worker.stop().await?;
    // A deploy or an outage: longer than all waiting jobs would have needed if the rate had
    // continued to accumulate.
    tokio::time::sleep(SECOND * 3).await;
    let before = begun.lock().len();
    let worker = run(paced(&queue, &begun));
    eventually("some more", async || (begun.lock().len() >= before + 15).then_some(())).await?;
    worker.stop().await?;
    let most = most_within_a_second(&begun);
    assert!(most <= 10 + 2 + 1, "{most} of 10 a second and a burst of 2, and one for the edge");
    assert_eq!(queue.stats("low").await?.failed_total, 0, "to wait is no failure");
    Ok(())
}

/// Jobs of the first of two queues with one rate run first.
async fn a_rate_knows_priorities(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push_many((0..300).map(|n| Paced { n })).await?;
    let begun = Begun::default();
    let worker = run(paced(&queue, &begun));
    eventually("the low ones to begin", async || (begun.lock().len() >= 5).then_some(())).await?;
    for n in [1_000, 1_001, 1_002] {
        queue.push(Paced { n }).to("high").await?;
    }
    let at = begun.lock().len();
    eventually("the high ones", async || {
        (begun.lock().iter().filter(|(n, _)| *n >= 1_000).count() == 3).then_some(())
    })
    .await?;
    let low = begun.lock()[at..].iter().filter(|(n, _)| *n < 1_000).count();
    // Even on a busy machine, they do not run after all of the others.
    assert!(low <= 60, "{low} low ones began before three high ones, of 295");
    worker.stop().await?;
    queue.drain("low").await?;
    Ok(())
}

/// Many jobs of one tenant behind its own limit block no other tenant, and run in order.
async fn a_flood_of_one_tenant_holds_up_no_other(server: &Server) -> Result<()> {
    const FLOOD: usize = 3_000;
    let queue = server.queue().await?;
    queue.push_many(jobs_of("a", FLOOD)).await?;
    queue.push_many(jobs_of("b", 3)).await?;
    let (order, begun_b): (Arc<Mutex<Vec<usize>>>, Arc<Mutex<Vec<Instant>>>) = <_>::default();
    let (a, b, start) = (Arc::clone(&order), Arc::clone(&begun_b), Instant::now());
    let running = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&running);
    let worker =
        run(Worker::new(&queue).concurrency(20).handle(move |job: Tenant, context: Context| {
            let now = Arc::clone(&now);
            if job.key == "b" {
                b.lock().push(Instant::now());
            } else {
                assert_eq!(now.fetch_add(1, SeqCst), 0, "one at a time");
                a.lock().push(job.n);
            }
            async move {
                assert_eq!(context.attempt, 1);
                tokio::time::sleep(Duration::from_millis(20)).await;
                if job.key != "b" {
                    now.fetch_sub(1, SeqCst);
                }
                Ok::<(), std::io::Error>(())
            }
        }));
    eventually("those of b", async || (begun_b.lock().len() == 3).then_some(())).await?;
    let (first, done) = (begun_b.lock()[0] - start, order.lock().len());
    assert!(done < 100, "b began after {done} of a's {FLOOD}");
    println!("{}: the stranger's first began after {first:?}, behind {FLOOD}", server.kind);
    eventually("a hundred of a", async || (order.lock().len() >= 100).then_some(())).await?;
    worker.stop().await?;
    // Jobs of the first fetch compete for the first permit; after that, the line is in order.
    let order = order.lock().clone();
    let inversions = order.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(inversions <= 20, "{order:?}");
    queue.drain("default").await?;
    assert!(is_empty(&queue.stats("default").await?));
    Ok(())
}

/// The next job starts when the job before it ends, not at the next poll of a worker.
async fn a_line_moves_on_with_each_end(server: &Server) -> Result<()> {
    const JOBS: usize = 200;
    let queue = server.queue().await?;
    queue.push_many(jobs_of("a", JOBS)).await?;
    let done = Arc::new(AtomicUsize::new(0));
    let worker = || {
        let done = Arc::clone(&done);
        Worker::new(&queue).concurrency(10).handle(move |_: Tenant| {
            let done = Arc::clone(&done);
            async move {
                done.fetch_add(1, SeqCst);
                Ok::<(), std::io::Error>(())
            }
        })
    };
    let (start, workers) = (Instant::now(), [run(worker()), run(worker())]);
    eventually("all of them", async || (done.load(SeqCst) == JOBS).then_some(())).await?;
    // Fallback polls happen every five seconds: two hundred of them would take 1,000 s.
    println!(
        "{}: {:?} from one job of a full key to the next",
        server.kind,
        start.elapsed() / JOBS as u32
    );
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}

/// A worker that cannot confirm its permit cancels its job before another job may get the permit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_never_run_on_one_permit_though_the_network_is_cut() -> Result<()> {
    let server = Server::start("redis").await?;
    let proxy = Proxy::start(server.redis().port()).await?;
    let near = server.queue().await?;
    let far = Queue::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    let (running, most): (Arc<AtomicUsize>, Arc<AtomicUsize>) = <_>::default();
    let reasons: Arc<Mutex<Vec<Option<CancelReason>>>> = Arc::default();
    let begun: Arc<Mutex<Vec<usize>>> = Arc::default();
    // Counts running jobs as blocking work would: it continues until it observes the cancellation.
    let worker = |queue: &Queue| {
        let (running, most, reasons, begun) =
            (Arc::clone(&running), Arc::clone(&most), Arc::clone(&reasons), Arc::clone(&begun));
        // A lease that outlives the network cut. A permit lives as long as the lease, at most 30 s.
        Worker::new(queue).lease(Duration::from_secs(4)).handle(
            move |job: Tenant, context: Context| {
                let (running, reasons) = (Arc::clone(&running), Arc::clone(&reasons));
                most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                begun.lock().push(job.n);
                let watch = tokio::spawn(async move {
                    context.cancelled().await;
                    reasons.lock().push(context.cancel_reason());
                    running.fetch_sub(1, SeqCst);
                });
                async move { watch.await.map_err(std::io::Error::other) }
            },
        )
    };
    near.push_many(jobs_of("account", 1)).await?;
    let cut_off = run(worker(&far));
    eventually("the first to begin", async || (begun.lock().len() == 1).then_some(())).await?;
    proxy.cut();
    near.push(Tenant { key: "account".into(), n: 1 }).await?;
    let other = run(worker(&near));
    eventually("the second to begin", async || (begun.lock().len() >= 2).then_some(())).await?;
    assert_eq!(most.load(SeqCst), 1, "two at once");
    assert_eq!(reasons.lock().first(), Some(&Some(CancelReason::PermitLost)));
    proxy.heal();
    cut_off.kill().await;
    other.kill().await;
    assert_eq!(most.load(SeqCst), 1);
    Ok(())
}

/// A store that fails briefly while limits are checked costs no attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blip_during_admission_kills_nobody() -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Wide;
    impl Job for Wide {
        const NAME: &'static str = "wide";
        const RETRY: Retry = Retry::never();
        fn limits(&self) -> Vec<Limit> {
            vec![Limit::concurrent("k", 100)]
        }
    }
    let server = Server::start("redis").await?;
    let proxy = Proxy::start(server.redis().port()).await?;
    let near = server.queue().await?;
    let far = Queue::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    near.push_many((0..1_500).map(|_| Wide)).await?;
    let worker = run(Worker::new(&far).concurrency(50).lease(SECOND).handle(|_: Wide| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok::<(), std::io::Error>(())
    }));
    for goal in [200, 500, 800] {
        until(&near, "default", "progress", |stats| stats.done_total >= goal).await?;
        proxy.refuse();
        tokio::time::sleep(Duration::from_millis(700)).await;
        proxy.heal();
    }
    let stats =
        until(&near, "default", "all to be done", |stats| stats.done_total + stats.dead >= 1_500)
            .await?;
    assert_eq!((stats.done_total, stats.dead), (1_500, 0));
    worker.stop().await
}

/// Waiting for a limit does not count as a failure.
async fn deferrals_are_not_counted_as_failures(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push_many(jobs_of("a", 20)).await?;
    let worker = run(Worker::new(&queue)
        .concurrency(10)
        .handle(|_: Tenant| async { Ok::<(), std::io::Error>(()) }));
    let stats = until(&queue, "default", "all to be done", |stats| stats.done_total == 20).await?;
    assert_eq!(stats.failed_total, 0);
    worker.stop().await
}

/// A blocked job is listed with the limit it waits for, and can be cancelled and drained like any
/// other.
async fn blocked_jobs_are_seen_and_ended(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (open, done) = (Arc::clone(&gate), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&done);
    let worker = run(Worker::new(&queue).concurrency(10).handle(move |_: Tenant| {
        let (open, count) = (Arc::clone(&open), Arc::clone(&count));
        async move {
            open.acquire().await?.forget();
            count.fetch_add(1, SeqCst);
            Ok::<(), tokio::sync::AcquireError>(())
        }
    }));
    queue.push_many(jobs_of("a", 5)).await?;
    until(&queue, "default", "four to be blocked", |stats| stats.blocked == 4 && stats.leased == 1)
        .await?;
    let blocked = queue.jobs("default", State::Blocked, 0, 10).await?;
    assert!(
        blocked.len() == 4
            && blocked.iter().all(|job| job.blocked_by.as_deref() == Some("limit:a")),
        "{blocked:?}"
    );
    assert_eq!(queue.jobs("default", State::Blocked, 3, 10).await?.len(), 1);
    assert!(queue.cancel("default", blocked[0].id.unwrap()).await?);
    gate.add_permits(10);
    let stats = until(&queue, "default", "the others to be done", |stats| {
        stats.done_total == 4 && is_empty(stats)
    })
    .await?;
    assert_eq!(stats.dead, 1, "{stats:?}");
    worker.stop().await
}

/// A key shared by jobs with one limit and jobs with two limits: a permit that cannot be used is
/// released, not passed on for ever.
async fn jobs_of_one_and_of_two_limits_share_a_key(server: &Server) -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Both {
        also: bool,
    }
    impl Job for Both {
        const NAME: &'static str = "both";
        const RETRY: Retry = Retry::never();
        fn limits(&self) -> Vec<Limit> {
            let mut limits = vec![Limit::concurrent("account", 1)];
            limits.extend(self.also.then(|| Limit::rate("partner", 1_000, SECOND)));
            limits
        }
    }
    let queue = server.queue().await?;
    queue.push_many((0..40).map(|n| Both { also: n % 5 != 0 })).await?;
    let (running, most): (Arc<AtomicUsize>, Arc<AtomicUsize>) = <_>::default();
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let worker = run(Worker::new(&queue).concurrency(10).handle(move |_: Both| {
        let now = Arc::clone(&now);
        peak.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
        async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            now.fetch_sub(1, SeqCst);
            Ok::<(), std::io::Error>(())
        }
    }));
    let stats = until(&queue, "default", "all to be done", |stats| {
        stats.done_total == 40 && is_empty(stats)
    })
    .await?;
    assert_eq!((most.load(SeqCst), stats.failed_total), (1, 0));
    worker.stop().await
}

/// The next job in a line starts only in a worker with a free slot for its queue: a limit per queue
/// is kept, and a full worker leaves the job to others.
async fn a_job_is_taken_over_only_where_it_has_a_place(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let begun: Arc<Mutex<Vec<usize>>> = Arc::default();
    let worker = || {
        let (open, seen) = (Arc::clone(&gate), Arc::clone(&begun));
        Worker::new(&queue).concurrency(4).handle(move |job: Tenant| {
            let open = Arc::clone(&open);
            seen.lock().push(job.n);
            async move {
                // The first job of each key lasts until the gate is open; one job in `b` lasts
                // longer than the test.
                match job.n {
                    0 => open.acquire().await.map(tokio::sync::SemaphorePermit::forget),
                    99 => std::future::pending().await,
                    _ => Ok(()),
                }
            }
        })
    };
    let full = run(worker().queues(["a", "b"]).concurrency_of("b", ..=1));
    queue.push(Tenant { key: "other".into(), n: 99 }).to("b").await?;
    eventually("the place in b to be taken", async || begun.lock().contains(&99).then_some(()))
        .await?;
    queue.push(Tenant { key: "k".into(), n: 0 }).to("a").await?;
    eventually("the key to be taken", async || begun.lock().contains(&0).then_some(())).await?;
    let free = run(worker().queues(["b"]));
    queue.push(Tenant { key: "k".into(), n: 7 }).to("b").await?;
    until(&queue, "b", "it to be blocked", |stats| stats.blocked == 1).await?;
    gate.add_permits(1);
    eventually("it to begin where there is a place", async || {
        begun.lock().contains(&7).then_some(())
    })
    .await?;
    full.kill().await;
    free.kill().await;
    Ok(())
}

/// A permit that could not be released while the store was unreachable is released when the store
/// is reachable again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permits_are_given_back_after_an_outage() -> Result<()> {
    let server = Server::start("redis").await?;
    let proxy = Proxy::start(server.redis().port()).await?;
    let near = server.queue().await?;
    let far = Queue::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    for key in 0..10 {
        near.push_many(jobs_of(&format!("k{key}"), 30)).await?;
    }
    let worker = run(Worker::new(&far).concurrency(20).handle(|_: Tenant| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok::<(), std::io::Error>(())
    }));
    until(&near, "default", "some to be done", |stats| stats.done_total > 30).await?;
    proxy.refuse();
    tokio::time::sleep(SECOND).await;
    proxy.heal();
    let healed = Instant::now();
    until(&near, "default", "all to be done", |stats| stats.done_total == 300).await?;
    // A permit that is not released is kept for the lease, 30 seconds.
    assert!(healed.elapsed() < Duration::from_secs(20), "{:?}", healed.elapsed());
    worker.stop().await
}

on_every_store! {
    jobs_of_one_and_of_two_limits_share_a_key,
    a_job_is_taken_over_only_where_it_has_a_place,
    a_pause_gives_no_more_than_the_burst,
    a_rate_knows_priorities,
    a_flood_of_one_tenant_holds_up_no_other,
    a_line_moves_on_with_each_end,
    deferrals_are_not_counted_as_failures,
    blocked_jobs_are_seen_and_ended,
}
