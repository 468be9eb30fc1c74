//! Progress reports of running jobs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::Error;
use crate::job::JobId;
use crate::queue::Queue;

/// Time for which progress is kept after the last report.
const LIFE: Duration = Duration::from_hours(24);

/// Progress of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// Number of steps done.
    pub done: u64,
    /// Total number of steps.
    pub total: u64,
    /// Description of the current step.
    pub note: String,
}

impl Context {
    /// Reports the progress of the job, for [`Queue::progress`]. Each call is one round trip, so do
    /// not call it for every row.
    pub async fn progress(&self, done: u64, total: u64, note: &str) -> Result<(), Error> {
        let progress = Progress { done, total, note: note.chars().take(200).collect() };
        let bytes = serde_json::to_vec(&progress).map_err(Error::store)?;
        self.store.put_note(&key(self.id), &bytes, LIFE).await
    }
}

impl Queue {
    /// Returns the progress that a job last reported, if that was within the last day.
    ///
    /// ```
    /// # use scale_queue::{Context, Job, Queue, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Export;
    /// # impl Job for Export { const NAME: &'static str = "export"; }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// # let queue = Queue::memory();
    /// let id = queue.push(Export).await?.id;
    /// let worker = Worker::new(&queue).handle(|_: Export, context: Context| async move {
    ///     context.progress(3, 10, "orders of March").await
    /// });
    /// # worker.run(tokio::time::sleep(std::time::Duration::from_millis(50))).await?;
    /// let progress = queue.progress(id).await?.expect("a progress report");
    /// assert_eq!((progress.done, progress.total), (3, 10));
    /// # Ok(()) }
    /// ```
    pub async fn progress(&self, id: JobId) -> Result<Option<Progress>, Error> {
        let noted = self.store().read_note(&key(id)).await?;
        Ok(noted.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }
}

fn key(id: JobId) -> String {
    format!("progress:{id}")
}
