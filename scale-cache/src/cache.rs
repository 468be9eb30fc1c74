//! The handle: two levels, one load per key, and the rule that nothing invalidated is ever served.

use std::any::Any;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use moka::sync::Cache as Moka;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::breaker::Breaker;
use crate::codec::fingerprint;
use crate::config::Config;
use crate::entry::{Entry, Worth};
use crate::error::Error;
use crate::fence::Fences;
use crate::flight::{Flights, Ground};
use crate::journal::{Journal, Named};
use crate::link::Link;
use crate::load::Load;
use crate::made::Made;
use crate::options::{LONGEST, Options};
use crate::pending::{Pending, Reach};
use crate::shared::{Glance, tell_later};
use crate::space::{Of, Space};
use crate::stamp::{ALL, Cell, Versions, named};
use crate::store::{Position, Store};
use crate::voyage::Voyage;

/// A value that is written again while it is looked for is looked for so often.
const FINDS: usize = 3;
/// The longest position of a database, bytes.
const MAX_POSITION: usize = 1_024;

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
pub struct Cache(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    /// The first level, if it may hold anything.
    pub(crate) local: Option<Moka<Arc<str>, Arc<Entry>, foldhash::fast::RandomState>>,
    /// Counts what is put there.
    pub(crate) kept: AtomicU32,
    pub(crate) shared: Option<Arc<dyn Store>>,
    pub(crate) versions: Versions,
    pub(crate) fences: Arc<Fences>,
    pub(crate) flights: Arc<Flights>,
    pub(crate) pending: Pending,
    pub(crate) journal: Journal,
    pub(crate) link: Link,
    /// Nobody listens to the store's news: the runtime is gone on which somebody did.
    pub(crate) is_deaf: AtomicBool,
    /// The task that listens.
    pub(crate) listener: Mutex<Option<AbortHandle>>,
    /// Somebody finds out what the store has lost.
    pub(crate) is_examined: AtomicBool,
    pub(crate) breaker: Breaker,
    pub(crate) patience: Duration,
    /// The time that telling the store of an invalidation may take.
    pub(crate) told_within: Duration,
    /// The store's `get` keeps to that by itself.
    pub(crate) gets_in_time: bool,
    pub(crate) compress_over: usize,
    pub(crate) strict: bool,
    pub(crate) everything: Arc<Cell>,
    /// The space of keys without one.
    plain: Arc<Of>,
    pub(crate) this: Weak<Inner>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("shared", &self.shared).field("link_up", &self.link.is_up()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get_mut().take() {
            listener.abort();
        }
    }
}

/// What the first level has.
pub(crate) enum Look<V> {
    Fresh(Arc<V>),
    /// Fresh, and better loaded anew now than by somebody who has to wait for it.
    Expiring(Arc<V>),
    Nothing,
}

