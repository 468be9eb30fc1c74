//! End of a job of a batch or a workflow: counts it, and pushes the jobs that follow from it.
//!
//! Ends are only added. Of two jobs that end at the same time, the one that is counted later finds
//! the end of the other, and pushes what follows both; if both do so, a key rejects the second
//! push.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::definition::{HELD, Member, Plan, once_key};
use super::start::{Roots, held, note_keys, start_node};
use crate::chain::Follower;
use crate::error::Error;
use crate::format::{Place, id_of};
use crate::job::JobId;
use crate::queue::push::count_pushed;
use crate::store::{End, Store, Tally};

/// Time for which a completed batch is listed.
const LISTED: Duration = Duration::from_hours(24);
/// Number of nodes that are read at a time.
const AT_ONCE: usize = 64;

/// Returns whether the batch of a job that has not begun was cancelled.
pub(crate) async fn is_cancelled(store: &dyn Store, place: &Place) -> bool {
    // If the store does not answer, the job runs: that is what the pusher asked for.
    store.is_cancelled(&place.id, place.number).await.unwrap_or(false)
}

/// Counts the end of a job, and pushes the jobs that follow from it. Must be called before the job
/// is acknowledged. Returns the ids of the pushed jobs.
pub(crate) async fn count(
    store: &dyn Store,
    member: &Member,
    end: End,
) -> Result<Vec<JobId>, Error> {
    let (mut pushed, mut over) = (Vec::new(), Vec::new());
    let mut next = Some((member.clone(), end));
    while let Some((member, end)) = next.take() {
        let Some(tally) = store.mark(&member.place.id, member.place.number, end).await? else {
            break;
        };
        if tally.followed {
            // Concluded by a call that may have failed, or died, before it was through.
            if let Some((_, plan)) = store.batch(&member.place.id).await?
                && let Ok(plan) = Plan::read(&plan)
            {
                forget_keys(store, &member.place.id, tally, &plan).await?;
            }
            break;
        }
        start_followers(store, &member, tally, &mut pushed).await?;
        let all_done = tally.done >= tally.total;
        if !all_done && tally.dead == 0 {
            break;
        }
        let Place { id, .. } = member.place;
        let Some((_, plan)) = store.batch(&id).await? else { break };
        let plan = match Plan::read(&plan) {
            Ok(plan) => plan,
            Err(error) => {
                tracing::error!(
                    batch = id, %error,
                    "the jobs that follow a batch cannot be read; they are not pushed",
                );
                break;
            }
        };
        if end == End::Dead && tally.cancelled {
            cancel_nested(store, &plan, &id, tally.by_death).await?;
        }
        let is_over =
            tally.done + tally.dead + stuck(store, &plan, &id, tally).await? >= tally.total;
        push_followers(store, &plan, &id, tally, is_over, &mut pushed).await?;
        // The outer batch is told first: if this process dies in between, it is told again.
        next = plan.more.as_ref().and_then(|more| {
            let end = match () {
                () if all_done && was_skipped(tally) => End::Skipped,
                () if all_done => End::Done,
                () if is_over => End::Dead,
                () => return None,
            };
            Some((more.parent.clone()?, end))
        });
        if all_done {
            over.push((id, tally, plan));
        }
    }
    for (id, tally, plan) in over.into_iter().rev() {
        store.conclude_batch(&id, LISTED).await?;
        forget_keys(store, &id, tally, &plan).await?;
    }
    Ok(pushed)
}

/// Returns whether jobs were skipped, so that not all work of the batch was done.
fn was_skipped(tally: Tally) -> bool {
    tally.skipped || tally.cancelled && !tally.by_death
}

