//! Jobs as listed by a queue.

use crate::format::{Envelope, Failure};
use crate::job::JobId;
use crate::queue::Queue;
use crate::store::{DeadJob, Listed};

/// A job that is not dead.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Listing {
    /// Id of the job; `None` if the job cannot be decoded.
    pub id: Option<JobId>,
    /// Name of the job; empty if the job cannot be decoded.
    pub name: String,
    /// Payload as JSON text; not shown for a queue that is [encrypted](Queue::encrypted).
    pub payload: String,
    /// Tags of the job.
    pub tags: Vec<String>,
    /// Attempts that have failed.
    pub failed: u16,
    /// Error of the last attempt.
    pub last_error: Option<String>,
    /// Errors of the last ten attempts, the latest last.
    pub failures: Vec<Failure>,
    /// Time of the push: ms since 1970.
    pub pushed_ms: u64,
    /// Time at which a scheduled job is due: ms since 1970.
    pub due_ms: Option<u64>,
    /// Worker that has leased the job.
    pub worker: Option<String>,
    /// Line in which a blocked job waits: `limit:` and the limit's key, `group:` and the group's
    /// key, `kind:` and the name of a job that no worker handles, or `format:` and a version.
    pub blocked_by: Option<String>,
}

impl Listing {
    pub(super) fn new(queue: &Queue, listed: Listed) -> Self {
        let Listed { bytes, due_ms, worker, line } = listed;
        let envelope = Envelope::decode(&bytes).ok();
        let (id, failed) =
            (envelope.as_ref().map(|e| e.id), envelope.as_ref().map_or(0, |e| e.failed));
        let pushed_ms = envelope.as_ref().map_or(0, |e| e.pushed_ms);
        let body = envelope.map(|e| e.body);
        Self {
            id,
            name: body.as_ref().map(|b| b.name.clone()).unwrap_or_default(),
            payload: body.as_ref().map(|b| queue.shown_payload(b)).unwrap_or_default(),
            tags: body.as_ref().map(|b| b.options.tags.clone()).unwrap_or_default(),
            failed,
            failures: body.as_ref().map(|b| b.extra.failures.clone()).unwrap_or_default(),
            last_error: body.and_then(|b| b.last_error),
            pushed_ms,
            due_ms,
            worker,
            blocked_by: line,
        }
    }
}

/// A dead job.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dead {
    /// Id of the job; `None` if the job cannot be decoded.
    pub id: Option<JobId>,
    /// Name of the job; empty if the job cannot be decoded.
    pub name: String,
    /// Payload as JSON text; not shown for a queue that is [encrypted](Queue::encrypted).
    pub payload: String,
    /// Tags of the job.
    pub tags: Vec<String>,
    /// Attempts that have failed.
    pub failed: u16,
    /// Errors of the last ten attempts, the latest last.
    pub failures: Vec<Failure>,
    /// Reason why the job became dead.
    pub reason: String,
    /// Time at which the job became dead: ms since 1970.
    pub died_ms: u64,
    pub(crate) dead_job: DeadJob,
}

impl Dead {
    pub(super) fn new(queue: &Queue, dead_job: DeadJob) -> Self {
        let envelope = Envelope::decode(&dead_job.bytes).ok();
        let body = envelope.as_ref().map(|e| &e.body);
        Self {
            id: envelope.as_ref().map(|e| e.id),
            name: body.map(|b| b.name.clone()).unwrap_or_default(),
            payload: body.map(|b| queue.shown_payload(b)).unwrap_or_default(),
            tags: body.map(|b| b.options.tags.clone()).unwrap_or_default(),
            failed: envelope.as_ref().map_or(0, |e| e.failed),
            failures: body.map(|b| b.extra.failures.clone()).unwrap_or_default(),
            reason: dead_job.reason.clone(),
            died_ms: dead_job.died_ms,
            dead_job,
        }
    }
}
