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

use crate::entry::Entry;
use crate::error::Error;
use crate::stamp::Fence;

pub(crate) type Outcome = Result<Arc<Entry>, Error>;

/// What a load began with: two callers with the same may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ground {
    pub(crate) fingerprint: u64,
    pub(crate) fence: Fence,
    pub(crate) era: u64,
    pub(crate) bumps: u32,
}

struct Flight {
    number: u64,
    ground: Ground,
    outcome: watch::Receiver<Option<Outcome>>,
}

const SHARDS: usize = 32;

pub(crate) struct Flights {
    shards: Box<[Mutex<HashMap<Arc<str>, Flight>>]>,
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

impl Flights {
    fn shard(&self, key: &str) -> &Mutex<HashMap<Arc<str>, Flight>> {
        &self.shards[(self.hasher.hash_one(key) >> 32) as usize % SHARDS]
    }

    /// Joins the load under way, or starts one, in a task of its own: dropping what waits for it neither ends nor doubles it.
    pub(crate) fn join<F>(
        self: &Arc<Self>,
        key: &Arc<str>,
        ground: Ground,
        load: impl FnOnce() -> F,
    ) -> watch::Receiver<Option<Outcome>>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut shard = self.shard(key).lock();
        if let Some(flight) = shard.get(key).filter(|flight| flight.ground == ground) {
            return flight.outcome.clone();
        }
        let number = self.next.fetch_add(1, Relaxed);
        let (sender, outcome) = watch::channel(None);
        shard.insert(Arc::clone(key), Flight { number, ground, outcome: outcome.clone() });
        drop(shard);
        // Boxed, so that the task is small: large ones among the small pieces of entries keep an allocator from using memory again.
        let load = Box::pin(AssertUnwindSafe(load()).catch_unwind());
        let (flights, key) = (Arc::clone(self), Arc::clone(key));
        tokio::spawn(async move {
            let result = load.await.unwrap_or(Err(Error::Panicked));
            let mut shard = flights.shard(&key).lock();
            if shard.get(&key).is_some_and(|flight| flight.number == number) {
                shard.remove(&key);
            }
            drop(shard);
            sender.send_replace(Some(result));
        });
        outcome
    }
}

/// The end of a flight.
pub(crate) async fn landed(mut outcome: watch::Receiver<Option<Outcome>>) -> Outcome {
    match outcome.wait_for(Option::is_some).await {
        Ok(outcome) => (*outcome).clone().unwrap_or(Err(Error::Panicked)),
        // Only when the runtime shuts down.
        Err(_) => Err(Error::Panicked),
    }
}
