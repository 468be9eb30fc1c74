//! Jobs one after the other: each is pushed when the one before it is done.
//!
//! The rest of a chain travels with the job at its head. A worker that has done a job pushes the next one *before* it says so, under a key
//! that only the first such push gets: should it die in between, the job is done again, and the next one is still pushed once. A job that
//! dies keeps the rest; revive it, and the chain goes on.

use std::time::Duration;

use crate::envelope::{Body, Envelope, Extra, Link};
use crate::error::Error;
use crate::job::{Job, JobId};
use crate::push::Pushed;
use crate::queue::{MAX_SIZE, Queue, checked};
use crate::store::{Entry, Store};

/// Links at most.
const LONGEST: usize = 100;
/// How long a link that has been pushed is known to have been.
const REMEMBERED: Duration = Duration::from_hours(7 * 24);

/// A chain in the making; see [`Queue::chain`].
#[must_use = "a chain does nothing until pushed"]
#[derive(Debug)]
pub struct Chain<'q> {
    queue: &'q Queue,
    links: Result<Vec<Link>, Error>,
}

impl Queue {
    /// Jobs to be done one after the other, each when the one before it is done.
    ///
    /// ```
    /// # use scale_queue::{Job, Queue};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Resize { image: u32 }
    /// # impl Job for Resize { const NAME: &'static str = "resize"; }
    /// # #[derive(Serialize, Deserialize)] struct Publish { image: u32 }
    /// # impl Job for Publish { const NAME: &'static str = "publish"; const QUEUE: &'static str = "low"; }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_queue::Error> {
    /// # let queue = Queue::memory();
    /// use std::time::Duration;
    /// queue.chain().then(Resize { image: 7 }).then_after(Duration::from_secs(60), Publish { image: 7 }).push().await?;
    /// assert_eq!(queue.stats("default").await?.waiting, 1);
    /// # Ok(()) }
    /// ```
    pub fn chain(&self) -> Chain<'_> {
        Chain { queue: self, links: Ok(Vec::new()) }
    }
}

impl Chain<'_> {
    /// The next job, in its own queue. Its [`unique_key`](Job::unique_key) does not count: a chain would end where it is taken.
    pub fn then<J: Job>(self, job: J) -> Self {
        self.then_after(Duration::ZERO, job)
    }

    /// The next job, so long after the one before it is done.
    #[expect(clippy::needless_pass_by_value, reason = "as every push takes its job")]
    pub fn then_after<J: Job>(mut self, delay: Duration, job: J) -> Self {
        self.links = self.links.and_then(|mut links| {
            links.push(Link::of(self.queue, &job, delay)?);
            let size = links.iter().map(|link| link.payload.len()).sum();
            if size > MAX_SIZE || links.len() > LONGEST {
                return Err(Error::TooLarge { job: J::NAME, size });
            }
            Ok(links)
        });
        self
    }

    /// Stores the first job, and with it all others. The id is the first one's.
    ///
    /// # Errors
    /// As of [`Queue::push`]; [`Error::TooLarge`] for more than 1 MiB or 100 jobs in all, [`Error::Empty`] for none.
    pub async fn push(self) -> Result<Pushed, Error> {
        let mut links = self.links?;
        if links.is_empty() {
            return Err(Error::Empty);
        }
        let first = links.remove(0);
        let id = JobId::new();
        let extra = Extra { carried: self.queue.carried(), ..Extra::default() };
        let (queue, entry) = first.entry(id, self.queue.store().now_ms(), links, extra, None);
        self.queue.push_entry(&queue, id, entry).await
    }
}

impl Link {
    pub(crate) fn of<J: Job>(queue: &Queue, job: &J, delay: Duration) -> Result<Self, Error> {
        let Envelope { body, group, .. } = queue.envelope(job, None)?;
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Ok(Self { queue: checked(J::QUEUE)?.to_owned(), name: body.name, payload: body.payload, delay_ms, group })
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

/// Under which key what follows a job is pushed; forgotten soon after that job is gone.
pub(crate) fn once_key(done: JobId) -> String {
    format!("chain:{done}")
}

/// What comes after a job that is done: to be pushed before that is said.
pub(crate) fn next(done: &Envelope, store: &dyn Store) -> Option<(String, Entry)> {
    let (next, rest) = done.body.then.split_first()?;
    let once = Some((once_key(done.id), REMEMBERED));
    // The trace goes on with it.
    let extra = Extra { carried: done.body.extra.carried.clone(), ..Extra::default() };
    Some(next.clone().entry(JobId::new(), store.now_ms(), rest.to_vec(), extra, once))
}
