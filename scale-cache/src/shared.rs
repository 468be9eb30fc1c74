//! The dealings with the second level: what it is asked, what it is told, what of it is believed.

use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::cache::{Inner, Want};
use crate::codec::{Head, fingerprint, unpacked};
use crate::entry::{Entry, Worth, weight};
use crate::error::Error;
use crate::flight::Outcome;
use crate::options::Options;
use crate::stamp::{Agreement, Cell, Fence, Stamps};
use crate::store::News;

/// A process that loads says so three times as often; if it is silent for that long, another one may load.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// Values kept in the first level between two evictions.
const EVICT_EVERY: u32 = 64;
/// Clocks of a Cluster's nodes may differ by less.
const SKEW_US: u64 = 1_000_000;

/// What was true before the second level was asked: an entry from there is no better than that. Who removes a key notes it as pending
/// before moving the fence, and who reads looks at the fence before what is pending: so one of the two sees the other.
pub(crate) struct Glance {
    fence: Fence,
    era: u64,
    since: Instant,
}

impl Glance {
    pub(crate) fn new(inner: &Inner, key: &str) -> Self {
        Self { fence: inner.versions.fence(key), era: inner.versions.era(), since: Instant::now() }
    }

    /// Whether no news may have been missed since.
    pub(crate) fn is_current(&self, inner: &Inner) -> bool {
        self.era == inner.versions.era()
    }
}

impl Inner {
    pub(crate) fn worth(&self, entry: &Entry) -> Worth {
        self.worth_at(Instant::now(), entry)
    }

    pub(crate) fn worth_at(&self, now: Instant, entry: &Entry) -> Worth {
        entry.worth(now, &self.versions, |since| self.link.trust_until(since))
    }

    /// Whether an entry that should be checked, and cannot be, may be served all the same: not invalidated as far as is known, fresh by its
    /// age, and no longer after the gap than with the link still down. So a Redis that restarts does not make everything load anew.
    pub(crate) fn believes(&self, entry: &Entry) -> bool {
        let now = Instant::now();
        self.versions.stands(entry.fence)
            && entry.stamps.agree() != Agreement::Changed
            && now < entry.fresh_until
            && now < self.link.unchecked_until()
    }

    pub(crate) fn keep(&self, key: &Arc<str>, entry: &Arc<Entry>) {
        if let Some(local) = &self.local {
            local.insert(Arc::clone(key), Arc::clone(entry));
            // moka evicts later, and under a flood too late.
            if self.kept.fetch_add(1, Relaxed).is_multiple_of(EVICT_EVERY) {
                local.run_pending_tasks();
            }
        }
    }

    /// An entry of the first level, whatever it is worth.
    pub(crate) fn here(&self, key: &str) -> Option<Arc<Entry>> {
        self.local.as_ref()?.get(key)
    }

    pub(crate) fn forget(&self, key: &str) {
        if let Some(local) = &self.local {
            local.invalidate(key);
        }
    }

    /// Asks the second level, within its patience and unless it has just failed.
    pub(crate) async fn ask<T>(&self, question: impl Future<Output = Result<T, Error>>) -> Option<T> {
        if !self.breaker.allows() {
            return None;
        }
        let late = |_| Err(Error::store("it did not answer in time"));
        self.heard(timeout(self.patience, question).await.unwrap_or_else(late))
    }