/// What a caller asks for.
#[derive(Clone, Copy)]
pub(crate) struct Want<'a> {
    pub(crate) key: &'a str,
    pub(crate) space: &'a Arc<Cell>,
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

    /// The same, for tests: see [`Config::strict`].
    pub fn strict() -> Self {
        Self::alone(&Config::new("memory:").strict())
    }

    pub(crate) fn alone(config: &Config) -> Self {
        let this = Self::make(None, config);
        this.0.link.came_up();
        this
    }

    /// With a second level of your choice.
    pub fn with_store(store: impl Store, config: &Config) -> Self {
        let this = Self::make(Some(Arc::new(store)), config);
        this.0.be_all_ears();
        this
    }

    fn make(shared: Option<Arc<dyn Store>>, config: &Config) -> Self {
        let local = (config.max_bytes > 0).then(|| {
            Moka::builder()
                .max_capacity(config.max_bytes)
                .weigher(|key: &Arc<str>, entry: &Arc<Entry>| entry.weight.saturating_add(key.len() as u32))
                .build_with_hasher(foldhash::fast::RandomState::default())
        });
        let versions = Versions::default();
        let gets_in_time = shared.as_ref().and_then(|store| store.get_within()).is_some_and(|bound| bound <= config.patience);
        let proven_within = shared.as_ref().and_then(|store| store.proves_its_link_within());
        Self(Arc::new_cyclic(|this| Inner {
            local,
            kept: AtomicU32::new(1),
            shared,
            everything: versions.cell(ALL),
            plain: Arc::new(Of::new(&versions, "")),
            versions,
            fences: Arc::default(),
            flights: Arc::default(),
            pending: Pending::default(),
            journal: Journal::default(),
            link: Link::new(config.trust.min(LONGEST), proven_within),
            is_deaf: AtomicBool::new(true),
            listener: Mutex::default(),
            is_examined: AtomicBool::new(false),
            breaker: Breaker::default(),
            patience: config.patience,
            told_within: if config.replicas > 0 {
                config.patience.saturating_add(config.replicas_within)
            } else {
                config.patience
            },
            gets_in_time,
            compress_over: config.compress_over,
            strict: config.strict,
            this: Weak::clone(this),
        }))
    }

    /// All entries of one kind under a name of their own.
    pub fn space<V>(&self, name: &str) -> Space<V>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        Space::new(self.clone(), Arc::new(Of::new(&self.0.versions, name)))
    }

    /// The value of a key; loaded if there is no fresh one. See [`Space::get_or_load`].
    pub async fn get_or_load<V, F, Fut, E>(&self, key: &str, options: &Options, load: F) -> Result<Arc<V>, Error>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: FnOnce(Load) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        Space::<V>::new(self.clone(), Arc::clone(&self.0.plain)).get_or_load_with(key, options, load).await
    }

    /// Invalidates everything that carries one of the tags: on this server before this returns, on others within milliseconds, and never
    /// later than the bound stated in the [crate's docs](crate). If Redis cannot be told now, it will be; here it counts at once. The
    /// answer says which it was, for whom it matters (a right that was revoked, say).
    pub async fn invalidate_tags<T: Into<Arc<str>>>(&self, tags: impl IntoIterator<Item = T>) -> Reach {
        self.invalidate_all(tags, None).await
    }

    /// The same, by somebody who has written to a database with replicas: a load that follows must not read the old row from one that
    /// lags behind. It is told the position ([`Load::position`]) and reads where that has been replayed. Of several positions
    /// the one counts that is greater byte by byte. At most 1 KiB.
    pub async fn invalidate_tags_at<T: Into<Arc<str>>>(&self, tags: impl IntoIterator<Item = T>, position: &[u8]) -> Reach {
        let position: Option<Position> = (1..=MAX_POSITION).contains(&position.len()).then(|| position.into());
        self.invalidate_all(tags, position).await
    }

    async fn invalidate_all<T: Into<Arc<str>>>(&self, tags: impl IntoIterator<Item = T>, position: Option<Position>) -> Reach {
        let each = join_all(tags.into_iter().map(|tag| self.invalidate(named(tag.into()), position.clone()))).await;
        Reach::of(each.into_iter().all(|reach| reach == Reach::Everywhere))
    }

    /// Invalidates everything, in one step.
    pub async fn clear(&self) -> Reach {
        self.invalidate(Arc::clone(self.0.everything.tag()), None).await
    }

    /// Returns when everything that was invalidated here is known to Redis, and so to all: see [`Reach::Here`]. It waits as long as Redis
    /// cannot be told; put a time-out around it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let cache = scale_cache::Cache::memory();
    /// use std::time::Duration;
    /// let _ = tokio::time::timeout(Duration::from_secs(5), cache.flush()).await; // before the process ends
    /// # }
    /// ```
    pub async fn flush(&self) {
        // The runtime may be gone on which somebody was at it.
        tell_later(Arc::clone(&self.0));
        self.0.pending.flushed().await;
    }

    /// Returns whether Redis, if there is one, is reachable and its news arrive.
    pub fn is_healthy(&self) -> bool {
        self.0.link.is_up()
    }

    /// Entries and bytes of the first level, about.
    pub fn local_size(&self) -> (u64, u64) {
        self.0.local.as_ref().map_or((0, 0), |local| {
            local.run_pending_tasks();
            (local.entry_count(), local.weighted_size())
        })
    }

    pub(crate) async fn invalidate(&self, tag: Arc<str>, position: Option<Position>) -> Reach {
        let inner = &self.0;
        metrics::counter!("scale_cache_invalidations_total").increment(1);
        if inner.shared.is_none() {
            inner.versions.invalidate_alone(&tag, position.as_ref());
            return Reach::Everywhere;
        }
        let here = inner.pending.add_tag(&tag, position.clone(), || inner.versions.invalidate_here(&tag, position.as_ref()));
        let inner = Arc::clone(inner);
        // Whoever asked may go away: what counts here must come to count everywhere.
        let telling = tokio::spawn(async move {
            let told = inner.tell_tag(&tag, here).await;
            if !told {
                tell_later(inner);
            }
            told
        });
        Reach::of(telling.await.unwrap_or(false))
    }

    pub(crate) async fn drop_key(&self, key: &str) -> Reach {
        let inner = &self.0;
        if inner.shared.is_none() {
            inner.forget(key);
            return Reach::Everywhere;
        }
        let key: Arc<str> = key.into();
        let number = inner.pending.add_key(Arc::clone(&key));
        inner.forget(&key);
        let inner = Arc::clone(inner);
        let telling = tokio::spawn(async move {
            let told = inner.tell_key(&key, number).await;
            if !told {
                tell_later(inner);
            }
            told
        });
        Reach::of(telling.await.unwrap_or(false))
    }

    /// The first level alone. No allocation, no wait.
    pub(crate) fn look<V: Send + Sync + 'static>(&self, key: &str) -> Look<V> {
        let inner = &self.0;
        let Some(entry) = inner.here(key) else { return Look::Nothing };
        let Ok(value) = Arc::clone(&entry.value).downcast() else { return Look::Nothing };
        let now = Instant::now();
        if inner.worth_at(now, &entry) != Worth::Fresh {
            return Look::Nothing;
        }
        metrics::counter!("scale_cache_hits_total", "level" => "1").increment(1);
        if entry.wants_refresh(now, fastrand::f64) { Look::Expiring(value) } else { Look::Fresh(value) }
    }

    /// The second level, for a key that the first does not have; without loading.
    pub(crate) async fn find<V>(&self, key: &str, space: &Arc<Cell>) -> Option<Arc<Entry>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        let inner = &self.0;
        inner.shared.as_ref()?;
        let key: Arc<str> = key.into();
        let mut tries = 0..FINDS;
        let entry = loop {
            let glance = Glance::new(inner, &key);
            let Some(bytes) = inner.get_shared(&key).await else {
                let unsure = inner.here(&key).filter(|entry| entry.value.is::<V>() && inner.worth(entry) == Worth::Unsure);
                return unsure.filter(|entry| !inner.is_whole() && inner.believes(entry, &glance.fence));
            };
            let found = inner.admit::<V>(&glance, space, Some(bytes)).await;
            if let Some(entry) = found.filter(|entry| glance.fence.stands() && inner.worth(entry) == Worth::Fresh) {
                inner.keep(&key, &glance.fence, &entry);
                break entry;
            }
            // What was found while the link came up is not to be believed, nor what was written meanwhile: it is asked for again.
            tries.next()?;
            if glance.is_current(inner) && glance.fence.stands() {
                return None;
            }
        };
        metrics::counter!("scale_cache_hits_total", "level" => "2").increment(1);
        Some(entry)
    }

    pub(crate) async fn put<V>(&self, want: Want<'_>, value: V) -> Result<(), Error>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let inner = &self.0;
        let key: Arc<str> = want.key.into();
        let stamps = inner.stamp(want).await;
        let (since, era) = (Instant::now(), inner.versions.era());
        let mut made = Made::new(value, stamps, want.options, want.options.ttl, Duration::ZERO)?;
        made.check::<V>(inner.strict)?;
        made.entry = Entry { era, since, ..made.entry };
        let entry = Arc::new(made.entry.clone());
        let number = inner.shared.is_some().then(|| inner.pending.add_key(Arc::clone(&key)));
        let mut fence = inner.fences.watch(&key);
        fence.bump(|| inner.take_out(&key));
        if let (Some(number), Some(store)) = (number, inner.shared.clone()) {
            let bytes = made.shared(store.now_us(), inner.compress_over);
            let (inner, key) = (Arc::clone(inner), Arc::clone(&key));
            let _ = tokio::spawn(async move {
                let told = match bytes {
                    Some((bytes, kept)) => inner.tell(store.set(&key, &bytes, kept)).await.is_some(),
                    None => false,
                };
                if told {
                    inner.journal.note(store.now_us(), Named::Key(Arc::clone(&key)));
                    inner.pending.key_told(&key, number);
                } else if !inner.tell_key(&key, number).await {
                    tell_later(inner);
                }
            })
            .await;
        }
        if !inner.keep(&key, &fence, &entry) {
            // Another write came while this one was under way, and nobody here knows which of them the store took last.
            inner.forget(&key);
        }
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
        let key: Arc<str> = want.key.into();
        let mut load = Some(load);
        let came = inner.versions.number();
        loop {
            // Before anything is looked at: what is invalidated from here on is noticed.
            let (number, fence) = (inner.versions.number(), inner.fences.watch(&key));
            let old = inner.here(&key).filter(|entry| entry.value.is::<V>());
            let worth = old.as_ref().map_or(Worth::Nothing, |entry| inner.worth(entry));
            let unsure = old.clone().filter(|_| worth == Worth::Unsure);
            let old = old.filter(|_| matches!(worth, Worth::Fresh | Worth::Stale));
            if let Some(old) = old.as_ref().filter(|_| worth == Worth::Fresh && !refresh) {
                return Ok(Arc::clone(&old.value));
            }
            let tags = inner.tags(want);
            let ground = Ground {
                fingerprint: fingerprint::<V>(),
                fence,
                era: inner.versions.era(),
                bumped: inner.versions.bumped(&tags),
                number,
                at: Instant::now(),
            };
            let is_trusted = |at| inner.link.trust_until(at).is_none_or(|end| Instant::now() < end);
            let begin = || {
                let voyage = Box::new(Voyage {
                    inner: Arc::clone(inner),
                    key: Arc::clone(&key),
                    space: Arc::clone(want.space),
                    tags,
                    options: want.options.clone(),
                    ground: ground.clone(),
                    refresh: worth == Worth::Fresh,
                    old: old.clone(),
                    unsure,
                });
                // It is called at most once in all: who has begun a load is given its end.
                let load = load.take();
                async move {
                    match load {
                        Some(load) => voyage.sail::<V, F, Fut, E>(load).await,
                        None => Err(Error::Panicked).into(),
                    }
                }
            };
            let flight = match inner.flights.join(&key, ground.clone(), came, is_trusted, begin) {
                // A loader that refreshes its own value may read it.
                Err(Error::Cycle(_)) if worth == Worth::Fresh && old.is_some() => {
                    return old.map(|old| Arc::clone(&old.value)).ok_or(Error::Panicked);
                }
                flight => flight?,
            };
            let begun_here = load.is_none();
            if let Some(old) = old {
                if worth == Worth::Fresh {
                    // Loaded anew in the background.
                    return Ok(Arc::clone(&old.value));
                }
                if let Some(limit) = want.options.soft_timeout {
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
                // Only when the runtime shuts down.
                None => return Err(Error::Panicked),
            }
        }
    }
}
