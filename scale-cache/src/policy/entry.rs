//! An entry of the first level and its validity. Pure: the caller passes the time.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;
use crate::policy::versions::{Agreement, Stamps, Versions};

/// Bytes of an entry without its value: itself, its key, its tag versions, its slot in the cache.
/// Measured with glibc's allocator, under a flood of keys; other allocators take less.
const OVERHEAD: usize = 768;

/// Returns the approximate size of an entry in the first level, given the size of its encoded
/// value.
pub(crate) fn weight(encoded: usize) -> u32 {
    // Allocators round sizes up.
    u32::try_from(encoded + encoded / 8 + OVERHEAD).unwrap_or(u32::MAX)
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) value: Arc<dyn Any + Send + Sync>,
    pub(crate) stamps: Stamps,
    /// Era in which the entry was loaded or last revalidated.
    pub(crate) era: u64,
    /// Time of the load, in any process.
    pub(crate) made: Instant,
    /// Start of the load, or of the last revalidation in the second level.
    pub(crate) since: Instant,
    pub(crate) fresh_until: Instant,
    pub(crate) kept_until: Instant,
    /// Duration of the load.
    pub(crate) cost: Duration,
    /// Size in bytes.
    pub(crate) weight: u32,
}

/// Validity of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    Fresh,
    /// Expired, but not invalidated.
    Stale,
    /// Events may have been missed: the second level must be asked.
    MustRevalidate,
    /// Invalidated, or too old.
    Invalid,
}

impl Entry {
    /// Returns the validity of the entry. `trust_until` returns the time until which it may be
    /// served while the subscription is down.
    pub(crate) fn validity(
        &self,
        now: Instant,
        versions: &Versions,
        trust_until: impl FnOnce(Instant) -> Option<Instant>,
    ) -> Validity {
        let agreement = self.stamps.agree();
        if agreement == Agreement::Changed {
            return Validity::Invalid;
        }
        if now >= self.kept_until {
            return Validity::Invalid;
        }
        if agreement == Agreement::Unknown
            || self.era != versions.era()
            || trust_until(self.since).is_some_and(|end| now >= end)
        {
            return Validity::MustRevalidate;
        }
        if now < self.fresh_until { Validity::Fresh } else { Validity::Stale }
    }

    /// Returns whether to reload the entry early, so that no caller has to wait when it expires:
    /// the closer to the end and the longer the load, the more likely, by the rule of "Optimal
    /// Probabilistic Cache Stampede Prevention" (Vattani, Chierichetti, Lowenstein, VLDB 2015).
    pub(crate) fn wants_refresh(&self, now: Instant, dice: impl FnOnce() -> f64) -> bool {
        // Most hits are far from the end: no need for the logarithm.
        if now + self.cost * 8 < self.fresh_until {
            return false;
        }
        let left = self.fresh_until.saturating_duration_since(now);
        left.as_secs_f64() < -self.cost.as_secs_f64() * dice().max(f64::MIN_POSITIVE).ln()
    }
}
