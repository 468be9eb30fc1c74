//! The handle: two levels, one load per key, and the rule that nothing invalidated is ever served.

use std::any::Any;
use std::future::Future;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use moka::sync::Cache as Moka;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::breaker::Breaker;
use crate::codec::{Head, MAX_TAGS, fingerprint};
use crate::config::Config;
use crate::entry::{Entry, Worth};
use crate::error::Error;
use crate::flight::{Flights, Ground, Outcome, landed};
use crate::link::Link;
use crate::load::Load;
use crate::options::Options;
use crate::pending::Pending;
use crate::space::Space;
use crate::stamp::{Agreement, Stamps, Versions};
use crate::store::{News, Store};

/// The tag of everything; with a space's name behind it, of all in the space. No tag of a user's begins like it.
pub(crate) const ALL: &str = "\0";
/// A value larger than that is not kept in the second level.
const MAX_SHARED: usize = 8 << 20;
/// Bookkeeping of one entry in the first level, bytes, about.
const OVERHEAD: usize = 256;
/// A process that loads says so three times as often; if it is silent for that long, another one may load.
const LEASE: Duration = Duration::from_secs(3);
/// Clocks of a Cluster's nodes may differ by less.
const SKEW_US: u64 = 1_000_000;

/// A tiered cache. Cloning costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_cache::Error> {
/// use scale_cache::{Cache, Options};
/// use std::time::Duration;
///
/// let cache = Cache::connect("memory:", "shop").await?; // or "redis://…": the same code
/// let options = Options::ttl(Duration::from_mins(5)).tag("product:7");
/// let title = cache.get_or_load("title:7", &options, |_| async { Ok::<_, std::io::Error>("Blue mug".to_owned()) }).await?;
/// assert_eq!(*title, "Blue mug");
/// cache.invalidate_tags(["product:7"]).await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Cache(Arc<Inner>);

struct Inner {
    local: Moka<Arc<str>, Arc<Entry>, foldhash::fast::RandomState>,
    shared: Option<Arc<dyn Store>>,
    versions: Versions,
    flights: Arc<Flights>,
    pending: Pending,
    link: Link,
    breaker: Breaker,
    patience: Duration,
    everything: Arc<str>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("shared", &self.shared).field("link_up", &self.link.is_up()).finish_non_exhaustive()
    }
}

/// What the first level has.
pub(crate) enum Look {
    Fresh(Arc<dyn Any + Send + Sync>),
    /// Fresh, and better loaded anew now than by somebody who has to wait for it.
    Expiring(Arc<dyn Any + Send + Sync>),
    Nothing,
}

/// What a caller asks for.
#[derive(Clone, Copy)]
pub(crate) struct Want<'a> {
    pub(crate) key: &'a str,
    pub(crate) space: &'a Arc<str>,
    pub(crate) options: &'a Options,
}

