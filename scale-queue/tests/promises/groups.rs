//! Groups: jobs with the same key take turns, on every store.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::group::Group;
use scale_queue::outcome::{Discard, Snooze};
use scale_queue::status::State;
use scale_queue::store::{Destination, Request, Settlement, Trial, WorkerId};
use scale_queue::worker::BoxError;
use scale_queue::{Context, Error, Job, Limit, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Turn {
    group: String,
    n: u32,
    /// Number of jobs of the group at once.
    at_once: u32,
    dies: bool,
}

impl Job for Turn {
    const NAME: &'static str = "turn";
    const RETRY: Retry = Retry::custom(20, |_| Duration::from_millis(3));

    fn group(&self) -> Option<Group> {
        Some(Group::at_once(&self.group, self.at_once))
    }

    fn unique_key(&self) -> Option<String> {
        (self.n >= 1_000).then(|| self.n.to_string())
    }
}

on_every_store! {
    an_ordered_group_runs_in_the_order_of_its_pushes,
    groups_share_the_workers,
    each_end_gives_the_turn_on,
    a_delayed_job_keeps_its_place,
    a_job_that_a_drain_has_caused_waits_for_its_turn,
    a_group_keeps_its_number_of_turns,
    groups_wait_for_no_rate_longer_than_it_takes,
}
crate::on_stores! { drained_redis: "redis"; a_drain_that_dies_gives_no_turns }
crate::on_stores! { drained_postgres: "postgres"; a_drain_that_dies_gives_no_turns }
crate::on_stores! { drained_mariadb: "mariadb"; a_drain_that_dies_gives_no_turns }
crate::on_stores! { drained_sqlite: "sqlite"; a_drain_that_dies_gives_no_turns }
crate::on_stores! {
    of_cluster: "cluster";
    an_ordered_group_runs_in_the_order_of_its_pushes, each_end_gives_the_turn_on,
}
crate::on_stores! {
    behind_pgbouncer: "pooled";
    an_ordered_group_runs_in_the_order_of_its_pushes, each_end_gives_the_turn_on,
}
crate::on_stores! { of_postgres: "postgres"; a_worker_waits_for_no_transaction }
crate::on_stores! { of_mariadb: "mariadb"; a_worker_waits_for_no_transaction }

fn turn(group: &str, n: u32) -> Turn {
    Turn { group: group.into(), n, at_once: 1, dies: false }
}

/// Runs of a test: by group, the numbers of jobs that run, and of those that are done.
#[derive(Clone, Default)]
struct Runs(Arc<Mutex<BTreeMap<String, (HashSet<u32>, Vec<u32>)>>>);

impl Runs {
    fn done(&self, group: &str) -> Vec<u32> {
        self.0.lock().get(group).map(|(_, done)| done.clone()).unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.0.lock().values().map(|(_, done)| done.len()).sum()
    }

    /// A worker whose jobs fail and snooze at random.
    fn worker(&self, queue: &Queue) -> Worker {
        let runs = self.clone();
        let worker = Worker::new(queue).concurrency(8).lease(Duration::from_millis(400));
        worker.handle(move |job: Turn, _: Context| {
            let runs = runs.clone();
            async move {
                {
                    let mut runs = runs.0.lock();
                    let (running, done) = runs.entry(job.group.clone()).or_default();
                    running.insert(job.n);
                    if job.at_once == 1 {
                        assert_eq!(running.len(), 1, "two at once: {running:?}");
                        // A job that was done may run again after a crash, before the next begins.
                        let last = done.last().copied().unwrap_or_default();
                        assert!(done.is_empty() || job.n >= last, "{} after {last}", job.n);
                    }
                }
                let dice = fastrand::u32(..10);
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..3))).await;
                let mut runs = runs.0.lock();
                let (running, done) = runs.entry(job.group.clone()).or_default();
                running.remove(&job.n);
                match dice {
                    _ if job.dies => Err(BoxError::from(Discard::because("it dies"))),
                    0 => Err("not yet".into()),
                    1 => Err(Snooze::after(Duration::from_millis(5)).into()),
                    _ => {
                        if done.last() != Some(&job.n) {
                            done.push(job.n);
                        }
                        Ok(())
                    }
                }
            }
        })
    }

    /// Forgets what ran on a worker that was killed.
    fn forget_running(&self) {
        self.0.lock().values_mut().for_each(|(running, _)| running.clear());
    }
}

