//! Pushes that wait for the commit of a transaction of any library.

use super::Pushed;
use crate::error::Error;
use crate::job::JobId;
use crate::options::IntoPush;
use crate::queue::Queue;
use crate::queue::push::Grouped;

impl Queue {
    /// Collects jobs that are pushed after a transaction of the application has committed, whatever
    /// library it uses.
    ///
    /// A process that dies between the commit and [`send`](AfterCommit::send) loses the jobs.
    #[cfg_attr(
        feature = "sql",
        doc = "[`push_in`](Self::push_in) does not, for connections of sqlx."
    )]
    ///
    /// ```
    /// # use scale_queue::{Job, Queue};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendReceipt { order: i64 }
    /// # impl Job for SendReceipt { const NAME: &'static str = "send-receipt"; }
    /// # struct Transaction;
    /// # impl Transaction { async fn commit(self) -> Result<(), scale_queue::Error> { Ok(()) } }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// # let (queue, transaction) = (Queue::memory(), Transaction);
    /// let mut after_commit = queue.after_commit();
    /// after_commit.push(SendReceipt { order: 7 })?;
    /// transaction.commit().await?;
    /// after_commit.send().await?;
    /// assert_eq!(queue.stats("default").await?.waiting, 1);
    /// # Ok(()) }
    /// ```
    pub fn after_commit(&self) -> AfterCommit {
        AfterCommit { queue: self.clone(), jobs: Grouped::default() }
    }
}

/// Jobs to be pushed after a commit; see [`Queue::after_commit`]. Dropping this pushes nothing.
#[must_use = "jobs are pushed by `send`"]
#[derive(Debug)]
pub struct AfterCommit {
    queue: Queue,
    jobs: Grouped,
}

impl AfterCommit {
    /// Adds a job. Its delay begins with [`send`](Self::send).
    ///
    /// # Errors
    /// The errors of encoding: [`Error::Encode`], [`Error::TooLarge`], [`Error::Encryption`],
    /// [`Error::Name`]. Nothing is sent to the store yet.
    pub fn push<P: IntoPush>(&mut self, job: P) -> Result<JobId, Error> {
        let (job, options) = job.into_push();
        let encoded = self.queue.encoded(&job, &options)?;
        let id = encoded.id;
        self.jobs.add(encoded);
        Ok(id)
    }

    /// Pushes the jobs, as [`Queue::push_many`] does.
    ///
    /// # Errors
    /// The errors of [`Queue::push_many`].
    pub async fn send(self) -> Result<Vec<Pushed>, Error> {
        self.queue.push_all(self.jobs).await
    }
}
