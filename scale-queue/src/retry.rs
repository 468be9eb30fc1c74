//! Retries: how often a job is attempted, the delays between attempts, and rules by kind of error.
//!
//! Exponential delays have jitter: each is drawn from the upper half of the range up to the
//! exponential bound, so that the retries of many failed jobs spread and none is made at once. Full
//! jitter draws from the whole range (Marc Brooker, "Exponential Backoff and Jitter", AWS
//! Architecture Blog, 2015).

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::limit::LONGEST;
use crate::outcome::find_if;

/// Maximum number of attempts that a stored job counts.
const MOST_ATTEMPTS: u16 = u16::MAX >> 1;

/// Number of attempts, at most 32,767, and the delays between them.
///
/// ```
/// use scale_queue::Retry;
/// use std::time::Duration;
/// const PATIENT: Retry = Retry::exponential(20)
///     .first(Duration::from_secs(5))
///     .longest(Duration::from_hours(6));
/// const STEADY: Retry = Retry::custom(5, |failed| Duration::from_mins(failed as u64 * 10));
/// ```
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    attempts: u16,
    delay: Delay,
}

#[derive(Clone, Copy, Debug)]
enum Delay {
    Exponential { first: Duration, longest: Duration },
    Custom(fn(u16) -> Duration),
}

impl Retry {
    /// Allows at most `attempts` attempts in total, with delays of about 1 s, 2 s, 4 s, … up to an
    /// hour between them.
    pub const fn exponential(attempts: u16) -> Self {
        let (first, longest) = (Duration::from_secs(1), Duration::from_hours(1));
        Self { attempts, delay: Delay::Exponential { first, longest } }
    }

    /// Allows at most `attempts` attempts in total. `delay` returns the delay after that many
    /// failed attempts, which is used as it is, up to ten years.
    pub const fn custom(attempts: u16, delay: fn(u16) -> Duration) -> Self {
        Self { attempts, delay: Delay::Custom(delay) }
    }

    /// Allows one attempt.
    pub const fn never() -> Self {
        Self::exponential(1)
    }

    /// Sets the bound of the delay after the first failure; the bound doubles with each failure.
    /// For exponential delays only.
    pub const fn first(mut self, delay: Duration) -> Self {
        if let Delay::Exponential { first, .. } = &mut self.delay {
            *first = delay;
        }
        self
    }

    /// Sets the largest bound of a delay. For exponential delays only.
    pub const fn longest(mut self, delay: Duration) -> Self {
        if let Delay::Exponential { longest, .. } = &mut self.delay {
            *longest = delay;
        }
        self
    }

    /// Sets the total number of attempts; the delays stay the same.
    pub(crate) fn attempts(mut self, attempts: u16) -> Self {
        self.attempts = attempts;
        self
    }

    /// Returns whether no attempt is left after `failed` failed attempts.
    pub(crate) fn is_over(&self, failed: u16) -> bool {
        failed >= self.attempts.min(MOST_ATTEMPTS)
    }

    /// Returns the delay after `failed` failed attempts; `None` if no attempt is left. `dice` is
    /// between 0 and 1.
    pub(crate) fn after(&self, failed: u16, dice: f64) -> Option<Duration> {
        if self.is_over(failed) {
            return None;
        }
        Some(match self.delay {
            Delay::Exponential { first, longest } => {
                let doublings = u32::from(failed.saturating_sub(1)).min(31);
                let bound = first.saturating_mul(1 << doublings).min(longest);
                bound.mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0)
            }
            Delay::Custom(delay) => delay(failed).min(LONGEST),
        })
    }
}

