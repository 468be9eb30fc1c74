//! Results of jobs: kept for a while, for a caller that waits for them.
//!
//! | when | then |
//! | --- | --- |
//! | a handler returns `Ok(value)` and the job keeps its result | the value is stored, then the job is acknowledged |
//! | the worker dies in between | the job runs again, and its result replaces the first one |
//! | the job dies | [`Waited::Dead`] has the reason; after a revival the next end replaces it |
//! | the value is larger than 64 KiB | the job is done; [`Waited::TooLarge`] |
//! | the job expires, or a queue is drained | nothing is stored; a caller waits until its timeout |
//! | the queue is [encrypted](Queue::encrypted) | the value is encrypted too |

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::batch;
use crate::context::Context;
use crate::encryption::{PayloadEncryption, parse};
use crate::error::Error;
use crate::format::{Body, Envelope, Place, StoredOptions};
use crate::job::{Job, JobId};
use crate::limit::LONGEST;
use crate::push::Push;
use crate::queue::Queue;

/// Maximum bytes of a result as JSON.
const LARGEST: usize = 64 * 1024;
/// Pause between two looks for a result, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// End of a job, for a caller that waited for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waited<T> {
    /// The handler has returned this value.
    Done(T),
    /// The job is dead, for this reason.
    Dead(String),
    /// The job is done; its result was too large to be kept.
    TooLarge,
    /// The job has not ended in time, or its result is not kept any more.
    TimedOut,
}

/// Stored end of a job.
#[derive(Serialize, Deserialize)]
enum Kept {
    Done(#[serde(with = "crate::format::bytes")] Vec<u8>),
    Dead(String),
    TooLarge,
}

/// A value to be stored, with its key and its life.
pub(crate) type Note = (String, Vec<u8>, Duration);

/// Returns whether the result of a job's handler is kept: for a caller that waits, or for the jobs
/// of its workflow that follow.
pub(crate) fn is_kept(job: &Envelope) -> bool {
    is_kept_with(&job.body.options)
}

pub(crate) fn is_kept_with(options: &StoredOptions) -> bool {
    options.keep_result_ms.is_some()
        || options.node.as_ref().is_some_and(|node| !node.followers.is_empty())
}

/// Returns the notes of a job that is done and keeps its result.
pub(crate) fn notes_of_done(
    job: &Envelope,
    result: Option<Vec<u8>>,
    encryption: Option<&PayloadEncryption>,
) -> Vec<Note> {
    // A tower service, or a layer that answers itself, returns no value, and no output.
    let has_output = result.is_some();
    let result = result.unwrap_or_else(|| b"null".to_vec());
    let kept = if result.len() > LARGEST {
        Kept::TooLarge
    } else {
        match encryption {
            None => Kept::Done(result),
            Some(encryption) => match encryption.encrypt(&job.body.name, &result) {
                Ok(message) => Kept::Done(message),
                Err(error) => {
                    tracing::error!(
                        %error, job = job.body.name, id = %job.id,
                        "the result of a job cannot be encrypted; it is not kept",
                    );
                    return Vec::new();
                }
            },
        }
    };
    let mut notes = Vec::from_iter(note(job, &kept));
    let Body { name, then, extra, options, .. } = &job.body;
    if let Some(place) = &extra.batch
        && then.is_empty()
        && has_output
        && options.node.as_ref().is_some_and(|node| !node.followers.is_empty())
        && let Ok(output) = rmp_serde::to_vec(&(name, &kept))
    {
        notes.push((output_key(place), output, batch::HELD));
    }
    notes
}

/// Returns the note of an output, for a test of a handler.
#[cfg(feature = "testing")]
pub(crate) fn output(place: &Place, value: Vec<u8>) -> (String, Vec<u8>) {
    let note = rmp_serde::to_vec(&("", Kept::Done(value)));
    (output_key(place), note.unwrap_or_default())
}

pub(crate) fn output_key(place: &Place) -> String {
    format!("output:{}:{}", place.id, place.number)
}

/// Returns the note of a job that is dead, if it keeps its result.
pub(crate) fn note_of_death(job: &Envelope, reason: &str) -> Option<Note> {
    note(job, &Kept::Dead(reason.to_owned()))
}

fn note(job: &Envelope, kept: &Kept) -> Option<Note> {
    let life = Duration::from_millis(job.body.options.keep_result_ms?).min(LONGEST);
    Some((key(job.id), rmp_serde::to_vec(kept).ok()?, life))
}

fn key(id: JobId) -> String {
    format!("result:{id}")
}

impl Queue {
    /// Returns the end of a job that [keeps its result](Job::KEEP_RESULT), if there is one yet.
    ///
    /// # Errors
    /// [`Error::Store`]; also if the result is no `T`.
    pub async fn result<T: DeserializeOwned>(
        &self,
        job: &str,
        id: JobId,
    ) -> Result<Option<Waited<T>>, Error> {
        let Some(note) = self.store().read_note(&key(id)).await? else { return Ok(None) };
        let kept: Kept = rmp_serde::from_slice(&note).map_err(Error::store)?;
        Ok(Some(match kept {
            Kept::Dead(reason) => Waited::Dead(reason),
            Kept::TooLarge => Waited::TooLarge,
            Kept::Done(value) => Waited::Done(opened(self.encryption(), job, value)?),
        }))
    }

