//! Stores of jobs. One trait, one file per backend, one contract (`tests/contract.rs`) for all.
//!
//! | state | stored in | left by |
//! | --- | --- | --- |
//! | waiting | the queue's list, oldest first | [`fetch`](Store::fetch) → leased, or blocked if its line is not empty |
//! | scheduled | a set ordered by due time | a [`fetch`](Store::fetch) when it is due → waiting |
//! | blocked | a line, named after what the job waits for | a [permit](LimitStore::release) that comes free, the line's retry time, or the end of a job of its [group](crate::group) → waiting or leased |
//! | leased | the worker's own table | [`fetch`](Store::fetch) with its tag in `done` → removed; [`settle`](Store::settle) → any other state or removed; [`reclaim`](Store::reclaim) of a dead worker's jobs → waiting |
//! | suspect | a part of the waiting jobs: its handler had begun when its worker died | [`fetch`](Store::fetch), one at a time for a worker → leased |
//! | dead | a set ordered by time of death, bounded | [`take_dead`](Store::take_dead) → waiting, or removed; the bounds on age and number → removed |
//!
//! Every move is atomic, so a job is in exactly one state.

mod ended;
mod limits;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod shared_state;
#[cfg(feature = "sql")]
pub(crate) mod sql;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

pub use self::ended::{EndedStore, EndingJob};
pub use self::limits::{Admission, LimitStore, PassOn, PassedOn, PermitRequest, RateRequest};
pub use self::memory::MemoryStore;
#[cfg(feature = "testing")]
pub(crate) use self::memory::testing::Recorded;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
pub use self::shared_state::{BatchStore, End, MAX_REGISTERED, NewBatch, Notes, Registry, Tally};
#[cfg(feature = "sql")]
pub(crate) use self::sql::outbox;
#[cfg(feature = "sql")]
pub use self::sql::{Enlist, SqlStore, Synchronous, migrate, migrations, statements};
use crate::error::Error;
use crate::group::Group;
#[cfg(feature = "sql")]
pub use scale_sql::{Database, System};

/// Id of a worker, drawn at its start; no two workers share one, whatever their names.
pub type WorkerId = std::sync::Arc<str>;

/// A job to be stored.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// The encoded job.
    pub bytes: Vec<u8>,
    /// Delay before the job may run; zero: none.
    pub delay: Duration,
    /// Unique key and its maximum life. No second job with this key is stored in the queue until
    /// this job is done or dead, or the life is over.
    pub unique: Option<(String, Duration)>,
    /// Once key and its life. No second job with this key is stored for that time, even if the
    /// first one is gone: it protects against accidental second pushes.
    pub once: Option<(String, Duration)>,
    /// Key under which the job replaces one that is still scheduled.
    pub debounce: Option<Debounce>,
}

/// Replacement of a scheduled job by a later push under the same key: the job keeps its id and its
/// time of push, and its delay begins again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debounce {
    /// Key of the job in its queue.
    pub key: String,
    /// Longest time between the first push and the time at which the job is due.
    pub at_most: Duration,
}

/// Request of a worker to one queue.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tags of jobs that are done.
    pub done: &'a [Vec<u8>],
    /// Maximum number of jobs to lease; 0 only acknowledges.
    pub max: usize,
    /// Bytes after which no further job is taken; at least one job is returned, whatever its size.
    pub max_bytes: usize,
    /// Number of the returned jobs whose handlers begin at once. Handlers of the others begin after
    /// the next fetch, which confirms all jobs taken before it. So if the worker dies, the store
    /// knows which jobs had not begun.
    pub begins: usize,
    /// Time for which the worker may keep the jobs without a heartbeat.
    pub lease: Duration,
    /// State of the worker's trial, which decides whether it may get a suspect.
    pub trial: Trial,
    /// Names of [handler lines](Fetched::lines) to take from first.
    pub lines: &'a [String],
    /// Time for which jobs wait in a handler line before they are [overdue](Fetched::overdue).
    pub unhandled_for: Duration,
}

