//! Quotas of single keys: a tenant that pays for more, a partner that gets no limit.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::task::JoinHandle;

/// How much in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Written")]
pub struct Quota {
    pub(crate) quota: u32,
    pub(crate) period: Duration,
    pub(crate) burst: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    quota: u32,
    #[serde(with = "humantime_serde")]
    per: Duration,
    burst: Option<u32>,
}

impl From<Written> for Quota {
    fn from(written: Written) -> Self {
        let quota = Self::new(written.quota, written.per);
        written.burst.map_or(quota, |burst| quota.burst(burst))
    }
}

impl Quota {
    /// `quota` a `period`; the burst is the quota. Zeros are raised to the least that works (1; 1 ms).
    pub fn new(quota: u32, period: Duration) -> Self {
        let quota = quota.max(1);
        Self { quota, period: period.max(Duration::from_millis(1)), burst: quota }
    }

    /// No limit at all.
    pub fn unlimited() -> Self {
        Self::new(u32::MAX, Duration::from_secs(1))
    }

    /// How much may come at once after a pause.
    pub fn burst(self, burst: u32) -> Self {
        Self { burst: burst.max(1), ..self }
    }
}

/// Quotas by key, looked up at each check and exchanged as a whole while running. A bucket that is empty when its quota
/// changes stays so, and fills at the new pace. Cloning costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use scale_limit::{Limiter, Policy, overrides::{Overrides, Quota}};
///
/// let tenants = Overrides::default();
/// let api = Policy::per_minute("api", 1).overrides(&tenants);
/// tenants.replace([("tenant:7".to_owned(), Quota::new(600, Duration::from_secs(60)))]);
///
/// let limiter = Limiter::memory();
/// for key in ["tenant:6", "tenant:7"] {
///     assert!(limiter.check(&api, key).await.admitted);
/// }
/// assert!(!limiter.check(&api, "tenant:6").await.admitted);
/// assert_eq!(limiter.check(&api, "tenant:7").await.outcomes()[0].remaining(), 598);
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Overrides(Arc<ArcSwap<HashMap<String, Quota>>>);

impl Overrides {
    /// From now on these, and no others.
    pub fn replace(&self, quotas: impl IntoIterator<Item = (String, Quota)>) {
        self.0.store(Arc::new(quotas.into_iter().collect()));
    }

    /// Loads them now and then, until all clones are gone or the handle is aborted. A load that fails changes nothing, and is logged.
    pub fn reload<L, F, E>(&self, every: Duration, load: L) -> JoinHandle<()>
    where
        L: Fn() -> F + Send + 'static,
        F: Future<Output = Result<HashMap<String, Quota>, E>> + Send,
        E: std::fmt::Display,
    {
        let target = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every.max(Duration::from_millis(10)));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let loaded = load().await;
                let Some(target) = target.upgrade() else { return };
                match loaded {
                    Ok(quotas) => target.store(Arc::new(quotas)),
                    Err(error) => tracing::warn!(%error, "quotas could not be loaded; those loaded before go on"),
                }
            }
        })
    }

    pub(crate) fn get(&self, key: &str) -> Option<Quota> {
        self.0.load().get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failed_load_changes_nothing_and_the_next_one_counts() {
        let overrides = Overrides::default();
        let turn = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let count = Arc::clone(&turn);
        let task = overrides.reload(Duration::from_secs(10), move || {
            let turn = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async move {
                if turn == 1 {
                    Err("down")
                } else {
                    Ok(HashMap::from([("a".to_owned(), Quota::new(turn + 1, Duration::from_secs(1)))]))
                }
            }
        });
        let mut seen = Vec::new();
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            seen.push(overrides.get("a").map(|q| q.quota));
        }
        task.abort();
        assert_eq!(seen, [Some(1), Some(1), Some(3)]);
    }
}
