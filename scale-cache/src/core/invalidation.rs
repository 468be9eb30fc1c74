//! Invalidates tags and removes keys: in this process at once, and everywhere as soon as the store
//! has received the invalidation.

use std::sync::Arc;

use super::Core;
use super::l2_client::spawn_replay;
use super::pending_invalidations::Reach;
use crate::store::Position;

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
            self.forget(key);
            return Reach::Everywhere;
        }
        let key: Arc<str> = key.into();
        let number = self.pending.add_key(Arc::clone(&key));
        self.forget(&key);
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
}
