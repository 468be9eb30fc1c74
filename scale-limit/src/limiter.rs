//! The handle: rules by itself where it can, asks the store where it must, and stands in for it when it does not answer.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::breaker::Breaker;
use crate::decision::{By, Decision, Outcome};
use crate::denials::Denials;
use crate::error::Error;
use crate::key;
use crate::lump::{Lumps, Spent};
use crate::permit::Permits;
use crate::policy::{OnError, Policy};
use crate::rule::{Rule, Ruling};
use crate::store::{Charge, Charged, Memory, Settle, Store, Time, is_charged};
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
    /// Of those with this patience: who waits longer is not kept from asking by who gives up sooner.
    breaker: Arc<Breaker>,
    /// Hashes the keys that stores must not know, or not in full.
    secret: [u8; 32],
}

/// A shared store, and what this process knows of it.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    denials: Denials,
    lumps: Lumps,
}

/// What can be said without waiting.
#[allow(clippy::large_enum_variant)]
enum Known<'s> {
    Decision(Decision),
    /// What is known already, and the store to ask for the rest.
    Part(SmallVec<[Option<Ruling>; 2]>, &'s Arc<Shared>),
}

type Charges<'a> = SmallVec<[Charge<'a>; 2]>;
/// Keys as stores know them.
type Names<'a> = SmallVec<[Cow<'a, str>; 2]>;

impl Limiter {
    /// Limits of this process alone.
    pub fn memory() -> Self {
        let patience = Duration::from_millis(20);
        Self { memory: Arc::default(), shared: None, patience, breaker: Arc::default(), secret: secret("") }
    }

    /// Limits shared by all that use the same Redis and `app`.
    #[cfg(feature = "redis")]
    pub fn redis(redis: scale_redis::Redis, app: &str) -> Self {
        let shared = Shared {
            store: Arc::new(crate::store::Redis::new(redis, app)),
            denials: Denials::default(),
            lumps: Lumps::default(),
        };
        Self { shared: Some(Arc::new(shared)), secret: secret(app), ..Self::memory() }
    }

