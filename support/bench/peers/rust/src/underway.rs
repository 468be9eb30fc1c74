//! Jobs per second of underway, a hundred at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Notify;
use underway::{Job, To};

#[derive(Serialize, Deserialize)]
struct Small {
    n: usize,
    text: String,
}

fn small(n: usize) -> Small {
    Small { n, text: "a payload of about a hundred bytes, which is what most jobs \
        carry around".into() }
}

#[tokio::main]
pub async fn run(url: &str, count: usize) -> Result<f64> {
    // Each job holds a connection while it runs.
    let pool = PgPoolOptions::new().max_connections(20).connect(url).await?;
    sqlx::query("drop schema if exists underway cascade").execute(&pool).await?;
    sqlx::query("drop table if exists _sqlx_migrations").execute(&pool).await?;
    underway::run_migrations(&pool).await?;
    let (done, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counter, finished) = (Arc::clone(&done), Arc::clone(&all));
    let job = Job::builder()
        .step(move |_, job: Small| {
            std::hint::black_box(job.n + job.text.len());
            if counter.fetch_add(1, SeqCst) + 1 == count {
                finished.notify_one();
            }
            async { To::done() }
        })
        .name("small")
        .pool(pool)
        .build()
        .await?;
    for n in 0..count {
        job.enqueue(&small(n)).await?;
    }
    let mut worker = job.worker();
    worker.set_concurrency_limit(100);
    let start = Instant::now();
    let running = tokio::spawn(
        async move { worker.run().await.map_err(|error| error.to_string()) }
    );
    let reached = tokio::time::timeout(Duration::from_secs(60), all.notified()).await;
    let took = start.elapsed();
    running.abort();
    reached.with_context(|| format!("{} of {count} jobs within a minute", done.load(SeqCst)))?;
    Ok(count as f64 / took.as_secs_f64())
}
