//! Shared state of limits: holders of permits, and times at which rates have room.

use std::time::Duration;

use async_trait::async_trait;

use super::WorkerId;
use crate::error::Error;

/// Request for one of the permits of a key.
#[derive(Clone, Copy, Debug)]
pub struct PermitRequest<'a> {
    /// Key of the limit.
    pub key: &'a str,
    /// Holder; unique for each attempt of a job.
    pub holder: &'a str,
    /// Queue in whose line the job will wait if no permit is free.
    pub queue: &'a str,
    /// Number of permits of the key.
    pub most: u32,
    /// Time for which a permit is kept without a renewal.
    pub life: Duration,
}

/// Request to begin one more job of a rate now.
#[derive(Clone, Copy, Debug)]
pub struct RateRequest<'a> {
    /// Key of the limit.
    pub key: &'a str,
    /// Queue in whose line the job will wait if the rate has no room.
    pub queue: &'a str,
    /// Interval between two jobs.
    pub spacing: Duration,
    /// Number of jobs that may begin at once after an idle period.
    pub burst: u32,
    /// Queues whose jobs go first if they wait for the same rate.
    pub before: &'a [String],
}

/// Request to pass a permit on to the next job in line, which the same worker takes.
#[derive(Clone, Copy, Debug)]
pub struct PassOn<'a> {
    /// Key of the limit.
    pub key: &'a str,
    /// Number of permits of the key; no permit is passed on while more are held.
    pub most: u32,
    /// Current holder of the permit.
    pub holder: &'a str,
    /// Next holder of the permit.
    pub next: &'a str,
    /// Time for which a permit is kept without a renewal.
    pub life: Duration,
    /// Queues of the worker, by decreasing priority: a job of the first one that has a line is
    /// taken.
    pub queues: &'a [String],
    /// The worker that takes the job.
    pub worker: &'a WorkerId,
    /// Time for which the worker may keep the job without a heartbeat.
    pub lease: Duration,
}

/// Next job in line, leased to the worker.
#[derive(Clone, Debug)]
pub struct PassedOn {
    /// Queue of the job.
    pub queue: String,
    /// The encoded job.
    pub bytes: Vec<u8>,
    /// True if the job has the permit; an expired permit cannot be passed on.
    pub has_permit: bool,
}

/// Answer to a request of a job to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Admission {
    /// The job may begin.
    Now,
    /// The job may not begin; ask again after this time at the latest.
    Later(Duration),
}

/// State of limits. A part of every [`Store`](super::Store).
#[async_trait]
pub trait LimitStore: Send + Sync {
    /// Acquires a permit.
    async fn acquire(&self, request: PermitRequest<'_>) -> Result<Admission, Error>;

    /// Renews a permit for another `life`. Returns `false` if the permit has expired, and another
    /// job may hold it.
    async fn renew(&self, key: &str, holder: &str, life: Duration) -> Result<bool, Error>;

    /// Releases a permit, and wakes the first job in line: in the first queue of `order` that has a
    /// line, otherwise in any queue.
    async fn release(&self, key: &str, holder: &str, order: &[String]) -> Result<(), Error>;

    /// Passes a permit on to the next job in line, in as few steps as the store can, so that no
    /// other worker has to be woken and no limit to be checked again. Returns `None` if there is no
    /// such job; then the holder still has the permit, and has to [release](Self::release) it.
    async fn pass_on_permit(&self, pass: PassOn<'_>) -> Result<Option<PassedOn>, Error> {
        let _ = pass;
        Ok(None)
    }

    /// Wakes the first job in line of this queue if a permit is free: the permit may have come free
    /// just before the job was in line.
    async fn wake_if_free(&self, key: &str, most: u32, queue: &str) -> Result<(), Error>;

    /// Begins one job of a rate, if the rate has room.
    async fn admit(&self, request: RateRequest<'_>) -> Result<Admission, Error>;

    /// Reverts an [`admit`](Self::admit) whose job did not begin after all.
    async fn refund(&self, key: &str, spacing: Duration) -> Result<(), Error>;
}
