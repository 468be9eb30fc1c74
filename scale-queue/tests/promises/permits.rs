//! Permits that are handed over from one job to the next: during stops, pauses, in queues of
//! different order, with different limits, and with extreme values.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::outcome::Snooze;
use scale_queue::{Context, Job, Limit, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

/// A job with configurable limits.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Limited {
    n: usize,
    /// Key and number of permits.
    concurrent: Vec<(String, u32)>,
    /// Key, jobs and milliseconds.
    rate: Vec<(String, u32, u64)>,
    poison: bool,
}

impl Job for Limited {
    const NAME: &'static str = "limited";
    const RETRY: Retry = Retry::exponential(5);

    fn limits(&self) -> Vec<Limit> {
        let rate = self.rate.iter().map(|(key, jobs, ms)| {
            Limit::rate(key.clone(), *jobs, Duration::from_millis(*ms)).burst(2)
        });
        self.concurrent
            .iter()
            .map(|(key, most)| Limit::concurrent(key.clone(), *most))
            .chain(rate)
            .collect()
    }
}

fn one_of(key: &str, n: usize) -> Limited {
    Limited { n, concurrent: vec![(key.into(), 1)], ..Limited::default() }
}

async fn push_all(
    queue: &Queue,
    name: &str,
    jobs: impl IntoIterator<Item = Limited>,
) -> Result<()> {
    let pushes = jobs.into_iter().map(|job| async { queue.push(job).to(name).await });
    futures_util::future::try_join_all(pushes).await?;
    Ok(())
}

/// A worker that counts the runs of each job.
fn counting(queue: &Queue, runs: &Arc<Mutex<HashMap<usize, usize>>>, each: Duration) -> Worker {
    let runs = Arc::clone(runs);
    Worker::new(queue).concurrency(4).handle(move |job: Limited| {
        *runs.lock().entry(job.n).or_default() += 1;
        async move {
            tokio::time::sleep(each).await;
            Ok::<(), std::io::Error>(())
        }
    })
}

/// Workers stop and start while permits are handed over: every job runs once, and none is left
/// behind.
async fn stops_lose_no_job_on_its_way(server: &Server) -> Result<()> {
    const JOBS: usize = 400;
    let queue = server.queue().await?;
    let keys = ["a", "b", "c", "d"];
    queue.push_many((0..JOBS).map(|n| one_of(keys[n % 4], n))).await?;
    let runs = Arc::default();
    let stays = run(counting(&server.queue().await?, &runs, Duration::from_millis(1)));
    for goal in (40..JOBS as u64 - 40).step_by(40) {
        let comes_and_goes = run(counting(&server.queue().await?, &runs, Duration::from_millis(1)));
        until(&queue, "default", "progress", |stats| stats.done_total >= goal).await?;
        comes_and_goes.stop().await?;
    }
    until(&queue, "default", "all to be done", |stats| {
        stats.done_total == JOBS as u64 && is_empty(stats)
    })
    .await?;
    stays.stop().await?;
    let runs: Vec<usize> = runs.lock().values().copied().collect();
    assert_eq!((runs.len(), runs.iter().max()), (JOBS, Some(&1)));
    Ok(())
}

/// Many keys, few slots, and every kind of handover allowed: the workers do not stall.
async fn a_worker_full_of_lines_goes_on(server: &Server) -> Result<()> {
    const JOBS: usize = 1_200;
    let queue = server.queue().await?;
    for name in ["high", "low"] {
        let jobs = (0..JOBS / 2)
            .map(|n| one_of(&format!("k{}", n % 3), n + if name == "low" { JOBS } else { 0 }));
        push_all(&queue, name, jobs).await?;
    }
    let runs = Arc::default();
    let workers: Vec<_> = (0..3)
        .map(|_| run(counting(&queue, &runs, Duration::ZERO).queues(["high", "low"])))
        .collect();
    for name in ["high", "low"] {
        until(&queue, name, "all to be done", |stats| {
            stats.done_total == JOBS as u64 / 2 && is_empty(stats)
        })
        .await?;
    }
    for worker in workers {
        worker.stop().await?;
    }
    assert!(runs.lock().len() == JOBS && runs.lock().values().all(|count| *count == 1));
    Ok(())
}

