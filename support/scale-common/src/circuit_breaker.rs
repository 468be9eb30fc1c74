//! Circuit breaker: a store that fails is not called for a short time, so that callers do not wait
//! for its timeout.
//!
//! | state | calls | next state |
//! | --- | --- | --- |
//! | closed | all are allowed | open, after `failures` failures in a row |
//! | open | none is allowed | half-open, after a pause |
//! | half-open | one is allowed | closed if it succeeds; open, with twice the pause, if it fails; half-open again after the shortest pause if it has no result |
//!
//! The state is two atomics: [`CircuitBreaker::allows`] of a closed breaker is one relaxed load.
//! `tests/loom.rs` explores every interleaving of two callers.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Rules of a breaker.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Failures in a row that open the breaker, at least 1.
    pub failures: u32,
    /// Pause after it has opened. The time of this pause doubles with each failure in the half-open
    /// state.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
}

/// Circuit breaker. Time is given by the caller, in ns of a clock that never goes back.
///
/// ```
/// use std::time::Duration;
/// use scale_common::circuit_breaker::{CircuitBreaker, Rules};
///
/// let pause = Duration::from_millis(100);
/// let breaker =
///     CircuitBreaker::new(Rules { failures: 1, first_pause: pause, longest_pause: pause });
/// assert!(breaker.allows(0));
/// breaker.failed(0);
/// assert!(!breaker.allows(99_999_999));
/// assert!(breaker.allows(100_000_000), "one call tries");
/// assert!(!breaker.allows(100_000_000), "the others wait for it");
/// breaker.succeeded();
/// assert!(breaker.allows(100_000_001));
/// ```
#[derive(Debug)]
pub struct CircuitBreaker {
    rules: Rules,
    failures: AtomicU32,
    /// End of the open state, in ns; 0 while closed.
    open_until: AtomicU64,
}

impl CircuitBreaker {
    /// Creates a closed breaker.
    pub fn new(rules: Rules) -> Self {
        Self { rules, failures: AtomicU32::new(0), open_until: AtomicU64::new(0) }
    }

    /// Returns whether the store may be called at this time. In the half-open state only one caller
    /// may.
    pub fn allows(&self, now: u64) -> bool {
        let until = self.open_until.load(Relaxed);
        if until == 0 {
            return true;
        }
        let next = now.saturating_add(nanos(self.rules.first_pause));
        now >= until && self.open_until.compare_exchange(until, next, Relaxed, Relaxed).is_ok()
    }

    /// Records a call that succeeded: closes the breaker.
    pub fn succeeded(&self) {
        // Each on its own: a call that fails at the same time may have counted its failure before
        // this, and may open the breaker after this.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        if self.open_until.load(Relaxed) != 0 {
            self.open_until.store(0, Relaxed);
        }
    }

    /// Records a call that failed.
    pub fn failed(&self, now: u64) {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        if let Some(after) = failures.checked_sub(self.rules.failures) {
            let pause = nanos(self.rules.first_pause)
                .saturating_mul(1 << after.min(30))
                .min(nanos(self.rules.longest_pause));
            self.open_until.store(now.saturating_add(pause).max(1), Relaxed);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: u64 = 100;
    const RULES: Rules = Rules {
        failures: 5,
        first_pause: Duration::from_nanos(PAUSE),
        longest_pause: Duration::from_nanos(PAUSE * 4),
    };

    #[test]
    fn failures_in_a_row_open_it_one_call_tries_and_a_success_closes_it() {
        let breaker = CircuitBreaker::new(RULES);
        for _ in 0..10 {
            (1..RULES.failures).for_each(|_| breaker.failed(1));
            breaker.succeeded();
        }
        assert!(breaker.allows(1), "never that many in a row");
        (0..RULES.failures).for_each(|_| breaker.failed(1));
        assert!(!breaker.allows(PAUSE));
        assert_eq!((0..100).filter(|_| breaker.allows(PAUSE + 1)).count(), 1);
        breaker.succeeded();
        assert!(breaker.allows(PAUSE + 2) && breaker.allows(PAUSE + 2));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let breaker = CircuitBreaker::new(Rules { failures: 1, ..RULES });
        for pause in [1, 2, 4, 4, 4].map(|n| n * PAUSE) {
            breaker.failed(0);
            assert!(!breaker.allows(pause - 1) && breaker.allows(pause), "{pause}");
        }
        (0..100).for_each(|_| breaker.failed(0));
        assert!(breaker.allows(PAUSE * 4), "no overflow after many failures");
    }

    #[test]
    fn a_call_without_a_result_is_followed_by_another() {
        let breaker = CircuitBreaker::new(Rules { failures: 1, ..RULES });
        breaker.failed(0);
        assert!(breaker.allows(PAUSE));
        assert!(!breaker.allows(2 * PAUSE - 1) && breaker.allows(2 * PAUSE));
    }
}