/// State of a worker's trial of a suspect: a job whose handler had begun when a worker died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trial {
    /// The suspect with this tag runs alone now; if the worker dies, this suspect is at fault.
    Running([u8; 16]),
    /// A suspect of another queue runs alone; if the worker dies, no job of this queue is at fault.
    Elsewhere,
    /// The suspect with this tag is held and has not begun: it is not at fault, running jobs may
    /// be.
    Waiting([u8; 16]),
    /// No suspect runs alone, and none is wanted now.
    None,
    /// No suspect runs alone; the next one may be returned, without other jobs.
    Next,
}

/// Answer to a worker's request.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Encoded jobs, leased to the worker.
    pub jobs: Vec<Vec<u8>>,
    /// Number of the acknowledged jobs that were still the worker's.
    pub acknowledged: usize,
    /// True if there were fewer jobs than requested, and the store will wake the worker when there
    /// are more.
    pub armed: bool,
    /// Maximum delay of the next look, because of a scheduled job or another worker's lease.
    pub look_again: Option<Duration>,
    /// A worker whose lease has expired: [`reclaim`](Store::reclaim) its jobs.
    pub expired: Option<WorkerId>,
    /// Tags of returned jobs that are cancelled, to be settled as dead.
    pub cancelled: Vec<Vec<u8>>,
    /// Tags of returned jobs that no worker could handle in time, to be settled as dead.
    pub overdue: Vec<Vec<u8>>,
    /// True if the only returned job is a suspect, to be run alone.
    pub suspect: bool,
    /// Lines whose jobs wait for a worker that can handle them: `kind:<name>`, `format:<version>`.
    pub lines: Vec<String>,
}

/// End of a leased job other than simple completion.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Tag of the job.
    pub tag: Vec<u8>,
    /// Unique key that the job holds.
    pub unique: Option<String>,
    /// Group in which the job takes turns.
    pub group: Option<Group>,
    /// Destination of the job.
    pub to: Destination,
}

/// Destination of a leased job.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Destination {
    /// Removed: the job is done.
    Done,
    /// Removed without a run; counted nowhere.
    Removed,
    /// Scheduled with these bytes after the delay; the attempt has failed.
    Retry(Vec<u8>, Duration),
    /// Scheduled after the delay, with these bytes or unchanged; no attempt is counted.
    Deferred(Option<Vec<u8>>, Duration),
    /// Dead.
    Dead {
        /// Encoded job to store.
        bytes: Vec<u8>,
        /// Reason why it is dead.
        reason: String,
        /// True if an attempt has failed now; not so if the job was given up without one, or if the
        /// failure was counted before.
        has_failed: bool,
    },
    /// Back to the head of the queue, unchanged.
    Waiting,
    /// To the suspects, unchanged: a worker tries it alone.
    Suspect,
    /// Into a line, unchanged, ordered by time of push.
    Blocked {
        /// Name of the line.
        line: String,
        /// Maximum delay before the first job in line is tried.
        retry_in: Duration,
        /// For a rate: interval at which one more job may be tried.
        pace: Option<Duration>,
    },
    /// Into the line of jobs that no worker here can handle, unchanged.
    Unhandled(String),
}

/// Message to a worker: a reason to look at a queue, or a cancellation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WakeUp {
    /// This queue may have jobs.
    Queue(String),
    /// Wake-ups may have been missed: look at every queue.
    Resync,
    /// The job with this tag is cancelled: end it if you hold it.
    Cancel(Vec<u8>),
}

/// State of a job that is not dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// Ready to be taken.
    Waiting,
    /// Due later.
    Scheduled,
    /// In a line: its limit is full, its group has no turn for it, or no worker can handle it.
    Blocked,
    /// Held by a worker.
    Leased,
}

/// A job as listed by a store.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The encoded job.
    pub bytes: Vec<u8>,
    /// Time at which a scheduled job is due: ms since 1970.
    pub due_ms: Option<u64>,
    /// Worker that has leased the job.
    pub worker: Option<String>,
    /// Line in which a blocked job waits.
    pub line: Option<String>,
}

/// Result of a request to cancel a job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancellation {
    /// The job had not begun, and is dead now.
    Cancelled(Vec<u8>),
    /// The worker that holds the job, or takes it next, will end it.
    Asked,
    /// The queue does not hold the job.
    Unknown,
}

