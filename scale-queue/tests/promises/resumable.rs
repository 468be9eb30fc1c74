//! Jobs that go on where they were: after a stop, a crash, a failure and a revival, on every store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::worker::{BoxError, CheckpointError, Step};
use scale_queue::{Context, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;
use tokio::sync::mpsc;

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

#[derive(Serialize, Deserialize)]
struct Import(String);

impl Job for Import {
    const NAME: &'static str = "import";
    const RETRY: Retry = Retry::custom(2, |_| Duration::from_millis(1));

    fn unique_key(&self) -> Option<String> {
        Some(self.0.clone())
    }
}

#[derive(Serialize, Deserialize)]
struct After;

impl Job for After {
    const NAME: &'static str = "after";
    const QUEUE: &'static str = "after";
}

on_every_store! {
    a_stopped_job_goes_on_where_it_was,
    a_crash_loses_no_checkpoint,
    failures_and_revivals_keep_the_checkpoint,
    a_checkpoint_without_the_lease_is_refused,
    steps_are_done_once,
    an_attempt_that_is_over_stores_no_checkpoint,
    each_step_keeps_its_cursor,
}

/// Waits until the worker is stopped.
async fn stopped(context: &Context) {
    while !context.is_stopping() {
        tokio::task::yield_now().await;
    }
}

/// Runs of jobs: the attempt, and the cursor with which it began.
type Runs = Arc<Mutex<Vec<(u16, Option<u32>)>>>;

/// Number of runs that wait for a stop, in all workers of a test.
type Reached = Arc<AtomicUsize>;

/// Starts a worker whose jobs count from their cursor to `end`, and wait for a stop after `stop_at`
/// rows.
fn counting(queue: &Queue, (runs, reached): (&Runs, &Reached), stop_at: u32, end: u32) -> Worker {
    let (runs, reached) = (Arc::clone(runs), Arc::clone(reached));
    let lease = Duration::from_millis(300);
    Worker::new(queue).lease(lease).handle(move |_: Import, context: Context| {
        let (runs, reached) = (Arc::clone(&runs), Arc::clone(&reached));
        async move {
            let first: Option<u32> = context.cursor()?;
            runs.lock().push((context.attempt, first));
            for row in first.unwrap_or(0)..end {
                if row == stop_at {
                    reached.fetch_add(1, SeqCst);
                    stopped(&context).await;
                }
                context.checkpoint(&(row + 1)).await?;
            }
            Ok::<(), anyhow::Error>(())
        }
    })
}

async fn a_stopped_job_goes_on_where_it_was(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let (runs, reached) = (Runs::default(), Reached::default());
    queue.push(Import("a".into())).await?;
    let id = queue.batch().job(Import("b".into())).then(After).push().await?;
    queue.chain().then(Import("c".into())).then(After).push().await?;
    // Three deploys, each in the midst of the three jobs.
    for deploy in 0..3 {
        let worker = run(counting(&queue, (&runs, &reached), deploy * 10 + 5, 100));
        eventually("the jobs to be under way", async || {
            (reached.load(SeqCst) == (deploy as usize + 1) * 3).then_some(())
        })
        .await?;
        worker.stop().await?;
        let stats = queue.stats("default").await?;
        assert_eq!((stats.waiting, stats.leased, stats.failed_total), (3, 0, 0), "{stats:?}");
        assert!(!queue.push(Import("a".into())).await?.is_new, "the key is still held");
    }
    let worker = run(counting(&queue, (&runs, &reached), u32::MAX, 30));
    until(&queue, "default", "all jobs", is_empty).await?;
    worker.stop().await?;
    // The checkpoint that fails because of the stop stores its cursor.
    let expected = [None, Some(6), Some(16), Some(26)];
    for (run, runs) in runs.lock().chunks(3).enumerate() {
        assert_eq!(runs, [(1, expected[run]); 3], "no attempt is counted");
    }
    assert_eq!(queue.batch_status(&id).await?.map(|status| status.done), Some(1));
    assert_eq!(queue.stats("after").await?.waiting, 2, "one follows the batch, one the chain");
    Ok(())
}

async fn a_crash_loses_no_checkpoint(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let runs = Runs::default();
    queue.push(Import("a".into())).await?;
    let (told, mut stored) = mpsc::unbounded_channel();
    let lease = Duration::from_millis(300);
    let dying = Worker::new(&queue).lease(lease).handle(move |_: Import, context: Context| {
        let told = told.clone();
        async move {
            for row in 1..=7_u32 {
                context.checkpoint(&row).await?;
            }
            told.send(()).unwrap();
            std::future::pending::<Result<(), CheckpointError>>().await
        }
    });
    let dying = run(dying);
    stored.recv().await.unwrap();
    dying.kill().await;
    let worker = run(counting(&queue, (&runs, &Reached::default()), u32::MAX, 9));
    until(&queue, "default", "the job", |stats| stats.done_total == 1).await?;
    worker.stop().await?;
    assert_eq!(*runs.lock(), [(2, Some(7))], "the attempt of the crash is counted");
    Ok(())
}

async fn failures_and_revivals_keep_the_checkpoint(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let runs = Runs::default();
    let seen = Arc::clone(&runs);
    queue.push(Import("a".into())).await?;
    let worker = Worker::new(&queue).handle(move |_: Import, context: Context| {
        let first: u32 = context.cursor().unwrap().unwrap_or(0);
        seen.lock().push((context.attempt, Some(first)));
        async move {
            context.checkpoint(&(first + 1)).await?;
            if first < 2 { Err(BoxError::from("not yet")) } else { Ok(()) }
        }
    });
    let worker = run(worker);
    let dead =
        eventually("a death", async || queue.dead("default", 0, 1).await.ok()?.pop()).await?;
    assert!(queue.revive("default", &dead).await?);
    until(&queue, "default", "the job", |stats| stats.done_total == 1).await?;
    worker.stop().await?;
    assert_eq!(*runs.lock(), [(1, Some(0)), (2, Some(1)), (1, Some(2))]);
    Ok(())
}

/// A worker that is thought dead cannot overwrite the progress of the next one.
async fn a_checkpoint_without_the_lease_is_refused(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push(Import("a".into())).await?;
    let (told, mut contexts) = mpsc::unbounded_channel();
    let worker = || {
        let told = told.clone();
        let lease = Duration::from_millis(300);
        Worker::new(&queue).lease(lease).handle(move |_: Import, context: Context| {
            let told = told.clone();
            async move {
                told.send(context).unwrap();
                std::future::pending::<()>().await;
            }
        })
    };
    let first = run(worker());
    let old = contexts.recv().await.unwrap();
    first.kill().await;
    let second = run(worker());
    let new = contexts.recv().await.unwrap();
    assert!(matches!(old.checkpoint(&1).await, Err(CheckpointError::LeaseLost)));
    new.checkpoint(&2).await?;
    assert!(matches!(old.checkpoint(&3).await, Err(CheckpointError::LeaseLost)));
    second.kill().await;
    let third = run(worker());
    let last = contexts.recv().await.unwrap();
    assert_eq!(last.cursor::<u32>()?, Some(2));
    third.kill().await;
    Ok(())
}

async fn steps_are_done_once(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push(Import("a".into())).await?;
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let worker = || {
        let log = Arc::clone(&log);
        Worker::new(&queue).handle(move |_: Import, context: Context| {
            let log = Arc::clone(&log);
            async move {
                let add = |line: String| log.lock().push(line);
                context
                    .step("fetch", async |_| {
                        add("fetch".into());
                        Ok::<(), BoxError>(())
                    })
                    .await?;
                context
                    .step("rows", async |step: Step| {
                        let first = step.cursor()?.unwrap_or(0);
                        add(format!("rows from {first}"));
                        for row in first..20 {
                            if row == 10 && first == 0 {
                                add("row 10".into());
                                stopped(&context).await;
                            }
                            step.checkpoint(&(row + 1)).await?;
                        }
                        Ok::<(), BoxError>(())
                    })
                    .await?;
                context
                    .step("clean up", async |step: Step| {
                        assert_eq!(step.cursor::<u32>()?, None, "of another step");
                        add("clean up".into());
                        Ok::<(), BoxError>(())
                    })
                    .await
            }
        })
    };
    let first = run(worker());
    eventually("the second step", async || (log.lock().len() == 3).then_some(())).await?;
    first.stop().await?;
    let second = run(worker());
    until(&queue, "default", "the job", |stats| stats.done_total == 1).await?;
    second.stop().await?;
    assert_eq!(*log.lock(), ["fetch", "rows from 0", "row 10", "rows from 11", "clean up"]);
    assert_eq!(queue.stats("default").await?.failed_total, 0);
    Ok(())
}

/// A task that outlives its attempt cannot overwrite the progress of the next attempt, which runs
/// on the same worker.
async fn an_attempt_that_is_over_stores_no_checkpoint(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push(Import("a".into())).await?;
    let (told, mut contexts) = mpsc::unbounded_channel();
    let worker = || {
        let told = told.clone();
        Worker::new(&queue).grace(Duration::ZERO).handle(move |_: Import, context: Context| {
            told.send(context.clone()).unwrap();
            async move {
                if context.attempt == 1 {
                    return Err::<(), _>("not yet");
                }
                std::future::pending().await
            }
        })
    };
    let first = run(worker());
    let old = contexts.recv().await.unwrap();
    let new = contexts.recv().await.unwrap();
    new.checkpoint(&100).await?;
    assert!(matches!(old.checkpoint(&1).await, Err(CheckpointError::LeaseLost)));
    first.stop().await?;
    assert!(matches!(new.checkpoint(&101).await, Err(CheckpointError::LeaseLost)));
    let second = run(worker());
    let last = contexts.recv().await.unwrap();
    assert_eq!((last.attempt, last.cursor::<u32>()?), (2, Some(100)));
    second.stop().await
}

/// Cursors of the job, of a step and of a step inside it.
async fn each_step_keeps_its_cursor(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push(Import("a".into())).await?;
    let seen: Arc<Mutex<Vec<[Option<u32>; 3]>>> = Arc::default();
    let cursors = Arc::clone(&seen);
    let worker = run(Worker::new(&queue).handle(move |_: Import, context: Context| {
        let seen = Arc::clone(&cursors);
        async move {
            let mut found = [context.cursor()?, None, None];
            context.checkpoint(&1).await?;
            context.step("done", async |_| Ok::<(), BoxError>(())).await?;
            let outer = context.step("outer", async |outer: Step| {
                found[1] = outer.cursor()?;
                outer.checkpoint(&2).await?;
                let inner = context.step("inner", async |inner: Step| {
                    found[2] = inner.cursor()?;
                    inner.checkpoint(&3).await?;
                    if found[2].is_none() { Err(BoxError::from("not yet")) } else { Ok(()) }
                });
                inner.await
            });
            let ended = outer.await;
            seen.lock().push(found);
            ended
        }
    }));
    until(&queue, "default", "the job", |stats| stats.done_total == 1).await?;
    worker.stop().await?;
    assert_eq!(*seen.lock(), [[None; 3], [Some(1), Some(2), Some(3)]]);
    Ok(())
}
