//! How long something is kept, what invalidates it, and what happens when it cannot be loaded.

use std::sync::Arc;
use std::time::Duration;

use crate::stamp::named;

/// No time is longer: clocks come to an end. About a hundred years.
pub(crate) const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// Settings of a keyspace or of one call.
///
/// ```
/// use std::time::Duration;
/// let options = scale_cache::Options::ttl(Duration::from_mins(5)).tag("product:7").stale_if_error(Duration::from_hours(1));
/// ```
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
    /// Fresh for that long, less up to a tenth at random, so that what was loaded together does not expire together.
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

    /// Invalidated together with everything else that carries the tag.
    pub fn tag(mut self, tag: impl Into<Arc<str>>) -> Self {
        self.tags.push(named(tag.into()));
        self
    }

    /// Several tags.
    pub fn tags<T: Into<Arc<str>>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags.extend(tags.into_iter().map(|tag| named(tag.into())));
        self
    }

    /// The share of the TTL that is taken off at random, 0 to 1. Default: 0.1.
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
        self
    }

    /// When the loader fails, a value that has expired may be served for so long after its TTL. What was invalidated never is.
    /// Default: not at all.
    pub fn stale_if_error(mut self, time: Duration) -> Self {
        self.stale_if_error = time;
        self
    }

    /// After a failed load, a stale value is served for so long before the loader is tried again. Default: 1 s.
    pub fn throttle(mut self, time: Duration) -> Self {
        self.throttle = time;
        self
    }

    /// Returns whether a value that is read often is loaded anew shortly before it expires, in the background. Default: yes.
    pub fn refresh_ahead(mut self, yes: bool) -> Self {
        self.refresh_ahead = yes;
        self
    }

    /// With a stale value at hand, wait no longer than that for a new one; it still lands in the cache. Default: wait.
    pub fn soft_timeout(mut self, limit: Duration) -> Self {
        self.soft_timeout = Some(limit);
        self
    }

    /// How long a load may take. Default: 30 s.
    pub fn hard_timeout(mut self, limit: Duration) -> Self {
        self.hard_timeout = limit;
        self
    }

    /// The TTL starts anew when a value is read with less than half of it left: what is used stays. Default: no.
    pub fn sliding(mut self) -> Self {
        self.sliding = true;
        self.refresh_ahead = false;
        self
    }

    /// For permissions: an error is better than an old answer. Switches off all that serves stale values.
    pub fn fail_closed(mut self) -> Self {
        self.fail_closed = true;
        self.stale_if_error = Duration::ZERO;
        self.soft_timeout = None;
        self
    }

    /// How long it is kept at all.
    pub(crate) fn kept(&self, ttl: Duration) -> Duration {
        if self.fail_closed { ttl } else { ttl.saturating_add(self.stale_if_error).min(LONGEST) }
    }

    pub(crate) fn jittered(&self, ttl: Duration, dice: f64) -> Duration {
        ttl.min(LONGEST).mul_f64(1.0 - self.jitter * dice)
    }
}

impl Default for Options {
    /// Five minutes.
    fn default() -> Self {
        Self::ttl(Duration::from_mins(5))
    }
}