    /// Picks the store by its address: `memory:`, or (feature `redis`) any address of `scale-redis`. Warns in the log if that Redis forgets
    /// keys when its memory is full: limits would be forgotten with them.
    ///
    /// # Errors
    /// [`Error::Address`] for any other; [`Error::Store`] if nobody answers there.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        match url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Self::memory()),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let redis = scale_redis::Redis::connect(url).await.map_err(|e| Error::Store(Box::new(e)))?;
                redis.warn_of_eviction("limits are forgotten, and bans,").await;
                Ok(Self::redis(redis, app))
            }
            _ => {
                let _ = app;
                Err(Error::address(url))
            }
        }
    }

    /// The same limits for somebody with more or less time: how long the store may take before a policy's [`OnError`] rule stands in.
    /// Default: 20 ms. On a Redis Cluster half a second is the most: a node that takes longer counts as lost.
    pub fn patience(&self, patience: Duration) -> Self {
        Self { patience, breaker: Arc::default(), ..self.clone() }
    }

    /// The same limits, with keys hashed under the application's secret, of 16 bytes or more: who reads the store cannot try out which
    /// token or account a key stands for. All processes of an application must say the same. Default: the application's name, which is no
    /// secret.
    pub fn secret(&self, secret: &[u8]) -> Self {
        Self { secret: Sha256::digest(secret).into(), ..self.clone() }
    }

    /// Counts by tokio's clock, which tests [pause] and [advance]. Begins with what has not been charged yet. A shared store goes by its
    /// server's clock.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// use scale_limit::{Limiter, Policy};
    ///
    /// let limiter = Limiter::memory().tokio_clock();
    /// let reports = Policy::per_hour("reports", 1);
    /// assert!(limiter.check(&reports, "ann").await.admitted);
    /// assert!(!limiter.check(&reports, "ann").await.admitted);
    /// tokio::time::advance(Duration::from_secs(3600)).await;
    /// assert!(limiter.check(&reports, "ann").await.admitted);
    /// # }
    /// ```
    ///
    /// [pause]: https://docs.rs/tokio/latest/tokio/time/fn.pause.html
    /// [advance]: https://docs.rs/tokio/latest/tokio/time/fn.advance.html
    pub fn tokio_clock(&self) -> Self {
        Self { memory: Arc::new(Memory::new(Time::tokio())), ..self.clone() }
    }

    /// One unit of one policy.
    pub async fn check(&self, policy: &Policy, key: &str) -> Decision {
        let hashed;
        let name = if key::is_kept(key) {
            key
        } else {
            hashed = self.name(key);
            &hashed
        };
        let charge = Charge::stored(policy, key, name, 1);
        match self.rule_at_once(&charge) {
            Some((now, ruling)) => Decision::one(now, &charge, &ruling, None),
            None => self.rule(&[charge]).await,
        }
    }

    /// Several policies, each with its key and cost, at once: all admit, or none is charged. At most one round trip on one Redis
    /// server; one for each distinct key on a Cluster.
    pub async fn check_all(&self, charges: &[(&Policy, &str, u32)]) -> Decision {
        let names = self.names(charges);
        self.rule(&made(charges, &names)).await
    }

    /// Waits until one unit of one policy is there, as long as `most`, and takes it. Who would have to wait for longer is denied at once,
    /// with [how long](Decision::retry_after). Those who wait for one key have no order among them; places held by others
    /// ([`Policy::at_once`]) are asked for ten times a second or so.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use scale_limit::{Limiter, Policy};
    ///
    /// let (limiter, mails) = (Limiter::memory(), Policy::per_second("mails", 1_000).burst(1));
    /// for _ in 0..5 {
    ///     assert!(limiter.acquire(&mails, "smtp", Duration::from_secs(5)).await.admitted);
    /// }
    /// # }
    /// ```
    pub async fn acquire(&self, policy: &Policy, key: &str, most: Duration) -> Decision {
        let deadline = tokio::time::Instant::now() + most.min(Duration::from_hours(24 * 365));
        loop {
            let decision = self.check(policy, key).await;
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if decision.admitted || left.is_zero() {
                return decision;
            }
            let wait = match decision.retry_after() {
                Some(wait) => wait.max(Duration::from_millis(1)),
                None if policy.counts_places() => Duration::from_millis(50 + fastrand::u64(..100)),
                None => return decision,
            };
            if wait > left && !policy.counts_places() {
                return decision;
            }
            tokio::time::sleep(wait.min(left)).await;
        }
    }

    /// Forgets what has been charged to a key: its owner has proved to be who he is, or has paid. Places that are held stay held. Other processes remember a denial for a second at most.
    ///
    /// # Errors
    /// [`Error::Store`]: this process has forgotten, the store could not be told.
    pub async fn clear(&self, policy: &Policy, key: &str) -> Result<(), Error> {
        let name = self.name(key);
        if policy.counts_places() {
            return Ok(());
        }
        let charge = Charge::stored(policy, key, &name, 1);
        self.memory.clear(&charge);
        let Some(shared) = &self.shared else { return Ok(()) };
        let told = tokio::time::timeout(self.patience.max(Duration::from_secs(1)), shared.store.clear(&charge)).await;
        shared.denials.forget(&charge);
        shared.lumps.forget(&charge);
        told.unwrap_or_else(|_| Err(Error::Store("no answer in time".into())))
    }

    /// The key as stores know it.
    #[inline]
    pub(crate) fn name<'k>(&self, key: &'k str) -> Cow<'k, str> {
        key::stored(key, &self.secret)
    }

    pub(crate) fn names<'k>(&self, charges: &[(&Policy, &'k str, u32)]) -> Names<'k> {
        charges.iter().map(|(_, key, _)| self.name(key)).collect()
    }

    /// A key as clients are told it, in Base64: they see nothing of what it stands for.
    pub(crate) fn tag(&self, key: &str) -> String {
        data_encoding::BASE64.encode(&self.hash(&format!("told {key}")).as_bytes()[..8])
    }

    /// A hash of something that stores must not know.
    pub(crate) fn hash(&self, text: &str) -> String {
        key::hash(text, &self.secret)
    }

    /// The decision, if it takes no waiting.
    pub(crate) fn check_now(&self, charges: &[(&Policy, &str, u32)]) -> Option<Decision> {
        let names = self.names(charges);
        let charges = &made(charges, &names)[..];
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
    /// itself meanwhile is not given twice. `false`: the store could not be told, and the charge stands; or there is nothing to give back,
    /// since the decision was a denial or has been given back before.
    pub async fn refund(&self, decision: &Decision, charges: &[(&Policy, &str, u32)]) -> bool {
        let by = decision.take_charge();
        if by == By::Nobody {
            return false;
        }
        let age = Duration::from_nanos(self.memory.now().saturating_sub(decision.at));
        let names = self.names(charges);
        self.settle(&made(charges, &names), Settle::GiveBack(age), by == By::StandIn).await
    }

    /// Charges what has been spent already, however little is left: for costs that are known only afterwards. Nobody owes more than flows
    /// back in two periods (or twice the burst, if that takes longer). `false`: the store could not be told.
    pub async fn debit(&self, charges: &[(&Policy, &str, u32)]) -> bool {
        let names = self.names(charges);
        self.settle(&made(charges, &names), Settle::Debit, false).await
    }

    /// This limiter's clock (ns).
    pub(crate) fn now(&self) -> u64 {
        self.memory.now()
    }

    /// `stand_in`: whoever stands in for the store was charged, and the store was not.
    async fn settle(&self, charges: &[Charge<'_>], how: Settle, stand_in: bool) -> bool {
        // Places are given back by whoever holds them.
        let charges: Charges<'_> =
            charges.iter().filter(|c| !matches!(c.terms.rule, Rule::Places(_) | Rule::Free)).copied().collect();
        let Some(shared) = &self.shared else {
            self.memory.settle(self.memory.now(), &charges, how);
            return true;
        };
        let mut told = true;
        if !stand_in {
            told = self.breaker.lets_through(self.memory.now()) && self.tell(shared, &charges, how).await;
            for charge in &charges {
                shared.denials.forget(charge);
            }
        }
        // Debts that the store does not know are the stand-in's, and guards' charges are known to both.
        let of_stand_in =
            charges.iter().filter(|charge| stand_in || (!told && how == Settle::Debit) || charge.policy.is_mirrored());
        self.memory.settle(self.memory.now(), &of_stand_in.map(stood_in).collect::<Charges<'_>>(), how);
        told
    }

    /// Tells the store; `false`: it does not know.
    async fn tell(&self, shared: &Shared, charges: &[Charge<'_>], how: Settle) -> bool {
        let told = tokio::time::timeout(self.patience, shared.store.settle(charges, how, self.patience)).await;
        match told {
            // A refusal is an answer: no outage.
            Ok(Ok(()) | Err(Error::Refused(_))) => self.breaker.answered(),
            _ => self.breaker.failed(self.memory.now()),
        }
        matches!(told, Ok(Ok(())))
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
        if let Some(wants) = wants.filter(|_| self.breaker.lets_through(now)) {
            let (this, shared, policy, key) = (self.clone(), Arc::clone(shared), charge.policy.clone(), charge.key.to_owned());
            let terms = charge.terms;
            go_on(async move {
                let charge = Charge { policy: &policy, key: &key, cost: wants, least: 1, terms, permit: 0 };
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
        // A key that comes twice may be denied for what it was charged a moment before, and given back.
        let mut seen = HashSet::new();
        let again = |place: &_| !everybody && !seen.insert(*place);
        let twice: HashSet<_> = charges.iter().map(Charge::place).filter(again).collect();
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
            if theirs && !ruling.admitted && !charge.policy.is_dry_run() && !twice.contains(&charge.place()) {
                shared.denials.remember(charge, ruling, now);
            }
            if theirs && everybody && charge.policy.is_mirrored() {
                self.memory.settle(now, &[stood_in(charge)], Settle::Debit);
            }
        }
        decide(charges, &mut rulings, now, everybody, charged.permits, if theirs { By::Store } else { By::StandIn })
    }

    fn rule_now(&self, charges: &[Charge<'_>], now: u64) -> Known<'_> {
        let Some(shared) = &self.shared else {
            let mut rulings = self.memory.charge(now, charges);
            let everybody = is_charged(charges, &rulings);
            let permits = self.places(charges, &rulings, everybody);
            return Known::Decision(decide(charges, &mut rulings, now, everybody, permits, By::Store));
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
        if self.breaker.lets_through(now) {
            let start = Instant::now();
            let answer = tokio::time::timeout(self.patience, shared.store.charge(charges, self.patience)).await;
            let took = start.elapsed();
            for charge in charges {
                charge.policy.took(took);
            }
            match answer {
                Ok(Ok(charged)) => {
                    self.breaker.answered();
                    return (charged, true);
                }
                // It answers: the fault is this call's, and no reason to leave the others' unasked.
                Ok(Err(error @ Error::Refused(_))) => {
                    tracing::error!(%error, "a limit's rule for a store that does not answer stands in");
                    self.breaker.answered();
                    return (self.stand_in(shared, charges, now), false);
                }
                Ok(Err(error)) => tracing::warn!(%error, "the limits' store failed"),
                Err(_) => tracing::warn!(patience = ?self.patience, "the limits' store did not answer in time"),
            }
            self.breaker.failed(self.memory.now());
        }
        (self.stand_in(shared, charges, now), false)
    }

    /// Each policy's own rule for a store that does not answer. Who the store has denied stays denied for as long as it said.
    fn stand_in(&self, shared: &Shared, charges: &[Charge<'_>], now: u64) -> Charged {
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
            held.push(shared.denials.still_denied(charge, now).filter(|_| is_local && !charge.policy.is_dry_run()));
        }
        // A policy that denies without counting must not cost the others anything.
        let denied = held.iter().any(Option::is_some)
            || charges.iter().any(|c| c.policy.error_rule() == OnError::Deny && !c.policy.is_dry_run());
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

    /// The places that the memory gave.
    fn places(&self, charges: &[Charge<'_>], rulings: &[Ruling], everybody: bool) -> Option<Permits> {
        if !everybody || !charges.iter().any(Charge::takes_place) {
            return None;
        }
        let held = charges.iter().zip(rulings).filter(|(c, r)| r.granted > 0 && c.takes_place());
        let held: Vec<_> = held.map(|(c, r)| (c.policy.clone(), c.key.to_owned(), r.granted, c.terms)).collect();
        let memory = Arc::clone(&self.memory);
        (!held.is_empty()).then(|| {
            Permits::new(move || {
                for (policy, key, cost, terms) in held {
                    let charge = Charge { policy: &policy, key: &key, cost, least: cost, terms, permit: 0 };
                    memory.settle(memory.now(), &[charge], Settle::GiveBack(Duration::ZERO));
                }
            })
        })
    }
}

fn decide(
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
    Decision::new(now, by, charges.iter().zip(&*rulings).map(|(charge, ruling)| Outcome::new(charge, ruling)), permits)
}

fn made<'a>(charges: &[(&'a Policy, &'a str, u32)], names: &'a [Cow<'a, str>]) -> Charges<'a> {
    charges.iter().zip(names).map(|((policy, key, cost), name)| Charge::stored(policy, key, name, *cost)).collect()
}

/// A charge as whoever stands in for the store counts it.
fn stood_in<'a>(charge: &Charge<'a>) -> Charge<'a> {
    let share = if let OnError::Local(share) = charge.policy.error_rule() { share } else { 1.0 };
    Charge { terms: charge.terms.share(share), ..*charge }
}

/// The default secret under which keys are hashed.
fn secret(app: &str) -> [u8; 32] {
    Sha256::digest(format!("scale-limit keys of {app}")).into()
}

/// The lease of a policy that has one: only a bucket can be leased.
fn leased(charge: &Charge<'_>) -> Option<Duration> {
    charge.policy.lease().filter(|_| matches!(charge.terms.rule, Rule::Gcra(_)))
}