/// A paused queue blocks no other queue, even if they share a limit. Its waiting jobs continue
/// after the pause.
async fn a_paused_queue_holds_up_no_other(server: &Server) -> Result<()> {
    for limited in [
        |n| one_of("shared", n),
        |n| Limited { n, rate: vec![("shared rate".into(), 100, 1_000)], ..Limited::default() },
    ] {
        let queue = server.queue().await?;
        queue.resume("first").await?;
        let before =
            (queue.stats("first").await?.done_total, queue.stats("second").await?.done_total);
        push_all(&queue, "first", (0..40).map(limited)).await?;
        let runs = Arc::default();
        let worker =
            run(counting(&queue, &runs, Duration::from_millis(2)).queues(["first", "second"]));
        until(&queue, "first", "a line", |stats| {
            stats.blocked > 5 && stats.done_total > before.0 + 2
        })
        .await?;
        queue.pause("first").await?;
        until(&queue, "first", "those under way to end", |stats| stats.leased == 0).await?;
        let left = queue.stats("first").await?.blocked;
        assert!(left > 0, "the pause came too late for this test to tell anything");
        push_all(&queue, "second", (100..150).map(limited)).await?;
        // If blocked, each of these jobs would wait for 30 seconds.
        until(&queue, "second", "the others to be done", |stats| stats.done_total == before.1 + 50)
            .await?;
        assert_eq!(queue.stats("first").await?.leased, 0);
        queue.resume("first").await?;
        until(&queue, "first", "the rest", |stats| {
            stats.done_total == before.0 + 40 && is_empty(stats)
        })
        .await?;
        worker.stop().await?;
    }
    Ok(())
}

/// While all slots are taken, a job of a queue with higher priority does not wait until the line of
/// a lower queue is empty.
async fn a_line_does_not_jump_the_order(server: &Server) -> Result<()> {
    const LINE: usize = 50;
    const FILLS: usize = 1_000;
    const URGENT: usize = 1_001;
    let queue = server.queue().await?;
    let gates = Arc::new([(); 2].map(|()| tokio::sync::Semaphore::new(0)));
    let order = Arc::new(Mutex::new(Vec::new()));
    let (open, seen) = (Arc::clone(&gates), Arc::clone(&order));
    let worker =
        Worker::new(&queue).queues(["high", "low"]).concurrency(2).handle(move |job: Limited| {
            let open = Arc::clone(&open);
            seen.lock().push(job.n);
            async move {
                open[usize::from(job.n == FILLS)]
                    .acquire()
                    .await
                    .map(tokio::sync::SemaphorePermit::forget)
            }
        });
    // The first job of the line takes one of the two slots, then a job without limits takes the
    // other.
    push_all(&queue, "low", (0..LINE).map(|n| one_of("k", n))).await?;
    let worker = run(worker);
    until(&queue, "low", "a line", |stats| stats.blocked == LINE as u64 - 1 && stats.leased == 1)
        .await?;
    queue.push(Limited { n: FILLS, ..Limited::default() }).to("low").await?;
    until(&queue, "low", "both places to be taken", |stats| stats.leased == 2).await?;
    queue.push(Limited { n: URGENT, ..Limited::default() }).to("high").await?;
    // The worker receives the urgent job while the line moves on, long before the line is empty.
    for begun in 3..=LINE {
        gates[0].add_permits(1);
        eventually("the next to begin", async || (order.lock().len() >= begun).then_some(()))
            .await?;
        if order.lock().contains(&URGENT) {
            break;
        }
    }
    let begun = order.lock().clone();
    assert!(begun.contains(&URGENT), "{begun:?}");
    gates.iter().for_each(|gate| gate.add_permits(LINE));
    until(&queue, "low", "all to be done", |stats| {
        stats.done_total == LINE as u64 + 1 && is_empty(stats)
    })
    .await?;
    worker.stop().await
}

