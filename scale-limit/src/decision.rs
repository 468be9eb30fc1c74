//! What a limiter says of a request.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::permit::Permits;
use crate::policy::{Algorithm, Policy};
use crate::rule::Ruling;
use crate::store::Charge;

/// All policies' outcomes of one request: admitted only if every policy admits, and charged only if admitted.
///
/// It holds the places that policies of [`Algorithm::Concurrency`] gave: they are free again when it and its clones are dropped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Decision {
    /// Whether the request may pass.
    pub admitted: bool,
    /// When it was asked for, by the limiter's clock (ns).
    pub(crate) at: u64,
    /// One policy is the rule, and needs no allocation.
    outcomes: SmallVec<[Outcome; 1]>,
    permits: Option<Arc<Permits>>,
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
    /// Of which period; `None` for a quota of requests at once.
    pub period: Option<Duration>,
    /// Units left now. Of a leased policy: those this process holds.
    pub remaining: u32,
    /// When the same request would pass; `None` if its cost can never, or nobody can know.
    pub retry_after: Option<Duration>,
    /// When the whole burst is there again.
    pub full_after: Duration,
}

impl Outcome {
    pub(crate) fn new(charge: &Charge<'_>, ruling: &Ruling) -> Self {
        let Charge { policy, terms, .. } = charge;
        Self {
            admitted: ruling.admitted || policy.is_dry_run(),
            policy: Arc::clone(policy.shared_name()),
            quota: terms.quota,
            period: period(policy).then_some(terms.period),
            remaining: ruling.remaining,
            retry_after: ruling.retry_after,
            full_after: ruling.full_after,
        }
    }
}

fn period(policy: &Policy) -> bool {
    policy.algorithm_of() != Algorithm::Concurrency
}

impl Decision {
    pub(crate) fn new(at: u64, outcomes: impl IntoIterator<Item = Outcome>, permits: Option<Permits>) -> Self {
        let outcomes: SmallVec<[Outcome; 1]> = outcomes.into_iter().collect();
        Self { admitted: outcomes.iter().all(|o| o.admitted), at, outcomes, permits: permits.map(Arc::new) }
    }

    /// One for each policy asked, in the order asked. A denial that this process remembers tells only of the policies that deny.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// When the request would pass every policy; zero if it did, `None` if it never will or nobody can know.
    pub fn retry_after(&self) -> Option<Duration> {
        self.outcomes.iter().filter(|o| !o.admitted).try_fold(Duration::ZERO, |longest, o| Some(longest.max(o.retry_after?)))
    }

    /// The same, holding nothing.
    pub(crate) fn without_places(&self) -> Self {
        Self { permits: None, ..self.clone() }
    }

    /// Whether it holds places that are to be free again.
    pub(crate) fn holds(&self) -> bool {
        self.permits.is_some()
    }
}
