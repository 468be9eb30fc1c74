//! Denials remembered: who was denied until then is denied without asking the shared store again.
//!
//! The store's word is exact but for units that others give back meanwhile. So it is remembered for a second at most: a key under attack
//! costs the store one call a second from each process, and what was given back elsewhere is seen a second late. While the store does not
//! answer, its last word counts for as long as it said.

use crate::policy::Terms;
use crate::rule::{NEVER, Ruling};
use crate::store::{Charge, Table, Worth};

/// Keys remembered at most.
const KEYS: usize = 131_072;
const LONGEST: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Denial {
    until: u64,
    /// It is of no account once the quota is another one.
    terms: Terms,
    /// Requests of at least that cost are denied.
    cost: u32,
    remaining: u32,
    retry_at: u64,
    full_at: u64,
}

impl Worth for Denial {
    fn worth(&self, _: u64) -> u64 {
        self.retry_at
    }
}

/// All denials this process remembers.
#[derive(Debug)]
pub(crate) struct Denials(Table<Denial>);

impl Default for Denials {
    fn default() -> Self {
        Self(Table::new(KEYS))
    }
}

impl Denials {
    /// What the store would say, if it is known to deny.
    pub(crate) fn find(&self, charge: &Charge<'_>, now: u64) -> Option<Ruling> {
        self.of(charge, now, |denial| denial.until)
    }

    /// Returns the store's last denial, while it said to hold.
    pub(crate) fn still_denied(&self, charge: &Charge<'_>, now: u64) -> Option<Ruling> {
        self.of(charge, now, |denial| denial.retry_at)
    }

    fn of(&self, charge: &Charge<'_>, now: u64, until: impl Fn(&Denial) -> u64) -> Option<Ruling> {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let denial = Table::find(&mut shard, place, charge.policy, charge.key)?;
        let holds = now < until(denial) && charge.least >= denial.cost && charge.terms == denial.terms;
        holds.then(|| Ruling {
            admitted: false,
            granted: 0,
            remaining: denial.remaining,
            retry_after: denial.retry_at.saturating_sub(now),
            full_after: denial.full_at.saturating_sub(now),
        })
    }

    /// Remembers a denial asked for at `asked` (ns).
    pub(crate) fn remember(&self, charge: &Charge<'_>, ruling: &Ruling, asked: u64) {
        let wait = ruling.retry_after;
        if wait == 0 || wait == NEVER {
            return;
        }
        let denial = Denial {
            // From when it was asked: the answer was on its way for some of the time.
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

    /// Something was given back.
    pub(crate) fn forget(&self, charge: &Charge<'_>) {
        self.0.remove(charge.policy, charge.key);
    }
}
