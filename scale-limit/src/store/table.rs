//! Something for each policy and key: sharded, bounded, and forgetting what is worth least.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};

use crate::policy::Policy;

const SHARDS: usize = 64;
/// A full shard looks at that many entries and forgets one of them.
const SAMPLE: usize = 16;

/// What can be forgotten.
pub(crate) trait Worth {
    /// When it is worth nothing any more (ns); what is worth something for longest is kept.
    fn until(&self) -> u64;
}

#[derive(Debug)]
struct Entry<V> {
    policy: Arc<str>,
    seed: u64,
    key: Box<str>,
    value: V,
}

#[derive(Debug)]
pub(crate) struct Shard<V>(HashTable<Entry<V>>);

/// A cache line of its own: threads at work on different shards must not wait for each other's.
#[derive(Debug)]
#[repr(align(64))]
struct Line<V>(Mutex<Shard<V>>);

#[derive(Debug)]
pub(crate) struct Table<V> {
    shards: Box<[Line<V>]>,
    hasher: foldhash::fast::RandomState,
    /// Entries of one shard at most.
    limit: usize,
}

/// Where an entry is.
#[derive(Clone, Copy)]
pub(crate) struct Place(u64);

impl Place {
    pub(crate) fn shard(self) -> usize {
        // The table itself uses the low and the highest bits.
        (self.0 >> 40) as usize % SHARDS
    }
}

impl<V: Worth> Table<V> {
    /// That many entries at most.
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

    /// The entry, if there is one.
    pub(crate) fn find<'s>(shard: &'s mut Shard<V>, place: Place, policy: &Policy, key: &str) -> Option<&'s mut V> {
        shard.0.find_mut(place.0, |e| is(e, policy, key)).map(|e| &mut e.value)
    }

    /// The entry, made if there is none.
    pub(crate) fn entry<'s>(
        &self,
        shard: &'s mut Shard<V>,
        place: Place,
        (policy, key): (&Policy, &str),
        make: impl FnOnce() -> V,
    ) -> &'s mut V {
        if shard.0.len() >= self.limit && shard.0.find(place.0, |e| is(e, policy, key)).is_none() {
            make_room(shard);
        }
        let entry = shard.0.entry(place.0, |e| is(e, policy, key), |e| self.place_of(e.seed, &e.key).0).or_insert_with(|| {
            Entry { policy: Arc::clone(policy.shared_name()), seed: policy.seed(), key: key.into(), value: make() }
        });
        &mut entry.into_mut().value
    }

    /// Forgets an entry.
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

/// The least worth of a few, picked at random: a flood must not pay for a look at all.
fn make_room<V: Worth>(shard: &mut Shard<V>) {
    let buckets = shard.0.num_buckets();
    let picked = std::iter::repeat_with(|| fastrand::usize(..buckets)).take(SAMPLE * 4);
    let entries = picked.filter_map(|n| Some((n, shard.0.get_bucket(n)?.value.until()))).take(SAMPLE);
    if let Some((least, _)) = entries.min_by_key(|(_, until)| *until)
        && let Ok(entry) = shard.0.get_bucket_entry(least)
    {
        entry.remove();
    }
}

fn is<V>(entry: &Entry<V>, policy: &Policy, key: &str) -> bool {
    *entry.key == *key && (Arc::ptr_eq(&entry.policy, policy.shared_name()) || *entry.policy == *policy.name())
}
