//! Policies: quotas and how they are enforced.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use smol_str::SmolStr;

use crate::algorithm::{Rate, Rule, Window};
use crate::error::Error;
use crate::overrides::{Overrides, Quota, QuotaError};

/// Behaviour of a policy while its store does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnError {
    /// Every request is admitted: for policies that only shape traffic.
    Allow,
    /// Every request is denied: for policies that protect something.
    Deny,
    /// This process alone enforces that share (0 to 1) of the quota, for example 1 divided by the
    /// number of processes.
    Local(f64),
}

/// Algorithm of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Algorithm {
    /// A bucket that refills steadily: in *every* window of length `t` at most
    /// `burst + quota × t / period`. One number per key.
    #[default]
    Gcra,
    /// At most the quota in *every* window of a period. Admitted requests count for up to a tenth
    /// of the period too long. Eleven counters per key. No burst.
    SlidingWindow,
    /// At most the quota between two multiples of the period, so up to twice the quota around such
    /// a moment. One counter per key. No burst.
    FixedWindow,
    /// At most the quota at once: a permit is held as long as the [`Decision`](crate::Decision)
    /// lives. The period is ignored.
    Concurrency,
}

/// A name, a quota, and an algorithm.
///
/// ```
/// use std::time::Duration;
/// use scale_limit::{Policy, policy::Algorithm};
///
/// let login = Policy::per_minute("login", 5).burst(2);
/// let api = Policy::per_hour("api", 1_000).algorithm(Algorithm::SlidingWindow);
/// let reports = Policy::concurrency("reports", 3);
/// assert_eq!((login.name(), api.quota(), reports.quota()), ("login", 1_000, 3));
/// ```
#[derive(Clone, Debug)]
pub struct Policy(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    identity: Arc<Identity>,
    /// Seed of the identity, copied for faster access.
    seed: u64,
    name: SmolStr,
    quota: Quota,
    algorithm: Algorithm,
    on_error: OnError,
    dry_run: bool,
    lease: Option<Duration>,
    overrides: Option<Overrides>,
    /// `true` if this process also counts what the store admits, so that the local fallback knows
    /// it.
    mirrored: bool,
    /// Terms, computed once from the numbers above.
    terms: PolicyTerms,
    counters: Counters,
}

/// Identity of a policy: its name and its algorithm, because each algorithm has its own kind of
/// state.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    name: SmolStr,
    algorithm: Algorithm,
    /// Seed that distributes the policies' keys over a store's table.
    pub(crate) seed: u64,
    /// Id that distinguishes policies in a shared store. It is the same in all versions of this
    /// crate.
    pub(crate) id: [u8; 8],
}

impl Identity {
    fn new(name: &str, algorithm: Algorithm) -> Arc<Self> {
        use std::hash::BuildHasher;
        let seed = foldhash::quality::FixedState::with_seed(algorithm as u64).hash_one(name);
        let mut id = [0; 8];
        id.copy_from_slice(&Sha256::digest(name.as_bytes())[..8]);
        Arc::new(Self { name: name.into(), algorithm, seed, id })
    }
}

/// Numbers that apply to a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PolicyTerms {
    pub(crate) quota: u32,
    /// Period in nanoseconds.
    pub(crate) period: u64,
    pub(crate) rule: Rule,
}

impl PolicyTerms {
    pub(crate) fn new(quota: Quota, algorithm: Algorithm) -> Self {
        let Quota { quota, period, burst } = quota;
        let rule = match algorithm {
            _ if quota == u32::MAX => Rule::Free,
            Algorithm::Gcra => Rule::Gcra(Rate::new(quota, period, burst)),
            Algorithm::SlidingWindow => Rule::Window(Window::sliding(quota, period)),
            Algorithm::FixedWindow => Rule::Window(Window::fixed(quota, period)),
            Algorithm::Concurrency => Rule::Concurrency(quota),
        };
        Self { quota, period: u64::try_from(period.as_nanos()).unwrap_or(u64::MAX), rule }
    }

