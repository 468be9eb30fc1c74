//! Peers that are Rust crates, with the same measurements as scale-queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use apalis::layers::WorkerBuilderExt;
use apalis::prelude::{BoxDynError, TaskSink, WorkerBuilder};
use apalis_redis::{Config, RedisStorage};
use async_trait::async_trait;
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, WorkerContext, WorkerOptions,
};
use serde::{Deserialize, Serialize};
use testkit::{Postgres, Redis};
use tokio::sync::Notify;

use super::{Small, small};
use crate::measure::each_task;

/// Number of completed jobs, and a notification when all are done.
#[derive(Debug)]
struct Goal {
    done: AtomicUsize,
    count: AtomicUsize,
    reached: Notify,
}

static GOAL: Goal =
    Goal { done: AtomicUsize::new(0), count: AtomicUsize::new(0), reached: Notify::const_new() };

impl Goal {
    fn set(&self, count: usize) {
        self.done.store(0, SeqCst);
        self.count.store(count, SeqCst);
    }

    fn step(&self) {
        if self.done.fetch_add(1, SeqCst) + 1 == self.count.load(SeqCst) {
            self.reached.notify_one();
        }
    }

    /// Waits with a limit: a peer that stalls is reported.
    async fn wait(&self) -> Result<()> {
        let reached = tokio::time::timeout(Duration::from_mins(1), self.reached.notified()).await;
        reached.with_context(|| {
            format!(
                "{} of {} jobs within a minute",
                self.done.load(SeqCst),
                self.count.load(SeqCst)
            )
        })
    }
}

async fn apalis(server: &Redis) -> Result<RedisStorage<Small>> {
    server.command(&["FLUSHALL"]).await?;
    let connection = apalis_redis::connect(server.url()).await?;
    // Batches as large as the prefetch of scale-queue; results are not kept there either.
    let mut config = Config::default().batch_size(1_000);
    config.persist_results = false;
    config.emit_events = false;
    Ok(RedisStorage::new(connection).with_config(config))
}

async fn handle(job: Small) -> Result<(), BoxDynError> {
    std::hint::black_box(job.n + job.text.len());
    GOAL.step();
    Ok(())
}

/// Returns jobs per second of apalis-redis, with one worker and concurrency 100.
pub(super) async fn apalis_process(server: &Redis, count: usize) -> Result<f64> {
    let mut storage = apalis(server).await?;
    for batch in 0..count / 1_000 {
        let jobs = (0..1_000).map(|n| small(batch * 1_000 + n)).collect();
        storage.push_bulk(jobs).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    }
    GOAL.set(count);
    let worker = WorkerBuilder::new("bench").backend(storage).concurrency(100).build(handle);
    let start = Instant::now();
    let running = tokio::spawn(worker.run_until(async {
        std::future::pending::<()>().await;
        Ok::<(), std::io::Error>(())
    }));
    let reached = GOAL.wait().await;
    let took = start.elapsed();
    running.abort();
    reached?;
    Ok(count as f64 / took.as_secs_f64())
}

