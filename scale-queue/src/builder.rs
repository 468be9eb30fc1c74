//! Settings of a queue, and its connection to the store.

use std::time::Duration;

use crate::error::Error;
#[cfg(all(feature = "sql", feature = "redis"))]
use crate::failover::Failover;
use crate::queue::Queue;
#[cfg(feature = "sql")]
use crate::store::sql::{Settings, SqlStore, Synchronous};

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
    #[cfg(feature = "sql")]
    sql: Settings,
    #[cfg(feature = "sql")]
    pool: Option<scale_sql::Database>,
    #[cfg(all(feature = "sql", feature = "redis"))]
    failover: Option<FailoverTo>,
}

/// Database of an outbox.
#[cfg(all(feature = "sql", feature = "redis"))]
#[derive(Clone)]
enum FailoverTo {
    Address(String),
    Pool(scale_sql::Database),
}

impl std::fmt::Debug for QueueBuilder {
    /// Omits the address, because it may contain a password.
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
            #[cfg(feature = "sql")]
            sql: Settings::default(),
            #[cfg(feature = "sql")]
            pool: None,
            #[cfg(all(feature = "sql", feature = "redis"))]
            failover: None,
        }
    }

    /// Sets how long Redis may take to answer. Default: 500 ms. A request or an answer of several
    /// megabytes gets one more second for each megabyte.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// Sets how long connecting to Redis may take. Default: 500 ms.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Makes a push return `Ok` only after `count` replicas of Redis have the job. The store sends
    /// `WAIT` and waits at most `within`; then the push fails with [`Error::Unacknowledged`].
    ///
    /// Default: 0. A job that has not reached a replica is then lost in a failover. The setting
    /// costs one round trip between master and replica per call; pushes made at the same time share
    /// it.
    ///
    /// Not available in a Redis Cluster, because the answer to `WAIT` cannot be assigned to the
    /// right node: [`connect`](Self::connect) returns an error.
    pub fn replicas(mut self, count: usize, within: Duration) -> Self {
        (self.replicas, self.replicas_within) = (count, within);
        self
    }

    /// Sets how durably an SQLite file stores acknowledged writes. Default: [`Synchronous::Full`].
    #[cfg(feature = "sql")]
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.sql.synchronous = synchronous;
        self
    }

    /// Sets whether [`connect`](Self::connect) migrates the tables of a database to this version of
    /// the crate. Default: `true` for an SQLite file. On a server, `connect` only checks the
    /// tables, so its role needs no permission to create any; see
    /// [`migrate`](crate::store::migrate).
    #[cfg(feature = "sql")]
    pub fn migrate(mut self, migrates: bool) -> Self {
        self.sql.migrate = Some(migrates);
        self
    }

    /// Sets the maximum number of connections to a database server. Default: 10. PostgreSQL uses
    /// one more to listen for notifications. With [`Queue::with_pool`] the pool's own setting
    /// applies.
    #[cfg(feature = "sql")]
    pub fn max_connections(mut self, count: u32) -> Self {
        self.sql.options.max_connections = count.max(1);
        self
    }

    /// Sets how long a database server may take to answer before its connection is closed. Default:
    /// 30 s.
    #[cfg(feature = "sql")]
    pub fn statement_timeout(mut self, limit: Duration) -> Self {
        self.sql.options.statement_timeout = limit;
        self
    }

    /// Declares that a pooler between this process and PostgreSQL assigns a connection per
    /// transaction, as pgbouncer does in its mode `transaction`. Statements are then not prepared,
    /// and workers poll for jobs four times a second instead of receiving notifications. Default:
    /// `false`.
    #[cfg(feature = "sql")]
    pub fn transaction_pooling(mut self, is_pooled: bool) -> Self {
        self.sql.options.transaction_pooling = is_pooled;
        self
    }

    /// Lets pushes go to an outbox in a database, given by its address, while Redis does not answer
    /// or is full: see [`failover`](crate::failover). A push then takes Redis' response timeout
    /// once, and one key of Redis is kept for each job for a day. The outbox's table is created by
    /// [`Relay::migrate`](crate::relay::Relay::migrate), or here with [`migrate`](Self::migrate).
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), scale_queue::Error> {
    /// let queue = scale_queue::Queue::builder("redis://127.0.0.1", "shop")
    ///     .failover("postgres://localhost/shop")
    ///     .connect()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    #[cfg(all(feature = "sql", feature = "redis"))]
    pub fn failover(mut self, url: &str) -> Self {
        self.failover = Some(FailoverTo::Address(url.to_owned()));
        self
    }

    /// Lets pushes go to an outbox through the application's own pool; otherwise like
    /// [`failover`](Self::failover).
    #[cfg(all(feature = "sql", feature = "redis"))]
    pub fn failover_pool(mut self, pool: impl Into<scale_sql::Database>) -> Self {
        self.failover = Some(FailoverTo::Pool(pool.into()));
        self
    }

    #[cfg(feature = "sql")]
    pub(crate) fn on(mut self, pool: scale_sql::Database) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Connects to the store.
    ///
    /// # Errors
    /// [`Error::Address`] if the address belongs to no store that is compiled in;
    /// [`Error::Setting`] for a setting that this store does not support; `Error::Schema` if the
    /// tables are older or newer than this version needs; [`Error::Store`] if the store cannot be
    /// reached.
    pub async fn connect(self) -> Result<Queue, Error> {
        let scheme = self.url.split(':').next().unwrap_or_default();
        if self.replicas > 0 && !scheme.starts_with("redis") {
            return Err(Error::Setting(
                "`replicas` is supported on Redis only: for a database, use its own settings \
                 for synchronous replication",
            ));
        }
        #[cfg(all(feature = "sql", feature = "redis"))]
        if self.failover.is_some() && !scheme.starts_with("redis") {
            return Err(Error::Setting("`failover` is supported on Redis only"));
        }
        #[cfg(feature = "sql")]
        if let Some(pool) = self.pool {
            let store = SqlStore::open(pool.with(&self.sql.options), &self.app, &self.sql).await?;
            return Ok(Queue::new(store));
        }
        match scheme {
            "memory" => Ok(Queue::memory()),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let config = scale_redis::Config::new(&self.url);
                let config = config
                    .response_timeout(self.response_timeout)
                    .connect_timeout(self.connect_timeout);
                let redis = config.clone().connect().await.map_err(Error::store)?;
                redis.warn_of_eviction("jobs").await;
                let mut store = crate::store::RedisStore::new(redis.clone(), &self.app);
                store.synchronise().await?;
                if self.replicas > 0 {
                    if redis.is_cluster() {
                        return Err(Error::Setting(
                            "`replicas` is not supported in a Redis Cluster: use \
                             `min-replicas-to-write` there",
                        ));
                    }
                    let pushes = config.connect().await.map_err(Error::store)?;
                    store = store.replicas(pushes, self.replicas, self.replicas_within);
                }
                let queue = Queue::new(store);
                #[cfg(all(feature = "sql", feature = "redis"))]
                if let Some(failover) = self.failover {
                    let database = match failover {
                        FailoverTo::Pool(pool) => pool,
                        FailoverTo::Address(url) => {
                            scale_sql::Database::connect(&url, &self.sql.options).await?
                        }
                    };
                    let migrates = self.sql.migrate.unwrap_or_default();
                    let failover = Failover::open(database, queue.store(), migrates).await?;
                    return Ok(queue.with_failover(failover));
                }
                Ok(queue)
            }
            #[cfg(feature = "sql")]
            _ if scale_sql::System::of(&self.url).is_some() => {
                let database = scale_sql::Database::connect(&self.url, &self.sql.options).await?;
                Ok(Queue::new(SqlStore::open(database, &self.app, &self.sql).await?))
            }
            _ => Err(Error::address(&self.url)),
        }
    }
}
