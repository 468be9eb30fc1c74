//! Coalesces concurrent pushes into one call to the store. Pushes of different tokio runtimes are
//! not coalesced: a runtime that shuts down aborts only its own calls.
//!
//! If the store refuses a call with several jobs, each job is pushed alone, so that only the
//! invalid one fails.

use std::sync::Arc;

use scale_common::coalesce::{Calls, Coalescer};

use crate::error::Error;
use crate::push::target::Target;
use crate::store::Entry;

type Answer = Result<Option<Vec<u8>>, Error>;

/// Pushes to a store.
pub(crate) struct Pushes(Target);

impl Pushes {
    pub(crate) fn to(target: Target) -> Arc<Coalescer<Self>> {
        Coalescer::new(Self(target))
    }
}

impl Calls for Pushes {
    /// Queue, tokio runtime of the callers, and whether the pushes may wait for a transaction of
    /// the application: then others do not wait with them.
    type Key = (Arc<str>, tokio::runtime::Id, bool);
    type Request = Entry;
    type Answer = Answer;
    const AT_ONCE: usize = 1;
    const BATCH: usize = 1_000;
    const DROPS_ABANDONED: bool = false;

    async fn call(&self, (queue, ..): &Self::Key, entries: Vec<Entry>) -> Vec<Answer> {
        match self.0.push(queue, &entries).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) if entries.len() > 1 && error.is_refusal() => {
                let mut answers = Vec::with_capacity(entries.len());
                for entry in &entries {
                    let one = self.0.push(queue, std::slice::from_ref(entry)).await;
                    answers.push(one.map(|holders| holders.into_iter().next().flatten()));
                }
                answers
            }
            Err(error) => entries.iter().map(|_| Err(error.repeat())).collect(),
        }
    }
}

/// Pushes one job. Dropping the future does not cancel the push.
pub(crate) async fn push(
    pushes: &Arc<Coalescer<Pushes>>,
    queue: &str,
    entry: Entry,
    may_wait: bool,
) -> Answer {
    let key = (queue.into(), tokio::runtime::Handle::current().id(), may_wait);
    let answer = pushes.send(key, entry).await;
    answer.unwrap_or_else(|| Err(Error::store("the runtime shuts down")))
}