    /// Returns the quota and window (ns) as reported to clients. For a bucket these are its
    /// capacity, and the time that an empty bucket takes to fill: a client that spreads that many
    /// requests over that time is never denied. 0: concurrent requests, or no limit.
    #[inline]
    pub(crate) fn told(&self) -> (u32, u64) {
        match self.rule {
            Rule::Gcra(rate) => (rate.burst, rate.capacity()),
            Rule::Window(_) => (self.quota, self.period),
            Rule::Concurrency(places) => (places, 0),
            Rule::Free => (u32::MAX, 0),
        }
    }

    /// Returns a share (0 to 1) of the terms, but at least 1.
    pub(crate) fn share(self, share: f64) -> Self {
        let share = if share.is_nan() { 1e-6 } else { share.clamp(1e-6, 1.0) };
        let of = |n: u32| (f64::from(n) * share).floor().max(1.0) as u32;
        let rule = match self.rule {
            Rule::Gcra(rate) => Rule::Gcra(rate.share(share)),
            Rule::Window(window) => Rule::Window(Window { quota: of(window.quota), ..window }),
            Rule::Concurrency(places) => Rule::Concurrency(of(places)),
            Rule::Free => Rule::Free,
        };
        Self { quota: of(self.quota), rule, ..self }
    }
}

/// Keys of the metrics, created once: a check must not allocate labels.
#[derive(Clone, Debug)]
struct Counters {
    admitted: metrics::Key,
    denied: metrics::Key,
    errors: metrics::Key,
    seconds: metrics::Key,
}

static METADATA: metrics::Metadata<'_> =
    metrics::Metadata::new(module_path!(), metrics::Level::INFO, Some(module_path!()));

impl Counters {
    fn new(name: &str) -> Self {
        let name: Arc<str> = name.into();
        let policy = || metrics::Label::new("policy", Arc::clone(&name));
        let checks = |result: &'static str| {
            metrics::Key::from_parts(
                "scale_limit_checks_total",
                vec![policy(), metrics::Label::new("result", result)],
            )
        };
        Self {
            admitted: checks("admitted"),
            denied: checks("denied"),
            errors: metrics::Key::from_parts("scale_limit_errors_total", vec![policy()]),
            seconds: metrics::Key::from_parts("scale_limit_store_seconds", vec![policy()]),
        }
    }
}

impl Policy {
    /// Creates a policy of at most `quota` in any second, spread evenly except for the burst.
    pub fn per_second(name: &str, quota: u32) -> Self {
        Self::new(name, quota, Duration::from_secs(1))
    }

    /// Creates a policy of at most `quota` a minute.
    pub fn per_minute(name: &str, quota: u32) -> Self {
        Self::new(name, quota, Duration::from_mins(1))
    }

    /// Creates a policy of at most `quota` an hour.
    pub fn per_hour(name: &str, quota: u32) -> Self {
        Self::new(name, quota, Duration::from_hours(1))
    }

    /// Creates a policy of at most `places` concurrent requests ([`Algorithm::Concurrency`]). On
    /// Redis, the permits of a process that dies are released after half a minute.
    pub fn concurrency(name: &str, places: u32) -> Self {
        Self::of(name, Quota::places(places)).algorithm(Algorithm::Concurrency)
    }

    /// Creates a policy of at most `quota` per period. The burst is the quota. Invalid numbers are
    /// changed to the nearest valid ones, and an error is logged: see [`Quota`]; [`of`](Self::of)
    /// with [`Quota::try_new`] refuses them.
    pub fn new(name: &str, quota: u32, period: Duration) -> Self {
        Self::of(name, Quota::new(quota, period))
    }

    /// Creates a policy with this quota.
    ///
    /// ```
    /// use std::time::Duration;
    /// use scale_limit::{Policy, overrides::{Quota, QuotaError}};
    ///
    /// fn policy(per_minute: u32) -> Result<Policy, QuotaError> {
    ///     Ok(Policy::of("api", Quota::try_new(per_minute, Duration::from_secs(60), None)?))
    /// }
    /// assert_eq!(policy(0).unwrap_err(), QuotaError::Zero);
    /// ```
    pub fn of(name: &str, quota: Quota) -> Self {
        let algorithm = Algorithm::default();
        let identity = Identity::new(name, algorithm);
        Self(Arc::new(Inner {
            seed: identity.seed,
            name: identity.name.clone(),
            identity,
            counters: Counters::new(name),
            quota,
            algorithm,
            on_error: OnError::Local(1.0),
            dry_run: false,
            lease: None,
            overrides: None,
            mirrored: false,
            terms: PolicyTerms::new(quota, algorithm),
        }))
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        change(inner);
        inner.terms = PolicyTerms::new(inner.quota, inner.algorithm);
        self
    }

