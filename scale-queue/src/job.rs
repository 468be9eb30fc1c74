//! What a job is: a serde type with a name.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::limit::Limit;
use crate::retry::Retry;

/// A piece of work to be done later, perhaps elsewhere.
///
/// ```
/// use scale_queue::{Job, Retry};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct SendReceipt { order: i64 }
///
/// impl Job for SendReceipt {
///     const NAME: &'static str = "send-receipt";
///     const QUEUE: &'static str = "high";
///     const RETRY: Retry = Retry::exponential(10);
/// }
/// ```
///
/// Jobs are delivered *at least once*: a worker may die after the work and before it could say so. Make a handler's effect idempotent.
pub trait Job: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What the job is called in the store. Keep it when the type is renamed: jobs that wait know only this.
    const NAME: &'static str;
    /// The queue it is pushed to unless told otherwise.
    const QUEUE: &'static str = "default";
    /// What happens after a failure.
    const RETRY: Retry = Retry::exponential(10);
    /// How long one attempt may take; then its future is dropped and the attempt has failed.
    const TIMEOUT: Duration = Duration::from_mins(5);

    /// While a job with the same key waits or runs in its queue, another push of it is dropped. Default: none.
    fn unique_key(&self) -> Option<String> {
        None
    }

    /// How many like it may run at a time, or begin in a time, across the fleet. Default: as many as there are workers for.
    fn limits(&self) -> Vec<Limit> {
        Vec::new()
    }
}

/// A job's identity: a UUID of version 7, so ids sort by the time of the push.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    pub(crate) fn new() -> Self {
        Self(Uuid::now_v7())
    }

    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
