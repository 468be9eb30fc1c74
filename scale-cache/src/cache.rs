//! The cache: two levels, one load per key, and the guarantee that an invalidated value is never
//! served.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use scale_common::circuit_breaker::{self, CircuitBreaker};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Instant;
use crate::config::Config;
use crate::core::first_level::FirstLevel;
use crate::core::invalidation::spawn_replay;
use crate::core::keyspace::Keyspace;
use crate::core::pending_invalidations::{Pending, Reach};
use crate::core::subscription::Subscription;
use crate::core::{Core, events};
use crate::error::{Error, LoadError};
use crate::load_context::LoadContext;
use crate::options::{LONGEST, Options};
use crate::policy::journal::Journal;
use crate::policy::versions::{GLOBAL_TAG, Versions, named};
use crate::space::Space;
use crate::store::{Position, Store};

/// After a failure the second level is not called for 100 ms, and for up to 2 s while it keeps
/// failing.
const BREAKER: circuit_breaker::Rules = circuit_breaker::Rules {
    failures: 1,
    first_pause: Duration::from_millis(100),
    longest_pause: Duration::from_secs(2),
};
/// Maximum length of a database position, in bytes.
const MAX_POSITION: usize = 1_024;

/// A tiered cache. A clone costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_cache::Error> {
/// use scale_cache::{Cache, Options};
/// use std::time::Duration;
///
/// let cache = Cache::connect("memory:", "shop").await?; // or "redis://…": the same code
/// let options = Options::ttl(Duration::from_mins(5)).tag("product:7");
/// let title = cache.get_or_load(
///     "title:7", &options, |_| async { Ok::<_, std::io::Error>("Blue mug".to_owned()) },
/// ).await?;
/// assert_eq!(*title, "Blue mug");
/// cache.invalidate_tags(["product:7"]).await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Cache(pub(crate) Arc<Core>);

