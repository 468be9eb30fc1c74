//! Settings of a cache: address, size, time-outs.

use std::time::Duration;

use serde::Deserialize;

use crate::cache::Cache;
use crate::core::events;
use crate::error::Error;

/// Settings of a [`Cache`], for configuration files and environment variables.
///
/// ```
/// let config = scale_cache::Config::new("memory:").max_bytes(64 << 20);
/// ```
#[must_use]
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub(crate) url: String,
    /// Maximum size of the first level in bytes, including keys and bookkeeping. Default: 128 MiB.
    #[serde(default = "defaults::max_bytes")]
    pub(crate) max_bytes: u64,
    /// Time for which entries are served while the subscription is down. Default: 3 s.
    #[serde(default = "defaults::max_staleness_offline", with = "humantime_serde")]
    pub(crate) max_staleness_offline: Duration,
    /// Time-out of a call to the second level. Default: 250 ms.
    #[serde(default = "defaults::store_timeout", with = "humantime_serde")]
    pub(crate) store_timeout: Duration,
    /// Number of replicas; see [`Config::replicas`].
    #[serde(default)]
    pub(crate) replicas: usize,
    /// Time-out for replicas; see [`Config::replicas`].
    #[serde(default = "defaults::replicas_within", with = "humantime_serde")]
    pub(crate) replicas_within: Duration,
    /// Size in bytes from which values are compressed in the second level (feature `compress`).
    /// Default: 4 KiB.
    #[serde(default = "defaults::compress_over")]
    pub(crate) compress_over: usize,
    /// Strict mode; see [`Config::strict`].
    #[serde(default)]
    pub(crate) strict: bool,
}

mod defaults {
    use std::time::Duration;

    pub(super) fn max_bytes() -> u64 {
        128 << 20
    }
    pub(super) fn max_staleness_offline() -> Duration {
        Duration::from_secs(3)
    }
    pub(super) fn compress_over() -> usize {
        4 << 10
    }
    pub(super) fn replicas_within() -> Duration {
        Duration::from_secs(1)
    }
    pub(super) fn store_timeout() -> Duration {
        Duration::from_millis(250)
    }
}

impl Config {
    /// Creates the default settings for an address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_bytes: defaults::max_bytes(),
            max_staleness_offline: defaults::max_staleness_offline(),
            store_timeout: defaults::store_timeout(),
            replicas: 0,
            replicas_within: defaults::replicas_within(),
            compress_over: defaults::compress_over(),
            strict: false,
        }
    }

    /// Sets the maximum size of the first level, in bytes. Default: 128 MiB.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how long entries are served while the subscription to other processes is down. A
    /// shorter time bounds staleness more tightly, a longer one protects the database during an
    /// outage of Redis. Default: 3 s.
    pub fn max_staleness_offline(mut self, time: Duration) -> Self {
        self.max_staleness_offline = time;
        self
    }

    /// Sets how long a call to the second level may take before the cache continues without it.
    /// Default: 250 ms.
    pub fn store_timeout(mut self, time: Duration) -> Self {
        self.store_timeout = time;
        self
    }

    /// Makes invalidations wait for replicas of Redis: an invalidation is
    /// [`Reach::Everywhere`](crate::Reach::Everywhere) only once `count` replicas have it, so that
    /// a failover to one of them cannot lose it. This is checked with `WAIT`, which may take up to
    /// `within`. If the replicas do not have it by then, the result is
    /// [`Reach::Here`](crate::Reach::Here), and the invalidation is repeated until they do. Uses a
    /// separate connection. Default: 0.
    pub fn replicas(mut self, count: usize, within: Duration) -> Self {
        (self.replicas, self.replicas_within) = (count, within);
        self
    }

    /// Sets the size in bytes from which values are compressed in the second level, if that makes
    /// them smaller (feature `compress`). Default: 4 KiB.
    pub fn compress_over(mut self, bytes: usize) -> Self {
        self.compress_over = bytes;
        self
    }

    /// Returns every value encoded and decoded, as another process would get it, also to the caller
    /// that loaded it. For tests: code that passes with one process also passes with Redis.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Creates the cache. `app` separates applications on one Redis.
    ///
    /// # Errors
    /// [`Error::Address`]; [`Error::Store`] if the store does not answer.
    pub async fn connect(self, app: &str) -> Result<Cache, Error> {
        let cache = self.connect_lazy(app)?;
        events::answered(&cache.0).await?;
        Ok(cache)
    }

    /// Creates the cache, even if Redis does not answer: until it does, the cache works in process.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn connect_lazy(self, app: &str) -> Result<Cache, Error> {
        match self.url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Cache::alone(&self)),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let config = scale_redis::Config::new(&self.url)
                    .response_timeout(self.store_timeout)
                    .max_reconnect_delay(Duration::from_millis(500));
                let connect = || {
                    config.clone().connect_lazy().map_err(|error| match error {
                        // The error's text contains no secret.
                        scale_redis::Error::Address(reason) => {
                            Error::Address(format!("this Redis address ({reason})"))
                        }
                        error => Error::store(error),
                    })
                };
                let mut store = crate::store::RedisStore::new(connect()?, app);
                if self.replicas > 0 {
                    store = store.replicas(connect()?, self.replicas, self.replicas_within);
                }
                Ok(Cache::with_store(store, &self))
            }
            _ => {
                let _ = app;
                Err(Error::address(&self.url))
            }
        }
    }
}

impl std::fmt::Debug for Config {
    /// Omits the address, which may contain a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("max_bytes", &self.max_bytes)
            .field("max_staleness_offline", &self.max_staleness_offline)
            .finish_non_exhaustive()
    }
}
