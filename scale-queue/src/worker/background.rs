//! Background tasks of a worker: reclaiming jobs left behind by faults, and recording the history
//! of its queues.

use std::sync::Arc;
use std::time::Duration;

use super::round_trip::reclaim;
use crate::store::{Admission, RateRequest, Resolution, Sample, Store};

/// Interval between searches for jobs held by workers without a lease.
const LOOK_FOR_ORPHANS: Duration = Duration::from_mins(5);
/// Burst of the rate limit on these searches. A search scans all keys of a Redis: when a fleet
/// starts, a few run, and then one worker at a time.
const LOOKS_AT_ONCE: u32 = 5;
/// Interval at which a worker tries to become the one that records the sample of the minute.
const SAMPLE: Duration = Duration::from_secs(20);
/// Minimum time between two samples of the fleet.
const SAMPLES_APART: Duration = Duration::from_secs(45);

/// Reclaims jobs that are held by a worker without a lease, whatever the cause: at the start, and
/// every few minutes.
pub(super) async fn reclaim_orphans(store: Arc<dyn Store>, queues: Vec<Arc<str>>) {
    loop {
        for queue in &queues {
            let key = format!("\0orphans of {queue}");
            let turn = RateRequest {
                key: &key,
                queue,
                spacing: LOOK_FOR_ORPHANS,
                burst: LOOKS_AT_ONCE,
                before: &[],
            };
            if !matches!(store.admit(turn).await, Ok(Admission::Now)) {
                continue;
            }
            match store.orphans(queue).await {
                Ok(orphans) => {
                    for worker in orphans {
                        tracing::warn!(
                            queue = &**queue,
                            worker = &*worker,
                            "jobs are held by a worker without a lease; reclaiming them"
                        );
                        reclaim(&*store, queue, &worker).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(
                        %error,
                        queue = &**queue,
                        "could not search for jobs held without a lease",
                    );
                }
            }
        }
        tokio::time::sleep(LOOK_FOR_ORPHANS.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
    }
}

/// Records a sample of each queue's counts for every minute and hour. One worker of the fleet does
/// it at a time.
pub(super) async fn keep_history(store: Arc<dyn Store>, queues: Vec<Arc<str>>) {
    loop {
        tokio::time::sleep(SAMPLE.mul_f64(0.5 + fastrand::f64())).await;
        for queue in &queues {
            let key = format!("\0samples of {queue}");
            let turn =
                RateRequest { key: &key, queue, spacing: SAMPLES_APART, burst: 1, before: &[] };
            if !matches!(store.admit(turn).await, Ok(Admission::Now)) {
                continue;
            }
            if let Err(error) = keep_sample(&*store, queue).await {
                tracing::debug!(
                    %error, queue = &**queue,
                    "could not record a sample of the queue's counts; the history has a gap",
                );
            }
        }
    }
}

/// Records a sample for the current minute and hour.
pub(crate) async fn keep_sample(store: &dyn Store, queue: &str) -> Result<(), crate::error::Error> {
    let stats = store.stats(queue).await?;
    let now = store.now_ms();
    for resolution in Resolution::ALL {
        let at_ms = now - now % resolution.step_ms();
        store.record(queue, resolution, &Sample::of(&stats, at_ms)).await?;
    }
    Ok(())
}
