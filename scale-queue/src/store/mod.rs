//! Where jobs are kept. One trait, one file per backend, one contract (`tests/contract.rs`) for all.
//!
//! | state | where it is | leaves it by |
//! | --- | --- | --- |
//! | waiting | the queue's order, oldest first | [`fetch`](Store::fetch) → leased, or blocked if its line is not empty |
//! | scheduled | a set ordered by due time | being due, inside a [`fetch`](Store::fetch) → waiting |
//! | blocked | a line, by the name of what it waits for | a [permit](LimitStore::release) that comes free, or its time → waiting or leased |
//! | leased | the worker's own table | [`fetch`](Store::fetch) with its tag in `done` → gone; [`settle`](Store::settle) → any other state or gone; [`reclaim`](Store::reclaim) of a dead worker's → waiting |
//! | suspect | a part of what waits: its handler had begun when its worker died | [`fetch`](Store::fetch), one at a time for a worker → leased |
//! | dead | a set ordered by time of death, bounded | [`take_dead`](Store::take_dead) → waiting, or gone; age and number → gone |
//!
//! Every move is atomic, so a job is in exactly one state.

mod ledger;
mod limits;
mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod sql;

use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

pub use self::ledger::{End, Ledger, MOST_PRESENT, NewBatch, Tally};
pub use self::limits::{Admission, LimitStore, PassOn, PassedOn, PermitRequest, RateRequest};
pub use self::memory::MemoryStore;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
#[cfg(feature = "sqlite")]
pub use self::sql::Synchronous;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::sql::{Enlist, Relay, SqlStore, statements};
use crate::error::Error;

/// A worker's identity, drawn at its start: two workers never share one, whatever their names.
pub type WorkerId = std::sync::Arc<str>;

/// A job to be stored.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The encoded job.
    pub bytes: Vec<u8>,
    /// Not before that time has passed; zero: now.
    pub delay: Duration,
    /// No second one of this key in the queue; the key is free again when the job is done or dead, or after that time.
    pub unique: Option<(String, Duration)>,
    /// No second one of this key for that time, whatever becomes of the first: for what may be pushed twice by mistake.
    pub once: Option<(String, Duration)>,
}

/// What a worker wants of one queue.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tags of jobs that are done.
    pub done: &'a [Vec<u8>],
    /// How many jobs it takes at most; 0: it only acknowledges.
    pub max: usize,
    /// Bytes of jobs after which no further one is taken: at least one job comes, whatever its size.
    pub max_bytes: usize,
    /// Handlers of the first so many of the jobs that come begin at once. Those of the others begin after the next fetch, which
    /// confirms everything taken before it: should the worker die, the store knows which jobs had not begun.
    pub begins: usize,
    /// How long the worker may keep them without a heartbeat.
    pub lease: Duration,
    /// Whether the worker may be given a suspect.
    pub trial: Trial,
    /// Names of [handler lines](Fetched::lines) to take from first.
    pub lines: &'a [String],
    /// How long jobs wait in a handler line before they come as [overdue](Fetched::overdue).
    pub unhandled_for: Duration,
}

/// Where a worker is with suspects: jobs whose handler had begun when a worker died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The one of this tag runs alone now; should the worker die, it is that one's fault.
    Running([u8; 16]),
    /// One of another queue runs alone; should the worker die, nothing of this queue is at fault.
    Elsewhere,
    /// The one of this tag is here and has not begun: it is not at fault, those that run may be.
    Waiting([u8; 16]),
    /// None runs alone; none is wanted now.
    None,
    /// None runs alone; the next one may come, without other jobs beside it.
    Next,
}

