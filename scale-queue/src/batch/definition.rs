//! Jobs of a batch or a workflow: as they are defined, as they wait in the store, and what follows
//! them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::format::{Envelope, Link, MAX_SIZE, Place};
use crate::job::JobId;
use crate::store::End;

/// Time a batch is remembered after its last change.
const LIFE: Duration = Duration::from_hours(7 * 24);
/// The same if jobs of it may wait for others.
pub(crate) const HELD: Duration = Duration::from_hours(90 * 24);
/// Name of the job that starts a batch after the commit of a transaction.
pub(crate) const START: &str = "scale-queue:start";
/// Maximum number of batches inside each other.
pub(super) const DEEPEST: usize = 8;

/// A batch or a workflow that is not pushed yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub(super) nodes: Vec<Node>,
    /// True if the other jobs still run after the first death.
    pub(super) lenient: bool,
    pub(super) then: Option<Link>,
    pub(super) catch: Option<Link>,
    pub(super) finally: Option<Link>,
    /// Metadata of all jobs.
    pub(super) metadata: Vec<(String, String)>,
}

/// One of the jobs that are counted together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Node {
    /// Name in the workflow; empty in a batch.
    pub(super) name: String,
    /// Numbers of the nodes that this one follows; each is less than its own.
    pub(super) after: Vec<u32>,
    /// True if it also follows dead nodes.
    pub(super) even_if_dead: bool,
    pub(super) id: JobId,
    pub(super) work: Work,
}

/// Work of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Work {
    Job(Link),
    Chain(Vec<Link>),
    Batch(Box<Definition>),
}

impl Work {
    /// Returns the jobs that are pushed first.
    pub(super) fn first(&self) -> Option<&Link> {
        match self {
            Self::Job(link) => Some(link),
            Self::Chain(links) => links.first(),
            Self::Batch(definition) => definition.first(),
        }
    }

    /// Returns the queues of all its jobs.
    pub(super) fn queues(&self) -> BTreeSet<String> {
        match self {
            Self::Job(link) => BTreeSet::from([link.queue.clone()]),
            Self::Chain(links) => links.iter().map(|link| link.queue.clone()).collect(),
            Self::Batch(definition) => {
                definition.nodes.iter().flat_map(|node| node.work.queues()).collect()
            }
        }
    }

    /// Returns the names of the jobs, or the number of those of a batch.
    fn shown(&self) -> String {
        match self {
            Self::Job(link) => link.name.clone(),
            Self::Chain(links) => {
                let names: Vec<_> = links.iter().map(|link| &*link.name).collect();
                names.join(" → ")
            }
            Self::Batch(definition) => format!("{} jobs", definition.nodes.len()),
        }
    }
}

impl Node {
    pub(super) fn new(name: &str, work: Work) -> Self {
        let (after, name) = (Vec::new(), name.to_owned());
        Self { name, after, even_if_dead: false, id: JobId::new(), work }
    }
}

impl Definition {
    pub(super) fn add(&mut self, node: Node) {
        self.nodes.push(node);
    }

    /// Returns the first job that is pushed.
    pub(super) fn first(&self) -> Option<&Link> {
        self.nodes.iter().find(|node| node.after.is_empty())?.work.first()
    }

    /// Checks a definition that becomes a part of another one.
    pub(super) fn nested(self) -> Result<Work, Error> {
        if self.nodes.is_empty() {
            return Err(Error::Empty);
        }
        if self.depth() >= DEEPEST {
            return Err(Error::Workflow(format!(
                "at most {DEEPEST} batches and workflows are allowed inside each other",
            )));
        }
        // Its jobs wait together in one record.
        let size = rmp_serde::to_vec(&self).map_err(Error::store)?.len();
        if size > MAX_SIZE {
            return Err(Error::TooLarge { job: "batch", size });
        }
        Ok(Work::Batch(Box::new(self)))
    }

    /// Returns the time for which the record of the batch is kept after its last change.
    pub(super) fn life(&self, is_part: bool) -> Duration {
        let mut longest = Duration::ZERO;
        let mut waits_for_others = is_part;
        for node in &self.nodes {
            waits_for_others |= !node.name.is_empty() || !matches!(node.work, Work::Job(_));
            if let Some(first) = node.work.first() {
                longest = longest.max(Duration::from_millis(first.delay_ms));
            }
        }
        longest.saturating_add(if waits_for_others { HELD } else { LIFE })
    }

    fn depth(&self) -> usize {
        let nested = self.nodes.iter().filter_map(|node| match &node.work {
            Work::Batch(definition) => Some(definition.depth()),
            Work::Job(_) | Work::Chain(_) => None,
        });
        nested.max().unwrap_or_default() + 1
    }

    /// Returns the numbers of the nodes that follow each node, with the number of nodes that each
    /// of those follows.
    pub(super) fn followers(&self) -> Vec<Vec<(u32, u32)>> {
        let mut followers = vec![Vec::new(); self.nodes.len()];
        for (number, node) in (0..).zip(&self.nodes) {
            for before in &node.after {
                if let Some(followers) = followers.get_mut(*before as usize) {
                    followers.push((number, node.after.len() as u32));
                }
            }
        }
        followers
    }

