//! A store that keeps failing is asked by one request now and then, not by all of them, each with its wait.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Failures in a row until it opens.
const FAILURES: u32 = 5;
/// While open, one request in that time (ns) asks.
const PAUSE: u64 = 100_000_000;

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: AtomicU32,
    /// Nobody asks before (ns); 0: everybody asks.
    closed_until: AtomicU64,
}

impl Breaker {
    /// Whether this request is to ask.
    pub(crate) fn lets_through(&self, now: u64) -> bool {
        match self.closed_until.load(Ordering::Relaxed) {
            0 => true,
            until if now < until => false,
            until => self.closed_until.compare_exchange(until, now + PAUSE, Ordering::Relaxed, Ordering::Relaxed).is_ok(),
        }
    }

    pub(crate) fn answered(&self) {
        if self.failures.swap(0, Ordering::Relaxed) > 0 {
            self.closed_until.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn failed(&self, now: u64) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            self.closed_until.store(now + PAUSE, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_asks_now_and_then_and_closes_at_the_first_answer() {
        let breaker = Breaker::default();
        for _ in 0..10 {
            for _ in 0..FAILURES - 1 {
                breaker.failed(1);
            }
            breaker.answered();
        }
        assert!(breaker.lets_through(1), "never in a row");
        for _ in 0..FAILURES {
            breaker.failed(1);
        }
        assert!(!breaker.lets_through(PAUSE));
        let asked = (0..100).filter(|_| breaker.lets_through(PAUSE + 1)).count();
        assert_eq!(asked, 1);
        breaker.answered();
        assert!(breaker.lets_through(PAUSE + 2) && breaker.lets_through(PAUSE + 2));
    }
}
