//! What a handler may know of the job it handles.

use std::sync::Arc;
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
    /// It has waited for its turn.
    pub(crate) turn: bool,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cancelled: CancellationToken,
}

impl Context {
    /// Ends when the attempt's result is of no more use: the job is cancelled, its lease is lost, or the worker's deadline for shutting down has passed. The
    /// handler's future is dropped soon after; work on blocking threads should watch this.
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Whether [`cancelled`](Self::cancelled) has ended.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }
}
