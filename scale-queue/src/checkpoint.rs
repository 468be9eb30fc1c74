//! Resumable jobs: a job keeps how far it has come, and goes on from there in its next run.
//!
//! | when | then |
//! | --- | --- |
//! | [`Context::checkpoint`] or [`Step::checkpoint`] returns `Ok` | the cursor is stored with the job |
//! | the worker is stopped | the next checkpoint stores the cursor and fails with [`Interrupted`]; the handler returns it, and the job waits again, the attempt not counted |
//! | the worker is stopped and its grace period is over | the handler's future is dropped; the job goes on from its last checkpoint |
//! | the worker dies | the same; the attempt is counted |
//! | an attempt fails | the next one goes on from the last checkpoint |
//! | a step is done | it is not run again in later runs of the job |
//! | a dead job is revived | it goes on from its last checkpoint |
//! | the worker has lost its lease | the checkpoint fails with [`CheckpointError::LeaseLost`]; nothing is stored |
//! | the queue is [encrypted](crate::Queue::encrypted) | cursors are encrypted too; names of steps are not |

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::encryption::{PayloadEncryption, parse};
use crate::error::Error;
use crate::format::{Checkpoint, Cursor, Envelope};
use crate::outcome::{BoxError, Interrupted, InterruptedCause};
use crate::store::WorkerId;

/// Maximum bytes of a cursor as JSON.
const LARGEST_CURSOR: usize = 16 * 1024;
/// Maximum number of steps of a job.
const MOST_STEPS: usize = 64;
/// Maximum bytes of a step's name.
const LONGEST_NAME: usize = 64;

/// Parts of a running job that its context shares with the worker.
pub(crate) struct Run {
    pub(crate) holder: Arc<Holder>,
    /// The encoded job as it was fetched.
    pub(crate) bytes: Vec<u8>,
    /// Locked while a checkpoint is stored.
    storing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

/// Parts of a worker that its jobs need.
pub(crate) struct Holder {
    /// Id of the worker; `None` in a test of a handler alone.
    pub(crate) worker: Option<WorkerId>,
    pub(crate) stopping: CancellationToken,
    pub(crate) encryption: Option<PayloadEncryption>,
}

#[derive(Default)]
struct State {
    /// The encoded job of the last checkpoint.
    latest: Option<Vec<u8>>,
    /// Result of the handler, as JSON, if it is to be kept.
    result: Option<Vec<u8>>,
    /// Names of the steps that this run has begun.
    begun: Vec<String>,
    /// `true` once the attempt has ended: a task that outlives it stores nothing any more.
    closed: bool,
}

impl std::fmt::Debug for Run {
    /// The payload is not shown: contexts are logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("worker", &self.holder.worker).finish_non_exhaustive()
    }
}

impl Run {
    pub(crate) fn new(holder: Arc<Holder>, bytes: Vec<u8>) -> Self {
        let (storing, state) = <_>::default();
        Self { holder, bytes, storing, state }
    }

    /// Lets no further checkpoint begin, and waits for the one that is being stored.
    pub(crate) async fn close(&self) {
        let _storing = self.storing.lock().await;
        self.state.lock().closed = true;
    }

    /// Takes the encoded job of the last checkpoint.
    pub(crate) fn take_latest(&self) -> Option<Vec<u8>> {
        self.state.lock().latest.take()
    }

    /// Takes the result of the handler.
    pub(crate) fn take_result(&self) -> Option<Vec<u8>> {
        self.state.lock().result.take()
    }

    pub(crate) fn set_result(&self, result: Option<Vec<u8>>) {
        self.state.lock().result = result;
    }

    pub(crate) fn envelope(&self) -> Option<Envelope> {
        let state = self.state.lock();
        Envelope::decode(state.latest.as_ref().unwrap_or(&self.bytes)).ok()
    }

    fn checkpoint(&self) -> Checkpoint {
        self.envelope().map(|envelope| envelope.body.options.checkpoint.clone()).unwrap_or_default()
    }
}

