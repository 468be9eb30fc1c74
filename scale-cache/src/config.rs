//! Where the cache is, and how much it may hold.

use std::time::Duration;

use serde::Deserialize;

use crate::cache::Cache;
use crate::error::Error;

/// Settings of a [`Cache`], for files and environment.
///
/// ```
/// let config = scale_cache::Config::new("memory:").max_bytes(64 << 20);
/// ```
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub(crate) url: String,
    /// Bytes of the first level, keys and bookkeeping included. Default: 128 MiB.
    #[serde(default = "defaults::max_bytes")]
    pub(crate) max_bytes: u64,
    /// With the link to other processes down, what is known may be believed for so long. Default: 3 s.
    #[serde(default = "defaults::trust", with = "humantime_serde")]
    pub(crate) trust: Duration,
    /// The time that one answer of the second level may take. Default: 250 ms.
    #[serde(default = "defaults::patience", with = "humantime_serde")]
    pub(crate) patience: Duration,
    /// See [`Config::replicas`].
    #[serde(default)]
    pub(crate) replicas: usize,
    /// Likewise.
    #[serde(default = "defaults::replicas_within", with = "humantime_serde")]
    pub(crate) replicas_within: Duration,
    /// Values of so many bytes are compressed in the second level (feature `compress`). Default: 4 KiB.
    #[serde(default = "defaults::compress_over")]
    pub(crate) compress_over: usize,
    /// See [`Config::strict`].
    #[serde(default)]
    pub(crate) strict: bool,
}

mod defaults {
    use std::time::Duration;

    pub(super) fn max_bytes() -> u64 {
        128 << 20
    }
    pub(super) fn trust() -> Duration {
        Duration::from_secs(3)
    }
    pub(super) fn compress_over() -> usize {
        4 << 10
    }
    pub(super) fn replicas_within() -> Duration {
        Duration::from_secs(1)
    }
    pub(super) fn patience() -> Duration {
        Duration::from_millis(250)
    }
}

impl Config {
    /// The defaults for an address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_bytes: defaults::max_bytes(),
            trust: defaults::trust(),
            patience: defaults::patience(),
            replicas: 0,
            replicas_within: defaults::replicas_within(),
            compress_over: defaults::compress_over(),
            strict: false,
        }
    }

    /// Bytes of the first level.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// How long what is known may be believed with the link to other processes down. A shorter time bounds staleness closer, a longer
    /// one spares the database during an outage of Redis.
    pub fn trust(mut self, time: Duration) -> Self {
        self.trust = time;
        self
    }

    /// How long one answer of the second level may take before the cache goes on without it.
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = time;
        self
    }

    /// An invalidation is [`Reach::Everywhere`](crate::Reach::Everywhere) only once so many replicas of Redis have it, which is asked by
    /// `WAIT` and may take up to `within`: a fail-over to one of them cannot lose it. If they do not have it by then it is
    /// [`Reach::Here`](crate::Reach::Here), and made again until they do. It takes a connection of its own. Default: 0.
    pub fn replicas(mut self, count: usize, within: Duration) -> Self {
        (self.replicas, self.replicas_within) = (count, within);
        self
    }

    /// Values of so many bytes or more are compressed in the second level, if that makes them smaller (feature `compress`).
    pub fn compress_over(mut self, bytes: usize) -> Self {
        self.compress_over = bytes;
        self
    }

    /// Gives every caller, the one that loaded it included, the value as another process would have it: encoded and decoded. For tests: what
    /// passes on one process passes on Redis.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Makes the cache. `app` sets applications on one Redis apart.
    ///
    /// # Errors
    /// [`Error::Address`]; [`Error::Store`] if nobody answers there.
    pub async fn connect(self, app: &str) -> Result<Cache, Error> {
        let cache = self.connect_lazy(app)?;
        cache.answered().await?;
        Ok(cache)
    }

    /// Makes the cache, whether Redis answers or not: until it does, the cache goes on in process. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn connect_lazy(self, app: &str) -> Result<Cache, Error> {
        match self.url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Cache::alone(&self)),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let config = scale_redis::Config::new(&self.url)
                    .response_timeout(self.patience)
                    .max_reconnect_delay(Duration::from_millis(500));
                let connect = || {
                    config.clone().connect_lazy().map_err(|error| match error {
                        // Its own words name no secret.
                        scale_redis::Error::Address(reason) => Error::Address(format!("this Redis address ({reason})")),
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
    /// Without the address: it may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("max_bytes", &self.max_bytes).field("trust", &self.trust).finish_non_exhaustive()
    }
}
