//! The dealings with the second level: what it is asked, what it is told, what of it is believed.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::cache::{Inner, Want};
use crate::clock::since_boot;
use crate::codec::{Head, decoded, fingerprint, unpacked};
use crate::entry::{Entry, Worth, weight};
use crate::error::Error;
use crate::fence::Fence;
use crate::journal::Named;
use crate::options::{LONGEST, Options};
use crate::stamp::{Agreement, Cell, Stamps};

/// A process that loads says so three times as often; if it is silent for that long, another one may load.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// Values kept in the first level between two evictions.
const EVICT_EVERY: u32 = 64;
/// The first pause before what could not be told is told again, and the longest.
const TOLD_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));
/// The number of pending invalidations that are told at once.
const TOLD_AT_ONCE: usize = 256;

/// What was true before the second level was asked: an entry from there is no better than that. Who removes a key notes it as pending
/// before moving the fence, and who reads looks at the fence before what is pending: so one of the two sees the other.
pub(crate) struct Glance {
    pub(crate) fence: Fence,
    era: u64,
    since: Instant,
}

impl Glance {
    pub(crate) fn new(inner: &Inner, key: &Arc<str>) -> Self {
        Self { fence: inner.fences.watch(key), era: inner.versions.era(), since: Instant::now() }
    }

    /// Returns whether no news may have been missed since.
    pub(crate) fn is_current(&self, inner: &Inner) -> bool {
        self.era == inner.versions.era()
    }
}

/// When something was begun that a value is made of: for tags that only the value tells.
#[derive(Clone, Copy)]
pub(crate) struct Began {
    /// The number of the last invalidation heard of.
    pub(crate) number: u64,
    pub(crate) era: u64,
    /// By [`since_boot`].
    pub(crate) at: Duration,
    /// By the store's clock, µs, if it was known.
    pub(crate) store_us: Option<u64>,
}

impl Inner {
    pub(crate) fn worth(&self, entry: &Entry) -> Worth {
        self.worth_at(Instant::now(), entry)
    }

    pub(crate) fn worth_at(&self, now: Instant, entry: &Entry) -> Worth {
        entry.worth(now, &self.versions, |since| self.link.trust_until(since))
    }

    /// Returns whether an entry that should be checked, and cannot be, may be served all the same: not invalidated as far as is known, fresh by its
    /// age, and no longer after the gap than with the link still down. So a Redis that restarts does not make everything load anew.
    pub(crate) fn believes(&self, entry: &Entry, fence: &Fence) -> bool {
        let now = Instant::now();
        fence.stands()
            && entry.stamps.agree() != Agreement::Changed
            && now < entry.fresh_until
            && now < self.link.unchecked_until()
    }

    /// Puts an entry into the first level, unless its key was written or removed since `fence` was taken: then `false`.
    pub(crate) fn keep(&self, key: &Arc<str>, fence: &Fence, entry: &Arc<Entry>) -> bool {
        let Some(local) = &self.local else { return fence.stands() };
        let kept = fence.if_stands(|| local.insert(Arc::clone(key), Arc::clone(entry)));
        // moka evicts later, and under a flood too late.
        if self.kept.fetch_add(1, Relaxed).is_multiple_of(EVICT_EVERY) {
            local.run_pending_tasks();
        }
        kept
    }

    /// Puts an entry into the first level in the place of another one, if that is still there.
    pub(crate) fn replace(&self, key: &str, old: &Arc<Entry>, new: Arc<Entry>) {
        if let Some(local) = &self.local {
            self.fences.hold(key, || {
                if local.get(key).is_some_and(|there| Arc::ptr_eq(&there, old)) {
                    local.insert(key.into(), new);
                }
            });
        }
    }

    /// An entry of the first level, whatever it is worth.
    pub(crate) fn here(&self, key: &str) -> Option<Arc<Entry>> {
        self.local.as_ref()?.get(key)
    }

    /// A key was written or removed, here or elsewhere.
    pub(crate) fn forget(&self, key: &str) {
        self.fences.bump(key, || self.take_out(key));
    }

