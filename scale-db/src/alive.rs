//! Which idle connections are asked whether they live before a statement is given to them.
//!
//! sqlx's pool asks all of them, every time: a round trip before each statement. Here those are asked that lay idle for a while, or since
//! before the node's last trouble: of a node's connections that broke together, one statement meets the first, and none the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A connection that was used so lately is taken to live, unless the node was in trouble since.
const LATELY: Duration = Duration::from_millis(500);

/// Time that a connection takes at most from its last use to its pool.
const MOMENT: Duration = Duration::from_secs(1);

/// Between two looks at a clock a thread may have to wait for its turn.
const MARGIN: Duration = Duration::from_millis(50);

/// Shared by a node and its pool.
#[derive(Clone, Debug)]
pub(crate) struct Alive(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    /// When a connection was last found broken, ns after the start; 0: never.
    trouble: AtomicU64,
}

impl Default for Alive {
    fn default() -> Self {
        Self(Arc::new(Inner { start: Instant::now(), trouble: AtomicU64::new(0) }))
    }
}

impl Alive {
    /// A connection to the node was found broken: its others may be, too.
    pub(crate) fn doubt(&self) {
        self.0.trouble.store(self.0.start.elapsed().as_nanos() as u64, Relaxed);
    }

    /// Returns whether a connection was doubted a moment ago: one that goes back to its pool now may be that one.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let trouble = self.0.trouble.load(Relaxed);
        trouble != 0 && self.0.start.elapsed().saturating_sub(Duration::from_nanos(trouble)) < MOMENT
    }

    /// Returns whether a connection that lay idle for so long must be asked.
    pub(crate) fn is_doubtful(&self, idle: Duration) -> bool {
        idle > LATELY || is_older(idle, self.0.start.elapsed(), Duration::from_nanos(self.0.trouble.load(Relaxed)))
    }
}

/// Returns whether a connection was last used before the trouble or right after it, all since the same start. Its idle time was read
/// before `now`.
fn is_older(idle: Duration, now: Duration, trouble: Duration) -> bool {
    !trouble.is_zero() && now.saturating_sub(idle) <= trouble + MARGIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_casts_doubt_on_what_was_idle_then_alone() {
        let ms = Duration::from_millis;
        assert!(!is_older(ms(400), ms(5_000), Duration::ZERO), "there was none");
        assert!(is_older(ms(101), ms(5_000), ms(4_900)), "used before");
        assert!(is_older(ms(99), ms(5_000), ms(4_900)), "who knows");
        assert!(!is_older(ms(10), ms(5_000), ms(4_900)), "used since");
        let alive = Alive::default();
        assert!(!alive.is_doubtful(Duration::ZERO) && !alive.is_doubtful(LATELY));
        assert!(alive.is_doubtful(LATELY + Duration::from_nanos(1)));
        alive.doubt();
        assert!(alive.is_doubtful(Duration::ZERO));
    }
}
