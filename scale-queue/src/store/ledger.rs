//! What a fleet must know together beside the jobs themselves: how far a batch is, who is there, what was noted.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Error;

/// How many of a kind are known to be there.
pub const MOST_PRESENT: usize = 10_000;

/// How a job of a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is done.
    Done,
    /// It is dead. Should it be revived and done, it counts as done.
    Dead,
    /// It was not to begin any more, and counts as done; a dead one stays dead.
    Skipped,
}

/// How far a batch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Jobs in all.
    pub total: u32,
    /// Jobs that are done.
    pub done: u32,
    /// Jobs that are dead.
    pub dead: u32,
    /// Whether what has not begun is not to begin.
    pub cancelled: bool,
    /// Some have not begun because another one had died: then not all was done that was to be.
    pub skipped: bool,
    /// What was pushed because of its end is stored: nothing follows any more.
    pub followed: bool,
}

/// A batch to be opened.
#[derive(Clone, Copy, Debug)]
pub struct NewBatch<'a> {
    /// Jobs in all.
    pub total: u32,
    /// Whether its first death does not cancel the others.
    pub lenient: bool,
    /// What is to be done at which point: opaque to the store.
    pub plan: &'a [u8],
    /// How long it is remembered after the last change.
    pub life: Duration,
}

/// Small shared state. A part of every [`Store`](super::Store).
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Remembers a batch. One that is there already stays as it is.
    async fn open_batch(&self, id: &str, batch: NewBatch<'_>) -> Result<(), Error>;

    /// Notes how the job of that number ended; noting it again changes nothing. `None`: the batch is forgotten.
    async fn mark(&self, id: &str, number: u32, end: End) -> Result<Option<Tally>, Error>;

    /// How far it is, and its plan.
    async fn batch(&self, id: &str) -> Result<Option<(Tally, Vec<u8>)>, Error>;

    /// Notes that everything that follows the batch's end is stored: the batch is forgotten after `life`.
    async fn conclude_batch(&self, id: &str, life: Duration) -> Result<(), Error>;

    /// What has not begun is not to begin. `false`: there is no such batch.
    async fn cancel_batch(&self, id: &str) -> Result<bool, Error>;

    /// Returns `true` if the job of that number is not to begin: the batch is cancelled, and this is none of its dead,
    /// which somebody has revived.
    async fn is_cancelled(&self, id: &str, number: u32) -> Result<bool, Error>;

    /// Says of something that it is there, until `life` has passed without saying so again. Of a kind, the newest [`MOST_PRESENT`] are known.
    async fn announce(&self, kind: &str, name: &str, about: &[u8], life: Duration) -> Result<(), Error>;

    /// It is not there any more.
    async fn withdraw(&self, kind: &str, name: &str) -> Result<(), Error>;

    /// What is there of a kind: names and what was said about them, the last announced first.
    async fn present(&self, kind: &str, offset: usize, limit: usize) -> Result<Vec<(String, Vec<u8>)>, Error>;

    /// Notes something for a while.
    async fn note(&self, key: &str, value: &[u8], life: Duration) -> Result<(), Error>;

    /// What was noted.
    async fn noted(&self, key: &str) -> Result<Option<Vec<u8>>, Error>;
}
