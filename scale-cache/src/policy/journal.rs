//! Journal of recent invalidations by any process. They are sent again to a second level that has
//! lost them in a restart or failover. Pure: no I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

/// Maximum number of names.
const MOST: usize = 1 << 15;
/// Maximum size of all names, in bytes.
const MOST_BYTES: usize = 8 << 20;
/// Error of the recorded times: the real time may be later by this much.
const MARGIN_US: u64 = 2_000_000;
/// Maximum time between two checks that all events have been received.
const PROVEN_US: u64 = 1_500_000;

/// Name that an invalidation refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Named {
    Tag(Arc<str>),
    Key(Arc<str>),
}

/// Last invalidation of each name, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<Core>);

#[derive(Debug)]
struct Core {
    latest: HashMap<Named, u64>,
    /// Includes entries that a later one of the same name has replaced.
    order: VecDeque<(u64, Named)>,
    /// Size of the names in `order`, in bytes.
    bytes: usize,
    /// Start and end of the time in which nothing is missing; µs by the store's clock.
    complete: (u64, u64),
}

impl Named {
    fn bytes(&self) -> usize {
        let (Self::Tag(name) | Self::Key(name)) = self;
        name.len()
    }
}

impl Default for Core {
    fn default() -> Self {
        Self { latest: HashMap::new(), order: VecDeque::new(), bytes: 0, complete: (u64::MAX, 0) }
    }
}

impl Journal {
    pub(crate) fn note(&self, at_us: u64, name: Named) {
        let mut core = self.0.lock();
        core.latest.insert(name.clone(), at_us);
        core.bytes += name.bytes();
        core.order.push_back((at_us, name));
        while core.latest.len() > MOST || core.order.len() > 2 * MOST || core.bytes > MOST_BYTES {
            let Some((at, name)) = core.order.pop_front() else { break };
            core.bytes -= name.bytes();
            if core.latest.get(&name) == Some(&at) {
                core.latest.remove(&name);
                core.complete.0 = core.complete.0.max(at + 1);
            }
        }
    }

    /// Returns whether events may be missed now.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.lock().complete.1 != u64::MAX
    }

    /// Records that from this time on all events are received, unless the record has begun already.
    pub(crate) fn resume(&self, at_us: u64) {
        let complete = &mut self.0.lock().complete;
        if complete.1 != u64::MAX {
            *complete = (at_us, u64::MAX);
        }
    }

    /// Records that after this time events may have been missed.
    pub(crate) fn end(&self, at_us: u64) {
        let complete = &mut self.0.lock().complete;
        complete.1 = complete.1.min(at_us);
    }

    /// Returns all known invalidations since a time, and whether they are complete. Includes some
    /// earlier ones, because the store's clock is known only approximately.
    pub(crate) fn since(&self, at_us: u64) -> (Vec<Named>, bool) {
        let core = self.0.lock();
        let from = at_us.saturating_sub(MARGIN_US);
        let names = core
            .latest
            .iter()
            .filter(|(_, at)| **at >= from)
            .map(|(name, _)| name.clone())
            .collect();
        // The link is checked about as often as a mark is made.
        (names, core.complete.0 <= at_us && at_us <= core.complete.1.saturating_add(PROVEN_US))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Named {
        Named::Key(n.to_string().into())
    }

    #[test]
    fn what_is_remembered_is_bounded_and_says_so() {
        let journal = Journal::default();
        journal.resume(5);
        for n in 0..MOST {
            journal.note(10 + n as u64, key(n));
        }
        let (all, complete) = journal.since(5);
        assert_eq!((all.len(), complete), (MOST, true));
        assert!(!journal.since(4).1, "nothing is known of the time before");
        journal.note(1_000_000, key(0));
        assert!(journal.since(5).1, "one of the same name takes the place of the last");
        for n in 0..MOST {
            journal.note(9_000_000 + n as u64, key(MOST + n));
        }
        let (all, complete) = journal.since(5);
        assert_eq!((all.len(), complete), (MOST, false));
        journal.end(9_000_001);
        assert!(
            journal.since(9_000_000).1 && !journal.since(9_000_002 + PROVEN_US).1,
            "nothing is known of the time after"
        );
        journal.resume(9_000_000);
        let (new, complete) = journal.since(9_000_000);
        assert_eq!((new.len(), complete), (all.len(), true));
    }

    #[test]
    fn one_name_over_and_over_takes_no_room() {
        let journal = Journal::default();
        journal.resume(0);
        for n in 0..10 * MOST {
            journal.note(n as u64, key(7));
        }
        assert_eq!(journal.since(5), (vec![key(7)], true));
        assert!(journal.0.lock().order.len() <= 2 * MOST);
    }
}