/// Jobs fail, snooze and lose their workers: each group is run in order, one job at a time.
async fn an_ordered_group_runs_in_the_order_of_its_pushes(server: &Server) -> Result<()> {
    const JOBS: u32 = 25;
    let queue = server.queue().await?;
    let runs = Runs::default();
    let groups = ["a", "b", "c: with,\\ odd\u{0} parts"];
    let many = (1..=JOBS / 2).flat_map(|n| groups.map(|group| turn(group, n)));
    queue.push_many(many).await?;
    for n in JOBS / 2 + 1..=JOBS {
        for group in groups {
            queue.push(turn(group, n)).await?;
        }
    }
    let stats = queue.stats("default").await?;
    assert_eq!((stats.waiting, stats.blocked), (3, u64::from(3 * JOBS - 3)));
    for kill in 1..=3 {
        let worker = run(runs.worker(&queue));
        let some = async || (runs.count() >= kill * 10).then_some(());
        eventually("some jobs", some).await?;
        worker.kill().await;
        runs.forget_running();
    }
    let workers = [(); 2].map(|()| run(runs.worker(&queue)));
    until(&queue, "default", "all jobs", is_empty).await?;
    for group in groups {
        assert_eq!(runs.done(group), (1..=JOBS).collect::<Vec<_>>(), "{group}");
    }
    for worker in workers {
        worker.stop().await?;
    }
    assert_eq!(queue.stats("default").await?.dead, 0, "no assertion in a job has failed");
    Ok(())
}

/// A group with many jobs does not delay another one.
async fn groups_share_the_workers(server: &Server) -> Result<()> {
    const MANY: u32 = 200;
    let queue = server.queue().await?;
    let runs = Runs::default();
    let job = |group: &str, n| Turn { at_once: 3, ..turn(group, n) };
    queue.push_many((1..=MANY).map(|n| job("many", n))).await?;
    queue.push_many((1..=5).map(|n| job("few", n))).await?;
    let stats = queue.stats("default").await?;
    assert_eq!((stats.waiting, stats.blocked), (6, u64::from(MANY) + 5 - 6));
    let worker = run(runs.worker(&queue).concurrency(2));
    let few = async || (runs.done("few").len() == 5).then(|| runs.done("many").len());
    let before = eventually("the few", few).await?;
    assert!(before < 60, "{before} of the many were done before the few");
    until(&queue, "default", "all jobs", is_empty).await?;
    assert_eq!(runs.count(), MANY as usize + 5);
    worker.stop().await
}

async fn each_end_gives_the_turn_on(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let runs = Runs::default();
    queue.push(turn("a", 1)).expires_after(Duration::from_millis(1)).await?;
    queue.push(Turn { dies: true, ..turn("a", 2) }).await?;
    let cancelled = queue.push(turn("a", 3)).await?;
    queue.push(turn("a", 4)).await?;
    let first_of_b = queue.push(turn("b", 1)).await?;
    queue.push(turn("b", 2)).await?;
    let lined = queue.jobs("default", State::Blocked, 0, 10).await?;
    assert_eq!(lined.len(), 4);
    assert!(lined.iter().all(|job| {
        job.blocked_by.as_ref().is_some_and(|line| line == "group:a" || line == "group:b")
    }));
    assert!(queue.cancel("default", cancelled.id).await?, "it waits in line");
    assert!(queue.cancel("default", first_of_b.id).await?, "it has the turn");
    let worker = run(runs.worker(&queue));
    until(&queue, "default", "all jobs", is_empty).await?;
    assert_eq!((runs.done("a"), runs.done("b")), (vec![4], vec![2]));
    assert_eq!(queue.stats("default").await?.dead, 3);
    // Revived jobs take turns again.
    worker.stop().await?;
    assert_eq!(queue.revive_all("default").await?, 3);
    let stats = queue.stats("default").await?;
    assert_eq!((stats.waiting, stats.blocked), (2, 1));
    // Nor does a drain leave a turn that nobody has.
    assert_eq!(queue.drain("default").await?, 3);
    queue.push(turn("a", 9)).await?;
    queue.push(turn("b", 9)).await?;
    let worker = run(runs.worker(&queue));
    until(&queue, "default", "the last jobs", is_empty).await?;
    assert_eq!((runs.done("a"), runs.done("b")), (vec![4, 9], vec![2, 9]));
    // A push that another one's unique key rejects takes no turn.
    queue.pause("default").await?;
    queue.push(turn("a", 1_000)).await?;
    assert!(!queue.push(turn("a", 1_000)).await?.is_new);
    queue.push(turn("a", 1_001)).await?;
    queue.resume("default").await?;
    until(&queue, "default", "both", is_empty).await?;
    assert_eq!(runs.done("a"), [4, 9, 1_000, 1_001]);
    let second = Duration::from_secs(1);
    let refused = queue.push(turn("a", 1_000)).debounce(second, second).await;
    assert!(matches!(refused, Err(Error::Setting(_))));
    worker.stop().await
}

