//! Jobs: one Redis, one process per subject, the same job (decode a small payload, count it),
//! at-least-once settings.
//!
//! | subject | set up as | what it promises |
//! | --- | --- | --- |
//! | `scale-queue` | one worker, concurrency 100 | leases by worker, fenced acknowledgement, attempt counted on a crash |
//! | `apalis-redis` | 1.0, one worker, concurrency 100, batches of 1,000, no results kept, no events | locks by job, orphans reclaimed by heartbeat |
//! | `laravel` | `RedisQueue` with phpredis, one process as PHP is, a pop and a delete for each job, without `queue:work`'s events and signals | reserved jobs return after 90 s |
//! | `sidekiq` | Debian's 6.4, one process of ten threads, its default | nothing: a job that runs in a killed process is lost |
//! | `rusty-sidekiq` | a hundred workers, a connection each; it pushes one job at a time | the same |
//! | `apalis-sqlite` | 1.0 in a separate process, a file with WAL and `synchronous=full` as for scale-queue, concurrency 100, batches of 1,000, no results kept | tasks locked by row, orphans reclaimed by heartbeat |
//! | `graphile_worker` | Postgres, concurrency 100, its local queue of 500 | `skip locked`, attempts counted at the start |
//! | `underway` | the same Postgres, 0.2 in a separate process, concurrency 100 over 20 connections | one transaction a job, held while it runs |
//! | `bullmq` | one worker, concurrency 100, `removeOnComplete`, `addBulk` by 1,000 | locks by job, stalled check every 30 s |
//!
//! `sql_process` is the same on one Postgres with `fsync` off, as started by the testkit, for all
//! subjects, each of which creates its tables again; `scale-queue-mariadb` uses a MariaDB that does
//! not wait for the disk either.
//!
//! `process` measures from the start of the worker to the end of the last job; all jobs are pushed
//! before.

mod peers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use scale_queue::{Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use testkit::{MariaDb, Postgres, Redis};
use tokio::sync::{Notify, mpsc};

use crate::Effort;
use crate::measure::{Better, Case};
use crate::peer;
use crate::report::Report;

#[derive(Clone, Serialize, Deserialize)]
struct Small {
    n: usize,
    text: String,
}

impl Job for Small {
    const NAME: &'static str = "small";
}

fn small(n: usize) -> Small {
    Small {
        n,
        text: "a payload of about a hundred bytes, which is what most jobs carry around".into(),
    }
}

/// Returns jobs per second, for `count` waiting jobs with `backlog` more behind them.
async fn process(queue: &Queue, count: usize) -> Result<f64> {
    let (done, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counter, finished) = (Arc::clone(&done), Arc::clone(&all));
    let worker = Worker::new(queue).concurrency(100).handle(move |job: Small| {
        let (counter, finished) = (Arc::clone(&counter), Arc::clone(&finished));
        async move {
            std::hint::black_box(job.n + job.text.len());
            if counter.fetch_add(1, SeqCst) + 1 == count {
                finished.notify_one();
            }
            Ok::<(), std::io::Error>(())
        }
    });
    let start = Instant::now();
    let mut took = Duration::ZERO;
    worker
        .run(async {
            all.notified().await;
            took = start.elapsed();
        })
        .await?;
    Ok(count as f64 / took.as_secs_f64())
}

async fn fresh(server: &Redis) -> Result<Queue> {
    server.command(&["FLUSHALL"]).await?;
    Ok(Queue::connect(&server.url(), "bench").await?)
}

async fn process_fresh(server: &Redis, count: usize) -> Result<f64> {
    let queue = fresh(server).await?;
    queue.push_many((0..count).map(small)).await?;
    process(&queue, count).await
}

/// Returns jobs per second on Postgres, in a separate schema, as for the peers.
async fn sql_process(server: &Postgres, count: usize) -> Result<f64> {
    server.node(0).sql("drop schema if exists ours cascade; create schema ours").await?;
    let url = format!("{}?options=-csearch_path%3Dours", server.node(0).url());
    let queue = Queue::builder(&url, "bench").migrate(true).connect().await?;
    queue.push_many((0..count).map(small)).await?;
    process(&queue, count).await
}

/// Returns jobs per second on a MariaDB, whose commits do not wait for the disk either.
async fn mariadb_process(server: &MariaDb, count: usize) -> Result<f64> {
    server.node(0).sql("drop database if exists ours; create database ours").await?;
    let url = server.node(0).url();
    let (address, _) = url.rsplit_once('/').context("a database")?;
    let url = format!("{address}/ours");
    let queue = Queue::builder(&url, "bench").migrate(true).connect().await?;
    queue.push_many((0..count).map(small)).await?;
    process(&queue, count).await
}

/// Returns jobs per second on an SQLite file, whose commits wait for the disk, as by default.
async fn sqlite_process(count: usize) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let queue =
        Queue::connect(&format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display()), "bench")
            .await?;
    for batch in 0..count / 1_000 {
        queue.push_many((0..1_000).map(|n| small(batch * 1_000 + n))).await?;
    }
    process(&queue, count).await
}

