//! Invalidations that the store has not received yet. They count in this process at once, and are
//! sent when the store answers again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::Position;

/// Reach of an invalidation when its call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reach {
    /// Every server knows it, within the bound stated in the [crate's docs](crate).
    Everywhere,
    /// Only this server knows it, because Redis is unavailable. It is sent to Redis, and so to the
    /// others, as soon as Redis answers.
    Here,
}

impl Reach {
    pub(crate) fn of(told: bool) -> Self {
        if told { Self::Everywhere } else { Self::Here }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Pending {
    sets: Mutex<Sets>,
    /// Number of keys, so that the common case of none costs one atomic read.
    keys: AtomicUsize,
    /// Notified when nothing is left.
    empty: Notify,
}

/// A part of the pending invalidations: tags with their local versions, and keys with their
/// numbers.
pub(crate) type Portion = (Vec<(Arc<str>, u64)>, Vec<(Arc<str>, u64)>);

#[derive(Debug, Default)]
struct Sets {
    /// Tags with their local versions, and the positions of their invalidations.
    tags: HashMap<Arc<str>, (u64, Option<Position>)>,
    /// Keys with a number that distinguishes removals of one key.
    keys: HashMap<Arc<str>, u64>,
    removals: u64,
    /// `true` if a replay task is running.
    replay_running: bool,
}

impl Sets {
    fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.keys.is_empty()
    }
}

impl Pending {
    /// Adds a tag. `version` creates the local version; both happen under one lock.
    pub(crate) fn add_tag(
        &self,
        tag: &Arc<str>,
        position: Option<Position>,
        version: impl FnOnce() -> u64,
    ) -> u64 {
        let mut sets = self.sets.lock();
        let here = version();
        let position = position.max(sets.tags.get(tag).and_then(|(_, position)| position.clone()));
        sets.tags.insert(Arc::clone(tag), (here, position));
        here
    }

    /// Runs `work` while nothing is added or removed; its argument says whether a tag is pending.
    pub(crate) fn hold<T>(&self, work: impl FnOnce(&dyn Fn(&str) -> bool) -> T) -> T {
        let sets = self.sets.lock();
        work(&|tag| sets.tags.contains_key(tag))
    }

    /// Handles an invalidation by another process. If the tag is pending, its local version
    /// changes, and must be sent again. Otherwise runs `otherwise` under the same lock. Returns
    /// whether the tag is pending.
    pub(crate) fn renew_tag(
        &self,
        tag: &str,
        version: impl FnOnce() -> u64,
        otherwise: impl FnOnce(),
    ) -> bool {
        let mut sets = self.sets.lock();
        match sets.tags.get_mut(tag) {
            Some((here, _)) => *here = version(),
            None => otherwise(),
        }
        sets.tags.contains_key(tag)
    }

    pub(crate) fn add_key(&self, key: Arc<str>) -> u64 {
        let mut sets = self.sets.lock();
        sets.removals += 1;
        let number = sets.removals;
        sets.keys.insert(key, number);
        self.keys.store(sets.keys.len(), SeqCst);
        number
    }

    /// Returns the local version of a pending tag.
    pub(crate) fn version_of(&self, tag: &str) -> Option<(u64, Option<Position>)> {
        self.sets.lock().tags.get(tag).cloned()
    }

    /// Returns whether the key is pending, so that the store's value must not be used.
    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.keys.load(SeqCst) > 0 && self.sets.lock().keys.contains_key(key)
    }

    /// Returns whether the caller must run the replay: if none is running, and something is
    /// pending.
    pub(crate) fn begin(&self) -> bool {
        let mut sets = self.sets.lock();
        if sets.replay_running || sets.is_empty() {
            return false;
        }
        sets.replay_running = true;
        true
    }

    /// Returns a part of what is pending.
    pub(crate) fn portion(&self, most: usize) -> Portion {
        let sets = self.sets.lock();
        let tags: Vec<_> =
            sets.tags.iter().take(most).map(|(tag, (here, _))| (Arc::clone(tag), *here)).collect();
        let keys = sets
            .keys
            .iter()
            .take(most - tags.len())
            .map(|(key, number)| (Arc::clone(key), *number))
            .collect();
        (tags, keys)
    }

    /// Waits until nothing is pending.
    pub(crate) async fn flushed(&self) {
        loop {
            let mut empty = std::pin::pin!(self.empty.notified());
            empty.as_mut().enable();
            if self.sets.lock().is_empty() {
                return;
            }
            empty.await;
        }
    }

    /// Removes a confirmed tag, unless it was invalidated again in the meantime.
    pub(crate) fn tag_told(&self, tag: &Arc<str>, here: u64) {
        let mut sets = self.sets.lock();
        if sets.tags.get(tag).is_some_and(|(version, _)| *version == here) {
            sets.tags.remove(tag);
            self.ring_if_empty(&sets);
        }
    }

    pub(crate) fn key_told(&self, key: &Arc<str>, number: u64) {
        let mut sets = self.sets.lock();
        if sets.keys.get(key) == Some(&number) {
            sets.keys.remove(key);
            self.keys.store(sets.keys.len(), SeqCst);
            self.ring_if_empty(&sets);
        }
    }

    fn ring_if_empty(&self, sets: &Sets) {
        if sets.is_empty() {
            self.empty.notify_waiters();
        }
    }

    /// Ends a replay that [`begin`](Self::begin) started, although something is left.
    pub(crate) fn give_up(&self) {
        self.sets.lock().replay_running = false;
    }

    /// Ends a replay that [`begin`](Self::begin) started, if nothing is left.
    pub(crate) fn end(&self) -> bool {
        let mut sets = self.sets.lock();
        let done = sets.is_empty();
        sets.replay_running = !done;
        done
    }
}
