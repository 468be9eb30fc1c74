//! Options of an entry: how long it is kept, which tags invalidate it, and what happens if loading
//! fails.

use std::sync::Arc;
use std::time::Duration;

use crate::policy::versions::named;

/// Maximum of all times, about a hundred years: clocks cannot represent arbitrary times.
pub(crate) const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// Settings of a keyspace or of one call.
///
/// ```
/// use std::time::Duration;
/// let options = scale_cache::Options::ttl(Duration::from_mins(5))
///     .tag("product:7")
///     .stale_if_error(Duration::from_hours(1));
/// ```
#[must_use]
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) ttl: Duration,
    pub(crate) jitter: f64,
    pub(crate) tags: Vec<Arc<str>>,
    pub(crate) stale_if_error: Duration,
    pub(crate) throttle: Duration,
    pub(crate) refresh_ahead: bool,
    pub(crate) soft_timeout: Option<Duration>,
    pub(crate) hard_timeout: Duration,
    pub(crate) fail_closed: bool,
    pub(crate) sliding: bool,
}

impl Options {
    /// Creates options with this TTL, shortened at random by up to a tenth, so that entries loaded
    /// together do not expire together.
    pub fn ttl(ttl: Duration) -> Self {
        Self {
            ttl,
            jitter: 0.1,
            tags: Vec::new(),
            stale_if_error: Duration::ZERO,
            throttle: Duration::from_secs(1),
            refresh_ahead: true,
            soft_timeout: None,
            hard_timeout: Duration::from_secs(30),
            fail_closed: false,
            sliding: false,
        }
    }

    /// Adds a tag: the entry is invalidated together with all others that have the tag.
    pub fn tag(mut self, tag: impl Into<Arc<str>>) -> Self {
        self.tags.push(named(tag.into()));
        self
    }

    /// Adds several tags.
    pub fn tags<T: Into<Arc<str>>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags.extend(tags.into_iter().map(|tag| named(tag.into())));
        self
    }

    /// Sets the maximum share of the TTL that is subtracted at random, 0 to 1. Default: 0.1.
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
        self
    }

    /// Sets how long after its TTL an expired value is served if the loader fails. An invalidated
    /// value is never served. Default: not at all.
    pub fn stale_if_error(mut self, time: Duration) -> Self {
        self.stale_if_error = time;
        self
    }

    /// Sets how long a stale value is served after a failed load before the loader is tried again.
    /// Default: 1 s.
    pub fn throttle(mut self, time: Duration) -> Self {
        self.throttle = time;
        self
    }

    /// Sets whether a frequently read value is reloaded in the background shortly before it
    /// expires. Default: yes.
    pub fn refresh_ahead(mut self, yes: bool) -> Self {
        self.refresh_ahead = yes;
        self
    }

    /// Sets how long a caller waits for a new value if there is a stale one; the new value is still
    /// stored. Default: no limit.
    pub fn soft_timeout(mut self, limit: Duration) -> Self {
        self.soft_timeout = Some(limit);
        self
    }

    /// Sets the maximum duration of a load. Default: 30 s.
    pub fn hard_timeout(mut self, limit: Duration) -> Self {
        self.hard_timeout = limit;
        self
    }

    /// Restarts the TTL when a value is read with less than half of it left, so that used values
    /// stay. Default: no.
    pub fn sliding(mut self) -> Self {
        self.sliding = true;
        self.refresh_ahead = false;
        self
    }

    /// Returns an error instead of an outdated value, for example for permissions. Disables all
    /// options that serve stale values.
    pub fn fail_closed(mut self) -> Self {
        self.fail_closed = true;
        self.stale_if_error = Duration::ZERO;
        self.soft_timeout = None;
        self
    }

    /// Returns how long an entry is kept in total.
    pub(crate) fn kept(&self, ttl: Duration) -> Duration {
        if self.fail_closed { ttl } else { ttl.saturating_add(self.stale_if_error).min(LONGEST) }
    }

    pub(crate) fn jittered(&self, ttl: Duration, dice: f64) -> Duration {
        ttl.min(LONGEST).mul_f64(1.0 - self.jitter * dice)
    }
}

impl Default for Options {
    /// Returns options with a TTL of five minutes.
    fn default() -> Self {
        Self::ttl(Duration::from_mins(5))
    }
}
