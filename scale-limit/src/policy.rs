//! What is allowed, in the words it is written with.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::error::Error;
use crate::gcra::Rate;

/// What a policy does while its store does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnError {
    /// Every request passes: for policies that only keep order.
    Allow,
    /// No request passes: for policies that guard something.
    Deny,
    /// This process alone enforces that share (0 to 1) of the quota, for example one over the number of processes.
    Local(f64),
}

/// A name, a quota for a period, and a burst.
///
/// ```
/// use scale_limit::Policy;
/// let login = Policy::per_minute("login", 5).burst(2);
/// assert_eq!(login.name(), "login");
/// ```
///
/// The algorithm is GCRA: a request is admitted if the sum of admitted costs stays, in *every* window of length `t`, at most
/// `burst + quota × t / period`. It needs one number per key and no timer.
#[derive(Clone, Debug)]
pub struct Policy(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    name: Arc<str>,
    quota: u32,
    period: Duration,
    burst: u32,
    on_error: OnError,
    dry_run: bool,
    /// Worked out once, from the numbers above.
    rate: Rate,
    counters: Counters,
}

/// The metric's keys, made once: a check must not pay for labels.
#[derive(Clone, Debug)]
struct Counters {
    admitted: metrics::Key,
    denied: metrics::Key,
}

impl Counters {
    fn new(name: &Arc<str>) -> Self {
        let key = |result: &'static str| {
            let labels = vec![metrics::Label::new("policy", Arc::clone(name)), metrics::Label::new("result", result)];
            metrics::Key::from_parts("scale_limit_checks_total", labels)
        };
        Self { admitted: key("admitted"), denied: key("denied") }
    }
}

impl Policy {
    /// At most `quota` in any second, spread evenly but for the burst.
    pub fn per_second(name: &str, quota: u32) -> Self {
        Self::new(name, quota, Duration::from_secs(1))
    }

    /// At most `quota` a minute.
    pub fn per_minute(name: &str, quota: u32) -> Self {
        Self::new(name, quota, Duration::from_mins(1))
    }

    /// At most `quota` an hour.
    pub fn per_hour(name: &str, quota: u32) -> Self {
        Self::new(name, quota, Duration::from_hours(1))
    }

    /// At most `quota` a period. A quota or period of zero is raised to the least that works (1; 1 ms). The burst is the quota.
    pub fn new(name: &str, quota: u32, period: Duration) -> Self {
        let quota = quota.max(1);
        let period = period.max(Duration::from_millis(1));
        let name = name.into();
        let counters = Counters::new(&name);
        Self(Arc::new(Inner {
            name,
            quota,
            period,
            burst: quota,
            on_error: OnError::Local(1.0),
            dry_run: false,
            rate: Rate::new(quota, period, quota),
            counters,
        }))
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        change(inner);
        inner.rate = Rate::new(inner.quota, inner.period, inner.burst);
        self
    }

    /// How much may come at once after a pause. Default: the quota.
    pub fn burst(self, burst: u32) -> Self {
        self.with(|p| p.burst = burst.max(1))
    }

    /// What happens while the store does not answer. Default: this process enforces the whole quota by itself.
    pub fn on_error(self, on_error: OnError) -> Self {
        self.with(|p| p.on_error = on_error)
    }

    /// Counts and reports but never denies: to measure a policy before enforcing it.
    pub fn dry_run(self) -> Self {
        self.with(|p| p.dry_run = true)
    }

    /// The name: in headers, metrics and keys.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Requests (or cost) a period.
    pub fn quota(&self) -> u32 {
        self.0.quota
    }

    /// The period.
    pub fn period(&self) -> Duration {
        self.0.period
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.0.name)
    }

    /// Counts a check.
    pub(crate) fn count(&self, admitted: bool) {
        static METADATA: metrics::Metadata<'_> =
            metrics::Metadata::new(module_path!(), metrics::Level::INFO, Some(module_path!()));
        let key = if admitted { &self.0.counters.admitted } else { &self.0.counters.denied };
        metrics::with_recorder(|recorder| recorder.register_counter(key, &METADATA)).increment(1);
    }

    pub(crate) fn rate(&self) -> Rate {
        self.0.rate
    }

    #[cfg(any(feature = "redis", test))]
    pub(crate) fn burst_size(&self) -> u32 {
        self.0.burst
    }

    pub(crate) fn error_rule(&self) -> OnError {
        self.0.on_error
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.0.dry_run
    }

    /// The same policy at a share of its quota and burst, under a name of its own: the local stand-in.
    pub(crate) fn share(&self, share: f64) -> Self {
        let scale = |n: u32| (f64::from(n) * share.clamp(0.0, 1.0)).floor().max(1.0) as u32;
        self.clone().with(|p| {
            p.quota = scale(p.quota);
            p.burst = scale(p.burst);
        })
    }
}

/// How a policy is written in a file: `{ name = "login", quota = 5, per = "1m", burst = 2, on_error = "deny" }`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    quota: u32,
    #[serde(with = "humantime_serde")]
    per: Duration,
    burst: Option<u32>,
    on_error: Option<OnError>,
    #[serde(default)]
    dry_run: bool,
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer)?;
        let wrong = |reason| serde::de::Error::custom(Error::Policy { name: written.name.clone(), reason });
        if written.quota == 0 {
            return Err(wrong("a quota of 0 would deny everything; leave the route out instead"));
        }
        if written.per < Duration::from_millis(1) {
            return Err(wrong("the period must be at least 1ms"));
        }
        if written.name.is_empty() || !written.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(wrong("a name is made of letters, digits, `-`, `_` and `.`"));
        }
        let policy = Self::new(&written.name, written.quota, written.per);
        Ok(policy.with(|p| {
            p.burst = written.burst.unwrap_or(p.burst).max(1);
            p.on_error = written.on_error.unwrap_or(p.on_error);
            p.dry_run = written.dry_run;
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_policy_is_read_or_its_mistake_named() {
        let read = |text: &str| serde_json::from_str::<Policy>(text);
        let policy = read(r#"{"name": "login", "quota": 5, "per": "1m", "burst": 2, "on_error": {"local": 0.5}}"#).unwrap();
        assert_eq!((policy.quota(), policy.period(), policy.burst_size()), (5, Duration::from_mins(1), 2));
        for (text, word) in [
            (r#"{"name": "x", "quota": 0, "per": "1m"}"#, "quota of 0"),
            (r#"{"name": "x", "quota": 1, "per": "0s"}"#, "at least 1ms"),
            (r#"{"name": "x y", "quota": 1, "per": "1s"}"#, "letters"),
            (r#"{"name": "x", "quota": 1, "per": "1s", "brust": 1}"#, "brust"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
