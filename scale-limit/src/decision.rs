//! What a limiter says of a request.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::gcra::Ruling;
use crate::policy::Policy;

/// All policies' outcomes of one request: admitted only if every policy admits, and charged only if admitted.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Decision {
    /// Whether the request may pass.
    pub admitted: bool,
    /// One policy is the rule, and needs no allocation.
    outcomes: SmallVec<[Outcome; 1]>,
}

/// What one policy says.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// The policy's name.
    pub policy: Arc<str>,
    /// Whether this policy admits.
    pub admitted: bool,
    /// The quota.
    pub quota: u32,
    /// Of which period.
    pub period: Duration,
    /// Units left now.
    pub remaining: u32,
    /// When the same request would pass; `None` if its cost can never.
    pub retry_after: Option<Duration>,
    /// When the whole burst is there again.
    pub full_after: Duration,
}

impl Decision {
    pub(crate) fn new<'p>(rulings: impl IntoIterator<Item = (&'p Policy, Ruling)>) -> Self {
        let outcomes: SmallVec<[Outcome; 1]> = rulings
            .into_iter()
            .map(|(policy, ruling)| Outcome {
                admitted: ruling.admitted || policy.is_dry_run(),
                policy: policy.shared_name(),
                quota: policy.quota(),
                period: policy.period(),
                remaining: ruling.remaining,
                retry_after: ruling.retry_after,
                full_after: ruling.full_after,
            })
            .collect();
        Self { admitted: outcomes.iter().all(|o| o.admitted), outcomes }
    }

    /// One for each policy asked, in the order asked.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// When the request would pass every policy; zero if it did, `None` if it never will.
    pub fn retry_after(&self) -> Option<Duration> {
        self.outcomes.iter().filter(|o| !o.admitted).try_fold(Duration::ZERO, |longest, o| Some(longest.max(o.retry_after?)))
    }
}
