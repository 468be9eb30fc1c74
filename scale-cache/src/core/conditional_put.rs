//! Conditional puts: for values that are fetched first and checked afterwards. The versions of
//! their tags are read before the fetch begins, and a value is stored only if they are unchanged.
//! The rule is that of a load, for values that cannot come from a loader.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::core::new_entry::NewEntry;
use crate::core::tag_versions::LoadStart;
use crate::core::{Core, tag_versions};
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

impl TagSnapshot {
    /// Takes a snapshot of these tags before a fetch begins.
    pub(crate) async fn take(core: &Core, tags: impl IntoIterator<Item = Arc<str>>) -> Self {
        let own = [Arc::clone(core.everything.tag())];
        let tags: Vec<Arc<str>> = own.into_iter().chain(tags).collect();
        let began = tag_versions::begin(core);
        let stamps = tag_versions::current(core, &tags).await;
        Self { stamps, since: Instant::now(), began }
    }

    /// Stores a fetched value, unless one of its tags was invalidated since the snapshot. `late`
    /// are tags that were known only with the value. Returns the tag versions if the value is
    /// stored.
    pub(crate) async fn put<V>(
        &self,
        core: &Core,
        key: Arc<str>,
        options: &Options,
        late: &[Arc<str>],
        value: Arc<V>,
    ) -> Option<Stamps>
    where
        V: Serialize + Send + Sync + 'static,
    {
        let late = tag_versions::known_since(core, late, self.began).await;
        let stamps = self.stamps.clone().and(late?);
        if stamps.agree() != Agreement::Same {
            return None;
        }
        let mut made =
            NewEntry::of(value, stamps.clone(), options, options.ttl, Duration::ZERO).ok()?;
        let fence: Fence = core.local.watch(&key);
        made.entry = Entry { era: self.began.era, since: self.since, ..made.entry };
        if let Some(store) = &core.l2
            && let Some((bytes, kept)) = made.shared(store.now_us(), core.compress_over)
        {
            // The entry carries its tags' versions: an invalidation from now on makes it invalid
            // there as well, whenever it arrives.
            let _ = core.ask(store.set(&key, &bytes, kept)).await;
        }
        core.local.insert(&key, &fence, &Arc::new(made.entry));
        Some(stamps)
    }
}
