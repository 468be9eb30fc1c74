//! Log lines of jobs, on every store.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::outcome::Snooze;
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

on_every_store! {
    lines_outlive_failures_and_crashes,
    lines_are_bounded,
    no_line_of_a_short_run_is_lost,
}

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

/// Jobs that snooze keep the lines of earlier runs; those that end during a write lose none.
async fn no_line_of_a_short_run_is_lost(server: &Server) -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Nap(u64);
    impl Job for Nap {
        const NAME: &'static str = "nap";
    }
    const JOBS: usize = 40;
    let queue = server.queue().await?;
    let naps = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&naps);
    let worker = Worker::new(&queue).keep_logs(Duration::from_hours(1)).concurrency(JOBS);
    let worker = worker.handle(move |Nap(n): Nap, context: Context| {
        let is_first = seen.lock().insert(n);
        async move {
            context.log(if is_first { "first" } else { "second" });
            // About when lines are written.
            tokio::time::sleep(Duration::from_millis(1_960 + 2 * n)).await;
            if is_first { Err(Snooze::after(Duration::ZERO)) } else { Ok(()) }
        }
    });
    let worker = run(worker);
    let pushed = queue.push_many((0..JOBS as u64).map(Nap)).await?;
    until(&queue, "default", "all jobs", is_empty).await?;
    for job in pushed {
        let lines = queue.log(Nap::NAME, job.id).await?;
        let lines: Vec<_> = lines.iter().map(|line| &*line.text).collect();
        assert_eq!(lines, ["first", "second"]);
    }
    worker.stop().await
}
