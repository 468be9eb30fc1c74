//! State of the subscription to other processes, and how long entries are served while it is down.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::since_boot;

/// State of the subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    start: Instant,
    /// Time of the loss, in ns after the start and at least 1; 0 while the subscription is up.
    lost: AtomicU64,
    /// Time of the last loss, even if the subscription is up again.
    last_lost: AtomicU64,
    max_staleness_offline: Duration,
    /// Maximum time between two successful link checks; `None` for a store without link checks.
    proven_within: Option<Duration>,
    /// Time of the last successful link check, in ns by [`since_boot`].
    proven: AtomicU64,
    /// Time at which an overdue link check was first noticed, in ns after the start; 0 if none is
    /// overdue.
    missed: AtomicU64,
}

impl Subscription {
    pub(crate) fn new(max_staleness_offline: Duration, proven_within: Option<Duration>) -> Self {
        // Nothing is known before the start, so no link check can be overdue then.
        let begun = since_boot().as_nanos() as u64;
        let [lost, last_lost, proven, missed] = [1, 1, begun, 0].map(AtomicU64::new);
        Self {
            start: Instant::now(),
            lost,
            last_lost,
            max_staleness_offline,
            proven_within,
            proven,
            missed,
        }
    }

    /// Returns whether the link is up, and was checked recently.
    pub(crate) fn is_up(&self) -> bool {
        self.lost.load(SeqCst) == 0 && !self.is_overdue()
    }

    /// Returns whether the last link check is longer ago than entries may be served with the link
    /// down. This happens after the process was stopped or the machine suspended: a loss of the
    /// link goes unnoticed during that time.
    fn is_overdue(&self) -> bool {
        let Some(within) = self.proven_within else { return false };
        since_boot().as_nanos() as u64
            > self
                .proven
                .load(SeqCst)
                .saturating_add((within + self.max_staleness_offline).as_nanos() as u64)
    }

    /// Records that all events before `asked`, by [`since_boot`], have been received.
    pub(crate) fn proven_at(&self, asked: Duration) {
        self.proven.fetch_max(asked.as_nanos() as u64, SeqCst);
        if !self.is_overdue() {
            self.missed.store(0, SeqCst);
        }
    }

    /// Returns the time since the last successful link check.
    pub(crate) fn unproven_for(&self) -> Duration {
        if self.proven_within.is_none() {
            return Duration::ZERO;
        }
        since_boot().saturating_sub(Duration::from_nanos(self.proven.load(SeqCst)))
    }

    pub(crate) fn disconnected(&self) {
        let now = self.start.elapsed().as_nanos() as u64;
        // An earlier loss keeps its time.
        if self.lost.compare_exchange(0, now.max(1), SeqCst, SeqCst).is_ok() {
            self.last_lost.store(now.max(1), SeqCst);
        }
    }

    pub(crate) fn connected(&self) {
        self.proven_at(since_boot());
        self.lost.store(0, SeqCst);
    }

    /// Returns the time until which an entry from before the last loss may be served if it cannot
    /// be revalidated: no longer than with the link still down.
    pub(crate) fn unchecked_until(&self) -> Instant {
        match self.distrusted_since() {
            Some(since) => since,
            None => {
                self.start
                    + Duration::from_nanos(self.last_lost.load(SeqCst))
                    + self.max_staleness_offline
            }
        }
    }

    /// Returns the time until which an entry loaded or revalidated at `since` may be served;
    /// `None`: as long as the link is up.
    pub(crate) fn trust_until(&self, since: Instant) -> Option<Instant> {
        if let Some(missed) = self.distrusted_since() {
            // The caller may have read the clock before.
            return Some(if since < missed { since } else { since + self.max_staleness_offline });
        }
        match self.lost.load(SeqCst) {
            0 => None,
            lost => Some(
                (self.start + Duration::from_nanos(lost)).max(since) + self.max_staleness_offline,
            ),
        }
    }

    /// Returns the time at which an overdue link check was first noticed: entries from before must
    /// be revalidated.
    fn distrusted_since(&self) -> Option<Instant> {
        if !self.is_overdue() {
            return None;
        }
        let now = (self.start.elapsed().as_nanos() as u64).max(1);
        let missed = self
            .missed
            .compare_exchange(0, now, SeqCst, SeqCst)
            .map_or_else(|missed| missed, |_| now);
        Some(self.start + Duration::from_nanos(missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_read_before_the_first_link_is_believed() {
        let (staleness, within) = (Duration::from_mins(1), Duration::from_secs(1));
        let subscription = Subscription::new(staleness, Some(within));
        let read = Instant::now();
        assert!(!subscription.is_up());
        assert!(subscription.trust_until(read).unwrap() >= read + staleness);
    }

    #[tokio::test]
    async fn what_was_known_before_a_missed_proof_is_not_believed_after_it() {
        let subscription =
            Subscription::new(Duration::from_millis(10), Some(Duration::from_millis(10)));
        let before = Instant::now();
        subscription.connected();
        assert!(subscription.is_up() && subscription.trust_until(before).is_none());
        // As if the process had been stopped for a second.
        subscription
            .proven
            .store(since_boot().saturating_sub(Duration::from_secs(1)).as_nanos() as u64, SeqCst);
        assert!(!subscription.is_up());
        assert!(
            subscription.trust_until(before).unwrap() <= Instant::now(),
            "not for a moment longer"
        );
        let checked = Instant::now();
        assert!(
            subscription.trust_until(checked).unwrap() > Instant::now(),
            "a later check counts"
        );
        subscription.proven_at(since_boot());
        assert!(subscription.is_up() && subscription.trust_until(before).is_none());
    }
}