impl Cache {
    /// Picks the levels by address: `memory:` has the first level only; with any address of
    /// `scale-redis` (feature `redis`) Redis is the second level, shared by all processes with the
    /// same Redis and `app`.
    ///
    /// # Errors
    /// The same as those of [`Config::connect`].
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        Config::new(url).connect(app).await
    }

    /// Returns the settings for an address, to be changed before [`connect`](Config::connect).
    pub fn builder(url: &str) -> Config {
        Config::new(url)
    }

    /// Creates a cache in the memory of this process.
    pub fn memory() -> Self {
        Self::alone(&Config::new("memory:"))
    }

    /// Creates a strict in-process cache, for tests: see [`Config::strict`].
    pub fn strict() -> Self {
        Self::alone(&Config::new("memory:").strict())
    }

    pub(crate) fn alone(config: &Config) -> Self {
        let this = Self::make(None, config);
        this.0.subscription.connected();
        this
    }

    /// Creates a cache with the given second level.
    pub fn with_store(store: impl Store, config: &Config) -> Self {
        let this = Self::make(Some(Arc::new(store)), config);
        events::subscribe(&this.0);
        this
    }

    fn make(l2: Option<Arc<dyn Store>>, config: &Config) -> Self {
        let versions = Versions::default();
        let gets_in_time = l2
            .as_ref()
            .and_then(|store| store.get_within())
            .is_some_and(|bound| bound <= config.store_timeout);
        let proven_within = l2.as_ref().and_then(|store| store.proves_its_link_within());
        Self(Arc::new_cyclic(|this| Core {
            local: FirstLevel::new(config.max_bytes),
            l2,
            everything: versions.cell(GLOBAL_TAG),
            plain: Arc::new(Keyspace::new(&versions, "")),
            versions,
            flights: Arc::default(),
            pending: Pending::default(),
            journal: Journal::default(),
            subscription: Subscription::new(
                config.max_staleness_offline.min(LONGEST),
                proven_within,
            ),
            is_unsubscribed: AtomicBool::new(true),
            listener: Mutex::default(),
            is_examined: AtomicBool::new(false),
            breaker: CircuitBreaker::new(BREAKER),
            started: Instant::now(),
            store_timeout: config.store_timeout,
            invalidation_timeout: if config.replicas > 0 {
                config.store_timeout.saturating_add(config.replicas_within)
            } else {
                config.store_timeout
            },
            gets_in_time,
            compress_over: config.compress_over,
            strict: config.strict,
            this: Weak::clone(this),
        }))
    }

    /// Returns a keyspace for entries of one type, under its own name.
    pub fn space<V>(&self, name: &str) -> Space<V>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        Space::new(Arc::clone(&self.0), Arc::new(Keyspace::new(&self.0.versions, name)))
    }

    /// Returns the value of a key; loads it if there is no fresh one. See [`Space::get_or_load`].
    pub async fn get_or_load<V, F, Fut, E>(
        &self,
        key: impl Display,
        options: &Options,
        load: F,
    ) -> Result<Arc<V>, Error>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: FnOnce(LoadContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        Space::<V>::new(Arc::clone(&self.0), Arc::clone(&self.0.plain))
            .get_or_load_with(key, options, load)
            .await
    }

    /// Returns the value of a key; loads it if there is no fresh one, and returns the loader's own
    /// error. See [`Space::get_or_try_load`].
    pub async fn get_or_try_load<V, F, Fut, E>(
        &self,
        key: impl Display,
        options: &Options,
        load: F,
    ) -> Result<Arc<V>, LoadError<E>>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: FnOnce(LoadContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Debug + Send + Sync + 'static,
    {
        Space::<V>::new(Arc::clone(&self.0), Arc::clone(&self.0.plain))
            .get_or_try_load_with(key, options, load)
            .await
    }

    /// Invalidates everything that has one of the tags: on this server before this method returns,
    /// on others within milliseconds, and never later than the bound stated in the [crate's
    /// docs](crate). If Redis is unavailable, the invalidation counts here at once, and is sent as
    /// soon as possible. The result says which case applies, for example for a right that was
    /// revoked.
    pub async fn invalidate_tags<T: Into<Arc<str>>>(
        &self,
        tags: impl IntoIterator<Item = T>,
    ) -> Reach {
        self.invalidate_all(tags, None).await
    }

    /// Does the same after a write to a database with replicas: the next load must not read the old
    /// row from a replica that lags behind. The load receives the position
    /// ([`LoadContext::position`]) and reads where that position has been replayed. Of several
    /// positions the one that is greater byte by byte counts. At most 1 KiB.
    pub async fn invalidate_tags_at<T: Into<Arc<str>>>(
        &self,
        tags: impl IntoIterator<Item = T>,
        position: &[u8],
    ) -> Reach {
        let position: Option<Position> =
            (1..=MAX_POSITION).contains(&position.len()).then(|| position.into());
        self.invalidate_all(tags, position).await
    }

    async fn invalidate_all<T: Into<Arc<str>>>(
        &self,
        tags: impl IntoIterator<Item = T>,
        position: Option<Position>,
    ) -> Reach {
        let each = join_all(
            tags.into_iter().map(|tag| self.0.invalidate(named(tag.into()), position.clone())),
        )
        .await;
        Reach::of(each.into_iter().all(|reach| reach == Reach::Everywhere))
    }

    /// Invalidates everything in one step.
    pub async fn clear(&self) -> Reach {
        self.0.invalidate(Arc::clone(self.0.everything.tag()), None).await
    }

    /// Waits until every invalidation made here is known to Redis, and so to all processes: see
    /// [`Reach::Here`]. Waits for as long as Redis is unavailable; use it with a time-out.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let cache = scale_cache::Cache::memory();
    /// use std::time::Duration;
    /// // before the process ends
    /// let _ = tokio::time::timeout(Duration::from_secs(5), cache.flush()).await;
    /// # }
    /// ```
    pub async fn flush(&self) {
        // A replay task may have ended with its runtime.
        spawn_replay(Arc::clone(&self.0));
        self.0.pending.flushed().await;
    }

    /// Returns whether Redis, if configured, is reachable and its events arrive.
    pub fn is_healthy(&self) -> bool {
        self.0.subscription.is_up()
    }

    /// Returns the approximate numbers of entries and bytes in the first level.
    pub fn local_size(&self) -> (u64, u64) {
        self.0.local.size()
    }
}
