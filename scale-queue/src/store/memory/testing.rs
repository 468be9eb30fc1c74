//! Parts of a store in memory for tests: a record of pushes, and a clock that jumps to the next
//! job.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::MemoryStore;
use super::queue_data::Line;
use crate::format::tag_of;
use crate::store::{Entry, Store};

/// A push as a store has received it.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) queue: String,
    pub(crate) entry: Entry,
    /// True if the job was stored.
    pub(crate) is_new: bool,
}

#[derive(Debug, Default)]
pub(super) struct Testing {
    record: Mutex<Option<Vec<Recorded>>>,
    /// Queues whose pushes wait for the end of the job.
    inline: Mutex<Vec<String>>,
    /// Notified after each change of a job's state.
    pub(super) changed: Notify,
}

/// Notifies when a change is complete.
pub(super) struct ChangedLater<'t>(&'t Testing);

impl Drop for ChangedLater<'_> {
    fn drop(&mut self) {
        self.0.changed.notify_waiters();
    }
}

impl Testing {
    pub(super) fn changed_later(&self) -> ChangedLater<'_> {
        ChangedLater(self)
    }
}

/// Number of jobs of a queue that may still run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Jobs that wait, run or are due.
    pub(crate) now: u64,
    /// Jobs in the lines of limits.
    pub(crate) blocked: u64,
}

impl MemoryStore {
    /// Creates a store that records pushes.
    pub(crate) fn recording() -> Self {
        let store = Self::default();
        *store.testing.record.lock() = Some(Vec::new());
        store
    }

    pub(crate) fn recorded(&self) -> Vec<Recorded> {
        self.testing.record.lock().clone().unwrap_or_default()
    }

    pub(crate) fn forget_recorded(&self) {
        self.testing.record.lock().iter_mut().for_each(Vec::clear);
    }

    /// Lets each push to these queues wait for the end of its job.
    pub(crate) fn set_inline(&self, queues: Vec<String>) {
        *self.testing.inline.lock() = queues;
        self.testing.changed.notify_waiters();
    }

    pub(crate) fn pushed(&self, queue: &str, entries: &[Entry], answers: &[Option<Vec<u8>>]) {
        if let Some(record) = &mut *self.testing.record.lock() {
            record.extend(entries.iter().zip(answers).map(|(entry, holder)| Recorded {
                queue: queue.to_owned(),
                entry: entry.clone(),
                is_new: holder.is_none(),
            }));
        }
        self.testing.changed.notify_waiters();
    }

    /// In inline mode, waits until a job neither waits nor runs, or its queue is paused.
    pub(crate) async fn run_inline(&self, queue: &str, tag: &[u8]) {
        let is_inline = || self.testing.inline.lock().iter().any(|known| known == queue);
        self.until(|| !is_inline() || self.has_ended(queue, tag)).await;
    }

    /// Waits until a condition on jobs holds.
    pub(crate) async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            let changed = self.testing.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    /// Waits for a change, for that time at most. Returns whether there was one.
    pub(crate) async fn changes_within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.testing.changed.notified()).await.is_ok()
    }

    /// Returns whether a job does not run, nor waits in a queue that is not paused.
    fn has_ended(&self, queue: &str, tag: &[u8]) -> bool {
        self.with(queue, |lane| {
            let waiting = lane.promoted.iter().chain(&lane.suspects).chain(lane.waiting.iter());
            (lane.paused || !waiting.into_iter().any(|bytes| tag_of(bytes) == tag))
                && !lane.leases.values().any(|lease| lease.jobs.contains_key(tag))
        })
    }

    pub(crate) fn pending(&self, queues: &[String]) -> Pending {
        let (mut pending, now) = (Pending::default(), self.clock.now());
        for queue in queues {
            self.with(queue, |lane| {
                if lane.paused {
                    return;
                }
                // What is due is taken by the next fetch.
                let due = lane.scheduled.keys().take_while(|(due, _)| *due <= now).count();
                let is_due =
                    |line: &&Line| !line.unhandled && line.retry_at <= now && !line.jobs.is_empty();
                let due = due + lane.lines.values().filter(is_due).count();
                let waiting = lane.waiting.len() + lane.promoted.len() + lane.suspects.len();
                let leased: usize = lane.leases.values().map(|lease| lease.jobs.len()).sum();
                pending.now += (waiting + leased + due) as u64;
                let lines = lane.lines.values().filter(|line| !line.unhandled);
                pending.blocked += lines.map(|line| line.jobs.len() as u64).sum::<u64>();
            });
        }
        pending
    }

    /// Returns the time until the next job is due, whether by its delay or because its line is to
    /// be tried.
    pub(crate) fn next_due(&self, queues: &[String]) -> Option<Duration> {
        let now = self.clock.now();
        let due = queues.iter().filter_map(|queue| {
            self.with(queue, |lane| {
                if lane.paused {
                    return None;
                }
                let lines = lane.lines.values().filter(|line| !line.unhandled);
                let lines = lines.filter(|line| !line.jobs.is_empty()).map(|line| line.retry_at);
                lane.scheduled.keys().next().map(|(due, _)| *due).into_iter().chain(lines).min()
            })
        });
        due.min().map(|due| due.saturating_duration_since(now))
    }

    /// Moves the clock forward, and wakes all workers.
    pub(crate) fn advance(&self, time: Duration) {
        self.clock.advance(time);
        let names: Vec<String> = self.queues.lock().keys().cloned().collect();
        for name in names {
            self.with(&name, |lane| self.wake(&name, lane, usize::MAX));
        }
    }

    /// Returns the current time of the store, ms since 1970.
    pub(crate) fn time_ms(&self) -> u64 {
        self.now_ms()
    }
}
