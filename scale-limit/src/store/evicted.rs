//! Denials of keys that were evicted from the table.
//!
//! In a flood of keys that are all used up, there is no emptier key to evict. So the key and the
//! counters of a denied key are dropped, but a fingerprint and the end of the denial stay, eight
//! bytes: until then the key is still denied.
//!
//! The entries are in sets of eight. In a full set an expired entry is replaced, or a random one.
//! Another key is mistaken for an entry in one of 10^11 cases.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Size of a set: the eight entries are in one cache line.
const WAYS: usize = 8;
const SETS: usize = 1 << 19;
/// Bits of an end, in seconds since the start of the table: half a year.
const END: u32 = 24;

/// Evicted denials; see the module.
#[derive(Debug, Default)]
pub(crate) struct Evicted(OnceLock<Box<[AtomicU64]>>);

impl Evicted {
    /// Remembers the denial of a key, by its hash, until a time in ns since the start of the table.
    pub(crate) fn remember(&self, hash: u64, until: u64, now: u64) {
        // Allocated by the first flood, because it takes 32 MB.
        let slots = self.0.get_or_init(|| (0..SETS * WAYS).map(|_| AtomicU64::new(0)).collect());
        let end = until.div_ceil(1_000_000_000).min((1 << END) - 1);
        let set = set_of(slots, hash);
        let ends = |slot: &AtomicU64| slot.load(Relaxed) & ((1 << END) - 1);
        let same = set.iter().find(|slot| slot.load(Relaxed) >> END == fingerprint(hash));
        let over = || set.iter().find(|slot| ends(slot) * 1_000_000_000 <= now);
        let slot = same.or_else(over).unwrap_or_else(|| &set[fastrand::usize(..WAYS)]);
        slot.store(fingerprint(hash) << END | end, Relaxed);
    }

    /// Returns the time until which a key is denied (ns), if known.
    pub(crate) fn find(&self, hash: u64, now: u64) -> Option<u64> {
        let slots = self.0.get()?;
        let slot = set_of(slots, hash)
            .iter()
            .map(|slot| slot.load(Relaxed))
            .find(|slot| slot >> END == fingerprint(hash))?;
        Some((slot & ((1 << END) - 1)) * 1_000_000_000).filter(|until| *until > now)
    }

    /// Forgets the denial of a key.
    pub(crate) fn forget(&self, hash: u64) {
        let Some(slots) = self.0.get() else { return };
        if let Some(slot) =
            set_of(slots, hash).iter().find(|slot| slot.load(Relaxed) >> END == fingerprint(hash))
        {
            slot.store(0, Relaxed);
        }
    }
}

fn set_of(slots: &[AtomicU64], hash: u64) -> &[AtomicU64] {
    let set = hash as usize % SETS * WAYS;
    &slots[set..set + WAYS]
}

/// Returns the bits that do not select the set.
fn fingerprint(hash: u64) -> u64 {
    (hash >> END).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_is_known_until_it_ends_or_is_forgotten() {
        let evicted = Evicted::default();
        assert_eq!(evicted.find(7 << 30, 0), None);
        evicted.remember(7 << 30, 1_500_000_000, 0);
        assert_eq!(evicted.find(7 << 30, 0), Some(2_000_000_000));
        assert_eq!(evicted.find(7 << 30, 2_000_000_000), None);
        assert_eq!(evicted.find(8 << 30, 0), None);
        evicted.forget(7 << 30);
        assert_eq!(evicted.find(7 << 30, 0), None);
        // In a full set expired entries are replaced first.
        for n in 1..=WAYS as u64 {
            evicted.remember(n << 40, n * 1_000_000_000, 0);
        }
        evicted.remember(20 << 40, 20_000_000_000, 3_000_000_000);
        let known = |now| {
            (1..=20).filter(|n: &u64| evicted.find(n << 40, now).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(known(3_000_000_000), [4, 5, 6, 7, 8, 20]);
        for n in 21..1_000 {
            evicted.remember(n << 40, 30_000_000_000, 3_000_000_000);
        }
        assert_eq!(
            (1..1_000).filter(|n: &u64| evicted.find(n << 40, 3_000_000_000).is_some()).count(),
            WAYS
        );
    }
}
