//! Start of a batch or a workflow: its record, the jobs that wait for others, and the jobs that are
//! pushed at once.
//!
//! Each step may be repeated: a record that exists is not changed, and each job has a key that
//! rejects a second push.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::definition::{Definition, HELD, Member, Node, Plan, Work, nested_id, once_key};
use crate::chain::Follower;
use crate::error::Error;
use crate::format::{Link, LinkOptions, NodeOptions, Place};
use crate::result::output_key;
use crate::store::{Entry, NewBatch, Store};

/// Number of calls to the store at a time.
const AT_ONCE: usize = 16;

/// Jobs to be pushed, by queue.
#[derive(Debug, Default)]
pub(super) struct Roots(pub(super) Vec<(String, Vec<Entry>)>);

impl Roots {
    fn add(&mut self, (queue, entry): (String, Entry)) {
        match self.0.iter_mut().find(|(known, _)| *known == queue) {
            Some((_, entries)) => entries.push(entry),
            None => self.0.push((queue, vec![entry])),
        }
    }

    pub(super) fn extend(&mut self, others: Self) {
        for (queue, entries) in others.0 {
            match self.0.iter_mut().find(|(known, _)| *known == queue) {
                Some((_, known)) => known.extend(entries),
                None => self.0.push((queue, entries)),
            }
        }
    }
}

/// A node as it is stored: those of a workflow, until they are forgotten.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HeldNode {
    pub(super) node: Node,
    options: NodeOptions,
    metadata: Vec<(String, String)>,
    /// True if the jobs that follow the batch have options.
    needs_options: bool,
    /// Key that rejects a second push, and its life.
    once: String,
    life: Duration,
}

impl HeldNode {
    /// Creates a node that was added to a running batch: it follows no other, and none follows it.
    pub(super) fn grown(
        node: Node,
        once: String,
        metadata: Vec<(String, String)>,
        needs_options: bool,
    ) -> Self {
        let options = NodeOptions::default();
        Self { node, options, metadata, needs_options, once, life: HELD }
    }

    /// Returns the numbers of the nodes that follow, each with the number of nodes that it follows.
    pub(super) fn followers(&self) -> &[(u32, u32)] {
        &self.options.followers
    }
}

fn held_key(id: &str, number: u32) -> String {
    format!("node:{id}:{number}")
}

/// Returns a node of a workflow.
pub(super) async fn held(
    store: &dyn Store,
    id: &str,
    number: u32,
) -> Result<Option<HeldNode>, Error> {
    let note = store.read_note(&held_key(id, number)).await?;
    note.map(|note| rmp_serde::from_slice(&note).map_err(Error::store)).transpose()
}

