//! An entry of the first level, and what it is worth now. Pure: time is given.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::stamp::{Agreement, Stamps, Versions};

/// What an entry takes beside its value: itself, its key, what it depends on, its place in the cache. Measured with glibc's allocator, under
/// a flood of keys; others take less.
const OVERHEAD: usize = 768;

/// Bytes that an entry takes in the first level, about, if its value's encoding has so many.
pub(crate) fn weight(encoded: usize) -> u32 {
    // Allocators round up.
    u32::try_from(encoded + encoded / 8 + OVERHEAD).unwrap_or(u32::MAX)
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) value: Arc<dyn Any + Send + Sync>,
    pub(crate) stamps: Stamps,
    /// The era in which it was loaded or last checked.
    pub(crate) era: u64,
    /// When it was made, wherever that was.
    pub(crate) made: Instant,
    /// When its load began, or when it was last checked against the second level.
    pub(crate) since: Instant,
    pub(crate) fresh_until: Instant,
    pub(crate) kept_until: Instant,
    /// How long its load took.
    pub(crate) cost: Duration,
    /// Bytes.
    pub(crate) weight: u32,
}

/// What an entry is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    Fresh,
    /// Expired, not invalidated.
    Stale,
    /// News may have been missed: ask the second level.
    Unsure,
    /// Invalidated, or too old for any use.
    Nothing,
}

impl Entry {
    /// `trust_until`: while the link to the news is down, what was known until then may be believed.
    pub(crate) fn worth(&self, now: Instant, versions: &Versions, trust_until: impl FnOnce(Instant) -> Option<Instant>) -> Worth {
        let agreement = self.stamps.agree();
        if agreement == Agreement::Changed {
            return Worth::Nothing;
        }
        if now >= self.kept_until {
            return Worth::Nothing;
        }
        if agreement == Agreement::Unknown || self.era != versions.era() || trust_until(self.since).is_some_and(|end| now >= end)
        {
            return Worth::Unsure;
        }
        if now < self.fresh_until { Worth::Fresh } else { Worth::Stale }
    }

    /// Returns whether to load anew already, so that nobody has to wait when it expires: the closer to the end and the dearer the load, the
    /// more likely, by the rule of "Optimal Probabilistic Cache Stampede Prevention" (Vattani, Chierichetti, Lowenstein, VLDB 2015).
    pub(crate) fn wants_refresh(&self, now: Instant, dice: impl FnOnce() -> f64) -> bool {
        // Most hits are nowhere near: spare them the logarithm.
        if now + self.cost * 8 < self.fresh_until {
            return false;
        }
        let left = self.fresh_until.saturating_duration_since(now);
        left.as_secs_f64() < -self.cost.as_secs_f64() * dice().max(f64::MIN_POSITIVE).ln()
    }
}
