//! What was invalidated while the store could not be told. Kept, believed here at once, and told when the store is back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::Position;

/// Who knows of an invalidation that has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Every server, within the bound stated in the [crate's docs](crate).
    Everywhere,
    /// This server alone: Redis could not be told. It will be as soon as it answers, and the others with it.
    Here,
}

impl Reach {
    pub(crate) fn of(told: bool) -> Self {
        if told { Self::Everywhere } else { Self::Here }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Pending {
    inner: Mutex<Inner>,
    /// How many keys are in there, for the quick look: none, as a rule.
    keys: AtomicUsize,
    /// Rung when nothing is left.
    empty: Notify,
}

/// A part of what is pending: tags with their versions made here, and keys with their numbers.
pub(crate) type Portion = (Vec<(Arc<str>, u64)>, Vec<(Arc<str>, u64)>);

#[derive(Debug, Default)]
struct Inner {
    /// With the version made here, and the position it came with.
    tags: HashMap<Arc<str>, (u64, Option<Position>)>,
    /// With a number that tells two removals of one key apart.
    keys: HashMap<Arc<str>, u64>,
    removals: u64,
    /// Somebody is telling the store.
    told_by_somebody: bool,
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.keys.is_empty()
    }
}

impl Pending {
    /// `version` makes the version here; nobody forgets it in between.
    pub(crate) fn add_tag(&self, tag: &Arc<str>, position: Option<Position>, version: impl FnOnce() -> u64) -> u64 {
        let mut inner = self.inner.lock();
        let here = version();
        let position = position.max(inner.tags.get(tag).and_then(|(_, position)| position.clone()));
        inner.tags.insert(Arc::clone(tag), (here, position));
        here
    }

    /// Does something while nothing is added or told; `has` says of a tag whether it is in here.
    pub(crate) fn hold<T>(&self, work: impl FnOnce(&dyn Fn(&str) -> bool) -> T) -> T {
        let inner = self.inner.lock();
        work(&|tag| inner.tags.contains_key(tag))
    }

    /// News of an invalidation elsewhere: of a tag that is in here the version made here must change, too, and be told anew. `false`: it is
    /// not in here, and `otherwise` was done, with nobody adding it meanwhile.
    pub(crate) fn renew_tag(&self, tag: &str, version: impl FnOnce() -> u64, otherwise: impl FnOnce()) -> bool {
        let mut inner = self.inner.lock();
        match inner.tags.get_mut(tag) {
            Some((here, _)) => *here = version(),
            None => otherwise(),
        }
        inner.tags.contains_key(tag)
    }

    pub(crate) fn add_key(&self, key: Arc<str>) -> u64 {
        let mut inner = self.inner.lock();
        inner.removals += 1;
        let number = inner.removals;
        inner.keys.insert(key, number);
        self.keys.store(inner.keys.len(), SeqCst);
        number
    }

    /// The version made here of a tag the store does not know of yet.
    pub(crate) fn version_of(&self, tag: &str) -> Option<(u64, Option<Position>)> {
        self.inner.lock().tags.get(tag).cloned()
    }

    /// Returns whether the store's word on this key is not to be believed.
    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.keys.load(SeqCst) > 0 && self.inner.lock().keys.contains_key(key)
    }

    /// Returns whether the one who asks is to tell it: the first, and only if there is something.
    pub(crate) fn begin(&self) -> bool {
        let mut inner = self.inner.lock();
        if inner.told_by_somebody || inner.is_empty() {
            return false;
        }
        inner.told_by_somebody = true;
        true
    }

    /// Some of what is pending.
    pub(crate) fn portion(&self, most: usize) -> Portion {
        let inner = self.inner.lock();
        let tags: Vec<_> = inner.tags.iter().take(most).map(|(tag, (here, _))| (Arc::clone(tag), *here)).collect();
        let keys = inner.keys.iter().take(most - tags.len()).map(|(key, number)| (Arc::clone(key), *number)).collect();
        (tags, keys)
    }

    /// Returns when nothing is pending.
    pub(crate) async fn flushed(&self) {
        loop {
            let mut empty = std::pin::pin!(self.empty.notified());
            empty.as_mut().enable();
            if self.inner.lock().is_empty() {
                return;
            }
            empty.await;
        }
    }

    /// Told, unless it was invalidated again meanwhile.
    pub(crate) fn tag_told(&self, tag: &Arc<str>, here: u64) {
        let mut inner = self.inner.lock();
        if inner.tags.get(tag).is_some_and(|(version, _)| *version == here) {
            inner.tags.remove(tag);
            self.ring_if_empty(&inner);
        }
    }

    pub(crate) fn key_told(&self, key: &Arc<str>, number: u64) {
        let mut inner = self.inner.lock();
        if inner.keys.get(key) == Some(&number) {
            inner.keys.remove(key);
            self.keys.store(inner.keys.len(), SeqCst);
            self.ring_if_empty(&inner);
        }
    }

    fn ring_if_empty(&self, inner: &Inner) {
        if inner.is_empty() {
            self.empty.notify_waiters();
        }
    }

    /// Ends what [`begin`](Self::begin) began, though something is left.
    pub(crate) fn give_up(&self) {
        self.inner.lock().told_by_somebody = false;
    }

    /// Ends what [`begin`](Self::begin) began, if nothing is left.
    pub(crate) fn end(&self) -> bool {
        let mut inner = self.inner.lock();
        let done = inner.is_empty();
        inner.told_by_somebody = !done;
        done
    }
}
