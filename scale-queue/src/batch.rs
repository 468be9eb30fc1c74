//! Jobs that belong together: done side by side, counted as one, and followed by another when all are done.
//!
//! | when | then |
//! | --- | --- |
//! | all jobs are done | the `then` job is pushed, once |
//! | the first one is dead | the `catch` job is pushed, once; those that have not begun end unrun, unless [`allow_failures`](Batch::allow_failures) |
//! | every job is done or dead | the `finally` job is pushed, once |
//! | a dead one is revived and done | it counts as done: `then` comes after all, unless others have ended unrun since it died |
//! | a worker dies between a job and its count | the job is done again, and counted once |
//! | a push of the batch fails half way, or its process dies | push it again under the same [name](Batch::named): jobs that are there are not doubled |
//! | all are done and what follows is stored | its keys go; it is still listed for a day |
//! | nothing happens for 7 days | the batch is forgotten; jobs of it that are left still run |

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, Extra, Link, Place};
use crate::error::Error;
use crate::job::{Job, JobId};
use crate::presence::{self, Kind};
use crate::queue::{Queue, checked};
use crate::store::{End, Entry, NewBatch, Store, Tally};

/// How long a batch is remembered after its last change.
pub(crate) const LIFE: Duration = Duration::from_hours(7 * 24);
/// A batch that is done is listed for this long.
const LISTED: Duration = Duration::from_hours(24);
/// Jobs at most: two bits each are kept of them.
const LARGEST: usize = 10_000_000;

/// A batch in the making; see [`Queue::batch`].
#[must_use = "a batch does nothing until pushed"]
#[derive(Debug)]
pub struct Batch<'q> {
    queue: &'q Queue,
    id: String,
    jobs: Result<Vec<(String, Envelope)>, Error>,
    lenient: bool,
    plan: Plan,
}

/// What comes after.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Plan {
    then: Option<Link>,
    catch: Option<Link>,
    finally: Option<Link>,
    /// The queues of its jobs.
    #[serde(default)]
    queues: Vec<String>,
}

/// How far a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BatchStatus {
    /// Jobs in all.
    pub total: u32,
    /// Jobs that are done.
    pub done: u32,
    /// Jobs that are dead.
    pub dead: u32,
    /// Whether what had not begun was not to begin: by [`Queue::cancel_batch`] or by a death.
    pub cancelled: bool,
}

impl BatchStatus {
    /// Whether every job is done or dead.
    pub fn is_over(&self) -> bool {
        self.done + self.dead >= self.total
    }

    /// Between 0 and 1.
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
    /// Jobs that belong together.
    ///
    /// ```
    /// # use scale_queue::{Job, Queue};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)] struct Import { file: u32 }
    /// # impl Job for Import { const NAME: &'static str = "import"; }
    /// # #[derive(Serialize, Deserialize)] struct TellAdmin { what: String }
    /// # impl Job for TellAdmin { const NAME: &'static str = "tell-admin"; }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_queue::Error> {
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
        Batch { queue: self, id: JobId::new().to_string(), jobs: Ok(Vec::new()), lenient: false, plan: Plan::default() }
    }

    /// How far a batch is; `None` if it is not known, or not any more.
    pub async fn batch_status(&self, id: &str) -> Result<Option<BatchStatus>, Error> {
        Ok(self.store().batch(id).await?.map(|(tally, _)| tally.into()))
    }

    /// Jobs of the batch that have not begun end unrun, and count as done. `false`: it is not known.
    pub async fn cancel_batch(&self, id: &str) -> Result<bool, Error> {
        self.store().cancel_batch(id).await
    }
}

