//! Delays between attempts: exponential backoff with full jitter.
//!
//! Full jitter draws the delay between zero and the exponential bound, which spreads the retries of
//! many failed jobs best (Marc Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog,
//! 2015). This crate draws from the upper half of that range, so a job is never retried at once.

use std::time::Duration;

/// Number of attempts, and the delays between them.
///
/// ```
/// use scale_queue::Retry;
/// use std::time::Duration;
/// const PATIENT: Retry = Retry::exponential(20)
///     .first(Duration::from_secs(5))
///     .longest(Duration::from_hours(6));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    attempts: u16,
    first: Duration,
    longest: Duration,
}

impl Retry {
    /// Allows at most `attempts` attempts in total, with delays of about 1 s, 2 s, 4 s, … up to an
    /// hour between them.
    pub const fn exponential(attempts: u16) -> Self {
        Self { attempts, first: Duration::from_secs(1), longest: Duration::from_hours(1) }
    }

    /// Allows one attempt.
    pub const fn never() -> Self {
        Self::exponential(1)
    }

    /// Sets the bound of the delay after the first failure; the bound doubles with each failure.
    pub const fn first(mut self, delay: Duration) -> Self {
        self.first = delay;
        self
    }

    /// Sets the largest bound of a delay.
    pub const fn longest(mut self, delay: Duration) -> Self {
        self.longest = delay;
        self
    }

    /// Sets the total number of attempts; the delays stay the same.
    pub(crate) fn attempts(mut self, attempts: u16) -> Self {
        self.attempts = attempts;
        self
    }

    /// Returns whether no attempt is left after `failed` failed attempts.
    pub(crate) fn is_over(&self, failed: u16) -> bool {
        failed >= self.attempts
    }

    /// Returns the delay after `failed` failed attempts; `None` if no attempt is left. `dice` is
    /// between 0 and 1.
    pub(crate) fn after(&self, failed: u16, dice: f64) -> Option<Duration> {
        if self.is_over(failed) {
            return None;
        }
        let doublings = u32::from(failed.saturating_sub(1)).min(31);
        let bound = self.first.saturating_mul(1 << doublings).min(self.longest);
        Some(bound.mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0))
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
    }

    proptest! {
        #[test]
        fn delays_stay_within_their_bounds(failed in 1_u16..u16::MAX, dice in 0.0..1.0) {
            let retry = Retry::exponential(u16::MAX);
            let delay = retry.after(failed, dice).unwrap();
            prop_assert!(delay >= retry.first / 2 && delay <= retry.longest);
        }
    }
}