    /// Sets how many units may be used at once after a pause. Default: the quota. For
    /// [`Algorithm::Gcra`].
    pub fn burst(self, burst: u32) -> Self {
        self.with(|p| p.quota = p.quota.burst(burst))
    }

    /// Sets the algorithm. Default: [`Algorithm::Gcra`]. Policies with the same name and different
    /// algorithms count separately.
    pub fn algorithm(self, algorithm: Algorithm) -> Self {
        self.with(|p| {
            p.algorithm = algorithm;
            p.identity = Identity::new(&p.name, algorithm);
            p.seed = p.identity.seed;
        })
    }

    /// Sets the behaviour while the store does not answer. Default: this process enforces the whole
    /// quota by itself.
    pub fn on_error(self, on_error: OnError) -> Self {
        self.with(|p| p.on_error = on_error)
    }

    /// Counts and reports but never denies: to measure a policy before it is enforced.
    pub fn dry_run(self) -> Self {
        self.with(|p| p.dry_run = true)
    }

    /// Takes units from a shared store in bulk and spends them within `time` without another call:
    /// hot keys then cost the store a few calls a second instead of one for each request. For
    /// [`Algorithm::Gcra`]; a store in process has no need of leases.
    ///
    /// The cost: units may be spent up to `time` after they were taken, so in a window of length
    /// `t` up to `burst + quota × (t + time) / period` are admitted, for any number of processes. A
    /// process holds up to `quota × time / period` units that others cannot use, and loses those
    /// that it does not spend. A lease longer than the period is cut to one period.
    pub fn leased(self, time: Duration) -> Self {
        self.with(|p| p.lease = Some(time.min(p.quota.period)).filter(|t| !t.is_zero()))
    }

    /// Also counts in this process what the store admits, so that the local fallback continues from
    /// there: for guards.
    pub(crate) fn mirrored(self) -> Self {
        self.with(|p| p.mirrored = true)
    }

    /// Sets quotas of single keys, which replace the policy's quota and can change at run time.
    pub fn overrides(self, overrides: &Overrides) -> Self {
        let overrides = overrides.clone();
        self.with(|p| p.overrides = Some(overrides))
    }

    /// Returns the name, as used in headers, metrics and keys.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the number of requests (or units of cost) per period, or at once.
    pub fn quota(&self) -> u32 {
        self.0.quota.quota
    }

    /// Returns the period.
    pub fn period(&self) -> Duration {
        self.0.quota.period
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.0.identity
    }

    /// Returns the name, inline if short: reference counting of one name from all threads would
    /// cost more than a check.
    pub(crate) fn short_name(&self) -> &SmolStr {
        &self.0.name
    }

    pub(crate) fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Returns the quota and window (ns) as reported to clients.
    pub(crate) fn told(&self) -> (u32, u64) {
        self.0.terms.told()
    }

    pub(crate) fn is_mirrored(&self) -> bool {
        self.0.mirrored
    }

    /// Returns whether both policies have the same rules, apart from overrides.
    pub(crate) fn rules_as(&self, other: &Self) -> bool {
        self.0.terms == other.0.terms && self.0.algorithm == other.0.algorithm
    }

    /// Counts a check.
    pub(crate) fn count(&self, admitted: bool) {
        let key = if admitted { &self.0.counters.admitted } else { &self.0.counters.denied };
        metrics::with_recorder(|recorder| recorder.register_counter(key, &METADATA)).increment(1);
    }

    /// Counts a check in which the store failed.
    pub(crate) fn count_error(&self) {
        metrics::with_recorder(|recorder| {
            recorder.register_counter(&self.0.counters.errors, &METADATA)
        })
        .increment(1);
    }

    /// Records how long the store took.
    pub(crate) fn took(&self, time: Duration) {
        metrics::with_recorder(|recorder| {
            recorder.register_histogram(&self.0.counters.seconds, &METADATA)
        })
        .record(time.as_secs_f64());
    }

