//! Calls to L2 with time-out and circuit breaker, validation of what it returns, and replay of
//! pending invalidations.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::clock::since_boot;
use crate::core::Core;
use crate::core::lookup::Lookup;
use crate::error::Error;
use crate::format::{Head, decoded, fingerprint, unpacked};
use crate::options::{LONGEST, Options};
use crate::policy::entry::{Entry, Validity, weight};
use crate::policy::fences::Fence;
use crate::policy::journal::Named;
use crate::policy::versions::{Agreement, Cell, Stamps};

/// Duration of a load lease. A process that loads renews it three times as often; if it expires,
/// another process may load.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// Number of values inserted into the first level between two evictions.
const EVICT_EVERY: u32 = 64;
/// First and maximum delay before a failed invalidation is sent again.
const TOLD_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));
/// Number of pending invalidations that are sent at once.
const TOLD_AT_ONCE: usize = 256;

/// Fence and era as read before the second level is asked. Ordering: `remove` adds the key to the
/// pending invalidations before it bumps the fence; a read loads the fence before it checks the
/// pending ones. One of the two therefore sees the other.
pub(crate) struct ReadSnapshot {
    pub(crate) fence: Fence,
    era: u64,
    since: Instant,
}

impl ReadSnapshot {
    pub(crate) fn new(core: &Core, key: &Arc<str>) -> Self {
        Self { fence: core.fences.watch(key), era: core.versions.era(), since: Instant::now() }
    }

    /// Returns whether no events may have been missed since.
    pub(crate) fn is_current(&self, core: &Core) -> bool {
        self.era == core.versions.era()
    }
}

/// Start of a load, for tags that are known only with the value.
#[derive(Clone, Copy)]
pub(crate) struct LoadStart {
    /// Number of the last invalidation received.
    pub(crate) number: u64,
    pub(crate) era: u64,
    /// Time by [`since_boot`].
    pub(crate) at: Duration,
    /// Time by the store's clock, in µs, if known.
    pub(crate) store_us: Option<u64>,
}

impl Core {
    pub(crate) fn validity(&self, entry: &Entry) -> Validity {
        self.validity_at(Instant::now(), entry)
    }

    pub(crate) fn validity_at(&self, now: Instant, entry: &Entry) -> Validity {
        entry.validity(now, &self.versions, |since| self.subscription.trust_until(since))
    }

    /// Returns whether an entry that must be revalidated, and cannot be, may be served: not
    /// invalidated as far as known, not expired, and no longer after a lost link than with the link
    /// still down. So a restart of Redis does not make every entry load again.
    pub(crate) fn believes(&self, entry: &Entry, fence: &Fence) -> bool {
        let now = Instant::now();
        fence.stands()
            && entry.stamps.agree() != Agreement::Changed
            && now < entry.fresh_until
            && now < self.subscription.unchecked_until()
    }

    /// Inserts an entry into the first level, unless its key was written or removed since `fence`
    /// was taken. Returns whether it was inserted.
    pub(crate) fn keep(&self, key: &Arc<str>, fence: &Fence, entry: &Arc<Entry>) -> bool {
        let Some(local) = &self.local else { return fence.stands() };
        let kept = fence.if_stands(|| local.insert(Arc::clone(key), Arc::clone(entry)));
        // moka evicts with a delay, which is too long under a flood.
        if self.kept.fetch_add(1, Relaxed).is_multiple_of(EVICT_EVERY) {
            local.run_pending_tasks();
        }
        kept
    }

    /// Replaces an entry in the first level, if it is still the same one.
    pub(crate) fn replace(&self, key: &str, old: &Arc<Entry>, new: Arc<Entry>) {
        if let Some(local) = &self.local {
            self.fences.hold(key, || {
                if local.get(key).is_some_and(|there| Arc::ptr_eq(&there, old)) {
                    local.insert(key.into(), new);
                }
            });
        }
    }

    /// Returns an entry of the first level, valid or not.
    pub(crate) fn get_local(&self, key: &str) -> Option<Arc<Entry>> {
        self.local.as_ref()?.get(key)
    }

    /// Removes a key from the first level after a write or removal, here or elsewhere.
    pub(crate) fn forget(&self, key: &str) {
        self.fences.bump(key, || self.take_out(key));
    }

    /// Removes an entry from the first level. The caller must hold its fence.
    pub(crate) fn take_out(&self, key: &str) {
        if let Some(local) = &self.local {
            local.invalidate(key);
        }
    }

    /// Calls the second level, with the time-out and through the circuit breaker.
    pub(crate) async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Option<T> {
        self.ask_within(self.store_timeout, question).await
    }

