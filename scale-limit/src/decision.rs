//! Decision of a limiter on a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use smol_str::SmolStr;

use crate::algorithm::{NEVER, Ruling};
use crate::permit::Permits;
use crate::store::Charge;

/// Outcomes of all policies for one request. The request is admitted only if every policy admits
/// it, and charged only if admitted.
///
/// A decision holds the permits of [concurrency policies](crate::Policy::concurrency): they are
/// released when the decision and all its clones are dropped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Decision {
    /// `true` if the request may pass.
    pub admitted: bool,
    /// Time of the request, by the limiter's clock (ns).
    pub(crate) at: u64,
    outcomes: Outcomes,
    permits: Option<Arc<Permits>>,
    /// Store that was charged.
    charged: Charged,
}

/// Store that a decision has charged, until the charge is refunded.
#[derive(Debug)]
struct Charged(AtomicU8);

/// Stores that a decision can charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum By {
    Nobody,
    Store,
    /// The memory of this process, because the store did not answer.
    StandIn,
}

impl Clone for Charged {
    fn clone(&self) -> Self {
        Self(AtomicU8::new(self.0.load(Relaxed)))
    }
}

/// Outcomes of a decision. A single policy is the common case: it needs no allocation and is not
/// moved.
#[derive(Clone, Debug)]
enum Outcomes {
    One([Outcome; 1]),
    Many(Box<[Outcome]>),
}

/// Outcome of one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Name of the policy, inline if short: reference counting of one name from all threads would
    /// cost more than the check.
    policy: SmolStr,
    admitted: bool,
    dry_run: bool,
    quota: u32,
    /// Period in nanoseconds; 0 if there is none.
    period: u64,
    /// Quota and window (ns) as reported to clients.
    told: (u32, u64),
    remaining: u32,
    retry_after: u64,
    full_after: u64,
}

impl Outcome {
    #[inline]
    pub(crate) fn new(charge: &Charge<'_>, ruling: &Ruling) -> Self {
        let Charge { policy, terms, .. } = charge;
        Self {
            policy: policy.short_name().clone(),
            admitted: ruling.admitted || policy.is_dry_run(),
            dry_run: policy.is_dry_run(),
            quota: terms.quota,
            told: terms.told(),
            period: if policy.counts_places() { 0 } else { terms.period },
            remaining: ruling.remaining,
            retry_after: ruling.retry_after,
            full_after: ruling.full_after,
        }
    }

    /// Returns the policy's name.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// Returns whether this policy admits the request.
    pub fn admitted(&self) -> bool {
        self.admitted
    }

    /// Returns the quota.
    pub fn quota(&self) -> u32 {
        self.quota
    }

    /// Returns the period of the quota; `None` for a quota of concurrent requests.
    pub fn period(&self) -> Option<Duration> {
        (self.period > 0).then(|| Duration::from_nanos(self.period))
    }

    /// Returns the quota and window as reported to clients; `None`: nothing is reported.
    pub(crate) fn told(&self) -> Option<(u32, Duration)> {
        (!self.dry_run && self.remaining != u32::MAX)
            .then(|| (self.told.0, Duration::from_nanos(self.told.1)))
    }

    /// Returns the number of units left. For a leased policy: the units that this process holds.
    /// `u32::MAX`: no limit.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// Returns the time until the same request would be admitted; zero if it was, `None` if its
    /// cost can never be admitted, or the time is unknown.
    pub fn retry_after(&self) -> Option<Duration> {
        (self.retry_after != NEVER).then(|| Duration::from_nanos(self.retry_after))
    }

    /// Returns the time until the whole burst is available again.
    pub fn full_after(&self) -> Duration {
        Duration::from_nanos(self.full_after)
    }
}

impl Charged {
    #[inline]
    fn by(by: By) -> Self {
        Self(AtomicU8::new(by as u8))
    }
}

impl Decision {
    /// Creates the decision of a single policy.
    #[inline]
    pub(crate) fn one(
        at: u64,
        charge: &Charge<'_>,
        ruling: &Ruling,
        permits: Option<Permits>,
    ) -> Self {
        let admitted = ruling.admitted || charge.policy.is_dry_run();
        Self {
            admitted,
            charged: Charged::by(if admitted { By::Store } else { By::Nobody }),
            at,
            outcomes: Outcomes::One([Outcome::new(charge, ruling)]),
            permits: permits.map(Arc::new),
        }
    }

    pub(crate) fn new(
        at: u64,
        by: By,
        outcomes: impl IntoIterator<Item = Outcome>,
        permits: Option<Permits>,
    ) -> Self {
        let outcomes: Box<[Outcome]> = outcomes.into_iter().collect();
        let admitted = outcomes.iter().all(|o| o.admitted);
        Self {
            admitted,
            charged: Charged::by(if admitted { by } else { By::Nobody }),
            at,
            outcomes: Outcomes::Many(outcomes),
            permits: permits.map(Arc::new),
        }
    }

    /// Returns one outcome for each policy, in the order of the charges. A denial that this process
    /// remembers has only the outcomes of the policies that deny.
    pub fn outcomes(&self) -> &[Outcome] {
        match &self.outcomes {
            Outcomes::One(one) => one,
            Outcomes::Many(many) => many,
        }
    }

    /// Returns the time until every policy would admit the request; zero if all did, `None` if
    /// never or unknown.
    pub fn retry_after(&self) -> Option<Duration> {
        self.outcomes()
            .iter()
            .filter(|o| !o.admitted)
            .try_fold(Duration::ZERO, |longest, o| Some(longest.max(o.retry_after()?)))
    }

    /// Takes the charge, so that it can be refunded once only. Returns which store was charged.
    pub(crate) fn take_charge(&self) -> By {
        match self.charged.0.swap(By::Nobody as u8, Relaxed) {
            1 => By::Store,
            2 => By::StandIn,
            _ => By::Nobody,
        }
    }

    /// Takes the permits out of the decision.
    pub(crate) fn take_places(&mut self) -> Option<Arc<Permits>> {
        self.permits.take()
    }
}
