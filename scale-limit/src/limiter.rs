//! The handle: rules by itself where it can, asks the store where it must, and stands in for it when it does not answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::breaker::Breaker;
use crate::decision::{Decision, Outcome};
use crate::denials::Denials;
use crate::error::Error;
use crate::lump::{Lumps, Spent};
use crate::permit::Permits;
use crate::policy::{OnError, Policy};
use crate::rule::{Rule, Ruling};
use crate::store::{Charge, Charged, Memory, Settle, Store, is_charged};
use crate::task::go_on;

/// Applies policies to keys. Cloning costs a few reference counts.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use scale_limit::{Limiter, Policy};
///
/// let limiter = Limiter::memory();
/// let login = Policy::per_minute("login", 5).burst(2);
/// assert!(limiter.check(&login, "203.0.113.7").await.admitted);
/// assert!(limiter.check(&login, "203.0.113.7").await.admitted);
/// let third = limiter.check(&login, "203.0.113.7").await;
/// assert!(!third.admitted);
/// assert!(third.retry_after().unwrap().as_secs() <= 12);
///
/// // Places are held as long as the decision.
/// let reports = Policy::at_once("reports", 1);
/// let held = limiter.check(&reports, "everybody").await;
/// assert!(held.admitted && !limiter.check(&reports, "everybody").await.admitted);
/// drop(held);
/// assert!(limiter.check(&reports, "everybody").await.admitted);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Limiter {
    /// The store of a limiter without a shared one; with one, what stands in while it does not answer.
    memory: Arc<Memory>,
    shared: Option<Arc<Shared>>,
    patience: Duration,
}

/// A shared store, and what this process knows of it.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    denials: Denials,
    lumps: Lumps,
    breaker: Breaker,
}

/// What can be said without waiting.
#[allow(clippy::large_enum_variant)]
enum Known<'s> {
    Decision(Decision),
    /// What is known already, and the store to ask for the rest.
    Part(SmallVec<[Option<Ruling>; 2]>, &'s Arc<Shared>),
}

type Charges<'a> = SmallVec<[Charge<'a>; 2]>;

impl Limiter {
    /// Limits of this process alone.
    pub fn memory() -> Self {
        Self { memory: Arc::default(), shared: None, patience: Duration::from_millis(20) }
    }

    /// Limits shared by all that use the same Redis and `app`.
    #[cfg(feature = "redis")]
    pub fn redis(redis: scale_redis::Redis, app: &str) -> Self {
        let shared = Shared {
            store: Arc::new(crate::store::Redis::new(redis, app)),
            denials: Denials::default(),
            lumps: Lumps::default(),
            breaker: Breaker::default(),
        };
        Self { shared: Some(Arc::new(shared)), ..Self::memory() }
    }

