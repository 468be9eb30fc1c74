//! Where jobs are kept. One trait, one file per backend, one contract (`tests/contract.rs`) for all.
//!
//! | state | where it is | leaves it by |
//! | --- | --- | --- |
//! | waiting | the queue's list, oldest first | [`fetch`](Store::fetch) → leased |
//! | scheduled | a set ordered by due time | being due, inside a [`fetch`](Store::fetch) → waiting |
//! | leased | the worker's own table | [`fetch`](Store::fetch) with its tag in `done` → gone; [`settle`](Store::settle) → scheduled, dead, waiting or gone; [`reclaim`](Store::reclaim) of a dead worker's → waiting |
//! | dead | a set ordered by time of death, bounded | [`exhume`](Store::exhume) → waiting, or gone; age and number → gone |
//!
//! Every move is atomic, so a job is in exactly one state.

mod ledger;
mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod sql;

use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

pub use self::ledger::{End, Ledger, MOST_PRESENT, NewBatch, Tally};
pub use self::memory::MemoryStore;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::sql::{Enlist, Relay, SqlStore};
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
    /// How many jobs it takes at most; 0: it only settles.
    pub max: usize,
    /// How long it may keep them without a sign of life.
    pub lease: Duration,
    /// Whether it holds jobs of the queue already.
    pub holding: bool,
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
    /// Back into the schedule, as these bytes, due after the delay.
    Scheduled(Vec<u8>, Duration),
    /// To the dead, as these bytes, for this reason.
    Dead(Vec<u8>, String),
    /// Back to the head of the queue, as these bytes.
    Waiting(Vec<u8>),
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

/// What a queue holds at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that may be taken now.
    pub waiting: u64,
    /// Jobs that wait for their time.
    pub scheduled: u64,
    /// Jobs that workers hold.
    pub leased: u64,
    /// Jobs given up.
    pub dead: u64,
    /// Jobs done since the queue exists.
    pub done_total: u64,
    /// Attempts failed since the queue exists.
    pub failed_total: u64,
    /// Age of the oldest waiting job, ms: the queue's lag.
    pub lag_ms: u64,
    /// Whether nothing is handed out.
    pub paused: bool,
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

/// A store of jobs.
#[async_trait]
pub trait Store: Ledger + std::fmt::Debug + 'static {
    /// Stores jobs, all or none of every thousand. For each: `None` if it is stored, or the encoded id of the job that holds its key.
    async fn push(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error>;

    /// Removes what is done, and leases more.
    async fn fetch(&self, queue: &str, worker: &WorkerId, request: Request<'_>) -> Result<Fetched, Error>;

    /// Ends a lease. `false`: it was not the worker's any more, and nothing was done.
    async fn settle(&self, queue: &str, worker: &WorkerId, settlement: &Settlement) -> Result<bool, Error>;

    /// What the worker holds: asked after a fetch whose answer was lost.
    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error>;

    /// A sign of life. `false`: the lease had run out, and some jobs may be somebody else's.
    async fn beat(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<bool, Error>;

    /// Takes back the jobs of a worker whose lease has run out, a failed attempt counted in each, in bounded steps; returns how many.
    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<usize, Error>;

    /// Tells the worker when there is something to fetch, from now on.
    fn wakes(&self, worker: &WorkerId) -> BoxStream<'static, Wake>;

    /// The worker takes nothing of the queue for now: it is not to be woken, and another one is, in case it was woken already.
    async fn pass_on(&self, queue: &str, worker: &WorkerId) -> Result<(), Error>;

    /// Stops or starts handing out.
    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error>;

    /// What the queue holds.
    async fn stats(&self, queue: &str) -> Result<Stats, Error>;

    /// The dead, newest first.
    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<Corpse>, Error>;

    /// Takes a job from the dead, to wait again as these bytes if there are any. `false`: it was not there.
    async fn exhume(&self, queue: &str, corpse: &Corpse, again: Option<&[u8]>) -> Result<bool, Error>;

    /// Asks for the end of a job that is not dead.
    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error>;

    /// Jobs of one state: waiting ones in their order, scheduled ones by due time.
    async fn list(&self, queue: &str, state: State, offset: usize, limit: usize) -> Result<Vec<Listed>, Error>;

    /// Removes up to about a thousand jobs that wait or are scheduled, and frees their unique keys.
    async fn drain(&self, queue: &str) -> Result<Vec<Vec<u8>>, Error>;

    /// The names of all queues that ever held a job.
    async fn queues(&self) -> Result<Vec<String>, Error>;

    /// The store's clock: ms since 1970.
    fn now_ms(&self) -> u64;

    /// Whether jobs can be pushed straight into it through a connection to the application's database, which must be the same.
    fn enlists(&self) -> bool {
        false
    }
}