impl Cache {
    /// Picks the levels by address: `memory:` has the first alone; with any address of `scale-redis` (feature `redis`) Redis is the
    /// second, shared by all that use the same Redis and `app`.
    ///
    /// # Errors
    /// See [`Config::connect`].
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        Config::new(url).connect(app).await
    }

    /// The long way: its settings, then [`connect`](Config::connect).
    pub fn builder(url: &str) -> Config {
        Config::new(url)
    }

    /// A cache of this process alone.
    pub fn memory() -> Self {
        Self::alone(&Config::new("memory:"))
    }

    pub(crate) fn alone(config: &Config) -> Self {
        let this = Self::make(None, config);
        this.0.link.came_up();
        this
    }

    /// With a second level of your choice. Must be called inside a tokio runtime.
    pub fn with_store(store: impl Store, config: &Config) -> Self {
        let store: Arc<dyn Store> = Arc::new(store);
        let news = store.news();
        let this = Self::make(Some(store), config);
        tokio::spawn(listen(Arc::downgrade(&this.0), news));
        this
    }

    fn make(shared: Option<Arc<dyn Store>>, config: &Config) -> Self {
        let local = Moka::builder()
            .max_capacity(config.max_bytes)
            .weigher(|key: &Arc<str>, entry: &Arc<Entry>| entry.weight.saturating_add(key.len() as u32))
            .build_with_hasher(foldhash::fast::RandomState::default());
        Self(Arc::new(Inner {
            local,
            shared,
            versions: Versions::default(),
            flights: Arc::default(),
            pending: Pending::default(),
            link: Link::new(config.trust),
            breaker: Breaker::default(),
            patience: config.patience,
            everything: ALL.into(),
        }))
    }

    /// All entries of one kind under a name of their own.
    pub fn space<V>(&self, name: &str) -> Space<V>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        Space::new(self.clone(), name)
    }

    /// The value of a key; loaded if there is no fresh one. See [`Space::get_or_load`].
    pub async fn get_or_load<V, F, Fut, E>(&self, key: &str, options: &Options, load: F) -> Result<Arc<V>, Error>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: FnOnce(Load) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        self.space::<V>("").get_or_load_with(key, options, load).await
    }

    /// Invalidates everything that carries one of the tags: on this server before this returns, on others within milliseconds, and never
    /// later than the bound stated in the [crate's docs](crate). If Redis cannot be told now, it will be; here it counts at once.
    pub async fn invalidate_tags<T: Into<Arc<str>>>(&self, tags: impl IntoIterator<Item = T>) {
        join_all(tags.into_iter().map(|tag| self.invalidate(tag.into()))).await;
    }

    /// Invalidates everything, in one step.
    pub async fn clear(&self) {
        self.invalidate(Arc::clone(&self.0.everything)).await;
    }

    /// Whether Redis, if there is one, is reachable and its news arrive.
    pub fn is_healthy(&self) -> bool {
        self.0.link.is_up()
    }

    /// Entries and bytes of the first level, about.
    pub fn local_size(&self) -> (u64, u64) {
        self.0.local.run_pending_tasks();
        (self.0.local.entry_count(), self.0.local.weighted_size())
    }

    pub(crate) async fn invalidate(&self, tag: Arc<str>) {
        let inner = &self.0;
        metrics::counter!("scale_cache_invalidations_total").increment(1);
        if inner.shared.is_none() {
            inner.versions.settle_alone(&tag, true);
            return;
        }
        let here = inner.pending.add_tag(&tag, || inner.versions.invalidate_here(&tag));
        let inner = Arc::clone(inner);
        // Whoever asked may go away: what counts here must come to count everywhere.
        let _ = tokio::spawn(async move {
            if !inner.tell_tag(&tag, here).await {
                tell_later(inner);
            }
        })
        .await;
    }

    pub(crate) async fn drop_key(&self, key: &str) {
        let inner = &self.0;
        if inner.shared.is_none() {
            inner.versions.bump_fence(key);
            inner.local.invalidate(key);
            return;
        }
        let key: Arc<str> = key.into();
        let number = inner.pending.add_key(Arc::clone(&key));
        inner.versions.bump_fence(&key);
        inner.local.invalidate(&key);
        let inner = Arc::clone(inner);
        let _ = tokio::spawn(async move {
            if !inner.tell_key(&key, number).await {
                tell_later(inner);
            }
        })
        .await;
    }

    /// The first level alone. No allocation, no wait.
    pub(crate) fn look(&self, key: &str) -> Look {
        let inner = &self.0;
        match inner.local.get(key) {
            Some(entry) if inner.worth(key, &entry) == Worth::Fresh => {
                metrics::counter!("scale_cache_hits_total", "level" => "1").increment(1);
                if entry.wants_refresh(fastrand::f64()) {
                    Look::Expiring(Arc::clone(&entry.value))
                } else {
                    Look::Fresh(Arc::clone(&entry.value))
                }
            }
            _ => Look::Nothing,
        }
    }

    /// Both levels, without loading.
    pub(crate) async fn find<V>(&self, key: &str) -> Option<Arc<dyn Any + Send + Sync>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        let inner = &self.0;
        if let Some(entry) = inner.local.get(key).filter(|entry| inner.worth(key, entry) == Worth::Fresh) {
            return Some(Arc::clone(&entry.value));
        }
        let key: Arc<str> = key.into();
        let glance = Glance::new(inner, &key);
        let bytes = inner.get_shared(&key).await;
        let entry = inner.admit::<V>(&glance, bytes).await.filter(|entry| inner.worth(&key, entry) == Worth::Fresh)?;
        inner.keep(&key, &entry);
        Some(Arc::clone(&entry.value))
    }

    pub(crate) async fn put<V>(&self, want: Want<'_>, value: V) -> Result<(), Error>
    where
        V: Serialize + Send + Sync + 'static,
    {
        let inner = &self.0;
        let key: Arc<str> = want.key.into();
        let stamps = inner.stamp(want).await;
        let (since, era) = (Instant::now(), inner.versions.era());
        let number = inner.shared.is_some().then(|| inner.pending.add_key(Arc::clone(&key)));
        inner.versions.bump_fence(&key);
        let fence = inner.versions.fence(&key).load(SeqCst);
        let mut made = Made::new(value, stamps, want.options, want.options.ttl, Duration::ZERO)?;
        made.entry = Entry { fence, era, since, ..made.entry };
        let entry = Arc::new(made.entry.clone());
        if let (Some(number), Some(store)) = (number, inner.shared.clone()) {
            let bytes = made.shared(store.now_us());
            let (inner, key) = (Arc::clone(inner), Arc::clone(&key));
            let _ = tokio::spawn(async move {
                let told = match bytes {
                    Some((bytes, kept)) => inner.ask(store.set(&key, &bytes, kept)).await.is_some(),
                    None => false,
                };
                if told {
                    inner.pending.key_told(&key, number);
                } else if !inner.tell_key(&key, number).await {
                    tell_later(inner);
                }
            })
            .await;
        }
        inner.keep(&key, &entry);
        Ok(())
    }

    /// The slow way: joins or starts a flight, which looks into the second level and then loads. With `refresh`, a value that is fresh
    /// is loaded anew all the same, in the background.
    pub(crate) async fn load<V, F, Fut, E>(
        &self,
        want: Want<'_>,
        refresh: bool,
        load: F,
    ) -> Result<Arc<dyn Any + Send + Sync>, Error>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: FnOnce(Load) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let inner = &self.0;
        let old = inner.local.get(want.key).filter(|entry| entry.value.is::<V>());
        let worth = old.as_ref().map_or(Worth::Nothing, |entry| inner.worth(want.key, entry));
        let old = old.filter(|_| matches!(worth, Worth::Fresh | Worth::Stale));
        if let Some(old) = old.as_ref().filter(|_| worth == Worth::Fresh && !refresh) {
            return Ok(Arc::clone(&old.value));
        }
        let key: Arc<str> = want.key.into();
        let tags = inner.tags(want);
        let ground = Ground {
            fingerprint: fingerprint::<V>(),
            fence: inner.versions.fence(&key).load(SeqCst),
            era: inner.versions.era(),
            bumps: inner.versions.bumps(&tags),
        };
        let flight = inner.flights.join(&key, ground, || {
            let voyage = Voyage {
                inner: Arc::clone(inner),
                key: Arc::clone(&key),
                tags,
                options: want.options.clone(),
                ground,
                refresh: worth == Worth::Fresh,
                old: old.clone(),
            };
            voyage.sail::<V, F, Fut, E>(load)
        });
        if let Some(old) = old {
            if worth == Worth::Fresh {
                // Loaded anew in the background.
                return Ok(Arc::clone(&old.value));
            }
            if let Some(limit) = want.options.soft_timeout {
                return match timeout(limit, landed(flight)).await {
                    Ok(outcome) => Ok(Arc::clone(&outcome?.value)),
                    Err(_) => Ok(Arc::clone(&old.value)),
                };
            }
        }
        Ok(Arc::clone(&landed(flight).await?.value))
    }
}

