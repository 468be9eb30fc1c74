//! One round trip to the store: acknowledges ended jobs, asks which jobs are held if that is in
//! doubt, fetches more, and reclaims the jobs of a dead worker.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::queue_state::Ended;
use crate::batch;
use crate::error::Error;
use crate::queue::push::count_pushed;
use crate::store::{Destination, End, Fetched, Request, Store, Trial, WorkerId};

/// Maximum number of reclaim steps, of 100 jobs each, within one round trip.
const RECLAIM_STEPS: usize = 10;

/// Request of a round trip.
pub(super) struct Ask {
    pub(super) lane: usize,
    pub(super) queue: Arc<str>,
    pub(super) done: Vec<Vec<u8>>,
    pub(super) settlements: Vec<Ended>,
    /// True if the store has not answered for so long that this worker's jobs may have been given
    /// to other workers.
    pub(super) doubtful: bool,
    /// True if jobs of a dead worker may be reclaimed: not while live workers could not send
    /// heartbeats.
    pub(super) may_reclaim: bool,
    pub(super) max: usize,
    pub(super) max_bytes: usize,
    /// Number of the fetched jobs that begin at once.
    pub(super) begins: usize,
    pub(super) trial: Trial,
    pub(super) lines: Vec<String>,
    pub(super) unhandled_for: Duration,
    /// True to ask which jobs this worker holds.
    pub(super) unsure: bool,
    /// Tags of jobs that are leased to this worker and were not received.
    pub(super) missing: Vec<Vec<u8>>,
}

/// Result of a round trip.
pub(super) struct Answer {
    pub(super) ask: Ask,
    /// Tags of the jobs leased to this worker.
    pub(super) held: Option<Vec<Vec<u8>>>,
    /// Missing jobs that the answer had room for.
    pub(super) found: Option<Vec<Vec<u8>>>,
    pub(super) fetched: Result<Fetched, Error>,
    pub(super) refused: usize,
    /// True if some ends of jobs could not be stored.
    pub(super) settle_failed: bool,
}

/// Runs a round trip. The engine never drops it half way. Ends that could not be stored come back
/// in the answer's `ask`.
pub(super) async fn round_trip(
    store: Arc<dyn Store>,
    worker: WorkerId,
    lease: Duration,
    mut ask: Ask,
) -> Answer {
    let (refused, settle_failed) = settle(&*store, &worker, &mut ask).await;
    let asked = look(&*store, &worker, &ask, settle_failed).await;
    let (held, found, fetched) = match asked {
        Err(error) => (None, None, Err(error)),
        Ok((held, found)) => {
            // Acknowledges, but takes no more jobs while ends are not stored or the set of held
            // jobs is unknown.
            let max =
                if settle_failed || ask.unsure || !ask.missing.is_empty() { 0 } else { ask.max };
            let request = Request {
                done: &ask.done,
                max,
                max_bytes: ask.max_bytes,
                begins: ask.begins,
                lease,
                trial: ask.trial,
                lines: &ask.lines,
                unhandled_for: ask.unhandled_for,
            };
            (held, found, store.fetch(&ask.queue, &worker, request).await)
        }
    };
    if ask.may_reclaim
        && let Ok(Fetched { expired: Some(expired), .. }) = &fetched
    {
        reclaim(&*store, &ask.queue, expired).await;
    }
    Answer { ask, held, found, fetched, refused, settle_failed }
}

type Found = (Option<Vec<Vec<u8>>>, Option<Vec<Vec<u8>>>);

async fn look(
    store: &dyn Store,
    worker: &WorkerId,
    ask: &Ask,
    settle_failed: bool,
) -> Result<Found, Error> {
    let held = if ask.unsure && !settle_failed {
        Some(store.held(&ask.queue, worker).await?)
    } else {
        None
    };
    let found = if ask.missing.is_empty() {
        None
    } else {
        Some(store.held_jobs(&ask.queue, worker, &ask.missing, ask.max_bytes).await?)
    };
    Ok((held, found))
}

/// Reclaims jobs of a dead worker, in a bounded number of steps; the next round trip continues.
pub(super) async fn reclaim(store: &dyn Store, queue: &str, expired: &WorkerId) {
    let mut jobs = 0;
    for _ in 0..RECLAIM_STEPS {
        match store.reclaim(queue, expired).await {
            Ok(step) => {
                jobs += step.jobs;
                if step.left == 0 || step.jobs == 0 {
                    break;
                }
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "could not reclaim the jobs of a dead worker; the next round trip tries again",
                );
                break;
            }
        }
    }
    if jobs > 0 {
        tracing::warn!(queue, worker = &**expired, jobs, "reclaimed jobs of a dead worker");
        metrics::counter!("scale_queue_reclaimed_total", "queue" => queue.to_owned())
            .increment(jobs as u64);
    }
}