impl Batch<'_> {
    /// A name of your own, so that pushing it a second time, after a failure, doubles nothing. Letters, digits, `-`, `_` and `.`, 64 at
    /// most. A name is free again 7 days after the last change.
    pub fn named(mut self, name: &str) -> Self {
        match checked(name) {
            Ok(name) => name.clone_into(&mut self.id),
            Err(error) => self.jobs = Err(error),
        }
        self
    }

    /// One more job, in its own queue. Its [`unique_key`](Job::unique_key) does not count.
    #[expect(clippy::needless_pass_by_value, reason = "as every push takes its job")]
    pub fn job<J: Job>(mut self, job: J) -> Self {
        self.jobs = self.jobs.and_then(|mut jobs| {
            let mut envelope = self.queue.envelope(&job, None)?;
            let number = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
            envelope.body.extra.batch = Some(Place { id: self.id.clone(), number });
            jobs.push((checked(J::QUEUE)?.to_owned(), envelope));
            if jobs.len() > LARGEST { Err(Error::TooLarge { job: J::NAME, size: jobs.len() }) } else { Ok(jobs) }
        });
        self
    }

    /// More jobs of one kind.
    pub fn jobs<J: Job>(self, jobs: impl IntoIterator<Item = J>) -> Self {
        jobs.into_iter().fold(self, Self::job)
    }

    /// To be pushed when all are done.
    pub fn then<J: Job>(mut self, job: J) -> Self {
        self.plan.then = self.link(job);
        self
    }

    /// To be pushed when the first one is dead.
    pub fn catch<J: Job>(mut self, job: J) -> Self {
        self.plan.catch = self.link(job);
        self
    }

    /// To be pushed when every one is done or dead.
    pub fn finally<J: Job>(mut self, job: J) -> Self {
        self.plan.finally = self.link(job);
        self
    }

    /// A death does not cancel the others.
    pub fn allow_failures(mut self) -> Self {
        self.lenient = true;
        self
    }

    #[expect(clippy::needless_pass_by_value, reason = "as every push takes its job")]
    fn link<J: Job>(&mut self, job: J) -> Option<Link> {
        match Link::of(self.queue, &job, Duration::ZERO) {
            Ok(link) => Some(link),
            Err(error) => {
                self.jobs = Err(error);
                None
            }
        }
    }

    /// Stores the batch, then its jobs, a thousand at a time. Returns its id.
    ///
    /// # Errors
    /// As of [`Queue::push`]; [`Error::Empty`] for no job. After [`Error::Store`] or [`Error::Full`] some may be stored: push the same jobs
    /// again under the same [name](Self::named).
    pub async fn push(self) -> Result<String, Error> {
        let Self { queue, id, jobs, lenient, mut plan } = self;
        // `job` gave the id that was the batch's then.
        let mut jobs = jobs?;
        jobs.iter_mut().filter_map(|(_, envelope)| envelope.body.extra.batch.as_mut()).for_each(|place| place.id.clone_from(&id));
        if jobs.is_empty() {
            return Err(Error::Empty);
        }
        // One that is over is not pushed anew.
        if queue.store().batch(&id).await?.is_some_and(|(tally, _)| tally.followed) {
            return Ok(id);
        }
        for (name, _) in &jobs {
            if !plan.queues.contains(name) {
                plan.queues.push(name.clone());
            }
        }
        let plan = rmp_serde::to_vec(&plan).map_err(Error::store)?;
        let total = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        queue.store().open_batch(&id, NewBatch { total, lenient, plan: &plan, life: LIFE }).await?;
        let pushed = presence::Pushed { pushed_ms: queue.store().now_ms() };
        presence::announce(&**queue.store(), Kind::Batch, &id, &pushed).await;
        for (name, entries) in by_queue(&id, jobs) {
            for thousand in entries.chunks(1_000) {
                let holders = queue.store().push(&name, thousand).await?;
                crate::queue::count_pushed(&name, holders.iter().filter(|holder| holder.is_none()).count());
            }
        }
        Ok(id)
    }
}

/// Each queue's jobs, each to be stored once whatever is pushed again.
fn by_queue(id: &str, jobs: Vec<(String, Envelope)>) -> Vec<(String, Vec<Entry>)> {
    let mut queues: Vec<(String, Vec<Entry>)> = Vec::new();
    for (number, (name, envelope)) in jobs.into_iter().enumerate() {
        let once = Some((once_key(id, number), LIFE));
        let entry = Entry { bytes: envelope.encode(), delay: Duration::ZERO, unique: None, once };
        match queues.iter_mut().find(|(known, _)| *known == name) {
            Some((_, entries)) => entries.push(entry),
            None => queues.push((name, vec![entry])),
        }
    }
    queues
}

fn once_key(id: &str, what: impl std::fmt::Display) -> String {
    format!("batch:{id}:{what}")
}

/// Whether a job of the batch should not begin any more.
pub(crate) async fn is_cancelled(store: &dyn Store, place: &Place) -> bool {
    // In doubt it runs: that is what was asked for.
    store.is_cancelled(&place.id, place.number).await.unwrap_or(false)
}

/// Counts a job's end, and pushes what that brings about: before the store is told that it ended. Returns what
/// was pushed.
pub(crate) async fn count(store: &dyn Store, place: &Place, end: End) -> Result<Vec<JobId>, Error> {
    let Some(tally) = store.mark(&place.id, place.number, end).await? else { return Ok(Vec::new()) };
    let (all_done, over) = (tally.done >= tally.total, tally.done + tally.dead >= tally.total);
    if tally.followed || !(all_done || over || tally.dead > 0) {
        return Ok(Vec::new());
    }
    let Some((_, plan)) = store.batch(&place.id).await? else { return Ok(Vec::new()) };
    let Ok(Plan { then, catch, finally, queues }) = rmp_serde::from_slice::<Plan>(&plan) else { return Ok(Vec::new()) };
    let (mut keys, mut pushed) = (Vec::new(), Vec::new());
    // After a death others may have ended unrun: not all was done, though no one is dead any more.
    for (due, word, link) in
        [(all_done && !tally.skipped, "then", then), (tally.dead > 0, "catch", catch), (over, "finally", finally)]
    {
        if let Some(link) = link {
            let key = once_key(&place.id, word);
            keys.push((link.queue.clone(), key.clone()));
            if due {
                let once = Some((key, LIFE));
                let id = JobId::new();
                let (queue, entry) = link.entry(id, store.now_ms(), Vec::new(), Extra::default(), once);
                let holders = store.push(&queue, std::slice::from_ref(&entry)).await?;
                let is_new = holders.iter().all(Option::is_none);
                crate::queue::count_pushed(&queue, usize::from(is_new));
                pushed.extend(is_new.then_some(id));
            }
        }
    }
    if all_done {
        // From here on nothing follows any more, so nothing has to be known of what was pushed.
        store.conclude_batch(&place.id, LISTED).await?;
        for (queue, key) in keys {
            store.expire_once(&queue, &[key]).await?;
        }
        for queue in queues {
            for from in (0..tally.total).step_by(1_000) {
                let keys: Vec<_> = (from..tally.total.min(from + 1_000)).map(|number| once_key(&place.id, number)).collect();
                store.expire_once(&queue, &keys).await?;
            }
        }
    }
    Ok(pushed)
}