/// A load under way, whoever waits for it.
struct Voyage {
    inner: Arc<Inner>,
    key: Arc<str>,
    tags: Vec<Arc<str>>,
    options: Options,
    ground: Ground,
    /// The value at hand is fresh still: do not take it from the second level again.
    refresh: bool,
    old: Option<Arc<Entry>>,
}

impl Voyage {
    async fn sail<V, F, Fut, E>(self, load: F) -> Outcome
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: FnOnce(Load) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let Self { inner, key, tags, options, ground, refresh, mut old } = self;
        let token = fastrand::u64(1..u64::MAX >> 12);
        // The right to load, asked of the fleet. Without a second level, or with a broken one, everybody has it.
        let deadline = Instant::now() + options.hard_timeout;
        let mut begun = None;
        let mut pause = Duration::from_millis(5);
        let mut glance = Glance::new(&inner, &key);
        let mut bytes = None;
        if !refresh {
            // Who was here just before may have left it.
            let here = inner.local.get(&key).filter(|entry| entry.value.is::<V>() && inner.worth(&key, entry) == Worth::Fresh);
            if let Some(entry) = here {
                return Ok(entry);
            }
            bytes = inner.get_shared(&key).await;
        }
        while let Some(store) = &inner.shared {
            if let Some(found) = inner.admit::<V>(&glance, bytes.take()).await {
                let is_new = old.as_ref().is_none_or(|old| found.fresh_until > old.fresh_until + Duration::from_millis(10));
                match inner.worth(&key, &found) {
                    Worth::Fresh if !refresh || is_new => {
                        metrics::counter!("scale_cache_hits_total", "level" => "2").increment(1);
                        if begun.is_some() {
                            inner.ask(store.release(&key, token)).await;
                        }
                        inner.keep(&key, &found);
                        return Ok(found);
                    }
                    Worth::Stale | Worth::Fresh => old = Some(found),
                    Worth::Unsure | Worth::Nothing => {}
                }
            }
            if begun.is_some() || inner.pending.has_key(&key) {
                break;
            }
            glance = Glance::new(&inner, &key);
            match inner.ask(store.begin(&key, token, LEASE)).await {
                Some(answer) => {
                    begun = answer.won.then_some(answer.now_us);
                    bytes = answer.entry;
                }
                None => break,
            }
            if begun.is_none() {
                // Somebody else loads: the value appears, or the right is free again.
                if Instant::now() >= deadline {
                    return inner.make_do(&key, old, &options, Error::TimedOut(options.hard_timeout));
                }
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        }
        metrics::counter!("scale_cache_misses_total").increment(1);
        // What the value depends on, as it is before the load begins.
        let stamps = inner.stamp_tags(&tags).await;
        let (since, began) = (Instant::now(), begun.unwrap_or_else(|| inner.versions.local_now()));
        let context = Load::default();
        let loaded =
            timeout(options.hard_timeout, inner.keeping_lease(begun.map(|_| (&*key, token)), load(context.clone()))).await;
        let cost = since.elapsed();
        metrics::histogram!("scale_cache_load_seconds").record(cost.as_secs_f64());
        let value = match loaded {
            Ok(Ok(value)) => value,
            failed => {
                if let (Some(store), Some(_)) = (&inner.shared, begun) {
                    inner.ask(store.release(&key, token)).await;
                }
                let error = match failed {
                    Ok(Err(error)) => Error::Load(error.into().into()),
                    _ => Error::TimedOut(options.hard_timeout),
                };
                return inner.make_do(&key, old, &options, error);
            }
        };
        let said = context.said();
        let late = inner.stamp_late(said.tags, began, begun.is_some()).await;
        let ttl = said.ttl.unwrap_or(options.ttl);
        let keep = late.is_some() && !ttl.is_zero();
        let stamps = stamps.and(late.unwrap_or_default());
        let mut made = Made::new(value, stamps, &options, ttl, cost)?;
        made.entry = Entry { fence: ground.fence, era: ground.era, since, ..made.entry };
        let entry = Arc::new(made.entry.clone());
        let mut current = true;
        if let (Some(store), Some(_)) = (&inner.shared, begun) {
            match made.shared(store.now_us()).filter(|_| keep) {
                // Refused: removed meanwhile, or somebody else's by now. Then it is nothing to keep here either.
                Some((bytes, kept)) => current = inner.ask(store.fill(&key, token, &bytes, kept)).await != Some(false),
                None => drop(inner.ask(store.release(&key, token)).await),
            }
        }
        if keep && current {
            inner.keep(&key, &entry);
        }
        Ok(entry)
    }
}

