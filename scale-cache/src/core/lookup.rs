//! Finds, stores and loads values in both levels.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::core::invalidation::spawn_replay;
use crate::core::l2_client::ReadSnapshot;
use crate::core::load_task::LoadTask;
use crate::core::new_entry::NewEntry;
use crate::core::single_flight::FlightTerms;
use crate::core::{Core, tag_versions};
use crate::error::Error;
use crate::format::{ends, fingerprint};
use crate::load_context::LoadContext;
use crate::options::{LONGEST, Options};
use crate::policy::entry::{Entry, Validity};
use crate::policy::fences::Fence;
use crate::policy::journal::Named;
use crate::policy::versions::{Agreement, Cell};

/// Number of retries for a value that is written during the lookup.
const FINDS: usize = 3;

/// Result of a read of the first level.
pub(crate) enum LocalRead<V> {
    Fresh(Arc<V>),
    /// The value is fresh, but should be reloaded early so that no later caller has to wait.
    Expiring(Arc<V>),
    Nothing,
}

/// A lookup of a value.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'a> {
    pub(crate) key: &'a str,
    pub(crate) space: &'a Arc<Cell>,
    pub(crate) options: &'a Options,
}

impl Lookup<'_> {
    /// Returns the tags of the entry: the global one, that of the space, and those of the options.
    fn tags(&self, core: &Core) -> Vec<Arc<str>> {
        let own = [Arc::clone(core.everything.tag()), Arc::clone(self.space.tag())];
        own.into_iter().chain(self.options.tags.iter().cloned()).collect()
    }
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

    /// Reads the first level only. No allocation, no wait.
    pub(crate) fn look<V: Send + Sync + 'static>(self: &Arc<Self>, key: &str) -> LocalRead<V> {
        let Some(entry) = self.local.get(key) else { return LocalRead::Nothing };
        let Ok(value) = Arc::clone(&entry.value).downcast() else { return LocalRead::Nothing };
        let now = Instant::now();
        if self.validity_at(now, &entry) != Validity::Fresh {
            return LocalRead::Nothing;
        }
        metrics::counter!("scale_cache_hits_total", "level" => "1").increment(1);
        if entry.wants_refresh(now, fastrand::f64) {
            LocalRead::Expiring(value)
        } else {
            LocalRead::Fresh(value)
        }
    }

    /// Reads the second level, for a key that is not in the first level; does not load.
    pub(crate) async fn find<V>(
        self: &Arc<Self>,
        key: &str,
        space: &Arc<Cell>,
    ) -> Option<Arc<Entry>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        self.l2.as_ref()?;
        let key: Arc<str> = key.into();
        let mut tries = 0..FINDS;
        let entry = loop {
            let snapshot = ReadSnapshot::new(self, &key);
            let Some(bytes) = self.get_shared(&key).await else {
                let unsure = self.local.get(&key).filter(|entry| {
                    entry.value.is::<V>() && self.validity(entry) == Validity::MustRevalidate
                });
                return unsure
                    .filter(|entry| !self.is_whole() && self.believes(entry, &snapshot.fence));
            };
            let found = self.admit::<V>(&snapshot, space, Some(bytes)).await;
            let validity = found.as_ref().map_or(Validity::Invalid, |entry| self.validity(entry));
            if let Some(entry) =
                found.filter(|_| snapshot.fence.stands() && validity == Validity::Fresh)
            {
                self.local.insert(&key, &snapshot.fence, &entry);
                break entry;
            }
            // A value read while the link came up or was found overdue, or while the key was
            // written, cannot be used: it is read again.
            tries.next()?;
            if snapshot.is_current(self)
                && snapshot.fence.stands()
                && validity != Validity::MustRevalidate
            {
                return None;
            }
        };
        metrics::counter!("scale_cache_hits_total", "level" => "2").increment(1);
        Some(entry)
    }

    pub(crate) async fn put<V>(self: &Arc<Self>, lookup: Lookup<'_>, value: V) -> Result<(), Error>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let key: Arc<str> = lookup.key.into();
        let stamps = tag_versions::current(self, &lookup.tags(self)).await;
        let (since, era) = (Instant::now(), self.versions.era());
        let mut made =
            NewEntry::new(value, stamps, lookup.options, lookup.options.ttl, Duration::ZERO)?;
        made.check::<V>(self.strict)?;
        made.entry = Entry { era, since, ..made.entry };
        let entry = Arc::new(made.entry.clone());
        let number = self.l2.is_some().then(|| self.pending.add_key(Arc::clone(&key)));
        let fence = self.local.remove_for_write(&key);
        if let (Some(number), Some(store)) = (number, self.l2.clone()) {
            let bytes = made.shared(store.now_us(), self.compress_over);
            let (core, key) = (Arc::clone(self), Arc::clone(&key));
            let _ = tokio::spawn(async move {
                let told = match bytes {
                    Some((bytes, kept)) => core.tell(store.set(&key, &bytes, kept)).await.is_some(),
                    None => false,
                };
                if told {
                    core.journal.note(store.now_us(), Named::Key(Arc::clone(&key)));
                    core.pending.key_told(&key, number);
                } else if !core.tell_key(&key, number).await {
                    spawn_replay(core);
                }
            })
            .await;
        }
        if !self.local.insert(&key, &fence, &entry) {
            // Another write ran at the same time, and the order in which the store applied them is
            // unknown.
            self.local.remove(&key);
        }
        Ok(())
    }

    /// The slow path: joins or starts a single flight, which reads the second level and then loads.
    /// With `refresh`, a fresh value is reloaded in the background.
    pub(crate) async fn load<V, F, Fut, E>(
        self: &Arc<Self>,
        lookup: Lookup<'_>,
        refresh: bool,
        load: F,
    ) -> Result<Arc<dyn Any + Send + Sync>, Error>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: FnOnce(LoadContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let key: Arc<str> = lookup.key.into();
        let mut load = Some(load);
        let came = self.versions.number();
        loop {
            // Taken before any read: invalidations from here on are noticed.
            let (number, fence) = (self.versions.number(), self.local.watch(&key));
            let old = self.local.get(&key).filter(|entry| entry.value.is::<V>());
            let validity = old.as_ref().map_or(Validity::Invalid, |entry| self.validity(entry));
            let unsure = old.clone().filter(|_| validity == Validity::MustRevalidate);
            let old = old.filter(|_| matches!(validity, Validity::Fresh | Validity::Stale));
            if let Some(old) = old.as_ref().filter(|_| validity == Validity::Fresh && !refresh) {
                return Ok(Arc::clone(&old.value));
            }
            let tags = lookup.tags(self);
            let terms = FlightTerms {
                fingerprint: fingerprint::<V>(),
                fence,
                era: self.versions.era(),
                bumped: self.versions.bumped(&tags),
                number,
                at: Instant::now(),
            };
            let is_trusted =
                |at| self.subscription.trust_until(at).is_none_or(|end| Instant::now() < end);
            let begin = || {
                let task = Box::new(LoadTask {
                    core: Arc::clone(self),
                    key: Arc::clone(&key),
                    space: Arc::clone(lookup.space),
                    tags,
                    options: lookup.options.clone(),
                    terms: terms.clone(),
                    refresh: validity == Validity::Fresh,
                    old: old.clone(),
                    unsure,
                });
                // Called at most once: a caller that has started a load gets its result.
                let load = load.take();
                async move {
                    match load {
                        Some(load) => task.run::<V, F, Fut, E>(load).await,
                        None => Err(Error::Panicked).into(),
                    }
                }
            };
            let flight = match self.flights.join(&key, terms.clone(), came, is_trusted, begin) {
                // A loader that refreshes its own value may read that value.
                Err(Error::Cycle(_)) if validity == Validity::Fresh && old.is_some() => {
                    return old.map(|old| Arc::clone(&old.value)).ok_or(Error::Panicked);
                }
                flight => flight?,
            };
            let begun_here = load.is_none();
            if let Some(old) = old {
                if validity == Validity::Fresh {
                    // The value is reloaded in the background.
                    return Ok(Arc::clone(&old.value));
                }
                if let Some(limit) = lookup.options.soft_timeout {
                    match timeout(limit, flight.landed()).await {
                        Ok(Some(outcome)) => return Ok(Arc::clone(&outcome?.value)),
                        Ok(None) if !begun_here => continue,
                        Ok(None) => return Err(Error::Panicked),
                        Err(_) => return Ok(Arc::clone(&old.value)),
                    }
                }
            }
            match flight.landed().await {
                Some(outcome) => return Ok(Arc::clone(&outcome?.value)),
                None if !begun_here => {}
                // Happens only when the runtime shuts down.
                None => return Err(Error::Panicked),
            }
        }
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
        self.local.insert(key, fence, &entry);
        Ok(entry)
    }

    /// Restarts the TTL of a fresh entry in both levels. Returns `false` if neither level has one.
    pub(crate) async fn touch(&self, key: &str, options: &Options) -> bool {
        let here = self.local.get(key).filter(|entry| self.validity(entry) == Validity::Fresh);
        if let Some(entry) = &here {
            self.prolong(key, entry, options);
        }
        match &self.l2 {
            None => here.is_some(),
            Some(store) => {
                let ttl = options.jittered(options.ttl, fastrand::f64());
                let now = store.now_us();
                let until = |time: Duration| now.saturating_add(time.as_micros() as u64);
                let ends = ends(until(ttl), until(options.kept(ttl)));
                // If the store does not answer, the restart in the first level counts.
                self.ask(store.touch(key, ends, options.kept(ttl))).await.unwrap_or(here.is_some())
            }
        }
    }

    fn prolong(&self, key: &str, old: &Arc<Entry>, options: &Options) {
        let (now, ttl) = (Instant::now(), options.jittered(options.ttl, fastrand::f64()));
        let entry = Entry {
            fresh_until: now + ttl,
            kept_until: now + options.kept(ttl),
            ..(**old).clone()
        };
        // If its tags were invalidated since the read, its tag versions still show that.
        self.local.replace(key, old, Arc::new(entry));
    }

    /// Returns whether the TTL of a value that was just read should restart.
    pub(crate) fn slides(&self, key: &str, options: &Options) -> bool {
        let is_due = |entry: &Arc<Entry>| {
            entry.fresh_until.saturating_duration_since(Instant::now()) < options.ttl / 2
        };
        options.sliding && self.local.get(key).as_ref().is_none_or(is_due)
    }
}
