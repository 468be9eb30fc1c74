//! Gathers pushes that come at the same time into one call to the store.
//!
//! The first push goes out at once; those that arrive while it is under way wait for it and go out together. So a lone push pays one
//! round trip and a thousand at once pay a few. Pushes of different tokio runtimes are not gathered together: a runtime that ends takes
//! its own calls along, and nobody else's.
//!
//! Should the store refuse a call of many, each job is pushed alone, so that only the culprit fails.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::store::{Entry, Store};

type Answer = Result<Option<Vec<u8>>, Error>;
type Batch = Vec<(Entry, oneshot::Sender<Answer>)>;

/// A queue, and the runtime of those that push.
type Key = (Arc<str>, tokio::runtime::Id);

/// Pushes of one batch at most.
const BATCH: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Gather {
    store: Arc<dyn Store>,
    /// By queue and runtime: what waits for the call under way. A queue is in here while there is one.
    waiting: Mutex<HashMap<Key, Batch>>,
}

impl Gather {
    pub(crate) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, waiting: Mutex::default() })
    }

    /// Pushes one job. Dropping the future does not take it back.
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
                // A task of its own: whoever pushed may go away, the others still wait.
                tokio::spawn(async move { running.run(vec![(entry, sender)]).await });
            }
        }
        answer.await.unwrap_or_else(|_| Err(Error::store("the runtime shuts down")))
    }
}

/// The calls to the store for one queue and runtime, one after the other.
struct Running {
    gather: Arc<Gather>,
    key: Key,
    is_over: bool,
}

impl Drop for Running {
    /// Its runtime ends while a call is under way: nobody waits for it from now on.
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
            let Some(others) = waiting.get_mut(&self.key).filter(|others| !others.is_empty()) else {
                // Under the lock: who comes later begins anew.
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
