//! Faults, none of which loses a job. Each test counts its jobs.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::future::IntoFuture;
use std::io::Write;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::{Log, Note, Slow, log_worker, running};
use futures_util::future::try_join_all;
use redis::AsyncCommands;
use scale_queue::{Chain, Context, Error, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::{Proxy, Redis, RedisSentinel, eventually, helper};

const LEASE: Duration = Duration::from_millis(500);
/// From this number of jobs on, counting takes longer than a lease.
const SLOW: u32 = 1_000_000;

/// A process that is killed when its test ends, even if the test fails.
struct Process(Child);

impl Process {
    fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Starts a worker process: this test binary, running the helper at the end of this file.
fn worker_process(url: &str) -> Result<Process> {
    Ok(Process(
        helper("helper_that_works_until_killed")?
            .env("QUEUE_URL", url)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    ))
}

/// As above, with a wrong wall clock. The monotonic clock is right, because timers depend on it.
fn worker_process_off_by(hours: &str, url: &str) -> Result<Process> {
    let libraries = std::fs::read_dir("/usr/lib")?
        .filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketime.so.1")));
    let library =
        libraries.into_iter().find(|path| path.exists()).context("libfaketime is not installed")?;
    let mut command = helper("helper_that_works_until_killed")?;
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME", hours)
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("QUEUE_URL", url);
    Ok(Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

#[derive(Serialize, Deserialize)]
struct Count {
    n: u32,
}

impl Job for Count {
    const NAME: &'static str = "count";
    const QUEUE: &'static str = "counts";
    const RETRY: Retry = Retry::exponential(20).first(Duration::from_millis(50));
}

/// Returns how often each job was done, by number.
async fn counts(redis: &mut scale_redis::Redis) -> Result<HashMap<String, u32>> {
    let (mut all, mut cursor) = (HashMap::new(), 0_u64);
    // Read in steps: one answer with a hundred thousand entries is too slow on a busy machine.
    loop {
        let step = redis::cmd("HSCAN")
            .arg("counts")
            .arg(cursor)
            .arg("COUNT")
            .arg(1_000)
            .query_async(redis)
            .await?;
        let (next, some): (u64, Vec<(String, u32)>) = step;
        all.extend(some);
        cursor = next;
        if cursor == 0 {
            return Ok(all);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_killed_at_random_lose_no_job() -> Result<()> {
    const JOBS: u32 = 100_000;
    const KILLS: usize = 10;
    let server = Redis::start().await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    queue.push_many((0..JOBS).map(|n| Count { n })).await?;
    let mut workers: Vec<Process> =
        (0..3).map(|_| worker_process(&server.url())).collect::<Result<_>>()?;
    for kill in 0..KILLS {
        let goal = (kill as u64 + 1) * u64::from(JOBS) / (KILLS as u64 + 2);
        eventually("progress", async || {
            (queue.stats("counts").await.ok()?.done_total >= goal).then_some(())
        })
        .await?;
        let victim = &mut workers[fastrand::usize(..3)];
        victim.kill()?;
        *victim = worker_process(&server.url())?;
    }
    eventually("the queue to be empty", async || {
        let stats = queue.stats("counts").await.ok()?;
        (stats.waiting + stats.leased + stats.scheduled == 0).then_some(())
    })
    .await?;
    for worker in &mut workers {
        worker.kill()?;
    }
    let mut redis = scale_redis::Redis::connect(&server.url()).await?;
    let counts = counts(&mut redis).await?;
    assert_eq!(counts.len(), JOBS as usize, "every job was done");
    assert_eq!(queue.stats("counts").await?.dead, 0);
    let repeats: u32 = counts.values().map(|times| times - 1).sum();
    // Jobs in progress at a kill: leased jobs, of which at most 50 × 3 are running or prefetched,
    // and acknowledgements in transit.
    assert!(repeats <= KILLS as u32 * 2_000, "{repeats} repeats");
    println!("{JOBS} jobs, {KILLS} kills: {repeats} repeats, none lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_an_hour_off_make_no_job_early_late_or_somebody_elses() -> Result<()> {
    let server = Redis::start().await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    let url = server.url();
    let mut workers = vec![
        worker_process(&url)?,
        worker_process_off_by("+1h", &url)?,
        worker_process_off_by("-1h", &url)?,
    ];
    eventually("three workers", async || (queue.workers().await.ok()?.len() == 3).then_some(()))
        .await?;
    let began: Vec<u64> = queue.workers().await?.iter().map(|worker| worker.started_ms).collect();
    let spread = began.iter().max().unwrap() - began.iter().min().unwrap();
    assert!(spread < 60_000, "all of them know the time, which is Redis's: {began:?}");

    let (delay, pushed) = (Duration::from_secs(2), Instant::now());
    try_join_all((0..100).map(|n| queue.push(Count { n }).delay(delay).into_future())).await?;
    queue.push_many((100..500).chain(SLOW..SLOW + 60).map(|n| Count { n })).await?;
    let mut redis = scale_redis::Redis::connect(&url).await?;
    let all = loop {
        let counts = counts(&mut redis).await?;
        let early = counts.keys().filter(|n| n.parse().is_ok_and(|n: u32| n < 100)).count();
        assert!(
            early == 0 || pushed.elapsed() >= delay,
            "{early} are early, after {:?}",
            pushed.elapsed()
        );
        if counts.len() == 560 {
            break counts;
        }
        assert!(pushed.elapsed() < Duration::from_secs(30), "{} of 560 are done", counts.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(all.values().all(|times| *times == 1), "a lease was taken from somebody who lives");
    assert_eq!(queue.stats("counts").await?.failed_total, 0);
    for worker in &mut workers {
        worker.kill()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_of_killed_workers_go_on_and_no_link_is_pushed_twice() -> Result<()> {
    const CHAINS: u32 = 200;
    const LINKS: u32 = 50;
    const KILLS: u64 = 8;
    let server = Redis::start().await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    for chain in 0..CHAINS {
        let links = (0..LINKS).map(|link| Count { n: chain * LINKS + link });
        links.fold(queue.chain(), Chain::then).push().await?;
    }
    let all = u64::from(CHAINS * LINKS);
    let mut workers: Vec<Process> =
        (0..3).map(|_| worker_process(&server.url())).collect::<Result<_>>()?;
    for kill in 1..=KILLS {
        let goal = kill * all / (KILLS + 2);
        eventually("progress", async || {
            (queue.stats("counts").await.ok()?.done_total >= goal).then_some(())
        })
        .await?;
        let victim = &mut workers[fastrand::usize(..3)];
        victim.kill()?;
        *victim = worker_process(&server.url())?;
    }
    eventually("every chain to end", async || {
        let stats = queue.stats("counts").await.ok()?;
        (stats.done_total >= all && stats.waiting + stats.leased + stats.scheduled == 0)
            .then_some(())
    })
    .await?;
    for worker in &mut workers {
        worker.kill()?;
    }
    let stats = queue.stats("counts").await?;
    assert_eq!(
        (stats.done_total, stats.dead),
        (all, 0),
        "as many ends as links: none was pushed twice"
    );
    let mut redis = scale_redis::Redis::connect(&server.url()).await?;
    assert_eq!(counts(&mut redis).await?.len() as u64, all, "every link was done");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_redis_is_survived_by_workers_and_pushers() -> Result<()> {
    let server = Redis::start_with(&["--appendfsync", "always"]).await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    let log = Log::default();
    let workers = running((0..2).map(|_| log_worker(&queue, &log).lease(LEASE)));
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        for n in 0..200 {
            let n = round * 1_000 + n;
            if n % 1_000 == 100 {
                server.restart().await?;
            }
            // A failed push may or may not be stored; if it is repeated, its job may be stored
            // twice.
            let push = eventually("a push to succeed", async || queue.push(Note { n }).await.ok());
            push.await?;
            acknowledged.push(n);
        }
    }
    eventually("every acknowledged job", async || {
        let done: std::collections::HashSet<_> = log.all().into_iter().collect();
        acknowledged.iter().all(|n| done.contains(n)).then_some(())
    })
    .await?;
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_is_survived() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let queue = Queue::connect(&group.url(), "test").await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log).lease(LEASE)]);
    queue.push_many((0..100).map(|n| Note { n })).await?;
    log.wait_for(100).await?;
    group.server(0).kill()?;
    eventually("a push on the new master", async || queue.push(Note { n: 1_000 }).await.ok())
        .await?;
    eventually("its end", async || log.all().contains(&1_000).then_some(())).await?;
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_cut_off_for_longer_than_its_lease_is_fenced() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    let distant = Queue::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    let (begun, cancelled) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begins, cancels) = (Arc::clone(&begun), Arc::clone(&cancelled));
    let cut_off = Worker::new(&distant).queues(["slow"]).lease(LEASE).handle(
        move |_: Slow, context: Context| {
            begins.fetch_add(1, SeqCst);
            let cancels = Arc::clone(&cancels);
            // In a separate task, as blocking work would be: it outlives the handler's future and
            // observes the cancellation.
            tokio::spawn(async move {
                context.cancelled().await;
                cancels.fetch_add(1, SeqCst);
            })
        },
    );
    let far = running([cut_off]);
    queue.push(Slow { n: 7 }).await?;
    eventually("the job to begin", async || (begun.load(SeqCst) == 1).then_some(())).await?;
    proxy.cut();

    let log = Log::default();
    let done = log.clone();
    let near = running([Worker::new(&queue).queues(["slow"]).lease(LEASE).handle(
        move |job: Slow, context: Context| {
            assert_eq!(context.attempt, 2, "the lost attempt counts");
            done.add(job.n);
            async { Ok::<(), std::io::Error>(()) }
        },
    )]);
    log.wait_for(1).await?;
    let stats = queue.stats("slow").await?;
    assert_eq!((stats.done_total, stats.waiting), (1, 0));

    proxy.heal();
    eventually("the old attempt to be cancelled", async || {
        (cancelled.load(SeqCst) == 1).then_some(())
    })
    .await?;
    far.stop().await?;
    near.stop().await?;
    let stats = queue.stats("slow").await?;
    assert_eq!(
        (stats.done_total, stats.waiting, stats.scheduled, stats.leased),
        (1, 0, 0, 0),
        "what the old one said was refused"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_lost_on_the_way_leaves_no_job_behind() -> Result<()> {
    let server = Redis::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    let distant = Queue::connect(&format!("redis://127.0.0.1:{}", proxy.port()), "test").await?;
    let log = Log::default();
    // A lease much longer than the test: jobs that were leased without the worker's knowledge can
    // only be found by asking the store for the jobs that the worker holds.
    let workers = running([log_worker(&distant, &log).lease(Duration::from_mins(10))]);
    for n in 0..400 {
        queue.push(Note { n }).await?;
        if n % 40 == 0 {
            proxy.reset();
        }
    }
    log.wait_for(400).await?;
    log.settle(&queue).await?;
    let mut done = log.sorted();
    done.dedup();
    assert_eq!(done.len(), 400);
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_refuses_pushes_and_lets_workers_go_on() -> Result<()> {
    let server =
        Redis::start_with(&["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"]).await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    #[derive(Serialize, Deserialize)]
    struct Big(String);
    impl Job for Big {
        const NAME: &'static str = "big";
        const RETRY: Retry = Retry::exponential(2).first(Duration::from_millis(10));
    }
    let mut stored = 0;
    let error = loop {
        match queue.push(Big("x".repeat(50_000))).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Full), "{error:?}");
    let before = queue.stats("default").await?;
    assert_eq!(before.waiting, stored, "nothing half written");
    assert!(matches!(
        queue.push(Big("x".repeat(50_000))).delay(Duration::from_secs(1)).await,
        Err(Error::Full)
    ));
    // Leases are taken, renewed and settled, failures included, while the store is still full.
    let worker = Worker::new(&queue).lease(LEASE).concurrency(4).handle(
        move |_: Big, context: Context| async move {
            if context.attempt == 1 { Err(std::io::Error::other("once")) } else { Ok(()) }
        },
    );
    let workers = running([worker]);
    eventually("all to be done", async || {
        (queue.stats("default").await.ok()?.done_total == stored).then_some(())
    })
    .await?;
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_bytes_are_buried_with_a_reason() -> Result<()> {
    let server = Redis::start().await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    let mut redis = scale_redis::Redis::connect(&server.url()).await?;
    for junk in [&b"x"[..], b"", &[9; 60], &[1; 60]] {
        redis.rpush::<_, _, ()>("test:queue:{notes}:waiting", junk).await?;
    }
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    queue.push(Note { n: 1 }).await?;
    log.wait_for(1).await?;
    let dead = eventually("three dead", async || {
        queue.dead("notes", 0, 10).await.ok().filter(|d| d.len() == 3)
    })
    .await?;
    assert!(dead.iter().all(|d| d.id.is_none() && d.reason.starts_with("unreadable")), "{dead:?}");
    let newer = queue.jobs("notes", scale_queue::status::State::Blocked, 0, 10).await?;
    assert_eq!(
        newer[0].blocked_by.as_deref(),
        Some("format:9"),
        "it waits for a worker that knows the format"
    );
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_idle_workers_cost_little() -> Result<()> {
    let server = Redis::start().await?;
    let queue = Queue::connect(&server.url(), "test").await?;
    let log = Log::default();
    let workers = running((0..100).map(|_| log_worker(&queue, &log)));
    eventually("all to sleep", async || {
        (server.command(&["ZCARD", "test:queue:{low}:sleepers"]).await.ok()? == "100").then_some(())
    })
    .await?;
    let commands = async || -> Result<u64> {
        let stats = server.command(&["INFO", "commandstats"]).await?;
        let calls =
            |line: &str| line.split_once(":calls=")?.1.split(',').next()?.parse::<u64>().ok();
        Ok(stats.lines().filter_map(calls).sum())
    };
    // Most of the load is subscriptions that check their link, each once a second.
    let (before, time) = (commands().await?, Duration::from_secs(3));
    tokio::time::sleep(time).await;
    let rate = (commands().await? - before) as f64 / time.as_secs_f64();
    assert!(rate <= 120.0, "{rate} commands a second");
    println!("100 idle workers: {rate:.0} commands a second");

    // One push wakes one worker.
    server.command(&["CONFIG", "RESETSTAT"]).await?;
    queue.push(Note { n: 1 }).await?;
    log.wait_for(1).await?;
    log.settle(&queue).await?;
    let looks = server.calls(&["evalsha"]).await?;
    assert!(looks < 10, "{looks} script calls for one job");
    workers.stop().await
}

#[test]
fn helper_that_works_until_killed() -> Result<()> {
    let Ok(url) = std::env::var("QUEUE_URL") else { return Ok(()) };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let queue = Queue::connect(&url, "test").await?;
        let redis = scale_redis::Redis::connect(&url).await?;
        let handler = move |job: Count, _: Context| {
            let mut redis = redis.clone();
            async move {
                if job.n >= SLOW {
                    tokio::time::sleep(LEASE * 2).await;
                }
                redis.hincr::<_, _, _, ()>("counts", job.n, 1).await
            }
        };
        Worker::new(&queue)
            .queues(["counts"])
            .lease(LEASE)
            .concurrency(50)
            .handle(handler)
            .run(std::future::pending::<()>())
            .await?;
        std::io::stdout().flush()?;
        Ok(())
    })
}
