//! One exchange with the store: what has ended is told, what is held is asked for if in doubt, more is fetched, and a dead worker's jobs
//! are taken back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::lane::Ended;
use crate::batch;
use crate::error::Error;
use crate::queue::count_pushed;
use crate::store::{Fetched, Request, Store, WorkerId};

/// What an exchange asks for.
pub(super) struct Ask {
    pub(super) lane: usize,
    pub(super) queue: Arc<str>,
    pub(super) done: Vec<Vec<u8>>,
    pub(super) settlements: Vec<Ended>,
    pub(super) max: usize,
    pub(super) holding: bool,
    pub(super) unsure: bool,
}

/// What came of it.
pub(super) struct Answer {
    pub(super) ask: Ask,
    pub(super) held: Option<Vec<Vec<u8>>>,
    pub(super) fetched: Result<Fetched, Error>,
    pub(super) refused: usize,
    /// Something that ended could not be told.
    pub(super) untold: bool,
}

/// Never dropped half way by the engine. What could not be told comes back in the answer's `ask`.
pub(super) async fn exchange(store: Arc<dyn Store>, worker: WorkerId, lease: Duration, mut ask: Ask) -> Answer {
    let settled = join_all(ask.settlements.iter().map(|ended| settle(&*store, &ask.queue, &worker, ended))).await;
    let refused = settled.iter().filter(|s| matches!(s, Ok(false))).count();
    let untold = settled.iter().any(Result::is_err);
    let mut results = settled.iter();
    ask.settlements.retain(|_| results.next().is_some_and(Result::is_err));
    let held = if ask.unsure && !untold { Some(store.held(&ask.queue, &worker).await) } else { None };
    let (held, fetched) = match held {
        Some(Err(error)) => (None, Err(error)),
        held => {
            let request = Request { done: &ask.done, max: ask.max, lease, holding: ask.holding || held.is_some() };
            // Told, but nothing more taken, while what was settled has not arrived.
            let request = if untold { Request { max: 0, ..request } } else { request };
            (held.and_then(Result::ok), store.fetch(&ask.queue, &worker, request).await)
        }
    };
    if let Ok(Fetched { expired: Some(expired), .. }) = &fetched {
        match store.reclaim(&ask.queue, expired).await {
            Ok(0) => {}
            Ok(jobs) => {
                tracing::warn!(queue = &*ask.queue, worker = &**expired, jobs, "took back the jobs of a dead worker");
            }
            Err(error) => tracing::warn!(%error, "could not take back the jobs of a dead worker"),
        }
    }
    Answer { ask, held, fetched, refused, untold }
}

/// `false`: the store had given the job to somebody else.
async fn settle(store: &dyn Store, queue: &str, worker: &WorkerId, ended: &Ended) -> Result<bool, Error> {
    if let Some((place, end)) = &ended.counts {
        batch::count(store, place, *end).await?;
    }
    if let Some((queue, next)) = &ended.next {
        let holders = store.push(queue, std::slice::from_ref(next)).await?;
        count_pushed(queue, holders.iter().filter(|holder| holder.is_none()).count());
    }
    store.settle(queue, worker, &ended.settlement).await
}
