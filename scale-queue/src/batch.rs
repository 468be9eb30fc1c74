//! Batches: jobs that run in parallel, are counted together, and are followed by another job when
//! all are done.
//!
//! | when | then |
//! | --- | --- |
//! | all jobs are done | the `then` job is pushed, once |
//! | one of the jobs dies | the `catch` job is pushed, once; jobs that have not begun are skipped, unless [`allow_failures`](Batch::allow_failures) is set |
//! | every job is done or dead | the `finally` job is pushed, once |
//! | a dead job is revived and done | it counts as done: `then` is pushed after all, unless other jobs were skipped since it died |
//! | a worker dies after it ran a job and before it counted the job | the job runs again, and is counted once |
//! | a push of the batch fails half way, or its process dies | push it again under the same [name](Batch::named): jobs that are already stored are not duplicated |
//! | all jobs are done and the following jobs are stored | the batch's keys are removed; it is listed for another day |
//! | nothing happens for 7 days | the batch is forgotten; remaining jobs of it still run |

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::chain::Follower;
use crate::error::Error;
use crate::format::{Envelope, Link, Place, id_of};
use crate::job::{Job, JobId};
use crate::options::IntoPush;
use crate::queue::{Queue, checked};
use crate::registry::{self, Kind};
use crate::store::{End, Entry, NewBatch, Store, Tally};

/// Time a batch is remembered after its last change.
pub(crate) const LIFE: Duration = Duration::from_hours(7 * 24);
/// Time for which a completed batch is listed.
const LISTED: Duration = Duration::from_hours(24);
/// Maximum number of jobs: the store keeps two bits for each.
const LARGEST: usize = 10_000_000;

/// Builder of a batch; see [`Queue::batch`].
#[must_use = "a batch does nothing until pushed"]
#[derive(Debug)]
pub struct Batch<'q> {
    queue: &'q Queue,
    id: String,
    jobs: Result<Vec<BatchJob>, Error>,
    lenient: bool,
    plan: Plan,
}

/// A job of a batch that is not pushed yet.
#[derive(Debug)]
struct BatchJob {
    queue: String,
    delay: Duration,
    envelope: Envelope,
}

/// Jobs that follow a batch.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Plan {
    then: Option<Link>,
    catch: Option<Link>,
    finally: Option<Link>,
    /// Queues of the batch's jobs.
    #[serde(default)]
    queues: Vec<String>,
    /// Metadata of the jobs that follow. Older versions cannot read it: see `needs_options`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    metadata: Vec<(String, String)>,
}

impl Plan {
    /// Returns whether only workers of version 3 of the job format can read the plan.
    fn needs_options(&self) -> bool {
        let links = [&self.then, &self.catch, &self.finally];
        !self.metadata.is_empty() || links.into_iter().flatten().any(|link| link.more.is_some())
    }
}

/// Progress of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BatchStatus {
    /// Total number of jobs.
    pub total: u32,
    /// Number of jobs that are done.
    pub done: u32,
    /// Number of jobs that are dead.
    pub dead: u32,
    /// True if the batch was cancelled, by [`Queue::cancel_batch`] or by the death of a job. Jobs
    /// that had not begun then are skipped.
    pub cancelled: bool,
}

impl BatchStatus {
    /// Returns whether every job is done or dead.
    pub fn is_over(&self) -> bool {
        self.done + self.dead >= self.total
    }

    /// Returns the completed fraction, between 0 and 1.
    pub fn fraction(&self) -> f64 {
        if self.total == 0 { 1.0 } else { f64::from(self.done + self.dead) / f64::from(self.total) }
    }
}

impl From<Tally> for BatchStatus {
    fn from(tally: Tally) -> Self {
        let Tally { total, done, dead, cancelled, .. } = tally;
        Self { total, done, dead, cancelled }
    }
}

impl Queue {
    /// Starts a batch: jobs that are counted together.
    ///
    /// ```
    /// # use scale_queue::{Job, Queue};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Import { file: u32 }
    /// # impl Job for Import { const NAME: &'static str = "import"; }
    /// # #[derive(Serialize, Deserialize)] struct TellAdmin { what: String }
    /// # impl Job for TellAdmin { const NAME: &'static str = "tell-admin"; }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// # let queue = Queue::memory();
    /// let id = queue
    ///     .batch()
    ///     .jobs((0..1_000).map(|file| Import { file }))
    ///     .then(TellAdmin { what: "all files are in".into() })
    ///     .catch(TellAdmin { what: "a file could not be read".into() })
    ///     .push()
    ///     .await?;
    /// let status = queue.batch_status(&id).await?.expect("it was just pushed");
    /// assert_eq!((status.total, status.done), (1_000, 0));
    /// # Ok(()) }
    /// ```
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            queue: self,
            id: JobId::new().to_string(),
            jobs: Ok(Vec::new()),
            lenient: false,
            plan: Plan::default(),
        }
    }

    /// Returns the progress of a batch; `None` if it is unknown or forgotten.
    pub async fn batch_status(&self, id: &str) -> Result<Option<BatchStatus>, Error> {
        Ok(self.store().batch(id).await?.map(|(tally, _)| tally.into()))
    }

    /// Cancels a batch: jobs that have not begun are skipped, and count as done. Returns `false` if
    /// the batch is unknown.
    pub async fn cancel_batch(&self, id: &str) -> Result<bool, Error> {
        self.store().cancel_batch(id).await
    }
}

