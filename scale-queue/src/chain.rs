//! Chains of jobs: each job is pushed when the job before it is done.
//!
//! The rest of a chain is stored in the job at its head. A worker that has completed a job pushes
//! the next one *before* it acknowledges the completed one, under a key that only the first such
//! push gets. If the worker dies in between, the job runs again, and the next job is still pushed
//! once. A dead job keeps the rest of its chain; after it is revived and done, the chain continues.

use std::time::Duration;

use crate::error::Error;
use crate::format::{Body, Envelope, Extra, Link, MAX_SIZE};
use crate::job::{Job, JobId};
use crate::push::Pushed;
use crate::queue::{Queue, checked};
use crate::store::{Entry, Store};

/// Maximum number of jobs in a chain.
const LONGEST: usize = 100;
/// Time for which the push of a link is remembered, to reject duplicates.
const REMEMBERED: Duration = Duration::from_hours(7 * 24);

/// Builder of a chain; see [`Queue::chain`].
#[must_use = "a chain does nothing until pushed"]
#[derive(Debug)]
pub struct Chain<'q> {
    queue: &'q Queue,
    links: Result<Vec<Link>, Error>,
}

impl Queue {
    /// Starts a chain of jobs, each pushed when the job before it is done.
    ///
    /// ```
    /// # use scale_queue::{Job, Queue};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Resize { image: u32 }
    /// # impl Job for Resize { const NAME: &'static str = "resize"; }
    /// # #[derive(Serialize, Deserialize)] struct Publish { image: u32 }
    /// # impl Job for Publish {
    /// #     const NAME: &'static str = "publish"; const QUEUE: &'static str = "low";
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// # let queue = Queue::memory();
    /// use std::time::Duration;
    /// queue.chain()
    ///     .then(Resize { image: 7 })
    ///     .then_after(Duration::from_secs(60), Publish { image: 7 })
    ///     .push().await?;
    /// assert_eq!(queue.stats("default").await?.waiting, 1);
    /// # Ok(()) }
    /// ```
    pub fn chain(&self) -> Chain<'_> {
        Chain { queue: self, links: Ok(Vec::new()) }
    }
}

impl Chain<'_> {
    /// Adds the next job, in its own queue. Its [`unique_key`](Job::unique_key) is ignored: if the
    /// key were taken, the chain would end there.
    pub fn then<J: Job>(self, job: J) -> Self {
        self.then_after(Duration::ZERO, job)
    }

    /// Adds the next job, pushed with this delay after the job before it is done.
    #[expect(clippy::needless_pass_by_value, reason = "as every push takes its job")]
    pub fn then_after<J: Job>(mut self, delay: Duration, job: J) -> Self {
        self.links = self.links.and_then(|mut links| {
            links.push(Link::of(self.queue, &job, delay)?);
            let size = links.iter().map(|link| link.payload.len()).sum();
            if size > MAX_SIZE {
                return Err(Error::TooLarge { job: J::NAME, size });
            }
            if links.len() > LONGEST {
                return Err(Error::TooMany { job: J::NAME, most: LONGEST });
            }
            Ok(links)
        });
        self
    }

    /// Stores the first job, which contains all others. Returns the id of the first job.
    ///
    /// # Errors
    /// The errors of [`Queue::push`]; [`Error::TooLarge`] for more than 1 MiB in total,
    /// [`Error::TooMany`] for more than 100 jobs, [`Error::Empty`] for a chain without jobs.
    pub async fn push(self) -> Result<Pushed, Error> {
        let mut links = self.links?;
        if links.is_empty() {
            return Err(Error::Empty);
        }
        let first = links.remove(0);
        let id = JobId::new();
        let extra = Extra { metadata: self.queue.metadata(), ..Extra::default() };
        let (queue, entry) = first.entry(id, self.queue.store().now_ms(), links, extra, None);
        self.queue.push_entry(&queue, id, entry).await
    }
}

impl Link {
    pub(crate) fn of<J: Job>(queue: &Queue, job: &J, delay: Duration) -> Result<Self, Error> {
        let Envelope { body, group, .. } = queue.envelope(job, None)?;
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Ok(Self {
            queue: checked(J::QUEUE)?.to_owned(),
            name: body.name,
            payload: body.payload,
            delay_ms,
            group,
        })
    }

    pub(crate) fn entry(
        self,
        id: JobId,
        pushed_ms: u64,
        then: Vec<Link>,
        extra: Extra,
        once: Option<(String, Duration)>,
    ) -> (String, Entry) {
        let Self { queue, name, payload, delay_ms, group } = self;
        let body = Body { name, payload, unique: None, last_error: None, then, extra };
        let bytes = Envelope { id, failed: 0, suspect: false, pushed_ms, group, body }.encode();
        (queue, Entry { bytes, delay: Duration::from_millis(delay_ms), unique: None, once })
    }
}

/// Returns the key under which the successor of a job is pushed; it is removed soon after that job
/// is removed.
pub(crate) fn once_key(done: JobId) -> String {
    format!("chain:{done}")
}

/// Returns the next job of the chain. It must be pushed before the completed one is acknowledged.
pub(crate) fn next(done: &Envelope, store: &dyn Store) -> Option<(String, Entry)> {
    let (next, rest) = done.body.then.split_first()?;
    let once = Some((once_key(done.id), REMEMBERED));
    // The successor gets the same metadata, so it stays in the same trace.
    let extra = Extra { metadata: done.body.extra.metadata.clone(), ..Extra::default() };
    Some(next.clone().entry(JobId::new(), store.now_ms(), rest.to_vec(), extra, once))
}
