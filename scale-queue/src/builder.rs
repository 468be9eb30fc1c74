//! Connects a queue, with settings.

use std::time::Duration;

use crate::error::Error;
use crate::queue::Queue;
#[cfg(feature = "sqlite")]
use crate::store::Synchronous;

/// Settings of a [`Queue`], from [`Queue::builder`].
#[must_use = "nothing happens before `connect`"]
#[derive(Clone)]
pub struct QueueBuilder {
    url: String,
    app: String,
    response_timeout: Duration,
    connect_timeout: Duration,
    replicas: usize,
    replicas_within: Duration,
    #[cfg(feature = "sqlite")]
    synchronous: Synchronous,
}

impl std::fmt::Debug for QueueBuilder {
    /// Without the address: it may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueBuilder")
            .field("app", &self.app)
            .field("response_timeout", &self.response_timeout)
            .finish_non_exhaustive()
    }
}

impl QueueBuilder {
    pub(crate) fn new(url: &str, app: &str) -> Self {
        Self {
            url: url.to_owned(),
            app: app.to_owned(),
            response_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_millis(500),
            replicas: 0,
            replicas_within: Duration::from_secs(1),
            #[cfg(feature = "sqlite")]
            synchronous: Synchronous::Full,
        }
    }

    /// Sets how long an answer of Redis may take. Default: 500 ms. An answer or a request of megabytes may take longer, a second for each.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// Sets how long making a connection to Redis may take. Default: 500 ms.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// A push is `Ok` only once so many replicas of a Redis have it, which is asked by `WAIT` and may take up to `within`; else it is
    /// [`Error::Unacknowledged`]. Default: 0, and what has not reached a replica is lost in a fail-over. For those who want none lost; it
    /// costs a round trip between master and replica for each call, which pushes of the same moment share.
    ///
    /// Not in a Cluster, where the answer cannot be told to be that of the right node: [`connect`](Self::connect) says so.
    pub fn replicas(mut self, count: usize, within: Duration) -> Self {
        (self.replicas, self.replicas_within) = (count, within);
        self
    }

    /// Sets how safely an SQLite file keeps what was acknowledged. Default: [`Synchronous::Full`].
    #[cfg(feature = "sqlite")]
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Connects to the store.
    ///
    /// # Errors
    /// [`Error::Address`] for an address of no store that is compiled in; [`Error::Setting`] for a setting that this store cannot keep;
    /// [`Error::Store`] if nobody answers there.
    pub async fn connect(self) -> Result<Queue, Error> {
        let scheme = self.url.split(':').next().unwrap_or_default();
        if self.replicas > 0 && !scheme.starts_with("redis") {
            return Err(Error::Setting(
                "`replicas` is for Redis alone: a database has its own settings for synchronous replication",
            ));
        }
        match scheme {
            "memory" => Ok(Queue::memory()),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let config = scale_redis::Config::new(&self.url);
                let config = config.response_timeout(self.response_timeout).connect_timeout(self.connect_timeout);
                let redis = config.clone().connect().await.map_err(Error::store)?;
                redis.warn_of_eviction("jobs").await;
                let mut store = crate::store::RedisStore::new(redis.clone(), &self.app);
                store.synchronise().await?;
                if self.replicas > 0 {
                    if redis.is_cluster() {
                        return Err(Error::Setting("`replicas` is not for a Redis Cluster: use `min-replicas-to-write` there"));
                    }
                    let pushes = config.connect().await.map_err(Error::store)?;
                    store = store.replicas(pushes, self.replicas, self.replicas_within);
                }
                Ok(Queue::new(store))
            }
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            _ if crate::store::sql::System::of(&self.url).is_some() => {
                #[cfg(feature = "sqlite")]
                let store = crate::store::SqlStore::connect_with(&self.url, &self.app, self.synchronous).await?;
                #[cfg(not(feature = "sqlite"))]
                let store = crate::store::SqlStore::connect_with(&self.url, &self.app).await?;
                Ok(Queue::new(store))
            }
            _ => Err(Error::address(&self.url)),
        }
    }
}
