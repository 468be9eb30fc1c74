//! Placement of keys on shards. Pure policy, with the same result in every process that has the
//! same names.
//!
//! Rendezvous hashing (Thaler and Ravishankar, *Using Name-Based Mappings to Increase Hit Rates*,
//! 1998): each shard's name is hashed together with the key, and the shard with the highest hash
//! holds the key. A new shard takes an equal share from each of the others, and no key moves
//! between those. The hash is XXH3 of the key's bytes, seeded with XXH3 of the name. It is part of
//! the format of stored data, and never changes.

use std::collections::HashMap;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// A key by which rows are distributed: an account, a tenant.
pub trait ShardKey {
    /// Passes the key's bytes to a function. They must never change.
    fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T;
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl ShardKey for $int {
            /// Eight bytes, big endian: the same for all integer types.
            fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
                read(&i64::from(*self).to_be_bytes())
            }
        }
    )*};
}

integers!(i16, i32, i64, u16, u32);

macro_rules! wide {
    ($($int:ty),*) => {$(
        impl ShardKey for $int {
            /// Like the other integers if it fits into eight bytes, otherwise all of its bytes.
            fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
                match i64::try_from(*self) {
                    Ok(fits) => read(&fits.to_be_bytes()),
                    Err(_) => read(&self.to_be_bytes()),
                }
            }
        }
    )*};
}

wide!(u64, usize, isize, i128, u128);

#[cfg(feature = "uuid")]
impl ShardKey for uuid::Uuid {
    fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        read(self.as_bytes())
    }
}

impl ShardKey for str {
    fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        read(self.as_bytes())
    }
}

impl ShardKey for String {
    fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        read(self.as_bytes())
    }
}

impl ShardKey for [u8] {
    fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        read(self)
    }
}

impl<const N: usize> ShardKey for [u8; N] {
    /// Suits UUIDs: `id.as_bytes()`.
    fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        read(self)
    }
}

impl<K: ShardKey + ?Sized> ShardKey for &K {
    fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        (**self).with_bytes(read)
    }
}

/// Names of the shards, and the keys that are not placed by their hash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Placement {
    /// Seeds by shard number.
    seeds: Vec<u64>,
    /// Number of shards that take part in hashing; a shard that is being filled does not yet.
    hashing: usize,
    directory: HashMap<Box<[u8]>, usize, foldhash::fast::RandomState>,
}

impl Placement {
    pub(crate) fn new(names: &[String], hashing: usize) -> Self {
        Self {
            seeds: names.iter().map(|n| xxh3_64(n.as_bytes())).collect(),
            hashing,
            directory: HashMap::default(),
        }
    }

    /// Returns the shard of a key.
    pub(crate) fn of(&self, key: &[u8]) -> usize {
        self.directory.get(key).copied().unwrap_or_else(|| self.by_hash(key, self.hashing))
    }

    /// Returns the shard of a key once all shards take part in hashing.
    pub(crate) fn at_last(&self, key: &[u8]) -> usize {
        self.by_hash(key, self.seeds.len())
    }

    fn by_hash(&self, key: &[u8], among: usize) -> usize {
        // The lowest number among equal hashes, in every process.
        let hash =
            |shard: &usize| (xxh3_64_with_seed(key, self.seeds[*shard]), std::cmp::Reverse(*shard));
        (0..among).max_by_key(hash).unwrap_or_default()
    }

    pub(crate) fn put(&mut self, key: &[u8], shard: usize) {
        if shard == self.by_hash(key, self.hashing) {
            self.directory.remove(key);
        } else {
            self.directory.insert(key.into(), shard);
        }
    }

    /// Makes every shard take part in hashing. Entries of keys whose hash now leads to the same
    /// shard are dropped.
    pub(crate) fn settle(&mut self) {
        self.hashing = self.seeds.len();
        let entries = std::mem::take(&mut self.directory);
        for (key, shard) in entries {
            self.put(&key, shard);
        }
    }

    /// Copies the exceptions to a list of shards that begins with these.
    pub(crate) fn taken_over_by(&self, other: &Self) -> Self {
        Self { directory: self.directory.clone(), ..other.clone() }
    }

    pub(crate) fn is_growing(&self) -> bool {
        self.hashing < self.seeds.len()
    }

    /// Returns the number of keys that are not placed by their hash.
    pub(crate) fn exceptions(&self) -> usize {
        self.directory.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("shard-{n}")).collect()
    }

    #[test]
    fn the_format_stays() {
        // If these change, every user's data is on the wrong shard.
        let placement = Placement::new(&names(8), 8);
        let found: Vec<_> = (1..=12_i64).map(|n| n.with_bytes(|k| placement.of(k))).collect();
        assert_eq!(found, [4, 2, 3, 1, 0, 4, 1, 7, 1, 2, 5, 7]);
        assert_eq!("ann@example.org".with_bytes(|k| placement.of(k)), 2);
        assert_eq!(7_i16.with_bytes(<[u8]>::to_vec), 7_i64.with_bytes(<[u8]>::to_vec));
    }

    #[test]
    fn shares_are_even() {
        let placement = Placement::new(&names(10), 10);
        let mut count = [0_u32; 10];
        for n in 0..100_000_i64 {
            count[n.with_bytes(|k| placement.of(k))] += 1;
        }
        assert!(count.iter().all(|c| (9_500..10_500).contains(c)), "{count:?}");
    }

    proptest! {
        #[test]
        fn a_new_shard_only_takes_and_takes_its_share(old in 1_usize..12, start: i64) {
            let (before, after) = (
                Placement::new(&names(old), old), Placement::new(&names(old + 1), old + 1),
            );
            let mut moved = 0;
            for n in 0..2_000_i64 {
                let key = start.wrapping_add(n).to_be_bytes();
                if before.of(&key) != after.of(&key) {
                    prop_assert_eq!(after.of(&key), old, "nothing moves between the old ones");
                    moved += 1;
                }
            }
            let share = 2_000.0 / (old + 1) as f64;
            // Five standard deviations of a fair draw.
            prop_assert!(
                f64::from(moved) < share + 5.0 * share.sqrt(),
                "{} of 2000 moved to the {}th",
                moved,
                old + 1,
            );
        }

        #[test]
        fn while_a_shard_fills_keys_stay_until_they_are_put(keys: Vec<[u8; 8]>, old in 1_usize..6) {
            let before = Placement::new(&names(old), old);
            let mut growing = Placement::new(&names(old + 1), old);
            let after = Placement::new(&names(old + 1), old + 1);
            for key in &keys {
                prop_assert_eq!(growing.of(key), before.of(key));
                prop_assert_eq!(growing.at_last(key), after.of(key));
                growing.put(key, growing.at_last(key));
                prop_assert_eq!(growing.of(key), after.of(key));
            }
            growing.settle();
            prop_assert_eq!(growing.exceptions(), 0);
        }
    }
}
