//! One load per key at a time, shared by all callers. Callers after an invalidation start a new
//! load.

use std::collections::HashMap;
use std::future::Future;
use std::hash::BuildHasher;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::Error;
use crate::policy::entry::Entry;
use crate::policy::fences::Fence;
use crate::policy::versions::Agreement;

/// Result of a load.
#[derive(Clone)]
pub(crate) struct Outcome {
    pub(crate) result: Result<Arc<Entry>, Error>,
    /// `true` if a tag that only the loader could know was invalidated after the load began.
    pub(crate) overtaken: bool,
}

impl From<Result<Arc<Entry>, Error>> for Outcome {
    fn from(result: Result<Arc<Entry>, Error>) -> Self {
        Self { result, overtaken: false }
    }
}

/// Conditions under which a load began: callers with the same conditions may share it.
#[derive(Clone)]
pub(crate) struct FlightTerms {
    pub(crate) fingerprint: u64,
    pub(crate) fence: Fence,
    pub(crate) era: u64,
    /// Number of the last invalidation of the tags that are known in advance.
    pub(crate) bumped: u64,
    /// Number of the last invalidation of any tag.
    pub(crate) number: u64,
    pub(crate) at: Instant,
}

impl FlightTerms {
    fn is_shared_with(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            && self.fence == other.fence
            && self.era == other.era
            && self.bumped == other.bumped
    }
}

struct Flight {
    number: u64,
    terms: FlightTerms,
    outcome: watch::Receiver<Option<Outcome>>,
}

const SHARDS: usize = 32;

type Shard = Mutex<HashMap<Arc<str>, Flight>>;

pub(crate) struct Flights {
    shards: Box<[Shard]>,
    hasher: foldhash::fast::RandomState,
    next: AtomicU64,
}

impl Default for Flights {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
            next: AtomicU64::new(1),
        }
    }
}

/// Loads that the current task is a part of, the innermost first. None of them may wait for another
/// one of them.
#[derive(Clone)]
pub(crate) struct Chain(Arc<ChainLink>);

struct ChainLink {
    /// Address of the flights: two caches may have the same key.
    flights: usize,
    key: Arc<str>,
    outer: Option<Chain>,
}

tokio::task_local! {
    static LOADING: Chain;
}

/// Returns the loads that this task is a part of.
pub(crate) fn chain() -> Option<Chain> {
    LOADING.try_with(Clone::clone).ok()
}

/// Runs a task as a part of all these loads.
pub(crate) async fn within<F: Future>(chains: Vec<Chain>, task: F) -> F::Output {
    let mut merged: Option<Chain> = None;
    for chain in &chains {
        let mut link = Some(chain);
        while let Some(Chain(one)) = link {
            merged = Some(Chain(Arc::new(ChainLink {
                flights: one.flights,
                key: Arc::clone(&one.key),
                outer: merged,
            })));
            link = one.outer.as_ref();
        }
    }
    match merged {
        Some(merged) => LOADING.scope(merged, task).await,
        None => task.await,
    }
}

/// A load that a caller waits for.
pub(crate) struct Joined {
    outcome: watch::Receiver<Option<Outcome>>,
    /// Number of the last invalidation at the start of the load, and at the arrival of the caller.
    began: u64,
    came: u64,
}

impl Flights {
    fn shard(&self, key: &str) -> &Shard {
        &self.shards[(self.hasher.hash_one(key) >> 32) as usize % SHARDS]
    }

    /// Joins the load in progress, or starts one in its own task: dropping a waiting caller neither
    /// ends nor repeats the load. `came`: the number of the last invalidation at the caller's
    /// arrival; `is_trusted`: whether a load that began at that time may be used.
    ///
    /// # Errors
    /// [`Error::Cycle`], [`Error::NoRuntime`].
    pub(crate) fn join<F>(
        self: &Arc<Self>,
        key: &Arc<str>,
        terms: FlightTerms,
        came: u64,
        is_trusted: impl FnOnce(Instant) -> bool,
        load: impl FnOnce() -> F,
    ) -> Result<Joined, Error>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let outer = LOADING.try_with(Clone::clone).ok();
        let mut waits = outer.as_ref();
        while let Some(Chain(link)) = waits {
            if link.key == *key && link.flights == Arc::as_ptr(self).addr() {
                // A key without a space is reported as its caller wrote it.
                return Err(Error::Cycle(
                    key.strip_prefix(':').map_or_else(|| Arc::clone(key), Arc::from),
                ));
            }
            waits = link.outer.as_ref();
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let began = terms.number;
        let mut shard = self.shard(key).lock();
        if let Some(flight) = shard.get(key).filter(|flight| flight.terms.is_shared_with(&terms))
            && is_trusted(flight.terms.at)
        {
            return Ok(Joined {
                outcome: flight.outcome.clone(),
                began: flight.terms.number,
                came,
            });
        }
        let number = self.next.fetch_add(1, Relaxed);
        let (sender, outcome) = watch::channel(None);
        shard.insert(Arc::clone(key), Flight { number, terms, outcome: outcome.clone() });
        drop(shard);
        // The entry is removed however the task ends, also if it never starts because its runtime
        // has ended.
        let entry = FlightEntry { flights: Arc::clone(self), key: Arc::clone(key), number };
        let chain = Chain(Arc::new(ChainLink {
            flights: Arc::as_ptr(self).addr(),
            key: Arc::clone(key),
            outer,
        }));
        // Boxed, so that the task is small: large tasks between the small allocations of entries
        // would fragment the memory.
        let load = Box::pin(LOADING.scope(chain, AssertUnwindSafe(load()).catch_unwind()));
        runtime.spawn(async move {
            let result = load.await.unwrap_or_else(|_| Err(Error::Panicked).into());
            drop(entry);
            sender.send_replace(Some(result));
        });
        Ok(Joined { outcome, began, came })
    }
}

/// Entry of a flight in the map of flights in progress.
struct FlightEntry {
    flights: Arc<Flights>,
    key: Arc<str>,
    number: u64,
}

impl Drop for FlightEntry {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(&self.key).lock();
        if shard.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            let flight = shard.remove(&self.key);
            drop(shard);
            drop(flight);
        }
    }
}

impl Joined {
    /// Waits for the end of the load. Returns `None` if the result is not valid for this caller,
    /// which must ask again: the load ended with its runtime, or one of its tags was invalidated
    /// before the caller arrived.
    pub(crate) async fn landed(mut self) -> Option<Result<Arc<Entry>, Error>> {
        let outcome = self.outcome.wait_for(Option::is_some).await.ok()?.clone()?;
        // Checked now: a tag may have been invalidated after the end of the load, and before this
        // caller arrived.
        let is_old = || {
            outcome.result.as_ref().is_ok_and(|entry| entry.stamps.agree() == Agreement::Changed)
        };
        let missed = self.came > self.began && (outcome.overtaken || is_old());
        (!missed).then_some(outcome.result)
    }
}
