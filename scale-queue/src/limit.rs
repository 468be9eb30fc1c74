//! Limits on how many jobs of a key run at a time, or begin in a time, across the fleet.
//!
//! | when | then |
//! | --- | --- |
//! | a job is about to begin | its limits are asked, at that moment, by the store's clock; a job that only waits has reserved nothing |
//! | a key has no room | the job leaves its queue's order and waits in that key's line, the longest waiting first; jobs of other keys pass |
//! | a job of the key ends | the first in line is woken; of lines in several queues, that of the queue which the worker names first |
//! | a rate has room again | the first in line begins then; after a pause at most [`burst`](Limit::burst) begin at once |
//! | jobs of one rate wait in several queues | the queue that the worker names first goes first |
//! | a worker dies that held permits | they are free when its lease has run out, after 30 s at the latest |
//! | a worker cannot renew a permit | its handler is cancelled before the permit expires, with [`CancelReason::PermitLost`]; the job is handed back |
//! | the store does not answer | the job is handed back, no attempt counted |
//!
//! A rate is GCRA, the generic cell rate algorithm of ATM's Traffic Management Specification 4.0.
//!
//! [`CancelReason::PermitLost`]: crate::worker::CancelReason::PermitLost

use std::time::Duration;

use sha2::{Digest, Sha256};

pub(crate) const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

/// A limit that a job asks for by [`Job::limits`](crate::Job::limits).
///
/// Two of one kind and key are one, the stricter: give each rate a key of its own.
///
/// Put the narrowest first: a store finds the jobs of a full line by their first limit, whatever their number.
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
    pub(crate) key: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Concurrent(u32),
    Rate { spacing: Duration, burst: u32 },
}

impl Limit {
    /// At most so many jobs of this key run at a time.
    pub fn concurrent(key: impl Into<String>, most: u32) -> Self {
        Self { key: bounded_key(key.into()), kind: Kind::Concurrent(most.max(1)) }
    }

    /// At most so many jobs of this key begin in that time, at most ten years, evenly spaced.
    pub fn rate(key: impl Into<String>, jobs: u32, per: Duration) -> Self {
        Self { key: bounded_key(key.into()), kind: Kind::Rate { spacing: per.min(LONGEST) / jobs.max(1), burst: 1 } }
    }

    /// So many of them may begin at once, after a quiet time. For rates.
    pub fn burst(mut self, jobs: u32) -> Self {
        if let Kind::Rate { burst, .. } = &mut self.kind {
            *burst = jobs.max(1);
        }
        self
    }
}

/// The limits without those that another of the same kind and key makes superfluous: asking for one's own place twice would never end.
pub(crate) fn strictest(limits: &[Limit]) -> Vec<Limit> {
    let mut kept: Vec<Limit> = Vec::with_capacity(limits.len());
    for limit in limits {
        let same = |other: &&mut Limit| {
            other.key == limit.key && std::mem::discriminant(&other.kind) == std::mem::discriminant(&limit.kind)
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

/// A key as it is up to 512 bytes, a longer one by its SHA-256: no store keeps keys of any length. Distinct ones stay distinct.
pub(crate) fn bounded_key(key: String) -> String {
    const HASHED: &str = "sha256:";
    if key.len() <= 512 && !key.starts_with(HASHED) {
        return key;
    }
    let digest = Sha256::digest(key.as_bytes());
    digest.iter().fold(HASHED.to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// The name of the line in which jobs wait for a limit.
pub(crate) fn line_of(key: &str) -> String {
    format!("limit:{key}")
}