impl Batch<'_> {
    /// Names the batch, so that a second push after a failure does not duplicate jobs. A name has 1
    /// to 64 letters, digits, `-`, `_` and `.`. It is free again 7 days after the batch's last
    /// change.
    pub fn named(mut self, name: &str) -> Self {
        match checked(name) {
            Ok(name) => name.clone_into(&mut self.id),
            Err(error) => self.jobs = Err(error),
        }
        self
    }

    /// Adds a job, in its own queue. Its [`unique_key`](Job::unique_key) is ignored.
    pub fn job<P: IntoPush>(mut self, job: P) -> Self {
        let (job, options) = job.into_push();
        let name = <P::Job as Job>::NAME;
        self.jobs = self.jobs.and_then(|mut jobs| {
            let mut envelope = self.queue.envelope(&job, None, &options)?;
            let number = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
            envelope.body.extra.batch = Some(Place { id: self.id.clone(), number });
            let queue = options.queue.as_deref().unwrap_or(<P::Job as Job>::QUEUE);
            jobs.push(BatchJob {
                queue: checked(queue)?.to_owned(),
                delay: options.delay_from(envelope.pushed_ms),
                envelope,
            });
            if jobs.len() > LARGEST {
                Err(Error::TooMany { job: name, most: LARGEST })
            } else {
                Ok(jobs)
            }
        });
        self
    }

    /// Adds several jobs.
    pub fn jobs<P: IntoPush>(self, jobs: impl IntoIterator<Item = P>) -> Self {
        jobs.into_iter().fold(self, Self::job)
    }

    /// Sets the job to be pushed when all jobs are done.
    pub fn then<P: IntoPush>(mut self, job: P) -> Self {
        self.plan.then = self.link(job);
        self
    }

    /// Sets the job to be pushed once when one of the jobs dies.
    pub fn catch<P: IntoPush>(mut self, job: P) -> Self {
        self.plan.catch = self.link(job);
        self
    }

    /// Sets the job to be pushed when every job is done or dead.
    pub fn finally<P: IntoPush>(mut self, job: P) -> Self {
        self.plan.finally = self.link(job);
        self
    }

    /// Lets the other jobs run after one has died.
    pub fn allow_failures(mut self) -> Self {
        self.lenient = true;
        self
    }

    fn link<P: IntoPush>(&mut self, job: P) -> Option<Link> {
        let (job, options) = job.into_push();
        match Link::of(self.queue, &job, &options) {
            Ok(link) => Some(link),
            Err(error) => {
                self.jobs = Err(error);
                None
            }
        }
    }

    /// Stores the batch, then its jobs, 1,000 at a time. Returns the batch's id.
    ///
    /// # Errors
    /// The errors of [`Queue::push`]; [`Error::Empty`] for a batch without jobs. After
    /// [`Error::Store`] or [`Error::Full`] some jobs may be stored: push the same jobs again under
    /// the same [name](Self::named).
    pub async fn push(self) -> Result<String, Error> {
        let Self { queue, id, jobs, lenient, mut plan } = self;
        // The name may have been set after the jobs were added.
        let mut jobs = jobs?;
        if plan.then.is_some() || plan.catch.is_some() || plan.finally.is_some() {
            plan.metadata = queue.metadata();
        }
        for BatchJob { envelope, .. } in &mut jobs {
            if plan.needs_options() {
                envelope.body.options.has_followers = true;
            }
            if let Some(place) = &mut envelope.body.extra.batch {
                place.id.clone_from(&id);
            }
        }
        if jobs.is_empty() {
            return Err(Error::Empty);
        }
        // A concluded batch is not pushed again.
        if queue.store().batch(&id).await?.is_some_and(|(tally, _)| tally.followed) {
            return Ok(id);
        }
        for BatchJob { queue, .. } in &jobs {
            if !plan.queues.contains(queue) {
                plan.queues.push(queue.clone());
            }
        }
        let plan = rmp_serde::to_vec(&plan).map_err(Error::store)?;
        let total = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        queue.store().open_batch(&id, NewBatch { total, lenient, plan: &plan, life: LIFE }).await?;
        let pushed = registry::Pushed { pushed_ms: queue.store().now_ms() };
        registry::register(&**queue.store(), Kind::Batch, &id, &pushed).await;
        for (name, entries) in by_queue(&id, jobs) {
            for thousand in entries.chunks(1_000) {
                let holders = queue.target().push(&name, thousand).await?;
                crate::queue::push::count_pushed(
                    &name,
                    holders.iter().filter(|holder| holder.is_none()).count(),
                );
                for entry in thousand {
                    queue.run_inline(&name, id_of(&entry.bytes)).await;
                }
            }
        }
        Ok(id)
    }
}

