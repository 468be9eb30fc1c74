//! Which node is the primary, as far as is known; and who only says so.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::dialect::Probe;
use crate::node::Role;

/// Shared by the handle and its pools: a pool goes on trying to connect for a while, and must not hand out a connection to a primary of
/// before a fail-over that has come back meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Reign {
    /// Node number + 1; 0 while there is none.
    primary: AtomicUsize,
    /// The highest timeline ever seen: a primary of a lower one is a leftover.
    timeline: AtomicU64,
}

impl Reign {
    pub(crate) fn primary(&self) -> Option<usize> {
        self.primary.load(Ordering::Acquire).checked_sub(1)
    }

    /// The monitor's finding. Returns the primary before and now.
    pub(crate) fn found(&self, found: Option<(usize, u64)>) -> (Option<usize>, Option<usize>) {
        let accepted = found.filter(|(_, timeline)| *timeline >= self.timeline.fetch_max(*timeline, Ordering::AcqRel));
        let new = accepted.map_or(0, |(number, _)| number + 1);
        let old = self.primary.swap(new, Ordering::AcqRel);
        (old.checked_sub(1), new.checked_sub(1))
    }

    /// Whether a node that says it is the primary is one of before a fail-over.
    pub(crate) fn is_over(&self, number: usize, probe: &Probe) -> bool {
        let known = self.timeline.load(Ordering::Acquire);
        let another = self.primary().is_some_and(|primary| primary != number);
        probe.role == Role::Primary && (probe.timeline < known || (probe.timeline == known && another))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Position;

    #[test]
    fn a_leftover_is_told_from_a_successor() {
        let probe = |role, timeline| Probe { role, timeline, position: Position::default(), lag: None, cluster: None };
        let reign = Reign::default();
        assert!(!reign.is_over(0, &probe(Role::Primary, 1)), "at the start nobody is known");
        assert_eq!(reign.found(Some((0, 1))), (None, Some(0)));
        assert!(!reign.is_over(1, &probe(Role::Primary, 2)), "a successor");
        assert!(reign.is_over(1, &probe(Role::Primary, 1)), "another of the same time");
        assert!(!reign.is_over(1, &probe(Role::Replica, 0)));
        assert_eq!(reign.found(None), (Some(0), None));
        assert_eq!(reign.found(Some((1, 2))), (None, Some(1)));
        assert!(reign.is_over(0, &probe(Role::Primary, 1)) && !reign.is_over(1, &probe(Role::Primary, 2)));
        assert_eq!(reign.found(Some((0, 1))), (Some(1), None), "it does not reign again");
    }
}
