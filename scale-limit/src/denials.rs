//! Cache of denials: a denied key is denied again without another call to the shared store.
//!
//! The store's ruling is exact except for units that other processes refund. So a denial is
//! remembered for a second at most: a key under attack costs the store one call a second from each
//! process, and a refund elsewhere takes effect a second late. While the store does not answer, its
//! last ruling counts until its retry time.

use crate::algorithm::{NEVER, Ruling};
use crate::bounded_map::{BoundedMap, EvictionRank};
use crate::policy::PolicyTerms;
use crate::store::Charge;

/// Maximum number of remembered keys.
const KEYS: usize = 131_072;
const LONGEST: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Denial {
    until: u64,
    /// Terms of the denial: it does not count once the quota is another one.
    terms: PolicyTerms,
    /// Requests of at least this cost are denied.
    cost: u32,
    remaining: u32,
    retry_at: u64,
    full_at: u64,
}

impl EvictionRank for Denial {
    fn rank(&self, _: u64) -> u64 {
        self.retry_at
    }
}

/// All denials that this process remembers.
#[derive(Debug)]
pub(crate) struct Denials(BoundedMap<Denial>);

impl Default for Denials {
    fn default() -> Self {
        Self(BoundedMap::new(KEYS))
    }
}

impl Denials {
    /// Returns the store's ruling, if the store is known to deny.
    pub(crate) fn find(&self, charge: &Charge<'_>, now: u64) -> Option<Ruling> {
        self.of(charge, now, |denial| denial.until)
    }

    /// Returns the store's last denial, until its retry time.
    pub(crate) fn still_denied(&self, charge: &Charge<'_>, now: u64) -> Option<Ruling> {
        self.of(charge, now, |denial| denial.retry_at)
    }

    fn of(&self, charge: &Charge<'_>, now: u64, until: impl Fn(&Denial) -> u64) -> Option<Ruling> {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let denial = BoundedMap::find(&mut shard, place, charge.policy, charge.key)?;
        let holds =
            now < until(denial) && charge.least >= denial.cost && charge.terms == denial.terms;
        holds.then(|| Ruling {
            admitted: false,
            granted: 0,
            remaining: denial.remaining,
            retry_after: denial.retry_at.saturating_sub(now),
            full_after: denial.full_at.saturating_sub(now),
        })
    }

    /// Remembers a denial that the store was asked for at `asked` (ns).
    pub(crate) fn remember(&self, charge: &Charge<'_>, ruling: &Ruling, asked: u64) {
        let wait = ruling.retry_after;
        if wait == 0 || wait == NEVER {
            return;
        }
        let denial = Denial {
            // Counted from the time of the call, because the answer took some of the time.
            until: asked + wait.min(LONGEST),
            terms: charge.terms,
            cost: charge.least,
            remaining: ruling.remaining,
            retry_at: asked + wait,
            full_at: asked + ruling.full_after,
        };
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        *self.0.entry(&mut shard, place, (charge.policy, charge.key), asked, || denial) = denial;
    }

    /// Forgets a denial after a refund.
    pub(crate) fn forget(&self, charge: &Charge<'_>) {
        self.0.remove(charge.policy, charge.key);
    }
}