/// What a worker gets.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Encoded jobs, leased to the worker.
    pub jobs: Vec<Vec<u8>>,
    /// How many of those reported done were still the worker's.
    pub acknowledged: usize,
    /// Fewer jobs than asked for: the store will wake the worker when there are more.
    pub armed: bool,
    /// When to look again at the latest, for a delayed job or another worker's lease.
    pub look_again: Option<Duration>,
    /// A worker whose lease has run out: [`reclaim`](Store::reclaim) its jobs.
    pub expired: Option<WorkerId>,
    /// Tags of jobs among them that are cancelled: to be settled as dead.
    pub cancelled: Vec<Vec<u8>>,
    /// Tags of jobs among them that no worker could handle for too long: to be settled as dead.
    pub overdue: Vec<Vec<u8>>,
    /// The only job among them is a suspect: it runs alone.
    pub suspect: bool,
    /// Lines whose jobs wait for a worker that can handle them: `kind:<name>`, `format:<version>`.
    pub lines: Vec<String>,
}

/// How one leased job ends, other than simply done.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Which job.
    pub tag: Vec<u8>,
    /// The unique key it holds.
    pub unique: Option<String>,
    /// Where it goes.
    pub to: Destination,
}

/// Where a leased job goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Away: it is done.
    Done,
    /// Away, without having run: it is counted nowhere.
    Removed,
    /// An attempt has failed: into the schedule, as these bytes, due after the delay.
    Retry(Vec<u8>, Duration),
    /// Into the schedule, as these bytes or as it is, due after the delay; no attempt is counted.
    Deferred(Option<Vec<u8>>, Duration),
    /// To the dead.
    Dead {
        /// The job, as it is kept there.
        bytes: Vec<u8>,
        /// Why it is dead.
        reason: String,
        /// An attempt has failed now; one of a job that is given up has not, or was counted before.
        has_failed: bool,
    },
    /// Back to the head of the queue, as it is.
    Waiting,
    /// To the suspects, as it is: a worker tries it alone.
    Suspect,
    /// Into a line, as it is, by its time of push.
    Blocked {
        /// The line's name.
        line: String,
        /// When the first in line is to be tried at the latest.
        retry_in: Duration,
        /// Of a rate: one more may be tried so often.
        pace: Option<Duration>,
    },
    /// Into the line of jobs that no worker here can handle, as it is.
    Unhandled(String),
}

/// A reason for a worker to look at a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There is something in this queue.
    Queue(String),
    /// Wakes may have been missed: look at every queue.
    Unsure,
    /// A job, by its tag, is cancelled: if you hold it, end it.
    Cancel(Vec<u8>),
}

/// Where a job may be that is not dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// To be taken next.
    Waiting,
    /// For later.
    Scheduled,
    /// In a line: its limit is full, or no worker can handle it.
    Blocked,
    /// With a worker.
    Leased,
}

/// A job as it lies in a store.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The encoded job.
    pub bytes: Vec<u8>,
    /// When it is due, of a scheduled one: ms since 1970.
    pub due_ms: Option<u64>,
    /// Who has it, of a leased one.
    pub worker: Option<String>,
    /// What it waits for, of a blocked one.
    pub line: Option<String>,
}

/// What came of asking for a job's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// It had not begun, and lies among the dead now.
    Buried(Vec<u8>),
    /// Whoever has it, or takes it, will end it.
    Asked,
    /// It is not in the queue.
    Unknown,
}

/// What came of a step of [`reclaim`](Store::reclaim).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Jobs taken back in this step.
    pub jobs: usize,
    /// Jobs that the dead worker still holds.
    pub left: usize,
}

/// What a queue holds at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that may be taken now.
    pub waiting: u64,
    /// Jobs that wait for their time.
    pub scheduled: u64,
    /// Jobs in lines: their limit is full, or no worker can handle them.
    pub blocked: u64,
    /// Jobs that workers hold.
    pub leased: u64,
    /// Jobs given up.
    pub dead: u64,
    /// Jobs pushed since the queue exists.
    pub pushed_total: u64,
    /// Jobs done since the queue exists.
    pub done_total: u64,
    /// Attempts failed since the queue exists.
    pub failed_total: u64,
    /// Age of the oldest waiting job, ms: the queue's lag.
    pub lag_ms: u64,
    /// Whether nothing is handed out.
    pub paused: bool,
}