/// Result of a step of [`reclaim`](Store::reclaim).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Number of jobs reclaimed in this step.
    pub jobs: usize,
    /// Jobs that the dead worker still holds.
    pub left: usize,
}

/// Current counts of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that may be taken now.
    pub waiting: u64,
    /// Jobs that are due later.
    pub scheduled: u64,
    /// Jobs in lines: their limit is full, their group has no turn for them, or no worker can
    /// handle them.
    pub blocked: u64,
    /// Jobs held by workers.
    pub leased: u64,
    /// Dead jobs.
    pub dead: u64,
    /// Jobs pushed since the queue was created.
    pub pushed_total: u64,
    /// Jobs done since the queue was created.
    pub done_total: u64,
    /// Failed attempts since the queue was created.
    pub failed_total: u64,
    /// Age of the oldest waiting job, ms: the queue's lag.
    pub lag_ms: u64,
    /// True if the queue is paused.
    pub paused: bool,
}

/// Counts of a queue at one time, for charts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Sample {
    /// Time: ms since 1970, the beginning of its minute or hour.
    pub at_ms: u64,
    /// Jobs pushed until then, since the queue was created.
    pub pushed_total: u64,
    /// Jobs done until then.
    pub done_total: u64,
    /// Failed attempts until then.
    pub failed_total: u64,
    /// Jobs that were waiting.
    pub waiting: u64,
    /// Lag of the queue, ms.
    pub lag_ms: u64,
}

impl Sample {
    pub(crate) fn of(stats: &Stats, at_ms: u64) -> Self {
        let Stats { pushed_total, done_total, failed_total, waiting, lag_ms, .. } = *stats;
        Self { at_ms, pushed_total, done_total, failed_total, waiting, lag_ms }
    }
}

/// Resolution of a queue's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// A sample a minute, for a day.
    Minute,
    /// A sample an hour, for 90 days.
    Hour,
}

impl Resolution {
    pub(crate) const ALL: [Self; 2] = [Self::Minute, Self::Hour];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
        }
    }

    pub(crate) fn step_ms(self) -> u64 {
        match self {
            Self::Minute => 60_000,
            Self::Hour => 3_600_000,
        }
    }

    /// Returns the maximum number of samples.
    pub(crate) fn most(self) -> u64 {
        match self {
            Self::Minute => 24 * 60,
            Self::Hour => 90 * 24,
        }
    }
}

/// A dead job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadJob {
    /// The encoded job.
    pub bytes: Vec<u8>,
    /// Reason why the job became dead.
    pub reason: String,
    /// Time at which the job became dead: ms since 1970, by the store's clock.
    pub died_ms: u64,
}

/// Treatment of a dead job that is taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterDeath {
    /// Moved to the waiting jobs with its attempts reset; it holds this unique key for that time.
    Retry(Option<(String, Duration)>),
    /// The same with this content; the attempts are those of the bytes.
    RetryAs(Vec<u8>, Option<(String, Duration)>),
    /// Removed.
    Delete,
}

impl AfterDeath {
    /// Returns the unique key that the job is to hold.
    pub(crate) fn unique(&self) -> Option<&(String, Duration)> {
        match self {
            Self::Retry(unique) | Self::RetryAs(_, unique) => unique.as_ref(),
            Self::Delete => None,
        }
    }

    /// Returns the content with which the job waits again.
    pub(crate) fn content(&self) -> Option<&[u8]> {
        match self {
            Self::RetryAs(bytes, _) => Some(bytes),
            Self::Retry(_) | Self::Delete => None,
        }
    }
}

/// Bounds on dead jobs: how many are kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// Maximum number of dead jobs per queue; the oldest are removed first.
    pub dead: usize,
    /// Maximum age of a dead job.
    pub age: Duration,
}

impl Default for History {
    fn default() -> Self {
        Self { dead: 10_000, age: Duration::from_hours(180 * 24) }
    }
}

