//! A circuit breaker: after a failure the second level is left alone for a moment, then tried by one caller.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Breaker {
    start: Instant,
    /// Nanoseconds since `start`; 0: closed.
    open_until: AtomicU64,
    pause: AtomicU64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { start: Instant::now(), open_until: AtomicU64::new(0), pause: AtomicU64::new(0) }
    }
}

impl Breaker {
    /// Whether the second level may be asked. Of those who come when a pause has ended, one may.
    pub(crate) fn allows(&self) -> bool {
        let until = self.open_until.load(Relaxed);
        if until == 0 {
            return true;
        }
        let now = self.start.elapsed().as_nanos() as u64;
        let next = now + FIRST.as_nanos() as u64;
        now >= until && self.open_until.compare_exchange(until, next, Relaxed, Relaxed).is_ok()
    }

    pub(crate) fn succeeded(&self) {
        if self.open_until.load(Relaxed) != 0 {
            self.pause.store(0, Relaxed);
            self.open_until.store(0, Relaxed);
        }
    }

    pub(crate) fn failed(&self) {
        let last = self.pause.load(Relaxed);
        let pause = (last * 2).clamp(FIRST.as_nanos() as u64, LONGEST.as_nanos() as u64);
        self.pause.store(pause, Relaxed);
        self.open_until.store(self.start.elapsed().as_nanos() as u64 + pause, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn opens_lets_one_try_and_closes() {
        let breaker = Breaker::default();
        assert!(breaker.allows());
        breaker.failed();
        assert!(!breaker.allows());
        tokio::time::advance(FIRST).await;
        assert!(breaker.allows());
        assert!(!breaker.allows(), "one at a time");
        breaker.succeeded();
        assert!(breaker.allows() && breaker.allows());
    }
}
