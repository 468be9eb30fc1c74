//! Circuit breakers: a type of job whose attempts fail too often pauses, for the whole fleet.
//!
//! | when | then |
//! | --- | --- |
//! | more attempts fail within a period than the circuit allows | the circuit opens: jobs of this type do not begin for its pause; each waits without a counted attempt |
//! | the pause is over | jobs begin again; if they fail, the circuit opens again |
//! | a handler returns [`Discard`](crate::outcome::Discard) or [`Snooze`](crate::outcome::Snooze), or is cancelled | not counted |
//! | a process has not heard that a circuit is open | its jobs may begin for another second |
//! | the store does not answer | jobs begin |

use std::time::Duration;

use crate::limit::LONGEST;
use crate::store::{Admission, RateRequest, Store};

/// Circuit breaker of a type of job: see [`Job::CIRCUIT`](crate::Job::CIRCUIT).
///
/// ```
/// use scale_queue::circuit::Circuit;
/// use std::time::Duration;
///
/// /// After 20 failures within a minute, no job begins for five minutes.
/// const PARTNER: Circuit =
///     Circuit::after(20, Duration::from_secs(60)).pause(Duration::from_secs(300));
/// ```
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    failures: u32,
    within: Duration,
    pause: Duration,
}

impl Circuit {
    /// Opens the circuit when more than that many attempts fail within a period. Failures are
    /// counted as a rate: after an idle period that many are free, and one more each
    /// `within / failures`.
    pub const fn after(failures: u32, within: Duration) -> Self {
        let failures = if failures == 0 { 1 } else { failures };
        Self { failures, within, pause: Duration::from_mins(1) }
    }

    /// Sets how long an open circuit stays open. Default: a minute.
    pub const fn pause(mut self, time: Duration) -> Self {
        self.pause = time;
        self
    }

    /// Returns the time for which the circuit of a job stays open, if it is open.
    pub(crate) async fn open_for(store: &dyn Store, name: &str) -> Option<Duration> {
        let note = store.read_note(&note_of(name)).await.ok().flatten()?;
        let until_ms = u64::from_be_bytes(note.try_into().ok()?);
        let left = until_ms.checked_sub(store.now_ms()).filter(|left| *left > 0)?;
        Some(Duration::from_millis(left))
    }

    /// Counts a failure; opens the circuit if there were too many.
    pub(crate) async fn count(self, store: &dyn Store, queue: &str, name: &str) {
        let request = RateRequest {
            key: &format!("\u{1}circuit:{name}"),
            queue,
            spacing: (self.within / self.failures).min(LONGEST),
            burst: self.failures,
            before: &[],
        };
        if !matches!(store.admit(request).await, Ok(Admission::Later(_))) {
            return;
        }
        let pause = self.pause.min(LONGEST);
        let until_ms = store.now_ms().saturating_add(pause.as_millis() as u64);
        tracing::warn!(job = name, ?pause, "too many attempts failed; jobs of this type pause");
        metrics::counter!("scale_queue_circuits_opened_total", "job" => name.to_owned())
            .increment(1);
        if let Err(error) = store.put_note(&note_of(name), &until_ms.to_be_bytes(), pause).await {
            tracing::warn!(%error, job = name, "could not open the circuit of a job");
        }
    }
}

fn note_of(name: &str) -> String {
    format!("circuit:{name}")
}
