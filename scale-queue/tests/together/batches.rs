//! Batches: each job is counted once, however it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use scale_queue::{Context, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::common::running;

/// A part of a batch: fails until `broken` is cleared.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) n: u32,
    pub(crate) fails: bool,
}

impl Job for Part {
    const NAME: &'static str = "part";
    const QUEUE: &'static str = "parts";
    const RETRY: Retry = Retry::never();
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct After {
    pub(crate) what: String,
}

impl Job for After {
    const NAME: &'static str = "after";
    const QUEUE: &'static str = "after";
}

#[derive(Clone, Default)]
pub(crate) struct Seen {
    parts: Arc<Mutex<HashMap<u32, u32>>>,
    after: Arc<Mutex<Vec<String>>>,
    mended: Arc<AtomicBool>,
}

impl Seen {
    pub(crate) fn worker(&self, queue: &Queue) -> Worker {
        let (parts, after, mended) =
            (Arc::clone(&self.parts), Arc::clone(&self.after), Arc::clone(&self.mended));
        Worker::new(queue)
            .queues(["parts", "after"])
            .concurrency(4)
            .handle(move |part: Part, context: Context| {
                assert!(context.batch.is_some());
                *parts.lock().entry(part.n).or_default() += 1;
                let fails = part.fails && !mended.load(SeqCst);
                async move { if fails { Err("broken") } else { Ok(()) } }
            })
            .handle(move |job: After| {
                after.lock().push(job.what);
                async { Ok::<(), std::io::Error>(()) }
            })
    }

