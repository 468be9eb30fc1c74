//! Builder of one push, with its options.

pub(crate) mod coalesce;

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::job::{Job, JobId};
use crate::limit::{LONGEST, bounded_key};
use crate::queue::Queue;
use crate::store::Entry;

/// Maximum time for which a unique key is held, so that a job that never ends cannot block its key
/// forever.
pub(crate) const UNIQUE_FOR: Duration = Duration::from_hours(24);

/// Builder of a push: set options, then `.await` it. Nothing is stored before.
#[must_use = "a push does nothing until awaited"]
#[derive(Debug)]
pub struct Push<'q, J> {
    queue: &'q Queue,
    job: J,
    name: Option<String>,
    terms: PushOptions,
}

/// Options of any push.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PushOptions {
    pub(crate) delay: Duration,
    pub(crate) unique_for: Duration,
    pub(crate) attempts: Option<u16>,
    pub(crate) timeout: Option<Duration>,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { delay: Duration::ZERO, unique_for: UNIQUE_FOR, attempts: None, timeout: None }
    }
}

/// Result of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Id of the stored job, or of the job that already holds the same unique key.
    pub id: JobId,
    /// True if the job was stored. `false` if a job with the same unique key existed.
    pub is_new: bool,
}

impl<'q, J: Job> Push<'q, J> {
    pub(crate) fn new(queue: &'q Queue, job: J) -> Self {
        Self { queue, job, name: None, terms: PushOptions::default() }
    }

    /// Sets the queue, instead of the job's own.
    pub fn to(mut self, queue: &str) -> Self {
        self.name = Some(queue.to_owned());
        self
    }

    /// Delays the job by this time, by the store's clock.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.terms.delay = delay;
        self
    }

    /// Delays the job until this time. A time in the past means now.
    pub fn at(mut self, moment: SystemTime) -> Self {
        let due =
            moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        self.terms.delay = Duration::from_millis(due.saturating_sub(self.queue.store().now_ms()));
        self
    }

    /// Sets how long the job's unique key is held at most. Default: a day.
    pub fn unique_for(mut self, time: Duration) -> Self {
        self.terms.unique_for = time;
        self
    }

    /// Sets the total number of attempts, at least 1, instead of that of [`RETRY`](Job::RETRY); the
    /// delays between attempts stay the same.
    pub fn attempts(mut self, attempts: u16) -> Self {
        self.terms.attempts = Some(attempts.max(1));
        self
    }

    /// Sets the timeout of each attempt, instead of [`TIMEOUT`](Job::TIMEOUT).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.terms.timeout = Some(timeout);
        self
    }
}

impl<'q, J: Job> IntoFuture for Push<'q, J> {
    type Output = Result<Pushed, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'q>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let name = self.name.as_deref().unwrap_or(J::QUEUE);
            let (id, entry) = self.queue.entry(&self.job, self.terms)?;
            self.queue.push_entry(name, id, entry).await
        })
    }
}

impl Queue {
    /// Encodes a job as a store entry.
    pub(crate) fn entry<J: Job>(
        &self,
        job: &J,
        terms: PushOptions,
    ) -> Result<(JobId, Entry), Error> {
        let unique = job.unique_key().map(bounded_key);
        let mut envelope = self.envelope(job, unique.clone())?;
        let extra = &mut envelope.body.extra;
        extra.attempts = terms.attempts;
        extra.timeout_ms =
            terms.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        extra.unique_ms = (unique.is_some() && terms.unique_for != UNIQUE_FOR)
            .then(|| u64::try_from(terms.unique_for.as_millis()).unwrap_or(u64::MAX));
        // No store's clock supports longer times.
        let unique = unique.map(|key| (key, terms.unique_for.min(LONGEST)));
        Ok((
            envelope.id,
            Entry { bytes: envelope.encode(), delay: terms.delay.min(LONGEST), unique, once: None },
        ))
    }
}
