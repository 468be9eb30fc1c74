//! Liveness of idle connections: decides which ones to ping before a statement is given to them.
//!
//! sqlx's pool would ping all of them, every time: one more round trip per statement. Here a
//! connection is pinged only if it was idle for a while, or since before the last trouble of its
//! node. So if several connections of a node break together, one statement fails on the first, and
//! none on the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A connection that was used within this time is assumed alive, unless the node was in trouble
/// since.
const LATELY: Duration = Duration::from_millis(500);

/// Longest time between the last use of a connection and its return to the pool.
const MOMENT: Duration = Duration::from_secs(1);

/// Tolerance for a thread that is suspended between two reads of the clock.
const MARGIN: Duration = Duration::from_millis(50);

/// Liveness state shared by a node and its pool.
#[derive(Clone, Debug)]
pub(crate) struct Liveness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    /// Time at which a connection was last found broken, in ns after the start; 0: never.
    trouble: AtomicU64,
}

impl Default for Liveness {
    fn default() -> Self {
        Self(Arc::new(Inner { start: Instant::now(), trouble: AtomicU64::new(0) }))
    }
}

impl Liveness {
    /// Records that a connection to the node was found broken, so that others may be broken too.
    pub(crate) fn doubt(&self) {
        self.0.trouble.store(self.0.start.elapsed().as_nanos() as u64, Relaxed);
    }

    /// Returns whether a connection was found broken a moment ago: a connection that now returns to
    /// the pool may be that one.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let trouble = self.0.trouble.load(Relaxed);
        trouble != 0
            && self.0.start.elapsed().saturating_sub(Duration::from_nanos(trouble)) < MOMENT
    }

    /// Returns whether a connection that was idle for this time must be pinged.
    pub(crate) fn is_doubtful(&self, idle: Duration) -> bool {
        idle > LATELY
            || is_older(
                idle,
                self.0.start.elapsed(),
                Duration::from_nanos(self.0.trouble.load(Relaxed)),
            )
    }
}

/// Returns whether a connection was last used before or right after the trouble. All times are
/// since the same start; the idle time was read before `now`.
fn is_older(idle: Duration, now: Duration, trouble: Duration) -> bool {
    !trouble.is_zero() && now.saturating_sub(idle) <= trouble + MARGIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_casts_doubt_on_what_was_idle_then_alone() {
        let ms = Duration::from_millis;
        assert!(!is_older(ms(400), ms(5_000), Duration::ZERO), "there was no trouble");
        assert!(is_older(ms(101), ms(5_000), ms(4_900)), "used before");
        assert!(is_older(ms(99), ms(5_000), ms(4_900)), "too close to tell");
        assert!(!is_older(ms(10), ms(5_000), ms(4_900)), "used since");
        let liveness = Liveness::default();
        assert!(!liveness.is_doubtful(Duration::ZERO) && !liveness.is_doubtful(LATELY));
        assert!(liveness.is_doubtful(LATELY + Duration::from_nanos(1)));
        liveness.doubt();
        assert!(liveness.is_doubtful(Duration::ZERO));
    }
}
