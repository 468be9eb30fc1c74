//! Clocks that never step and never stop.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clock of policies, which tests can pause.
pub(crate) use tokio::time::Instant;

#[cfg(feature = "redis")]
pub use scale_redis::since_boot;

/// Returns the time since a moment in the past, by the only clock that is available without Redis.
#[cfg(not(feature = "redis"))]
pub fn since_boot() -> Duration {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

/// Returns µs since 1970, by the machine's clock at the first call in this process: later changes
/// of the clock have no effect.
pub(crate) fn steady_us() -> u64 {
    static START: OnceLock<(u64, Duration)> = OnceLock::new();
    let (wall, boot) = START.get_or_init(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (wall.as_micros() as u64, since_boot())
    });
    wall.saturating_add(since_boot().saturating_sub(*boot).as_micros() as u64)
}