/// A queue's counts at a moment, for charts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Sample {
    /// When: ms since 1970, the beginning of its minute or hour.
    pub at_ms: u64,
    /// Jobs pushed by then, since the queue exists.
    pub pushed_total: u64,
    /// Jobs done by then.
    pub done_total: u64,
    /// Attempts failed by then.
    pub failed_total: u64,
    /// Jobs that waited.
    pub waiting: u64,
    /// The queue's lag, ms.
    pub lag_ms: u64,
}

impl Sample {
    pub(crate) fn of(stats: &Stats, at_ms: u64) -> Self {
        let Stats { pushed_total, done_total, failed_total, waiting, lag_ms, .. } = *stats;
        Self { at_ms, pushed_total, done_total, failed_total, waiting, lag_ms }
    }
}

/// How finely a queue's history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// Samples kept.
    pub(crate) fn most(self) -> u64 {
        match self {
            Self::Minute => 24 * 60,
            Self::Hour => 90 * 24,
        }
    }
}

/// A job given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpse {
    /// The encoded job.
    pub bytes: Vec<u8>,
    /// Why.
    pub reason: String,
    /// When: ms since 1970, by the store's clock.
    pub died_ms: u64,
}

/// What becomes of a dead job that is taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revival {
    /// It waits again, its attempts forgotten, and holds this unique key for so long.
    Again(Option<(String, Duration)>),
    /// It is gone.
    Gone,
}

/// How many of the dead are kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// At most so many a queue; the oldest go first.
    pub dead: usize,
    /// At most so long.
    pub age: Duration,
}

impl Default for History {
    fn default() -> Self {
        Self { dead: 10_000, age: Duration::from_hours(180 * 24) }
    }
}

pub(crate) const CANCELLED: &str = "cancelled";
/// Jobs of one answer end here, whatever was asked for, if they have so many bytes; at least one job is in it.
pub(crate) const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// How long it is known that something was pushed once, after it is over.
pub const ONCE_AFTER: Duration = Duration::from_mins(10);
/// How often the first in a line is tried if nothing wakes it, and nothing is known of when a permit expires.
pub(crate) const LINE_RETRY: Duration = Duration::from_secs(30);
/// Jobs of a line that are woken at once when permits are free; each that begins wakes more.
pub(crate) const WAKES: u32 = 16;