/// Jobs with the same key and different limits: each starts only if its own limit allows it,
/// whichever job hands the permit over.
async fn each_job_keeps_its_own_bound(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let gates: Arc<Vec<_>> = Arc::new((0..4).map(|_| tokio::sync::Semaphore::new(0)).collect());
    let begun = Arc::new(Mutex::new(Vec::new()));
    let (open, seen) = (Arc::clone(&gates), Arc::clone(&begun));
    let worker = run(Worker::new(&queue).concurrency(5).handle(move |job: Limited| {
        let open = Arc::clone(&open);
        seen.lock().push(job.n);
        async move { open[job.n].acquire().await.map(tokio::sync::SemaphorePermit::forget) }
    }));
    let job = |n, most| Limited { n, concurrent: vec![("k".into(), most)], ..Limited::default() };
    let begins = async |n: usize| {
        eventually("a job to begin", async || begun.lock().contains(&n).then_some(())).await
    };
    queue.push(job(0, 1)).await?;
    begins(0).await?;
    queue.push(job(2, 3)).await?;
    begins(2).await?;
    queue.push(job(1, 1)).await?;
    until(&queue, "default", "the last to be blocked", |stats| stats.blocked == 1).await?;
    // The first job ends; two permits were held, and the last job must run alone.
    gates[0].add_permits(1);
    queue.push(Limited { n: 3, ..Limited::default() }).await?;
    gates[3].add_permits(1);
    until(&queue, "default", "two to be done", |stats| stats.done_total == 2).await?;
    assert_eq!(*begun.lock(), [0, 2, 3]);
    gates[2].add_permits(1);
    begins(1).await?;
    gates[1].add_permits(1);
    until(&queue, "default", "all to be done", |stats| stats.done_total == 4 && is_empty(stats))
        .await?;
    worker.stop().await
}

/// A limit that is named twice counts once, and extreme numbers are clamped: the jobs run.
async fn any_numbers_are_taken(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let jobs = [
        Limited {
            n: 0,
            rate: vec![("twice".into(), 1, 100), ("twice".into(), 1, 200)],
            ..Limited::default()
        },
        Limited { n: 1, concurrent: vec![("many".into(), u32::MAX)], ..Limited::default() },
        Limited { n: 2, rate: vec![("never again".into(), 1, u64::MAX)], ..Limited::default() },
        Limited { n: 3, rate: vec![("at once".into(), u32::MAX, 0)], ..Limited::default() },
        Limited {
            n: 4,
            concurrent: vec![("none".into(), 0), ("none".into(), 3)],
            ..Limited::default()
        },
    ];
    let count = jobs.len();
    queue.push_many(jobs).await?;
    let runs = Arc::default();
    let worker = counting(&queue, &runs, Duration::ZERO)
        .lease(Duration::MAX)
        .grace(Duration::MAX)
        .hand_back_for(Duration::MAX);
    let worker =
        worker.weighted([("default", u32::MAX), ("other", u32::MAX)]).concurrency(usize::MAX);
    let worker = run(worker.concurrency_of("default", usize::MAX..).concurrency_of("other", 1..));
    until(&queue, "default", "all to be done", |stats| {
        stats.done_total == count as u64 && is_empty(stats)
    })
    .await?;
    queue.push(Limited { n: 9, ..Limited::default() }).to("other").await?;
    until(&queue, "other", "it to be done", |stats| stats.done_total == 1).await?;
    worker.stop().await?;
    // Extreme delays, of a deferred job and of a failed job; both jobs still exist.
    #[derive(Serialize, Deserialize)]
    struct Never(bool);
    impl Job for Never {
        const NAME: &'static str = "never";
        const RETRY: Retry = Retry::exponential(3).first(Duration::MAX).longest(Duration::MAX);
    }
    queue.push(Never(true)).to("never").await?;
    queue.push(Never(false)).to("never").await?;
    let worker = run(Worker::new(&queue).queues(["never"]).grace(Duration::MAX).handle(
        |job: Never| async move {
            if job.0 {
                return Err::<(), Box<dyn std::error::Error + Send + Sync>>(
                    Snooze::after(Duration::MAX).into(),
                );
            }
            Err("fails".into())
        },
    ));
    until(&queue, "never", "both to be put off", |stats| stats.scheduled == 2 && stats.leased == 0)
        .await?;
    worker.stop().await
}

