//! Decisions while the store is away.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Charges, Limiter, Shared};
use crate::algorithm::Ruling;
use crate::permit::Permits;
use crate::policy::OnError;
use crate::store::{Charge, Charged, Settle, is_charged};

impl Limiter {
    /// Applies each policy's rule for a store that does not answer. A key that the store has denied
    /// stays denied until its retry time.
    pub(super) fn stand_in(&self, shared: &Shared, charges: &[Charge<'_>], now: u64) -> Charged {
        let fixed = |charge: &Charge<'_>, admitted| Ruling {
            admitted,
            granted: if admitted { charge.least } else { 0 },
            remaining: 0,
            retry_after: if admitted { 0 } else { 1_000_000_000 },
            full_after: 0,
        };
        let mut local: Charges<'_> = SmallVec::new();
        let mut held: SmallVec<[Option<Ruling>; 2]> = SmallVec::new();
        for charge in charges {
            charge.policy.count_error();
            let is_local = matches!(charge.policy.error_rule(), OnError::Local(_));
            if is_local {
                local.push(Charge { cost: charge.least, ..stood_in(charge) });
            }
            held.push(
                shared
                    .denials
                    .still_denied(charge, now)
                    .filter(|_| is_local && !charge.policy.is_dry_run()),
            );
        }
        // A policy that denies without counting must not charge the others.
        let denied = held.iter().any(Option::is_some)
            || charges
                .iter()
                .any(|c| c.policy.error_rule() == OnError::Deny && !c.policy.is_dry_run());
        let ruled = if denied { Vec::new() } else { self.memory.charge(now, &local) };
        let permits = self.places(&local, &ruled, !denied && is_charged(&local, &ruled));
        let mut ruled = ruled.into_iter();
        let rulings = charges
            .iter()
            .zip(held)
            .map(|(charge, held)| match (charge.policy.error_rule(), held) {
                (OnError::Allow, _) => fixed(charge, true),
                (OnError::Deny, _) => fixed(charge, false),
                (OnError::Local(_), Some(denied)) => denied,
                (OnError::Local(_), None) => ruled.next().unwrap_or_else(|| fixed(charge, true)),
            })
            .collect();
        Charged { rulings, permits }
    }

    /// Returns the permits that the memory store has granted.
    pub(super) fn places(
        &self,
        charges: &[Charge<'_>],
        rulings: &[Ruling],
        everybody: bool,
    ) -> Option<Permits> {
        if !everybody || !charges.iter().any(Charge::takes_place) {
            return None;
        }
        let held = charges.iter().zip(rulings).filter(|(c, r)| r.granted > 0 && c.takes_place());
        let held: Vec<_> =
            held.map(|(c, r)| (c.policy.clone(), c.key.to_owned(), r.granted, c.terms)).collect();
        let memory = Arc::clone(&self.memory);
        (!held.is_empty()).then(|| {
            Permits::new(move || {
                for (policy, key, cost, terms) in held {
                    let charge =
                        Charge { policy: &policy, key: &key, cost, least: cost, terms, permit: 0 };
                    memory.settle(memory.now(), &[charge], Settle::GiveBack(Duration::ZERO));
                }
            })
        })
    }
}

/// Returns a charge as the local fallback counts it.
pub(super) fn stood_in<'a>(charge: &Charge<'a>) -> Charge<'a> {
    let share = if let OnError::Local(share) = charge.policy.error_rule() { share } else { 1.0 };
    Charge { terms: charge.terms.share(share), ..*charge }
}
