//! One push, with what can be said about it.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::job::{Job, JobId};
use crate::limit::{LONGEST, bounded_key};
use crate::queue::Queue;
use crate::store::Entry;

/// How long a unique key holds at the longest, so that a job that never ends cannot block its kind for good.
pub(crate) const UNIQUE_FOR: Duration = Duration::from_hours(24);

/// A job on its way into a queue: say more, then `.await` it. Nothing happens before.
#[must_use = "a push does nothing until awaited"]
#[derive(Debug)]
pub struct Push<'q, J> {
    queue: &'q Queue,
    job: J,
    name: Option<String>,
    terms: Terms,
}

/// What can be said about any push.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) delay: Duration,
    pub(crate) unique_for: Duration,
    pub(crate) attempts: Option<u16>,
    pub(crate) timeout: Option<Duration>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { delay: Duration::ZERO, unique_for: UNIQUE_FOR, attempts: None, timeout: None }
    }
}

/// What came of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The job's id; or that of the job which already holds its unique key.
    pub id: JobId,
    /// Whether the job was stored. `false`: one with its unique key was there.
    pub is_new: bool,
}

impl<'q, J: Job> Push<'q, J> {
    pub(crate) fn new(queue: &'q Queue, job: J) -> Self {
        Self { queue, job, name: None, terms: Terms::default() }
    }

    /// Another queue than the job's own.
    pub fn to(mut self, queue: &str) -> Self {
        self.name = Some(queue.to_owned());
        self
    }

    /// Not before that time has passed, by the store's clock.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.terms.delay = delay;
        self
    }

    /// Not before that moment. One that has passed means now.
    pub fn at(mut self, moment: SystemTime) -> Self {
        let due = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        self.terms.delay = Duration::from_millis(due.saturating_sub(self.queue.store().now_ms()));
        self
    }

    /// How long the job's unique key holds at the longest. Default: a day.
    pub fn unique_for(mut self, time: Duration) -> Self {
        self.terms.unique_for = time;
        self
    }

    /// Another number of attempts in all than its kind's [`RETRY`](Job::RETRY) says, at least 1; the delays between them stay.
    pub fn attempts(mut self, attempts: u16) -> Self {
        self.terms.attempts = Some(attempts.max(1));
        self
    }

    /// Another time for each attempt than its kind's [`TIMEOUT`](Job::TIMEOUT).
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
    /// A job as it is stored.
    pub(crate) fn entry<J: Job>(&self, job: &J, terms: Terms) -> Result<(JobId, Entry), Error> {
        let unique = job.unique_key().map(bounded_key);
        let mut envelope = self.envelope(job, unique.clone())?;
        let extra = &mut envelope.body.extra;
        extra.attempts = terms.attempts;
        extra.timeout_ms = terms.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        extra.unique_ms = (unique.is_some() && terms.unique_for != UNIQUE_FOR)
            .then(|| u64::try_from(terms.unique_for.as_millis()).unwrap_or(u64::MAX));
        // No store's clock goes beyond that.
        let unique = unique.map(|key| (key, terms.unique_for.min(LONGEST)));
        Ok((envelope.id, Entry { bytes: envelope.encode(), delay: terms.delay.min(LONGEST), unique, once: None }))
    }
}
