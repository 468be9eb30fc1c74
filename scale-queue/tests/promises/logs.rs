//! Log lines of jobs, on every store.

use std::time::Duration;

use anyhow::Result;
use scale_queue::{Context, Job, JobId, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

#[derive(Serialize, Deserialize)]
struct Talk(u32);

impl Job for Talk {
    const NAME: &'static str = "talk";
    const RETRY: Retry = Retry::custom(2, |_| Duration::from_millis(1));
}

on_every_store! { lines_outlive_failures_and_crashes, lines_are_bounded }

fn worker(queue: &Queue) -> Worker {
    let worker = Worker::new(queue).keep_logs(Duration::from_hours(1));
    worker.lease(Duration::from_millis(500)).handle(|Talk(lines): Talk, context: Context| {
        let is_first = context.attempt == 1;
        async move {
            for n in 0..lines {
                context.log(&format!("line {n} of attempt {}", context.attempt));
            }
            match lines {
                // Its worker is killed.
                1 if is_first => std::future::pending().await,
                _ if is_first => Err("not yet"),
                _ => Ok(()),
            }
        }
    })
}

async fn texts(queue: &Queue, id: JobId) -> Result<Vec<String>> {
    let lines = queue.log(Talk::NAME, id).await?;
    Ok(lines.into_iter().map(|line| line.text).collect())
}

async fn lines_outlive_failures_and_crashes(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let doomed = run(worker(&queue));
    let killed = queue.push(Talk(1)).await?;
    // Written while the job runs.
    let written = async || (texts(&queue, killed.id).await.ok()?.len() == 1).then_some(());
    eventually("a line", written).await?;
    doomed.kill().await;
    let worker = run(worker(&queue));
    let failed = queue.push(Talk(2)).await?;
    until(&queue, "default", "both jobs", is_empty).await?;
    assert_eq!(texts(&queue, killed.id).await?, ["line 0 of attempt 1", "line 0 of attempt 2"]);
    let lines = queue.log(Talk::NAME, failed.id).await?;
    assert_eq!(lines.iter().map(|line| line.attempt).collect::<Vec<_>>(), [1, 1, 2, 2]);
    assert!(lines.is_sorted_by_key(|line| line.at_ms));
    worker.stop().await
}

async fn lines_are_bounded(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let worker = run(worker(&queue));
    let pushed = queue.push(Talk(10_000)).await?;
    until(&queue, "default", "the job", is_empty).await?;
    let lines = texts(&queue, pushed.id).await?;
    assert!((500..2_000).contains(&lines.len()), "{}", lines.len());
    assert_eq!(lines.last().unwrap(), "line 9999 of attempt 2", "the newest stay");
    worker.stop().await
}