/// What was true before the second level was asked: an entry from there is no better than that. Who removes a key notes it as pending
/// before moving the fence, and who reads looks at the fence before what is pending: so one of the two sees the other.
struct Glance {
    fence: u64,
    era: u64,
    since: Instant,
}

impl Glance {
    fn new(inner: &Inner, key: &str) -> Self {
        Self { fence: inner.versions.fence(key).load(SeqCst), era: inner.versions.era(), since: Instant::now() }
    }
}

/// A value and what is known of it, before it is put anywhere.
struct Made {
    entry: Entry,
    bytes: Vec<u8>,
    fingerprint: u64,
    ttl: Duration,
    kept: Duration,
}

impl Made {
    fn new<V>(value: V, stamps: Stamps, options: &Options, ttl: Duration, cost: Duration) -> Result<Self, Error>
    where
        V: Serialize + Send + Sync + 'static,
    {
        let bytes = rmp_serde::to_vec_named(&value).map_err(|e| Error::Encode(Arc::new(e)))?;
        let now = Instant::now();
        let ttl = options.jittered(ttl, fastrand::f64());
        let kept = options.kept(ttl);
        let entry = Entry {
            value: Arc::new(value),
            stamps,
            fence: 0,
            era: 0,
            since: now,
            fresh_until: now + ttl,
            kept_until: now + kept,
            cost: if options.refresh_ahead { cost } else { Duration::ZERO },
            weight: u32::try_from(bytes.len() + OVERHEAD).unwrap_or(u32::MAX),
        };
        Ok(Self { entry, bytes, fingerprint: fingerprint::<V>(), ttl, kept })
    }