/// Starts the jobs of the workflow that waited for this one, if all others are done that they wait
/// for.
async fn start_followers(
    store: &dyn Store,
    member: &Member,
    tally: Tally,
    pushed: &mut Vec<JobId>,
) -> Result<(), Error> {
    let id = &member.place.id;
    // The first look costs no call: a job that waits for more jobs than have ended is not due.
    let ended = tally.done + tally.dead;
    let may_start = member.followers.iter().filter(|(_, waits_for)| *waits_for <= ended);
    let may_start: Vec<_> = may_start.map(|(number, _)| *number).collect();
    if may_start.is_empty() {
        return Ok(());
    }
    let Some((_, plan)) = store.batch(id).await? else { return Ok(()) };
    let plan = Plan::read(&plan)?;
    let ends: HashMap<u32, End> =
        store.ends(id, plan.nodes().len() as u32).await?.into_iter().collect();
    let end_of = |number: u32| ends.get(&number).copied();
    let is_due = |number: &u32| {
        let node = plan.nodes().get(*number as usize);
        // One that has ended is done, or was cancelled before it began.
        end_of(*number).is_none() && node.is_some_and(|node| node.is_due(end_of))
    };
    let due: Vec<_> = may_start.into_iter().filter(is_due).collect();
    let start = async |number: u32| {
        let Some(held) = held(store, id, number).await? else {
            tracing::error!(
                workflow = id,
                number,
                "a job of a workflow is not found; the jobs that follow it are not pushed",
            );
            return Ok(Roots::default());
        };
        start_node(store, id, number, held).await
    };
    let mut starts = FuturesUnordered::new();
    let mut roots = Roots::default();
    for number in due {
        if starts.len() == AT_ONCE
            && let Some(started) = starts.next().await
        {
            roots.extend(started?);
        }
        starts.push(start(number));
    }
    while let Some(started) = starts.next().await {
        roots.extend(started?);
    }
    drop(starts);
    push(store, roots, pushed).await
}

/// Pushes jobs, and adds the ids of those that are new.
pub(super) async fn push(
    store: &dyn Store,
    roots: Roots,
    pushed: &mut Vec<JobId>,
) -> Result<(), Error> {
    for (queue, entries) in roots.0 {
        for thousand in entries.chunks(1_000) {
            let holders = store.push(&queue, thousand).await?;
            let new = thousand.iter().zip(&holders).filter(|(_, holder)| holder.is_none());
            let new: Vec<_> = new.map(|(entry, _)| id_of(&entry.bytes)).collect();
            count_pushed(&queue, new.len());
            pushed.extend(new);
        }
    }
    Ok(())
}

/// Returns the number of nodes that cannot begin, because they follow a dead one.
async fn stuck(store: &dyn Store, plan: &Plan, id: &str, tally: Tally) -> Result<u32, Error> {
    let nodes = plan.nodes();
    if nodes.is_empty() || tally.dead == 0 {
        return Ok(0);
    }
    let ends = store.ends(id, nodes.len() as u32).await?;
    let is_stuck = stuck_nodes(plan, &ends);
    Ok(is_stuck.into_iter().filter(|stuck| *stuck).count() as u32)
}

/// Returns for each node of a workflow whether it cannot begin, because it follows a dead one.
pub(super) fn stuck_nodes(plan: &Plan, ends: &[(u32, End)]) -> Vec<bool> {
    let nodes = plan.nodes();
    let mut end_of = vec![None; nodes.len()];
    for (number, end) in ends {
        if let Some(known) = end_of.get_mut(*number as usize) {
            *known = Some(*end);
        }
    }
    let mut stuck = vec![false; nodes.len()];
    for (number, node) in nodes.iter().enumerate() {
        let is_blocked = |before: &u32| {
            let before = *before as usize;
            // A stuck node has no end, so even a node that follows dead ones waits for it.
            stuck[before] || end_of[before] == Some(End::Dead) && !node.even_if_dead
        };
        stuck[number] = end_of[number].is_none() && node.after.iter().any(is_blocked);
    }
    stuck
}

