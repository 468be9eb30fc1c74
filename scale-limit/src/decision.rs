//! What a limiter says of a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use smol_str::SmolStr;

use crate::permit::Permits;
use crate::rule::{NEVER, Ruling};
use crate::store::Charge;

/// All policies' outcomes of one request: admitted only if every policy admits, and charged only if admitted.
///
/// It holds the places that policies that count [how many at once](crate::Policy::at_once) gave: they are free again when it and its clones are dropped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Decision {
    /// Whether the request may pass.
    pub admitted: bool,
    /// When it was asked for, by the limiter's clock (ns).
    pub(crate) at: u64,
    outcomes: Outcomes,
    permits: Option<Arc<Permits>>,
    /// The one that was charged.
    charged: Charged,
}

/// The one that a decision charged, until it is given back.
#[derive(Debug)]
struct Charged(AtomicU8);

/// The parties that a decision can charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum By {
    Nobody,
    Store,
    /// This process, since the store did not answer.
    StandIn,
}

impl Clone for Charged {
    fn clone(&self) -> Self {
        Self(AtomicU8::new(self.0.load(Relaxed)))
    }
}

/// One policy is the rule: it needs no allocation, and is written where it stays.
#[derive(Clone, Debug)]
enum Outcomes {
    One([Outcome; 1]),
    Many(Box<[Outcome]>),
}

/// What one policy says.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// In line if short: counting references to one name from all threads would cost more than the check.
    policy: SmolStr,
    admitted: bool,
    dry_run: bool,
    quota: u32,
    /// Nanoseconds; 0 if there is none.
    period: u64,
    /// The quota and window (ns) that a client is told.
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

    /// The policy's name.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// Whether this policy admits.
    pub fn admitted(&self) -> bool {
        self.admitted
    }

    /// The quota.
    pub fn quota(&self) -> u32 {
        self.quota
    }

    /// Of which period; `None` for a quota of requests at once.
    pub fn period(&self) -> Option<Duration> {
        (self.period > 0).then(|| Duration::from_nanos(self.period))
    }

    /// Returns the quota and window that a client is told; `None`: nothing.
    pub(crate) fn told(&self) -> Option<(u32, Duration)> {
        (!self.dry_run && self.remaining != u32::MAX).then(|| (self.told.0, Duration::from_nanos(self.told.1)))
    }

    /// Units left now. Of a leased policy: those this process holds. `u32::MAX`: no limit.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// When the same request would pass; zero if it did, `None` if its cost never can, or nobody can know.
    pub fn retry_after(&self) -> Option<Duration> {
        (self.retry_after != NEVER).then(|| Duration::from_nanos(self.retry_after))
    }

    /// When the whole burst is there again.
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
    /// One policy's.
    #[inline]
    pub(crate) fn one(at: u64, charge: &Charge<'_>, ruling: &Ruling, permits: Option<Permits>) -> Self {
        let admitted = ruling.admitted || charge.policy.is_dry_run();
        Self {
            admitted,
            charged: Charged::by(if admitted { By::Store } else { By::Nobody }),
            at,
            outcomes: Outcomes::One([Outcome::new(charge, ruling)]),
            permits: permits.map(Arc::new),
        }
    }

    pub(crate) fn new(at: u64, by: By, outcomes: impl IntoIterator<Item = Outcome>, permits: Option<Permits>) -> Self {
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

    /// One for each policy asked, in the order asked. A denial that this process remembers tells only of the policies that deny.
    pub fn outcomes(&self) -> &[Outcome] {
        match &self.outcomes {
            Outcomes::One(one) => one,
            Outcomes::Many(many) => many,
        }
    }

    /// When the request would pass every policy; zero if it did, `None` if it never will or nobody can know.
    pub fn retry_after(&self) -> Option<Duration> {
        self.outcomes().iter().filter(|o| !o.admitted).try_fold(Duration::ZERO, |longest, o| Some(longest.max(o.retry_after()?)))
    }

    /// Takes the charge, which is given back once, and returns who was charged.
    pub(crate) fn take_charge(&self) -> By {
        match self.charged.0.swap(By::Nobody as u8, Relaxed) {
            1 => By::Store,
            2 => By::StandIn,
            _ => By::Nobody,
        }
    }

    /// The places it holds; from now on it holds none.
    pub(crate) fn take_places(&mut self) -> Option<Arc<Permits>> {
        self.permits.take()
    }
}
