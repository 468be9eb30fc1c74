//! Decisions on a charge: from a lease in this process, else from the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::fallback::stood_in;
use super::{Charges, Known, Limiter, Shared};
use crate::algorithm::{Rule, Ruling};
use crate::decision::{By, Decision, Outcome};
use crate::error::Error;
use crate::lease::SpendResult;
use crate::permit::Permits;
use crate::poll_then_spawn::poll_then_spawn;
use crate::store::{Charge, Charged, Settle, is_charged};

impl Limiter {
    /// Rules on one charge, and returns the ruling with its time (ns), if that needs neither
    /// waiting nor a permit. This is the fast path.
    #[inline]
    pub(crate) fn rule_at_once(&self, charge: &Charge<'_>) -> Option<(u64, Ruling)> {
        let now = self.memory.now();
        let ruling = match (&self.shared, charge.terms.rule) {
            (_, Rule::Concurrency(_)) => return None,
            (_, Rule::Free) => Ruling::FREE,
            (None, _) => self.memory.charge_one(now, charge),
            (Some(shared), _) => self.knows(shared, charge, now)?,
        };
        charge.policy.count(ruling.admitted);
        Some((now, ruling))
    }

    /// Returns the ruling that this process can make on a shared limit: the path of hot keys.
    pub(super) fn knows(
        &self,
        shared: &Arc<Shared>,
        charge: &Charge<'_>,
        now: u64,
    ) -> Option<Ruling> {
        let in_hand = leased(charge).and_then(|lease| self.spend(shared, charge, lease, now));
        in_hand.or_else(|| shared.denials.find(charge, now).filter(|_| !charge.policy.is_dry_run()))
    }

    /// Spends leased units; requests the next lease before this one ends.
    pub(super) fn spend(
        &self,
        shared: &Arc<Shared>,
        charge: &Charge<'_>,
        lease: Duration,
        now: u64,
    ) -> Option<Ruling> {
        let SpendResult { ruling, wants } = shared.leases.spend(charge, lease, now)?;
        if let Some(wants) = wants.filter(|_| self.breaker.allows(now)) {
            let (this, shared, policy, key) =
                (self.clone(), Arc::clone(shared), charge.policy.clone(), charge.key.to_owned());
            let terms = charge.terms;
            poll_then_spawn(async move {
                let charge =
                    Charge { policy: &policy, key: &key, cost: wants, least: 1, terms, permit: 0 };
                let answer = tokio::time::timeout(
                    this.store_timeout,
                    shared.store.charge(&[charge], this.store_timeout),
                )
                .await;
                let granted = answer
                    .ok()
                    .and_then(Result::ok)
                    .and_then(|charged| Some(charged.rulings.first()?.granted));
                shared.leases.keep_next(&charge, granted.unwrap_or(0), lease, now);
            });
        }
        Some(ruling)
    }

