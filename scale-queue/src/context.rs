//! What a handler may know of the job it handles.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::envelope::Place;
use crate::job::JobId;
use crate::store::Store;

/// The circumstances of one attempt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Context {
    /// The job's id: the same in every attempt, so a good key for idempotence.
    pub id: JobId,
    /// The queue it came from.
    pub queue: Arc<str>,
    /// Which attempt this is: 1 at first.
    pub attempt: u16,
    /// How long the job waited since it was pushed, delays included.
    pub waited: Duration,
    /// Why the attempt before failed.
    pub last_error: Option<String>,
    /// What its pusher gave it on its way: see [`Queue::carrying`](crate::Queue::carrying).
    pub carried: Vec<(String, String)>,
    /// The batch it belongs to.
    pub batch: Option<String>,
    pub(crate) place: Option<Place>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cancelled: Cancelled,
}

/// Why a running job was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// Somebody asked for its end: see [`Queue::cancel`](crate::Queue::cancel).
    Requested,
    /// The worker's lease has run out: the job is another worker's by now.
    LeaseLost,
    /// A permit of one of its [limits](crate::Job::limits) could not be renewed: another job may have it soon.
    PermitLost,
    /// The worker shuts down, and its [grace](crate::Worker::grace) is over.
    Shutdown,
}

/// Tells a running job to stop, once, with the reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancelled {
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
}

impl Cancelled {
    pub(crate) fn cancel(&self, reason: CancelReason) {
        // The first reason stays.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    pub(crate) async fn cancelled(&self) {
        self.token.cancelled().await;
    }
}

impl Context {
    /// Ends when the job is told to stop, for a [reason](Self::cancel_reason). The handler's future is dropped soon after; work on blocking
    /// threads should watch this.
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Whether [`cancelled`](Self::cancelled) has ended.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.token.is_cancelled()
    }

    /// Returns why the job was told to stop, if it was.
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.cancelled.reason.get().copied()
    }
}