    /// As it goes into the second level, and for how long; `None` if it may not.
    fn shared(&self, now_us: u64) -> Option<(Vec<u8>, Duration)> {
        let tags = self.entry.stamps.shareable()?;
        if self.bytes.len() > MAX_SHARED || tags.len() > MAX_TAGS || tags.iter().any(|(tag, _)| tag.len() > usize::from(u16::MAX))
        {
            return None;
        }
        let head = Head {
            fingerprint: self.fingerprint,
            fresh_until_us: now_us + self.ttl.as_micros() as u64,
            kept_until_us: now_us + self.kept.as_micros() as u64,
            cost: self.entry.cost,
            tags,
        };
        Some((head.write(&self.bytes), self.kept))
    }
}

impl Inner {
    fn worth(&self, key: &str, entry: &Entry) -> Worth {
        let fence = self.versions.fence(key).load(SeqCst);
        entry.worth(fence, &self.versions, |since| self.link.trust_until(since))
    }

    fn keep(&self, key: &Arc<str>, entry: &Arc<Entry>) {
        self.local.insert(Arc::clone(key), Arc::clone(entry));
    }

    /// Asks the second level, within its patience and unless it has just failed.
    async fn ask<T>(&self, question: impl Future<Output = Result<T, Error>>) -> Option<T> {
        if !self.breaker.allows() {
            return None;
        }
        match timeout(self.patience, question).await {
            Ok(Ok(answer)) => {
                self.breaker.succeeded();
                return Some(answer);
            }
            Ok(Err(error)) => tracing::debug!(%error, "the cache goes on without its second level"),
            Err(_) => tracing::debug!(patience = ?self.patience, "the cache's second level did not answer in time"),
        }
        metrics::counter!("scale_cache_store_errors_total").increment(1);
        self.breaker.failed();
        None
    }

    /// Holds on to the right to load while something loads.
    async fn keeping_lease<T>(&self, lease: Option<(&str, u64)>, load: impl Future<Output = T>) -> T {
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

    fn tags(&self, want: Want<'_>) -> Vec<Arc<str>> {
        let own = [Arc::clone(&self.everything), Arc::clone(want.space)];
        own.into_iter().chain(want.options.tags.iter().cloned()).collect()
    }

    async fn stamp(&self, want: Want<'_>) -> Stamps {
        self.stamp_tags(&self.tags(want)).await
    }

    /// The versions of these tags, asked for where they are not known. If they cannot be, versions of this process' own.
    async fn stamp_tags(&self, tags: &[Arc<str>]) -> Stamps {
        loop {
            match self.versions.stamp(tags.iter().cloned()) {
                Ok(stamps) => return stamps,
                Err(unknown) => {
                    if !self.resolve(&unknown).await {
                        unknown.iter().for_each(|tag| self.versions.assume(tag));
                    }
                }
            }
        }
    }

    /// Asks for the versions of tags; `false` if the store does not answer.
    async fn resolve(&self, unknown: &[Arc<str>]) -> bool {
        let Some(store) = &self.shared else {
            unknown.iter().for_each(|tag| self.versions.settle_alone(tag, false));
            return true;
        };
        let era = self.versions.era();
        let answers = join_all(unknown.iter().map(|tag| async move {
            if let Some(here) = self.pending.version_of(tag) {
                self.versions.invalidated(tag, here);
                return true;
            }
            match self.ask(store.version(tag)).await {
                Some(version) => {
                    self.versions.learn(era, tag, version);
                    true
                }
                None => false,
            }
        }))
        .await;
        answers.into_iter().all(|known| known)
    }

    /// Stamps of tags that came up during a load which began then; `None` if one of them was invalidated since.
    async fn stamp_late(&self, tags: Vec<Arc<str>>, began: u64, shared: bool) -> Option<Stamps> {
        if tags.is_empty() {
            return Some(Stamps::default());
        }
        let stamps = self.stamp_tags(&tags).await;
        let margin = if shared { SKEW_US } else { 0 };
        let known = self.shared.is_none() || (shared && stamps.shareable().is_some());
        (known && stamps.precede(began.saturating_sub(margin))).then_some(stamps)
    }

    /// An entry's bytes in the second level. Take a [`Glance`] first.
    async fn get_shared(&self, key: &str) -> Option<Vec<u8>> {
        let store = self.shared.as_ref().filter(|_| !self.pending.has_key(key))?;
        self.ask(store.get(key)).await?
    }

    /// Bytes from the second level as an entry, if its stamps agree with what is true now.
    async fn admit<V>(&self, glance: &Glance, bytes: Option<Vec<u8>>) -> Option<Arc<Entry>>
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
        let stamps = self.versions.stamps_of(head.tags);
        if stamps.agree() == Agreement::Unknown {
            let unknown = self.versions.stamp(stamps.tags().cloned()).err().unwrap_or_default();
            if !self.resolve(&unknown).await {
                return None;
            }
        }
        if stamps.agree() != Agreement::Same {
            return None;
        }
        let Ok(value) = rmp_serde::from_slice::<V>(payload) else {
            metrics::counter!("scale_cache_unreadable_total").increment(1);
            return None;
        };
        let entry = Entry {
            value: Arc::new(value),
            stamps,
            fence: glance.fence,
            era: glance.era,
            since: glance.since,
            fresh_until: glance.since + left(head.fresh_until_us),
            kept_until: glance.since + left(head.kept_until_us),
            cost: head.cost,
            weight: u32::try_from(payload.len() + OVERHEAD).unwrap_or(u32::MAX),
        };
        Some(Arc::new(entry))
    }

