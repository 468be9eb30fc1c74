//! Context of a running job.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use crate::checkpoint::Run;
use crate::format::Place;
use crate::job::JobId;
use crate::log::JobLog;
use crate::store::Store;

/// Context of one attempt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Context {
    /// Id of the job. It is the same in every attempt, so it is a good idempotency key.
    pub id: JobId,
    /// Queue from which the job was taken.
    pub queue: Arc<str>,
    /// Number of the attempt, from 1.
    pub attempt: u16,
    /// Time since the job was pushed, delays included.
    pub waited: Duration,
    /// Error of the previous attempt.
    pub last_error: Option<String>,
    /// Metadata set by the pusher: see [`Queue::propagating`](crate::Queue::propagating).
    pub metadata: Vec<(String, String)>,
    /// Batch to which the job belongs.
    pub batch: Option<String>,
    pub(crate) place: Option<Place>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cancelled: Cancelled,
    pub(crate) run: Arc<Run>,
    pub(crate) log: Option<Arc<JobLog>>,
}

/// Reason why a running job is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// Cancellation was requested: see [`Queue::cancel`](crate::Queue::cancel).
    Requested,
    /// The worker's lease has expired: another worker may have the job by now.
    LeaseLost,
    /// A permit of one of the job's [limits](crate::Job::limits) could not be renewed: another job
    /// may get it soon.
    PermitLost,
    /// The worker is shutting down, and its [grace period](crate::Worker::grace) is over.
    Shutdown,
}

/// Signal that cancels a running job once, with a reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancelled(Arc<Signal>);

#[derive(Debug, Default)]
struct Signal {
    reason: OnceLock<CancelReason>,
    notify: Notify,
}

impl Cancelled {
    pub(crate) fn cancel(&self, reason: CancelReason) {
        // Later reasons are ignored.
        let _ = self.0.reason.set(reason);
        self.0.notify.notify_waiters();
    }

    pub(crate) async fn cancelled(&self) {
        let mut notified = pin!(self.0.notify.notified());
        // Registered before the look, so that a signal in between is not missed.
        notified.as_mut().enable();
        if self.reason().is_none() {
            notified.await;
        }
    }

    fn reason(&self) -> Option<CancelReason> {
        self.0.reason.get().copied()
    }
}

impl Context {
    /// Creates the context of a first attempt.
    #[cfg(feature = "testing")]
    pub(crate) fn new(id: JobId, queue: Arc<str>, store: Arc<dyn Store>, run: Arc<Run>) -> Self {
        Self {
            id,
            queue,
            attempt: 1,
            waited: Duration::ZERO,
            last_error: None,
            metadata: Vec::new(),
            batch: None,
            place: None,
            store,
            cancelled: Cancelled::default(),
            run,
            log: None,
        }
    }

    /// Completes when the job is cancelled, for a [reason](Self::cancel_reason). The handler's
    /// future is dropped soon after; work on blocking threads should watch this.
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Returns whether the job was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.reason().is_some()
    }

    /// Returns the reason why the job was cancelled, if it was.
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.cancelled.reason()
    }
}