/// Groups jobs by queue; each has a key that prevents duplicates when the batch is pushed again.
fn by_queue(id: &str, jobs: Vec<BatchJob>) -> Vec<(String, Vec<Entry>)> {
    let mut queues: Vec<(String, Vec<Entry>)> = Vec::new();
    for (number, BatchJob { queue, delay, envelope }) in jobs.into_iter().enumerate() {
        let once = Some((once_key(id, number), LIFE));
        let entry = Entry { bytes: envelope.encode(), delay, once, ..Entry::default() };
        match queues.iter_mut().find(|(known, _)| *known == queue) {
            Some((_, entries)) => entries.push(entry),
            None => queues.push((queue, vec![entry])),
        }
    }
    queues
}

fn once_key(id: &str, what: impl std::fmt::Display) -> String {
    format!("batch:{id}:{what}")
}

/// Returns whether the batch of a job that has not begun was cancelled.
pub(crate) async fn is_cancelled(store: &dyn Store, place: &Place) -> bool {
    // If the store does not answer, the job runs: that is what the pusher asked for.
    store.is_cancelled(&place.id, place.number).await.unwrap_or(false)
}

/// Counts the end of a job, and pushes the jobs that follow from it. Must be called before the job
/// is acknowledged. Returns the ids of the pushed jobs.
pub(crate) async fn count(store: &dyn Store, place: &Place, end: End) -> Result<Vec<JobId>, Error> {
    let Some(tally) = store.mark(&place.id, place.number, end).await? else {
        return Ok(Vec::new());
    };
    let (all_done, over) = (tally.done >= tally.total, tally.done + tally.dead >= tally.total);
    if tally.followed || !(all_done || over || tally.dead > 0) {
        return Ok(Vec::new());
    }
    let Some((_, plan)) = store.batch(&place.id).await? else { return Ok(Vec::new()) };
    let plan = match rmp_serde::from_slice::<Plan>(&plan) {
        Ok(plan) => plan,
        Err(error) => {
            tracing::error!(
                batch = place.id, %error,
                "the jobs that follow a batch cannot be read; they are not pushed",
            );
            return Ok(Vec::new());
        }
    };
    let Plan { then, catch, finally, queues, metadata } = plan;
    let (mut keys, mut pushed) = (Vec::new(), Vec::new());
    // After a death others may have been skipped: then not all jobs were done, even if none is dead
    // now.
    for (due, word, link) in [
        (all_done && !tally.skipped, "then", then),
        (tally.dead > 0, "catch", catch),
        (over, "finally", finally),
    ] {
        if let Some(link) = link {
            let key = once_key(&place.id, word);
            keys.push((link.queue.clone(), key.clone()));
            if due {
                let id = JobId::new();
                let (queue, entry) = link.entry(Follower {
                    id,
                    pushed_ms: store.now_ms(),
                    then: Vec::new(),
                    metadata: metadata.clone(),
                    once: Some((key, LIFE)),
                });
                let holders = store.push(&queue, std::slice::from_ref(&entry)).await?;
                let is_new = holders.iter().all(Option::is_none);
                crate::queue::push::count_pushed(&queue, usize::from(is_new));
                pushed.extend(is_new.then_some(id));
            }
        }
    }
    if all_done {
        // Nothing follows from here on, so the keys that prevent duplicates are no longer needed.
        store.conclude_batch(&place.id, LISTED).await?;
        for (queue, key) in keys {
            store.expire_once(&queue, &[key]).await?;
        }
        for queue in queues {
            for from in (0..tally.total).step_by(1_000) {
                let keys: Vec<_> = (from..tally.total.min(from + 1_000))
                    .map(|number| once_key(&place.id, number))
                    .collect();
                store.expire_once(&queue, &keys).await?;
            }
        }
    }
    Ok(pushed)
}