    /// Picks the store by its address: `memory:`, or (feature `redis`) any address of `scale-redis`.
    ///
    /// # Errors
    /// [`Error::Address`] for any other; [`Error::Store`] if nobody answers there.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        match url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Self::memory()),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let redis = scale_redis::Redis::connect(url).await.map_err(|e| Error::Store(Box::new(e)))?;
                Ok(Self::redis(redis, app))
            }
            _ => {
                let _ = app;
                Err(Error::address(url))
            }
        }
    }

    /// The same limits for somebody with more or less time: how long the store may take before a policy's [`OnError`] rule stands in.
    /// Default: 20 ms.
    pub fn patience(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// One unit of one policy.
    pub async fn check(&self, policy: &Policy, key: &str) -> Decision {
        let charge = Charge::new(policy, key, 1);
        match self.rule_at_once(&charge) {
            Some((now, ruling)) => Decision::one(now, &charge, &ruling, None),
            None => self.rule(&[charge]).await,
        }
    }

    /// Several policies, each with its key and cost, at once: all admit, or none is charged. At most one round trip on one Redis
    /// server; one for each distinct key on a Cluster.
    pub async fn check_all(&self, charges: &[(&Policy, &str, u32)]) -> Decision {
        self.rule(&made(charges)).await
    }

    /// The decision, if it takes no waiting.
    pub(crate) fn check_now(&self, charges: &[Charge<'_>]) -> Option<Decision> {
        if let [one] = charges
            && !one.takes_place()
        {
            return self.rule_at_once(one).map(|(now, ruling)| Decision::one(now, one, &ruling, None));
        }
        match self.rule_now(charges, self.memory.now()) {
            Known::Decision(decision) => Some(decision),
            Known::Part(rulings, shared) => {
                Self::put_back(charges, &rulings, shared);
                None
            }
        }
    }

    /// Gives back what `decision` charged: for limits that count failures only, or costs that turn out smaller. What has flowed back by
    /// itself meanwhile is not given twice. `false`: the store could not be told, and the charge stands.
    pub async fn refund(&self, decision: &Decision, charges: &[(&Policy, &str, u32)]) -> bool {
        let age = Duration::from_nanos(self.memory.now().saturating_sub(decision.at));
        self.settle(&made(charges), Settle::GiveBack(age)).await
    }

    /// Charges what has been spent already, however little is left: for costs that are known only afterwards. `false`: the store could not
    /// be told.
    pub async fn debit(&self, charges: &[(&Policy, &str, u32)]) -> bool {
        self.settle(&made(charges), Settle::Debit).await
    }

    /// This limiter's clock (ns).
    pub(crate) fn now(&self) -> u64 {
        self.memory.now()
    }

    async fn settle(&self, charges: &[Charge<'_>], how: Settle) -> bool {
        // Places are given back by whoever holds them.
        let charges: Charges<'_> =
            charges.iter().filter(|c| !matches!(c.terms.rule, Rule::Places(_) | Rule::Free)).copied().collect();
        let Some(shared) = &self.shared else {
            self.memory.settle(self.memory.now(), &charges, how);
            return true;
        };
        let told = tokio::time::timeout(self.patience, shared.store.settle(&charges, how, self.patience)).await;
        let told = matches!(told, Ok(Ok(())));
        for charge in &charges {
            shared.denials.forget(charge);
        }
        if !told {
            // The stand-in may be who was charged.
            self.memory.settle(self.memory.now(), &charges, how);
        }
        told
    }

    /// The ruling on one charge, and when it was made (ns), if it takes no waiting and gives no place: the path that has to be short.
    #[inline]
    pub(crate) fn rule_at_once(&self, charge: &Charge<'_>) -> Option<(u64, Ruling)> {
        let now = self.memory.now();
        let ruling = match (&self.shared, charge.terms.rule) {
            (_, Rule::Places(_)) => return None,
            (_, Rule::Free) => Ruling::FREE,
            (None, _) => self.memory.charge_one(now, charge),
            (Some(shared), _) => self.knows(shared, charge, now)?,
        };
        charge.policy.count(ruling.admitted);
        Some((now, ruling))
    }

    /// What this process can say of a shared limit: the path of hot keys.
    fn knows(&self, shared: &Arc<Shared>, charge: &Charge<'_>, now: u64) -> Option<Ruling> {
        let in_hand = leased(charge).and_then(|lease| self.spend(shared, charge, lease, now));
        in_hand.or_else(|| shared.denials.find(charge, now).filter(|_| !charge.policy.is_dry_run()))
    }

    /// Spends from the lump in hand; asks for the next one in good time.
    fn spend(&self, shared: &Arc<Shared>, charge: &Charge<'_>, lease: Duration, now: u64) -> Option<Ruling> {
        let Spent { ruling, wants } = shared.lumps.spend(charge, lease, now)?;
        if let Some(wants) = wants.filter(|_| shared.breaker.lets_through(now)) {
            let (this, shared, policy, key) = (self.clone(), Arc::clone(shared), charge.policy.clone(), charge.key.to_owned());
            go_on(async move {
                let charge = Charge { cost: wants, ..Charge::new(&policy, &key, 1) };
                let answer = tokio::time::timeout(this.patience, shared.store.charge(&[charge], this.patience)).await;
                let granted = answer.ok().and_then(Result::ok).and_then(|charged| Some(charged.rulings.first()?.granted));
                shared.lumps.keep_next(&charge, granted.unwrap_or(0), lease, now);
            });
        }
        Some(ruling)
    }

    async fn rule(&self, charges: &[Charge<'_>]) -> Decision {
        let now = self.memory.now();
        let (mut rulings, shared) = match self.rule_now(charges, now) {
            Known::Decision(decision) => return decision,
            Known::Part(rulings, shared) => (rulings, shared),
        };
        let reserved: SmallVec<[bool; 2]> = rulings.iter().map(Option::is_some).collect();
        // What is still to be asked for; of a leased policy, more than is needed.
        let asked: Charges<'_> = charges
            .iter()
            .zip(&rulings)
            .filter(|(_, ruling)| ruling.is_none())
            .map(|(charge, _)| match leased(charge) {
                Some(lease) => Charge { cost: shared.lumps.want(charge, lease, now), ..*charge },
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
        for ((charge, ruling), reserved) in charges.iter().zip(&mut rulings).zip(reserved) {
            if reserved {
                if !everybody && leased(charge).is_some() {
                    shared.lumps.put_back(charge);
                }
                continue;
            }
            if let Some(lease) = leased(charge) {
                // A grant that was undone because another policy denies is none.
                let granted = if everybody { ruling.granted } else { 0 };
                shared.lumps.keep(charge, granted, lease, now);
            }
            if theirs && !ruling.admitted && !charge.policy.is_dry_run() {
                shared.denials.remember(charge, ruling, now);
            }
        }
        decide(charges, &mut rulings, now, everybody, charged.permits)
    }

    fn rule_now(&self, charges: &[Charge<'_>], now: u64) -> Known<'_> {
        let Some(shared) = &self.shared else {
            let mut rulings = self.memory.charge(now, charges);
            let everybody = is_charged(charges, &rulings);
            let permits = self.places(charges, &rulings, everybody);
            return Known::Decision(decide(charges, &mut rulings, now, everybody, permits));
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
            return Known::Decision(Decision::new(now, denied.iter().map(|(charge, ruling)| Outcome::new(charge, ruling)), None));
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
            return Known::Decision(decide(charges, &mut rulings, now, true, None));
        }
        Known::Part(rulings, shared)
    }

    /// Puts back what was spent to find out that it takes waiting.
    fn put_back(charges: &[Charge<'_>], rulings: &[Option<Ruling>], shared: &Shared) {
        for (charge, ruling) in charges.iter().zip(rulings) {
            if ruling.is_some() && leased(charge).is_some() {
                shared.lumps.put_back(charge);
            }
        }
    }

    /// Asks the shared store, or whoever stands in for it; `true`: the store itself has answered.
    async fn ask(&self, shared: &Shared, charges: &[Charge<'_>], now: u64) -> (Charged, bool) {
        if shared.breaker.lets_through(now) {
            let start = Instant::now();
            let answer = tokio::time::timeout(self.patience, shared.store.charge(charges, self.patience)).await;
            let took = start.elapsed();
            for charge in charges {
                charge.policy.took(took);
            }
            match answer {
                Ok(Ok(charged)) => {
                    shared.breaker.answered();
                    return (charged, true);
                }
                Ok(Err(error)) => tracing::warn!(%error, "the limits' store failed"),
                Err(_) => tracing::warn!(patience = ?self.patience, "the limits' store did not answer in time"),
            }
            shared.breaker.failed(self.memory.now());
        }
        (self.stand_in(charges, now), false)
    }

    /// Each policy's own rule for a store that does not answer.
    fn stand_in(&self, charges: &[Charge<'_>], now: u64) -> Charged {
        let fixed = |charge: &Charge<'_>, admitted| Ruling {
            admitted,
            granted: if admitted { charge.least } else { 0 },
            remaining: 0,
            retry_after: if admitted { 0 } else { 1_000_000_000 },
            full_after: 0,
        };
        let mut local: Charges<'_> = SmallVec::new();
        for charge in charges {
            charge.policy.count_error();
            if let OnError::Local(share) = charge.policy.error_rule() {
                local.push(Charge { cost: charge.least, terms: charge.terms.share(share), ..*charge });
            }
        }
        // A policy that denies without counting must not cost the others anything.
        let denied = charges.iter().any(|c| c.policy.error_rule() == OnError::Deny && !c.policy.is_dry_run());
        let ruled = if denied { Vec::new() } else { self.memory.charge(now, &local) };
        let permits = self.places(&local, &ruled, !denied && is_charged(&local, &ruled));
        let mut ruled = ruled.into_iter();
        let rulings = charges
            .iter()
            .map(|charge| match charge.policy.error_rule() {
                OnError::Allow => fixed(charge, true),
                OnError::Deny => fixed(charge, false),
                OnError::Local(_) => ruled.next().unwrap_or_else(|| fixed(charge, true)),
            })
            .collect();
        Charged { rulings, permits }
    }

    /// The places that the memory gave.
    fn places(&self, charges: &[Charge<'_>], rulings: &[Ruling], everybody: bool) -> Option<Permits> {
        if !everybody || !charges.iter().any(Charge::takes_place) {
            return None;
        }
        let held = charges.iter().zip(rulings).filter(|(c, r)| r.granted > 0 && c.takes_place());
        let held: Vec<(Policy, String, u32)> = held.map(|(c, r)| (c.policy.clone(), c.key.to_owned(), r.granted)).collect();
        let memory = Arc::clone(&self.memory);
        (!held.is_empty()).then(|| {
            Permits::new(move || {
                for (policy, key, places) in held {
                    memory.settle(memory.now(), &[Charge::new(&policy, &key, places)], Settle::GiveBack(Duration::ZERO));
                }
            })
        })
    }
}

fn decide(charges: &[Charge<'_>], rulings: &mut [Ruling], now: u64, everybody: bool, permits: Option<Permits>) -> Decision {
    if !everybody {
        for (charge, ruling) in charges.iter().zip(&mut *rulings).filter(|(_, r)| r.admitted) {
            *ruling = charge.terms.rule.uncharged(*ruling, ruling.granted);
        }
    }
    for (charge, ruling) in charges.iter().zip(&*rulings) {
        charge.policy.count(ruling.admitted);
    }
    Decision::new(now, charges.iter().zip(&*rulings).map(|(charge, ruling)| Outcome::new(charge, ruling)), permits)
}

fn made<'a>(charges: &[(&'a Policy, &'a str, u32)]) -> Charges<'a> {
    charges.iter().map(|(policy, key, cost)| Charge::new(policy, key, *cost)).collect()
}

/// The lease of a policy that has one: only a bucket can be leased.
fn leased(charge: &Charge<'_>) -> Option<Duration> {
    charge.policy.lease().filter(|_| matches!(charge.terms.rule, Rule::Gcra(_)))
}