/// Returns pushes per second, a thousand jobs at a time.
pub(super) async fn apalis_push_bulk(server: &Redis, count: usize) -> Result<f64> {
    let mut storage = apalis(server).await?;
    let start = Instant::now();
    for batch in 0..count / 1_000 {
        let jobs = (0..1_000).map(|n| small(batch * 1_000 + n)).collect();
        storage.push_bulk(jobs).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Returns pushes per second, one job at a time from a hundred tasks.
pub(super) async fn apalis_push_one(server: &Redis, count: usize) -> Result<f64> {
    let storage = apalis(server).await?;
    let start = Instant::now();
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let mut storage = storage.clone();
            tokio::spawn(async move {
                for n in 0..count / 100 {
                    storage.push(small(n)).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
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

type SidekiqPool = bb8::Pool<sidekiq::RedisConnectionManager>;

#[derive(Clone)]
struct SmallWorker;

#[async_trait]
impl sidekiq::Worker<Small> for SmallWorker {
    async fn perform(&self, job: Small) -> sidekiq::Result<()> {
        std::hint::black_box(job.n + job.text.len());
        GOAL.step();
        Ok(())
    }
}

/// Number of connections: one for each worker, and some for the pushes.
async fn sidekiq(server: &Redis) -> Result<SidekiqPool> {
    server.command(&["FLUSHALL"]).await?;
    Ok(bb8::Pool::builder()
        .max_size(120)
        .build(sidekiq::RedisConnectionManager::new(server.url())?)
        .await?)
}

async fn sidekiq_push(pool: &SidekiqPool, count: usize) -> Result<f64> {
    each_task(100, count, |_, count| {
        let pool = pool.clone();
        async move {
            for n in 0..count {
                <SmallWorker as sidekiq::Worker<Small>>::perform_async(&pool, small(n)).await?;
            }
            Ok(())
        }
    })
    .await
}

/// Returns pushes per second of rusty-sidekiq, one job at a time from a hundred tasks, because it
/// supports no other way.
pub(super) async fn sidekiq_push_one(server: &Redis, count: usize) -> Result<f64> {
    sidekiq_push(&sidekiq(server).await?, count).await
}

/// Returns jobs per second of rusty-sidekiq, with a hundred workers.
pub(super) async fn sidekiq_process(server: &Redis, count: usize) -> Result<f64> {
    let pool = sidekiq(server).await?;
    sidekiq_push(&pool, count).await?;
    GOAL.set(count);
    let processor = sidekiq::Processor::new(pool, vec!["default".into()]);
    let mut processor = processor.with_config(sidekiq::ProcessorConfig::default().num_workers(100));
    processor.register(SmallWorker);
    let stop = processor.get_cancellation_token();
    let start = Instant::now();
    let running = tokio::spawn(processor.run());
    let reached = GOAL.wait().await;
    let took = start.elapsed();
    stop.cancel();
    running.abort();
    reached?;
    Ok(count as f64 / took.as_secs_f64())
}

#[derive(Clone, Serialize, Deserialize)]
struct GraphileSmall {
    n: usize,
    text: String,
}

impl TaskHandler for GraphileSmall {
    const IDENTIFIER: &'static str = "small";

    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        std::hint::black_box(self.n + self.text.len());
        GOAL.step();
        Ok::<(), String>(())
    }
}

/// Returns jobs per second of graphile_worker, with its local queue, as its guide advises for
/// throughput.
pub(super) async fn graphile_process(server: &Postgres, count: usize) -> Result<f64> {
    server.node(0).sql("drop schema if exists graphile cascade").await?;
    let options = WorkerOptions::default()
        .database_url(&server.node(0).url())
        .concurrency(100)
        .schema("graphile");
    let options = options
        .define_job::<GraphileSmall>()
        .local_queue(LocalQueueConfig::default().with_size(500));
    let worker = Arc::new(options.init().await?);
    let (utils, spec) = (worker.create_utils(), JobSpec::default());
    for batch in 0..count / 1_000 {
        let jobs: Vec<_> = (0..1_000)
            .map(|n| {
                let Small { n, text } = small(batch * 1_000 + n);
                (GraphileSmall { n, text }, &spec)
            })
            .collect();
        utils.add_jobs::<GraphileSmall>(&jobs).await?;
    }
    GOAL.set(count);
    let start = Instant::now();
    let running = Arc::clone(&worker);
    let running =
        tokio::spawn(async move { running.run().await.map_err(|error| error.to_string()) });
    let reached = GOAL.wait().await;
    let took = start.elapsed();
    worker.request_shutdown();
    let _ = tokio::time::timeout(Duration::from_secs(10), running).await;
    reached?;
    Ok(count as f64 / took.as_secs_f64())
}