/// Reason why a checkpoint failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The worker stops. The cursor is stored: return this error from the handler.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Another worker may have the job by now, or another attempt has begun. Nothing was stored.
    #[error("the attempt has lost the job: another worker or another attempt may have it by now")]
    LeaseLost,
    /// The cursor cannot be encoded as JSON, or a stored one not decoded as this type.
    #[error("the cursor cannot be encoded or decoded: {0}")]
    Cursor(#[from] serde_json::Error),
    /// The cursor is too large.
    #[error("a cursor of {0} bytes: at most 16 KiB is allowed")]
    TooLarge(usize),
    /// A step's name is empty, too long, or used twice; or a job has too many steps.
    #[error("step `{0}`: expected at most 64 steps, each with its own name of 1 to 64 bytes")]
    Step(String),
    /// The cursor could not be encrypted or decrypted.
    #[error("the cursor cannot be encrypted or decrypted: {0}")]
    Encryption(#[source] BoxError),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] Error),
}

/// A step of a resumable job: see [`Context::step`].
#[derive(Clone, Debug)]
pub struct Step {
    context: Context,
    name: String,
}

impl Step {
    /// Returns the cursor of the step's last checkpoint; `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Cursor`] if the cursor is no `T`; [`CheckpointError::Encryption`].
    pub fn cursor<T: DeserializeOwned>(&self) -> Result<Option<T>, CheckpointError> {
        self.context.cursor_of(&self.name)
    }

    /// Stores how far the step has come; otherwise like [`Context::checkpoint`].
    ///
    /// # Errors
    /// The errors of [`Context::checkpoint`].
    pub async fn checkpoint<T: Serialize + Sync>(&self, cursor: &T) -> Result<(), CheckpointError> {
        self.context.store_cursor(&self.name, cursor).await
    }
}

impl Context {
    /// Returns whether the worker is stopped. The handler may run until the worker's
    /// [grace period](crate::Worker::grace) is over.
    pub fn is_stopping(&self) -> bool {
        self.run.holder.stopping.is_cancelled()
    }

    /// Returns the cursor of the job's last [checkpoint](Self::checkpoint); `None` if there is
    /// none.
    ///
    /// # Errors
    /// [`CheckpointError::Cursor`] if the cursor is no `T`; [`CheckpointError::Encryption`].
    pub fn cursor<T: DeserializeOwned>(&self) -> Result<Option<T>, CheckpointError> {
        self.cursor_of("")
    }

    /// Stores how far the job has come: at most 16 KiB of JSON. When this returns `Ok`, the next
    /// run of the job finds the cursor, whatever ends this one. Each call is one round trip: make
    /// one for each page of rows, not for each row.
    ///
    /// When the worker is stopped, this stores the cursor and returns an error. If the handler
    /// returns that error with `?`, the job goes back to the queue at once, and the attempt is not
    /// counted.
    ///
    /// ```
    /// # use scale_queue::{Context, Job, Queue, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Reindex;
    /// # impl Job for Reindex { const NAME: &'static str = "reindex"; }
    /// # async fn index_page(page: u32) {}
    /// async fn reindex(_: Reindex, context: Context) -> anyhow::Result<()> {
    ///     let first = context.cursor()?.unwrap_or(0);
    ///     for page in first..1_000 {
    ///         index_page(page).await;
    ///         context.checkpoint(&(page + 1)).await?;
    ///     }
    ///     Ok(())
    /// }
    /// # let queue = Queue::memory();
    /// # let worker = Worker::new(&queue).handle(reindex);
    /// ```
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub async fn checkpoint<T: Serialize + Sync>(&self, cursor: &T) -> Result<(), CheckpointError> {
        self.store_cursor("", cursor).await
    }

    /// Runs a step of the job, unless an earlier run of the job has done it. A step has a cursor of
    /// its own, and its end is stored. Steps run one after the other; names are unique in a job and
    /// stay the same over deployments.
    ///
    /// ```
    /// # use scale_queue::{Context, Job, Queue, Worker};
    /// # use scale_queue::worker::{BoxError, Step};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Import { file: u32 }
    /// # impl Job for Import { const NAME: &'static str = "import"; }
    /// # async fn fetch() -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn import_row(row: u64) {}
    /// async fn import(job: Import, context: Context) -> Result<(), BoxError> {
    ///     context.step("fetch", async |_| fetch().await).await?;
    ///     context
    ///         .step("rows", async |step: Step| {
    ///             for row in step.cursor()?.unwrap_or(0)..10_000 {
    ///                 import_row(row).await;
    ///                 if row % 500 == 499 {
    ///                     step.checkpoint(&(row + 1)).await?;
    ///                 }
    ///             }
    ///             Ok::<(), BoxError>(())
    ///         })
    ///         .await
    /// }
    /// # let queue = Queue::memory();
    /// # let worker = Worker::new(&queue).handle(import);
    /// ```
    ///
    /// # Errors
    /// The error of the step; otherwise a [`CheckpointError`].
    pub async fn step<E: Into<BoxError>>(
        &self,
        name: &str,
        run: impl AsyncFnOnce(Step) -> Result<(), E>,
    ) -> Result<(), BoxError> {
        let step_error = || CheckpointError::Step(name.chars().take(LONGEST_NAME).collect());
        {
            let begun = &mut self.run.state.lock().begun;
            let is_taken = begun.iter().any(|known| known == name);
            if name.is_empty() || name.len() > LONGEST_NAME || is_taken || begun.len() == MOST_STEPS
            {
                return Err(step_error().into());
            }
            begun.push(name.to_owned());
        }
        if self.run.checkpoint().done.iter().any(|done| done == name) {
            return Ok(());
        }
        if self.is_stopping() {
            return Err(Interrupted::from(InterruptedCause::default()).into());
        }
        run(Step { context: self.clone(), name: name.to_owned() }).await.map_err(Into::into)?;
        self.store(|checkpoint| {
            checkpoint.done.push(name.to_owned());
            checkpoint.cursors.retain(|cursor| cursor.step != name);
        })
        .await?;
        Ok(())
    }

    fn cursor_of<T: DeserializeOwned>(&self, step: &str) -> Result<Option<T>, CheckpointError> {
        let Some(envelope) = self.run.envelope() else { return Ok(None) };
        let cursors = &envelope.body.options.checkpoint.cursors;
        let Some(cursor) = cursors.iter().find(|cursor| cursor.step == step) else {
            return Ok(None);
        };
        let decrypted;
        let json = match &self.run.holder.encryption {
            Some(encryption) => {
                decrypted = encryption
                    .decrypt(&envelope.body.name, &cursor.value)
                    .map_err(CheckpointError::Encryption)?;
                &decrypted
            }
            None => &cursor.value,
        };
        Ok(Some(parse(json, self.run.holder.encryption.is_some())?))
    }

    async fn store_cursor<T: Serialize>(
        &self,
        step: &str,
        cursor: &T,
    ) -> Result<(), CheckpointError> {
        let json = serde_json::to_vec(cursor)?;
        if json.len() > LARGEST_CURSOR {
            return Err(CheckpointError::TooLarge(json.len()));
        }
        let cursor = match (&self.run.holder.encryption, self.run.envelope()) {
            (Some(encryption), Some(envelope)) => encryption
                .encrypt(&envelope.body.name, &json)
                .map_err(CheckpointError::Encryption)?,
            _ => json,
        };
        self.store(|checkpoint| {
            checkpoint.cursors.retain(|known| known.step != step);
            checkpoint.cursors.push(Cursor { step: step.to_owned(), value: cursor });
        })
        .await?;
        if self.is_stopping() {
            return Err(Interrupted::from(InterruptedCause::default()).into());
        }
        Ok(())
    }

    /// Stores a change of the job's checkpoint.
    async fn store(&self, change: impl FnOnce(&mut Checkpoint)) -> Result<(), CheckpointError> {
        let _storing = self.run.storing.lock().await;
        if self.run.state.lock().closed {
            return Err(CheckpointError::LeaseLost);
        }
        let Some(mut envelope) = self.run.envelope() else { return Ok(()) };
        change(&mut envelope.body.options.checkpoint);
        let bytes = envelope.encode();
        if let Some(worker) = &self.run.holder.worker
            && !self.store.checkpoint(&self.queue, worker, self.id.bytes(), &bytes).await?
        {
            return Err(CheckpointError::LeaseLost);
        }
        self.run.state.lock().latest = Some(bytes);
        Ok(())
    }
}
