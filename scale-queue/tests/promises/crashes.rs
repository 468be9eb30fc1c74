//! Jobs of crashed workers: each is reclaimed soon, and only poison jobs lose attempts for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::{Context, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::on_every_store;
use crate::server::{Running, Server, is_empty, run, until};

/// Lease of workers that crash.
const LEASE: Duration = Duration::from_millis(400);
/// Lease of workers that live: longer than a busy machine delays a heartbeat.
const LONG_LEASE: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Work {
    n: usize,
}

impl Job for Work {
    const NAME: &'static str = "work";
}

#[derive(Serialize, Deserialize)]
struct Poison;

impl Job for Poison {
    const NAME: &'static str = "poison";
    const RETRY: Retry = Retry::exponential(5);
}

/// Starts a worker whose handlers never end, waits until `count` of them have started, and kills
/// it.
async fn die_holding(queue: &Queue, lease: Duration, concurrency: usize) -> Result<()> {
    let begun = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&begun);
    let worker =
        run(Worker::new(queue).concurrency(concurrency).lease(lease).handle(move |_: Work| {
            count.fetch_add(1, SeqCst);
            std::future::pending::<Result<(), std::io::Error>>()
        }));
    eventually("its jobs to begin", async || (begun.load(SeqCst) == concurrency).then_some(()))
        .await?;
    worker.kill().await;
    Ok(())
}

fn counting(queue: &Queue, done: &Arc<Mutex<Vec<usize>>>) -> Worker {
    let done = Arc::clone(done);
    Worker::new(queue).concurrency(100).lease(LONG_LEASE).handle(move |job: Work| {
        done.lock().push(job.n);
        async { Ok::<(), std::io::Error>(()) }
    })
}

/// A worker that held more jobs than one step reclaims. They had begun, so each of them is tried
/// alone, which takes a database about 10 ms a job.
async fn every_job_of_a_large_worker_comes_back(server: &Server) -> Result<()> {
    let held = match server.kind {
        "memory" | "redis" => 1_500,
        _ => 250,
    };
    let queue = server.queue().await?;
    queue.push_many((0..held).map(|n| Work { n })).await?;
    die_holding(&queue, LEASE, held).await?;
    assert_eq!(queue.stats("default").await?.leased, held as u64);
    let done = Arc::default();
    let worker = run(counting(&server.queue().await?, &done));
    until(&queue, "default", "all to be done", |stats| {
        stats.done_total == held as u64 && is_empty(stats)
    })
    .await?;
    let mut all = done.lock().clone();
    all.sort_unstable();
    assert_eq!(all, (0..held).collect::<Vec<_>>());
    worker.stop().await
}

/// Expired leases are checked by every fetch, not only by fetches that are not filled.
async fn a_dead_workers_jobs_do_not_wait_for_the_backlog(server: &Server) -> Result<()> {
    const BACKLOG: usize = 3_000;
    let queue = server.queue().await?;
    queue.push_many((0..5).map(|n| Work { n })).await?;
    die_holding(&queue, LEASE, 5).await?;
    let died = Instant::now();
    queue.push_many((5..BACKLOG).map(|n| Work { n })).await?;
    let back: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let (seen, done) = (Arc::clone(&back), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&done);
    // Slow enough that the backlog lasts longer than the lease.
    let worker =
        run(Worker::new(&queue).concurrency(10).lease(LONG_LEASE).handle(move |job: Work| {
            if job.n < 5 {
                seen.lock().push(Instant::now());
            }
            let count = Arc::clone(&count);
            async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                count.fetch_add(1, SeqCst);
                Ok::<(), std::io::Error>(())
            }
        }));
    eventually("the five to be back", async || (back.lock().len() == 5).then_some(())).await?;
    assert!(done.load(SeqCst) < BACKLOG - 5, "before the end of the backlog");
    let last = *back.lock().iter().max().unwrap() - died;
    // The delay depends on the machine, but must not depend on the length of the backlog.
    assert!(last < Duration::from_secs(10), "{last:?} after the death");
    worker.stop().await
}