async fn sqlite_peer(count: usize) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("jobs.db").display().to_string();
    peer::rust(["apalis".into(), file, count.to_string()]).await
}

/// Returns jobs per second with a constant backlog: completed jobs are pushed again behind it.
pub(super) async fn process_behind(server: &Redis, backlog: usize, count: usize) -> Result<f64> {
    let queue = Queue::connect(&server.url(), "bench").await?;
    let waiting = queue.stats("default").await?.waiting as usize;
    if waiting > backlog {
        server.command(&["FLUSHALL"]).await?;
    }
    let queue = Queue::connect(&server.url(), "bench").await?;
    let waiting = queue.stats("default").await?.waiting as usize;
    queue.push_many((0..(backlog + count).saturating_sub(waiting)).map(small)).await?;
    process(&queue, count).await
}

async fn push_bulk(server: &Redis, count: usize) -> Result<f64> {
    let queue = fresh(server).await?;
    let start = Instant::now();
    for batch in 0..count / 1_000 {
        queue.push_many((0..1_000).map(|n| small(batch * 1_000 + n))).await?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Returns pushes per second, of a hundred tasks that push one job at a time.
async fn push_one(server: &Redis, count: usize) -> Result<f64> {
    let queue = fresh(server).await?;
    let start = Instant::now();
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move {
                for n in 0..count / 100 {
                    queue.push(small(n)).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Returns the time from a push to an idle worker to the start of the handler, in ms, at the given
/// percentile.
async fn pickup(server: &Redis, count: usize, percentile: f64) -> Result<f64> {
    let queue = fresh(server).await?;
    let (sender, mut begun) = mpsc::unbounded_channel();
    let worker = Worker::new(&queue).handle(move |_: Small| {
        let _ = sender.send(Instant::now());
        async { Ok::<(), std::io::Error>(()) }
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(worker.run(async {
        let _ = stopped.await;
    }));
    let mut times = Vec::new();
    for n in 0..count {
        testkit::eventually("the worker to sleep", async || {
            (server.command(&["ZCARD", "bench:queue:{default}:sleepers"]).await.ok()? == "1")
                .then_some(())
        })
        .await?;
        let start = Instant::now();
        queue.push(small(n)).await?;
        if let Some(at) = begun.recv().await {
            times.push(at.duration_since(start).as_secs_f64() * 1e3);
        }
    }
    drop(stop);
    running.await??;
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[((times.len() - 1) as f64 * percentile) as usize])
}

/// Returns the Redis memory for one waiting job of 100 bytes.
async fn memory(server: &Redis, count: usize) -> Result<f64> {
    let queue = fresh(server).await?;
    let used = async || -> Result<f64> {
        let info = server.command(&["INFO", "memory"]).await?;
        Ok(info
            .lines()
            .find_map(|l| l.strip_prefix("used_memory:"))
            .unwrap_or_default()
            .trim()
            .parse()?)
    };
    let before = used().await?;
    queue.push_many((0..count).map(small)).await?;
    Ok((used().await? - before) / count as f64)
}

/// Returns the Redis commands for one job, including those inside scripts.
async fn commands(server: &Redis, count: usize) -> Result<f64> {
    let queue = fresh(server).await?;
    queue.push_many((0..count).map(small)).await?;
    server.command(&["CONFIG", "RESETSTAT"]).await?;
    process(&queue, count).await?;
    let stats = server.command(&["INFO", "commandstats"]).await?;
    let calls = |line: &str| line.split_once(":calls=")?.1.split(',').next()?.parse::<f64>().ok();
    Ok(stats.lines().filter_map(calls).sum::<f64>() / count as f64)
}

pub(crate) async fn run(effort: Effort) -> Result<Report> {
    let mut report = Report::new("queue");
    // A Redis that does not wait for a disk, as in the measurements of the peers' own docs.
    let server = Redis::start_with(&["--appendonly", "no"]).await?;
    let big = Redis::start_with(&["--appendonly", "no"]).await?;
    let (s, count) = (&server, 50_000 * effort.scale);
    let arguments =
        |case: &str, count: usize| [case.to_owned(), server.port().to_string(), count.to_string()];
    let bull = |case, count| {
        let arguments = arguments(case, count);
        move || peer::node("bullmq.js", arguments.clone())
    };
    let php = |case, count| {
        let arguments = arguments(case, count);
        move || peer::laravel("queue.php", arguments.clone())
    };
    let sidekiq = |case, count| {
        let arguments = arguments(case, count);
        move || peer::ruby("sidekiq.rb", arguments.clone())
    };
    let quarter = count / 4;
    Case::new("process", "jobs/s", Better::Higher)
        .subject("scale-queue", move || process_fresh(s, count))
        .subject("bullmq", bull("process", quarter))
        .target(8.0)
        // Few at a time: with 10,000 waiting jobs it was observed to stall.
        .subject("apalis-redis", move || peers::apalis_process(s, 5_000))
        .subject("laravel", php("process", count / 10))
        .subject("sidekiq", sidekiq("process", count / 10))
        .subject("rusty-sidekiq", move || peers::sidekiq_process(s, count / 10))
        .measure(effort, &mut report)
        .await;
    Case::new("push_bulk", "pushes/s", Better::Higher)
        .subject("scale-queue", move || push_bulk(s, count))
        .subject("bullmq", bull("push_bulk", quarter))
        .target(8.0)
        .subject("apalis-redis", move || peers::apalis_push_bulk(s, quarter))
        .subject("laravel", php("push_bulk", quarter))
        .subject("sidekiq", sidekiq("push_bulk", quarter))
        .measure(effort, &mut report)
        .await;
    Case::new("push_one", "pushes/s", Better::Higher)
        .subject("scale-queue", move || push_one(s, count))
        .subject("bullmq", bull("push_one", quarter))
        .subject("apalis-redis", move || peers::apalis_push_one(s, quarter))
        .subject("laravel", php("push_one", count / 10))
        .subject("sidekiq", sidekiq("push_one", count / 10))
        .subject("rusty-sidekiq", move || peers::sidekiq_push_one(s, count / 10))
        .measure(effort, &mut report)
        .await;
    let pickups = 100 * effort.scale;
    Case::new("pickup_p50", "ms", Better::Lower)
        .subject("scale-queue", move || pickup(s, pickups, 0.5))
        .turns(1)
        .measure(effort, &mut report)
        .await;
    Case::new("pickup_p99", "ms", Better::Lower)
        .subject("scale-queue", move || pickup(s, pickups, 0.99))
        .subject("bullmq", bull("pickup_p99", pickups))
        .measure(effort, &mut report)
        .await;
    let (postgres, mariadb) = (Postgres::start(0).await?, MariaDb::start(0).await?);
    let (p, m, few) = (&postgres, &mariadb, 10_000 * effort.scale);
    let url = postgres.node(0).url();
    Case::new("sql_process", "jobs/s", Better::Higher)
        .subject("scale-queue", move || sql_process(p, few))
        .subject("scale-queue-mariadb", move || mariadb_process(m, few))
        .subject("graphile_worker", move || peers::graphile_process(p, few))
        .subject("underway", move || {
            peer::rust(["underway".into(), url.clone(), (few / 10).to_string()])
        })
        .measure(effort, &mut report)
        .await;
    Case::new("sqlite_process", "jobs/s", Better::Higher)
        .subject("scale-queue", move || sqlite_process(few))
        .subject("apalis-sqlite", move || sqlite_peer(few))
        .measure(effort, &mut report)
        .await;
    let b = &big;
    Case::new("backlog_1m", "jobs/s", Better::Higher)
        .subject("scale-queue", move || process_behind(b, 1_000_000, count))
        .subject("backlog_1k", move || process_behind(s, 1_000, count))
        .target(0.9)
        .measure(effort, &mut report)
        .await;
    Case::new("memory", "bytes/job", Better::Lower)
        .subject("scale-queue", move || memory(s, 100_000))
        .turns(1)
        .measure(effort, &mut report)
        .await;
    Case::new("commands", "per job", Better::Lower)
        .subject("scale-queue", move || commands(s, count))
        .turns(1)
        .measure(effort, &mut report)
        .await;
    Ok(report)
}
