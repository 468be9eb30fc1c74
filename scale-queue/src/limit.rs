//! Limits on how many jobs of a kind run at a time, or in a time, across the fleet.
//!
//! | when | then |
//! | --- | --- |
//! | a job's turn by a rate has not come | it is scheduled for exactly that turn, which nobody else gets; no attempt is counted |
//! | all places of its key are taken | it comes back a second or so later, no attempt counted |
//! | a worker dies that held places | they are free 30 s later at the latest |
//! | the store does not answer | the attempt has failed, and is tried again like any other |
//!
//! A rate spaces its jobs evenly (GCRA, the generic cell rate algorithm of ATM's Traffic Management Specification 4.0), so that a backlog
//! of a million is moved once to its place in time, and not again and again.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::Error;
use crate::store::Store;

/// A place is kept so long without its worker's word.
const LIFE: Duration = Duration::from_secs(30);

/// A limit that a job asks for by [`Job::limits`](crate::Job::limits).
///
/// ```
/// use scale_queue::Limit;
/// use std::time::Duration;
/// let limits = [
///     Limit::concurrent(format!("account:{}", 7), 1), // never two of one account at once
///     Limit::rate("partner-api", 100, Duration::from_secs(60)), // the fleet asks the partner 100 times a minute
/// ];
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    key: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Concurrent(u32),
    Rate { spacing: Duration, burst: u32 },
}

impl Limit {
    /// At most so many jobs of this key run at a time.
    pub fn concurrent(key: impl Into<String>, most: u32) -> Self {
        Self { key: key.into(), kind: Kind::Concurrent(most.max(1)) }
    }

    /// At most so many jobs of this key begin in that time, evenly spaced.
    pub fn rate(key: impl Into<String>, jobs: u32, per: Duration) -> Self {
        Self { key: key.into(), kind: Kind::Rate { spacing: per / jobs.max(1), burst: 1 } }
    }

    /// So many of them may begin at once, after a quiet time. For rates.
    pub fn burst(mut self, jobs: u32) -> Self {
        if let Kind::Rate { burst, .. } = &mut self.kind {
            *burst = jobs.max(1);
        }
        self
    }
}

/// Whether a job may run now.
pub(crate) enum Admission {
    /// Until this is dropped.
    Now(Places),
    /// Not yet. `turn`: it has its turn then, and need not ask again.
    Later { delay: Duration, turn: bool },
}

/// The places a running job holds, kept and given back by a task of their own.
pub(crate) struct Places(#[expect(dead_code, reason = "its drop is what it is for")] Option<DropGuard>);

/// Asks for everything a job needs. `turn`: it has waited for its turn already.
pub(crate) async fn admit(store: &Arc<dyn Store>, holder: &str, limits: &[Limit], turn: bool) -> Result<Admission, Error> {
    let mut held = Vec::new();
    let outcome = ask(store, holder, limits, turn, &mut held).await;
    if !matches!(outcome, Ok(None)) {
        give_back(store, holder, &held).await;
    }
    Ok(match outcome? {
        Some(later) => later,
        None if held.is_empty() => Admission::Now(Places(None)),
        None => {
            let running = CancellationToken::new();
            let (store, holder, ended) = (Arc::clone(store), holder.to_owned(), running.clone());
            tokio::spawn(async move {
                while tokio::time::timeout(LIFE / 3, ended.cancelled()).await.is_err() {
                    for (key, most) in &held {
                        // Should it fail, it is tried again before the place is lost.
                        let _ = store.hold(key, &holder, *most, LIFE).await;
                    }
                }
                give_back(&store, &holder, &held).await;
            });
            Admission::Now(Places(Some(running.drop_guard())))
        }
    })
}

async fn ask(
    store: &Arc<dyn Store>,
    holder: &str,
    limits: &[Limit],
    turn: bool,
    held: &mut Vec<(String, u32)>,
) -> Result<Option<Admission>, Error> {
    // Places first: a turn that is taken is spent.
    for limit in limits {
        if let Kind::Concurrent(most) = limit.kind {
            if !store.hold(&limit.key, holder, most, LIFE).await? {
                let delay = Duration::from_millis(500 + fastrand::u64(..1_000));
                return Ok(Some(Admission::Later { delay, turn }));
            }
            held.push((limit.key.clone(), most));
        }
    }
    let mut wait = Duration::ZERO;
    for limit in limits {
        if let Kind::Rate { spacing, burst } = limit.kind
            && !turn
        {
            wait = wait.max(store.take_turn(&limit.key, spacing, burst).await?);
        }
    }
    Ok((!wait.is_zero()).then_some(Admission::Later { delay: wait, turn: true }))
}

async fn give_back(store: &Arc<dyn Store>, holder: &str, held: &[(String, u32)]) {
    for (key, _) in held {
        // Else it is free when its life is over.
        let _ = store.release(key, holder).await;
    }
}
