//! Election of the primary among the nodes that take writes.
//!
//! A server with two addresses counts as one node.
//!
//! | nodes that take writes | the primary is |
//! | --- | --- |
//! | one has taken over from the others (a later timeline; for GTIDs, it has the others' writes and its own) | that one |
//! | one is on a lower timeline than the highest ever seen | not that one |
//! | several are left, the previous primary among them | the previous primary |
//! | several are left otherwise | none, until only one is left: nothing tells which one is right |
//!
//! Nodes that this process cannot reach are not compared: two processes that see different nodes
//! may follow different primaries. Only an arbiter outside of the database can prevent that, by
//! stopping the old primary before it promotes a new one (fencing).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::cluster::role::Role;
use crate::dialect::Probe;

/// Tracks the current primary and rejects stale ones after a failover. Shared by the handle and its
/// pools: a pool keeps trying to connect for a while, and must not use a connection to a stale
/// primary that has come back.
#[derive(Debug, Default)]
pub(crate) struct PrimaryTracker {
    /// Node number + 1; 0 while there is none.
    primary: AtomicUsize,
    /// Highest timeline ever seen: a primary on a lower one is stale.
    timeline: AtomicU64,
}

/// Outcome of an election among the nodes that take writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Election {
    Nobody,
    Primary {
        number: usize,
        timeline: u64,
        /// Other nodes that take writes and are not provably stale.
        rivals: Vec<usize>,
    },
    /// Several nodes with equal rights.
    Undecided(Vec<usize>),
}

impl PrimaryTracker {
    pub(crate) fn primary(&self) -> Option<usize> {
        self.primary.load(Ordering::Acquire).checked_sub(1)
    }

    /// Elects one of the nodes that report to take writes.
    pub(crate) fn elect(&self, candidates: &[(usize, &Probe)]) -> Election {
        let known = self.timeline.load(Ordering::Acquire);
        // A server with two addresses is one candidate.
        let again = |at: usize| {
            let (_, probe) = candidates[at];
            let same = |other: &Probe| {
                probe.started.is_some()
                    && other.started == probe.started
                    && other.cluster == probe.cluster
            };
            let before = |(number, _): &(usize, &Probe)| Some(*number) == self.primary();
            candidates.iter().enumerate().any(|(other, candidate)| {
                other != at
                    && same(candidate.1)
                    && (before(candidate) || (other < at && !before(&candidates[at])))
            })
        };
        let candidates: Vec<_> =
            (0..candidates.len()).filter(|at| !again(*at)).map(|at| candidates[at]).collect();
        let superseded =
            |probe: &Probe| candidates.iter().any(|(_, other)| other.log.succeeds(&probe.log));
        let mut left: Vec<_> = candidates
            .iter()
            .filter(|(_, probe)| probe.timeline() >= known && !superseded(probe))
            .copied()
            .collect();
        let before = self.primary();
        let chosen = match left.as_slice() {
            [] => return Election::Nobody,
            [_] => 0,
            several => match several.iter().position(|(number, _)| Some(*number) == before) {
                Some(place) => place,
                None => {
                    return Election::Undecided(
                        several.iter().map(|(number, _)| *number).collect(),
                    );
                }
            },
        };
        let (number, probe) = left.swap_remove(chosen);
        let mut rivals: Vec<_> = left.iter().map(|(number, _)| *number).collect();
        rivals.sort_unstable();
        Election::Primary { number, timeline: probe.timeline(), rivals }
    }

    /// Returns whether a node that has just answered has taken over, without waiting for the
    /// others. Its timeline is higher than all ever seen, so only an even higher one could be
    /// newer.
    pub(crate) fn is_succeeded_by(&self, number: usize, probe: &Probe) -> bool {
        let known = self.timeline.load(Ordering::Acquire);
        probe.role == Role::Primary
            && known > 0
            && probe.timeline() > known
            && self.primary() != Some(number)
    }

    /// Applies the outcome of an election. Returns the previous and the new primary.
    pub(crate) fn accept(&self, election: &Election) -> (Option<usize>, Option<usize>) {
        let new = match election {
            Election::Primary { number, timeline, .. }
                if *timeline >= self.timeline.fetch_max(*timeline, Ordering::AcqRel) =>
            {
                number + 1
            }
            _ => 0,
        };
        let old = self.primary.swap(new, Ordering::AcqRel);
        (old.checked_sub(1), new.checked_sub(1))
    }

