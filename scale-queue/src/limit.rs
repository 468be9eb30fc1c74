//! Limits on the number of jobs with the same key that run at a time, or begin in a period, across
//! the fleet.
//!
//! | when | then |
//! | --- | --- |
//! | a job is about to begin | its limits are checked at that moment, by the store's clock; a waiting job has reserved nothing |
//! | a key has no room | the job leaves its queue's order and waits in that key's line, the longest waiting first; jobs of other keys pass |
//! | a job of the key ends | the first in line is woken; if the key has lines in several queues, in the queue that the worker names first |
//! | a rate has room again | the first in line begins then; after an idle period at most [`burst`](Limit::burst) begin at once |
//! | jobs of one rate wait in several queues | the queue that the worker names first goes first |
//! | a worker that held permits dies | the permits are free when its lease has expired, after 30 s at the latest |
//! | a worker cannot renew a permit | its handler is cancelled before the permit expires, with [`CancelReason::PermitLost`]; the job is handed back |
//! | the store does not answer | the job is handed back, no attempt counted |
//!
//! A rate limit is GCRA, the generic cell rate algorithm of the ATM Forum's Traffic Management
//! Specification 4.0.
//!
//! [`CancelReason::PermitLost`]: crate::worker::CancelReason::PermitLost

use std::time::Duration;

use sha2::{Digest, Sha256};

pub(crate) const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

/// Limit requested by [`Job::limits`](crate::Job::limits).
///
/// Two limits of the same kind and key become one, the stricter: give each rate a key of its own.
///
/// Put the narrowest limit first: the store finds the jobs of a full line by their first limit, at
/// a cost that does not depend on their number.
///
/// ```
/// use scale_queue::Limit;
/// use std::time::Duration;
/// let limits = [
///     Limit::concurrent(format!("account:{}", 7), 1), // never two of one account at once
///     // the fleet asks the partner 100 times a minute
///     Limit::rate("partner-api", 100, Duration::from_secs(60)),
/// ];
/// ```
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub(crate) key: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Concurrent(u32),
    Rate { spacing: Duration, burst: u32 },
}

impl Limit {
    /// Limits how many jobs of this key run at a time.
    pub fn concurrent(key: impl Into<String>, most: u32) -> Self {
        Self { key: bounded_key(key.into()), kind: Kind::Concurrent(most.max(1)) }
    }

    /// Limits how many jobs of this key begin per period, evenly spaced. The period is at most ten
    /// years.
    pub fn rate(key: impl Into<String>, jobs: u32, per: Duration) -> Self {
        Self {
            key: bounded_key(key.into()),
            kind: Kind::Rate { spacing: per.min(LONGEST) / jobs.max(1), burst: 1 },
        }
    }

    /// Sets how many jobs may begin at once after an idle period. For rate limits only.
    pub fn burst(mut self, jobs: u32) -> Self {
        if let Kind::Rate { burst, .. } = &mut self.kind {
            *burst = jobs.max(1);
        }
        self
    }
}

/// Returns the limits without duplicates of kind and key, keeping the stricter one: a job that
/// asked for its own permit twice would wait forever.
pub(crate) fn strictest(limits: &[Limit]) -> Vec<Limit> {
    let mut kept: Vec<Limit> = Vec::with_capacity(limits.len());
    for limit in limits {
        let same = |other: &&mut Limit| {
            other.key == limit.key
                && std::mem::discriminant(&other.kind) == std::mem::discriminant(&limit.kind)
        };
        match kept.iter_mut().find(same) {
            None => kept.push(limit.clone()),
            Some(other) => match (&mut other.kind, limit.kind) {
                (Kind::Concurrent(least), Kind::Concurrent(most)) => *least = most.min(*least),
                (Kind::Rate { spacing, burst }, Kind::Rate { spacing: wider, burst: other }) => {
                    (*spacing, *burst) = ((*spacing).max(wider), other.min(*burst));
                }
                _ => {}
            },
        }
    }
    kept
}

/// Returns a key of up to 512 bytes unchanged, and the SHA-256 of a longer one: no store accepts
/// keys of any length. Distinct keys stay distinct.
pub(crate) fn bounded_key(key: String) -> String {
    const HASHED: &str = "sha256:";
    if key.len() <= 512 && !key.starts_with(HASHED) {
        return key;
    }
    let digest = Sha256::digest(key.as_bytes());
    digest.iter().fold(HASHED.to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// Returns the name of the line in which jobs wait for a limit.
pub(crate) fn line_of(key: &str) -> String {
    format!("limit:{key}")
}