    /// Returns the terms that apply to a key.
    #[inline]
    pub(crate) fn terms(&self, key: &str) -> PolicyTerms {
        let own = self.0.overrides.as_ref().and_then(|o| o.get(key));
        own.map_or(self.0.terms, |quota| PolicyTerms::new(quota, self.0.algorithm))
    }

    pub(crate) fn lease(&self) -> Option<Duration> {
        self.0.lease
    }

    pub(crate) fn error_rule(&self) -> OnError {
        self.0.on_error
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.0.dry_run
    }

    /// Returns whether the quota is one of concurrent requests.
    pub(crate) fn counts_places(&self) -> bool {
        self.0.algorithm == Algorithm::Concurrency
    }
}

/// Form of a policy in a configuration file:
/// `{ name = "login", quota = 5, per = "1m", burst = 2, on_error = "deny" }`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    quota: u32,
    #[serde(default, with = "humantime_serde")]
    per: Option<Duration>,
    burst: Option<u32>,
    #[serde(default)]
    algorithm: Algorithm,
    on_error: Option<OnError>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default, with = "humantime_serde")]
    lease: Option<Duration>,
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer)?;
        let wrong = |reason: &str| {
            serde::de::Error::custom(Error::Policy {
                name: written.name.clone(),
                reason: reason.into(),
            })
        };
        if written.name.is_empty()
            || !written.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err(wrong("a name consists of letters, digits, `-`, `_` and `.`"));
        }
        if written.algorithm != Algorithm::Gcra
            && (written.burst.is_some() || written.lease.is_some())
        {
            return Err(wrong("only the algorithm `gcra` can have a burst or a lease"));
        }
        if let Some(OnError::Local(share)) = written.on_error
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(wrong("a local share must be greater than 0 and at most 1"));
        }
        let quota = match (written.per, written.algorithm) {
            _ if written.quota == 0 => return Err(wrong(&QuotaError::Zero.to_string())),
            (_, Algorithm::Concurrency) => Quota::places(written.quota),
            (None, _) => return Err(wrong("`per` is missing: add the period of the quota")),
            (Some(per), _) => Quota::try_new(written.quota, per, written.burst)
                .map_err(|error| wrong(&error.to_string()))?,
        };
        let policy = Self::of(&written.name, quota).algorithm(written.algorithm);
        Ok(policy.with(|p| {
            p.on_error = written.on_error.unwrap_or(p.on_error);
            p.dry_run = written.dry_run;
            p.lease = written.lease.map(|t| t.min(quota.period)).filter(|t| !t.is_zero());
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_policy_is_read_or_its_mistake_named() {
        let read = |text: &str| serde_json::from_str::<Policy>(text);
        let policy = read(
            r#"{"name": "login", "quota": 5, "per": "1m", "burst": 2, "on_error": {"local": 0.5}}"#,
        )
        .unwrap();
        assert_eq!(
            (policy.quota(), policy.period(), policy.0.quota.burst),
            (5, Duration::from_mins(1), 2)
        );
        read(r#"{"name": "reports", "quota": 2, "algorithm": "concurrency"}"#).unwrap();
        read(r#"{"name": "api", "quota": 9, "per": "1h", "lease": "500ms"}"#).unwrap();
        for (text, word) in [
            (r#"{"name": "x", "quota": 0, "per": "1m"}"#, "quota of 0"),
            (r#"{"name": "x", "quota": 1, "per": "0s"}"#, "at least 1ms"),
            (r#"{"name": "x", "quota": 1, "per": "11years"}"#, "at most 10years"),
            (r#"{"name": "x", "quota": 1, "per": "1y", "burst": 101}"#, "burst is too large"),
            (r#"{"name": "x y", "quota": 1, "per": "1s"}"#, "letters"),
            (r#"{"name": "x", "quota": 1, "per": "1s", "brust": 1}"#, "brust"),
            (r#"{"name": "x", "quota": 1}"#, "`per` is missing"),
            (r#"{"name":"x","quota":1,"per":"1s","algorithm":"fixed-window","burst":1}"#, "burst"),
            (r#"{"name": "x", "quota": 1, "per": "1s", "on_error": {"local": 1.5}}"#, "share"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
