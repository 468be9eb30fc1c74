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
//! | a job of the batch [adds jobs](Queue::grow) | they are counted too, once for each name, however often the job runs |
//! | a part of the batch is a [chain](Batch::chain) | it counts when its last job is done, or when one of its jobs dies |
//! | a part of the batch is a [batch](Batch::batch) or a [workflow](Batch::workflow) | it counts when all of its jobs are done, or as dead when all have ended and one is dead |
//! | nothing happens for 7 days, counted from the longest delay | the batch is forgotten; remaining jobs of it still run; with a chain, a batch or a workflow as part, or as one: for 90 days |
//!
//! A [`Workflow`] is a batch whose jobs follow each other.
//!
//! | module | holds |
//! | --- | --- |
//! | this one, `workflow`, `growth` | builders and status |
//! | `definition` | jobs before they are pushed, and the record of a batch |
//! | `start` | the first jobs, and those that wait |
//! | `end` | counting, and the jobs that follow |
//! | `deferred` | start by a job, for a push in a transaction |

mod deferred;
mod definition;
mod end;
mod growth;
mod start;
mod workflow;

use serde::Serialize;

pub(crate) use self::deferred::run as run_start;
use self::definition::{Definition, Node, Plan, Work};
pub(crate) use self::definition::{HELD, Member, START};
pub(crate) use self::end::{count, is_cancelled};
pub use self::growth::Growth;
pub use self::workflow::{NodeState, NodeStatus, Workflow, WorkflowStatus};
use crate::chain::Chain;
use crate::error::Error;
use crate::format::{Link, id_of};
use crate::job::{Job, JobId};
use crate::options::IntoPush;
use crate::queue::push::count_pushed;
use crate::queue::{Queue, checked};
use crate::registry::{self, Kind};
use crate::store::{Store, Tally};

/// Maximum number of jobs: the store keeps two bits for each.
const LARGEST: usize = 10_000_000;

/// Builder of a batch; see [`Queue::batch`].
#[must_use = "a batch does nothing until pushed"]
#[derive(Debug)]
pub struct Batch<'q> {
    queue: &'q Queue,
    id: String,
    definition: Result<Definition, Error>,
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
        Batch { queue: self, id: JobId::new().to_string(), definition: Ok(Definition::default()) }
    }

    /// Returns the progress of a batch; `None` if it is unknown or forgotten.
    pub async fn batch_status(&self, id: &str) -> Result<Option<BatchStatus>, Error> {
        Ok(self.store().batch(id).await?.map(|(tally, _)| tally.into()))
    }

    /// Cancels a batch or a workflow, and the batches that are parts of it: jobs that have not
    /// begun are skipped, and count as done. Returns `false` if the batch is unknown.
    pub async fn cancel_batch(&self, id: &str) -> Result<bool, Error> {
        if !self.store().cancel_batch(id, false).await? {
            return Ok(false);
        }
        if let Some((_, plan)) = self.store().batch(id).await? {
            end::cancel_nested(&**self.store(), &Plan::read(&plan)?, id, false).await?;
        }
        Ok(true)
    }
}

