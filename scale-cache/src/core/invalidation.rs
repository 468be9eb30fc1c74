//! Invalidates tags and removes keys: in this process at once, and everywhere as soon as the store
//! has received the invalidation. What the store did not confirm is pending, and sent again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::Core;
use super::pending_invalidations::Reach;
use crate::policy::journal::Named;
use crate::store::Position;

/// First and maximum delay before a failed invalidation is sent again.
const TOLD_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));
/// Number of pending invalidations that are sent at once.
const TOLD_AT_ONCE: usize = 256;

impl Core {
    pub(crate) async fn invalidate(
        self: &Arc<Self>,
        tag: Arc<str>,
        position: Option<Position>,
    ) -> Reach {
        metrics::counter!("scale_cache_invalidations_total").increment(1);
        if self.l2.is_none() {
            self.versions.invalidate_alone(&tag, position.as_ref());
            return Reach::Everywhere;
        }
        let here = self.pending.add_tag(&tag, position.clone(), || {
            self.versions.invalidate_here(&tag, position.as_ref())
        });
        let core = Arc::clone(self);
        // The caller may be dropped: an invalidation that counts here must be sent to the store in
        // any case.
        let telling = tokio::spawn(async move {
            let told = core.tell_tag(&tag, here).await;
            if !told {
                spawn_replay(core);
            }
            told
        });
        Reach::of(telling.await.unwrap_or(false))
    }

    pub(crate) async fn drop_key(self: &Arc<Self>, key: &str) -> Reach {
        if self.l2.is_none() {
            self.local.remove(key);
            return Reach::Everywhere;
        }
        let key: Arc<str> = key.into();
        let number = self.pending.add_key(Arc::clone(&key));
        self.local.remove(&key);
        let core = Arc::clone(self);
        let telling = tokio::spawn(async move {
            let told = core.tell_key(&key, number).await;
            if !told {
                spawn_replay(core);
            }
            told
        });
        Reach::of(telling.await.unwrap_or(false))
    }

    /// Sends an invalidation to the store. Returns `false` if the store did not confirm it.
    pub(crate) async fn tell_tag(&self, tag: &Arc<str>, here: u64) -> bool {
        let Some(store) = &self.l2 else { return true };
        let position = self.pending.version_of(tag).and_then(|(_, position)| position);
        let Some(theirs) = self.tell(store.invalidate(tag, position.as_ref())).await else {
            return false;
        };
        self.versions.told(tag, here, theirs.at_us);
        self.journal.note(store.now_us(), Named::Tag(Arc::clone(tag)));
        self.pending.tag_told(tag, here);
        true
    }

    pub(crate) async fn tell_key(&self, key: &Arc<str>, number: u64) -> bool {
        let Some(store) = &self.l2 else { return true };
        let told = self.tell(store.remove(key)).await.is_some();
        if told {
            self.journal.note(store.now_us(), Named::Key(Arc::clone(key)));
            self.pending.key_told(key, number);
        }
        told
    }
}

/// Sends pending invalidations to the store, repeatedly until all are confirmed.
pub(crate) fn spawn_replay(core: Arc<Core>) {
    if !core.pending.begin() {
        return;
    }
    tokio::spawn(async move {
        let mut pause = Duration::ZERO;
        let mut turn = ReplayTask { core, is_over: false };
        let core = Arc::clone(&turn.core);
        loop {
            let (tags, keys) = core.pending.portion(TOLD_AT_ONCE);
            if tags.is_empty() && keys.is_empty() {
                if core.pending.end() {
                    turn.is_over = true;
                    return;
                }
                continue;
            }
            let tags = join_all(tags.iter().map(|(tag, here)| core.tell_tag(tag, *here)));
            let keys = join_all(keys.iter().map(|(key, number)| core.tell_key(key, *number)));
            let (tags, keys) = tokio::join!(tags, keys);
            if tags.into_iter().chain(keys).all(|told| told) {
                pause = Duration::ZERO;
                continue;
            }
            if pause.is_zero() {
                tracing::warn!("the cache's second level is down: invalidations are pending");
            }
            pause = (2 * pause).clamp(TOLD_AGAIN.0, TOLD_AGAIN.1);
            tokio::time::sleep(pause).await;
        }
    });
}

/// Replay task. One runs at a time; if it ends early with its runtime, another one may start.
struct ReplayTask {
    core: Arc<Core>,
    is_over: bool,
}

impl Drop for ReplayTask {
    fn drop(&mut self) {
        if !self.is_over {
            self.core.pending.give_up();
        }
    }
}
