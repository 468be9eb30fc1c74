//! Workflows: jobs that follow each other, counted together.
//!
//! | when | then |
//! | --- | --- |
//! | all jobs are done that a job [follows](Workflow::after) | the job is pushed, once; it can read what they have [returned](crate::Context::output) |
//! | a job dies | the jobs that follow it wait; all others go on; the `catch` job is pushed, once |
//! | a job follows others [even if they are dead](Workflow::even_if_dead) | it is pushed when all of them are done or dead |
//! | no job can go on | the `finally` job is pushed, once |
//! | a dead job is revived and done | the jobs that wait for it go on |
//! | a part is a batch of which jobs were skipped because another had died | the part stays dead, so the jobs that follow it do not begin; with [`allow_failures`](Batch::allow_failures) none is skipped, and a revival completes it |
//! | a workflow of this name exists and has other jobs | the push fails with [`Error::Workflow`] |
//! | all jobs are done | the `then` job is pushed, once |
//! | a worker dies after it ran a job and before it counted the job | the job runs again, and is counted once; what follows is pushed once |
//! | a push of the workflow fails half way, or its process dies | push it again under the same [name](Workflow::named) |
//! | a job waits for others for more than 90 days | it is forgotten |
//!
//! Otherwise a workflow is a [batch](super).

use std::fmt;

use serde::Serialize;

use super::definition::{Definition, Member, Node, Plan, Work, nested_id};
use super::start::HeldNode;
use super::{Batch, BatchStatus, edit, end, follow, push, start};
use crate::chain::Chain;
use crate::error::Error;
use crate::format::{Envelope, Link, Place};
#[cfg(doc)]
use crate::job::Job;
use crate::job::JobId;
use crate::options::IntoPush;
use crate::queue::{Queue, checked};
use crate::store::End;

/// Maximum number of jobs of a workflow: each is a part of its record.
const MOST_NODES: usize = 1_000;
/// Number of dead jobs that are read at a time.
const PAGE: usize = 100;

/// Builder of a workflow; see [`Queue::workflow`].
#[must_use = "a workflow does nothing until pushed"]
#[derive(Debug)]
pub struct Workflow<'q> {
    queue: &'q Queue,
    id: String,
    definition: Result<Definition, Error>,
}

/// State of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkflowStatus {
    /// Counts of its jobs.
    #[serde(flatten)]
    pub batch: BatchStatus,
    /// Its jobs, each after the jobs that it follows.
    pub nodes: Vec<NodeStatus>,
}

/// State of a job, chain or batch of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Name in the workflow.
    pub name: String,
    /// [Name](Job::NAME) of the job; of a chain, all names; of a batch, its number of jobs.
    pub job: String,
    /// Names of the nodes that this one follows.
    pub after: Vec<String>,
    /// State of the node.
    pub state: NodeState,
}

/// State of a node of a workflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NodeState {
    /// Waits for nodes that it follows.
    Held,
    /// Pushed: waits for a worker, or runs.
    Started,
    /// Done, or skipped because the workflow was cancelled.
    Done,
    /// Dead, or cancelled.
    Dead,
    /// Cannot begin, because it follows a dead node.
    Stuck,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Started => "started",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Stuck => "stuck",
        })
    }
}

