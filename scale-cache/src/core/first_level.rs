//! The first level: entries in the memory of this process, written only under their key's fence.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use moka::sync::Cache as Moka;

use crate::policy::entry::Entry;
use crate::policy::fences::{Fence, Fences};

/// Number of inserted values between two evictions.
const EVICT_EVERY: u32 = 64;

pub(crate) struct FirstLevel {
    /// `None` if the size is zero.
    entries: Option<Moka<Arc<str>, Arc<Entry>, foldhash::fast::RandomState>>,
    inserted: AtomicU32,
    fences: Arc<Fences>,
}

impl FirstLevel {
    pub(crate) fn new(max_bytes: u64) -> Self {
        let entries = (max_bytes > 0).then(|| {
            Moka::builder()
                .max_capacity(max_bytes)
                .weigher(|key: &Arc<str>, entry: &Arc<Entry>| {
                    entry.weight.saturating_add(key.len() as u32)
                })
                .build_with_hasher(foldhash::fast::RandomState::default())
        });
        Self { entries, inserted: AtomicU32::new(1), fences: Arc::default() }
    }

    /// Returns the fence of a key: it stands until the key is written or removed.
    pub(crate) fn watch(&self, key: &Arc<str>) -> Fence {
        self.fences.watch(key)
    }

    /// Returns an entry, valid or not.
    #[inline]
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.entries.as_ref()?.get(key)
    }

    /// Inserts an entry, unless its key was written or removed since `fence` was taken. Returns
    /// whether it was inserted.
    pub(crate) fn insert(&self, key: &Arc<str>, fence: &Fence, entry: &Arc<Entry>) -> bool {
        let Some(entries) = &self.entries else { return fence.stands() };
        let inserted = fence.if_stands(|| entries.insert(Arc::clone(key), Arc::clone(entry)));
        // moka evicts with a delay, which is too long under a flood.
        if self.inserted.fetch_add(1, Relaxed).is_multiple_of(EVICT_EVERY) {
            entries.run_pending_tasks();
        }
        inserted
    }

    /// Replaces an entry, if it is still the same one.
    pub(crate) fn replace(&self, key: &str, old: &Arc<Entry>, new: Arc<Entry>) {
        if let Some(entries) = &self.entries {
            self.fences.hold(key, || {
                if entries.get(key).is_some_and(|there| Arc::ptr_eq(&there, old)) {
                    entries.insert(key.into(), new);
                }
            });
        }
    }

    /// Removes a key after a write or removal, here or elsewhere.
    pub(crate) fn remove(&self, key: &str) {
        self.fences.bump(key, || self.remove_entry(key));
    }

    /// Removes a key before a write by the caller, which goes on with the returned fence.
    pub(crate) fn remove_for_write(&self, key: &Arc<str>) -> Fence {
        let mut fence = self.fences.watch(key);
        fence.bump(|| self.remove_entry(key));
        fence
    }

    fn remove_entry(&self, key: &str) {
        if let Some(entries) = &self.entries {
            entries.invalidate(key);
        }
    }

    /// Returns the number of entries and their size in bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.entries.as_ref().map_or((0, 0), |entries| {
            entries.run_pending_tasks();
            (entries.entry_count(), entries.weighted_size())
        })
    }
}
