//! Leased policies: units taken from the shared store in bulk, and spent in this process without
//! another call.
//!
//! A unit is spent within one lease after it was taken. So the units that a fleet admits in a
//! window of length `t` were taken in a window of length `t + lease`, and the shared bucket bounds
//! them: `burst + quota × (t + lease) / period`, for any number of processes.
//!
//! The next lease of a key in demand is requested before the current one is spent, so that no
//! request waits for it.

use std::time::Duration;

use crate::algorithm::Ruling;
use crate::bounded_map::{BoundedMap, EvictionRank};
use crate::policy::PolicyTerms;
use crate::store::Charge;

/// Maximum number of keys with leased units; the others are charged one request at a time.
const KEYS: usize = 131_072;
/// Time after which a lease can be requested again if the answer to a request never arrived.
const REQUEST_TIMEOUT_NS: u64 = 1_000_000_000;
/// Number of units spent of a lease that puts a key in demand.
const MANY: u32 = 16;

/// Leased units of one key.
#[derive(Debug, Default)]
struct Lease {
    units: u32,
    taken: u64,
    /// Time from which the units must not be spent any more.
    until: u64,
    /// Number of units spent so far.
    spent: u32,
    /// Time from which units were spent of this lease, not of an earlier one.
    since: u64,
    /// Time of the last spending.
    last: u64,
    /// Until this time another caller is requesting the next lease; others request only what they
    /// need.
    asked_until: u64,
    /// The next lease: its units, and when they were taken.
    next: Option<(u32, u64)>,
    /// Terms of the lease: it does not count once the quota is another one.
    terms: Option<PolicyTerms>,
}

/// Result of spending.
pub(crate) struct SpendResult {
    pub(crate) ruling: Ruling,
    /// Number of units of the next lease, which the caller must request now.
    pub(crate) wants: Option<u32>,
}

impl EvictionRank for Lease {
    fn rank(&self, _: u64) -> u64 {
        self.until
    }
}

impl Lease {
    /// Returns the time from which spendings are those of a lease that replaces this one now.
    fn begins(&self, now: u64) -> u64 {
        now.max(self.last.saturating_add(1))
    }

    /// Returns how many units the key needs per lease at its current rate, at most what is restored
    /// in that time.
    fn pace(&self, charge: &Charge<'_>, lease: Duration, now: u64) -> u32 {
        let lease = lease.as_nanos() as f64;
        let spent_in = (now.saturating_sub(self.taken) as f64).clamp(lease / 8.0, lease * 8.0);
        let pace = f64::from(self.spent) * lease / spent_in;
        let inflow = f64::from(charge.terms.quota) * lease / charge.terms.period as f64;
        pace.min(inflow) as u32
    }
}

/// All leases of this process.
#[derive(Debug)]
pub(crate) struct Leases(BoundedMap<Lease>);

impl Default for Leases {
    fn default() -> Self {
        Self(BoundedMap::new(KEYS))
    }
}

impl Leases {
    /// Spends leased units.
    pub(crate) fn spend(
        &self,
        charge: &Charge<'_>,
        lease: Duration,
        now: u64,
    ) -> Option<SpendResult> {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let held = BoundedMap::find(&mut shard, place, charge.policy, charge.key)?;
        if held.terms.is_some_and(|terms| terms != charge.terms) {
            *held = Lease::default();
        }
        let length = lease.as_nanos() as u64;
        if (now >= held.until || held.units < charge.cost)
            && let Some((units, taken)) = held.next.take()
        {
            *held = Lease {
                units,
                taken,
                until: taken + length,
                since: held.begins(now),
                terms: held.terms,
                ..Lease::default()
            };
        }
        if now >= held.until || held.units < charge.cost {
            return None;
        }
        held.units -= charge.cost;
        held.last = held.last.max(now);
        held.spent = held.spent.saturating_add(charge.cost);
        let ends = held.units < held.spent / 3 || now + length / 4 > held.until;
        let wants = (ends && held.spent >= MANY && held.next.is_none() && now >= held.asked_until)
            .then(|| {
                held.asked_until = now + REQUEST_TIMEOUT_NS;
                held.pace(charge, lease, now).max(1)
            });
        let left = held.until - now;
        let ruling = Ruling {
            admitted: true,
            granted: charge.cost,
            remaining: held.units,
            retry_after: 0,
            full_after: left,
        };
        Some(SpendResult { ruling, wants })
    }

