//! Definition of a job: a serde type with a name.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::limit::Limit;
use crate::retry::Retry;

/// Unit of work, run later by a worker.
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
/// Jobs are delivered *at least once*: a worker may die after it ran the handler and before it
/// acknowledged the job. Make a handler's effect idempotent.
pub trait Job: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Name of the job in the store. Keep it when the type is renamed: stored jobs are identified
    /// by this name alone.
    const NAME: &'static str;
    /// Queue to which the job is pushed by default.
    const QUEUE: &'static str = "default";
    /// Retry policy after a failure.
    const RETRY: Retry = Retry::exponential(10);
    /// Maximum duration of one attempt. After it the future is dropped, and the attempt has failed.
    const TIMEOUT: Duration = Duration::from_mins(5);

    /// Returns the unique key, if any. While a job with the same key waits or runs in its queue,
    /// another push with that key is dropped. Default: none.
    fn unique_key(&self) -> Option<String> {
        None
    }

    /// Returns the limits on jobs like this one across the fleet: how many may run at a time, or
    /// begin in a period. Default: none.
    fn limits(&self) -> Vec<Limit> {
        Vec::new()
    }
}

/// Id of a job: a UUID of version 7, so ids sort by time of push.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
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
