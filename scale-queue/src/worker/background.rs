//! Background tasks of a worker: reclaiming jobs left behind by faults, and recording the history
//! of its queues.

use std::sync::Arc;
use std::time::Duration;

use super::event::{Event, Listeners};
use super::round_trip::reclaim;
use crate::store::{Admission, RateRequest, Resolution, Sample, Store};

/// Interval between searches for jobs held by workers without a lease.
const LOOK_FOR_ORPHANS: Duration = Duration::from_mins(5);
/// Burst of the rate limit on these searches. A search scans all keys of a Redis: when a fleet
/// starts, a few run, and then one worker at a time.
const LOOKS_AT_ONCE: u32 = 5;
/// Interval at which a worker tries to become the one that records the sample of the minute.
const SAMPLE: Duration = Duration::from_secs(20);
/// Interval at which the waits of queues are looked at.
const LOOK_AT_WAITS: Duration = Duration::from_secs(5);
/// Time after which a long wait is told again.
const WAIT_TOLD: Duration = Duration::from_hours(24);
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

/// Tells when the jobs of a queue wait for too long, and when that is over. One worker of the fleet
/// looks at a time, and the store remembers what was told.
pub(super) async fn tell_waits(
    store: Arc<dyn Store>,
    waits: Vec<(String, Duration)>,
    listeners: Listeners,
) {
    loop {
        tokio::time::sleep(LOOK_AT_WAITS.mul_f64(0.5 + fastrand::f64())).await;
        for (queue, longest) in &waits {
            if let Err(error) = tell_wait(&*store, queue, *longest, &listeners).await {
                tracing::debug!(%error, queue, "could not look how long the jobs of a queue wait");
            }
        }
    }
}

async fn tell_wait(
    store: &dyn Store,
    queue: &str,
    longest: Duration,
    listeners: &Listeners,
) -> Result<(), crate::error::Error> {
    let key = format!("\0waits of {queue}");
    let spacing = LOOK_AT_WAITS / 2;
    let turn = RateRequest { key: &key, queue, spacing, burst: 1, before: &[] };
    if !matches!(store.admit(turn).await?, Admission::Now) {
        return Ok(());
    }
    let note = format!("waits:{queue}");
    let is_told = store.read_note(&note).await?.is_some_and(|note| note == b"1");
    let wait = Duration::from_millis(store.stats(queue).await?.lag_ms);
    if !is_told && wait >= longest {
        store.put_note(&note, b"1", WAIT_TOLD).await?;
        tracing::warn!(queue, ?wait, "the jobs of a queue wait for too long");
        metrics::counter!("scale_queue_long_waits_total", "queue" => queue.to_owned()).increment(1);
        listeners.tell(|| Event::WaitsLong { queue: queue.into(), wait });
    } else if is_told && wait < longest / 2 {
        store.put_note(&note, b"0", WAIT_TOLD).await?;
        listeners.tell(|| Event::WaitIsOver { queue: queue.into() });
    }
    Ok(())
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
