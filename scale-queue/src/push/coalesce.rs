//! Coalesces concurrent pushes into one call to the store.
//!
//! The first push is sent at once. Pushes that arrive during that call wait for it and are sent
//! together in the next one. So a single push costs one round trip, and 1,000 concurrent pushes
//! cost a few. Pushes of different tokio runtimes are not coalesced: a runtime that shuts down
//! aborts only its own calls.
//!
//! If the store refuses a call with several jobs, each job is pushed alone, so that only the
//! invalid one fails.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::store::{Entry, Store};

type Answer = Result<Option<Vec<u8>>, Error>;
type Batch = Vec<(Entry, oneshot::Sender<Answer>)>;

/// Queue, and tokio runtime of the callers.
type Key = (Arc<str>, tokio::runtime::Id);

/// Maximum number of pushes in one call.
const BATCH: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Gather {
    store: Arc<dyn Store>,
    /// Jobs that wait for the current call, by queue and runtime. An entry exists while a call is
    /// under way.
    waiting: Mutex<HashMap<Key, Batch>>,
}

impl Gather {
    pub(crate) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, waiting: Mutex::default() })
    }

    /// Pushes one job. Dropping the future does not cancel the push.
    pub(crate) async fn push(self: &Arc<Self>, queue: &str, entry: Entry) -> Answer {
        let (sender, answer) = oneshot::channel();
        {
            let key: Key = (queue.into(), tokio::runtime::Handle::current().id());
            let mut waiting = self.waiting.lock();
            if let Some(others) = waiting.get_mut(&key) {
                others.push((entry, sender));
            } else {
                waiting.insert(key.clone(), Vec::new());
                let running = Running { gather: Arc::clone(self), key, is_over: false };
                // A separate task, because the caller may be dropped while other callers wait.
                tokio::spawn(async move { running.run(vec![(entry, sender)]).await });
            }
        }
        answer.await.unwrap_or_else(|_| Err(Error::store("the runtime shuts down")))
    }
}

/// Runs the calls to the store for one queue and runtime, one after another.
struct Running {
    gather: Arc<Gather>,
    key: Key,
    is_over: bool,
}

impl Drop for Running {
    /// Removes the entry if the runtime shuts down during a call: no caller can wait for it any
    /// more.
    fn drop(&mut self) {
        if !self.is_over {
            self.gather.waiting.lock().remove(&self.key);
        }
    }
}

impl Running {
    async fn run(mut self, mut batch: Batch) {
        let gather = Arc::clone(&self.gather);
        loop {
            let (entries, senders): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            for (sender, answer) in senders.into_iter().zip(self.push(&entries).await) {
                let _ = sender.send(answer);
            }
            let mut waiting = gather.waiting.lock();
            let Some(others) = waiting.get_mut(&self.key).filter(|others| !others.is_empty())
            else {
                // Under the lock: a later push starts a new call.
                waiting.remove(&self.key);
                self.is_over = true;
                return;
            };
            let rest = if others.len() > BATCH { others.split_off(BATCH) } else { Vec::new() };
            batch = std::mem::replace(others, rest);
        }
    }

    async fn push(&self, entries: &[Entry]) -> Vec<Answer> {
        let store = &self.gather.store;
        match store.push(&self.key.0, entries).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) if entries.len() > 1 && error.is_refusal() => {
                let mut answers = Vec::with_capacity(entries.len());
                for entry in entries {
                    let one = store.push(&self.key.0, std::slice::from_ref(entry)).await;
                    answers.push(one.map(|holders| holders.into_iter().next().flatten()));
                }
                answers
            }
            Err(error) => entries.iter().map(|_| Err(error.repeat())).collect(),
        }
    }
}