    /// With a failed load: the stale value, for a while, if there is one that may be served.
    fn make_do(&self, key: &Arc<str>, old: Option<Arc<Entry>>, options: &Options, error: Error) -> Outcome {
        let usable = |entry: &Arc<Entry>| matches!(self.worth(key, entry), Worth::Fresh | Worth::Stale);
        let Some(old) = old.filter(|entry| !options.fail_closed && usable(entry)) else { return Err(error) };
        tracing::warn!(%error, "a load failed; the stale value is served");
        metrics::counter!("scale_cache_stale_total").increment(1);
        let fresh_until = (Instant::now() + options.throttle).min(old.kept_until).max(old.fresh_until);
        let entry = Arc::new(Entry { fresh_until, cost: Duration::ZERO, ..(*old).clone() });
        self.keep(key, &entry);
        Ok(entry)
    }

    /// Tells the store of an invalidation; `false` if it could not be told.
    async fn tell_tag(&self, tag: &Arc<str>, here: u64) -> bool {
        let Some(store) = &self.shared else { return true };
        let Some(theirs) = self.ask(store.invalidate(tag)).await else { return false };
        self.versions.told(tag, here, theirs);
        self.pending.tag_told(tag, here);
        true
    }

    async fn tell_key(&self, key: &Arc<str>, number: u64) -> bool {
        let Some(store) = &self.shared else { return true };
        let told = self.ask(store.remove(key)).await.is_some();
        if told {
            self.pending.key_told(key, number);
        }
        told
    }
}

/// Tells the store what is pending, again and again until it has heard all.
fn tell_later(inner: Arc<Inner>) {
    if !inner.pending.begin() {
        return;
    }
    tracing::warn!("invalidations are kept until the cache's second level can be told");
    tokio::spawn(async move {
        loop {
            let told = match (inner.pending.next_tag(), inner.pending.next_key()) {
                (Some((tag, here)), _) => inner.tell_tag(&tag, here).await,
                (None, Some((key, number))) => inner.tell_key(&key, number).await,
                (None, None) if inner.pending.end() => return,
                (None, None) => true,
            };
            if !told {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
}

/// Takes in what other processes do, until the last handle is gone.
async fn listen(inner: Weak<Inner>, mut news: futures_util::stream::BoxStream<'static, News>) {
    while let Some(news) = news.next().await {
        let Some(inner) = inner.upgrade() else { return };
        match news {
            News::Invalidated(tag, version) => inner.versions.invalidated(&tag, version),
            News::Changed(key) => {
                inner.versions.bump_fence(&key);
                inner.local.invalidate(&key);
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