    /// Takes an entry out of the first level. Its fence must be held.
    pub(crate) fn take_out(&self, key: &str) {
        if let Some(local) = &self.local {
            local.invalidate(key);
        }
    }

    /// Asks the second level, within its patience and unless it has just failed.
    pub(crate) async fn ask<T>(&self, question: impl Future<Output = Result<T, Error>>) -> Option<T> {
        self.ask_within(self.patience, question).await
    }

    /// Tells the second level of an invalidation: its replicas may have to hear of it, too.
    pub(crate) async fn tell<T>(&self, word: impl Future<Output = Result<T, Error>>) -> Option<T> {
        self.ask_within(self.told_within, word).await
    }

    async fn ask_within<T>(&self, limit: Duration, question: impl Future<Output = Result<T, Error>>) -> Option<T> {
        if !self.breaker.allows() {
            return None;
        }
        self.be_all_ears();
        let late = |_| Err(Error::store("it did not answer in time"));
        self.heard(timeout(limit, question).await.unwrap_or_else(late))
    }

    /// What a question came to, which tells how the second level is.
    fn heard<T>(&self, answer: Result<T, Error>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.breaker.succeeded();
                Some(answer)
            }
            // It answers: what it refuses says nothing of all else.
            Err(Error::Refused(error)) => {
                tracing::warn!(%error, "the cache's second level refused a command");
                metrics::counter!("scale_cache_store_errors_total").increment(1);
                self.breaker.succeeded();
                None
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
                Some((version, _)) if self.versions.learn(era, tag, &version) => true,
                // We remember an invalidation that the store has lost: it is made again.
                Some(_) => match self.ask(store.invalidate(tag, self.versions.position([tag]).as_ref())).await {
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

    /// Takes note of the present moment.
    pub(crate) fn begin_here(&self) -> Began {
        let store_us = self.shared.as_ref().map(|store| store.now_us());
        Began { number: self.versions.number(), era: self.versions.era(), at: since_boot(), store_us }
    }

    /// Stamps of tags that came up while a value was made; `None` if one of them was invalidated after that had begun, or nobody can say.
    pub(crate) async fn stamp_late(&self, tags: &[Arc<str>], began: Began) -> Option<Stamps> {
        let mut all = Stamps::default();
        for stamps in join_all(tags.iter().map(|tag| self.stamp_one_late(tag, began))).await {
            all = all.and(stamps?);
        }
        Some(all)
    }

    async fn stamp_one_late(&self, tag: &Arc<str>, began: Began) -> Option<Stamps> {
        let Some(store) = &self.shared else {
            self.versions.settle_alone(tag);
            return self.versions.known_since(tag, began.number);
        };
        if let Some(stamps) = self.versions.known_since(tag, began.number) {
            return Some(stamps);
        }
        // It was not known what its version was then: it is what it is now, if the last change came before.
        let Some((version, now_us)) = self.ask(store.version(tag)).await else {
            // Nobody can say. As with other tags then: what is made here is of use here, until the store can be asked.
            let is_quiet = !self.link.is_up() && self.versions.bumped([tag]) <= began.number;
            return is_quiet.then(|| self.versions.assume([Arc::clone(tag)]));
        };
        let is_known = self.versions.learn(began.era, tag, &version);
        let elapsed = since_boot().saturating_sub(began.at);
        // Clocks do not go at quite the same speed.
        let then = now_us.saturating_sub((elapsed + elapsed / 1_000).as_micros() as u64 + 1_000);
        // And one that was set meanwhile shows in what it said before.
        let was_before = began.store_us.is_none_or(|then| version.at_us <= then) || !store.has_one_clock();
        let cell = self.versions.cell(tag);
        let is_good = is_known
            && self.versions.era() == began.era
            && version.at_us <= then
            && was_before
            && cell.version() == Some(version.at_us);
        is_good.then(|| Stamps::of(cell, version.at_us))
    }

    /// An entry's bytes in the second level. Take a [`Glance`] first.
    pub(crate) async fn get_shared(&self, key: &str) -> Option<Vec<u8>> {
        let store = self.shared.as_ref().filter(|_| !self.pending.has_key(key))?;
        self.be_all_ears();
        let bytes = if self.gets_in_time {
            // The way of every hit: spared a second timer.
            if self.breaker.allows() { self.heard(store.get(key).await)? } else { None }
        } else {
            self.ask(store.get(key)).await?
        };
        bytes.filter(|_| self.is_whole())
    }

    /// Returns whether what the second level says may be believed; if not, somebody sees to it. Asked after its answer.
    pub(crate) fn is_whole(&self) -> bool {
        let is_whole = self.shared.as_ref().is_none_or(|store| store.is_whole());
        if !is_whole {
            self.examine();
        }
        is_whole
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
        // A tag that the store had forgotten, as tags are in time, has a version there that nobody here has heard of.
        let newer = stamps.newer();
        if !newer.is_empty() && !self.resolve(&newer).await {
            return None;
        }
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
        let Some(Ok(value)) = payload.as_deref().map(decoded::<V>) else {
            metrics::counter!("scale_cache_unreadable_total").increment(1);
            return None;
        };
        let entry = Entry {
            value: Arc::new(value),
            stamps,
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
    pub(crate) fn make_do(
        &self,
        key: &Arc<str>,
        fence: &Fence,
        old: Option<Arc<Entry>>,
        options: &Options,
        error: Error,
    ) -> Result<Arc<Entry>, Error> {
        let usable = |entry: &Arc<Entry>| fence.stands() && matches!(self.worth(entry), Worth::Fresh | Worth::Stale);
        let Some(old) = old.filter(|entry| !options.fail_closed && usable(entry)) else { return Err(error) };
        tracing::warn!(%error, "a load failed; the stale value is served");
        metrics::counter!("scale_cache_stale_total").increment(1);
        let fresh_until = (Instant::now() + options.throttle.min(LONGEST)).min(old.kept_until).max(old.fresh_until);
        let entry = Arc::new(Entry { fresh_until, cost: Duration::ZERO, ..(*old).clone() });
        self.keep(key, fence, &entry);
        Ok(entry)
    }

    /// Tells the store of an invalidation; `false` if it could not be told.
    pub(crate) async fn tell_tag(&self, tag: &Arc<str>, here: u64) -> bool {
        let Some(store) = &self.shared else { return true };
        let position = self.pending.version_of(tag).and_then(|(_, position)| position);
        let Some(theirs) = self.tell(store.invalidate(tag, position.as_ref())).await else { return false };
        self.versions.told(tag, here, theirs.at_us);
        self.journal.note(store.now_us(), Named::Tag(Arc::clone(tag)));
        self.pending.tag_told(tag, here);
        true
    }

    pub(crate) async fn tell_key(&self, key: &Arc<str>, number: u64) -> bool {
        let Some(store) = &self.shared else { return true };
        let told = self.tell(store.remove(key)).await.is_some();
        if told {
            self.journal.note(store.now_us(), Named::Key(Arc::clone(key)));
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
        let mut pause = Duration::ZERO;
        let mut turn = Turn { inner, is_over: false };
        let inner = Arc::clone(&turn.inner);
        loop {
            let (tags, keys) = inner.pending.portion(TOLD_AT_ONCE);
            if tags.is_empty() && keys.is_empty() {
                if inner.pending.end() {
                    turn.is_over = true;
                    return;
                }
                continue;
            }
            let tags = join_all(tags.iter().map(|(tag, here)| inner.tell_tag(tag, *here)));
            let keys = join_all(keys.iter().map(|(key, number)| inner.tell_key(key, *number)));
            let (tags, keys) = tokio::join!(tags, keys);
            if tags.into_iter().chain(keys).all(|told| told) {
                pause = Duration::ZERO;
                continue;
            }
            if pause.is_zero() {
                tracing::warn!("invalidations are kept until the cache's second level can be told");
            }
            pause = (2 * pause).clamp(TOLD_AGAIN.0, TOLD_AGAIN.1);
            tokio::time::sleep(pause).await;
        }
    });
}

/// One task at a time tells the store. If it ends before it is done, because its runtime does, another one may.
struct Turn {
    inner: Arc<Inner>,
    is_over: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            self.inner.pending.give_up();
        }
    }
}