/// Stores how jobs ended. Returns how many of them belonged to another worker by now, and whether
/// some ends could not be stored; those stay in the ask.
async fn settle(store: &dyn Store, worker: &WorkerId, ask: &mut Ask) -> (usize, bool) {
    let Ok(lost) = drop_lost(store, worker, ask).await else { return (0, true) };
    let followed_up =
        join_all(ask.settlements.iter().map(|ended| push_follow_ups(store, &ask.queue, ended)))
            .await;
    let (mut told, mut settle_failed) = (Vec::new(), Vec::new());
    for (ended, followed_up) in std::mem::take(&mut ask.settlements).into_iter().zip(followed_up) {
        if followed_up.is_ok() { told.push(ended) } else { settle_failed.push(ended) }
    }
    let settlements: Vec<_> = told.iter().map(|ended| &ended.settlement).collect();
    let settled = store.settle(&ask.queue, worker, &settlements).await;
    let mut refused = lost;
    let mut keys: HashMap<String, Vec<String>> = HashMap::new();
    let mut full: HashMap<String, u32> = HashMap::new();
    let mut for_others = false;
    for (ended, settled) in told.into_iter().zip(settled) {
        match settled {
            Ok(false) => refused += 1,
            Ok(true) => {
                for_others |= ended.for_others;
                if let Some((key, most)) = ended.permits {
                    full.insert(key, most);
                }
                if let Some((queue, next)) = ended.next
                    && let Some((key, _)) = next.once
                {
                    keys.entry(queue).or_default().push(key);
                }
            }
            Err(_) => settle_failed.push(ended),
        }
    }
    if for_others {
        // Another worker wakes, and sets its alarm. If this fails, the other workers find the job
        // at their next poll.
        let _ = store.pass_on(&ask.queue, Some(worker)).await;
    }
    // A permit may have come free after the job was refused and before it was in line. If this
    // fails, the line is tried at its retry time.
    join_all(full.iter().map(|(key, most)| store.wake_if_free(key, *most, &ask.queue))).await;
    // These jobs are gone. The keys of their successors are kept for a while, for a worker that was
    // cut off. If this fails, they are kept longer.
    join_all(keys.iter().map(|(queue, keys)| store.expire_once(queue, keys))).await;
    ask.settlements = settle_failed;
    (refused, !ask.settlements.is_empty())
}

/// Removes ends of jobs that this worker has lost, where the end has effects on other jobs: in the
/// job's batch, or as the next job of its chain. A worker that was cut off for longer than a lease
/// may report a job that another worker runs by now.
///
/// A success may be reported by either worker, unless this worker was cut off for long. That a job
/// is dead, and its batch with it, is always verified. Returns the number of lost jobs.
async fn drop_lost(store: &dyn Store, worker: &WorkerId, ask: &mut Ask) -> Result<usize, Error> {
    let doubtful = ask.doubtful;
    let is_asked = |ended: &Ended| {
        let has_follow_ups = ended.counts.is_some()
            || ended.next.is_some()
            || ended.kept.is_some()
            || !ended.notes.is_empty();
        let is_death = matches!(ended.settlement.to, Destination::Dead { .. });
        matches!(ended.counts, Some((_, End::Dead))) || has_follow_ups && (doubtful || is_death)
    };
    if !ask.settlements.iter().any(is_asked) {
        return Ok(0);
    }
    let held: HashSet<Vec<u8>> = store.held(&ask.queue, worker).await?.into_iter().collect();
    let all = ask.settlements.len();
    ask.settlements.retain(|ended| !is_asked(ended) || held.contains(&ended.settlement.tag));
    Ok(all - ask.settlements.len())
}

/// Pushes the jobs that follow from a job's end, before the end is stored.
async fn push_follow_ups(store: &dyn Store, queue: &str, ended: &Ended) -> Result<(), Error> {
    // Jobs that follow read what this one has returned.
    for (key, value, life) in &ended.notes {
        store.put_note(key, value, *life).await?;
    }
    if let Some(job) = &ended.kept {
        store.keep_ended(queue, job).await?;
    }
    if let Some((member, end)) = &ended.counts {
        batch::count(store, member, *end).await?;
    }
    if let Some((queue, next)) = &ended.next {
        let holders = store.push(queue, std::slice::from_ref(next)).await?;
        count_pushed(queue, holders.iter().filter(|holder| holder.is_none()).count());
    }
    Ok(())
}
