//! Definition of a job: a serde type with a name.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::circuit::Circuit;
use crate::group::Group;
use crate::limit::Limit;
use crate::options::{PushOptions, WithOptions};
use crate::retry::{Retry, RetryRules};

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
    /// Queue to which the job is pushed by default: `default`.
    const QUEUE: &'static str = "default";
    /// Retry policy after a failure. Default: ten attempts, with exponential delays.
    const RETRY: Retry = Retry::exponential(10);
    /// Maximum duration of one attempt. After it the future is dropped, and the attempt has failed.
    /// Default: five minutes.
    const TIMEOUT: Duration = Duration::from_mins(5);

    /// Priority among the waiting jobs of its queue.
    const PRIORITY: Priority = Priority::Normal;
    /// True if the [unique key](Job::unique_key) is released when the first attempt begins, so that
    /// another job of this key can be pushed while this one runs. Default: it is held until the job
    /// is done or dead.
    const UNIQUE_UNTIL_START: bool = false;

    /// Time after its push for which the job is retried. A failed attempt whose retry would be
    /// later makes the job dead, even if attempts are left. Default: no such time.
    const RETRY_FOR: Option<Duration> = None;
    /// Time for which the result of the handler is kept, for [`Queue::wait`](crate::Queue::wait).
    /// Default: it is not kept.
    const KEEP_RESULT: Option<Duration> = None;
    /// Circuit breaker of all jobs of this type. Default: none.
    const CIRCUIT: Option<Circuit> = None;

    /// Returns rules for errors of certain kinds, which apply instead of [`RETRY`](Self::RETRY).
    /// Called once for each worker. Default: none.
    fn retry_rules() -> RetryRules {
        RetryRules::new()
    }

    /// Returns the unique key, if any. While a job with the same key waits or runs in its queue,
    /// another push with that key is dropped. Default: none.
    fn unique_key(&self) -> Option<String> {
        None
    }

    /// Returns tags of the job, at most 8 of 1 to 64 bytes, by which it is
    /// [found](crate::Queue::ended_with_tag) when it has ended: for example `customer:7`. Default:
    /// none.
    fn tags(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns the group of the job, if any: jobs that take turns, for example to run in the order
    /// of their pushes. Default: none.
    fn group(&self) -> Option<Group> {
        None
    }

    /// Adds options to the job, for any push: alone, in bulk, in a transaction, in a batch, in a
    /// chain, by a schedule.
    ///
    /// ```
    /// # use scale_queue::{Job, Queue};
    /// # use scale_queue::push::{Priority, PushOptions};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Import { file: u32 }
    /// # impl Job for Import { const NAME: &'static str = "import"; }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// # let queue = Queue::memory();
    /// let nightly = PushOptions::new().to("imports").priority(Priority::Low).attempts(3);
    /// queue.push_many((0..100).map(|file| Import { file }.with(nightly.clone()))).await?;
    /// assert_eq!(queue.stats("imports").await?.waiting, 100);
    /// # Ok(()) }
    /// ```
    fn with(self, options: PushOptions) -> WithOptions<Self> {
        WithOptions { job: self, options }
    }

    /// Returns the limits on jobs like this one across the fleet: how many may run at a time, or
    /// begin in a period. Default: none.
    fn limits(&self) -> Vec<Limit> {
        Vec::new()
    }
}

/// Priority of a job among the waiting jobs of its queue. All jobs of a higher priority begin
/// first, so a queue that always has some of them never begins the others: give those a queue of
/// their own.
///
/// A job keeps its priority through retries. In the line of a full [limit](Job::limits), jobs are
/// in the order of their pushes; when the limit has room again, the first of them begins before
/// the waiting jobs of normal priority.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
#[non_exhaustive]
pub enum Priority {
    /// Before all others.
    High = 0,
    /// The default.
    #[default]
    Normal = 1,
    /// After all others.
    Low = 2,
}

impl Priority {
    pub(crate) const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| *priority as u8 == byte)
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
