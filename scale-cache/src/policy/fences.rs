//! Fences: detect whether a key was written or removed since a moment. Pure: no I/O.
//!
//! A key has a fence while it is in use: loaded, written, or read from the second level. An
//! operation takes the fence when it begins; a write or removal of the key moves the fence. The
//! result of an operation whose fence has moved is not kept. A value is inserted into and removed
//! from the first level under the same lock under which the fence is checked and moved: so no value
//! outlives a removal there.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::sync::Ordering::SeqCst;
use super::sync::{AtomicU64, Mutex};

const SHARDS: usize = if cfg!(loom) { 1 } else { 64 };

type Shard = Mutex<HashMap<Arc<str>, Arc<AtomicU64>, RandomState>>;

/// Fences of all keys in use.
#[derive(Debug)]
pub(crate) struct Fences {
    shards: Box<[Shard]>,
    hasher: RandomState,
}

/// State of a key's fence at the time of its creation.
#[derive(Debug)]
pub(crate) struct Fence {
    fences: Arc<Fences>,
    key: Arc<str>,
    /// Number of moves, shared by all operations on the key.
    moves: Arc<AtomicU64>,
    then: u64,
}

impl Default for Fences {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
        }
    }
}

impl Fences {
    fn shard(&self, key: &str) -> &Shard {
        &self.shards[(self.hasher.hash_one(key) >> 32) as usize % SHARDS]
    }

    /// Returns the current state of a key's fence.
    pub(crate) fn watch(self: &Arc<Self>, key: &Arc<str>) -> Fence {
        let mut shard = self.shard(key).lock();
        let moves = shard.entry(Arc::clone(key)).or_default();
        let (moves, then) = (Arc::clone(moves), moves.load(SeqCst));
        Fence { fences: Arc::clone(self), key: Arc::clone(key), moves, then }
    }

    /// Moves a key's fence, and runs `also` under the same lock.
    pub(crate) fn bump(&self, key: &str, also: impl FnOnce()) {
        let shard = self.shard(key).lock();
        if let Some(moves) = shard.get(key) {
            moves.fetch_add(1, SeqCst);
        }
        also();
    }

    /// Runs `work` while the fence of this key cannot move.
    pub(crate) fn hold<T>(&self, key: &str, work: impl FnOnce() -> T) -> T {
        let _shard = self.shard(key).lock();
        work()
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl Fence {
    /// Returns whether the fence has not moved since.
    pub(crate) fn stands(&self) -> bool {
        self.moves.load(SeqCst) == self.then
    }

    /// Runs `work` under the lock if the fence has not moved. Returns whether it ran.
    pub(crate) fn if_stands(&self, work: impl FnOnce()) -> bool {
        let _shard = self.fences.shard(&self.key).lock();
        let stands = self.stands();
        if stands {
            work();
        }
        stands
    }

    /// Moves the fence, runs `also` under the same lock, and takes the new state.
    pub(crate) fn bump(&mut self, also: impl FnOnce()) {
        let _shard = self.fences.shard(&self.key).lock();
        self.then = self.moves.fetch_add(1, SeqCst) + 1;
        also();
    }
}

impl Clone for Fence {
    fn clone(&self) -> Self {
        Self {
            fences: Arc::clone(&self.fences),
            key: Arc::clone(&self.key),
            moves: Arc::clone(&self.moves),
            then: self.then,
        }
    }
}

/// Two fences are equal if they have the same state of the same key.
impl PartialEq for Fence {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.moves, &other.moves) && self.then == other.then
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let mut shard = self.fences.shard(&self.key).lock();
        // Only the map and this one are left. Clones are made of counted fences, and first ones
        // under the lock.
        if Arc::strong_count(&self.moves) == 2 {
            shard.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_seen_by_those_before_it_alone() {
        let (fences, key): (Arc<Fences>, Arc<str>) = (Arc::default(), "k".into());
        let before = fences.watch(&key);
        fences.bump("other", || ());
        assert!(before.stands());
        fences.bump("k", || ());
        let after = fences.watch(&key);
        assert!(!before.stands() && after.stands() && before != after);
        assert!(!before.if_stands(|| unreachable!("it has moved")));
        assert_eq!(after, fences.watch(&key));
    }

    #[test]
    fn nothing_is_left_of_keys_nobody_works_with() {
        let fences: Arc<Fences> = Arc::default();
        let all: Vec<Fence> = (0..1_000).map(|n| fences.watch(&n.to_string().into())).collect();
        let copies = all.clone();
        drop(all);
        assert_eq!(fences.count(), 1_000);
        assert!(copies.iter().all(Fence::stands));
        drop(copies);
        assert_eq!(fences.count(), 0);
    }
}
