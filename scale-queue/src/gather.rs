//! Gathers pushes that come at the same time into one call to the store.
//!
//! The first push goes out at once; those that arrive while it is under way wait for it and go out together. So a lone push pays one
//! round trip and a thousand at once pay a few.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::store::{Entry, Store};

type Answer = Result<Option<Vec<u8>>, Error>;
type Batch = Vec<(Entry, oneshot::Sender<Answer>)>;

/// Pushes of one batch at most.
const BATCH: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Gather {
    store: Arc<dyn Store>,
    /// By queue: what waits for the call under way. A queue is in here while there is one.
    waiting: Mutex<HashMap<Arc<str>, Batch>>,
}

impl Gather {
    pub(crate) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, waiting: Mutex::default() })
    }

    /// Pushes one job. Dropping the future does not take it back.
    pub(crate) async fn push(self: &Arc<Self>, queue: &str, entry: Entry) -> Answer {
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if let Some(others) = waiting.get_mut(queue) {
                others.push((entry, sender));
            } else {
                let queue: Arc<str> = queue.into();
                waiting.insert(Arc::clone(&queue), Vec::new());
                let gather = Arc::clone(self);
                // A task of its own: whoever pushed may go away, the others still wait.
                tokio::spawn(async move { gather.run(queue, vec![(entry, sender)]).await });
            }
        }
        answer.await.unwrap_or_else(|_| Err(Error::store("the runtime shuts down")))
    }

    async fn run(&self, queue: Arc<str>, mut batch: Batch) {
        loop {
            let (entries, senders): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            match self.store.push(&queue, &entries).await {
                Ok(answers) => {
                    for (sender, answer) in senders.into_iter().zip(answers) {
                        let _ = sender.send(Ok(answer));
                    }
                }
                Err(error) => {
                    for sender in senders {
                        let _ = sender.send(Err(error.repeat()));
                    }
                }
            }
            let mut waiting = self.waiting.lock();
            let Some(others) = waiting.get_mut(&queue).filter(|others| !others.is_empty()) else {
                waiting.remove(&queue);
                return;
            };
            let rest = if others.len() > BATCH { others.split_off(BATCH) } else { Vec::new() };
            batch = std::mem::replace(others, rest);
        }
    }
}
