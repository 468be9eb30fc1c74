//! Which idle connections are asked whether they live before a statement is given to them.
//!
//! sqlx's pool asks all of them, every time: a round trip before each statement. Here those are asked that lay idle for a while, or since
//! before the node's last trouble: of a node's connections that broke together, one statement meets the first, and none the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What was used so lately is taken to live, unless the node was in trouble since.
const LATELY: Duration = Duration::from_millis(500);

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

    /// Whether a connection that lay idle for so long must be asked.
    pub(crate) fn is_doubtful(&self, idle: Duration) -> bool {
        let trouble = self.0.trouble.load(Relaxed);
        idle > LATELY || (trouble != 0 && self.0.start.elapsed().saturating_sub(idle) <= Duration::from_nanos(trouble))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_casts_doubt_on_what_was_idle_then_alone() {
        let alive = Alive::default();
        assert!(!alive.is_doubtful(Duration::ZERO) && !alive.is_doubtful(LATELY));
        assert!(alive.is_doubtful(LATELY + Duration::from_nanos(1)));
        let before = Instant::now();
        alive.doubt();
        assert!(alive.is_doubtful(before.elapsed()), "idle since before");
        while alive.0.start.elapsed().as_nanos() as u64 <= alive.0.trouble.load(Relaxed) {}
        assert!(!alive.is_doubtful(Duration::ZERO), "used since");
    }
}