    /// What a question came to, which tells how the second level is.
    fn heard<T>(&self, answer: Result<T, Error>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.breaker.succeeded();
                Some(answer)
            }
            Err(error) => {
                tracing::debug!(%error, patience = ?self.patience, "the cache goes on without its second level");
                metrics::counter!("scale_cache_store_errors_total").increment(1);
                self.breaker.failed();
                None
            }
        }
    }

    /// Holds on to the right to load while something loads.
    pub(crate) async fn keeping_lease<T>(&self, lease: Option<(&str, u64)>, load: impl Future<Output = T>) -> T {
        let (Some((key, token)), Some(store)) = (lease, &self.shared) else { return load.await };
        let renew = async {
            loop {
                tokio::time::sleep(LEASE / 3).await;
                // Taken away by a removal: then the fill will be refused, and whoever waits for this value still gets it.
                let _ = self.ask(store.renew(key, token, LEASE)).await;
            }
        };
        tokio::select! {
            biased;
            value = load => value,
            () = renew => unreachable!("it renews for ever"),
        }
    }

    pub(crate) fn tags(&self, want: Want<'_>) -> Vec<Arc<str>> {
        let own = [Arc::clone(self.everything.tag()), Arc::clone(want.space.tag())];
        own.into_iter().chain(want.options.tags.iter().cloned()).collect()
    }

    pub(crate) async fn stamp(&self, want: Want<'_>) -> Stamps {
        self.stamp_tags(&self.tags(want)).await
    }

    /// The versions of these tags, asked for where they are not known. If they cannot be, versions of this process' own.
    pub(crate) async fn stamp_tags(&self, tags: &[Arc<str>]) -> Stamps {
        loop {
            match self.versions.stamp(tags.iter().cloned()) {
                Ok(stamps) => return stamps,
                Err(unknown) if self.resolve(&unknown).await => {}
                Err(_) => return self.versions.assume(tags.iter().cloned()),
            }
        }
    }

    /// Asks for the versions of tags; `false` if the store does not answer.
    async fn resolve(&self, unknown: &[Arc<str>]) -> bool {
        let Some(store) = &self.shared else {
            for tag in unknown {
                self.versions.settle_alone(tag);
            }
            return true;
        };
        let era = self.versions.era();
        let answers = join_all(unknown.iter().map(|tag| async move {
            if let Some((here, position)) = self.pending.version_of(tag) {
                self.versions.remember(tag, here, position.as_ref());
                return true;
            }
            match self.ask(store.version(tag)).await {
                Some(version) if self.versions.learn(era, tag, &version) => true,
                // We remember an invalidation that the store has lost: it is made again.
                Some(_) => match self.ask(store.invalidate(tag, None)).await {
                    Some(version) => {
                        self.versions.accept(era, tag, &version);
                        true
                    }
                    None => false,
                },
                None => false,
            }
        }))
        .await;
        answers.into_iter().all(|known| known)
    }

    /// Stamps of tags that came up during a load which began then; `None` if one of them was invalidated since.
    pub(crate) async fn stamp_late(&self, tags: Vec<Arc<str>>, began: u64, shared: bool) -> Option<Stamps> {
        if tags.is_empty() {
            return Some(Stamps::default());
        }
        let stamps = self.stamp_tags(&tags).await;
        let margin = if shared { SKEW_US } else { 0 };
        let known = self.shared.is_none() || (shared && stamps.shareable().is_some());
        (known && stamps.precede(began.saturating_sub(margin))).then_some(stamps)
    }

    /// An entry's bytes in the second level. Take a [`Glance`] first.
    pub(crate) async fn get_shared(&self, key: &str) -> Option<Vec<u8>> {
        let store = self.shared.as_ref().filter(|_| !self.pending.has_key(key))?;
        if self.gets_in_time {
            // The way of every hit: spared a second timer.
            return if self.breaker.allows() { self.heard(store.get(key).await)? } else { None };
        }
        self.ask(store.get(key)).await?
    }

    /// Bytes from the second level as an entry, if its stamps agree with what is true now.
    pub(crate) async fn admit<V>(&self, glance: &Glance, space: &Arc<Cell>, bytes: Option<Vec<u8>>) -> Option<Arc<Entry>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        let (store, bytes) = (self.shared.as_ref()?, bytes?);
        let Some((head, payload)) = Head::read(&bytes).filter(|(head, _)| head.fingerprint == fingerprint::<V>()) else {
            metrics::counter!("scale_cache_unreadable_total").increment(1);
            return None;
        };
        let now_us = store.now_us();
        let left = |until: u64| Duration::from_micros(until.saturating_sub(now_us));
        let stamps = self.versions.stamps_of(head.tags, [&self.everything, space]);
        // Without news what was known proves nothing: the versions come from where the bytes do.
        let doubtful = if !self.link.is_up() {
            stamps.tags().cloned().collect()
        } else if stamps.agree() != Agreement::Same {
            self.versions.stamp(stamps.tags().cloned()).err().unwrap_or_default()
        } else {
            Vec::new()
        };
        if !self.resolve(&doubtful).await {
            return None;
        }
        if stamps.agree() != Agreement::Same {
            return None;
        }
        let payload = unpacked(head.compressed, payload);
        let Some(Ok(value)) = payload.as_deref().map(rmp_serde::from_slice::<V>) else {
            metrics::counter!("scale_cache_unreadable_total").increment(1);
            return None;
        };
        let entry = Entry {
            value: Arc::new(value),
            stamps,
            fence: glance.fence,
            era: glance.era,
            made: glance.since.checked_sub(Duration::from_micros(now_us.saturating_sub(head.made_us))).unwrap_or(glance.since),
            since: glance.since,
            fresh_until: glance.since + left(head.fresh_until_us),
            kept_until: glance.since + left(head.kept_until_us),
            cost: head.cost,
            weight: weight(payload.map_or(0, |p| p.len())),
        };
        Some(Arc::new(entry))
    }

    /// With a failed load: the stale value, for a while, if there is one that may be served.
    pub(crate) fn make_do(&self, key: &Arc<str>, old: Option<Arc<Entry>>, options: &Options, error: Error) -> Outcome {
        let usable = |entry: &Arc<Entry>| matches!(self.worth(entry), Worth::Fresh | Worth::Stale);
        let Some(old) = old.filter(|entry| !options.fail_closed && usable(entry)) else { return Err(error) };
        tracing::warn!(%error, "a load failed; the stale value is served");
        metrics::counter!("scale_cache_stale_total").increment(1);
        let fresh_until = (Instant::now() + options.throttle).min(old.kept_until).max(old.fresh_until);
        let entry = Arc::new(Entry { fresh_until, cost: Duration::ZERO, ..(*old).clone() });
        self.keep(key, &entry);
        Ok(entry)
    }

    /// Tells the store of an invalidation; `false` if it could not be told.
    pub(crate) async fn tell_tag(&self, tag: &Arc<str>, here: u64) -> bool {
        let Some(store) = &self.shared else { return true };
        let position = self.pending.version_of(tag).and_then(|(_, position)| position);
        let Some(theirs) = self.ask(store.invalidate(tag, position.as_ref())).await else { return false };
        self.versions.told(tag, here, theirs.at_us);
        self.pending.tag_told(tag, here);
        true
    }

    pub(crate) async fn tell_key(&self, key: &Arc<str>, number: u64) -> bool {
        let Some(store) = &self.shared else { return true };
        let told = self.ask(store.remove(key)).await.is_some();
        if told {
            self.pending.key_told(key, number);
        }
        told
    }
}