/// A rate limit in a queue whose slots in this worker are all taken: the next queue continues.
async fn a_full_queue_holds_up_no_other(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let open = Arc::clone(&gate);
    let limited =
        |n| Limited { n, rate: vec![("shared".into(), 100, 1_000)], ..Limited::default() };
    let worker = Worker::new(&queue)
        .queues(["narrow", "wide"])
        .concurrency(8)
        .concurrency_of("narrow", ..=1);
    let worker = run(worker.handle(move |job: Limited| {
        let open = Arc::clone(&open);
        async move {
            if job.n < 100 {
                open.acquire().await.map(tokio::sync::SemaphorePermit::forget)
            } else {
                Ok(())
            }
        }
    }));
    push_all(&queue, "narrow", (0..10).map(limited)).await?;
    until(&queue, "narrow", "its place to be taken", |stats| stats.leased > 0).await?;
    push_all(&queue, "wide", (100..130).map(limited)).await?;
    until(&queue, "wide", "the others to be done", |stats| stats.done_total == 30).await?;
    gate.add_permits(100);
    until(&queue, "narrow", "the rest", |stats| stats.done_total == 10 && is_empty(stats)).await?;
    worker.stop().await
}

/// A worker whose slots fill and empty all the time is idle only while there are no jobs: a wake-up
/// that it passes on late does not leave another worker idle.
async fn no_wake_is_lost(server: &Server) -> Result<()> {
    const JOBS: usize = 1_500;
    let queue = server.queue().await?;
    let runs = Arc::default();
    let worker = run(counting(&queue, &runs, Duration::from_millis(4)));
    let pushes = (0..JOBS).map(|n| {
        let job = Limited { n, concurrent: vec![("k".into(), 4)], ..Limited::default() };
        let queue = &queue;
        async move {
            tokio::time::sleep(Duration::from_millis(n as u64 * 2)).await;
            queue.push(job).await
        }
    });
    futures_util::future::try_join_all(pushes).await?;
    // A lost wake-up delays a job by at least 30 seconds, which is longer than this test waits.
    until(&queue, "default", "all to be done", |stats| {
        stats.done_total == JOBS as u64 && is_empty(stats)
    })
    .await?;
    worker.stop().await
}

