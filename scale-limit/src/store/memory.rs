//! This process' own table: sharded, bounded, exact.
//!
//! Not governor's keyed store: it cannot look before it charges (several policies, all or none), and grows with every key it ever
//! saw. The decisions are the same; a property test holds them against governor's.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
use quanta::Clock;

use super::{Charge, Store, is_charged};
use crate::error::Error;
use crate::gcra::Ruling;

const SHARDS: usize = 64;
/// Entries of one shard; 64 shards of them hold about a million keys in about 100 MB.
const SHARD_LIMIT: usize = 16_384;
/// A full shard looks at that many entries to find one to forget.
const SAMPLE: usize = 16;

#[derive(Debug)]
struct Entry {
    policy: Arc<str>,
    key: Box<str>,
    tat: u64,
}

type Shard = HashTable<Entry>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Memory {
    shards: Box<[Mutex<Shard>]>,
    hasher: foldhash::fast::RandomState,
    /// The processor's counter where it can be trusted: half the price of asking the kernel.
    clock: Clock,
    start: u64,
}

impl Default for Memory {
    fn default() -> Self {
        let clock = Clock::new();
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
            start: clock.raw(),
            clock,
        }
    }
}

impl Memory {
    pub(crate) fn charge_now(&self, charges: &[Charge<'_>]) -> Vec<Ruling> {
        let now = self.now();
        self.charge_at(now, charges)
    }

    /// Nanoseconds since the start.
    fn now(&self) -> u64 {
        self.clock.delta_as_nanos(self.start, self.clock.raw())
    }

    /// The common case, without an allocation once the key is known.
    pub(crate) fn charge_one(&self, charge: Charge<'_>) -> Ruling {
        let now = self.now();
        let hash = self.hash(charge.policy.name(), charge.key);
        let mut shard = self.shards[shard_of(hash)].lock();
        let entry = shard.find_mut(hash, |e| is(e, &charge));
        let (ruling, tat) = charge.rate().rule(entry.as_ref().map(|e| e.tat), now, charge.cost);
        match entry {
            Some(entry) if ruling.admitted => entry.tat = tat,
            None if ruling.admitted => self.store(&mut shard, hash, &charge, tat, now),
            _ => {}
        }
        ruling
    }

    pub(crate) fn give_back(&self, charges: &[Charge<'_>]) {
        let now = self.now();
        for charge in charges {
            let hash = self.hash(charge.policy.name(), charge.key);
            let mut shard = self.shards[shard_of(hash)].lock();
            if let Some(entry) = shard.find_mut(hash, |e| is(e, charge)) {
                entry.tat = charge.rate().give_back(entry.tat, now, charge.cost);
            }
        }
    }

    fn charge_at(&self, now: u64, charges: &[Charge<'_>]) -> Vec<Ruling> {
        let hashes: Vec<u64> = charges.iter().map(|c| self.hash(c.policy.name(), c.key)).collect();
        // Locked in one order by everybody, so that nobody waits in a circle.
        let mut order: Vec<usize> = hashes.iter().map(|h| shard_of(*h)).collect();
        order.sort_unstable();
        order.dedup();
        let mut locked: Vec<(usize, MutexGuard<'_, Shard>)> = order.into_iter().map(|n| (n, self.shards[n].lock())).collect();
        let mut rulings = Vec::with_capacity(charges.len());
        let mut moves = Vec::with_capacity(charges.len());
        for (n, (charge, hash)) in charges.iter().zip(&hashes).enumerate() {
            // The same key asked twice in one call is charged twice.
            let earlier =
                (0..n).rev().find(|m| charges[*m].policy.name() == charge.policy.name() && charges[*m].key == charge.key);
            let stored = match earlier {
                Some(m) => Some(moves[m]),
                None => find(&mut locked, *hash).and_then(|s| s.find(*hash, |e| is(e, charge)).map(|e| e.tat)),
            };
            let (ruling, tat) = charge.rate().rule(stored, now, charge.cost);
            rulings.push(ruling);
            moves.push(tat);
        }
        let everybody = is_charged(charges, &rulings);
        for ((charge, hash), (ruling, tat)) in charges.iter().zip(&hashes).zip(rulings.iter().zip(moves)) {
            if ruling.admitted
                && everybody
                && let Some(shard) = find(&mut locked, *hash)
            {
                self.store(shard, *hash, charge, tat, now);
            }
        }
        rulings
    }

    fn store(&self, shard: &mut Shard, hash: u64, charge: &Charge<'_>, tat: u64, now: u64) {
        if let Some(entry) = shard.find_mut(hash, |e| is(e, charge)) {
            entry.tat = tat;
            return;
        }
        if shard.len() >= SHARD_LIMIT {
            self.make_room(shard, now);
        }
        let entry = Entry { policy: charge.policy.shared_name(), key: charge.key.into(), tat };
        shard.insert_unique(hash, entry, |e| self.hash(&e.policy, &e.key));
    }

    /// A key whose bucket is full again is no different from one never seen; failing that, the one nearest to it loses least.
    fn make_room(&self, shard: &mut Shard, now: u64) {
        let before = shard.len();
        shard.retain(|entry| entry.tat > now);
        if shard.len() < before {
            return;
        }
        let nearest = shard.iter().take(SAMPLE).min_by_key(|e| e.tat).map(|e| (self.hash(&e.policy, &e.key), e.tat));
        if let Some((hash, tat)) = nearest
            && let Ok(entry) = shard.find_entry(hash, |e| e.tat == tat)
        {
            entry.remove();
        }
    }

    fn hash(&self, policy: &str, key: &str) -> u64 {
        self.hasher.hash_one((policy, key))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }
}

fn find<'a>(locked: &'a mut [(usize, MutexGuard<'_, Shard>)], hash: u64) -> Option<&'a mut Shard> {
    locked.iter_mut().find(|(n, _)| *n == shard_of(hash)).map(|(_, shard)| &mut **shard)
}

fn is(entry: &Entry, charge: &Charge<'_>) -> bool {
    *entry.key == *charge.key && *entry.policy == *charge.policy.name()
}

fn shard_of(hash: u64) -> usize {
    // The table itself uses the low and the highest bits.
    (hash >> 40) as usize % SHARDS
}

#[async_trait]
impl Store for Memory {
    async fn charge(&self, charges: &[Charge<'_>], _: Duration) -> Result<Vec<Ruling>, Error> {
        Ok(self.charge_now(charges))
    }

    async fn refund(&self, charges: &[Charge<'_>], _: Duration) -> Result<(), Error> {
        self.give_back(charges);
        Ok(())
    }

    fn local(&self) -> Option<&Memory> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn charge<'a>(policy: &'a Policy, key: &'a str) -> Charge<'a> {
        Charge { policy, key, cost: 1 }
    }

    #[test]
    fn all_admit_or_none_is_charged() {
        let (tight, wide) = (Policy::per_minute("tight", 1), Policy::per_minute("wide", 10));
        let memory = Memory::default();
        assert!(memory.charge_at(0, &[charge(&wide, "a"), charge(&tight, "a")]).iter().all(|r| r.admitted));
        for _ in 0..50 {
            let rulings = memory.charge_at(0, &[charge(&wide, "a"), charge(&tight, "a")]);
            assert_eq!((rulings[0].admitted, rulings[1].admitted), (true, false));
        }
        assert_eq!(memory.charge_at(0, &[charge(&wide, "a")])[0].remaining, 8, "the denied ones took nothing");
    }

    #[test]
    fn one_charge_is_ruled_like_several() {
        let policy = Policy::per_hour("p", 3);
        let (one, several) = (Memory::default(), Memory::default());
        for _ in 0..5 {
            let ruling = one.charge_one(charge(&policy, "a"));
            let other = several.charge_now(&[charge(&policy, "a")])[0];
            assert_eq!((ruling.admitted, ruling.remaining), (other.admitted, other.remaining));
        }
    }

    #[test]
    fn the_same_key_twice_in_one_call_is_charged_twice() {
        let policy = Policy::per_minute("p", 3);
        let memory = Memory::default();
        let rulings = memory.charge_at(0, &[charge(&policy, "a"), charge(&policy, "a")]);
        assert_eq!((rulings[0].remaining, rulings[1].remaining), (2, 1));
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_forgets_full_buckets_first() {
        let policy = Policy::per_second("p", 1);
        let memory = Memory::default();
        let second = 1_000_000_000;
        for n in 0..(SHARDS * SHARD_LIMIT * 2) as u64 {
            memory.charge_at(n / 1_000 * second / 1_000, &[charge(&policy, &n.to_string())]);
        }
        assert!(memory.len() <= SHARDS * SHARD_LIMIT, "{}", memory.len());
    }
}
