//! The limiter: rules locally where possible, asks the store where necessary, and falls back to
//! local limits when the store does not answer.

mod decide;
mod fallback;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use scale_common::circuit_breaker::{self, CircuitBreaker};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::algorithm::Ruling;
use crate::decision::{By, Decision};
use crate::denials::Denials;
use crate::error::Error;
use crate::key;
use crate::lease::Leases;
use crate::policy::Policy;
use crate::store::{Charge, KeyValue, KeyValueStore, Memory, Settle, Store, Time};

/// A store that has failed five times in a row is called by one request in 100 ms.
const BREAKER: circuit_breaker::Rules = circuit_breaker::Rules {
    failures: 5,
    first_pause: Duration::from_millis(100),
    longest_pause: Duration::from_millis(100),
};

/// Applies policies to keys. A clone costs a few reference counts.
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
/// // Permits are held as long as the decision.
/// let reports = Policy::concurrency("reports", 1);
/// let held = limiter.check(&reports, "everybody").await;
/// assert!(held.admitted && !limiter.check(&reports, "everybody").await.admitted);
/// drop(held);
/// assert!(limiter.check(&reports, "everybody").await.admitted);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Limiter {
    /// Store of a limiter without a shared one; otherwise the fallback while the shared store does
    /// not answer.
    memory: Arc<Memory>,
    shared: Option<Arc<Shared>>,
    store_timeout: Duration,
    /// Circuit breaker of the handles with this time-out: handles with a longer time-out are not
    /// affected by failures of handles with a shorter one.
    breaker: Arc<CircuitBreaker>,
    /// Secret that keys are hashed with before they are stored.
    secret: [u8; 32],
}

/// A shared store, and what this process knows of its state.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    denials: Denials,
    leases: Leases,
}

/// Answer that is known without waiting.
#[allow(clippy::large_enum_variant)]
enum Known<'s> {
    Decision(Decision),
    /// Known rulings, and the store to ask for the others.
    Part(SmallVec<[Option<Ruling>; 2]>, &'s Arc<Shared>),
}

type Charges<'a> = SmallVec<[Charge<'a>; 2]>;
/// Keys as stores contain them.
type Names<'a> = SmallVec<[Cow<'a, str>; 2]>;

impl Limiter {
    /// Keeps limits in the memory of this process.
    pub fn memory() -> Self {
        let store_timeout = Duration::from_millis(20);
        Self {
            memory: Arc::default(),
            shared: None,
            store_timeout,
            breaker: Arc::new(CircuitBreaker::new(BREAKER)),
            secret: secret(""),
        }
    }

    /// Keeps limits in Redis, shared by all processes with the same Redis and `app`.
    #[cfg(feature = "redis")]
    pub fn redis(redis: scale_redis::Redis, app: &str) -> Self {
        let shared = Shared {
            store: Arc::new(crate::store::Redis::new(redis, app)),
            denials: Denials::default(),
            leases: Leases::default(),
        };
        Self { shared: Some(Arc::new(shared)), secret: secret(app), ..Self::memory() }
    }

    /// Keeps limits in a store of your own, shared by all processes with the same store and `app`.
    /// A store slower than Redis needs a longer [time-out](Self::store_timeout).
    pub fn with_store(store: impl KeyValueStore, app: &str) -> Self {
        let shared = Shared {
            store: Arc::new(KeyValue::new(store, app)),
            denials: Denials::default(),
            leases: Leases::default(),
        };
        Self { shared: Some(Arc::new(shared)), secret: secret(app), ..Self::memory() }
    }

