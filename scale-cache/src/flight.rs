//! One load per key at a time, shared by all who want it. Who comes after an invalidation starts a load of its own.

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

use crate::entry::Entry;
use crate::error::Error;
use crate::fence::Fence;
use crate::stamp::Agreement;

/// The result of a load.
#[derive(Clone)]
pub(crate) struct Outcome {
    pub(crate) result: Result<Arc<Entry>, Error>,
    /// Something that the value depends on, and that only its loader could tell, was invalidated after the load began.
    pub(crate) overtaken: bool,
}

impl From<Result<Arc<Entry>, Error>> for Outcome {
    fn from(result: Result<Arc<Entry>, Error>) -> Self {
        Self { result, overtaken: false }
    }
}

/// What a load began with: two callers with the same may share it.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) fingerprint: u64,
    pub(crate) fence: Fence,
    pub(crate) era: u64,
    /// The number of the last invalidation of the tags that are known beforehand.
    pub(crate) bumped: u64,
    /// The number of the last invalidation of anything.
    pub(crate) number: u64,
    pub(crate) at: Instant,
}

impl Ground {
    fn is_shared_with(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint && self.fence == other.fence && self.era == other.era && self.bumped == other.bumped
    }
}

struct Flight {
    number: u64,
    ground: Ground,
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

/// The loads that the present task is a part of, the innermost first: what one of them waits for must not be one of them.
#[derive(Clone)]
pub(crate) struct Chain(Arc<Link>);

struct Link {
    /// The address of the flights: two caches may have the same key.
    flights: usize,
    key: Arc<str>,
    outer: Option<Chain>,
}

tokio::task_local! {
    static LOADING: Chain;
}

/// The loads that this task is a part of.
pub(crate) fn chain() -> Option<Chain> {
    LOADING.try_with(Clone::clone).ok()
}

/// A task that is a part of all these loads.
pub(crate) async fn within<F: Future>(chains: Vec<Chain>, task: F) -> F::Output {
    let mut merged: Option<Chain> = None;
    for chain in &chains {
        let mut link = Some(chain);
        while let Some(Chain(one)) = link {
            merged = Some(Chain(Arc::new(Link { flights: one.flights, key: Arc::clone(&one.key), outer: merged })));
            link = one.outer.as_ref();
        }
    }
    match merged {
        Some(merged) => LOADING.scope(merged, task).await,
        None => task.await,
    }
}

/// A load that the caller waits for.
pub(crate) struct Joined {
    outcome: watch::Receiver<Option<Outcome>>,
    /// The number of the last invalidation when the load began, and when the caller came.
    began: u64,
    came: u64,
}

impl Flights {
    fn shard(&self, key: &str) -> &Shard {
        &self.shards[(self.hasher.hash_one(key) >> 32) as usize % SHARDS]
    }

    /// Joins the load under way, or starts one, in a task of its own: dropping what waits for it neither ends nor doubles it. `came`: the
    /// number of the last invalidation when the caller asked; `is_trusted`: whether what was begun then may be believed.
    ///
    /// # Errors
    /// [`Error::Cycle`], [`Error::NoRuntime`].
    pub(crate) fn join<F>(
        self: &Arc<Self>,
        key: &Arc<str>,
        ground: Ground,
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
                // A key without a space is named as its caller knows it.
                return Err(Error::Cycle(key.strip_prefix(':').map_or_else(|| Arc::clone(key), Arc::from)));
            }
            waits = link.outer.as_ref();
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let began = ground.number;
        let mut shard = self.shard(key).lock();
        if let Some(flight) = shard.get(key).filter(|flight| flight.ground.is_shared_with(&ground))
            && is_trusted(flight.ground.at)
        {
            return Ok(Joined { outcome: flight.outcome.clone(), began: flight.ground.number, came });
        }
        let number = self.next.fetch_add(1, Relaxed);
        let (sender, outcome) = watch::channel(None);
        shard.insert(Arc::clone(key), Flight { number, ground, outcome: outcome.clone() });
        drop(shard);
        // However the task ends, or if it never begins because its runtime does, nobody joins it afterwards.
        let entry = FlightEntry { flights: Arc::clone(self), key: Arc::clone(key), number };
        let chain = Chain(Arc::new(Link { flights: Arc::as_ptr(self).addr(), key: Arc::clone(key), outer }));
        // Boxed, so that the task is small: large ones among the small pieces of entries keep an allocator from using memory again.
        let load = Box::pin(LOADING.scope(chain, AssertUnwindSafe(load()).catch_unwind()));
        runtime.spawn(async move {
            let result = load.await.unwrap_or_else(|_| Err(Error::Panicked).into());
            drop(entry);
            sender.send_replace(Some(result));
        });
        Ok(Joined { outcome, began, came })
    }
}

/// A flight's place among those under way.
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
    /// The end of the load. `None`: it is no answer for this caller, who has to ask again. It ended with its runtime, or what it depends on
    /// was invalidated before the caller came.
    pub(crate) async fn landed(mut self) -> Option<Result<Arc<Entry>, Error>> {
        let outcome = self.outcome.wait_for(Option::is_some).await.ok()?.clone()?;
        // Asked now: it may have been invalidated after its load had ended, and before this caller came.
        let is_old = || outcome.result.as_ref().is_ok_and(|entry| entry.stamps.agree() == Agreement::Changed);
        let missed = self.came > self.began && (outcome.overtaken || is_old());
        (!missed).then_some(outcome.result)
    }
}