pub(crate) const CANCELLED: &str = "cancelled";
/// Bytes after which the jobs of one answer end, whatever the request; an answer has at least one
/// job.
pub(crate) const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Time for which a once key is kept after its job is finished.
pub const ONCE_AFTER: Duration = Duration::from_mins(10);
/// Retry interval of the first job in a line, if nothing wakes it and no expiry of a permit is
/// known.
pub(crate) const LINE_RETRY: Duration = Duration::from_secs(30);
/// Maximum number of jobs of a line that are woken at once when permits are free; each one that
/// begins wakes more.
pub(crate) const WAKES: u32 = 16;

mod sealed {
    /// Keeps [`Store`](super::Store) from being implemented by other crates.
    pub trait Sealed {}

    impl Sealed for super::MemoryStore {}
    #[cfg(feature = "redis")]
    impl Sealed for super::RedisStore {}
    #[cfg(feature = "sql")]
    impl Sealed for super::SqlStore {}
}

/// A store of jobs. Sealed until 1.0, because its methods still change: other crates cannot
/// implement it.
#[async_trait]
pub trait Store:
    sealed::Sealed + BatchStore + EndedStore + LimitStore + Notes + Registry + Debug + 'static
{
    /// Stores jobs, in portions of up to 1,000 jobs and a few MiB; each portion is stored as a
    /// whole or not at all. Returns for each job `None` if it is stored, or the encoded id of the
    /// job that holds its key. With [`Entry::debounce`] that job is replaced.
    async fn push(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error>;

    /// Removes completed jobs, and leases more.
    async fn fetch(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: Request<'_>,
    ) -> Result<Fetched, Error>;

    /// Ends leases, one after the other. The result of each is `false` if the job was not the
    /// worker's any more; then nothing was changed.
    async fn settle(
        &self,
        queue: &str,
        worker: &WorkerId,
        settlements: &[&Settlement],
    ) -> Vec<Result<bool, Error>>;

    /// Replaces a leased job, if it is still the worker's. Returns `false` if it is not; then
    /// nothing was changed.
    async fn checkpoint(
        &self,
        queue: &str,
        worker: &WorkerId,
        tag: &[u8],
        bytes: &[u8],
    ) -> Result<bool, Error>;

    /// Returns the tags of the jobs that the worker holds; used after a fetch whose answer was
    /// lost.
    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error>;

    /// Returns jobs that the worker holds, by tag: as many as fit into `max_bytes`, and at least
    /// one if it holds any.
    async fn held_jobs(
        &self,
        queue: &str,
        worker: &WorkerId,
        tags: &[Vec<u8>],
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, Error>;

    /// Renews a worker's lease. Returns `false` if it had expired, so that other workers may have
    /// some of its jobs.
    async fn heartbeat(
        &self,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<bool, Error>;

    /// Reclaims jobs of a worker whose lease has expired or is missing, about 100 per call. For
    /// jobs whose handler had begun an attempt is counted, and they become suspects. If a suspect
    /// ran alone, this applies to that suspect only.
    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<Reclaimed, Error>;

    /// Finds workers that hold jobs of the queue without a lease, left behind by a fault.
    async fn orphans(&self, queue: &str) -> Result<Vec<WorkerId>, Error>;

    /// Returns a stream that yields a wake-up when there is something to fetch, from now on.
    fn wake_ups(&self, worker: &WorkerId) -> BoxStream<'static, WakeUp>;

    /// Wakes another worker, for one that was woken and takes nothing. The worker `leaves` is
    /// removed from the idle workers.
    async fn pass_on(&self, queue: &str, leaves: Option<&WorkerId>) -> Result<(), Error>;

    /// Removes all traces of a worker that ends and holds nothing.
    async fn leave(&self, queue: &str, worker: &WorkerId) -> Result<(), Error>;

    /// Pauses or resumes the queue.
    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error>;

    /// Returns the counts of a queue.
    async fn stats(&self, queue: &str) -> Result<Stats, Error>;

    /// Records the sample of a minute or hour, if there is none yet, and removes samples that are
    /// too old.
    async fn record(
        &self,
        queue: &str,
        resolution: Resolution,
        sample: &Sample,
    ) -> Result<(), Error>;

    /// Returns the samples since `since_ms`, the oldest first.
    async fn history_of(
        &self,
        queue: &str,
        resolution: Resolution,
        since_ms: u64,
    ) -> Result<Vec<Sample>, Error>;

    /// Returns dead jobs, the newest first. If jobs are large, an answer may have fewer than
    /// `limit`; it is empty only if there are no more.
    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<DeadJob>, Error>;

    /// Takes out a dead job, by its tag and time of death. Returns `false` if it was not there, or
    /// if the unique key it is to hold is taken.
    async fn take_dead(
        &self,
        queue: &str,
        tag: &[u8],
        died_ms: u64,
        then: &AfterDeath,
    ) -> Result<bool, Error>;

    /// Requests the end of a job that is not dead.
    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error>;

    /// Returns jobs of one state: waiting jobs in their order, scheduled ones by due time. If jobs
    /// are large, an answer may have fewer than `limit`; it is empty only if there are no more.
    async fn list(
        &self,
        queue: &str,
        state: State,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<Listed>, Error>;

    /// Leases up to about 1,000 waiting, blocked or scheduled jobs for a drain, whether or not they
    /// are due or the queue is paused.
    async fn take_all(
        &self,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<Vec<Vec<u8>>, Error>;

    /// Releases a unique key, if the job with this tag holds it.
    async fn release_unique(&self, queue: &str, key: &str, tag: &[u8]) -> Result<(), Error>;

    /// Shortens the life of these [`once`](Entry::once) keys to [`ONCE_AFTER`]: no push under them
    /// is expected any more, except from a worker that was cut off and does not know it yet.
    async fn expire_once(&self, queue: &str, keys: &[String]) -> Result<(), Error>;

    /// Returns the names of all queues that ever held a job.
    async fn queues(&self) -> Result<Vec<String>, Error>;

    /// Returns the store's current time: ms since 1970.
    fn now_ms(&self) -> u64;

    /// Registers a queue before the first job of a transaction, so that concurrent pushes to the
    /// queue do not have to wait for the end of that transaction.
    async fn make_known(&self, queue: &str) -> Result<(), Error> {
        let _ = queue;
        Ok(())
    }

    /// Returns whether jobs can be pushed directly into the store through a connection of the
    /// application to the same database.
    fn enlists(&self) -> bool {
        false
    }

    /// Returns whether a pooler assigns a connection per transaction.
    fn is_pooled(&self) -> bool {
        false
    }

    /// Returns the name of the application that owns the jobs.
    fn app(&self) -> &str;
}

/// Keeps the first jobs up to `max_bytes` in total, but at least one.
pub(crate) fn within<T>(jobs: Vec<T>, max_bytes: usize, size: impl Fn(&T) -> usize) -> Vec<T> {
    let mut sum = 0;
    let fits = jobs.iter().take_while(|job| {
        let fits = sum < max_bytes;
        sum += size(job);
        fits
    });
    let count = fits.count();
    let mut jobs = jobs;
    jobs.truncate(count);
    jobs
}

/// Splits a push into portions of up to 1,000 jobs and a few MiB, each with at least one job.
#[cfg(any(feature = "redis", feature = "sql"))]
fn portions(entries: &[Entry]) -> Vec<&[Entry]> {
    let (mut portions, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (n, entry) in entries.iter().enumerate() {
        if n > start && (n - start == 1_000 || bytes + entry.bytes.len() > PAGE_BYTES) {
            portions.push(&entries[start..n]);
            (start, bytes) = (n, 0);
        }
        bytes += entry.bytes.len();
    }
    portions.push(&entries[start..]);
    portions
}

#[cfg(all(test, any(feature = "redis", feature = "sql")))]
mod tests {
    use super::*;

    #[test]
    fn portions_are_bounded_by_number_and_bytes_and_lose_nothing() {
        let entry = |size: usize| Entry { bytes: vec![0; size], ..Entry::default() };
        let sizes = |entries: &[Entry]| {
            portions(entries).iter().map(|portion| portion.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&vec![entry(10); 2_500]), [1_000, 1_000, 500]);
        assert_eq!(sizes(&vec![entry(1_500_000); 5]), [2, 2, 1]);
        assert_eq!(sizes(&[entry(9_000_000), entry(1), entry(9_000_000)]), [1, 1, 1]);
        assert_eq!(sizes(&[]), [0]);
    }
}