/// Workers that stop cleanly leave nothing behind that delays a later recovery.
async fn clean_stops_leave_nothing_behind(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    for _ in 0..4 {
        queue.push_many((0..5).map(|n| Work { n })).await?;
        let (begun, gate) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
        let (count, open) = (Arc::clone(&begun), Arc::clone(&gate));
        let worker =
            run(Worker::new(&queue).concurrency(5).lease(LONG_LEASE).handle(move |_: Work| {
                count.fetch_add(1, SeqCst);
                let open = Arc::clone(&open);
                async move { open.acquire().await.map(tokio::sync::SemaphorePermit::forget) }
            }));
        eventually("all to run", async || (begun.load(SeqCst) == 5).then_some(())).await?;
        // The worker is stopped while jobs run; they end within its grace period.
        let stopping = tokio::spawn(worker.stop());
        tokio::task::yield_now().await;
        gate.add_permits(5);
        stopping.await??;
    }
    match server.kind {
        "redis" => {
            for key in ["leases", "unbegun", "trials", "sleepers"] {
                let key = format!("test:queue:{{default}}:{key}");
                assert_eq!(server.redis().command(&["EXISTS", &key]).await?, "0", "{key}");
            }
        }
        "postgres" | "mariadb" => {
            let rows = server.sql("select count(*) from scale_queue_workers").await?;
            assert_eq!(rows.trim(), "0");
        }
        _ => {}
    }
    let stats = queue.stats("default").await?;
    assert_eq!((stats.done_total, stats.pushed_total), (20, 20), "what they did is still counted");
    // A worker that crashes now is recovered as if the stopped workers had never existed.
    queue.push_many((0..3).map(|n| Work { n })).await?;
    die_holding(&queue, LEASE, 3).await?;
    let (died, done) = (Instant::now(), Arc::default());
    let worker = run(counting(&queue, &done));
    eventually("the three", async || (done.lock().len() == 3).then_some(())).await?;
    assert!(
        died.elapsed() < Duration::from_secs(10),
        "{:?}: one look of 30 s for each of them would be more",
        died.elapsed()
    );
    worker.stop().await
}