/// A poison job that waits for a limit is still tried alone: jobs that wait with it lose at most
/// one attempt.
async fn a_poison_job_behind_a_limit_is_found(server: &Server) -> Result<()> {
    const INNOCENT: usize = 12;
    let queue = server.queue().await?;
    let job = |n, poison| Limited {
        n,
        poison,
        concurrent: vec![("api".into(), 3)],
        ..Limited::default()
    };
    queue.push_many((0..4).map(|n| job(n, false))).await?;
    queue.push(job(100, true)).await?;
    queue.push_many((4..INNOCENT).map(|n| job(n, false))).await?;
    let (finished, most_failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut crashes = 0;
    loop {
        let poisoned = Arc::new(AtomicBool::new(false));
        let (taken, ends, failed) =
            (Arc::clone(&poisoned), Arc::clone(&finished), Arc::clone(&most_failed));
        let worker = Worker::new(&queue).concurrency(8).lease(Duration::from_millis(300));
        let worker = run(worker.handle(move |job: Limited, context: Context| {
            if job.poison {
                taken.store(true, SeqCst);
            } else {
                failed.fetch_max(usize::from(context.attempt) - 1, SeqCst);
            }
            let ends = Arc::clone(&ends);
            async move {
                if job.poison {
                    return std::future::pending().await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                ends.fetch_add(1, SeqCst);
                Ok::<(), std::io::Error>(())
            }
        }));
        let over = async || {
            let died =
                queue.stats("default").await.ok()?.dead > 0 && finished.load(SeqCst) >= INNOCENT;
            (died || poisoned.load(SeqCst)).then_some(died)
        };
        let over = eventually("the poison to begin, or to be dead", over).await?;
        if !over {
            // The poison job crashes its worker some time after its start.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        worker.kill().await;
        if over {
            break;
        }
        crashes += 1;
        assert!(crashes <= 10, "it is not given up");
    }
    let dead = queue.dead("default", 0, 100).await?;
    assert!(dead.len() == 1 && dead[0].failed == 5, "{dead:?}");
    assert!(
        most_failed.load(SeqCst) <= 1,
        "an innocent one paid {} times",
        most_failed.load(SeqCst)
    );
    Ok(())
}

/// A poison job in one queue: jobs of another queue in the same worker lose at most one attempt.
async fn a_poison_job_of_another_queue_is_found(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push(Limited { poison: true, ..Limited::default() }).to("bad").await?;
    let most_failed = Arc::new(AtomicUsize::new(0));
    // A fifth attempt would wait for 16 seconds.
    for crash in 1..=4 {
        push_all(&queue, "good", (0..6).map(|n| Limited { n, ..Limited::default() })).await?;
        let (poisoned, good) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (taken, begun, failed) =
            (Arc::clone(&poisoned), Arc::clone(&good), Arc::clone(&most_failed));
        let worker = Worker::new(&queue)
            .queues(["good", "bad"])
            .concurrency(10)
            .lease(Duration::from_secs(1));
        let worker = run(worker.handle(move |job: Limited, context: Context| {
            if job.poison {
                taken.store(true, SeqCst);
            } else {
                begun.fetch_add(1, SeqCst);
                failed.fetch_max(usize::from(context.attempt) - 1, SeqCst);
            }
            // No job ends before the worker crashes.
            std::future::pending::<Result<(), std::io::Error>>()
        }));
        eventually("the poison to begin", async || poisoned.load(SeqCst).then_some(())).await?;
        worker.kill().await;
        let blamed = most_failed.load(SeqCst);
        assert!(blamed <= 1, "a job of the other queue paid {blamed} times in {crash} crashes");
        // These jobs are innocent, and another worker completes them.
        let done = run(Worker::new(&queue)
            .queues(["good"])
            .handle(|_: Limited| async { Ok::<(), std::io::Error>(()) }));
        until(&queue, "good", "them to be done", is_empty).await?;
        done.stop().await?;
    }
    Ok(())
}

on_every_store! {
    stops_lose_no_job_on_its_way,
    a_worker_full_of_lines_goes_on,
    a_paused_queue_holds_up_no_other,
    a_line_does_not_jump_the_order,
    each_job_keeps_its_own_bound,
    any_numbers_are_taken,
    a_full_queue_holds_up_no_other,
    no_wake_is_lost,
    a_poison_job_behind_a_limit_is_found,
    a_poison_job_of_another_queue_is_found,
}

/// In a database whose default isolation level is `repeatable read`, the row locks of this crate
/// still serialise its writers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_default_isolation_changes_nothing() -> Result<()> {
    let server = Server::start("postgres").await?;
    server
        .postgres()
        .node(0)
        .sql("alter role postgres set default_transaction_isolation = 'repeatable read'")
        .await?;
    stops_lose_no_job_on_its_way(&server).await
}