    pub(super) fn plan(&self, parent: Option<Member>) -> Plan {
        let is_workflow = self.nodes.iter().any(|node| !node.name.is_empty());
        let has_followers = self.then.is_some() || self.catch.is_some() || self.finally.is_some();
        let (mut queues, mut nested) = (Vec::<String>::new(), Vec::new());
        for (number, node) in (0..).zip(&self.nodes) {
            match &node.work {
                Work::Batch(_) => nested.push(number),
                work => {
                    let queue = work.first().map(|link| &link.queue);
                    queues.extend(queue.filter(|queue| !queues.contains(queue)).cloned());
                }
            }
        }
        let node = |node: &Node| PlanNode {
            name: node.name.clone(),
            job: node.work.shown(),
            after: node.after.clone(),
            even_if_dead: node.even_if_dead,
            id: node.id,
        };
        let more = More {
            metadata: if has_followers { self.metadata.clone() } else { Vec::new() },
            parent,
            nodes: if is_workflow { self.nodes.iter().map(node).collect() } else { Vec::new() },
            nested,
        };
        Plan {
            then: self.then.clone(),
            catch: self.catch.clone(),
            finally: self.finally.clone(),
            queues,
            more: (more != More::default()).then(|| Box::new(more)),
        }
    }
}

/// Part of a batch's record that only this module reads.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) then: Option<Link>,
    pub(super) catch: Option<Link>,
    pub(super) finally: Option<Link>,
    /// Queues of the batch's jobs.
    #[serde(default)]
    pub(super) queues: Vec<String>,
    /// Older versions cannot read it: see `needs_options`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) more: Option<Box<More>>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct More {
    /// Metadata of the jobs that follow the batch.
    pub(super) metadata: Vec<(String, String)>,
    /// Batch whose part this one is.
    pub(super) parent: Option<Member>,
    /// Nodes of a workflow.
    pub(super) nodes: Vec<PlanNode>,
    /// Numbers of the nodes that are batches.
    pub(super) nested: Vec<u32>,
}

/// A node of a workflow, without its work.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlanNode {
    pub(super) name: String,
    /// Its job, for display.
    pub(super) job: String,
    pub(super) after: Vec<u32>,
    pub(super) even_if_dead: bool,
    /// Id of its first job.
    pub(super) id: JobId,
}

impl PlanNode {
    /// Returns whether the nodes have ended that this one follows.
    pub(super) fn is_due(&self, end_of: impl Fn(u32) -> Option<End>) -> bool {
        self.after.iter().all(|before| match end_of(*before) {
            Some(End::Dead) => self.even_if_dead,
            Some(End::Done | End::Skipped) => true,
            None => false,
        })
    }

    /// Returns whether this is the same node, pushed another time.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.name, &self.job, &self.after, self.even_if_dead)
            == (&other.name, &other.job, &other.after, other.even_if_dead)
    }
}

impl Plan {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Error> {
        rmp_serde::from_slice(bytes).map_err(Error::store)
    }

    /// Returns whether only workers of version 3 of the job format can read the plan.
    pub(super) fn needs_options(&self) -> bool {
        let links = [&self.then, &self.catch, &self.finally];
        self.more.is_some() || links.into_iter().flatten().any(|link| link.more.is_some())
    }

    pub(super) fn nodes(&self) -> &[PlanNode] {
        self.more.as_ref().map_or(&[], |more| &more.nodes)
    }

    /// Returns whether both have the same nodes.
    pub(super) fn has_same_nodes(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.nodes(), other.nodes());
        ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| a.is_same(b))
    }

    /// Returns the ids of the batches that are parts of the batch with this id.
    pub(super) fn nested(&self, id: &str) -> Vec<String> {
        let nested = self.more.as_ref().map_or(&[][..], |more| &more.nested);
        nested.iter().map(|number| nested_id(id, *number)).collect()
    }
}

/// Position of a job in its batch, and the jobs that follow it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) place: Place,
    /// Numbers of the jobs that follow, each with the number of jobs that it follows.
    pub(crate) followers: Vec<(u32, u32)>,
}

impl Member {
    /// Returns the position of a job that belongs to a batch.
    pub(crate) fn of(job: &Envelope) -> Option<Self> {
        let place = job.body.extra.batch.clone()?;
        let node = job.body.options.node.as_ref();
        Some(Self { place, followers: node.map_or_else(Vec::new, |node| node.followers.clone()) })
    }
}

/// Returns the id of a batch that is a part of another one.
pub(super) fn nested_id(id: &str, number: u32) -> String {
    // No name that an application gives to a batch has a colon.
    format!("{id}:{number}")
}

/// Returns the key that rejects a second push of a job of the batch.
pub(super) fn once_key(id: &str, what: impl std::fmt::Display) -> String {
    format!("batch:{id}:{what}")
}