/// A job that crashes its worker is tried alone, and the jobs that ran with it survive.
async fn a_poison_job_dies_and_the_innocent_beside_it_live(server: &Server) -> Result<()> {
    const INNOCENT: usize = 9;
    let queue = server.queue().await?;
    queue.push(Poison).await?;
    queue.push_many((0..INNOCENT).map(|n| Work { n })).await?;
    let (finished, most_failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut crashes = 0;
    loop {
        let poisoned = Arc::new(AtomicBool::new(false));
        let (taken, ends, failed) =
            (Arc::clone(&poisoned), Arc::clone(&finished), Arc::clone(&most_failed));
        let worker =
            Worker::new(&queue).concurrency(INNOCENT + 1).lease(Duration::from_millis(200));
        let worker = run(worker
            .handle(move |_: Poison| {
                taken.store(true, SeqCst);
                std::future::pending::<Result<(), std::io::Error>>()
            })
            .handle(move |_: Work, context: Context| {
                failed.fetch_max(usize::from(context.attempt) - 1, SeqCst);
                let ends = Arc::clone(&ends);
                async move {
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
        worker.kill().await;
        if over {
            break;
        }
        crashes += 1;
        assert!(crashes <= 10, "it is not given up");
    }
    let dead = queue.dead("default", 0, 100).await?;
    assert!(dead.len() == 1 && dead[0].name == "poison", "{dead:?}");
    assert_eq!((dead[0].failed, crashes), (5, 5), "each of its crashes is its own");
    assert!(
        most_failed.load(SeqCst) <= 1,
        "an innocent one paid {} times",
        most_failed.load(SeqCst)
    );
    Ok(())
}

/// Attempts are counted once for started jobs, and not for jobs that were only prefetched or not
/// held.
async fn jobs_that_had_begun_are_counted_once(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    // Fast jobs make the worker prefetch; then one job hangs in each slot, with other jobs leased
    // but not started.
    queue.push_many((0..5_000).map(|n| Work { n })).await?;
    let (done, hang) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, hanging) = (Arc::clone(&done), Arc::clone(&hang));
    let begun: Arc<Mutex<Vec<usize>>> = Arc::default();
    let seen = Arc::clone(&begun);
    let worker = run(Worker::new(&queue).concurrency(20).lease(LEASE).handle(move |job: Work| {
        let hang = hanging.load(SeqCst);
        if hang {
            seen.lock().push(job.n);
        }
        count.fetch_add(1, SeqCst);
        async move {
            if hang {
                std::future::pending::<()>().await;
            }
            Ok::<(), std::io::Error>(())
        }
    }));
    eventually("some to be done", async || (done.load(SeqCst) > 1_000).then_some(())).await?;
    hang.store(true, SeqCst);
    eventually("every place to hang", async || (begun.lock().len() == 20).then_some(())).await?;
    until(&queue, "default", "its acknowledgements", |stats| stats.leased >= 20).await?;
    worker.kill().await;
    let before = queue.stats("default").await?;
    let attempts: Arc<Mutex<Vec<(usize, u16)>>> = Arc::default();
    let seen = Arc::clone(&attempts);
    let worker = run(Worker::new(&queue).concurrency(50).lease(LONG_LEASE).handle(
        move |job: Work, context: Context| {
            seen.lock().push((job.n, context.attempt));
            async { Ok::<(), std::io::Error>(()) }
        },
    ));
    let stats = until(&queue, "default", "all to be done", |stats| {
        stats.done_total == 5_000 && is_empty(stats)
    })
    .await?;
    worker.stop().await?;
    let guilty: Vec<usize> = begun.lock().clone();
    let attempts = attempts.lock().clone();
    for (n, attempt) in &attempts {
        if guilty.contains(n) {
            assert_eq!(*attempt, 2, "{n} had begun");
        }
    }
    let counted = attempts.iter().filter(|(_, attempt)| *attempt > 1).count();
    assert!(counted <= before.leased as usize, "{counted} of {} held", before.leased);
    assert_eq!(stats.failed_total, counted as u64);
    Ok(())
}

/// The same at the level of the store: a worker fetched five jobs and reported that two of them
/// start at once.
async fn what_was_fetched_ahead_is_no_suspect(server: &Server) -> Result<()> {
    use scale_queue::store::{RedisStore, Request, SqlStore, Store, Trial, WorkerId};

    let queue = server.queue().await?;
    queue.push_many((0..5).map(|n| Work { n })).await?;
    let store: Box<dyn Store> = match server.kind {
        "redis" => {
            Box::new(RedisStore::new(scale_redis::Redis::connect(&server.url).await?, "test"))
        }
        _ => Box::new(SqlStore::connect(&server.url, "test").await?),
    };
    let request = |max: usize, trial: Trial| Request {
        done: &[],
        max,
        max_bytes: usize::MAX / 2,
        begins: 2,
        lease: Duration::from_millis(50),
        trial,
        lines: &[],
        unhandled_for: Duration::from_hours(1),
    };
    let (dies, lives): (WorkerId, WorkerId) = ("dies".into(), "lives".into());
    assert_eq!(store.fetch("default", &dies, request(5, Trial::None)).await?.jobs.len(), 5);
    let reclaimed =
        async || store.reclaim("default", &dies).await.ok().filter(|step| step.jobs == 5);
    eventually("the lease to be over", reclaimed).await?;
    assert_eq!(queue.stats("default").await?.failed_total, 2, "the two that had begun");
    let first = store.fetch("default", &lives, request(5, Trial::Next)).await?;
    assert!(first.suspect && first.jobs.len() == 1, "a suspect comes alone");
    let tag = first.jobs[0][1..17].try_into()?;
    let second = store.fetch("default", &lives, request(5, Trial::Running(tag))).await?;
    assert!(
        !second.suspect && second.jobs.len() == 3,
        "those that had not begun are jobs like any other"
    );
    Ok(())
}

/// A suspect that was fetched and waits for its trial has not started: it loses no attempt when
/// another job crashes the worker meanwhile.
async fn a_waiting_suspect_pays_for_nobody(server: &Server) -> Result<()> {
    use scale_queue::store::{RedisStore, Request, SqlStore, Store, Trial, WorkerId};

    let queue = server.queue().await?;
    let store: Box<dyn Store> = match server.kind {
        "redis" => {
            Box::new(RedisStore::new(scale_redis::Redis::connect(&server.url).await?, "test"))
        }
        _ => Box::new(SqlStore::connect(&server.url, "test").await?),
    };
    let request = |max: usize, trial: Trial| Request {
        done: &[],
        max,
        max_bytes: usize::MAX / 2,
        begins: 1,
        lease: Duration::from_millis(50),
        trial,
        lines: &[],
        unhandled_for: Duration::from_hours(1),
    };
    let worker = |name: &str| -> WorkerId { name.into() };
    let reclaimed = async |name: &str, jobs: usize| {
        eventually("the lease to be over", async || {
            store.reclaim("default", &worker(name)).await.ok().filter(|step| step.jobs == jobs)
        })
        .await
    };
    // The worker of the innocent job crashes: the job becomes a suspect.
    queue.push(Work { n: 1 }).await?;
    assert_eq!(
        store.fetch("default", &worker("first"), request(1, Trial::None)).await?.jobs.len(),
        1
    );
    reclaimed("first", 1).await?;
    // The next worker runs the poison job, and fetches the suspect, which waits.
    queue.push(Work { n: 2 }).await?;
    assert_eq!(
        store.fetch("default", &worker("second"), request(1, Trial::None)).await?.jobs.len(),
        1
    );
    let suspect = store.fetch("default", &worker("second"), request(1, Trial::Next)).await?;
    assert!(suspect.suspect);
    let tag: [u8; 16] = suspect.jobs[0][1..17].try_into()?;
    store.fetch("default", &worker("second"), request(0, Trial::Waiting(tag))).await?;
    reclaimed("second", 2).await?;
    assert_eq!(
        store.stats("default").await?.failed_total,
        2,
        "the first crash was the innocent one's, the second was the poison's"
    );
    let next = store.fetch("default", &worker("third"), request(1, Trial::Next)).await?;
    assert!(next.suspect && next.jobs[0][1..17] != tag, "the poison is the suspect now");
    // After the worker has reported that the suspect starts, a crash counts for the suspect.
    let innocent = store.fetch("default", &worker("fourth"), request(1, Trial::Next)).await?;
    assert_eq!(innocent.jobs[0][1..17], tag);
    store.fetch("default", &worker("fourth"), request(0, Trial::Running(tag))).await?;
    reclaimed("fourth", 1).await?;
    assert_eq!(store.stats("default").await?.failed_total, 3);
    Ok(())
}

crate::on_stores! { waiting_on_redis: "redis"; a_waiting_suspect_pays_for_nobody }
crate::on_stores! { waiting_on_postgres: "postgres"; a_waiting_suspect_pays_for_nobody }
crate::on_stores! { waiting_on_mariadb: "mariadb"; a_waiting_suspect_pays_for_nobody }
crate::on_stores! { waiting_on_sqlite: "sqlite"; a_waiting_suspect_pays_for_nobody }
crate::on_stores! { ahead_on_redis: "redis"; what_was_fetched_ahead_is_no_suspect }
crate::on_stores! { ahead_on_postgres: "postgres"; what_was_fetched_ahead_is_no_suspect }
crate::on_stores! { ahead_on_mariadb: "mariadb"; what_was_fetched_ahead_is_no_suspect }
crate::on_stores! { ahead_on_sqlite: "sqlite"; what_was_fetched_ahead_is_no_suspect }

on_every_store! {
    every_job_of_a_large_worker_comes_back,
    a_dead_workers_jobs_do_not_wait_for_the_backlog,
    clean_stops_leave_nothing_behind,
    a_poison_job_dies_and_the_innocent_beside_it_live,
    jobs_that_had_begun_are_counted_once,
}

/// A hash that Redis cannot shrink while it saves: some scan pages are empty although the hash is
/// not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sparse_hash_of_held_jobs_is_emptied() -> Result<()> {
    const HELD: usize = 4_000;
    let server = Server::start("redis").await?;
    let redis = server.redis();
    // A long-running child process of Redis: no hash table is resized meanwhile.
    redis.command(&["CONFIG", "SET", "rdb-key-save-delay", "100000"]).await?;
    let queue = server.queue().await?;
    queue.push_many((0..HELD).map(|n| Work { n })).await?;
    die_holding(&queue, LEASE, HELD).await?;
    redis.command(&["BGSAVE"]).await?;
    let done = Arc::default();
    let worker = run(counting(&server.queue().await?, &done));
    let all =
        |stats: &scale_queue::status::Stats| stats.done_total == HELD as u64 && is_empty(stats);
    until(&queue, "default", "all to be done", all).await?;
    worker.stop().await?;
    assert_eq!(redis.command(&["KEYS", "*held:*"]).await?, "");
    Ok(())
}

/// State left behind by earlier versions: jobs held by a worker that has no lease.
async fn jobs_without_a_lease_are_found(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push_many((0..50).map(|n| Work { n })).await?;
    die_holding(&queue, Duration::from_mins(10), 50).await?;
    match server.kind {
        "redis" => drop(server.redis().command(&["DEL", "test:queue:{default}:leases"]).await?),
        _ => drop(server.sql("delete from scale_queue_workers").await?),
    }
    let done = Arc::default();
    let worker: Running = run(counting(&server.queue().await?, &done));
    until(&queue, "default", "all to be done", |stats| stats.done_total == 50 && is_empty(stats))
        .await?;
    worker.stop().await
}

crate::on_stores! { orphans_of_redis: "redis"; jobs_without_a_lease_are_found }
crate::on_stores! { orphans_of_postgres: "postgres"; jobs_without_a_lease_are_found }
crate::on_stores! { orphans_of_mariadb: "mariadb"; jobs_without_a_lease_are_found }
