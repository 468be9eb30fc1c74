//! Whether news from other processes arrive, and how long what is known may be believed if not.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::time::Instant;

/// The state of the subscription.
#[derive(Debug)]
pub(crate) struct Link {
    start: Instant,
    /// When it was lost, ns after the start and at least 1; 0 while it is up.
    lost: AtomicU64,
    /// When it was lost last, whether it is up again or not.
    last_lost: AtomicU64,
    trust: Duration,
}

impl Link {
    pub(crate) fn new(trust: Duration) -> Self {
        Self { start: Instant::now(), lost: AtomicU64::new(1), last_lost: AtomicU64::new(1), trust }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.lost.load(SeqCst) == 0
    }

    pub(crate) fn went_down(&self) {
        let now = self.start.elapsed().as_nanos() as u64;
        // What was lost before is lost since then.
        if self.lost.compare_exchange(0, now.max(1), SeqCst, SeqCst).is_ok() {
            self.last_lost.store(now.max(1), SeqCst);
        }
    }

    pub(crate) fn came_up(&self) {
        self.lost.store(0, SeqCst);
    }

    /// Until when something known before the last gap may be believed, if it cannot be checked: no longer than with the link still down.
    pub(crate) fn unchecked_until(&self) -> Instant {
        self.start + Duration::from_nanos(self.last_lost.load(SeqCst)) + self.trust
    }

    /// Until when something loaded or checked at `since` may be believed; `None`: as long as the link is up.
    pub(crate) fn trust_until(&self, since: Instant) -> Option<Instant> {
        match self.lost.load(SeqCst) {
            0 => None,
            lost => Some((self.start + Duration::from_nanos(lost)).max(since) + self.trust),
        }
    }
}
