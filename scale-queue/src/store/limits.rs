//! What a fleet must know together of limits: who has a permit, and when a rate has room.

use std::time::Duration;

use async_trait::async_trait;

use super::WorkerId;
use crate::error::Error;

/// Asks for one of the permits of a key.
#[derive(Clone, Copy, Debug)]
pub struct PermitRequest<'a> {
    /// The limit's key.
    pub key: &'a str,
    /// Who asks: unique for each attempt of a job.
    pub holder: &'a str,
    /// The queue in whose line the job will wait if there is none.
    pub queue: &'a str,
    /// Permits of the key.
    pub most: u32,
    /// How long it is kept without being renewed.
    pub life: Duration,
}

/// Asks whether one more job of a rate may begin now.
#[derive(Clone, Copy, Debug)]
pub struct RateRequest<'a> {
    /// The limit's key.
    pub key: &'a str,
    /// The queue in whose line the job will wait if it may not.
    pub queue: &'a str,
    /// Between two jobs.
    pub spacing: Duration,
    /// So many may begin at once after a quiet time.
    pub burst: u32,
    /// Queues whose jobs go first if they wait for the same rate.
    pub before: &'a [String],
}

/// Passes a permit on to the next job in line, which the same worker takes.
#[derive(Clone, Copy, Debug)]
pub struct PassOn<'a> {
    /// The limit's key.
    pub key: &'a str,
    /// Permits of the key: nothing is passed on while others hold more.
    pub most: u32,
    /// Who has the permit.
    pub holder: &'a str,
    /// Who is to have it.
    pub next: &'a str,
    /// How long it is kept without being renewed.
    pub life: Duration,
    /// Queues of the worker, the most urgent first: a job of the first that has a line is taken.
    pub queues: &'a [String],
    /// The worker that takes the job.
    pub worker: &'a WorkerId,
    /// How long it may keep it without a heartbeat.
    pub lease: Duration,
}

/// The next job in line, leased.
#[derive(Clone, Debug)]
pub struct PassedOn {
    /// The queue it is of.
    pub queue: String,
    /// The encoded job.
    pub bytes: Vec<u8>,
    /// Whether it has the permit: one that had expired cannot be passed on.
    pub has_permit: bool,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may begin.
    Now,
    /// It may not; ask again then at the latest.
    Later(Duration),
}

/// State of limits. A part of every [`Store`](super::Store).
#[async_trait]
pub trait LimitStore: Send + Sync {
    /// Takes a permit.
    async fn acquire(&self, request: PermitRequest<'_>) -> Result<Admission, Error>;

    /// Keeps a permit for another `life`. `false`: it has expired, and may be somebody else's.
    async fn renew(&self, key: &str, holder: &str, life: Duration) -> Result<bool, Error>;

    /// Gives a permit back, and wakes the first in line: that of the first of `order` that has a line, else any.
    async fn release(&self, key: &str, holder: &str, order: &[String]) -> Result<(), Error>;

    /// Passes a permit on to the next job in line, in as few steps as the store can: no other worker has to be woken, nothing to be asked
    /// again. `None`: no such job; the permit is still the holder's, to be [released](Self::release).
    async fn pass_on_permit(&self, pass: PassOn<'_>) -> Result<Option<PassedOn>, Error> {
        let _ = pass;
        Ok(None)
    }

    /// Wakes the first in line of this queue if a permit is free: it may have come free just before the job was in line.
    async fn wake_if_free(&self, key: &str, most: u32, queue: &str) -> Result<(), Error>;

    /// Lets one job of a rate begin, if it has room.
    async fn admit(&self, request: RateRequest<'_>) -> Result<Admission, Error>;

    /// Takes back an [`admit`](Self::admit): the job did not begin after all.
    async fn refund(&self, key: &str, spacing: Duration) -> Result<(), Error>;
}
