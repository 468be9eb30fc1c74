//! A map from policy and key to a value: sharded, bounded, with eviction of the entry of lowest
//! rank.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
use smol_str::SmolStr;

use crate::policy::{Identity, Policy};

const SHARDS: usize = 64;
/// Number of entries that a full shard compares to evict one of them.
const SAMPLE: usize = 16;

/// Entries that can be evicted.
pub(crate) trait EvictionRank {
    /// Returns the entry's rank at `now` (ns). Among a few sampled entries, the one with the lowest
    /// rank is evicted.
    fn rank(&self, now: u64) -> u64;
}

#[derive(Debug)]
struct Entry<V> {
    policy: Arc<Identity>,
    /// Key of at most [`LONGEST_KEY`](crate::key::LONGEST) bytes; longer keys are hashed before.
    key: SmolStr,
    value: V,
}

#[derive(Debug)]
pub(crate) struct Shard<V>(HashTable<Entry<V>>);

/// Shard on its own cache line, so that threads on different shards do not slow each other down.
#[derive(Debug)]
#[repr(align(64))]
struct Line<V>(Mutex<Shard<V>>);

#[derive(Debug)]
pub(crate) struct BoundedMap<V> {
    shards: Box<[Line<V>]>,
    hasher: foldhash::fast::RandomState,
    /// Maximum number of entries per shard.
    limit: usize,
}

/// Position of an entry: the hash of policy and key.
#[derive(Clone, Copy)]
pub(crate) struct Place(u64);

impl Place {
    pub(crate) fn shard(self) -> usize {
        // The hash table itself uses the low and the highest bits.
        (self.0 >> 40) as usize % SHARDS
    }

    /// Returns the hash of policy and key.
    pub(crate) fn hash(self) -> u64 {
        self.0
    }
}

impl<V: EvictionRank> BoundedMap<V> {
    /// Creates a map of at most `limit` entries.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Line(Mutex::new(Shard(HashTable::new())))).collect(),
            hasher: foldhash::fast::RandomState::default(),
            limit: (limit / SHARDS).max(1),
        }
    }

    pub(crate) fn place(&self, policy: &Policy, key: &str) -> Place {
        self.place_of(policy.seed(), key)
    }

    fn place_of(&self, seed: u64, key: &str) -> Place {
        Place(self.hasher.hash_one(key) ^ seed)
    }

    pub(crate) fn lock(&self, shard: usize) -> MutexGuard<'_, Shard<V>> {
        self.shards[shard].0.lock()
    }

    /// Returns the entry, if it exists.
    pub(crate) fn find<'s>(
        shard: &'s mut Shard<V>,
        place: Place,
        policy: &Policy,
        key: &str,
    ) -> Option<&'s mut V> {
        shard.0.find_mut(place.0, |e| is(e, policy, key)).map(|e| &mut e.value)
    }

    /// Returns the entry; creates it if it does not exist.
    pub(crate) fn entry<'s>(
        &self,
        shard: &'s mut Shard<V>,
        place: Place,
        (policy, key): (&Policy, &str),
        now: u64,
        make: impl FnOnce() -> V,
    ) -> &'s mut V {
        if shard.0.len() >= self.limit && shard.0.find(place.0, |e| is(e, policy, key)).is_none() {
            self.make_room(shard, now);
        }
        let entry = shard
            .0
            .entry(place.0, |e| is(e, policy, key), |e| self.place_of(e.policy.seed, &e.key).0)
            .or_insert_with(|| Entry {
                policy: Arc::clone(policy.identity()),
                key: key.into(),
                value: make(),
            });
        &mut entry.into_mut().value
    }

    /// If the shard is full, evicts the entry of lowest rank among a few random ones: a flood of
    /// keys must not cost a scan of the whole shard. Returns the evicted entry.
    pub(crate) fn make_room(&self, shard: &mut Shard<V>, now: u64) -> Option<(Place, V)> {
        if shard.0.len() < self.limit {
            return None;
        }
        let buckets = shard.0.num_buckets();
        let picked = std::iter::repeat_with(|| fastrand::usize(..buckets)).take(SAMPLE * 4);
        let entries =
            picked.filter_map(|n| Some((n, shard.0.get_bucket(n)?.value.rank(now)))).take(SAMPLE);
        let (least, _) = entries.min_by_key(|(_, worth)| *worth)?;
        let (entry, _) = shard.0.get_bucket_entry(least).ok()?.remove();
        Some((self.place_of(entry.policy.seed, &entry.key), entry.value))
    }

    /// Removes an entry.
    pub(crate) fn remove(&self, policy: &Policy, key: &str) {
        let place = self.place(policy, key);
        if let Ok(entry) = self.lock(place.shard()).0.find_entry(place.0, |e| is(e, policy, key)) {
            entry.remove();
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.0.lock().0.len()).sum()
    }
}

fn is<V>(entry: &Entry<V>, policy: &Policy, key: &str) -> bool {
    entry.key == key
        && (Arc::ptr_eq(&entry.policy, policy.identity()) || entry.policy == *policy.identity())
}