impl Queue {
    /// Starts a workflow: jobs with names, of which each is pushed when the jobs are done that it
    /// follows. A job can only follow jobs that were added before it, so there is no cycle.
    ///
    /// ```
    /// # use scale_queue::{Context, Job, Queue, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// # macro_rules! job { ($($name:ident $label:literal)*) => { $(
    /// #     #[derive(Serialize, Deserialize)] struct $name;
    /// #     impl Job for $name { const NAME: &'static str = $label; }
    /// # )* } }
    /// # job! { ReadOrders "read-orders" ReadStock "read-stock" Compare "compare" Mail "mail" }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), scale_queue::Error> {
    /// # let queue = Queue::memory();
    /// let id = queue
    ///     .workflow()
    ///     .job("orders", ReadOrders)
    ///     .job("stock", ReadStock)
    ///     .job("compare", Compare).after(["orders", "stock"])
    ///     .catch(Mail)
    ///     .push()
    ///     .await?;
    ///
    /// let worker = Worker::new(&queue)
    ///     .handle(async |_: ReadOrders| Ok::<_, std::io::Error>(7))
    ///     .handle(async |_: ReadStock| Ok::<_, std::io::Error>(5))
    ///     .handle(async |_: Compare, context: Context| {
    ///         let orders: Option<i64> = context.output("orders").await?;
    ///         let stock: Option<i64> = context.output("stock").await?;
    ///         assert_eq!((orders, stock), (Some(7), Some(5)));
    ///         Ok::<_, scale_queue::Error>(())
    ///     });
    /// # tokio::spawn(worker.run(std::future::pending::<()>()));
    /// # while !queue.workflow_status(&id).await?.expect("a workflow").batch.is_over() {
    /// #     tokio::task::yield_now().await;
    /// # }
    /// # Ok(()) }
    /// ```
    pub fn workflow(&self) -> Workflow<'_> {
        let definition = Definition { lenient: true, ..Definition::default() };
        Workflow { queue: self, id: JobId::new().to_string(), definition: Ok(definition) }
    }

    /// Returns the state of a workflow and of its jobs; `None` if it is unknown or forgotten. A
    /// batch has no nodes.
    pub async fn workflow_status(&self, id: &str) -> Result<Option<WorkflowStatus>, Error> {
        let Some((mut tally, plan)) = self.store().batch(id).await? else { return Ok(None) };
        let plan = Plan::read(&plan)?;
        let nodes = plan.nodes();
        let mut ends = Vec::new();
        if !nodes.is_empty() && !tally.followed {
            ends = self.store().ends(id, nodes.len() as u32).await?;
            // It may have been concluded since: then its ends are gone.
            if ends.len() < nodes.len().min((tally.done + tally.dead) as usize)
                && let Some((now, _)) = self.store().batch(id).await?
            {
                tally = now;
            }
        }
        let stuck = end::stuck_nodes(&plan, &ends);
        let end_of =
            |number: u32| ends.iter().find(|(known, _)| *known == number).map(|(_, end)| *end);
        let state = |number: u32| match end_of(number) {
            _ if tally.followed => NodeState::Done,
            Some(End::Dead) => NodeState::Dead,
            Some(End::Done | End::Skipped) => NodeState::Done,
            None if stuck[number as usize] => NodeState::Stuck,
            None if nodes[number as usize].after.iter().all(|n| end_of(*n).is_some()) => {
                NodeState::Started
            }
            None => NodeState::Held,
        };
        let name = |number: &u32| nodes.get(*number as usize).map(|node| node.name.clone());
        let nodes = (0..).zip(nodes).map(|(number, node)| NodeStatus {
            name: node.name.clone(),
            job: node.job.clone(),
            after: node.after.iter().filter_map(name).collect(),
            state: state(number),
        });
        Ok(Some(WorkflowStatus { nodes: nodes.collect(), batch: tally.into() }))
    }

    /// Cancels a job of a workflow: it counts as dead, so the jobs that follow it do not begin. A
    /// job that runs is cancelled as by [`cancel`](Self::cancel), a batch as by
    /// [`cancel_batch`](Self::cancel_batch). Returns `false` if there is no such job, or if it has
    /// ended; also for a chain whose first job is done, which on Redis may be `true`, without an
    /// effect.
    pub async fn cancel_node(&self, workflow: &str, node: &str) -> Result<bool, Error> {
        let store = &**self.store();
        let Some(found) = self.node(workflow, node).await? else { return Ok(false) };
        let Found { member, held, is_due, end } = found;
        if end.is_some() {
            return Ok(false);
        }
        let is_batch = matches!(held.node.work, Work::Batch(_));
        if is_due
            && !is_batch
            && let Some(first) = held.node.work.first()
        {
            return self.cancel(&first.queue, held.node.id).await;
        }
        end::count(store, &member, End::Dead).await?;
        if is_due {
            self.cancel_batch(&nested_id(workflow, member.place.number)).await?;
        } else if let Some(Found { held, is_due: true, .. }) = self.node(workflow, node).await?
            && let Some(first) = held.node.work.first()
        {
            // The last of the jobs that it follows has ended meanwhile: it may have been pushed.
            self.cancel(&first.queue, held.node.id).await?;
        }
        Ok(true)
    }

    /// Runs a dead job of a workflow again, or the dead jobs of a batch; the jobs that follow go on
    /// when it is done. A job that was cancelled before it began can run when the jobs are done
    /// that it follows. Returns `false` if nothing was run: the job is not dead, has no longer a
    /// place among the dead jobs of its queue, or waits for others.
    pub async fn retry_node(&self, workflow: &str, node: &str) -> Result<bool, Error> {
        let store = &**self.store();
        let Some(found) = self.node(workflow, node).await? else { return Ok(false) };
        let Found { member, held, is_due, end } = found;
        if end != Some(End::Dead) || !is_due {
            return Ok(false);
        }
        let nested = nested_id(workflow, member.place.number);
        let mut revived = false;
        // A batch may have grown into other queues.
        let queues = match &held.node.work {
            Work::Batch(_) => self.queues().await?,
            work => work.queues().into_iter().collect(),
        };
        for queue in queues {
            let mut offset = 0;
            loop {
                let page = self.dead(&queue, offset, PAGE).await?;
                if page.is_empty() {
                    break;
                }
                for dead in &page {
                    let place = Envelope::decode(&dead.dead_job.bytes).ok();
                    let place = place.and_then(|envelope| envelope.body.extra.batch);
                    let is_part = place.is_some_and(|place| {
                        place == member.place
                            || place.id == nested
                            || place.id.starts_with(&format!("{nested}:"))
                    });
                    if is_part && self.revive(&queue, dead).await? {
                        revived = true;
                    } else {
                        offset += 1;
                    }
                }
            }
        }
        if !revived {
            let roots = start::start_node(store, workflow, member.place.number, held).await?;
            let mut pushed = Vec::new();
            end::push(store, roots, &mut pushed).await?;
            revived = !pushed.is_empty();
        }
        Ok(revived)
    }

    async fn node(&self, workflow: &str, node: &str) -> Result<Option<Found>, Error> {
        let store = &**self.store();
        let Some((tally, plan)) = store.batch(workflow).await? else { return Ok(None) };
        let plan = Plan::read(&plan)?;
        let Some(number) = plan.nodes().iter().position(|known| known.name == node) else {
            return Ok(None);
        };
        let number = number as u32;
        let Some(held) = start::held(store, workflow, number).await? else { return Ok(None) };
        let ends = store.ends(workflow, plan.nodes().len() as u32).await?;
        let end_of =
            |number: u32| ends.iter().find(|(known, _)| *known == number).map(|(_, end)| *end);
        let place = Place { id: workflow.to_owned(), number };
        let member = Member { place, followers: held.followers().to_vec() };
        let end = if tally.followed { Some(End::Done) } else { end_of(number) };
        let is_due = plan.nodes()[number as usize].is_due(end_of);
        Ok(Some(Found { member, held, is_due, end }))
    }
}