/// Stores the record of a batch and its jobs that wait for others. Returns the jobs that are to be
/// pushed at once: none if the batch was followed already.
///
/// # Errors
/// [`Error::Workflow`] if a batch of this name exists that has other jobs.
pub(super) fn prepare(
    store: &dyn Store,
    id: String,
    definition: Definition,
    parent: Option<Member>,
) -> BoxFuture<'_, Result<Roots, Error>> {
    Box::pin(async move {
        let mut roots = Roots::default();
        let is_part = parent.is_some();
        let outer = parent.as_ref().map(|parent| parent.place.clone());
        let plan = definition.plan(parent);
        let needs_options = plan.needs_options();
        let is_workflow = !plan.nodes().is_empty();
        let life = definition.life(is_part);
        let is_known = store.batch(&id).await?.is_some();
        if is_workflow && !is_known {
            // Left by a workflow of the same name that never ended.
            store.forget_notes(&output_keys(&id, &plan)).await?;
        }
        let bytes = rmp_serde::to_vec(&plan).map_err(Error::store)?;
        let total = u32::try_from(definition.nodes.len()).unwrap_or(u32::MAX);
        let batch = NewBatch { total, lenient: definition.lenient, plan: &bytes, life };
        store.open_batch(&id, batch).await?;
        // The first push of a name counts: its record has the ids of the jobs.
        let Some((tally, stored)) = store.batch(&id).await? else { return Ok(roots) };
        let stored = Plan::read(&stored)?;
        if tally.total < total || !stored.has_same_nodes(&plan) {
            return Err(Error::Workflow(format!("`{id}` exists already, and has other jobs")));
        }
        if tally.followed {
            return Ok(roots);
        }
        if let Some(outer) = outer
            && let Some((tally, _)) = store.batch(&outer.id).await?
            && tally.cancelled
        {
            store.cancel_batch(&id, tally.by_death).await?;
        }
        let followers = definition.followers();
        let names: Vec<_> = definition.nodes.iter().map(|node| node.name.clone()).collect();
        let Definition { nodes, metadata, .. } = definition;
        let (mut notes, mut starting) = (Vec::new(), Vec::new());
        for ((number, mut node), followers) in (0..).zip(nodes).zip(followers) {
            if let Some(stored) = stored.nodes().get(number as usize) {
                node.id = stored.id;
            }
            let after = node.after.iter();
            let after = after.filter_map(|n| Some((names.get(*n as usize)?.clone(), *n)));
            let options = NodeOptions { after: after.collect(), followers };
            let once = once_key(&id, number);
            let metadata = metadata.clone();
            let node = HeldNode { node, options, metadata, needs_options, once, life };
            if is_workflow {
                let note = rmp_serde::to_vec(&node).map_err(Error::store)?;
                notes.push((held_key(&id, number), note));
            }
            if node.node.after.is_empty() {
                starting.push((number, node));
            }
        }
        // Before any job that they follow may end.
        stream::iter(notes)
            .map(|(key, note)| async move { store.put_note(&key, &note, life).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        for (number, node) in starting {
            roots.extend(start_node(store, &id, number, node).await?);
        }
        Ok(roots)
    })
}

/// Returns the keys of the notes of a workflow.
pub(super) fn note_keys(id: &str, plan: &Plan) -> Vec<String> {
    let numbers = 0..plan.nodes().len() as u32;
    let mut keys: Vec<_> = numbers.map(|number| held_key(id, number)).collect();
    keys.extend(output_keys(id, plan));
    keys
}

fn output_keys(id: &str, plan: &Plan) -> Vec<String> {
    let key = |number| output_key(&Place { id: id.to_owned(), number });
    (0..plan.nodes().len() as u32).map(key).collect()
}

/// Returns the jobs with which a node begins.
pub(super) async fn start_node(
    store: &dyn Store,
    id: &str,
    number: u32,
    held: HeldNode,
) -> Result<Roots, Error> {
    let HeldNode { node, options, metadata, needs_options, once, life } = held;
    let Node { name, id: job, work, .. } = node;
    let place = Place { id: id.to_owned(), number };
    let mut roots = Roots::default();
    let (link, then) = match work {
        Work::Batch(mut definition) => {
            definition.metadata = metadata;
            let parent = Member { place, followers: options.followers };
            return prepare(store, nested_id(id, number), *definition, Some(parent)).await;
        }
        Work::Job(link) => (Some(link), Vec::new()),
        Work::Chain(mut links) => {
            let rest = links.split_off(links.len().min(1));
            (links.pop(), rest)
        }
    };
    if let Some(link) = link {
        let is_named = !name.is_empty() || !then.is_empty();
        roots.add(with_options(link, needs_options).entry(Follower {
            id: job,
            pushed_ms: store.now_ms(),
            then,
            metadata,
            once: Some((once, life)),
            place: Some(place),
            node: is_named.then_some(options),
        }));
    }
    Ok(roots)
}

/// Marks a job after which jobs with options may follow: only workers that know those may end it.
fn with_options(mut link: Link, needs_options: bool) -> Link {
    if needs_options {
        link.more.get_or_insert_with(Box::<LinkOptions>::default).options.has_followers = true;
    }
    link
}
