//! Events of a worker, for the application's own logs, alarms and counters.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::job::JobId;

/// Event of a worker: see [`Worker::on_event`](crate::Worker::on_event).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// An attempt has ended, or a job has ended without one.
    Ended(Ended),
    /// The oldest waiting job of a queue has waited for too long: see
    /// [`Worker::tell_wait`](crate::Worker::tell_wait).
    WaitsLong {
        /// Queue of the job.
        queue: Arc<str>,
        /// Time since the job's push, its delays included.
        wait: Duration,
    },
    /// The jobs of a queue wait for less than half of that time again.
    WaitIsOver {
        /// Queue of the jobs.
        queue: Arc<str>,
    },
    /// The worker has no handler for a job, or cannot read it; the job waits for another worker.
    Unhandled {
        /// Queue of the job.
        queue: Arc<str>,
        /// Line in which it waits: `kind:` and the job's name, or `format:` and a version.
        line: String,
    },
}

/// End of an attempt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ended {
    /// Id of the job; `None` if it could not be decoded.
    pub id: Option<JobId>,
    /// Name of the job; empty if it could not be decoded.
    pub name: String,
    /// Queue of the job.
    pub queue: Arc<str>,
    /// Number of the attempt, from 1.
    pub attempt: u16,
    /// Time since the attempt began; zero if the job did not begin.
    pub took: Duration,
    /// Consequence for the job.
    pub outcome: Outcome,
}

/// Consequence of an attempt for its job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The job is done.
    Done,
    /// The attempt has failed; the job is retried after the delay.
    Retried {
        /// Error of the attempt.
        reason: String,
        /// Delay before the next attempt.
        delay: Duration,
    },
    /// The job is dead.
    Dead {
        /// Reason why it is dead.
        reason: String,
    },
    /// The handler asked for a later run ([`Snooze`](crate::outcome::Snooze)), or the store did not
    /// answer whether the job may begin. No attempt is counted.
    Deferred {
        /// Delay before the next run.
        delay: Duration,
    },
    /// The job was given back without a counted attempt: the worker stops, has lost the job's lease
    /// or permit, or cannot parse its payload.
    HandedBack,
    /// The job waits for a [limit](crate::Job::limits).
    Blocked,
    /// The job did not begin, because its batch was cancelled before.
    Skipped,
    /// The job did not begin, because it has
    /// [expired](crate::push::PushOptions::expires_after).
    Expired,
}

/// Receiver of events.
#[derive(Clone, Default)]
pub(super) struct Listeners(Vec<Arc<dyn Fn(&Event) + Send + Sync>>);

impl Listeners {
    pub(super) fn add(&mut self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.0.push(Arc::new(listener));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells all listeners. `event` is only made if there are any.
    pub(super) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.0.is_empty() {
            return;
        }
        let event = event();
        for listener in &self.0 {
            // A listener is the application's code: its panic must not end the worker.
            let told = std::panic::AssertUnwindSafe(|| listener(&event));
            if std::panic::catch_unwind(told).is_err() {
                tracing::error!("a listener for events of a worker panicked");
            }
        }
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} listeners", self.0.len())
    }
}