    pub(super) async fn rule(&self, charges: &[Charge<'_>]) -> Decision {
        let now = self.memory.now();
        let (mut rulings, shared) = match self.rule_now(charges, now) {
            Known::Decision(decision) => return decision,
            Known::Part(rulings, shared) => (rulings, shared),
        };
        let reserved: SmallVec<[bool; 2]> = rulings.iter().map(Option::is_some).collect();
        // The remaining charges; of a leased policy, more units than needed.
        let asked: Charges<'_> = charges
            .iter()
            .zip(&rulings)
            .filter(|(_, ruling)| ruling.is_none())
            .map(|(charge, _)| match leased(charge) {
                Some(lease) => {
                    Charge { cost: shared.leases.units_to_request(charge, lease, now), ..*charge }
                }
                None => *charge,
            })
            .collect();
        let (charged, theirs) = self.ask(shared, &asked, now).await;
        let mut answers = charged.rulings.iter();
        for ruling in rulings.iter_mut().filter(|r| r.is_none()) {
            *ruling = answers.next().copied();
        }
        let mut rulings: SmallVec<[Ruling; 2]> = rulings.into_iter().flatten().collect();
        let everybody = is_charged(charges, &rulings);
        // A key that occurs twice may be denied because of its own first charge, which is then
        // refunded.
        let mut seen = HashSet::new();
        let again = |place: &_| !everybody && !seen.insert(*place);
        let twice: HashSet<_> = charges.iter().map(Charge::place).filter(again).collect();
        for ((charge, ruling), reserved) in charges.iter().zip(&mut rulings).zip(reserved) {
            if reserved {
                if !everybody && leased(charge).is_some() {
                    shared.leases.put_back(charge, now);
                }
                continue;
            }
            if let Some(lease) = leased(charge) {
                // A grant that was undone because another policy denies does not count.
                let granted = if everybody { ruling.granted } else { 0 };
                shared.leases.keep(charge, granted, lease, now);
            }
            if theirs
                && !ruling.admitted
                && !charge.policy.is_dry_run()
                && !twice.contains(&charge.place())
            {
                shared.denials.remember(charge, ruling, now);
            }
            if theirs && everybody && charge.policy.is_mirrored() {
                self.memory.settle(now, &[stood_in(charge)], Settle::Debit);
            }
        }
        decide(
            charges,
            &mut rulings,
            now,
            everybody,
            charged.permits,
            if theirs { By::Store } else { By::StandIn },
        )
    }

    pub(super) fn rule_now(&self, charges: &[Charge<'_>], now: u64) -> Known<'_> {
        let Some(shared) = &self.shared else {
            let mut rulings = self.memory.charge(now, charges);
            let everybody = is_charged(charges, &rulings);
            let permits = self.places(charges, &rulings, everybody);
            return Known::Decision(decide(
                charges,
                &mut rulings,
                now,
                everybody,
                permits,
                By::Store,
            ));
        };
        let denied: SmallVec<[(&Charge<'_>, Ruling); 2]> = charges
            .iter()
            .filter(|c| !c.policy.is_dry_run())
            .filter_map(|charge| Some((charge, shared.denials.find(charge, now)?)))
            .collect();
        if !denied.is_empty() {
            for (charge, _) in &denied {
                charge.policy.count(false);
            }
            return Known::Decision(Decision::new(
                now,
                By::Nobody,
                denied.iter().map(|(charge, ruling)| Outcome::new(charge, ruling)),
                None,
            ));
        }
        let mut rulings: SmallVec<[Option<Ruling>; 2]> = charges
            .iter()
            .map(|charge| match charge.terms.rule {
                Rule::Free => Some(Ruling::FREE),
                _ => leased(charge).and_then(|lease| self.spend(shared, charge, lease, now)),
            })
            .collect();
        if rulings.iter().all(Option::is_some) {
            let mut rulings: SmallVec<[Ruling; 2]> = rulings.drain(..).flatten().collect();
            return Known::Decision(decide(charges, &mut rulings, now, true, None, By::Store));
        }
        Known::Part(rulings, shared)
    }

    /// Returns leased units that were spent before the need to wait was known.
    pub(super) fn put_back(
        charges: &[Charge<'_>],
        rulings: &[Option<Ruling>],
        shared: &Shared,
        spent_at: u64,
    ) {
        for (charge, ruling) in charges.iter().zip(rulings) {
            if ruling.is_some() && leased(charge).is_some() {
                shared.leases.put_back(charge, spent_at);
            }
        }
    }

    /// Asks the shared store, or the local fallback; `true`: the store itself has answered.
    pub(super) async fn ask(
        &self,
        shared: &Shared,
        charges: &[Charge<'_>],
        now: u64,
    ) -> (Charged, bool) {
        if self.breaker.allows(now) {
            let start = Instant::now();
            let answer = tokio::time::timeout(
                self.store_timeout,
                shared.store.charge(charges, self.store_timeout),
            )
            .await;
            let took = start.elapsed();
            for charge in charges {
                charge.policy.took(took);
            }
            match answer {
                Ok(Ok(charged)) => {
                    self.breaker.succeeded();
                    return (charged, true);
                }
                // The store answers: this call is at fault, and other calls can continue.
                Ok(Err(error @ Error::Refused(_))) => {
                    tracing::error!(
                        %error, "limit store refused a command: the error rule applies",
                    );
                    self.breaker.succeeded();
                    return (self.stand_in(shared, charges, now), false);
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "limit store failed: error rules apply");
                }
                Err(_) => {
                    tracing::warn!(
                        store_timeout = ?self.store_timeout,
                        "the limit store did not answer in time: error rules apply",
                    );
                }
            }
            self.breaker.failed(self.memory.now());
        }
        (self.stand_in(shared, charges, now), false)
    }

    /// Settles charges. `stand_in`: the local fallback was charged, not the store.
    pub(super) async fn settle(&self, charges: &[Charge<'_>], how: Settle, stand_in: bool) -> bool {
        // Permits are released when they are dropped.
        let charges: Charges<'_> = charges
            .iter()
            .filter(|c| !matches!(c.terms.rule, Rule::Concurrency(_) | Rule::Free))
            .copied()
            .collect();
        let Some(shared) = &self.shared else {
            self.memory.settle(self.memory.now(), &charges, how);
            return true;
        };
        let mut told = true;
        if !stand_in {
            told = self.breaker.allows(self.memory.now()) && self.tell(shared, &charges, how).await;
            for charge in &charges {
                shared.denials.forget(charge);
            }
        }
        // The fallback keeps debts that the store could not record; guards' charges are recorded in
        // both.
        let of_stand_in = charges.iter().filter(|charge| {
            stand_in || (!told && how == Settle::Debit) || charge.policy.is_mirrored()
        });
        self.memory.settle(
            self.memory.now(),
            &of_stand_in.map(stood_in).collect::<Charges<'_>>(),
            how,
        );
        told
    }

    /// Settles charges in the store. Returns `false` if the store has not confirmed.
    pub(super) async fn tell(&self, shared: &Shared, charges: &[Charge<'_>], how: Settle) -> bool {
        let told = tokio::time::timeout(
            self.store_timeout,
            shared.store.settle(charges, how, self.store_timeout),
        )
        .await;
        match told {
            // A refusal is an answer, not an outage.
            Ok(Ok(()) | Err(Error::Refused(_))) => self.breaker.succeeded(),
            _ => self.breaker.failed(self.memory.now()),
        }
        matches!(told, Ok(Ok(())))
    }
}

pub(super) fn decide(
    charges: &[Charge<'_>],
    rulings: &mut [Ruling],
    now: u64,
    everybody: bool,
    permits: Option<Permits>,
    by: By,
) -> Decision {
    if !everybody {
        for (charge, ruling) in charges.iter().zip(&mut *rulings).filter(|(_, r)| r.admitted) {
            *ruling = charge.terms.rule.uncharged(*ruling, ruling.granted);
        }
    }
    for (charge, ruling) in charges.iter().zip(&*rulings) {
        charge.policy.count(ruling.admitted);
    }
    Decision::new(
        now,
        by,
        charges.iter().zip(&*rulings).map(|(charge, ruling)| Outcome::new(charge, ruling)),
        permits,
    )
}

/// Returns the lease of a policy that has one: only GCRA can be leased.
pub(super) fn leased(charge: &Charge<'_>) -> Option<Duration> {
    charge.policy.lease().filter(|_| matches!(charge.terms.rule, Rule::Gcra(_)))
}