    /// Returns whether a node that reports to be the primary is stale.
    pub(crate) fn is_over(&self, number: usize, probe: &Probe) -> bool {
        let known = self.timeline.load(Ordering::Acquire);
        let another = self.primary().is_some_and(|primary| primary != number);
        probe.role == Role::Primary
            && (probe.timeline() < known || (probe.timeline() == known && another))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Gtids, Log, Stream};
    use crate::position::Position;

    fn probe(role: Role, timeline: u64) -> Probe {
        Probe { role, log: Log::Wal { timeline, lsn: 5 }, ..Probe::default() }
    }

    fn primary(number: usize, timeline: u64) -> Election {
        Election::Primary { number, timeline, rivals: Vec::new() }
    }

    #[test]
    fn a_leftover_is_told_from_a_successor() {
        let tracker = PrimaryTracker::default();
        assert!(!tracker.is_over(0, &probe(Role::Primary, 1)), "at the start no primary is known");
        assert_eq!(tracker.accept(&primary(0, 1)), (None, Some(0)));
        assert!(!tracker.is_over(1, &probe(Role::Primary, 2)), "a successor");
        assert!(tracker.is_over(1, &probe(Role::Primary, 1)), "another of the same time");
        assert!(!tracker.is_over(1, &probe(Role::Replica, 0)));
        assert_eq!(tracker.accept(&Election::Nobody), (Some(0), None));
        assert_eq!(tracker.accept(&primary(1, 2)), (None, Some(1)));
        assert!(
            tracker.is_over(0, &probe(Role::Primary, 1))
                && !tracker.is_over(1, &probe(Role::Primary, 2))
        );
        assert_eq!(
            tracker.elect(&[(0, &probe(Role::Primary, 1))]),
            Election::Nobody,
            "a stale primary is not elected again"
        );
    }

    #[test]
    fn of_two_that_were_promoted_neither_is_chosen_but_the_one_of_before_stays() {
        let (one, two) = (probe(Role::Primary, 2), probe(Role::Primary, 2));
        let fresh = PrimaryTracker::default();
        assert_eq!(fresh.elect(&[(1, &one), (2, &two)]), Election::Undecided(vec![1, 2]));
        fresh.accept(&primary(2, 2));
        assert_eq!(
            fresh.elect(&[(1, &one), (2, &two)]),
            Election::Primary { number: 2, timeline: 2, rivals: vec![1] }
        );
        fresh.accept(&Election::Nobody);
        assert_eq!(
            fresh.elect(&[(1, &one), (2, &two)]),
            Election::Undecided(vec![1, 2]),
            "it may have been restarted"
        );
    }

    #[test]
    fn one_server_under_two_addresses_is_no_rival_of_itself() {
        let server = |since: &str| Probe {
            started: Some(since.into()),
            cluster: Some("7".into()),
            ..probe(Role::Primary, 2)
        };
        let (one, other) = (server("noon"), server("one"));
        let tracker = PrimaryTracker::default();
        assert_eq!(tracker.elect(&[(0, &one), (3, &one)]), primary(0, 2));
        tracker.accept(&primary(3, 2));
        assert_eq!(tracker.elect(&[(0, &one), (3, &one)]), primary(3, 2));
        assert!(matches!(
            tracker.elect(&[(0, &one), (3, &other)]),
            Election::Primary { number: 3, rivals, .. } if rivals == [0],
        ));
    }

    #[test]
    fn servers_without_timelines_are_told_apart_by_whose_writes_they_have() {
        let maria = |own: u128, ends: &[(u128, u64)]| {
            let streams = ends
                .iter()
                .map(|(origin, end)| Stream { domain: 0, origin: *origin, ranges: vec![(1, *end)] })
                .collect();
            let last = ends.last().map(|(origin, end)| Position {
                era: 0,
                sequence: *end,
                origin: *origin,
            });
            Probe {
                role: Role::Primary,
                log: Log::Gtids(Gtids { own, last, streams }),
                ..Probe::default()
            }
        };
        let (old, new) = (maria(1, &[(1, 900)]), maria(2, &[(1, 430), (2, 431)]));
        assert_eq!(PrimaryTracker::default().elect(&[(0, &old), (1, &new)]), primary(1, 0));
        let silent = maria(2, &[(1, 430)]);
        let tracker = PrimaryTracker::default();
        assert_eq!(tracker.elect(&[(0, &old), (1, &silent)]), Election::Undecided(vec![0, 1]));
        tracker.accept(&primary(1, 0));
        assert_eq!(
            tracker.elect(&[(0, &old), (1, &silent)]),
            Election::Primary { number: 1, timeline: 0, rivals: vec![0] }
        );
    }
}