/// A node of a workflow, as it is in the store.
struct Found {
    member: Member,
    held: HeldNode,
    /// True if the nodes have ended that it follows.
    is_due: bool,
    end: Option<End>,
}

impl Workflow<'_> {
    /// Names the workflow, as [`Batch::named`] does.
    pub fn named(mut self, name: &str) -> Self {
        match checked(name) {
            Ok(name) => name.clone_into(&mut self.id),
            Err(error) => self.definition = Err(error),
        }
        self
    }

    /// Adds a job under a name of 1 to 64 letters, digits, `-`, `_` and `.`. The job's
    /// [`unique_key`](Job::unique_key) is ignored.
    pub fn job<P: IntoPush>(mut self, name: &str, job: P) -> Self {
        let (job, options) = job.into_push();
        let link = Link::of(self.queue, &job, &options).map(Work::Job);
        self.add(name, link);
        self
    }

    /// Adds a chain, which is done when its last job is done.
    pub fn chain(mut self, name: &str, chain: Chain<'_>) -> Self {
        self.add(name, chain.into_links().map(Work::Chain));
        self
    }

    /// Adds a batch, which is done when all of its jobs are done, also those that its jobs
    /// [add](Queue::grow). It returns no output. It has at most 1 MiB of jobs: for many jobs, let
    /// one of them add the others.
    pub fn batch(mut self, name: &str, batch: Batch<'_>) -> Self {
        self.add(name, batch.definition.and_then(Definition::nested));
        self
    }

    /// Adds a workflow, which is done when all of its jobs are done. It returns no output.
    pub fn workflow(mut self, name: &str, workflow: Workflow<'_>) -> Self {
        self.add(name, workflow.definition.and_then(Definition::nested));
        self
    }

    /// Lets the job added last follow these jobs: it is pushed when all of them are done.
    pub fn after<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Self {
        edit(&mut self.definition, |definition| {
            let Some((last, known)) = definition.nodes.split_last_mut() else {
                return Err(Error::Workflow("`after` without a job before it".to_owned()));
            };
            for name in names {
                let Some(number) = known.iter().position(|node| node.name == name) else {
                    return Err(Error::Workflow(format!(
                        "`{}` follows `{name}`: expected the name of a job added before it",
                        last.name,
                    )));
                };
                if !last.after.contains(&(number as u32)) {
                    last.after.push(number as u32);
                }
            }
            Ok(())
        });
        self
    }

    /// Lets the job added last begin when the jobs that it follows are done or dead.
    pub fn even_if_dead(mut self) -> Self {
        edit(&mut self.definition, |definition| {
            let Some(last) = definition.nodes.last_mut() else {
                return Err(Error::Workflow("`even_if_dead` without a job before it".to_owned()));
            };
            last.even_if_dead = true;
            Ok(())
        });
        self
    }

    /// Cancels the whole workflow when a job dies: jobs that have not begun are skipped.
    pub fn cancel_on_death(mut self) -> Self {
        edit(&mut self.definition, |definition| {
            definition.lenient = false;
            Ok(())
        });
        self
    }

    /// Sets the job to be pushed when all jobs are done.
    pub fn then<P: IntoPush>(mut self, job: P) -> Self {
        follow(self.queue, &mut self.definition, job, |all, link| all.then = Some(link));
        self
    }

    /// Sets the job to be pushed once when one of the jobs dies.
    pub fn catch<P: IntoPush>(mut self, job: P) -> Self {
        follow(self.queue, &mut self.definition, job, |all, link| all.catch = Some(link));
        self
    }

    /// Sets the job to be pushed once when no job can go on: each is done, dead, or follows a dead
    /// one.
    pub fn finally<P: IntoPush>(mut self, job: P) -> Self {
        follow(self.queue, &mut self.definition, job, |all, link| all.finally = Some(link));
        self
    }

    /// Stores the workflow, then pushes the jobs that follow no others. Returns the workflow's id.
    ///
    /// # Errors
    /// The errors of [`Queue::push`]; [`Error::Empty`] for a workflow without jobs;
    /// [`Error::Workflow`] for an invalid one; [`Error::TooMany`] for more than 1,000 jobs: put
    /// many similar ones into a [batch](Self::batch). After [`Error::Store`] or [`Error::Full`] it
    /// may be stored in part: push it again under the same [name](Self::named).
    pub async fn push(self) -> Result<String, Error> {
        let Self { queue, id, definition } = self;
        push(queue, id, definition?).await
    }

    /// Pushes the workflow inside a transaction of the application, as [`Batch::push_in`] does.
    ///
    /// # Errors
    /// The errors of [`push`](Self::push) and of [`Queue::push_in`]; [`Error::TooLarge`] if the
    /// jobs have more than 1 MiB.
    #[cfg(feature = "sql")]
    pub async fn push_in(
        self,
        connection: &mut impl crate::store::Enlist,
    ) -> Result<String, Error> {
        let Self { queue, id, definition } = self;
        super::deferred::push_in(queue, connection, id, definition?).await
    }

    pub(super) fn into_definition(self) -> Result<Definition, Error> {
        self.definition
    }

    fn add(&mut self, name: &str, work: Result<Work, Error>) {
        edit(&mut self.definition, |definition| {
            if definition.nodes.iter().any(|node| node.name == name) {
                return Err(Error::Workflow(format!("two jobs with the name `{name}`")));
            }
            if definition.nodes.len() == MOST_NODES {
                return Err(Error::TooMany { job: "workflow", most: MOST_NODES });
            }
            if checked(name).is_err() {
                return Err(Error::Workflow(format!(
                    "invalid name `{}` of a job: expected 1 to 64 letters, digits, `-`, `_`, `.`",
                    name.chars().take(64).collect::<String>(),
                )));
            }
            definition.add(Node::new(name, work?));
            Ok(())
        });
    }
}
