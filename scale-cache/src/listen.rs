//! What the second level tells unasked: news of other processes, its own losses, and when nobody listens any more.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use tokio::time::{Instant, timeout};

use crate::cache::{Cache, Inner};
use crate::clock::since_boot;
use crate::error::Error;
use crate::journal::Named;
use crate::shared::tell_later;
use crate::stamp::ALL;
use crate::store::{Loss, News, Store};

/// Whoever has invalidated something that a store has lost says so again as soon as it is back. So long all of them are waited for before
/// anybody believes the store: longer than it takes to connect again.
const GRACE: Duration = Duration::from_secs(2);
/// The store has so long to answer for the first time.
const FIRST_ANSWER: Duration = Duration::from_millis(500);
/// The versions of spaces, and of everything, are asked for every so many proofs of the link: they are known for as long as the process
/// lives, and the store may forget them.
const RENEWED_EVERY: u32 = 9;
const PAUSE: Duration = Duration::from_millis(100);

/// Somebody listens; when this ends nobody does.
struct Listening(Weak<Inner>);

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.link.went_down();
            inner.is_deaf.store(true, SeqCst);
        }
    }
}

/// Somebody examines the store; when this ends nobody does.
struct Examining(Weak<Inner>);

impl Drop for Examining {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.is_examined.store(false, SeqCst);
        }
    }
}

impl Inner {
    /// Sees to it that somebody listens to the store's news: again, if the runtime is gone on which somebody did.
    pub(crate) fn be_all_ears(&self) {
        if !self.is_deaf.load(SeqCst) {
            return;
        }
        let Some(store) = &self.shared else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.is_deaf.swap(false, SeqCst) {
            let listening = Listening(Weak::clone(&self.this));
            let task = runtime.spawn(listen(listening, store.news()));
            *self.listener.lock() = Some(task.abort_handle());
        }
    }

    /// Finds out what the store has lost, and makes up for it.
    pub(crate) fn examine(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.is_examined.swap(true, SeqCst) {
            runtime.spawn(make_whole(Examining(Weak::clone(&self.this))));
        }
    }

    /// All that may have been lost is told once more. Returns whether that was everything.
    async fn tell_again(self: &Arc<Self>, since_us: u64) -> bool {
        let (names, complete) = self.journal.since(since_us);
        if !names.is_empty() {
            tracing::warn!(count = names.len(), "the cache's second level may have lost invalidations: they are made again");
        }
        for name in names {
            match name {
                Named::Tag(tag) => {
                    let position = self.versions.position([&tag]);
                    self.pending.add_tag(&tag, position.clone(), || self.versions.invalidate_here(&tag, position.as_ref()));
                }
                Named::Key(key) => {
                    self.pending.add_key(Arc::clone(&key));
                    self.forget(&key);
                }
            }
        }
        tell_later(Arc::clone(self));
        self.pending.flushed().await;
        complete
    }

    /// Asks for the versions of the cache's own tags: so they do not expire, and are what all others know.
    async fn renew_own_tags(&self) {
        let Some(store) = &self.shared else { return };
        for tag in self.versions.own_tags() {
            let era = self.versions.era();
            if let Some((version, _)) = self.ask(store.version(&tag)).await
                && self.pending.version_of(&tag).is_none()
            {
                self.versions.learn(era, &tag, &version);
            }
        }
    }

    /// Everything that is stored is invalid from now on.
    async fn clear_all(&self, store: &Arc<dyn Store>) -> bool {
        tracing::warn!("nobody knows what the cache's second level has lost: all that it holds is invalidated");
        let Some(version) = self.ask(store.invalidate(ALL, None)).await else { return false };
        self.versions.invalidated(ALL, &version);
        true
    }
}

impl Cache {
    /// Waits until the store has answered once. A new one is whole when this returns.
    pub(crate) async fn answered(&self) -> Result<(), Error> {
        let Some(store) = &self.0.shared else { return Ok(()) };
        let until = Instant::now() + FIRST_ANSWER;
        loop {
            let late = |_| Err(Error::store("it did not answer in time"));
            match timeout(FIRST_ANSWER, store.examine()).await.unwrap_or_else(late) {
                // Its marks are made by one task; what it has lost is seen to by the same.
                Ok(Loss::Everything) if Instant::now() < until => self.0.examine(),
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= until => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE / 20).await;
        }
    }
}