    pub(crate) async fn after(&self, words: &[&str]) -> Result<()> {
        let all = async || {
            let mut seen = self.after.lock().clone();
            seen.sort_unstable();
            (seen == words).then_some(())
        };
        eventually("the jobs after a batch", all)
            .await
            .with_context(|| format!("{:?}", self.after.lock()))
    }
}

pub(crate) fn after(what: &str) -> After {
    After { what: what.into() }
}

pub(crate) async fn a_batch_counts_each_job_once_and_is_followed_by_one_job(
    queue: &Queue,
) -> Result<()> {
    let seen = Seen::default();
    let workers = running((0..3).map(|_| seen.worker(queue)));
    let parts = (0..600).map(|n| Part { n, fails: false });
    let batch = queue
        .batch()
        .jobs(parts)
        .then(after("then"))
        .catch(after("catch"))
        .finally(after("finally"));
    let id = batch.push().await?;
    seen.after(&["finally", "then"]).await?;
    let status = queue.batch_status(&id).await?.unwrap();
    assert_eq!((status.total, status.done, status.dead, status.cancelled), (600, 600, 0, false));
    assert!(status.is_over() && (status.fraction() - 1.0).abs() < 1e-9);
    assert!(seen.parts.lock().len() == 600 && seen.parts.lock().values().all(|runs| *runs == 1));
    assert_eq!(queue.batch_status("unknown").await?, None);
    assert!(!queue.cancel_batch("unknown").await?);
    assert!(queue.batch().push().await.is_err(), "a batch of nothing");
    workers.stop().await
}

pub(crate) async fn a_death_cancels_a_batch_and_a_revived_job_runs(queue: &Queue) -> Result<()> {
    let seen = Seen::default();
    queue.pause("parts").await?;
    let id = {
        let parts = (0..50).map(|n| Part { n, fails: n == 0 });
        queue
            .batch()
            .jobs(parts)
            .then(after("then"))
            .catch(after("catch"))
            .finally(after("finally"))
            .push()
            .await?
    };
    queue.resume("parts").await?;
    let workers = running([seen.worker(queue).concurrency(1)]);
    seen.after(&["catch", "finally"]).await?;
    let status = queue.batch_status(&id).await?.unwrap();
    assert_eq!(
        (status.done, status.dead, status.cancelled),
        (49, 1, true),
        "those that had not begun ended unrun"
    );
    assert!(seen.parts.lock().len() < 50, "{}", seen.parts.lock().len());
    seen.mended.store(true, SeqCst);
    let dead = queue.dead("parts", 0, 10).await?.pop().unwrap();
    queue.revive("parts", &dead).await?;
    let done = async || queue.batch_status(&id).await.ok()?.filter(|status| status.dead == 0);
    assert_eq!(eventually("the revived one to be done", done).await?.done, 50);
    assert_eq!(seen.parts.lock().get(&0), Some(&2), "it ran again");
    workers.stop().await?;
    seen.after(&["catch", "finally"]).await?;
    assert_eq!(
        queue.stats("after").await?.waiting,
        0,
        "nothing follows: the others have never run"
    );
    Ok(())
}

pub(crate) async fn a_lenient_batch_goes_on(queue: &Queue) -> Result<()> {
    let seen = Seen::default();
    let parts = (0..30).map(|n| Part { n, fails: n % 10 == 0 });
    let batch =
        queue.batch().jobs(parts).allow_failures().then(after("then")).finally(after("finally"));
    let id = batch.push().await?;
    let workers = running([seen.worker(queue)]);
    seen.after(&["finally"]).await?;
    let status = queue.batch_status(&id).await?.unwrap();
    assert_eq!((status.done, status.dead, status.cancelled), (27, 3, false));
    assert_eq!(seen.parts.lock().len(), 30);
    let dead = queue.dead("parts", 0, 10).await?.pop().unwrap();
    queue.forget("parts", &dead).await?;
    seen.mended.store(true, SeqCst);
    assert_eq!(queue.revive_all("parts").await?, 2);
    let done = async || queue.batch_status(&id).await.ok()?.filter(|status| status.done == 29);
    assert_eq!(
        eventually("the revived ones to be done", done).await?.dead,
        1,
        "one is dead for good"
    );
    workers.stop().await
}

pub(crate) async fn a_revival_completes_a_lenient_batch(queue: &Queue) -> Result<()> {
    let seen = Seen::default();
    let parts = (0..10).map(|n| Part { n, fails: n < 2 });
    queue
        .batch()
        .jobs(parts)
        .allow_failures()
        .then(after("then"))
        .finally(after("finally"))
        .push()
        .await?;
    let workers = running([seen.worker(queue)]);
    seen.after(&["finally"]).await?;
    seen.mended.store(true, SeqCst);
    assert_eq!(queue.revive_all("parts").await?, 2);
    seen.after(&["finally", "then"]).await?;
    workers.stop().await
}

pub(crate) async fn a_batch_pushed_twice_is_one(queue: &Queue) -> Result<()> {
    let seen = Seen::default();
    for _ in 0..2 {
        let parts = (0..10).map(|n| Part { n, fails: false });
        assert_eq!(
            queue.batch().jobs(parts).named("import.7").then(after("then")).push().await?,
            "import.7"
        );
    }
    let workers = running([seen.worker(queue)]);
    seen.after(&["then"]).await?;
    workers.stop().await?;
    assert_eq!(queue.stats("parts").await?.waiting, 0);
    assert!(seen.parts.lock().values().all(|runs| *runs == 1));
    assert!(
        queue.batch().named("no spaces").job(Part { n: 1, fails: false }).push().await.is_err()
    );
    Ok(())
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Deadly;

impl Job for Deadly {
    const NAME: &'static str = "deadly";
    const QUEUE: &'static str = "deadly";
    const RETRY: Retry =
        Retry::exponential(20).first(Duration::from_millis(1)).longest(Duration::from_millis(1));
}

pub(crate) async fn a_job_that_kills_its_workers_is_given_up_and_its_batch_hears_of_it(
    queue: &Queue,
) -> Result<()> {
    let seen = Seen::default();
    let last = Arc::new(AtomicUsize::new(0));
    let worker = || {
        let last = Arc::clone(&last);
        seen.worker(queue).queues(["deadly", "after"]).lease(Duration::from_millis(300)).handle(
            move |_: Deadly, context: Context| {
                let last = Arc::clone(&last);
                async move {
                    last.store(context.attempt.into(), SeqCst);
                    if context.attempt == 20 {
                        // The job crashes its worker.
                        std::future::pending::<()>().await;
                    }
                    Err::<(), _>("not yet")
                }
            },
        )
    };
    let id =
        queue.batch().job(Deadly).catch(after("catch")).finally(after("finally")).push().await?;
    let doomed = running([worker()]);
    eventually("its last attempt", async || (last.load(SeqCst) == 20).then_some(())).await?;
    doomed.kill();
    let workers = running([worker()]);
    seen.after(&["catch", "finally"]).await?;
    let dead =
        eventually("its death", async || queue.dead("deadly", 0, 10).await.ok()?.pop()).await?;
    assert_eq!(
        (dead.reason.as_str(), dead.failed),
        ("its worker died, and its attempts are used up", 20)
    );
    assert_eq!(last.load(SeqCst), 20, "it was tried once more");
    let status = queue.batch_status(&id).await?.unwrap();
    assert_eq!((status.done, status.dead), (0, 1));
    workers.stop().await?;
    assert_eq!(queue.forget_all("deadly").await?, 1);
    Ok(())
}
