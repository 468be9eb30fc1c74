//! Jobs that are added to a batch while it runs.

use super::definition::{Node, Plan, Work};
use super::start::{HeldNode, Roots, start_node};
use super::{LARGEST, push_roots};
use crate::chain::Chain;
use crate::context::Context;
use crate::error::Error;
use crate::format::Link;
use crate::job::Job;
use crate::options::IntoPush;
use crate::queue::Queue;

/// Builder of jobs that are added to a running batch; see [`Queue::grow`].
#[must_use = "no job is added until `push`"]
#[derive(Debug)]
pub struct Growth<'q> {
    queue: &'q Queue,
    /// Batch of the running job.
    batch: Option<String>,
    /// Name of the addition, in the batch.
    name: Result<String, Error>,
    works: Result<Vec<Work>, Error>,
}

impl Queue {
    /// Starts an addition to the batch of a running job: the batch is done when the added jobs are
    /// done too. A job that belongs to a workflow adds jobs that none of its jobs waits for; put a
    /// batch into the workflow, and let a job of that batch add jobs, if others wait for them.
    ///
    /// The name, of 1 to 64 bytes, makes the addition repeatable: if the running job is run again,
    /// jobs that were added under the same name are not added twice. It needs to differ only from
    /// other additions of the same job.
    ///
    /// ```
    /// # use scale_queue::{Context, Error, Job, Queue, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize, Deserialize)]
    /// struct ReadPage { page: u32 }
    /// # impl Job for ReadPage { const NAME: &'static str = "read-page"; }
    /// # #[derive(Serialize, Deserialize)] struct Report;
    /// # impl Job for Report { const NAME: &'static str = "report"; }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let queue = Queue::memory();
    /// let id = queue.batch().job(ReadPage { page: 1 }).then(Report).push().await?;
    /// let pages = queue.clone();
    /// let worker = Worker::new(&queue).handle(move |job: ReadPage, context: Context| {
    ///     let queue = pages.clone();
    ///     async move {
    ///         // Each page names the next one.
    ///         if job.page < 3 {
    ///             queue.grow(&context, "next").job(ReadPage { page: job.page + 1 }).push().await?;
    ///         }
    ///         Ok::<(), Error>(())
    ///     }
    /// });
    /// # tokio::spawn(worker.run(std::future::pending::<()>()));
    /// # loop {
    /// #     let status = queue.batch_status(&id).await?.expect("a batch");
    /// #     if status.is_over() { assert_eq!(status.done, 3); break; }
    /// #     tokio::task::yield_now().await;
    /// # }
    /// # Ok(()) }
    /// ```
    pub fn grow(&self, context: &Context, name: &str) -> Growth<'_> {
        Growth {
            queue: self,
            batch: context.batch.clone(),
            name: match name.len() {
                1..=64 => Ok(format!("{}:{name}", context.id)),
                _ => Err(Error::Workflow(
                    "the name of an addition is invalid: expected 1 to 64 bytes".to_owned(),
                )),
            },
            works: Ok(Vec::new()),
        }
    }
}

impl Growth<'_> {
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

    /// Adds a chain, which counts as one job.
    pub fn chain(mut self, chain: Chain<'_>) -> Self {
        self.add("chain", chain.into_links().map(Work::Chain));
        self
    }

    fn add(&mut self, name: &'static str, work: Result<Work, Error>) {
        if let Ok(works) = &mut self.works {
            match work {
                Err(error) => self.works = Err(error),
                Ok(_) if works.len() >= LARGEST => {
                    self.works = Err(Error::TooMany { job: name, most: LARGEST });
                }
                Ok(work) => works.push(work),
            }
        }
    }

    /// Counts the jobs, then stores them, 1,000 at a time. Returns `false` if the batch is over
    /// already, which can only be if the running job was counted in an earlier run; then nothing is
    /// stored.
    ///
    /// # Errors
    /// The errors of [`Queue::push`]; [`Error::Workflow`] if the running job belongs to no batch,
    /// or if it has added another number of jobs under the same name;
    /// [`Error::TooMany`] if the batch would have more than 10,000,000 jobs; [`Error::Empty`]
    /// without jobs. After an error, return it from the handler: the next run goes on under the
    /// same name.
    pub async fn push(self) -> Result<bool, Error> {
        let Self { queue, batch, name, works } = self;
        let (name, works) = (name?, works?);
        if works.is_empty() {
            return Err(Error::Empty);
        }
        let id = batch.ok_or_else(|| Error::Workflow("the job belongs to no batch".to_owned()))?;
        let store = queue.store();
        let Some((tally, plan)) = store.batch(&id).await? else { return Ok(false) };
        if tally.total as usize + works.len() > LARGEST {
            return Err(Error::TooMany { job: "growth", most: LARGEST });
        }
        let needs_options = Plan::read(&plan)?.needs_options();
        let Some((first, known)) = store.grow_batch(&id, &name, works.len() as u32).await? else {
            return Ok(false);
        };
        if known as usize != works.len() {
            return Err(Error::Workflow(format!(
                "an addition with this name has {known} jobs already, and not {}: \
                 another addition needs another name",
                works.len(),
            )));
        }
        let mut roots = Roots::default();
        let metadata = queue.metadata();
        for (n, work) in (0..).zip(works) {
            // The key names the running job, so another batch of the same name has other keys.
            let (number, once) = (first + n, format!("grown:{name}:{n}"));
            let node = HeldNode::grown(Node::new("", work), once, metadata.clone(), needs_options);
            roots.extend(start_node(&**store, &id, number, node).await?);
        }
        push_roots(queue, roots).await?;
        Ok(true)
    }
}
