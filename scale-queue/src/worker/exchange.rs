//! One exchange with the store: what has ended is told, what is held is asked for if in doubt, more is fetched, and a dead worker's jobs
//! are taken back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::lane::Ended;
use crate::batch;
use crate::error::Error;
use crate::queue::count_pushed;
use crate::store::{End, Fetched, Request, Store, Trial, WorkerId};

/// Steps of a hundred jobs each in which those of a dead worker are taken back, within one exchange.
const RECLAIM_STEPS: usize = 10;

/// What an exchange asks for.
pub(super) struct Ask {
    pub(super) lane: usize,
    pub(super) queue: Arc<str>,
    pub(super) done: Vec<Vec<u8>>,
    pub(super) settlements: Vec<Ended>,
    /// The store has not been heard of for so long that what we held may be somebody else's.
    pub(super) doubtful: bool,
    /// Whether jobs of a dead worker may be taken back: not while the living could not say that they live.
    pub(super) may_reclaim: bool,
    pub(super) max: usize,
    pub(super) max_bytes: usize,
    /// How many of the jobs that come begin at once.
    pub(super) begins: usize,
    pub(super) trial: Trial,
    pub(super) lines: Vec<String>,
    pub(super) unhandled_for: Duration,
    /// Ask what we hold.
    pub(super) unsure: bool,
    /// Tags of jobs that we hold and have not got.
    pub(super) missing: Vec<Vec<u8>>,
}

/// What came of it.
pub(super) struct Answer {
    pub(super) ask: Ask,
    /// Tags of what we hold.
    pub(super) held: Option<Vec<Vec<u8>>>,
    /// Some of what was missing.
    pub(super) found: Option<Vec<Vec<u8>>>,
    pub(super) fetched: Result<Fetched, Error>,
    pub(super) refused: usize,
    /// Something that ended could not be told.
    pub(super) untold: bool,
}

/// Never dropped half way by the engine. What could not be told comes back in the answer's `ask`.
pub(super) async fn exchange(store: Arc<dyn Store>, worker: WorkerId, lease: Duration, mut ask: Ask) -> Answer {
    let (refused, untold) = settle(&*store, &worker, &mut ask).await;
    let asked = look(&*store, &worker, &ask, untold).await;
    let (held, found, fetched) = match asked {
        Err(error) => (None, None, Err(error)),
        Ok((held, found)) => {
            // Told, but nothing more taken, while what was settled has not arrived or it is not clear what we have.
            let max = if untold || ask.unsure || !ask.missing.is_empty() { 0 } else { ask.max };
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
    Answer { ask, held, found, fetched, refused, untold }
}

type Found = (Option<Vec<Vec<u8>>>, Option<Vec<Vec<u8>>>);

async fn look(store: &dyn Store, worker: &WorkerId, ask: &Ask, untold: bool) -> Result<Found, Error> {
    let held = if ask.unsure && !untold { Some(store.held(&ask.queue, worker).await?) } else { None };
    let found =
        if ask.missing.is_empty() { None } else { Some(store.held_jobs(&ask.queue, worker, &ask.missing, ask.max_bytes).await?) };
    Ok((held, found))
}

/// Takes back jobs of a dead worker, in bounded steps: the next exchange goes on.
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
                tracing::warn!(%error, "could not take back the jobs of a dead worker");
                break;
            }
        }
    }
    if jobs > 0 {
        tracing::warn!(queue, worker = &**expired, jobs, "took back jobs of a dead worker");
        metrics::counter!("scale_queue_reclaimed_total", "queue" => queue.to_owned()).increment(jobs as u64);
    }
}

/// Tells how jobs ended. Returns how many were somebody else's by now, and whether something could not be told: that stays in the ask.
async fn settle(store: &dyn Store, worker: &WorkerId, ask: &mut Ask) -> (usize, bool) {
    let Ok(lost) = drop_lost(store, worker, ask).await else { return (0, true) };
    let announced = join_all(ask.settlements.iter().map(|ended| announce(store, ended))).await;
    let (mut told, mut untold) = (Vec::new(), Vec::new());
    for (ended, announced) in std::mem::take(&mut ask.settlements).into_iter().zip(announced) {
        if announced.is_ok() { told.push(ended) } else { untold.push(ended) }
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
            Err(_) => untold.push(ended),
        }
    }
    if for_others {
        // One of them wakes, and sets its alarm. Should this fail, they look by themselves.
        let _ = store.pass_on(&ask.queue, Some(worker)).await;
    }
    // A permit may have come free between the question and the line. Should this fail, the line is tried by itself.
    join_all(full.iter().map(|(key, most)| store.wake_if_free(key, *most, &ask.queue))).await;
    // These are gone: what follows them is known to be pushed for a while, for a worker that was cut off. Should this fail, for longer.
    join_all(keys.iter().map(|(queue, keys)| store.expire_once(queue, keys))).await;
    ask.settlements = untold;
    (refused, !ask.settlements.is_empty())
}

/// An end that others hear of first, in their batch or as the next of their chain, must be that of a job that is still ours: who was cut off
/// for longer than a lease may report one that somebody else runs. A success is one whoever reports it, unless that is long ago; that a job
/// is dead, and its batch with it, is always asked. Returns how many were not ours.
async fn drop_lost(store: &dyn Store, worker: &WorkerId, ask: &mut Ask) -> Result<usize, Error> {
    let doubtful = ask.doubtful;
    let is_asked = |ended: &Ended| {
        matches!(ended.counts, Some((_, End::Dead))) || doubtful && (ended.counts.is_some() || ended.next.is_some())
    };
    if !ask.settlements.iter().any(is_asked) {
        return Ok(0);
    }
    let held: HashSet<Vec<u8>> = store.held(&ask.queue, worker).await?.into_iter().collect();
    let all = ask.settlements.len();
    ask.settlements.retain(|ended| !is_asked(ended) || held.contains(&ended.settlement.tag));
    Ok(all - ask.settlements.len())
}

/// What a job's end brings about, before the store is told of the end.
async fn announce(store: &dyn Store, ended: &Ended) -> Result<(), Error> {
    if let Some((place, end)) = &ended.counts {
        batch::count(store, place, *end).await?;
    }
    if let Some((queue, next)) = &ended.next {
        let holders = store.push(queue, std::slice::from_ref(next)).await?;
        count_pushed(queue, holders.iter().filter(|holder| holder.is_none()).count());
    }
    Ok(())
}
