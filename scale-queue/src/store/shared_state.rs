//! State that a fleet shares besides jobs: progress of batches, a registry of running processes,
//! and notes.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Error;

/// Maximum registry entries per kind.
pub const MAX_REGISTERED: usize = 10_000;

/// End of a job of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The job is done.
    Done,
    /// The job is dead. If it is revived and done, it counts as done.
    Dead,
    /// The job was skipped, and counts as done. A dead job stays dead.
    Skipped,
}

/// Progress of a batch.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Total number of jobs.
    pub total: u32,
    /// Number of jobs that are done.
    pub done: u32,
    /// Number of jobs that are dead.
    pub dead: u32,
    /// True if the batch is cancelled: jobs that have not begun are skipped.
    pub cancelled: bool,
    /// True if a death has cancelled the batch, not a request.
    pub by_death: bool,
    /// True if jobs were skipped because another job had died; then not all work of the batch was
    /// done.
    pub skipped: bool,
    /// True if the jobs that follow the batch's end are stored; then nothing follows any more.
    pub followed: bool,
}

/// A batch to be opened.
#[derive(Clone, Copy, Debug)]
pub struct NewBatch<'a> {
    /// Total number of jobs.
    pub total: u32,
    /// True if the other jobs still run after the first death.
    pub lenient: bool,
    /// Encoded jobs that follow the batch; opaque to the store.
    pub plan: &'a [u8],
    /// Time for which the batch is remembered after its last change.
    pub life: Duration,
}

/// Progress of batches. A part of every [`Store`](super::Store).
#[async_trait]
pub trait BatchStore: Send + Sync {
    /// Stores a batch. An existing batch is not changed.
    async fn open_batch(&self, id: &str, batch: NewBatch<'_>) -> Result<(), Error>;

    /// Records how the job of that number ended; recording it again changes nothing. Returns `None`
    /// if the batch is forgotten.
    async fn mark(&self, id: &str, number: u32, end: End) -> Result<Option<Tally>, Error>;

    /// Adds jobs to a batch that has not been followed yet, and returns the number of the first one
    /// and how many were added. A second call under the same name changes nothing and returns the
    /// same. Returns `None` if the batch is forgotten or was followed.
    async fn grow_batch(&self, id: &str, name: &str, by: u32) -> Result<Option<(u32, u32)>, Error>;

    /// Returns the ends of the jobs whose number is below this one; a skipped job is
    /// [`Done`](End::Done).
    async fn ends(&self, id: &str, below: u32) -> Result<Vec<(u32, End)>, Error>;

    /// Returns the progress of a batch, and its plan.
    async fn batch(&self, id: &str) -> Result<Option<(Tally, Vec<u8>)>, Error>;

    /// Records that all jobs that follow the batch are stored; the batch is forgotten after `life`.
    async fn conclude_batch(&self, id: &str, life: Duration) -> Result<(), Error>;

    /// Cancels a batch: jobs that have not begun are skipped. Returns `false` if the batch is
    /// unknown. A batch that is cancelled already keeps its cause.
    async fn cancel_batch(&self, id: &str, by_death: bool) -> Result<bool, Error>;

    /// Returns whether the job of that number must be skipped: the batch is cancelled, and the job
    /// is not one of its dead jobs that was revived.
    async fn is_cancelled(&self, id: &str, number: u32) -> Result<bool, Error>;
}

/// Registry of live workers, schedules and batches. A part of every [`Store`](super::Store).
#[async_trait]
pub trait Registry: Send + Sync {
    /// Registers an entry until `life` has passed without another call. The newest
    /// [`MAX_REGISTERED`] entries of each kind are kept.
    async fn register(
        &self,
        kind: &str,
        name: &str,
        about: &[u8],
        life: Duration,
    ) -> Result<(), Error>;

    /// Removes a registration.
    async fn deregister(&self, kind: &str, name: &str) -> Result<(), Error>;

    /// Returns the registrations of a kind: names and descriptions, the last registered first.
    async fn registered(
        &self,
        kind: &str,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error>;
}

/// Notes: small values kept for a while. A part of every [`Store`](super::Store).
#[async_trait]
pub trait Notes: Send + Sync {
    /// Stores a note for the time `life`.
    async fn put_note(&self, key: &str, value: &[u8], life: Duration) -> Result<(), Error>;

    /// Removes notes.
    async fn forget_notes(&self, keys: &[String]) -> Result<(), Error>;

    /// Returns a note.
    async fn read_note(&self, key: &str) -> Result<Option<Vec<u8>>, Error>;
}
