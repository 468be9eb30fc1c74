//! Jobs that have ended, kept for a while when a [worker](crate::Worker::keep_ended) is asked to.
//!
//! | when | then |
//! | --- | --- |
//! | a job is done or dead | its content, outcome and duration are stored, then its end |
//! | the worker dies in between | the job runs again, and its next end replaces the record |
//! | a dead job is revived | its next end replaces the record |
//! | there are more jobs than asked for, or older ones | the oldest are removed, some at each end |
//! | a job expires, is skipped in its batch, is cancelled before a worker has it, or cannot be decoded; or the queue is drained | nothing is kept |
//! | a job has [tags](crate::Job::tags) | it is found by each of them; the cost does not depend on the number of jobs |

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::format::{Envelope, Failure, bytes};
use crate::job::JobId;
use crate::queue::{Queue, checked};
use crate::store::EndingJob;

/// Maximum number of jobs in one answer.
const PAGE: usize = 1_000;

/// Bounds on kept jobs, per queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepEnded {
    pub(crate) most: usize,
    pub(crate) age: Duration,
}

/// A job that has ended.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EndedJob {
    /// Id of the job; `None` if the job cannot be decoded.
    pub id: Option<JobId>,
    /// Name of the job; empty if the job cannot be decoded.
    pub name: String,
    /// Payload as JSON text; not shown for a queue that is [encrypted](Queue::encrypted).
    pub payload: String,
    /// Tags of the job.
    pub tags: Vec<String>,
    /// Reason why the job is dead; `None` if it is done.
    pub reason: Option<String>,
    /// Attempts that have failed.
    pub failed: u16,
    /// Errors of the last ten attempts, the latest last.
    pub failures: Vec<Failure>,
    /// Time of the push: ms since 1970.
    pub pushed_ms: u64,
    /// Time of the end: ms since 1970, by the store's clock.
    pub ended_ms: u64,
    /// Duration of the last attempt, ms.
    pub took_ms: u64,
    /// Worker of the last attempt.
    pub worker: String,
}

/// Stored end of a job.
#[derive(Serialize, Deserialize)]
struct Record {
    reason: Option<String>,
    took_ms: u64,
    worker: String,
    #[serde(with = "bytes")]
    job: Vec<u8>,
}

/// Returns what is stored of a job that ends.
pub(crate) fn ending(
    keep: KeepEnded,
    job: &Envelope,
    reason: Option<&str>,
    took: Duration,
    worker: &str,
) -> Option<EndingJob> {
    let record = Record {
        reason: reason.map(ToOwned::to_owned),
        took_ms: took.as_millis() as u64,
        worker: worker.to_owned(),
        job: job.encode(),
    };
    Some(EndingJob {
        tag: job.id.bytes().to_vec(),
        record: rmp_serde::to_vec(&record).ok()?,
        tags: job.body.options.tags.clone(),
        most: keep.most,
        age: keep.age,
    })
}

impl Queue {
    /// Returns jobs of a queue that have ended, the newest first, at most 1,000; none if no worker
    /// [keeps](crate::Worker::keep_ended) them. If jobs are large, an answer may have fewer than
    /// `limit`; it is empty only if there are no more.
    pub async fn ended(
        &self,
        queue: &str,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<EndedJob>, Error> {
        self.ended_jobs(queue, None, offset, limit).await
    }

    /// Returns the ended jobs of a queue that have this tag; otherwise like [`ended`](Self::ended).
    pub async fn ended_with_tag(
        &self,
        queue: &str,
        tag: &str,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<EndedJob>, Error> {
        self.ended_jobs(queue, Some(tag), offset, limit).await
    }

    async fn ended_jobs(
        &self,
        queue: &str,
        tag: Option<&str>,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<EndedJob>, Error> {
        let (offset, limit) = (offset.min(i32::MAX as usize), limit.min(PAGE));
        let ended = self.store().ended(checked(queue)?, tag, offset, limit).await?;
        // Records of a later version may not be readable.
        Ok(ended.into_iter().filter_map(|(at_ms, record)| self.ended_job(at_ms, &record)).collect())
    }

    fn ended_job(&self, ended_ms: u64, record: &[u8]) -> Option<EndedJob> {
        let Record { reason, took_ms, worker, job } = rmp_serde::from_slice(record).ok()?;
        let envelope = Envelope::decode(&job).ok();
        let body = envelope.as_ref().map(|envelope| &envelope.body);
        Some(EndedJob {
            id: envelope.as_ref().map(|envelope| envelope.id),
            name: body.map(|body| body.name.clone()).unwrap_or_default(),
            payload: body.map(|body| self.shown_payload(body)).unwrap_or_default(),
            tags: body.map(|body| body.options.tags.clone()).unwrap_or_default(),
            reason,
            failed: envelope.as_ref().map_or(0, |envelope| envelope.failed),
            failures: body.map(|body| body.extra.failures.clone()).unwrap_or_default(),
            pushed_ms: envelope.as_ref().map_or(0, |envelope| envelope.pushed_ms),
            ended_ms,
            took_ms,
            worker,
        })
    }
}