/// Cancels the batches that are parts of a cancelled one.
pub(super) async fn cancel_nested(
    store: &dyn Store,
    plan: &Plan,
    id: &str,
    by_death: bool,
) -> Result<(), Error> {
    let mut nested = plan.nested(id);
    while let Some(id) = nested.pop() {
        // One that has not begun is cancelled when it begins.
        if store.cancel_batch(&id, by_death).await?
            && let Some((_, plan)) = store.batch(&id).await?
        {
            nested.extend(Plan::read(&plan)?.nested(&id));
        }
    }
    Ok(())
}

/// Pushes the jobs that follow the batch, if they are due.
async fn push_followers(
    store: &dyn Store,
    plan: &Plan,
    id: &str,
    tally: Tally,
    is_over: bool,
    pushed: &mut Vec<JobId>,
) -> Result<(), Error> {
    let all_done = tally.done >= tally.total;
    let metadata = plan.more.as_ref().map_or(&[][..], |more| &more.metadata);
    // After a death others may have been skipped: then not all jobs were done, even if none is dead
    // now.
    for (due, word, link) in [
        (all_done && !tally.skipped, "then", &plan.then),
        (tally.dead > 0, "catch", &plan.catch),
        (is_over, "finally", &plan.finally),
    ] {
        if let Some(link) = link.as_ref().filter(|_| due) {
            let root = link.clone().entry(Follower {
                id: JobId::new(),
                pushed_ms: store.now_ms(),
                then: Vec::new(),
                metadata: metadata.to_vec(),
                // Kept as long as any batch may last; the end of the batch shortens it.
                once: Some((once_key(id, word), HELD)),
                place: None,
                node: None,
            });
            push(store, Roots(vec![(root.0, vec![root.1])]), pushed).await?;
        }
    }
    Ok(())
}

/// Forgets the keys that prevent duplicates: nothing follows from a concluded batch.
async fn forget_keys(store: &dyn Store, id: &str, tally: Tally, plan: &Plan) -> Result<(), Error> {
    if !plan.nodes().is_empty() {
        store.forget_notes(&note_keys(id, plan)).await?;
    }
    for (word, link) in [("then", &plan.then), ("catch", &plan.catch), ("finally", &plan.finally)] {
        if let Some(link) = link {
            store.expire_once(&link.queue, &[once_key(id, word)]).await?;
        }
    }
    for queue in &plan.queues {
        for from in (0..tally.total).step_by(1_000) {
            let to = tally.total.min(from + 1_000);
            let keys: Vec<_> = (from..to).map(|number| once_key(id, number)).collect();
            store.expire_once(queue, &keys).await?;
        }
    }
    Ok(())
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::Job;
    use crate::store::ONCE_AFTER;
    use crate::testing::FakeQueue;

    #[derive(Serialize, Deserialize)]
    struct Page;

    impl Job for Page {
        const NAME: &'static str = "page";
    }

    /// A worker dies, or its store fails, right after it has concluded a batch.
    #[tokio::test]
    async fn keys_are_forgotten_by_the_second_call() -> Result<(), Error> {
        let queue = FakeQueue::new();
        let store = &**queue.store();
        let id = queue.batch().named("pages").job(Page).then(Page).push().await?;
        let place = Place { id: id.clone(), number: 0 };
        let tally = store.mark(&id, 0, End::Done).await?.unwrap();
        let (_, plan) = store.batch(&id).await?.unwrap();
        let plan = Plan::read(&plan)?;
        let follow = async || {
            let mut pushed = Vec::new();
            push_followers(store, &plan, &id, tally, true, &mut pushed).await?;
            Ok::<_, Error>(pushed.len())
        };
        assert_eq!(follow().await?, 1);
        store.conclude_batch(&id, LISTED).await?;
        let member = Member { place, followers: Vec::new() };
        assert!(count(store, &member, End::Done).await?.is_empty());
        assert_eq!(follow().await?, 0, "late, by a worker that was cut off");
        queue.advance(ONCE_AFTER);
        assert_eq!(follow().await?, 1, "the next batch of this name");
        Ok(())
    }
}
