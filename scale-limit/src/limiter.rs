//! The handle: asks the store, and stands in for it when it does not answer.

use std::sync::Arc;
use std::time::Duration;

use crate::decision::Decision;
use crate::error::Error;
use crate::gcra::Ruling;
use crate::policy::{OnError, Policy};
use crate::store::{Charge, Memory, Store, is_charged};

/// Applies policies to keys. Cloning costs one reference count.
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
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Limiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    /// What stands in while the store does not answer.
    stand_in: Arc<Memory>,
    patience: Duration,
}

impl Limiter {
    /// Limits of this process alone.
    pub fn memory() -> Self {
        Self::with_store(Arc::new(Memory::default()))
    }

    /// Limits shared by all that use the same Redis and `app`.
    #[cfg(feature = "redis")]
    pub fn redis(redis: scale_redis::Redis, app: &str) -> Self {
        Self::with_store(Arc::new(crate::store::Redis::new(redis, app)))
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
            other => {
                let _ = app;
                Err(Error::Address(other.chars().take(20).collect()))
            }
        }
    }

    fn with_store(store: Arc<dyn Store>) -> Self {
        Self(Arc::new(Inner { store, stand_in: Arc::default(), patience: Duration::from_millis(20) }))
    }

    /// The same limits for somebody with more or less time: how long the store may take before a policy's [`OnError`] rule stands in.
    /// Default: 20 ms.
    pub fn patience(&self, patience: Duration) -> Self {
        Self(Arc::new(Inner { store: Arc::clone(&self.0.store), stand_in: Arc::clone(&self.0.stand_in), patience }))
    }

    /// One unit of one policy.
    pub async fn check(&self, policy: &Policy, key: &str) -> Decision {
        let Some(memory) = self.0.store.local() else { return self.check_all(&[(policy, key, 1)]).await };
        let ruling = memory.charge_one(Charge { policy, key, cost: 1 });
        policy.count(ruling.admitted);
        Decision::new([(policy, ruling)])
    }

    /// Several policies, each with its key and cost, at once: all admit, or none is charged. At most one round trip on one Redis
    /// server; one for each distinct key on a Cluster.
    pub async fn check_all(&self, charges: &[(&Policy, &str, u32)]) -> Decision {
        let charges: Vec<_> = charges.iter().map(|(policy, key, cost)| Charge { policy, key, cost: *cost }).collect();
        let mut rulings = match self.0.store.local() {
            Some(memory) => memory.charge_now(&charges),
            None => match tokio::time::timeout(self.0.patience, self.0.store.charge(&charges, self.0.patience)).await {
                Ok(Ok(rulings)) => rulings,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the limits' store failed");
                    self.stand_in(&charges)
                }
                Err(_) => {
                    tracing::warn!(patience = ?self.0.patience, "the limits' store did not answer in time");
                    self.stand_in(&charges)
                }
            },
        };
        if !is_charged(&charges, &rulings) {
            for (charge, ruling) in charges.iter().zip(&mut rulings).filter(|(_, r)| r.admitted) {
                *ruling = charge.rate().uncharged(*ruling, charge.cost);
            }
        }
        for (charge, ruling) in charges.iter().zip(&rulings) {
            charge.policy.count(ruling.admitted);
        }
        Decision::new(charges.iter().map(|c| c.policy).zip(rulings))
    }

    /// Gives back what was charged: for limits that count failures only, or costs that turn out smaller. `false`: the store could not be
    /// told, and the charge stands.
    pub async fn refund(&self, charges: &[(&Policy, &str, u32)]) -> bool {
        let charges: Vec<_> = charges.iter().map(|(policy, key, cost)| Charge { policy, key, cost: *cost }).collect();
        let refund = tokio::time::timeout(self.0.patience, self.0.store.refund(&charges, self.0.patience)).await;
        let done = matches!(refund, Ok(Ok(())));
        if !done {
            // The stand-in may be who was charged.
            self.0.stand_in.give_back(&charges);
        }
        done
    }

    /// Each policy's own rule for a store that does not answer.
    fn stand_in(&self, charges: &[Charge<'_>]) -> Vec<Ruling> {
        metrics::counter!("scale_limit_store_errors_total").increment(1);
        let fixed = |admitted| Ruling {
            admitted,
            remaining: 0,
            retry_after: Some(if admitted { Duration::ZERO } else { Duration::from_secs(1) }),
            full_after: Duration::ZERO,
        };
        charges
            .iter()
            .map(|charge| match charge.policy.error_rule() {
                OnError::Allow => fixed(true),
                OnError::Deny => fixed(false),
                OnError::Local(share) => {
                    let policy = charge.policy.share(share);
                    let ruling = self.0.stand_in.charge_now(&[Charge { policy: &policy, ..*charge }]).pop();
                    ruling.unwrap_or_else(|| fixed(false))
                }
            })
            .collect()
    }
}