    /// Sends an invalidation to the second level, with the longer time-out that its replicas may
    /// need.
    pub(crate) async fn tell<T>(&self, word: impl Future<Output = Result<T, Error>>) -> Option<T> {
        self.ask_within(self.told_within, word).await
    }

    async fn ask_within<T>(
        &self,
        limit: Duration,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Option<T> {
        if !self.breaker.allows(self.now_ns()) {
            return None;
        }
        self.subscribe();
        let late = |_| Err(Error::store("the store did not answer in time"));
        self.record_outcome(timeout(limit, question).await.unwrap_or_else(late))
    }

    /// Returns the time of the circuit breaker.
    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Records the outcome of a call for the circuit breaker.
    fn record_outcome<T>(&self, answer: Result<T, Error>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.breaker.succeeded();
                Some(answer)
            }
            // The store answers: a refused command says nothing about other commands.
            Err(Error::Refused(error)) => {
                tracing::warn!(%error, "the cache's second level refused a command");
                metrics::counter!("scale_cache_store_errors_total").increment(1);
                self.breaker.succeeded();
                None
            }
            Err(error) => {
                tracing::debug!(
                    %error,
                    store_timeout = ?self.store_timeout,
                    "the call to the cache's second level failed: continuing without it",
                );
                metrics::counter!("scale_cache_store_errors_total").increment(1);
                self.breaker.failed(self.now_ns());
                None
            }
        }
    }

    /// Renews the load lease while something loads.
    pub(crate) async fn keeping_lease<T>(
        &self,
        lease: Option<(&str, u64)>,
        load: impl Future<Output = T>,
    ) -> T {
        let (Some((key, token)), Some(store)) = (lease, &self.l2) else { return load.await };
        let renew = async {
            loop {
                tokio::time::sleep(LEASE / 3).await;
                // A removal may have ended the lease: then the store refuses the value, but the
                // waiting callers still get it.
                let _ = self.ask(store.renew(key, token, LEASE)).await;
            }
        };
        tokio::select! {
            biased;
            value = load => value,
            () = renew => unreachable!("the renewal never ends"),
        }
    }

    pub(crate) fn tags(&self, lookup: Lookup<'_>) -> Vec<Arc<str>> {
        let own = [Arc::clone(self.everything.tag()), Arc::clone(lookup.space.tag())];
        own.into_iter().chain(lookup.options.tags.iter().cloned()).collect()
    }

    pub(crate) async fn stamp(&self, lookup: Lookup<'_>) -> Stamps {
        self.stamp_tags(&self.tags(lookup)).await
    }

    /// Returns the versions of these tags, asking the store for unknown ones. If the store does not
    /// answer, assumes local versions.
    pub(crate) async fn stamp_tags(&self, tags: &[Arc<str>]) -> Stamps {
        loop {
            match self.versions.stamp(tags.iter().cloned()) {
                Ok(stamps) => return stamps,
                Err(unknown) if self.resolve(&unknown).await => {}
                Err(_) => return self.versions.assume(tags.iter().cloned()),
            }
        }
    }

    /// Asks the store for the versions of tags. Returns `false` if the store does not answer.
    async fn resolve(&self, unknown: &[Arc<str>]) -> bool {
        let Some(store) = &self.l2 else {
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
                // The store has lost an invalidation that is known here: it is repeated.
                Some(_) => match self
                    .ask(store.invalidate(tag, self.versions.position([tag]).as_ref()))
                    .await
                {
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

    /// Returns the current state as the start of a load.
    pub(crate) fn begin_here(&self) -> LoadStart {
        let store_us = self.l2.as_ref().map(|store| store.now_us());
        LoadStart {
            number: self.versions.number(),
            era: self.versions.era(),
            at: since_boot(),
            store_us,
        }
    }

    /// Returns the versions of tags that became known during a load; `None` if one of them was
    /// invalidated after the start of the load, or if that cannot be excluded.
    pub(crate) async fn stamp_late(&self, tags: &[Arc<str>], began: LoadStart) -> Option<Stamps> {
        let mut all = Stamps::default();
        for stamps in join_all(tags.iter().map(|tag| self.stamp_one_late(tag, began))).await {
            all = all.and(stamps?);
        }
        Some(all)
    }

    async fn stamp_one_late(&self, tag: &Arc<str>, began: LoadStart) -> Option<Stamps> {
        let Some(store) = &self.l2 else {
            self.versions.settle_alone(tag);
            return self.versions.known_since(tag, began.number);
        };
        if let Some(stamps) = self.versions.known_since(tag, began.number) {
            return Some(stamps);
        }
        // The version at that time was not known: it is the current one if the last change was
        // before.
        let Some((version, now_us)) = self.ask(store.version(tag)).await else {
            // The store does not answer. As for other tags then, the value may be used here until
            // the store answers.
            let is_quiet =
                !self.subscription.is_up() && self.versions.bumped([tag]) <= began.number;
            return is_quiet.then(|| self.versions.assume([Arc::clone(tag)]));
        };
        let is_known = self.versions.learn(began.era, tag, &version);
        let elapsed = since_boot().saturating_sub(began.at);
        // Clocks differ slightly in speed.
        let then = now_us.saturating_sub((elapsed + elapsed / 1_000).as_micros() as u64 + 1_000);
        // A clock that was set in the meantime is detected by the time that the store returned
        // before.
        let was_before =
            began.store_us.is_none_or(|then| version.at_us <= then) || !store.has_one_clock();
        let cell = self.versions.cell(tag);
        let is_good = is_known
            && self.versions.era() == began.era
            && version.at_us <= then
            && was_before
            && cell.version() == Some(version.at_us);
        is_good.then(|| Stamps::of(cell, version.at_us))
    }

    /// Returns an entry's bytes in the second level. Take a [`ReadSnapshot`] first.
    pub(crate) async fn get_shared(&self, key: &str) -> Option<Vec<u8>> {
        let store = self.l2.as_ref().filter(|_| !self.pending.has_key(key))?;
        self.subscribe();
        let bytes = if self.gets_in_time {
            // The path of every hit in L2: it needs no second timer.
            if self.breaker.allows(self.now_ns()) {
                self.record_outcome(store.get(key).await)?
            } else {
                None
            }
        } else {
            self.ask(store.get(key)).await?
        };
        bytes.filter(|_| self.is_whole())
    }

    /// Returns whether the content of the second level may be used; if not, starts its repair. Call
    /// this after an answer of the store.
    pub(crate) fn is_whole(&self) -> bool {
        let is_whole = self.l2.as_ref().is_none_or(|store| store.is_whole());
        if !is_whole {
            self.examine();
        }
        is_whole
    }

    /// Decodes bytes from the second level as an entry, if its tag versions agree with the current
    /// ones.
    pub(crate) async fn admit<V>(
        &self,
        snapshot: &ReadSnapshot,
        space: &Arc<Cell>,
        bytes: Option<Vec<u8>>,
    ) -> Option<Arc<Entry>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        let (store, bytes) = (self.l2.as_ref()?, bytes?);
        let Some((head, payload)) =
            Head::read(&bytes).filter(|(head, _)| head.fingerprint == fingerprint::<V>())
        else {
            metrics::counter!("scale_cache_unreadable_total").increment(1);
            return None;
        };
        let now_us = store.now_us();
        let left = |until: u64| Duration::from_micros(until.saturating_sub(now_us));
        let stamps = self.versions.stamps_of(head.tags, [&self.everything, space]);
        // A tag that the store had expired may have a version there that is unknown here.
        let newer = stamps.newer();
        if !newer.is_empty() && !self.resolve(&newer).await {
            return None;
        }
        // Without the subscription the known versions prove nothing: the versions are read from the
        // same store as the bytes.
        let doubtful = if !self.subscription.is_up() {
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
            era: snapshot.era,
            made: snapshot
                .since
                .checked_sub(Duration::from_micros(now_us.saturating_sub(head.made_us)))
                .unwrap_or(snapshot.since),
            since: snapshot.since,
            fresh_until: snapshot.since + left(head.fresh_until_us),
            kept_until: snapshot.since + left(head.kept_until_us),
            cost: head.cost,
            weight: weight(payload.map_or(0, |p| p.len())),
        };
        Some(Arc::new(entry))
    }

    /// After a failed load, returns the stale value for a while, if there is one that may be
    /// served.
    pub(crate) fn make_do(
        &self,
        key: &Arc<str>,
        fence: &Fence,
        old: Option<Arc<Entry>>,
        options: &Options,
        error: Error,
    ) -> Result<Arc<Entry>, Error> {
        let usable = |entry: &Arc<Entry>| {
            fence.stands() && matches!(self.validity(entry), Validity::Fresh | Validity::Stale)
        };
        let Some(old) = old.filter(|entry| !options.fail_closed && usable(entry)) else {
            return Err(error);
        };
        tracing::warn!(%error, "load failed: serving the stale value");
        metrics::counter!("scale_cache_stale_total").increment(1);
        let fresh_until = (Instant::now() + options.throttle.min(LONGEST))
            .min(old.kept_until)
            .max(old.fresh_until);
        let entry = Arc::new(Entry { fresh_until, cost: Duration::ZERO, ..(*old).clone() });
        self.keep(key, fence, &entry);
        Ok(entry)
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
        let mut turn = Turn { core, is_over: false };
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
struct Turn {
    core: Arc<Core>,
    is_over: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            self.core.pending.give_up();
        }
    }
}
