//! Events of the second level: invalidations by other processes, loss of data, loss of the
//! subscription.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use tokio::time::{Instant, timeout};

use crate::clock::since_boot;
use crate::core::Core;
use crate::core::invalidation::spawn_replay;
use crate::error::Error;
use crate::policy::journal::Named;
use crate::policy::versions::GLOBAL_TAG;
use crate::store::{Loss, Store, StoreEvent};

/// Time for other processes to reconnect after the store has lost invalidations. Each process
/// repeats the invalidations that it knows; until then no process uses the store's entries.
const GRACE: Duration = Duration::from_secs(2);
/// Minimum time for the store's first answer.
const FIRST_ANSWER: Duration = Duration::from_millis(500);
/// Number of link checks between two reads of the versions of spaces and of the global tag: they
/// are used for as long as the process lives, and the store may expire them.
const RENEWED_EVERY: u32 = 9;
const PAUSE: Duration = Duration::from_millis(100);

/// Marks the listener task as running until it is dropped.
struct Listening(Weak<Core>);

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.subscription.disconnected();
            core.is_unsubscribed.store(true, SeqCst);
        }
    }
}

/// Marks the examination of the store as running until it is dropped.
struct Examining(Weak<Core>);

impl Drop for Examining {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.is_examined.store(false, SeqCst);
        }
    }
}

/// Makes sure that a task listens to the store's events: starts another one if the previous one
/// ended with its runtime.
pub(crate) fn subscribe(core: &Core) {
    if !core.is_unsubscribed.load(SeqCst) {
        return;
    }
    let Some(store) = &core.l2 else { return };
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    if core.is_unsubscribed.swap(false, SeqCst) {
        let listening = Listening(Weak::clone(&core.this));
        let task = runtime.spawn(listen(listening, store.events()));
        *core.listener.lock() = Some(task.abort_handle());
    }
}

/// Starts a task that finds out what the store has lost, and repairs it.
pub(crate) fn examine(core: &Core) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    if !core.is_examined.swap(true, SeqCst) {
        runtime.spawn(make_whole(Examining(Weak::clone(&core.this))));
    }
}

/// Repeats all invalidations that may have been lost. Returns whether the journal was complete.
async fn replay_journal(core: &Arc<Core>, since_us: u64) -> bool {
    let (names, complete) = core.journal.since(since_us);
    if !names.is_empty() {
        tracing::warn!(
            count = names.len(),
            "the cache's second level may have lost invalidations: repeating them"
        );
    }
    for name in names {
        match name {
            Named::Tag(tag) => {
                let position = core.versions.position([&tag]);
                core.pending.add_tag(&tag, position.clone(), || {
                    core.versions.invalidate_here(&tag, position.as_ref())
                });
            }
            Named::Key(key) => {
                core.pending.add_key(Arc::clone(&key));
                core.local.remove(&key);
            }
        }
    }
    spawn_replay(Arc::clone(core));
    core.pending.flushed().await;
    complete
}

/// Reads the versions of the cache's own tags, so that they do not expire, and agree with those
/// that other processes know.
async fn renew_own_tags(core: &Core) {
    let Some(store) = &core.l2 else { return };
    for tag in core.versions.own_tags() {
        let era = core.versions.era();
        if let Some((version, _)) = core.ask(store.version(&tag)).await
            && core.pending.version_of(&tag).is_none()
        {
            core.versions.learn(era, &tag, &version);
        }
    }
}

/// Invalidates everything in the store.
async fn clear_all(core: &Core, store: &Arc<dyn Store>) -> bool {
    tracing::warn!(
        "the cache's second level has lost unknown invalidations: invalidating all its entries"
    );
    let Some(version) = core.ask(store.invalidate(GLOBAL_TAG, None)).await else {
        return false;
    };
    core.versions.invalidated(GLOBAL_TAG, &version);
    true
}

/// Waits for the store's first answer. A new store is initialised when this returns.
pub(crate) async fn answered(core: &Core) -> Result<(), Error> {
    let Some(store) = &core.l2 else { return Ok(()) };
    let limit = FIRST_ANSWER.max(core.store_timeout);
    let until = Instant::now() + limit;
    loop {
        let late = |_| Err(Error::store("the store did not answer in time"));
        match timeout(limit, store.examine()).await.unwrap_or_else(late) {
            // One task sets the store's marks, and repairs what it has lost.
            Ok(Loss::Everything) if Instant::now() < until => examine(core),
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE / 20).await;
    }
}

