//! Clock of a server, and durations in milliseconds.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// Upper bound of a duration in milliseconds: 100 years. The sum of a time and such a duration fits
/// every integer that a store has.
const LONGEST_MS: u128 = 100 * 365 * 86_400_000;

/// Clock of a server, computed from the clock of this process and the last known difference.
///
/// Until [`set`](Self::set) is called, the clock shows the time of this process.
#[derive(Debug, Default)]
pub struct ServerClock {
    offset_ms: AtomicI64,
}

impl ServerClock {
    /// Records the current time of the server, in ms since 1970.
    pub fn set(&self, server_ms: i64) {
        self.offset_ms.store(server_ms - local_ms(), Relaxed);
    }

    /// Returns the current time of the server, in ms since 1970.
    pub fn now_ms(&self) -> i64 {
        (local_ms() + self.offset_ms.load(Relaxed)).max(0)
    }
}

/// Returns the time of this process, in ms since 1970.
pub fn local_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Returns a duration in milliseconds, rounded up, so that only [`Duration::ZERO`] becomes 0. At
/// most 100 years.
pub fn millis(duration: Duration) -> u64 {
    duration.as_nanos().div_ceil(1_000_000).min(LONGEST_MS) as u64
}

/// Returns a time to live in milliseconds: [`millis`], and at least 1, because stores refuse 0.
pub fn ttl_millis(ttl: Duration) -> u64 {
    millis(ttl).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_up_and_bounded() {
        assert_eq!(millis(Duration::ZERO), 0);
        assert_eq!(ttl_millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_micros(1_001)), 2);
        assert_eq!(millis(Duration::from_millis(5)), 5);
        assert_eq!(u128::from(millis(Duration::MAX)), LONGEST_MS);
    }

    #[test]
    fn the_clock_of_the_server_is_kept_by_its_difference() {
        let clock = ServerClock::default();
        clock.set(local_ms() + 5_000);
        assert!((clock.now_ms() - local_ms() - 5_000).abs() < 1_000);
        clock.set(-1_000_000);
        assert_eq!(clock.now_ms(), 0, "never before 1970");
    }
}