async fn a_delayed_job_keeps_its_place(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let begun: Arc<Mutex<Vec<(u32, Duration)>>> = Arc::default();
    let seen = Arc::clone(&begun);
    let worker = Worker::new(&queue).handle(move |job: Turn, context: Context| {
        seen.lock().push((job.n, context.waited));
        async {}
    });
    let (short, long) = (Duration::from_millis(150), Duration::from_millis(400));
    queue.push(turn("a", 1)).delay(short).await?;
    queue.push(turn("a", 2)).await?;
    queue.push(turn("a", 3)).delay(long).await?;
    queue.push(turn("a", 4)).await?;
    let worker = run(worker);
    until(&queue, "default", "all jobs", is_empty).await?;
    let begun = begun.lock().clone();
    assert_eq!(begun.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(begun[0].1 >= short && begun[2].1 >= long, "{begun:?}");
    worker.stop().await
}

/// A transaction that has pushed to a group stays open: the worker ends jobs of that group and of
/// others meanwhile, and the group goes on when the transaction ends.
async fn a_worker_waits_for_no_transaction(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let runs = Runs::default();
    queue.push(turn("a", 1)).await?;
    let push = async |tx: &mut sqlx::AnyConnection, n| queue.push_in(tx, turn("a", n)).await;
    sqlx::any::install_default_drivers();
    let mut connection = <sqlx::AnyConnection as sqlx::Connection>::connect(&server.url).await?;
    let mut tx = sqlx::Connection::begin(&mut connection).await?;
    push(&mut tx, 2).await?;
    let worker = run(runs.worker(&queue));
    queue.push(turn("b", 1)).await?;
    let both = async || (runs.done("a") == [1] && runs.done("b") == [1]).then_some(());
    eventually("the others", both).await?;
    until(&queue, "default", "their ends", is_empty).await?;
    tx.commit().await?;
    let second = async || (runs.done("a") == [1, 2]).then_some(());
    eventually("the job of the transaction", second).await?;
    let mut tx = sqlx::Connection::begin(&mut connection).await?;
    push(&mut tx, 3).await?;
    tx.rollback().await?;
    queue.push(turn("a", 4)).await?;
    let fourth = async || (runs.done("a") == [1, 2, 4]).then_some(());
    eventually("the job after a rollback", fourth).await?;
    worker.stop().await
}

/// A drain that dies gives back the jobs it took: those in line are in line again, at their places.
async fn a_drain_that_dies_gives_no_turns(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let store = server.store().await?;
    let runs = Runs::default();
    for n in 1..=5 {
        queue.push(turn("a", n)).await?;
        queue.push(turn("b", n)).await?;
    }
    // The first job of `a` is taken by a worker, the rest by a drain.
    let request = Request {
        done: &[],
        max: 1,
        max_bytes: 1_000_000,
        begins: 1,
        lease: Duration::from_mins(1),
        trial: Trial::None,
        lines: &[],
        unhandled_for: Duration::from_mins(1),
    };
    let (worker, drain): (WorkerId, WorkerId) = ("worker".into(), "drain".into());
    let held = store.fetch("default", &worker, request).await?.jobs;
    assert_eq!(held.len(), 1);
    let taken = store.take_all("default", &drain, Duration::from_millis(1)).await?;
    assert_eq!(taken.len(), 9);
    queue.push(turn("a", 6)).await?;
    let back = async || {
        store.reclaim("default", &drain).await.ok()?;
        let stats = queue.stats("default").await.ok()?;
        (stats.leased == 1).then_some(stats)
    };
    let stats = eventually("its jobs", back).await?;
    assert_eq!((stats.waiting, stats.blocked), (1, 9), "`b` has a turn, `a` is still taken");
    let group = Some(Group::ordered("a"));
    let tag = held[0][1..17].to_vec();
    let done = Settlement { tag, unique: None, group, to: Destination::Done };
    assert!(store.settle("default", &worker, &[&done]).await.remove(0)?);
    let worker = run(runs.worker(&queue));
    until(&queue, "default", "all jobs", is_empty).await?;
    assert_eq!((runs.done("a"), runs.done("b")), (vec![2, 3, 4, 5, 6], vec![1, 2, 3, 4, 5]));
    worker.stop().await
}

/// A job that a drain hands back, because it was pushed by the drain, waits for its turn.
async fn a_job_that_a_drain_has_caused_waits_for_its_turn(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let (begun, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let order: Arc<Mutex<Vec<(u32, bool)>>> = Arc::default();
    let (seen, starts, waits) = (Arc::clone(&order), Arc::clone(&begun), Arc::clone(&ended));
    let worker = Worker::new(&queue).handle(move |job: Turn| {
        let (seen, starts, waits) = (Arc::clone(&seen), Arc::clone(&starts), Arc::clone(&waits));
        async move {
            seen.lock().push((job.n, waits.load(SeqCst)));
            starts.store(true, SeqCst);
            while job.n == 0 && !waits.load(SeqCst) {
                tokio::task::yield_now().await;
            }
        }
    });
    let worker = run(worker);
    queue.push(turn("a", 0)).await?;
    eventually("the first job", async || begun.load(SeqCst).then_some(())).await?;
    let late = Turn { group: "other".into(), ..turn("a", 7) }
        .with(scale_queue::push::PushOptions::new().delay(Duration::from_hours(1)));
    queue.batch().job(late).finally(turn("a", 1)).push().await?;
    queue.drain("default").await?;
    until(&queue, "default", "it to be in line", |stats| stats.blocked == 1).await?;
    assert_eq!(order.lock().len(), 1);
    ended.store(true, SeqCst);
    until(&queue, "default", "both", is_empty).await?;
    assert_eq!(*order.lock(), [(0, false), (1, true)]);
    worker.stop().await
}

/// A group keeps its number of turns while it has jobs, and does not let later jobs pass.
async fn a_group_keeps_its_number_of_turns(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let job = |n, at_once| Turn { at_once, ..turn("a", n) };
    for n in 0..3 {
        queue.push(job(n, 1)).await?;
    }
    queue.push(job(3, 4)).await?;
    let stats = queue.stats("default").await?;
    assert_eq!((stats.waiting, stats.blocked), (1, 3));
    let ran: Arc<Mutex<Vec<u32>>> = Arc::default();
    let seen = Arc::clone(&ran);
    let worker = run(Worker::new(&queue).handle(move |job: Turn| {
        seen.lock().push(job.n);
        async {}
    }));
    until(&queue, "default", "all jobs", is_empty).await?;
    assert_eq!(*ran.lock(), [0, 1, 2, 3]);
    worker.stop().await
}

/// Jobs of groups that wait for a rate begin when it has room, not half a minute later.
async fn groups_wait_for_no_rate_longer_than_it_takes(server: &Server) -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Rated(u32);
    impl Job for Rated {
        const NAME: &'static str = "rated";
        fn group(&self) -> Option<Group> {
            Some(Group::ordered((self.0 % 3).to_string()))
        }
        fn limits(&self) -> Vec<Limit> {
            vec![Limit::rate("r", 100, Duration::from_secs(1))]
        }
    }
    let queue = server.queue().await?;
    let begun: Arc<Mutex<Vec<std::time::Instant>>> = Arc::default();
    let workers = [(); 3].map(|()| {
        let seen = Arc::clone(&begun);
        run(Worker::new(&queue).handle(move |_: Rated| {
            seen.lock().push(std::time::Instant::now());
            async {}
        }))
    });
    queue.push_many((0..300).map(Rated)).await?;
    until(&queue, "default", "all jobs", is_empty).await?;
    let begun = begun.lock().clone();
    let pause = begun.windows(2).map(|two| two[1] - two[0]).max().unwrap();
    assert!(pause < Duration::from_secs(10), "{pause:?}");
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}
