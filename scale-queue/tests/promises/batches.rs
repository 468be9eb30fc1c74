//! Batches with a job that dies and is revived or reclaimed.

use std::sync::Arc;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::outcome::Discard;
use scale_queue::store::{End, RedisStore, SqlStore, Store};
use scale_queue::{Context, Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::on_every_store;
use crate::server::{Running, Server, is_empty, run, until};

#[derive(Serialize, Deserialize)]
struct Part(String);
impl Job for Part {
    const NAME: &'static str = "part";
}

#[derive(Serialize, Deserialize)]
struct After(String);
impl Job for After {
    const NAME: &'static str = "after";
    const QUEUE: &'static str = "after";
}

on_every_store! { a_revived_job_of_a_cancelled_batch_runs, nothing_follows_what_was_skipped }
crate::on_stores! { told_to_redis: "redis"; a_death_that_was_told_loses_no_job }
crate::on_stores! { told_to_postgres: "postgres"; a_death_that_was_told_loses_no_job }
crate::on_stores! { told_to_mariadb: "mariadb"; a_death_that_was_told_loses_no_job }
crate::on_stores! { told_to_sqlite: "sqlite"; a_death_that_was_told_loses_no_job }

fn part(name: &str) -> Part {
    Part(name.into())
}

fn after(name: &str) -> After {
    After(name.into())
}

/// Starts a worker with concurrency 1 that records the jobs it has run. Parts named `bad` die while
/// `dies` is set.
fn working(queue: &Queue, ran: &Arc<Mutex<Vec<String>>>, dies: &Arc<Mutex<bool>>) -> Running {
    let (parts, afters, dies) = (Arc::clone(ran), Arc::clone(ran), Arc::clone(dies));
    let worker = Worker::new(queue).queues(["default", "after"]).concurrency(1);
    let worker = worker.handle(move |Part(name): Part, _: Context| {
        parts.lock().push(name.clone());
        let fails = name == "bad" && *dies.lock();
        async move { if fails { Err(Discard::because("bad")) } else { Ok(()) } }
    });
    run(worker.handle(move |After(name): After, _: Context| {
        afters.lock().push(name);
        async { Ok::<(), std::io::Error>(()) }
    }))
}

/// One job dies, so the others are not started; then the dead job is revived and runs successfully.
/// The job for a complete success (`then`) must not run.
async fn a_revived_job_of_a_cancelled_batch_runs(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let (ran, dies) = (Arc::default(), Arc::new(Mutex::new(true)));
    let batch = queue.batch().job(part("bad")).job(part("good")).job(part("good"));
    let id =
        batch.then(after("then")).catch(after("catch")).finally(after("finally")).push().await?;
    let worker = working(&queue, &ran, &dies);
    let over = eventually("it to be over", async || {
        queue.batch_status(&id).await.ok()?.filter(scale_queue::batch::BatchStatus::is_over)
    });
    assert_eq!(over.await?.dead, 1);
    eventually("what follows", async || (ran.lock().len() == 3).then_some(())).await?;
    *dies.lock() = false;
    assert_eq!(queue.revive_all("default").await?, 1);
    let status = eventually("it to be done", async || {
        queue.batch_status(&id).await.ok()?.filter(|status| status.dead == 0)
    });
    assert_eq!(status.await?.done, 3);
    until(&queue, "after", "nothing more", is_empty).await?;
    let mut ran = ran.lock().clone();
    ran.sort_unstable();
    assert_eq!(
        ran,
        ["bad", "bad", "catch", "finally"],
        "twice it ran; the good ones never did, so not all was done"
    );
    worker.stop().await
}

/// A cancelled batch has no dead jobs, and its follow-up jobs run.
async fn nothing_follows_what_was_skipped(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let (ran, dies) = (Arc::default(), Arc::new(Mutex::new(true)));
    let id = queue
        .batch()
        .job(part("good"))
        .job(part("good"))
        .then(after("then"))
        .finally(after("finally"))
        .push()
        .await?;
    assert!(queue.cancel_batch(&id).await?);
    let worker = working(&queue, &ran, &dies);
    eventually("what follows", async || (ran.lock().len() == 2).then_some(())).await?;
    let mut ran = ran.lock().clone();
    ran.sort_unstable();
    assert_eq!(ran, ["finally", "then"]);
    worker.stop().await
}

/// A worker reports a dead job to the batch and crashes before the job is settled: the job is
/// reclaimed, and the batch does not count it as done.
async fn a_death_that_was_told_loses_no_job(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let store: Box<dyn Store> = match server.kind {
        "redis" => {
            Box::new(RedisStore::new(scale_redis::Redis::connect(&server.url).await?, "test"))
        }
        _ => Box::new(SqlStore::connect(&server.url, "test").await?),
    };
    let (ran, dies) = (Arc::default(), Arc::new(Mutex::new(true)));
    let batch = queue
        .batch()
        .job(part("bad"))
        .job(part("good"))
        .then(after("then"))
        .finally(after("finally"));
    let id = batch.push().await?;
    assert_eq!(
        store.mark(&id, 0, End::Dead).await?.map(|tally| (tally.dead, tally.cancelled)),
        Some((1, true))
    );
    assert_eq!(
        store.mark(&id, 0, End::Skipped).await?.map(|tally| (tally.done, tally.dead)),
        Some((0, 1)),
        "it stays dead"
    );
    let worker = working(&queue, &ran, &dies);
    until(&queue, "default", "the bad one to be dead", |stats| {
        stats.dead == 1 && stats.waiting + stats.leased == 0
    })
    .await?;
    eventually("what follows", async || (ran.lock().len() == 2).then_some(())).await?;
    assert_eq!(ran.lock().clone(), ["bad", "finally"]);
    let status = queue.batch_status(&id).await?.map(|status| (status.done, status.dead));
    assert_eq!(status, Some((1, 1)));
    worker.stop().await
}
