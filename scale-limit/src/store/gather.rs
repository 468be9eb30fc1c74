//! Gathers charges that come at the same time into one script call.
//!
//! The first goes out at once; those that arrive while calls are under way go out together after them. So a lone request pays one round
//! trip, and under load a call's own cost is shared by many. Two calls may be under way: while the server works on one, the other is made
//! ready or read.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Charged;
use crate::error::Error;
use crate::rule::Rule;

/// Requests of one call at most, so that none holds the server up.
const BATCH: usize = 128;
/// Calls under way at most.
const FLIGHTS: usize = 2;

/// The charges of one request, ready to be sent.
#[derive(Debug)]
pub(super) struct Group {
    /// Charges that come one after the other may share one.
    pub(super) keys: Vec<String>,
    pub(super) charges: Vec<Sent>,
}

/// One charge of a request.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) terms: Terms,
    /// The key is that of the charge before.
    pub(super) shares_key: bool,
    /// Who is to hold a place, where places are counted.
    pub(super) permit: Option<u64>,
    /// Its number among the charges that were asked for.
    pub(super) number: usize,
}

/// What is asked for a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Terms {
    pub(super) rule: Rule,
    pub(super) cost: u32,
    pub(super) least: u32,
    pub(super) dry_run: bool,
    pub(super) mode: Mode,
    /// The policy's, where several policies share a key.
    pub(super) id: Option<[u8; 8]>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    Charge,
    /// Charged that many microseconds ago.
    GiveBack(u64),
    Debit,
}

/// Who sends them.
#[async_trait]
pub(super) trait Send: std::marker::Send + Sync + 'static {
    /// What is ruled for each group, within `patience`. Places that nobody takes out of the answer are freed by its drop: whoever asked may
    /// be gone.
    async fn send(&self, groups: &[Group], patience: Duration) -> Result<Vec<Charged>, Error>;

    /// A call has not been answered, and may be carried out yet: places that it asked for are nobody's.
    fn unanswered(&self, groups: &[Group]);
}

type Answer = Result<Charged, Error>;
/// A request's charges, for how long it waits, and who waits.
type Batch = Vec<(Group, Duration, oneshot::Sender<Answer>)>;

#[derive(Default)]
struct State {
    flights: usize,
    /// What waits for a flight to end.
    waiting: Batch,
}

pub(super) struct Gather<S> {
    sender: S,
    state: Mutex<State>,
}

impl<S: Send> Gather<S> {
    pub(super) fn new(sender: S) -> Arc<Self> {
        Arc::new(Self { sender, state: Mutex::default() })
    }

    pub(super) fn sender(&self) -> &S {
        &self.sender
    }

    /// Rules on one request's charges.
    pub(super) async fn rule(self: &Arc<Self>, group: Group, patience: Duration) -> Answer {
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.flights == FLIGHTS {
                state.waiting.push((group, patience, sender));
            } else {
                state.flights += 1;
                let this = Arc::clone(self);
                // A task of its own: who asked may go away, the others still wait.
                tokio::spawn(this.run(vec![(group, patience, sender)]));
            }
        }
        answer.await.unwrap_or_else(|_| Err(Error::Store("the runtime shuts down".into())))
    }

    /// One call, which is given up after `patience`.
    pub(super) async fn call(&self, groups: &[Group], patience: Duration) -> Result<Vec<Charged>, Error> {
        let answer = tokio::time::timeout(patience, self.sender.send(groups, patience)).await;
        let answer = answer.unwrap_or_else(|_| Err(Error::Store("no answer in time".into())));
        if let Err(Error::Store(_)) = &answer {
            self.sender.unanswered(groups);
        }
        answer
    }

    /// What is ruled for each group. A call that is refused is made again, one group at a time: only whose fault it is goes without.
    async fn send(&self, groups: &[Group], patience: Duration) -> Vec<Answer> {
        let call = |groups| self.call(groups, patience);
        match call(groups).await {
            Ok(charged) => charged.into_iter().map(Ok).collect(),
            Err(Error::Refused(_)) if groups.len() > 1 => {
                let mut answers = Vec::with_capacity(groups.len());
                for group in groups {
                    let alone = call(std::slice::from_ref(group)).await;
                    answers
                        .push(alone.and_then(|mut charged| charged.pop().ok_or_else(|| Error::Store("an empty reply".into()))));
                }
                answers
            }
            Err(error) => {
                let (text, is_refused) = (error.to_string(), matches!(error, Error::Refused(_)));
                let again = || if is_refused { Error::Refused(text.clone().into()) } else { Error::Store(text.clone().into()) };
                groups.iter().map(|_| Err(again())).collect()
            }
        }
    }

    async fn run(self: Arc<Self>, mut batch: Batch) {
        let mut flight = Flight { gather: Arc::clone(&self), ended: false };
        loop {
            // Who has waited for longer than that is gone.
            batch.retain(|(_, _, sender)| !sender.is_closed());
            if !batch.is_empty() {
                // The most patient decides: the others leave when they have waited enough.
                let patience = batch.iter().map(|(_, patience, _)| *patience).max().unwrap_or_default();
                let (groups, senders): (Vec<_>, Vec<_>) = batch.into_iter().map(|(group, _, sender)| (group, sender)).unzip();
                for (sender, answer) in senders.into_iter().zip(self.send(&groups, patience).await) {
                    let _ = sender.send(answer);
                }
            }
            let mut state = self.state.lock();
            if state.waiting.is_empty() {
                state.flights -= 1;
                flight.ended = true;
                return;
            }
            let rest = if state.waiting.len() > BATCH { state.waiting.split_off(BATCH) } else { Vec::new() };
            batch = std::mem::replace(&mut state.waiting, rest);
        }
    }
}

/// A task that sends calls. It may end with its runtime, in the middle of one.
struct Flight<S: Send> {
    gather: Arc<Gather<S>>,
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
            // Nobody else sends what waits: who asked is told so, and the next one begins anew.
            state.waiting.clear();
        }
    }
}
