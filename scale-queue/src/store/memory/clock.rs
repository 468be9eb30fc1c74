//! Clock of a store in memory. Tests can move it forward.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Time by which the clock was moved forward, ms.
    ahead_ms: AtomicU64,
}

impl Clock {
    pub(super) fn now(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.ahead_ms.load(Relaxed))
    }

    pub(super) fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.as_millis() as u64 + self.ahead_ms.load(Relaxed)
    }

    #[cfg(feature = "testing")]
    pub(super) fn advance(&self, time: Duration) {
        // Rounded up, so that what is due after this time is due now.
        let ms = time.as_micros().div_ceil(1_000) as u64;
        self.ahead_ms.fetch_add(ms, Relaxed);
    }
}
