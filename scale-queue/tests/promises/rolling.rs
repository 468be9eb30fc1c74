//! A rolling deploy: workers of two versions at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use scale_queue::status::State;
use scale_queue::{Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::on_every_store;
use crate::server::{Running, Server, is_empty, run, until};

#[derive(Serialize, Deserialize)]
struct Old {
    n: usize,
}

impl Job for Old {
    const NAME: &'static str = "old";
}

#[derive(Serialize, Deserialize)]
struct New {
    n: usize,
}

impl Job for New {
    const NAME: &'static str = "new";
}

/// `Old`, as defined by the next version.
#[derive(Serialize, Deserialize)]
struct Grown {
    n: usize,
    size: String,
}

impl Job for Grown {
    const NAME: &'static str = "old";
}

fn old_workers(queue: &Queue, count: usize) -> Vec<Running> {
    let worker = || {
        Worker::new(queue).concurrency(5).handle(|_: Old| async { Ok::<(), std::io::Error>(()) })
    };
    (0..count).map(|_| run(worker())).collect()
}

fn new_worker(queue: &Queue, done: &Arc<AtomicUsize>) -> Running {
    let (new, grown) = (Arc::clone(done), Arc::clone(done));
    let worker = Worker::new(queue).concurrency(5).handle(move |_: New| {
        new.fetch_add(1, SeqCst);
        async { Ok::<(), std::io::Error>(()) }
    });
    run(worker.handle(move |_: Grown| {
        grown.fetch_add(1, SeqCst);
        async { Ok::<(), std::io::Error>(()) }
    }))
}

async fn stop(workers: Vec<Running>) -> Result<()> {
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}

/// A job of a new kind is run by the only worker that can handle it, however many workers cannot.
async fn a_new_kind_waits_for_a_worker_that_knows_it(server: &Server) -> Result<()> {
    const JOBS: usize = 300;
    let queue = server.queue().await?;
    let mut workers = old_workers(&queue, 5);
    queue.push_many((0..JOBS).map(|n| New { n })).await?;
    until(&queue, "default", "all to be set aside", |stats| stats.blocked == JOBS as u64).await?;
    let aside = queue.jobs("default", State::Blocked, 0, 1).await?;
    assert_eq!(aside[0].blocked_by.as_deref(), Some("kind:new"));
    // While no worker can handle them, these jobs cost nothing and block no other job.
    queue.push_many((0..50).map(|n| Old { n })).await?;
    until(&queue, "default", "what is known to be done", |stats| stats.done_total == 50).await?;
    let done = Arc::new(AtomicUsize::new(0));
    let new = new_worker(&server.queue().await?, &done);
    eventually("the new ones", async || (done.load(SeqCst) == JOBS).then_some(())).await?;
    // The same for jobs that are pushed while such a worker is running.
    queue.push_many((0..JOBS).map(|n| New { n })).await?;
    eventually("more of them", async || (done.load(SeqCst) == 2 * JOBS).then_some(())).await?;
    let stats = until(&queue, "default", "nothing left", is_empty).await?;
    assert_eq!((stats.dead, stats.failed_total), (0, 0), "no attempt was counted");
    workers.push(new);
    stop(workers).await
}

/// A payload that only the next version can read is returned to the queue until a worker of that
/// version fetches it.
async fn a_newer_payload_is_handed_back(server: &Server) -> Result<()> {
    const JOBS: usize = 10;
    let queue = server.queue().await?;
    // This version does not know the field that the next version requires.
    #[derive(Serialize, Deserialize)]
    struct Strict {
        n: String,
    }
    impl Job for Strict {
        const NAME: &'static str = "old";
    }
    let worker = Worker::new(&queue).handle(|_: Strict| async { Ok::<(), std::io::Error>(()) });
    let mut workers = vec![run(worker)];
    queue.push_many((0..JOBS).map(|n| Grown { n, size: "L".into() })).await?;
    until(&queue, "default", "all to be handed back", |stats| stats.scheduled == JOBS as u64)
        .await?;
    let listed = queue.jobs("default", State::Scheduled, 0, 1).await?;
    assert!(
        listed[0].last_error.as_ref().is_some_and(|error| error.contains("does not fit"))
            && listed[0].failed == 0
    );
    let done = Arc::new(AtomicUsize::new(0));
    workers.push(new_worker(&server.queue().await?, &done));
    eventually("all to be read", async || (done.load(SeqCst) == JOBS).then_some(())).await?;
    let stats = until(&queue, "default", "nothing left", is_empty).await?;
    assert_eq!((stats.dead, stats.failed_total), (0, 0));
    stop(workers).await
}

/// The return of such a job has a time limit.
async fn what_nobody_can_handle_is_dead_after_a_stated_time(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let worker = Worker::new(&queue).hand_back_for(Duration::from_millis(1_500));
    let worker = run(worker.handle(|_: Old| async { Ok::<(), std::io::Error>(()) }));
    let batch = queue.batch().jobs((0..3).map(|n| New { n })).push().await?;
    until(&queue, "default", "them to be set aside", |stats| stats.blocked == 3).await?;
    until(&queue, "default", "them to be given up", |stats| stats.dead == 3).await?;
    let dead = queue.dead("default", 0, 10).await?;
    assert!(dead.iter().all(|dead| dead.reason.contains("no worker could handle it")), "{dead:?}");
    assert_eq!(queue.batch_status(&batch).await?.unwrap().dead, 3, "its batch hears of it");
    worker.stop().await
}

on_every_store! {
    a_new_kind_waits_for_a_worker_that_knows_it,
    a_newer_payload_is_handed_back,
    what_nobody_can_handle_is_dead_after_a_stated_time,
}