    /// Picks the store by its address: `memory:`, or (feature `redis`) any address of
    /// `scale-redis`. Logs a warning if that Redis evicts keys when its memory is full, because
    /// limits would be lost with them.
    ///
    /// # Errors
    /// [`Error::Address`] for any other address; [`Error::Store`] if the server does not answer.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        match url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Self::memory()),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let redis = scale_redis::Redis::connect(url)
                    .await
                    .map_err(|e| Error::Store(Box::new(e)))?;
                redis.warn_of_eviction("limits and bans").await;
                Ok(Self::redis(redis, app))
            }
            _ => {
                let _ = app;
                Err(Error::address(url))
            }
        }
    }

    /// Returns a handle to the same limits with another time-out: how long the store may take
    /// before the rule of a policy for that case, [`OnError`](crate::policy::OnError), applies.
    /// Default: 20 ms. On a Redis Cluster the maximum is half a second: a slower node counts as
    /// lost.
    pub fn store_timeout(&self, store_timeout: Duration) -> Self {
        Self { store_timeout, breaker: Arc::new(CircuitBreaker::new(BREAKER)), ..self.clone() }
    }

    /// Returns a handle to the same limits that hashes keys with the application's secret, of 16
    /// bytes or more: a reader of the store cannot test guesses of a key's token or account. All
    /// processes of an application must use the same secret. Default: derived from the
    /// application's name, which is not a secret.
    pub fn secret(&self, secret: &[u8]) -> Self {
        Self { secret: Sha256::digest(secret).into(), ..self.clone() }
    }

    /// Uses tokio's clock, which tests can [pause] and [advance]. Starts without any charges. A
    /// shared store uses its server's clock.
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

    /// Charges one unit of one policy.
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

    /// Charges several policies at once, each with its key and cost: all admit, or none is charged.
    /// At most one round trip on one Redis server; one for each distinct key on a Cluster.
    pub async fn check_all(&self, charges: &[(&Policy, &str, u32)]) -> Decision {
        let names = self.names(charges);
        self.rule(&made(charges, &names)).await
    }

    /// Waits until one unit of one policy is available, for at most `most`, and takes it. A caller
    /// that would have to wait longer is denied at once, with [the time](Decision::retry_after).
    /// Callers that wait for one key have no order among them. Permits held by others
    /// ([`Policy::concurrency`]) are requested about ten times a second.
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

    /// Removes the charges of a key, for example after its owner has proved their identity, or has
    /// paid. Permits in use stay in use. Other processes remember a denial for a second at most.
    ///
    /// # Errors
    /// [`Error::Store`]: the charges are removed in this process, but perhaps not in the store.
    pub async fn clear(&self, policy: &Policy, key: &str) -> Result<(), Error> {
        let name = self.name(key);
        if policy.counts_places() {
            return Ok(());
        }
        let charge = Charge::stored(policy, key, &name, 1);
        self.memory.clear(&charge);
        let Some(shared) = &self.shared else { return Ok(()) };
        let told = tokio::time::timeout(
            self.store_timeout.max(Duration::from_secs(1)),
            shared.store.clear(&charge),
        )
        .await;
        shared.denials.forget(&charge);
        shared.leases.forget(&charge);
        told.unwrap_or_else(|_| Err(Error::Store("the store did not answer in time".into())))
    }

    /// Returns the key as stores contain it.
    #[inline]
    pub(crate) fn name<'k>(&self, key: &'k str) -> Cow<'k, str> {
        key::stored(key, &self.secret)
    }

    pub(crate) fn names<'k>(&self, charges: &[(&Policy, &'k str, u32)]) -> Names<'k> {
        charges.iter().map(|(_, key, _)| self.name(key)).collect()
    }

    /// Returns a key as reported to clients, in Base64, so that they learn nothing about its
    /// meaning.
    pub(crate) fn tag(&self, key: &str) -> String {
        data_encoding::BASE64.encode(&self.hash(&format!("told {key}")).as_bytes()[..8])
    }

    /// Returns a hash of a text that stores must not contain.
    pub(crate) fn hash(&self, text: &str) -> String {
        key::hash(text, &self.secret)
    }

    /// Returns the decision, if it is known without waiting.
    pub(crate) fn check_now(&self, charges: &[(&Policy, &str, u32)]) -> Option<Decision> {
        let names = self.names(charges);
        let charges = &made(charges, &names)[..];
        if let [one] = charges
            && !one.takes_place()
        {
            return self
                .rule_at_once(one)
                .map(|(now, ruling)| Decision::one(now, one, &ruling, None));
        }
        let now = self.memory.now();
        match self.rule_now(charges, now) {
            Known::Decision(decision) => Some(decision),
            Known::Part(rulings, shared) => {
                Self::put_back(charges, &rulings, shared, now);
                None
            }
        }
    }

    /// Refunds what `decision` charged: for limits that count failures only, or costs that turn out
    /// smaller. Units that were restored since are not refunded again. Returns `false` if the store
    /// could not be updated, so that the charge remains; or if there is nothing to refund, because
    /// the decision was a denial or has been refunded before.
    pub async fn refund(&self, decision: &Decision, charges: &[(&Policy, &str, u32)]) -> bool {
        let by = decision.take_charge();
        if by == By::Nobody {
            return false;
        }
        let age = Duration::from_nanos(self.memory.now().saturating_sub(decision.at));
        let names = self.names(charges);
        self.settle(&made(charges, &names), Settle::GiveBack(age), by == By::StandIn).await
    }

    /// Charges units that were already spent, even if too few are left: for costs that are known
    /// only afterwards. The maximum debt is what is restored in two periods (or twice the burst, if
    /// that takes longer). Returns `false` if the store could not be updated.
    pub async fn debit(&self, charges: &[(&Policy, &str, u32)]) -> bool {
        let names = self.names(charges);
        self.settle(&made(charges, &names), Settle::Debit, false).await
    }

    /// Returns the time of this limiter's clock (ns).
    pub(crate) fn now(&self) -> u64 {
        self.memory.now()
    }
}

/// Returns the default secret that keys are hashed with.
fn secret(app: &str) -> [u8; 32] {
    Sha256::digest(format!("scale-limit keys of {app}")).into()
}

/// Names the charges as the stores do.
fn made<'a>(charges: &[(&'a Policy, &'a str, u32)], names: &'a [Cow<'a, str>]) -> Charges<'a> {
    charges
        .iter()
        .zip(names)
        .map(|((policy, key, cost), name)| Charge::stored(policy, key, name, *cost))
        .collect()
}