/// Tells the store what is pending, again and again until it has heard all.
pub(crate) fn tell_later(inner: Arc<Inner>) {
    if !inner.pending.begin() {
        return;
    }
    tokio::spawn(async move {
        let mut failed = false;
        loop {
            let told = match (inner.pending.next_tag(), inner.pending.next_key()) {
                (Some((tag, here)), _) => inner.tell_tag(&tag, here).await,
                (None, Some((key, number))) => inner.tell_key(&key, number).await,
                (None, None) if inner.pending.end() => return,
                (None, None) => true,
            };
            if !told {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!("invalidations are kept until the cache's second level can be told");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
}

/// Takes in what other processes do, until the last handle is gone.
pub(crate) async fn listen(inner: Weak<Inner>, mut news: BoxStream<'static, News>) {
    while let Some(news) = news.next().await {
        let Some(inner) = inner.upgrade() else { return };
        match news {
            News::Invalidated(tag, version) => {
                let position = version.position.as_ref();
                let here = || inner.versions.invalidate_here(&tag, position);
                if inner.pending.renew_tag(&tag, here, || inner.versions.invalidated(&tag, &version)) {
                    tell_later(Arc::clone(&inner));
                }
            }
            News::Changed(key) => {
                inner.versions.bump_fence(&key);
                inner.forget(&key);
            }
            News::Lost => {
                inner.link.went_down();
                metrics::counter!("scale_cache_links_lost_total").increment(1);
            }
            News::Restored => {
                // What was missed is unknown: nothing known counts before the link is said to be up.
                inner.pending.hold(|has| inner.versions.forget(has));
                inner.link.came_up();
            }
        }
    }
}