/// A store of jobs.
#[async_trait]
pub trait Store: Ledger + LimitStore + std::fmt::Debug + 'static {
    /// Stores jobs, in portions of up to a thousand and a few MiB: all of a portion or none. For each job: `None` if it is stored, or the
    /// encoded id of the job that holds its key.
    async fn push(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error>;

    /// Removes what is done, and leases more.
    async fn fetch(&self, queue: &str, worker: &WorkerId, request: Request<'_>) -> Result<Fetched, Error>;

    /// Ends leases, one after the other. For each, `false`: it was not the worker's any more, and nothing was done.
    async fn settle(&self, queue: &str, worker: &WorkerId, settlements: &[&Settlement]) -> Vec<Result<bool, Error>>;

    /// Tags of the jobs that the worker holds: asked after a fetch whose answer was lost.
    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error>;

    /// Jobs that the worker holds, by tag: as many of them as are not too many bytes, at least one if it holds one.
    async fn held_jobs(&self, queue: &str, worker: &WorkerId, tags: &[Vec<u8>], max_bytes: usize) -> Result<Vec<Vec<u8>>, Error>;

    /// Renews a worker's lease. `false`: it had run out, and some jobs may be somebody else's.
    async fn beat(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<bool, Error>;

    /// Takes back jobs of a worker whose lease has run out or is not there, in steps of about a hundred. Of jobs whose handler had begun
    /// an attempt is counted, and they become suspects; if a suspect ran alone, it is that one alone.
    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<Reclaimed, Error>;

    /// Finds workers that hold jobs of the queue and have no lease: what a fault has left behind.
    async fn orphans(&self, queue: &str) -> Result<Vec<WorkerId>, Error>;

    /// Tells the worker when there is something to fetch, from now on.
    fn wakes(&self, worker: &WorkerId) -> BoxStream<'static, Wake>;

    /// Wakes another worker, for one that was woken and takes nothing. Who `leaves` is not woken any more.
    async fn pass_on(&self, queue: &str, leaves: Option<&WorkerId>) -> Result<(), Error>;

    /// The worker is gone for good and holds nothing: nothing of it stays.
    async fn leave(&self, queue: &str, worker: &WorkerId) -> Result<(), Error>;

    /// Stops or starts handing out.
    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error>;

    /// What the queue holds.
    async fn stats(&self, queue: &str) -> Result<Stats, Error>;

    /// Keeps the sample of a minute or hour, if there is none yet, and drops those that are too old.
    async fn record(&self, queue: &str, resolution: Resolution, sample: &Sample) -> Result<(), Error>;

    /// Samples since then, the oldest first.
    async fn history_of(&self, queue: &str, resolution: Resolution, since_ms: u64) -> Result<Vec<Sample>, Error>;

    /// The dead, newest first; fewer than asked for where they are large, none only where there are none.
    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<Corpse>, Error>;

    /// Takes a job from the dead, by its tag and time of death. `false`: it was not there, or the unique key it is to hold is taken.
    async fn take_dead(&self, queue: &str, tag: &[u8], died_ms: u64, revival: &Revival) -> Result<bool, Error>;

    /// Asks for the end of a job that is not dead.
    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error>;

    /// Jobs of one state: waiting ones in their order, scheduled ones by due time; fewer than asked for where they are large, none only
    /// where there are none.
    async fn list(&self, queue: &str, state: State, offset: usize, limit: usize) -> Result<Vec<Listed>, Error>;

    /// Leases up to about a thousand jobs that wait, are blocked or scheduled, due or not, paused or not: to be drained.
    async fn take_all(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<Vec<Vec<u8>>, Error>;

    /// Forgets after [`ONCE_AFTER`] that jobs were pushed under these [`once`](Entry::once) keys: whatever was to be pushed under them is
    /// over, but for a worker that has been cut off and does not know it yet.
    async fn expire_once(&self, queue: &str, keys: &[String]) -> Result<(), Error>;

    /// The names of all queues that ever held a job.
    async fn queues(&self) -> Result<Vec<String>, Error>;

    /// The store's clock: ms since 1970.
    fn now_ms(&self) -> u64;

    /// Makes a queue known to the dashboard before the first job of a transaction: whoever pushes to it meanwhile must not wait for the end
    /// of that transaction.
    async fn make_known(&self, queue: &str) -> Result<(), Error> {
        let _ = queue;
        Ok(())
    }

    /// Whether jobs can be pushed straight into it through a connection to the application's database, which must be the same.
    fn enlists(&self) -> bool {
        false
    }

    /// The application whose jobs these are.
    fn app(&self) -> &str;
}

/// As many as have up to so many bytes together, at least one.
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

/// Splits a push into portions of up to a thousand jobs and a few MiB: at least one job each.
#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
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

#[cfg(all(test, any(feature = "redis", feature = "postgres", feature = "sqlite")))]
mod tests {
    use super::*;

    #[test]
    fn portions_are_bounded_by_number_and_bytes_and_lose_nothing() {
        let entry = |size: usize| Entry { bytes: vec![0; size], delay: Duration::ZERO, unique: None, once: None };
        let sizes = |entries: &[Entry]| portions(entries).iter().map(|portion| portion.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&vec![entry(10); 2_500]), [1_000, 1_000, 500]);
        assert_eq!(sizes(&vec![entry(1_500_000); 5]), [2, 2, 1]);
        assert_eq!(sizes(&[entry(9_000_000), entry(1), entry(9_000_000)]), [1, 1, 1]);
        assert_eq!(sizes(&[]), [0]);
    }
}
