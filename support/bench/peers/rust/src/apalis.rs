//! Jobs per second of apalis on SQLite, a hundred at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use apalis::layers::WorkerBuilderExt;
use apalis::prelude::{BoxDynError, Data, TaskSink, WorkerBuilder};
use apalis_sqlite::{Config, SqliteStorage};
use serde::{Deserialize, Serialize};
use sqlx_9::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};
use tokio::sync::Notify;

#[derive(Serialize, Deserialize)]
struct Small {
    n: usize,
    text: String,
}

fn small(n: usize) -> Small {
    Small { n, text: "a payload of about a hundred bytes, which is what most jobs \
        carry around".into() }
}

struct Goal {
    done: AtomicUsize,
    count: usize,
    reached: Notify,
}

async fn handle(job: Small, goal: Data<Arc<Goal>>) -> Result<(), BoxDynError> {
    std::hint::black_box(job.n + job.text.len());
    if goal.done.fetch_add(1, SeqCst) + 1 == goal.count {
        goal.reached.notify_one();
    }
    Ok(())
}

#[tokio::main]
pub async fn run(path: &str, count: usize) -> Result<f64> {
    // As in scale-queue: a write-ahead log, and commits that wait for the disk.
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let pool = SqlitePool::connect_with(options).await?;
    SqliteStorage::setup(&pool).await?;
    // Batches as large as the prefetch of scale-queue; results are not kept there either.
    let config = Config { batch_size: 1_000, persist_results: false, ..Config::default() };
    let mut storage = SqliteStorage::new(&pool).with_config(config);
    for first in (0..count).step_by(1_000) {
        let jobs = (first..count.min(first + 1_000)).map(small).collect();
        storage.push_bulk(jobs).await.map_err(|error| anyhow!("{error:?}"))?;
    }
    let goal = Arc::new(Goal { done: AtomicUsize::new(0), count, reached: Notify::new() });
    let worker = WorkerBuilder::new("bench")
        .backend(storage)
        .data(Arc::clone(&goal))
        .concurrency(100)
        .build(handle);
    let start = Instant::now();
    let running = tokio::spawn(
        async move { worker.run().await.map_err(|error| error.to_string()) }
    );
    let reached = tokio::time::timeout(Duration::from_secs(60), goal.reached.notified()).await;
    let took = start.elapsed();
    running.abort();
    reached.with_context(|| format!("{} of {count} jobs within a minute", goal.done.load(SeqCst)))?;
    Ok(count as f64 / took.as_secs_f64())
}
