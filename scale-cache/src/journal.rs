//! What was invalidated lately, here or elsewhere: for a second level that restarts or fails over and has lost it. Pure: no I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

/// The number of names that are remembered.
const MOST: usize = 1 << 15;
/// The bytes of all names that are remembered.
const MOST_BYTES: usize = 8 << 20;
/// The error of the times that are noted: a moment may be later by that much.
const MARGIN_US: u64 = 2_000_000;
/// The longest time between two proofs that all news are heard.
const PROVEN_US: u64 = 1_500_000;

/// The name that an invalidation is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Named {
    Tag(Arc<str>),
    Key(Arc<str>),
}

/// The last invalidation of each name, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    latest: HashMap<Named, u64>,
    /// With those that were overtaken by a later one of the same name.
    order: VecDeque<(u64, Named)>,
    /// The bytes of the names in there.
    bytes: usize,
    /// Since when nothing is missing, and until when; µs by the store's clock.
    complete: (u64, u64),
}

impl Named {
    fn bytes(&self) -> usize {
        let (Self::Tag(name) | Self::Key(name)) = self;
        name.len()
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self { latest: HashMap::new(), order: VecDeque::new(), bytes: 0, complete: (u64::MAX, 0) }
    }
}

impl Journal {
    pub(crate) fn note(&self, at_us: u64, name: Named) {
        let mut inner = self.0.lock();
        inner.latest.insert(name.clone(), at_us);
        inner.bytes += name.bytes();
        inner.order.push_back((at_us, name));
        while inner.latest.len() > MOST || inner.order.len() > 2 * MOST || inner.bytes > MOST_BYTES {
            let Some((at, name)) = inner.order.pop_front() else { break };
            inner.bytes -= name.bytes();
            if inner.latest.get(&name) == Some(&at) {
                inner.latest.remove(&name);
                inner.complete.0 = inner.complete.0.max(at + 1);
            }
        }
    }

    /// From this moment on all news are heard.
    pub(crate) fn begin(&self, at_us: u64) {
        self.0.lock().complete = (at_us, u64::MAX);
    }

    /// The same, if that is so; unless it has begun already.
    pub(crate) fn resume(&self, at_us: Option<u64>) {
        let complete = &mut self.0.lock().complete;
        if let Some(at_us) = at_us.filter(|_| complete.1 != u64::MAX) {
            *complete = (at_us, u64::MAX);
        }
    }

    /// After this moment news may have been missed.
    pub(crate) fn end(&self, at_us: u64) {
        let complete = &mut self.0.lock().complete;
        complete.1 = complete.1.min(at_us);
    }

    /// Everything that was invalidated since, as far as it is remembered; and whether that is all of it. Somewhat more, because the store's
    /// clock is told over a network.
    pub(crate) fn since(&self, at_us: u64) -> (Vec<Named>, bool) {
        let inner = self.0.lock();
        let from = at_us.saturating_sub(MARGIN_US);
        let names = inner.latest.iter().filter(|(_, at)| **at >= from).map(|(name, _)| name.clone()).collect();
        // The link is proven about as often as a mark is made.
        (names, inner.complete.0 <= at_us && at_us <= inner.complete.1.saturating_add(PROVEN_US))
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
        journal.begin(5);
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
        assert!(journal.since(9_000_000).1 && !journal.since(9_000_002 + PROVEN_US).1, "nothing is known of the time after");
        journal.resume(Some(9_000_000));
        let (new, complete) = journal.since(9_000_000);
        assert_eq!((new.len(), complete), (all.len(), true));
    }

    #[test]
    fn one_name_over_and_over_takes_no_room() {
        let journal = Journal::default();
        journal.begin(0);
        for n in 0..10 * MOST {
            journal.note(n as u64, key(7));
        }
        assert_eq!(journal.since(5), (vec![key(7)], true));
        assert!(journal.0.lock().order.len() <= 2 * MOST);
    }
}