impl Batch<'_> {
    /// Names the batch, so that a second push after a failure does not duplicate jobs. A name has 1
    /// to 64 letters, digits, `-`, `_` and `.`. It is free again when the batch is forgotten: a day
    /// after all of its jobs are done, otherwise 7 days after its last change. A batch inside
    /// another one needs no name.
    pub fn named(mut self, name: &str) -> Self {
        match checked(name) {
            Ok(name) => name.clone_into(&mut self.id),
            Err(error) => self.definition = Err(error),
        }
        self
    }

    /// Adds a job, in its own queue. Its [`unique_key`](Job::unique_key) is ignored.
    pub fn job<P: IntoPush>(mut self, job: P) -> Self {
        let (job, options) = job.into_push();
        let link = Link::of(self.queue, &job, &options).map(Work::Job);
        self.add(<P::Job as Job>::NAME, link);
        self
    }

    /// Adds several jobs.
    pub fn jobs<P: IntoPush>(self, jobs: impl IntoIterator<Item = P>) -> Self {
        jobs.into_iter().fold(self, Self::job)
    }

    /// Adds a chain, which counts as one job. Options and metadata of its jobs are kept.
    pub fn chain(mut self, chain: Chain<'_>) -> Self {
        self.add("chain", chain.into_links().map(Work::Chain));
        self
    }

    /// Adds a batch, which counts as one job. Its name is ignored. It has at most 1 MiB of jobs:
    /// for many jobs, let one of them [add](Queue::grow) the others.
    pub fn batch(mut self, batch: Batch<'_>) -> Self {
        self.add("batch", batch.definition.and_then(Definition::nested));
        self
    }

    /// Adds a workflow, which counts as one job. Its name is ignored.
    pub fn workflow(mut self, workflow: Workflow<'_>) -> Self {
        self.add("workflow", workflow.into_definition().and_then(Definition::nested));
        self
    }

    /// Sets the job to be pushed when all jobs are done.
    pub fn then<P: IntoPush>(mut self, job: P) -> Self {
        self.follow(job, |definition, link| definition.then = Some(link));
        self
    }

    /// Sets the job to be pushed once when one of the jobs dies.
    pub fn catch<P: IntoPush>(mut self, job: P) -> Self {
        self.follow(job, |definition, link| definition.catch = Some(link));
        self
    }

    /// Sets the job to be pushed when every job is done or dead.
    pub fn finally<P: IntoPush>(mut self, job: P) -> Self {
        self.follow(job, |definition, link| definition.finally = Some(link));
        self
    }

    /// Lets the other jobs run after one has died.
    pub fn allow_failures(mut self) -> Self {
        if let Ok(definition) = &mut self.definition {
            definition.lenient = true;
        }
        self
    }

    fn add(&mut self, name: &'static str, work: Result<Work, Error>) {
        edit(&mut self.definition, |definition| {
            definition.add(Node::new("", work?));
            if definition.nodes.len() > LARGEST {
                return Err(Error::TooMany { job: name, most: LARGEST });
            }
            Ok(())
        });
    }

    fn follow<P: IntoPush>(&mut self, job: P, set: impl FnOnce(&mut Definition, Link)) {
        follow(self.queue, &mut self.definition, job, set);
    }

    /// Stores the batch, then its jobs, 1,000 at a time. Returns the batch's id.
    ///
    /// # Errors
    /// The errors of [`Queue::push`]; [`Error::Empty`] for a batch without jobs. After
    /// [`Error::Store`] or [`Error::Full`] some jobs may be stored: push the same jobs again under
    /// the same [name](Self::named).
    pub async fn push(self) -> Result<String, Error> {
        let Self { queue, id, definition } = self;
        push(queue, id, definition?).await
    }

    /// Pushes the batch inside a transaction of the application, as
    /// [`Queue::push_in`](Queue::push_in) does. What the transaction stores is one job, of up to
    /// 1 MiB; the first worker that takes it pushes the batch. Until then the id is unknown.
    ///
    /// # Errors
    /// The errors of [`Queue::push_in`]; [`Error::TooLarge`] if the jobs have more than 1 MiB.
    #[cfg(feature = "sql")]
    pub async fn push_in(
        self,
        connection: &mut impl crate::store::Enlist,
    ) -> Result<String, Error> {
        let Self { queue, id, definition } = self;
        deferred::push_in(queue, connection, id, definition?).await
    }
}

/// Changes a definition, unless it has an error already.
fn edit(
    definition: &mut Result<Definition, Error>,
    change: impl FnOnce(&mut Definition) -> Result<(), Error>,
) {
    if let Ok(known) = definition
        && let Err(error) = change(known)
    {
        *definition = Err(error);
    }
}

fn follow<P: IntoPush>(
    queue: &Queue,
    definition: &mut Result<Definition, Error>,
    job: P,
    set: impl FnOnce(&mut Definition, Link),
) {
    let (job, options) = job.into_push();
    edit(definition, |definition| {
        set(definition, Link::of(queue, &job, &options)?);
        Ok(())
    });
}

/// Pushes a batch or a workflow.
async fn push(queue: &Queue, id: String, mut definition: Definition) -> Result<String, Error> {
    if definition.nodes.is_empty() {
        return Err(Error::Empty);
    }
    definition.metadata = queue.metadata();
    let roots = start::prepare(&**queue.store(), id.clone(), definition, None).await?;
    register(&**queue.store(), &id).await;
    push_roots(queue, roots).await?;
    Ok(id)
}

async fn register(store: &dyn Store, id: &str) {
    let pushed = registry::Pushed { pushed_ms: store.now_ms() };
    registry::register(store, Kind::Batch, id, &pushed).await;
}

/// Pushes the first jobs of an application's batch: to the outbox while the store takes none.
async fn push_roots(queue: &Queue, roots: start::Roots) -> Result<(), Error> {
    for (name, entries) in roots.0 {
        for thousand in entries.chunks(1_000) {
            let holders = queue.target().push(&name, thousand).await?;
            count_pushed(&name, holders.iter().filter(|holder| holder.is_none()).count());
            for entry in thousand {
                queue.run_inline(&name, id_of(&entry.bytes)).await;
            }
        }
    }
    Ok(())
}
