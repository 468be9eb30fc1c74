//! Whether news from other processes arrive, and how long what is known may be believed if not.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::since_boot;

/// The state of the subscription.
#[derive(Debug)]
pub(crate) struct Link {
    start: Instant,
    /// When it was lost, ns after the start and at least 1; 0 while it is up.
    lost: AtomicU64,
    /// When it was lost last, whether it is up again or not.
    last_lost: AtomicU64,
    trust: Duration,
    /// The longest time between two proofs that it is up; `None` for a store that gives none.
    proven_within: Option<Duration>,
    /// When it was last proven to be up, ns by [`since_boot`].
    proven: AtomicU64,
    /// When a proof was first missed, ns after the start; 0 while none is.
    missed: AtomicU64,
}

impl Link {
    pub(crate) fn new(trust: Duration, proven_within: Option<Duration>) -> Self {
        let [lost, last_lost, proven, missed] = [1, 1, 0, 0].map(AtomicU64::new);
        Self { start: Instant::now(), lost, last_lost, trust, proven_within, proven, missed }
    }

    /// Returns whether the link is up, and has been proven to be so lately.
    pub(crate) fn is_up(&self) -> bool {
        self.lost.load(SeqCst) == 0 && !self.is_overdue()
    }

    /// Returns whether the link has not been proven to be up for longer than anything may be believed with it down. So it is after the process was
    /// stopped, or the machine suspended: neither could see the link's loss meanwhile.
    fn is_overdue(&self) -> bool {
        let Some(within) = self.proven_within else { return false };
        since_boot().as_nanos() as u64 > self.proven.load(SeqCst).saturating_add((within + self.trust).as_nanos() as u64)
    }

    /// Everything that was said before `asked`, by [`since_boot`], has been heard.
    pub(crate) fn proven_at(&self, asked: Duration) {
        self.proven.fetch_max(asked.as_nanos() as u64, SeqCst);
        if !self.is_overdue() {
            self.missed.store(0, SeqCst);
        }
    }

    /// For how long the link has not been proven to be up.
    pub(crate) fn unproven_for(&self) -> Duration {
        if self.proven_within.is_none() {
            return Duration::ZERO;
        }
        since_boot().saturating_sub(Duration::from_nanos(self.proven.load(SeqCst)))
    }

    pub(crate) fn went_down(&self) {
        let now = self.start.elapsed().as_nanos() as u64;
        // What was lost before is lost since then.
        if self.lost.compare_exchange(0, now.max(1), SeqCst, SeqCst).is_ok() {
            self.last_lost.store(now.max(1), SeqCst);
        }
    }

    pub(crate) fn came_up(&self) {
        self.proven_at(since_boot());
        self.lost.store(0, SeqCst);
    }

    /// Until when something known before the last gap may be believed, if it cannot be checked: no longer than with the link still down.
    pub(crate) fn unchecked_until(&self) -> Instant {
        match self.distrusted_since() {
            Some(since) => since,
            None => self.start + Duration::from_nanos(self.last_lost.load(SeqCst)) + self.trust,
        }
    }

    /// Until when something loaded or checked at `since` may be believed; `None`: as long as the link is up.
    pub(crate) fn trust_until(&self, since: Instant) -> Option<Instant> {
        if let Some(missed) = self.distrusted_since() {
            // Whoever asks may have looked at the clock before.
            return Some(if since < missed { since } else { since + self.trust });
        }
        match self.lost.load(SeqCst) {
            0 => None,
            lost => Some((self.start + Duration::from_nanos(lost)).max(since) + self.trust),
        }
    }

    /// The moment at which a missed proof was first noticed: what was known before is not believed.
    fn distrusted_since(&self) -> Option<Instant> {
        if !self.is_overdue() {
            return None;
        }
        let now = (self.start.elapsed().as_nanos() as u64).max(1);
        let missed = self.missed.compare_exchange(0, now, SeqCst, SeqCst).map_or_else(|missed| missed, |_| now);
        Some(self.start + Duration::from_nanos(missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_known_before_a_missed_proof_is_not_believed_after_it() {
        let link = Link::new(Duration::from_millis(10), Some(Duration::from_millis(10)));
        let before = Instant::now();
        link.came_up();
        assert!(link.is_up() && link.trust_until(before).is_none());
        // As if the process had been stopped for a second.
        link.proven.store(since_boot().saturating_sub(Duration::from_secs(1)).as_nanos() as u64, SeqCst);
        assert!(!link.is_up());
        assert!(link.trust_until(before).unwrap() <= Instant::now(), "not for a moment longer");
        let checked = Instant::now();
        assert!(link.trust_until(checked).unwrap() > Instant::now(), "what was asked for since is");
        link.proven_at(since_boot());
        assert!(link.is_up() && link.trust_until(before).is_none());
    }
}
