//! Chains of jobs: each job is pushed when the job before it is done.
//!
//! The rest of a chain is stored in the job at its head. A worker that has completed a job pushes
//! the next one *before* it acknowledges the completed one, under a key that only the first such
//! push gets. If the worker dies in between, the job runs again, and the next job is still pushed
//! once. A dead job keeps the rest of its chain; after it is revived and done, the chain continues.

use std::time::Duration;

use crate::error::Error;
use crate::format::{Body, Envelope, Extra, Link, LinkOptions, MAX_SIZE, NodeOptions, Place};
use crate::job::{Job, JobId};
use crate::options::{IntoPush, PushOptions, set};
#[cfg(feature = "sql")]
use crate::push::Encoded;
use crate::push::{Pushed, millis_of, size_of_metadata};
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
    pub fn then<P: IntoPush>(mut self, job: P) -> Self {
        let (job, options) = job.into_push();
        let name = <P::Job as Job>::NAME;
        self.links = self.links.and_then(|mut links| {
            links.push(Link::of(self.queue, &job, &options)?);
            let size = links.iter().map(Link::size).sum();
            if size > MAX_SIZE {
                return Err(Error::TooLarge { job: name, size });
            }
            if links.len() > LONGEST {
                return Err(Error::TooMany { job: name, most: LONGEST });
            }
            Ok(links)
        });
        self
    }

    /// Adds the next job, pushed with this delay after the job before it is done.
    pub fn then_after<P: IntoPush>(self, delay: Duration, job: P) -> Self {
        let (job, options) = job.into_push();
        self.then(job.with(options.delay(delay)))
    }

    /// Stores the first job, which contains all others. Returns the id of the first job.
    ///
    /// # Errors
    /// The errors of [`Queue::push`]; [`Error::TooLarge`] for more than 1 MiB in total,
    /// [`Error::TooMany`] for more than 100 jobs, [`Error::Empty`] for a chain without jobs.
    pub async fn push(self) -> Result<Pushed, Error> {
        let (to, id) = (self.queue, JobId::new());
        let (queue, entry) = self.head(id)?;
        to.push_entry(&queue, id, entry).await
    }

    /// Pushes the chain inside a transaction of the application, as
    /// [`Queue::push_in`](Queue::push_in) does.
    ///
    /// # Errors
    /// The errors of [`push`](Self::push) and of [`Queue::push_in`].
    #[cfg(feature = "sql")]
    pub async fn push_in(
        self,
        connection: &mut impl crate::store::Enlist,
    ) -> Result<Pushed, Error> {
        let (to, id) = (self.queue, JobId::new());
        let (queue, entry) = self.head(id)?;
        to.enlist(connection, Encoded { queue: queue.into(), id, entry }).await
    }
}

impl Chain<'_> {
    /// Returns the jobs of a chain that becomes a part of a batch.
    pub(crate) fn into_links(self) -> Result<Vec<Link>, Error> {
        self.links.and_then(|links| if links.is_empty() { Err(Error::Empty) } else { Ok(links) })
    }

    fn head(self, id: JobId) -> Result<(String, Entry), Error> {
        let (queue, mut links) = (self.queue, self.into_links()?);
        let first = links.remove(0);
        Ok(first.entry(Follower {
            id,
            pushed_ms: queue.store().now_ms(),
            then: links,
            metadata: queue.metadata(),
            once: None,
            place: None,
            node: None,
        }))
    }
}

/// Values of a link's push that the link does not contain.
pub(crate) struct Follower {
    pub(crate) id: JobId,
    pub(crate) pushed_ms: u64,
    /// Jobs that follow the link's job.
    pub(crate) then: Vec<Link>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) once: Option<(String, Duration)>,
    /// Position in a batch, and in a workflow.
    pub(crate) place: Option<Place>,
    pub(crate) node: Option<NodeOptions>,
}

impl Link {
    /// Returns the bytes of the payload and of the metadata.
    fn size(&self) -> usize {
        let metadata = self.more.as_ref().map_or(&[][..], |more| &more.metadata);
        self.payload.len() + size_of_metadata(metadata)
    }

    pub(crate) fn of<J: Job>(queue: &Queue, job: &J, options: &PushOptions) -> Result<Self, Error> {
        let Envelope { body, group, priority, pushed_ms, .. } =
            queue.envelope(job, None, options)?;
        let mut more = LinkOptions {
            priority,
            expires_after_ms: match options.expires_at_ms() {
                Some(_) => None,
                None => options.expires_from(pushed_ms).map(millis_of),
            },
            retry_for_ms: options.retry_for.or(J::RETRY_FOR).map(millis_of),
            attempts: body.extra.attempts,
            timeout_ms: body.extra.timeout_ms,
            metadata: options.metadata.clone(),
            options: body.options,
        };
        // Counted from the push of the link, if it is no fixed time.
        if !more.options.is_empty() {
            more.options.expires_ms = options.expires_at_ms();
            (more.options.retry_until_ms, more.options.begins_ms) = (None, None);
        }
        Ok(Self {
            queue: checked(options.queue.as_deref().unwrap_or(J::QUEUE))?.to_owned(),
            name: body.name,
            payload: body.payload,
            delay_ms: millis_of(options.delay_from(pushed_ms)),
            group,
            more: (more != LinkOptions::default()).then(|| Box::new(more)),
        })
    }

    pub(crate) fn entry(self, follower: Follower) -> (String, Entry) {
        let Self { queue, name, payload, delay_ms, group, more } = self;
        let Follower { id, pushed_ms, then, mut metadata, once, place, node } = follower;
        let LinkOptions {
            priority,
            expires_after_ms,
            retry_for_ms,
            attempts,
            timeout_ms,
            metadata: own,
            mut options,
        } = *more.unwrap_or_default();
        for entry in own {
            set(&mut metadata, entry);
        }
        if let Some(time) = expires_after_ms {
            options.expires_ms = Some(pushed_ms.saturating_add(time));
        }
        if let Some(time) = retry_for_ms {
            options.retry_until_ms = Some(pushed_ms.saturating_add(time));
        }
        if node.is_some() {
            options.node = node;
        }
        if options.group.is_some() && delay_ms > 0 {
            options.begins_ms = Some(pushed_ms.saturating_add(delay_ms));
        }
        let extra = Extra { batch: place, metadata, attempts, timeout_ms, ..Extra::default() };
        let body = Body { name, payload, then, extra, options, ..Body::default() };
        let envelope = Envelope { id, failed: 0, suspect: false, pushed_ms, priority, group, body };
        let delay = Duration::from_millis(delay_ms);
        (queue, Entry { bytes: envelope.encode(), delay, once, ..Entry::default() })
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
    Some(next.clone().entry(Follower {
        id: JobId::new(),
        pushed_ms: store.now_ms(),
        then: rest.to_vec(),
        // The successor gets the same metadata, so it stays in the same trace.
        metadata: done.body.extra.metadata.clone(),
        once: Some((once_key(done.id), REMEMBERED)),
        // The last job of the chain is counted in its batch.
        place: done.body.extra.batch.clone(),
        node: done.body.options.node.clone(),
    }))
}
