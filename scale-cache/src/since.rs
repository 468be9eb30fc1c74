//! Values that are fetched first and judged afterwards: what they depend on is noted before the fetch begins, and they are stored only if
//! it is still true. The same rule as for a load, for what no loader can be written for.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::cache::Cache;
use crate::clock::steady_us;
use crate::entry::Entry;
use crate::fence::Fence;
use crate::made::Made;
use crate::options::Options;
use crate::shared::Began;
use crate::space::Space;
use crate::stamp::{Agreement, Stamps};

/// What was true when a fetch began.
pub(crate) struct Noted {
    stamps: Stamps,
    since: Instant,
    began: Began,
}

impl<V> Space<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// What is true before something is fetched: these tags, of which it will be known to be made after.
    pub(crate) async fn note<const N: usize>(&self, tags: [Arc<str>; N]) -> Noted {
        let inner = &self.cache.0;
        let own = [Arc::clone(inner.everything.tag()), Arc::clone(self.cell().tag())];
        let tags: Vec<Arc<str>> = own.into_iter().chain(tags).collect();
        let began = inner.begin_here();
        let stamps = inner.stamp_tags(&tags).await;
        Noted { stamps, since: Instant::now(), began }
    }

    /// Stores what was fetched since, unless something it depends on was invalidated meanwhile; `late` are tags that only the value
    /// told. What it depends on, if it is kept.
    pub(crate) async fn put_since(
        &self,
        noted: &Noted,
        key: &str,
        options: &Options,
        late: &[Arc<str>],
        value: Arc<V>,
    ) -> Option<Stamps> {
        let inner = &self.cache.0;
        let late = inner.stamp_late(late, noted.began).await;
        let stamps = noted.stamps.clone().and(late?);
        if stamps.agree() != Agreement::Same {
            return None;
        }
        let mut made = Made::of(value, stamps.clone(), options, options.ttl, Duration::ZERO).ok()?;
        let key: Arc<str> = self.full_key(key).into();
        let fence: Fence = inner.fences.watch(&key);
        made.entry = Entry { era: noted.began.era, since: noted.since, ..made.entry };
        if let Some(store) = &inner.shared
            && let Some((bytes, kept)) = made.shared(store.now_us(), inner.compress_over)
        {
            // It carries its tags' versions: what is invalidated now is invalid there, too, whenever it arrives.
            let _ = inner.ask(store.set(&key, &bytes, kept)).await;
        }
        inner.keep(&key, &fence, &Arc::new(made.entry));
        Some(stamps)
    }
}

impl Cache {
    /// Milliseconds since 1970, by the second level's clock if there is one. Setting this machine's clock does not move it.
    pub(crate) fn now_ms(&self) -> u64 {
        self.0.shared.as_ref().map_or_else(steady_us, |store| store.now_us()) / 1_000
    }
}