/// Processes the events of other processes, until the last handle is dropped.
async fn listen(listening: Listening, mut news: BoxStream<'static, StoreEvent>) {
    let mut beats: u32 = 0;
    while let Some(news) = news.next().await {
        let Some(core) = listening.0.upgrade() else { return };
        let Some(store) = &core.l2 else { return };
        match news {
            StoreEvent::Invalidated(tag, version) => {
                let position = version.position.as_ref();
                let here = || core.versions.invalidate_here(&tag, position);
                if core.pending.renew_tag(&tag, here, || core.versions.invalidated(&tag, &version))
                {
                    spawn_replay(Arc::clone(&core));
                }
                core.journal.note(store.now_us(), Named::Tag(tag));
            }
            StoreEvent::Changed(key) => {
                core.local.remove(&key);
                core.journal.note(store.now_us(), Named::Key(key));
            }
            StoreEvent::Lost => {
                core.subscription.disconnected();
                // Events after the last link check may have been missed.
                core.journal.end(
                    store
                        .now_us()
                        .saturating_sub(core.subscription.unproven_for().as_micros() as u64),
                );
                metrics::counter!("scale_cache_subscriptions_lost_total").increment(1);
                core.is_whole();
            }
            StoreEvent::Restored => {
                // The missed events are unknown: nothing known counts any more before the link
                // counts as up.
                core.pending.hold(|has| core.versions.forget(has));
                core.subscription.connected();
                if core.is_whole() {
                    tokio::spawn(resume_journal(Arc::clone(&core)));
                }
                spawn_replay(Arc::clone(&core));
            }
            StoreEvent::Heard { asked } => {
                core.subscription.proven_at(asked);
                beats += 1;
                if core.is_whole() {
                    // The link may have come up while the store was examined.
                    if core.journal.has_ended() {
                        tokio::spawn(resume_journal(Arc::clone(&core)));
                    }
                    let (core, is_due) = (Arc::clone(&core), beats.is_multiple_of(RENEWED_EVERY));
                    tokio::spawn(async move {
                        if let Some(store) = &core.l2 {
                            store.mark().await;
                        }
                        if is_due {
                            renew_own_tags(&core).await;
                        }
                    });
                }
            }
        }
    }
}

/// Lets the journal begin again, if the store has lost nothing. The connection of commands may not
/// have noticed yet that the server was restarted: then the journal still ends at the loss of the
/// subscription, and is complete for the repair.
async fn resume_journal(core: Arc<Core>) {
    let Some(store) = &core.l2 else { return };
    let heard = Heard::now(&core);
    if matches!(core.ask(store.examine()).await, Some(Loss::Nothing)) {
        Heard::resume(heard, &core);
    } else {
        examine(&core);
    }
}

/// A time from which on events are received, as long as the link stays up.
#[derive(Clone, Copy)]
struct Heard {
    since_us: u64,
    era: u64,
}

impl Heard {
    /// Returns the current time, if the link is up.
    fn now(core: &Core) -> Option<Self> {
        let store = core.l2.as_ref().filter(|_| core.subscription.is_up())?;
        Some(Self { since_us: store.now_us(), era: core.versions.era() })
    }

    /// Lets the journal begin again at this time, if the link has stayed up since.
    fn resume(heard: Option<Self>, core: &Core) {
        let Some(Self { since_us, era }) = heard else { return };
        let is_heard = || core.subscription.is_up() && core.versions.era() == era;
        if is_heard() {
            core.journal.resume(since_us);
            // Lost in between.
            if !is_heard() {
                core.journal.end(since_us);
            }
        }
    }
}

/// Repairs what the store has lost, until nothing is missing.
async fn make_whole(examining: Examining) {
    let mut told: Option<Repeated> = None;
    loop {
        let Some(core) = examining.0.upgrade() else { return };
        let Some(store) = core.l2.clone() else { return };
        if store.is_whole() {
            return;
        }
        // Invalidations from here on are received, if the link is up: a mark made below has a later
        // time.
        let heard = Heard::now(&core);
        let loss = core.ask(store.examine()).await;
        let incarnation = store.incarnation();
        // A further loss during the repair: all invalidations are repeated.
        told = told.filter(|told| told.incarnation == incarnation);
        let is_made_good = match loss {
            Some(Loss::Nothing) => {
                Heard::resume(heard, &core);
                continue;
            }
            Some(Loss::Everything) => clear_all(&core, &store).await,
            // Other processes have repeated what they knew.
            Some(Loss::SettledSince(since_us)) => {
                replay_journal(&core, since_us).await;
                true
            }
            Some(loss @ (Loss::Since(_) | Loss::Unknown)) => {
                let since_us = if let Loss::Since(since_us) = loss { Some(since_us) } else { None };
                let told = if let Some(told) = told {
                    told
                } else {
                    let is_complete = replay_journal(&core, since_us.unwrap_or_default()).await
                        && since_us.is_some();
                    *told.insert(Repeated { incarnation, at: since_boot(), is_complete })
                };
                let waited = since_boot().saturating_sub(told.at);
                // A process with a complete journal settles the loss; if there is none, everything
                // is invalidated.
                if told.is_complete {
                    waited > GRACE
                } else {
                    waited > 2 * GRACE && clear_all(&core, &store).await
                }
            }
            None => false,
        };
        if is_made_good
            && store.incarnation() == incarnation
            && core.ask(store.settle()).await.is_some()
        {
            Heard::resume(heard, &core);
            continue;
        }
        drop((core, store));
        tokio::time::sleep(PAUSE).await;
    }
}

/// State of a repair: all invalidations that this process knows have been repeated.
#[derive(Clone, Copy)]
struct Repeated {
    /// Server that received them.
    incarnation: u64,
    at: Duration,
    is_complete: bool,
}
