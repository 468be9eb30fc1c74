//! What a worker does beside its jobs: it takes back what a fault has left behind, and keeps the history of its queues.

use std::sync::Arc;
use std::time::Duration;

use super::exchange::reclaim;
use crate::store::{Admission, RateRequest, Resolution, Sample, Store};

/// How often jobs are looked for that nobody holds a lease on.
const LOOK_FOR_ORPHANS: Duration = Duration::from_mins(5);
/// It goes over all keys of a Redis: a fleet that starts does it a few times, then one of its workers at a time.
const LOOKS_AT_ONCE: u32 = 5;
/// How often a worker tries to be the one that keeps the sample of the minute.
const SAMPLE: Duration = Duration::from_secs(20);
/// One sample a minute, whoever takes it.
const SAMPLES_APART: Duration = Duration::from_secs(45);

/// Takes back jobs that are held by a worker without a lease, whatever has made them so: at the start and every few minutes.
pub(super) async fn reclaim_orphans(store: Arc<dyn Store>, queues: Vec<Arc<str>>) {
    loop {
        for queue in &queues {
            let key = format!("\0orphans of {queue}");
            let turn = RateRequest { key: &key, queue, spacing: LOOK_FOR_ORPHANS, burst: LOOKS_AT_ONCE, before: &[] };
            if !matches!(store.admit(turn).await, Ok(Admission::Now)) {
                continue;
            }
            match store.orphans(queue).await {
                Ok(orphans) => {
                    for worker in orphans {
                        tracing::warn!(queue = &**queue, worker = &*worker, "jobs are held by a worker that has no lease");
                        reclaim(&*store, queue, &worker).await;
                    }
                }
                Err(error) => tracing::debug!(%error, queue = &**queue, "could not look for jobs that nobody holds a lease on"),
            }
        }
        tokio::time::sleep(LOOK_FOR_ORPHANS.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
    }
}

/// Keeps a sample of each queue's counts for every minute and hour. Of all workers one does it at a time.
pub(super) async fn keep_history(store: Arc<dyn Store>, queues: Vec<Arc<str>>) {
    loop {
        tokio::time::sleep(SAMPLE.mul_f64(0.5 + fastrand::f64())).await;
        for queue in &queues {
            let key = format!("\0samples of {queue}");
            let turn = RateRequest { key: &key, queue, spacing: SAMPLES_APART, burst: 1, before: &[] };
            if !matches!(store.admit(turn).await, Ok(Admission::Now)) {
                continue;
            }
            if let Err(error) = keep_sample(&*store, queue).await {
                tracing::debug!(%error, queue = &**queue, "could not keep a sample of the queue's counts");
            }
        }
    }
}

/// Keeps a sample for the minute and the hour at hand.
pub(crate) async fn keep_sample(store: &dyn Store, queue: &str) -> Result<(), crate::error::Error> {
    let stats = store.stats(queue).await?;
    let now = store.now_ms();
    for resolution in Resolution::ALL {
        let at_ms = now - now % resolution.step_ms();
        store.record(queue, resolution, &Sample::of(&stats, at_ms)).await?;
    }
    Ok(())
}
