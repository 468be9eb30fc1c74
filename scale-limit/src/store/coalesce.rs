//! Coalesces charges that arrive at the same time into one script call.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use scale_common::coalesce::{Calls, Coalescer};

use super::Charged;
use crate::algorithm::Rule;
use crate::error::Error;

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

/// Calls of a [`Send`]er.
pub(super) struct Charges<S>(pub(super) S);

impl<S: Send> Charges<S> {
    /// Makes one call, with the time-out `store_timeout`.
    pub(super) async fn make(
        &self,
        groups: &[Group],
        store_timeout: Duration,
    ) -> Result<Vec<Charged>, Error> {
        let answer = tokio::time::timeout(store_timeout, self.0.send(groups, store_timeout)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Error::Store("the store did not answer in time".into())));
        if let Err(Error::Store(_)) = &answer {
            self.0.unanswered(groups);
        }
        answer
    }
}

impl<S: Send> Calls for Charges<S> {
    type Key = ();
    /// Charges with their time-out.
    type Request = (Group, Duration);
    type Answer = Answer;
    const AT_ONCE: usize = 2;
    /// A call does not block the server for long.
    const BATCH: usize = 128;
    /// Requests that have timed out are gone.
    const DROPS_ABANDONED: bool = true;

    /// Sends groups, and returns the rulings on each. A refused call is repeated one group at a
    /// time, so that only the faulty group fails.
    async fn call(&self, (): &(), requests: Vec<(Group, Duration)>) -> Vec<Answer> {
        // The longest time-out counts: the other requests leave when theirs has passed.
        let store_timeout = requests.iter().map(|(_, limit)| *limit).max().unwrap_or_default();
        let groups: Vec<Group> = requests.into_iter().map(|(group, _)| group).collect();
        match self.make(&groups, store_timeout).await {
            Ok(charged) => charged.into_iter().map(Ok).collect(),
            Err(Error::Refused(_)) if groups.len() > 1 => {
                let mut answers = Vec::with_capacity(groups.len());
                for group in &groups {
                    let alone = self.make(std::slice::from_ref(group), store_timeout).await;
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
}

/// Rules on the charges of one request.
pub(super) async fn rule<S: Send>(
    calls: &Arc<Coalescer<Charges<S>>>,
    group: Group,
    store_timeout: Duration,
) -> Answer {
    let answer = calls.send((), (group, store_timeout)).await;
    answer.unwrap_or_else(|| Err(Error::Store("the runtime is shutting down".into())))
}
