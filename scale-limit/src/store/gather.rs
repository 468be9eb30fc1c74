//! Gathers charges that come at the same time into one script call.
//!
//! The first goes out at once; those that arrive while it is under way go out together after it. So a lone request pays one round trip,
//! and under load a call's own cost is shared by many.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::gcra::Ruling;

/// Requests of one call at most, so that none holds the server up.
const BATCH: usize = 128;

/// The charges of one request, ready to be sent.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) keys: Vec<String>,
    /// For each key.
    pub(super) terms: Vec<Terms>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Microseconds for one unit.
    pub(super) interval: f64,
    pub(super) burst: u32,
    pub(super) cost: i64,
    pub(super) dry_run: bool,
}

/// Who sends them.
#[async_trait]
pub(super) trait Send: std::marker::Send + Sync + 'static {
    /// Rulings for each group.
    async fn send(&self, groups: &[Group]) -> Result<Vec<Vec<Ruling>>, Error>;
}

type Answer = Result<Vec<Ruling>, Error>;
type Waiting = Vec<(Group, oneshot::Sender<Answer>)>;

pub(super) struct Gather<S> {
    sender: S,
    /// What waits for the call under way; `None` while there is none.
    waiting: Mutex<Option<Waiting>>,
}

impl<S: Send> Gather<S> {
    pub(super) fn new(sender: S) -> Arc<Self> {
        Arc::new(Self { sender, waiting: Mutex::new(None) })
    }

    pub(super) fn sender(&self) -> &S {
        &self.sender
    }

    /// Rules on one request's charges.
    pub(super) async fn rule(self: &Arc<Self>, group: Group, patience: Duration) -> Answer {
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if let Some(others) = &mut *waiting {
                others.push((group, sender));
            } else {
                *waiting = Some(Vec::new());
                let this = Arc::clone(self);
                // A task of its own: who asked may go away, the others still wait.
                tokio::spawn(async move { this.run(vec![(group, sender)], patience).await });
            }
        }
        answer.await.unwrap_or_else(|_| Err(Error::Store("the runtime shuts down".into())))
    }

    async fn run(&self, mut batch: Waiting, patience: Duration) {
        loop {
            // Who has waited for longer than that is gone.
            batch.retain(|(_, sender)| !sender.is_closed());
            let (groups, senders): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let answer = match tokio::time::timeout(patience, self.sender.send(&groups)).await {
                Ok(answer) => answer,
                Err(_) => Err(Error::Store("no answer in time".into())),
            };
            match answer {
                Ok(rulings) => {
                    for (sender, rulings) in senders.into_iter().zip(rulings) {
                        let _ = sender.send(Ok(rulings));
                    }
                }
                Err(error) => {
                    for sender in senders {
                        let _ = sender.send(Err(Error::Store(error.to_string().into())));
                    }
                }
            }
            let mut waiting = self.waiting.lock();
            let Some(others) = waiting.as_mut().filter(|others| !others.is_empty()) else {
                *waiting = None;
                return;
            };
            let rest = if others.len() > BATCH { others.split_off(BATCH) } else { Vec::new() };
            batch = std::mem::replace(others, rest);
        }
    }
}
