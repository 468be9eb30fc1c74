//! Log-in steps that a visitor's session has begun and not finished. Each step works once, for a
//! limited time.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::signed_token::now;
use crate::error::Error;
use crate::session::Session;
use crate::value::MAX_VALUE;

/// Maximum number of steps of one kind in a session: one per tab.
const MOST: usize = 4;

/// A log-in in progress.
pub(super) trait Step: Clone + Serialize + DeserializeOwned {
    /// Field of the session that contains such steps. It begins with
    /// [`STEP`](crate::session::STEP).
    const FIELD: &'static str;
    /// Time for which a step is valid.
    const LASTS: Duration;

    /// Returns when the step began, in seconds since 1970.
    fn since(&self) -> u64;
}

fn fresh<S: Step>(known: Option<Vec<S>>) -> Vec<S> {
    let mut steps = known.unwrap_or_default();
    steps.retain(|step| now().saturating_sub(step.since()) <= S::LASTS.as_secs());
    steps
}

/// Stores a step, together with as many of the latest ones as there is room for.
pub(super) async fn begin<S: Step>(session: &Session, step: S) -> Result<(), Error> {
    let add = move |known| {
        let mut steps = fresh(known);
        steps.push(step.clone());
        let is_too_much = |steps: &[S]| {
            rmp_serde::to_vec_named(steps).is_ok_and(|bytes| bytes.len() >= MAX_VALUE)
        };
        while steps.len() > MOST || steps.len() > 1 && is_too_much(&steps) {
            steps.remove(0);
        }
        Some(steps)
    };
    session.update_any(S::FIELD, add).await.map(drop)
}

/// Takes a matching step out of the session, if there is one. Writes nothing if the session has
/// none.
pub(super) async fn take<S: Step>(
    session: &Session,
    is_it: impl Fn(&S) -> bool,
) -> Result<Option<S>, Error> {
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