    /// Waits for the end of a job that [keeps its result](Job::KEEP_RESULT). The store is asked
    /// again and again, at first after 10 ms, later every 500 ms.
    ///
    /// # Errors
    /// [`Error::Store`]; also if the result is no `T`.
    pub async fn wait<J: Job, T: DeserializeOwned>(
        &self,
        id: JobId,
        timeout: Duration,
    ) -> Result<Waited<T>, Error> {
        let end = Instant::now() + timeout.min(LONGEST);
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(ended) = self.result(J::NAME, id).await? {
                return Ok(ended);
            }
            let now = Instant::now();
            if now >= end {
                return Ok(Waited::TimedOut);
            }
            tokio::time::sleep(pause.min(end - now)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Context {
    /// Returns what a job of the same workflow has returned that this one
    /// [follows](crate::batch::Workflow::after); of a chain, what its last job has returned.
    /// Returns `None` if that job is dead, is a batch, or has run as a tower service.
    ///
    /// # Errors
    /// [`Error::Workflow`] if this job does not follow one of that name, or if the other has
    /// returned more than 64 KiB; [`Error::Store`], also if the output is no `T`.
    pub async fn output<T: DeserializeOwned>(&self, node: &str) -> Result<Option<T>, Error> {
        let envelope = self.run.envelope();
        let after = envelope.and_then(|envelope| envelope.body.options.node.clone());
        let after = after.map(|node| node.after).unwrap_or_default();
        let number = after.iter().find(|(name, _)| name == node).map(|(_, number)| *number);
        let (Some(number), Some(place)) = (number, &self.place) else {
            let known: Vec<_> = after.iter().map(|(name, _)| &**name).collect();
            return Err(Error::Workflow(format!(
                "no output of `{node}`: expected a job that this one follows ({})",
                known.join(", "),
            )));
        };
        let key = output_key(&Place { id: place.id.clone(), number });
        let Some(note) = self.store.read_note(&key).await? else { return Ok(None) };
        let (job, kept): (String, Kept) = rmp_serde::from_slice(&note).map_err(Error::store)?;
        match kept {
            Kept::Dead(_) => Ok(None),
            Kept::TooLarge => Err(Error::Workflow(format!(
                "the output of `{node}` has more than 64 KiB (65,536 bytes)",
            ))),
            Kept::Done(value) => opened(self.run.holder.encryption.as_ref(), &job, value).map(Some),
        }
    }
}

/// Decrypts and parses a kept value.
fn opened<T: DeserializeOwned>(
    encryption: Option<&PayloadEncryption>,
    job: &str,
    value: Vec<u8>,
) -> Result<T, Error> {
    let value = match encryption {
        Some(encryption) => encryption.decrypt(job, &value).map_err(Error::Store)?,
        None => value,
    };
    parse(&value, encryption.is_some()).map_err(Error::store)
}

impl<J: Job> Push<'_, J> {
    /// Pushes the job, and waits for its end. Its result is kept for an hour, if neither
    /// [`keep_result`](Self::keep_result) nor [`Job::KEEP_RESULT`] says otherwise. A job whose
    /// unique key is held by another one is not stored: then this waits for the other one.
    ///
    /// ```
    /// # use scale_queue::{Job, Queue, Worker, status::Waited};
    /// # use serde::{Deserialize, Serialize};
    /// # use std::time::Duration;
    /// #[derive(Serialize, Deserialize)]
    /// struct Count { words: String }
    /// # impl Job for Count { const NAME: &'static str = "count"; }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// # let queue = Queue::memory();
    /// let worker = Worker::new(&queue).handle(|job: Count| async move {
    ///     Ok::<_, std::io::Error>(job.words.split(' ').count())
    /// });
    /// # tokio::spawn(worker.run(std::future::pending::<()>()));
    /// let push = queue.push(Count { words: "one two".into() });
    /// let count: Waited<usize> = push.wait(Duration::from_secs(5)).await?;
    /// assert_eq!(count, Waited::Done(2));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The errors of the push, and of [`Queue::wait`].
    pub async fn wait<T: DeserializeOwned>(self, timeout: Duration) -> Result<Waited<T>, Error> {
        let (queue, push) = self.keeping_result(Duration::from_hours(1));
        let pushed = push.await?;
        queue.wait::<J, T>(pushed.id, timeout).await
    }
}