/// Takes in what other processes do, until the last handle is gone.
async fn listen(listening: Listening, mut news: BoxStream<'static, News>) {
    let mut beats: u32 = 0;
    while let Some(news) = news.next().await {
        let Some(inner) = listening.0.upgrade() else { return };
        let Some(store) = &inner.shared else { return };
        match news {
            News::Invalidated(tag, version) => {
                let position = version.position.as_ref();
                let here = || inner.versions.invalidate_here(&tag, position);
                if inner.pending.renew_tag(&tag, here, || inner.versions.invalidated(&tag, &version)) {
                    tell_later(Arc::clone(&inner));
                }
                inner.journal.note(store.now_us(), Named::Tag(tag));
            }
            News::Changed(key) => {
                inner.forget(&key);
                inner.journal.note(store.now_us(), Named::Key(key));
            }
            News::Lost => {
                inner.link.went_down();
                // What was said after the last proof may have been missed.
                inner.journal.end(store.now_us().saturating_sub(inner.link.unproven_for().as_micros() as u64));
                metrics::counter!("scale_cache_links_lost_total").increment(1);
                inner.is_whole();
            }
            News::Restored => {
                // What was missed is unknown: nothing known counts before the link is said to be up.
                inner.pending.hold(|has| inner.versions.forget(has));
                inner.link.came_up();
                if inner.is_whole() {
                    inner.journal.begin(store.now_us());
                }
                tell_later(Arc::clone(&inner));
            }
            News::Heard { asked } => {
                inner.link.proven_at(asked);
                beats += 1;
                if inner.is_whole() {
                    let (inner, is_due) = (Arc::clone(&inner), beats.is_multiple_of(RENEWED_EVERY));
                    tokio::spawn(async move {
                        if let Some(store) = &inner.shared {
                            store.mark().await;
                        }
                        if is_due {
                            inner.renew_own_tags().await;
                        }
                    });
                }
            }
        }
    }
}

/// Makes up for what the store has lost, until it has lost nothing.
async fn make_whole(examining: Examining) {
    let mut told: Option<Told> = None;
    loop {
        let Some(inner) = examining.0.upgrade() else { return };
        let Some(store) = inner.shared.clone() else { return };
        if store.is_whole() {
            return;
        }
        // What is invalidated from here on is heard, if the link is up: a mark made below is of a later moment.
        let heard_since = inner.link.is_up().then(|| store.now_us());
        let loss = inner.ask(store.examine()).await;
        let incarnation = store.incarnation();
        // Another loss while the last one was made up for: everything is told once more.
        told = told.filter(|told| told.incarnation == incarnation);
        let is_made_good = match loss {
            Some(Loss::Nothing) => {
                inner.journal.resume(heard_since);
                continue;
            }
            Some(Loss::Everything) => inner.clear_all(&store).await,
            // Others have made up for what they knew of.
            Some(Loss::SettledSince(since_us)) => {
                inner.tell_again(since_us).await;
                true
            }
            Some(loss @ (Loss::Since(_) | Loss::Unknown)) => {
                let since_us = if let Loss::Since(since_us) = loss { Some(since_us) } else { None };
                let told = if let Some(told) = told {
                    told
                } else {
                    let is_complete = inner.tell_again(since_us.unwrap_or_default()).await && since_us.is_some();
                    *told.insert(Told { incarnation, at: since_boot(), is_complete })
                };
                let waited = since_boot().saturating_sub(told.at);
                // Who remembers everything settles it; only if nobody does, nothing is left.
                if told.is_complete { waited > GRACE } else { waited > 2 * GRACE && inner.clear_all(&store).await }
            }
            None => false,
        };
        if is_made_good && store.incarnation() == incarnation && inner.ask(store.settle()).await.is_some() {
            inner.journal.resume(heard_since);
            continue;
        }
        drop((inner, store));
        tokio::time::sleep(PAUSE).await;
    }
}

/// All that this process remembers has been told again.
#[derive(Clone, Copy)]
struct Told {
    /// To which server.
    incarnation: u64,
    at: Duration,
    is_complete: bool,
}