    /// Stores the grant of the next lease, which was requested at `asked` (ns).
    pub(crate) fn keep_next(&self, charge: &Charge<'_>, granted: u32, lease: Duration, asked: u64) {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let Some(held) = BoundedMap::find(&mut shard, place, charge.policy, charge.key) else {
            return;
        };
        if held.asked_until == asked + REQUEST_TIMEOUT_NS {
            // If nothing was granted, the next request waits for a quarter of a lease.
            held.asked_until = if granted == 0 { asked + lease.as_nanos() as u64 / 4 } else { 0 };
            held.next = (granted > 0).then_some((granted, asked));
        }
    }

    /// Returns units that were spent at `spent_at` (ns), for a request that other policies denied.
    /// Units of a lease that has been replaced since are lost: they must not be spent later.
    pub(crate) fn put_back(&self, charge: &Charge<'_>, spent_at: u64) {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        if let Some(held) = BoundedMap::find(&mut shard, place, charge.policy, charge.key)
            && spent_at >= held.since
        {
            let back = charge.cost.min(held.spent);
            held.spent -= back;
            held.units += back;
        }
    }

    /// Returns how many units to request from the store.
    pub(crate) fn units_to_request(&self, charge: &Charge<'_>, lease: Duration, now: u64) -> u32 {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let held =
            self.0.entry(&mut shard, place, (charge.policy, charge.key), now, Lease::default);
        if now < held.asked_until {
            return charge.cost;
        }
        held.asked_until = now + REQUEST_TIMEOUT_NS;
        held.pace(charge, lease, now).max(charge.cost)
    }

    /// Stores the rest of a grant that was requested at `asked` (ns); 0 if denied.
    pub(crate) fn keep(&self, charge: &Charge<'_>, granted: u32, lease: Duration, asked: u64) {
        let place = self.0.place(charge.policy, charge.key);
        let mut shard = self.0.lock(place.shard());
        let held =
            self.0.entry(&mut shard, place, (charge.policy, charge.key), asked, Lease::default);
        if held.asked_until != asked + REQUEST_TIMEOUT_NS {
            // Another caller requested the lease: this grant is already spent.
            held.spent = held.spent.saturating_add(granted);
            return;
        }
        let units = granted.saturating_sub(charge.cost);
        let until = asked + lease.as_nanos() as u64;
        *held = Lease {
            units,
            taken: asked,
            until,
            since: held.begins(asked),
            spent: charge.cost,
            terms: Some(charge.terms),
            ..Lease::default()
        };
    }

    /// Drops the leased units.
    pub(crate) fn forget(&self, charge: &Charge<'_>) {
        self.0.remove(charge.policy, charge.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    const SECOND: Duration = Duration::from_secs(1);
    const NS: u64 = 1_000_000_000;

    fn policy() -> Policy {
        Policy::per_second("leased", 100).leased(SECOND)
    }

    /// Takes a lease of `units` at `now`, one of which is spent.
    fn take(leases: &Leases, charge: &Charge<'_>, units: u32, now: u64) {
        assert!(leases.units_to_request(charge, SECOND, now) >= 1);
        leases.keep(charge, units, SECOND, now);
    }

    fn spend(leases: &Leases, charge: &Charge<'_>, now: u64) -> bool {
        leases.spend(charge, SECOND, now).is_some()
    }

    #[test]
    fn no_unit_is_spent_after_its_lease() {
        let (leases, policy) = (Leases::default(), policy());
        let charge = Charge::new(&policy, "k", 1);
        take(&leases, &charge, 10, NS);
        assert!(spend(&leases, &charge, 2 * NS - 1));
        assert!(!spend(&leases, &charge, 2 * NS));
    }

    #[test]
    fn no_more_units_are_spent_than_were_taken() {
        let (leases, policy) = (Leases::default(), policy());
        let charge = Charge::new(&policy, "k", 1);
        take(&leases, &charge, 4, NS);
        assert_eq!((0..9).filter(|_| spend(&leases, &charge, NS)).count(), 3);
    }

    #[test]
    fn a_unit_is_put_back_into_its_own_lease_alone() {
        let (leases, policy) = (Leases::default(), policy());
        let charge = Charge::new(&policy, "k", 1);
        take(&leases, &charge, 2, NS);
        assert!(spend(&leases, &charge, NS + 5) && !spend(&leases, &charge, NS + 5));
        leases.put_back(&charge, NS + 5);
        assert!(spend(&leases, &charge, NS + 6), "it is back");
        // The request waits for another policy until this lease has been replaced.
        take(&leases, &charge, 2, 3 * NS);
        assert!(spend(&leases, &charge, 3 * NS + 1));
        leases.put_back(&charge, NS + 6);
        assert!(!spend(&leases, &charge, 3 * NS + 2), "it was a unit of the first lease");
        leases.put_back(&charge, 3 * NS + 1);
        assert!(spend(&leases, &charge, 3 * NS + 3));
    }
}
