//! Whether news from other processes arrive, and how long what is known may be believed if not.

use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

/// The state of the subscription.
#[derive(Debug)]
pub(crate) struct Link {
    /// When it was lost; `None` while it is up.
    lost: RwLock<Option<Instant>>,
    trust: Duration,
}

impl Link {
    pub(crate) fn new(trust: Duration) -> Self {
        Self { lost: RwLock::new(Some(Instant::now())), trust }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.lost.read().is_none()
    }

    pub(crate) fn went_down(&self) {
        self.lost.write().get_or_insert_with(Instant::now);
    }

    pub(crate) fn came_up(&self) {
        *self.lost.write() = None;
    }

    /// Until when something loaded or checked at `since` may be believed; `None`: as long as the link is up.
    pub(crate) fn trust_until(&self, since: Instant) -> Option<Instant> {
        let lost = (*self.lost.read())?;
        Some(lost.max(since) + self.trust)
    }
}
