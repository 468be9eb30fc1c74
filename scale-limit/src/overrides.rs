//! Quotas of single keys, for example of a tenant that pays for more, or of a partner without a
//! limit.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::task::JoinHandle;

/// A quota: how many units in which time.
///
/// | number | from | to |
/// | --- | --- | --- |
/// | quota | 1 | 4,294,967,294; 4,294,967,295 is [no limit](Self::unlimited) |
/// | period | 1 ms | 10 years |
/// | rate | | 100,000,000 a second |
/// | time in which an empty bucket fills, `burst × period / quota` | | 100 years |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
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

impl TryFrom<Written> for Quota {
    type Error = QuotaError;

    fn try_from(written: Written) -> Result<Self, QuotaError> {
        Self::try_new(written.quota, written.per, written.burst)
    }
}

/// Reason why numbers are not a valid quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuotaError {
    /// The quota is 0.
    #[error("a quota of 0 would deny everything; leave the route out, or ban the client")]
    Zero,
    /// The burst is 0.
    #[error("a burst of 0 would deny everything; the minimum is 1")]
    NoBurst,
    /// The period is under a millisecond or over ten years.
    #[error("the period must be at least 1ms and at most 10years")]
    Period,
    /// The rate is more than 100,000,000 a second.
    #[error(
        "the rate must be at most 100,000,000 a second; use u32::MAX, or `Quota::unlimited`, \
         for no limit"
    )]
    Pace,
    /// An empty bucket would take more than a century to fill.
    #[error("the burst is too large: an empty bucket would take over 100 years to fill")]
    Burst,
}

const YEAR: Duration = Duration::from_hours(24 * 365);
const LONGEST: Duration = YEAR.saturating_mul(10);
const SHORTEST: Duration = Duration::from_millis(1);
/// Nanoseconds per unit at the maximum rate.
const LEAST_INTERVAL: u128 = 10;
const LONGEST_BURST: u128 = YEAR.as_nanos() * 100;

impl Quota {
    /// Creates a quota of `quota` per `period`. The default burst is the quota.
    ///
    /// # Errors
    /// [`QuotaError`] for numbers outside of the [table](Self).
    pub fn try_new(quota: u32, period: Duration, burst: Option<u32>) -> Result<Self, QuotaError> {
        let this = Self { quota, period, burst: burst.unwrap_or(quota) };
        match this.check() {
            Some(error) => Err(error),
            None => Ok(this),
        }
    }

    /// Creates a quota of `quota` per `period`; the burst is the quota. Numbers outside of the
    /// [table](Self) are changed to the nearest valid ones, and an error is logged;
    /// [`try_new`](Self::try_new) refuses them.
    pub fn new(quota: u32, period: Duration) -> Self {
        Self { quota, period, burst: quota }.within()
    }

    /// Creates a quota of concurrent requests, for policies that grant permits.
    pub(crate) fn places(places: u32) -> Self {
        Self { quota: places.max(1), period: Duration::from_secs(1), burst: places.max(1) }
    }

    /// Creates a quota without a limit.
    pub fn unlimited() -> Self {
        Self { quota: u32::MAX, period: Duration::from_secs(1), burst: u32::MAX }
    }

    /// Sets how many units may be used at once after a pause. As in [`new`](Self::new), an invalid
    /// number is changed to the nearest valid one.
    pub fn burst(self, burst: u32) -> Self {
        Self { burst, ..self }.within()
    }

    fn check(&self) -> Option<QuotaError> {
        let per_unit = self.period.as_nanos().checked_div(u128::from(self.quota));
        match per_unit {
            _ if self.quota == u32::MAX => None,
            None => Some(QuotaError::Zero),
            _ if self.burst == 0 => Some(QuotaError::NoBurst),
            _ if self.period < SHORTEST || self.period > LONGEST => Some(QuotaError::Period),
            Some(nanos) if nanos < LEAST_INTERVAL => Some(QuotaError::Pace),
            Some(nanos) if nanos * u128::from(self.burst) > LONGEST_BURST => {
                Some(QuotaError::Burst)
            }
            Some(_) => None,
        }
    }

    /// Returns the nearest valid quota.
    fn within(self) -> Self {
        let Some(error) = self.check() else { return self };
        tracing::error!(
            quota = self.quota,
            period = ?self.period,
            burst = self.burst,
            %error,
            "a quota is invalid and was changed to the nearest valid one",
        );
        let period = self.period.clamp(SHORTEST, LONGEST);
        let fastest = u32::try_from(period.as_nanos() / LEAST_INTERVAL)
            .unwrap_or(u32::MAX - 1)
            .min(u32::MAX - 1);
        let quota = self.quota.clamp(1, fastest);
        let per_unit = period.as_nanos() / u128::from(quota);
        let most = u32::try_from(LONGEST_BURST / per_unit).unwrap_or(u32::MAX);
        Self { quota, period, burst: self.burst.clamp(1, most) }
    }
}

/// Quotas by key, looked up at each check and replaced as a whole at run time. A clone costs one
/// reference count.
///
/// A change of quota, period or burst takes effect at once. Used units stay used: after 1,000 of
/// 1,000 a day, 10,000 an hour leave 9,000; a smaller quota leaves nothing, and is restored at its
/// own rate. Processes that know different numbers of one key, as during a deployment, each enforce
/// their own numbers, and count what all of them admit. A change of the
/// [algorithm](crate::policy::Algorithm) starts again from zero.
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
    /// Replaces all quotas.
    pub fn replace(&self, quotas: impl IntoIterator<Item = (String, Quota)>) {
        self.0.store(Arc::new(quotas.into_iter().collect()));
    }

    /// Reloads the quotas every `every`, until all clones are dropped or the handle is aborted. A
    /// failed load changes nothing, and is logged.
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
                    Err(error) => {
                        tracing::warn!(
                            %error, "loading quotas failed: the previous quotas stay in use",
                        );
                    }
                }
            }
        })
    }

    /// Returns the quota of a key, if there is one.
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
                    Ok(HashMap::from([(
                        "a".to_owned(),
                        Quota::new(turn + 1, Duration::from_secs(1)),
                    )]))
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

    #[test]
    fn numbers_that_cannot_be_are_refused_or_become_the_nearest() {
        let day = Duration::from_hours(24);
        for (quota, period, burst, error) in [
            (0, day, None, QuotaError::Zero),
            (1, day, Some(0), QuotaError::NoBurst),
            (1, Duration::ZERO, None, QuotaError::Period),
            (1, Duration::MAX, None, QuotaError::Period),
            (200_000_000, Duration::from_secs(1), None, QuotaError::Pace),
            (1, day * 365, Some(101), QuotaError::Burst),
        ] {
            assert_eq!(Quota::try_new(quota, period, burst), Err(error));
            let nearest = burst
                .map_or(Quota::new(quota, period), |burst| Quota::new(quota, period).burst(burst));
            assert_eq!(nearest.check(), None, "{nearest:?}");
        }
        assert_eq!(Quota::new(1, Duration::MAX).period, LONGEST);
        assert!(Quota::try_new(u32::MAX, Duration::from_secs(1), None).is_ok(), "no limit");
        let read =
            |text: &str| serde_json::from_str::<Quota>(text).map_err(|error| error.to_string());
        assert!(read(r#"{"quota": 0, "per": "1s"}"#).unwrap_err().contains("quota of 0"));
        assert_eq!(
            read(r#"{"quota": 6, "per": "1m", "burst": 2}"#).unwrap(),
            Quota::new(6, Duration::from_mins(1)).burst(2)
        );
    }
}
