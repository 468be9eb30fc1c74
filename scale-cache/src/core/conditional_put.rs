//! Conditional puts: for values that are fetched first and checked afterwards. The versions of
//! their tags are read before the fetch begins, and a value is stored only if they are unchanged.
//! The rule is that of a load, for values that cannot come from a loader.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::Core;
use crate::clock::steady_us;
use crate::core::l2_client::LoadStart;
use crate::core::new_entry::NewEntry;
use crate::options::Options;
use crate::policy::entry::Entry;
use crate::policy::fences::Fence;
use crate::policy::versions::{Agreement, Stamps};

/// State before a fetch began: tag versions, fence and time.
pub(crate) struct TagSnapshot {
    stamps: Stamps,
    since: Instant,
    began: LoadStart,
}

impl Core {
    /// Takes a snapshot of these tags before a fetch begins.
    pub(crate) async fn note(&self, tags: impl IntoIterator<Item = Arc<str>>) -> TagSnapshot {
        let own = [Arc::clone(self.everything.tag())];
        let tags: Vec<Arc<str>> = own.into_iter().chain(tags).collect();
        let began = self.begin_here();
        let stamps = self.stamp_tags(&tags).await;
        TagSnapshot { stamps, since: Instant::now(), began }
    }

    /// Stores a fetched value, unless one of its tags was invalidated since the snapshot. `late`
    /// are tags that were known only with the value. Returns the tag versions if the value is
    /// stored.
    pub(crate) async fn put_if_current<V>(
        &self,
        noted: &TagSnapshot,
        key: Arc<str>,
        options: &Options,
        late: &[Arc<str>],
        value: Arc<V>,
    ) -> Option<Stamps>
    where
        V: Serialize + Send + Sync + 'static,
    {
        let late = self.stamp_late(late, noted.began).await;
        let stamps = noted.stamps.clone().and(late?);
        if stamps.agree() != Agreement::Same {
            return None;
        }
        let mut made =
            NewEntry::of(value, stamps.clone(), options, options.ttl, Duration::ZERO).ok()?;
        let fence: Fence = self.fences.watch(&key);
        made.entry = Entry { era: noted.began.era, since: noted.since, ..made.entry };
        if let Some(store) = &self.l2
            && let Some((bytes, kept)) = made.shared(store.now_us(), self.compress_over)
        {
            // The entry carries its tags' versions: an invalidation from now on makes it invalid
            // there as well, whenever it arrives.
            let _ = self.ask(store.set(&key, &bytes, kept)).await;
        }
        self.keep(&key, &fence, &Arc::new(made.entry));
        Some(stamps)
    }
}

impl Core {
    /// Returns milliseconds since 1970, by the second level's clock if there is one. Changes of
    /// this machine's clock have no effect.
    pub(crate) fn now_ms(&self) -> u64 {
        self.l2.as_ref().map_or_else(steady_us, |store| store.now_us()) / 1_000
    }
}
