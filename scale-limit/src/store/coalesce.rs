//! Combines charges that arrive at the same time into one script call.
//!
//! The first request is sent at once; requests that arrive while calls are in progress are sent
//! together afterwards. So a single request pays one round trip, and under load many requests share
//! the cost of a call. Two calls may be in progress: while the server works on one, the other is
//! prepared or decoded.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Charged;
use crate::algorithm::Rule;
use crate::error::Error;

/// Maximum number of requests per call, so that no call blocks the server.
const BATCH: usize = 128;
/// Maximum number of calls in progress.
const FLIGHTS: usize = 2;

/// Charges of one request, ready to be sent.
#[derive(Debug)]
pub(super) struct Group {
    /// Redis keys; consecutive charges may share one.
    pub(super) keys: Vec<String>,
    pub(super) charges: Vec<Sent>,
}

/// One charge of a request.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) terms: ChargeKind,
    /// `true` if the key is that of the previous charge.
    pub(super) shares_key: bool,
    /// Holder of the permit, for concurrency limits.
    pub(super) permit: Option<u64>,
    /// Index among the caller's charges.
    pub(super) number: usize,
}

/// Kind of a charge, without its key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ChargeKind {
    pub(super) rule: Rule,
    pub(super) cost: u32,
    pub(super) least: u32,
    pub(super) dry_run: bool,
    pub(super) mode: Mode,
    /// Id of the policy, where several policies share a key.
    pub(super) id: Option<[u8; 8]>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    Charge,
    /// Refund of a charge made that many microseconds ago.
    GiveBack(u64),
    Debit,
}

/// Sender of calls.
#[async_trait]
pub(super) trait Send: std::marker::Send + Sync + 'static {
    /// Sends groups, and returns the rulings on each, within `store_timeout`. Permits that the
    /// caller does not take are released when the answer is dropped: the caller may be gone.
    async fn send(&self, groups: &[Group], store_timeout: Duration) -> Result<Vec<Charged>, Error>;

    /// Handles a call that was not answered and may still be executed: its permits have no holder.
    fn unanswered(&self, groups: &[Group]);
}

type Answer = Result<Charged, Error>;
/// Requests with their charges, their time-outs, and the senders of their answers.
type Batch = Vec<(Group, Duration, oneshot::Sender<Answer>)>;

#[derive(Default)]
struct State {
    flights: usize,
    /// Requests that wait for a call to end.
    waiting: Batch,
}

pub(super) struct Coalescer<S> {
    sender: S,
    state: Mutex<State>,
}

impl<S: Send> Coalescer<S> {
    pub(super) fn new(sender: S) -> Arc<Self> {
        Arc::new(Self { sender, state: Mutex::default() })
    }

    pub(super) fn sender(&self) -> &S {
        &self.sender
    }

    /// Rules on the charges of one request.
    pub(super) async fn rule(self: &Arc<Self>, group: Group, store_timeout: Duration) -> Answer {
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.flights == FLIGHTS {
                state.waiting.push((group, store_timeout, sender));
            } else {
                state.flights += 1;
                let this = Arc::clone(self);
                // Runs in its own task: if this caller is dropped, the other requests still wait.
                tokio::spawn(this.run(vec![(group, store_timeout, sender)]));
            }
        }
        answer.await.unwrap_or_else(|_| Err(Error::Store("the runtime is shutting down".into())))
    }

    /// Makes one call, with the time-out `store_timeout`.
    pub(super) async fn call(
        &self,
        groups: &[Group],
        store_timeout: Duration,
    ) -> Result<Vec<Charged>, Error> {
        let answer =
            tokio::time::timeout(store_timeout, self.sender.send(groups, store_timeout)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Error::Store("the store did not answer in time".into())));
        if let Err(Error::Store(_)) = &answer {
            self.sender.unanswered(groups);
        }
        answer
    }

    /// Sends groups, and returns the rulings on each. A refused call is repeated one group at a
    /// time, so that only the faulty group fails.
    async fn send(&self, groups: &[Group], store_timeout: Duration) -> Vec<Answer> {
        let call = |groups| self.call(groups, store_timeout);
        match call(groups).await {
            Ok(charged) => charged.into_iter().map(Ok).collect(),
            Err(Error::Refused(_)) if groups.len() > 1 => {
                let mut answers = Vec::with_capacity(groups.len());
                for group in groups {
                    let alone = call(std::slice::from_ref(group)).await;
                    answers.push(alone.and_then(|mut charged| {
                        charged.pop().ok_or_else(|| Error::Store("the reply is empty".into()))
                    }));
                }
                answers
            }
            Err(error) => {
                let (text, is_refused) = (error.to_string(), matches!(error, Error::Refused(_)));
                let again = || {
                    if is_refused {
                        Error::Refused(text.clone().into())
                    } else {
                        Error::Store(text.clone().into())
                    }
                };
                groups.iter().map(|_| Err(again())).collect()
            }
        }
    }

    async fn run(self: Arc<Self>, mut batch: Batch) {
        let mut flight = Flight { gather: Arc::clone(&self), ended: false };
        loop {
            // Requests that have timed out are gone.
            batch.retain(|(_, _, sender)| !sender.is_closed());
            if !batch.is_empty() {
                // The longest time-out counts: the other requests leave when theirs has passed.
                let store_timeout = batch
                    .iter()
                    .map(|(_, store_timeout, _)| *store_timeout)
                    .max()
                    .unwrap_or_default();
                let (groups, senders): (Vec<_>, Vec<_>) =
                    batch.into_iter().map(|(group, _, sender)| (group, sender)).unzip();
                for (sender, answer) in
                    senders.into_iter().zip(self.send(&groups, store_timeout).await)
                {
                    let _ = sender.send(answer);
                }
            }
            let mut state = self.state.lock();
            if state.waiting.is_empty() {
                state.flights -= 1;
                flight.ended = true;
                return;
            }
            let rest = if state.waiting.len() > BATCH {
                state.waiting.split_off(BATCH)
            } else {
                Vec::new()
            };
            batch = std::mem::replace(&mut state.waiting, rest);
        }
    }
}

/// A task that makes calls. It may be dropped with its runtime, in the middle of a call.
struct Flight<S: Send> {
    gather: Arc<Coalescer<S>>,
    ended: bool,
}

impl<S: Send> Drop for Flight<S> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut state = self.gather.state.lock();
        state.flights -= 1;
        if state.flights == 0 {
            // No other task sends the waiting requests: they fail, and the next request starts
            // again.
            state.waiting.clear();
        }
    }
}
