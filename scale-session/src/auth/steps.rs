//! Log-ins that a visitor's session has begun and not finished: each is good once, and for a while.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::seal::now;
use crate::error::Error;
use crate::session::Session;
use crate::value::MAX_VALUE;

/// Steps of one kind that a session may have under way: tabs.
const MOST: usize = 4;

/// A log-in under way.
pub(super) trait Step: Clone + Serialize + DeserializeOwned {
    /// The field of the session that such steps are kept in. It begins with [`STEP`](crate::session::STEP).
    const FIELD: &'static str;
    /// For how long one is good.
    const LASTS: Duration;

    /// When it began: s since 1970.
    fn since(&self) -> u64;
}

fn fresh<S: Step>(known: Option<Vec<S>>) -> Vec<S> {
    let mut steps = known.unwrap_or_default();
    steps.retain(|step| now().saturating_sub(step.since()) <= S::LASTS.as_secs());
    steps
}

/// Keeps a step, and as many of the last ones as there is room for.
pub(super) async fn begin<S: Step>(session: &Session, step: S) -> Result<(), Error> {
    let add = move |known| {
        let mut steps = fresh(known);
        steps.push(step.clone());
        let is_too_much = |steps: &[S]| rmp_serde::to_vec_named(steps).is_ok_and(|bytes| bytes.len() >= MAX_VALUE);
        while steps.len() > MOST || steps.len() > 1 && is_too_much(&steps) {
            steps.remove(0);
        }
        Some(steps)
    };
    session.update_any(S::FIELD, add).await.map(drop)
}

/// Takes a step out of the session, if it has begun such a one. Nothing is written if it has begun none.
pub(super) async fn take<S: Step>(session: &Session, is_it: impl Fn(&S) -> bool) -> Result<Option<S>, Error> {
    if session.read().await?.field(S::FIELD).is_none() {
        return Ok(None);
    }
    let mut taken = None;
    let take = |known| {
        let (mine, others): (Vec<S>, Vec<S>) = fresh(known).into_iter().partition(&is_it);
        taken = mine.into_iter().next();
        (!others.is_empty()).then_some(others)
    };
    session.update_any(S::FIELD, take).await?;
    Ok(taken)
}