/// Rules for errors of certain kinds, returned by [`Job::retry_rules`](crate::Job::retry_rules).
/// The first rule that matches applies, instead of [`Job::RETRY`](crate::Job::RETRY). An error
/// matches if it, or any of its causes, does.
///
/// Each rule counts the failures that it matched; failures that no rule matches are counted for
/// `RETRY`.
///
/// ```
/// use scale_queue::{Job, Retry, retry::RetryRules};
/// # use serde::{Deserialize, Serialize};
/// # use std::time::Duration;
/// #[derive(Debug, thiserror::Error)]
/// #[error("the address is unknown")]
/// struct UnknownAddress;
///
/// const STEADY: Retry = Retry::custom(288, |_| Duration::from_mins(5));
///
/// #[derive(Serialize, Deserialize)]
/// struct SendMail { to: String }
///
/// impl Job for SendMail {
///     const NAME: &'static str = "send-mail";
///
///     fn retry_rules() -> RetryRules {
///         RetryRules::new()
///             .discard_on::<UnknownAddress>()
///             // The mail server is down: an attempt every five minutes for a day.
///             .retry_on::<std::io::Error>("network", STEADY)
///     }
/// }
/// ```
#[derive(Default)]
#[must_use = "rules apply to jobs whose `retry_rules` returns them"]
pub struct RetryRules(Vec<Rule>);

struct Rule {
    matches: Box<dyn Fn(&(dyn Error + 'static)) -> bool + Send + Sync>,
    then: Then,
}

/// Consequence of a rule.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    Discard,
    /// Retry; failures are counted under this name.
    Retry(&'static str, Retry),
}

impl fmt::Debug for RetryRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|rule| rule.then)).finish()
    }
}

impl RetryRules {
    /// Creates an empty list of rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Retries after errors of a type. `name` identifies the rule in stored jobs, which count its
    /// failures: keep it.
    pub fn retry_on<E: Error + 'static>(self, name: &'static str, retry: Retry) -> Self {
        self.retry_if(name, <dyn Error>::is::<E>, retry)
    }

    /// Retries after errors for which a condition holds. `name` identifies the rule in stored jobs,
    /// which count its failures: keep it.
    pub fn retry_if(
        mut self,
        name: &'static str,
        matches: impl Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
        retry: Retry,
    ) -> Self {
        self.0.push(Rule { matches: Box::new(matches), then: Then::Retry(name, retry) });
        self
    }

    /// Makes the job dead at once after errors of a type, as
    /// [`Discard`](crate::outcome::Discard) does.
    pub fn discard_on<E: Error + 'static>(self) -> Self {
        self.discard_if(<dyn Error>::is::<E>)
    }

    /// Makes the job dead at once after errors for which a condition holds.
    pub fn discard_if(
        mut self,
        matches: impl Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.0.push(Rule { matches: Box::new(matches), then: Then::Discard });
        self
    }

    /// Returns the consequence of the first rule that matches the error or one of its causes.
    pub(crate) fn find(&self, error: &(dyn Error + 'static)) -> Option<Then> {
        let rule = self.0.iter().find(|rule| find_if(error, |cause| (rule.matches)(cause)));
        rule.map(|rule| rule.then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_attempt_is_the_last() {
        assert_eq!(Retry::never().after(1, 0.0), None);
        assert!(Retry::exponential(3).after(2, 0.0).is_some());
        assert_eq!(Retry::exponential(3).after(3, 0.0), None);
        let custom = Retry::custom(3, |failed| Duration::from_secs(failed.into()));
        assert_eq!(custom.after(2, 0.9), Some(Duration::from_secs(2)));
        assert_eq!(custom.after(3, 0.9), None);
        // A stored job counts no more.
        assert_eq!(Retry::exponential(40_000).after(MOST_ATTEMPTS, 0.0), None);
        assert_eq!(Retry::custom(3, |_| Duration::MAX).after(1, 0.0), Some(LONGEST));
    }

    proptest! {
        #[test]
        fn delays_stay_within_their_bounds(failed in 1..MOST_ATTEMPTS, dice in 0.0..1.0) {
            let retry = Retry::exponential(u16::MAX);
            let delay = retry.after(failed, dice).unwrap();
            prop_assert!(delay >= Duration::from_millis(500) && delay <= Duration::from_hours(1));
        }
    }
}
