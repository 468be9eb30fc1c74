//! Builder of a handle.

use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use sqlx::pool::PoolConnectionMetadata;

use crate::backend::Backend;
use crate::cluster::replica_source::ReplicaSource;
use crate::config::{Config, NoReplica};
use crate::db::Db;
use crate::error::Error;
use crate::pool::{AfterConnect, Pools};
use crate::replica::Replica;

/// Builder of a [`Db`].
///
/// ```no_run
/// # async fn example() -> Result<(), scale_db::Error> {
/// use std::time::Duration;
/// use scale_db::Db;
/// use sqlx::Postgres;
///
/// let db = Db::<Postgres>::builder("postgres://primary/shop")
///     .replica("postgres://replica-1/shop")
///     .replica("postgres://replica-2/shop")
///     .max_replica_lag(Duration::from_secs(2))
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[must_use]
pub struct Builder<DB: Backend> {
    config: Config,
    after_connect: Option<AfterConnect<DB>>,
}

impl Config {
    /// Connects. At least one node must answer and be the primary.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Unreachable`], [`Error::NoPrimary`], [`Error::TwoPrimaries`],
    /// [`Error::WrongCluster`].
    pub async fn connect<DB: Backend>(self) -> Result<Db<DB>, Error> {
        Builder::from(self).connect().await
    }
}

impl<DB: Backend> Clone for Builder<DB> {
    fn clone(&self) -> Self {
        Self { config: self.config.clone(), after_connect: self.after_connect.clone() }
    }
}

impl<DB: Backend> std::fmt::Debug for Builder<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Builder").field(&self.config).finish()
    }
}

impl<DB: Backend> From<Config> for Builder<DB> {
    fn from(config: Config) -> Self {
        Self { config, after_connect: None }
    }
}

impl<DB: Backend> Builder<DB> {
    pub(crate) fn new(first: Replica) -> Self {
        let mut config = Config::new(first.url);
        config.max_connections = first.max_connections.unwrap_or(config.max_connections);
        config.options = first.options;
        Self::from(config)
    }

    /// Adds a node: an address, or a [`Replica`] with a weight.
    pub fn replica(mut self, replica: impl Into<Replica>) -> Self {
        self.config.replicas.push(replica.into());
        self
    }

    /// Makes every IP address of this address's host a replica, now and later. See
    /// [`Config::discover`].
    pub fn discover(mut self, url: impl Into<String>) -> Self {
        self.config.discover = Some(url.into());
        self
    }

    /// Uses the replicas that `find` returns: addresses from Consul, Kubernetes, a file.
    pub fn discover_with<F>(mut self, find: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<Vec<String>>> + Send + 'static,
    {
        self.config.discover_with = Some(ReplicaSource::with(find));
        self
    }

    /// Sets the interval at which replicas are discovered. Default: 5 s.
    pub fn discovery_interval(mut self, interval: Duration) -> Self {
        self.config.discovery_interval = interval;
        self
    }

    /// Sets the maximum number of connections to each node. Default: 10.
    pub fn max_connections(mut self, count: u32) -> Self {
        self.config.max_connections = count;
        self
    }

    /// Sets the number of connections to each node that are kept open even if idle. Default: 0.
    pub fn min_connections(mut self, count: u32) -> Self {
        self.config.min_connections = count;
        self
    }

    /// Sets the longest wait for a connection. Default: 3 s.
    pub fn acquire_timeout(mut self, limit: Duration) -> Self {
        self.config.acquire_timeout = limit;
        self
    }

    /// Sets the maximum lag of a replica that gets reads. Default: 5 s.
    pub fn max_replica_lag(mut self, limit: Duration) -> Self {
        self.config.max_replica_lag = limit;
        self
    }

    /// Sets the interval at which every node is asked for role and position. Default: 500 ms.
    pub fn monitor_interval(mut self, interval: Duration) -> Self {
        self.config.monitor_interval = interval;
        self
    }

    /// Sets the longest wait of a write while there is no primary. Default: 0.
    pub fn primary_wait(mut self, limit: Duration) -> Self {
        self.config.primary_wait = limit;
        self
    }

    /// Sets the maximum duration of a statement. Default: 30 s. See [`Config::statement_timeout`].
    pub fn statement_timeout(mut self, limit: Duration) -> Self {
        self.config.statement_timeout = limit;
        self
    }

    /// Sets the longest wait for a lock. Default: 5 s.
    pub fn lock_timeout(mut self, limit: Duration) -> Self {
        self.config.lock_timeout = limit;
        self
    }

    /// Sets the duration above which a statement is logged. Default: 500 ms.
    pub fn slow_query(mut self, limit: Duration) -> Self {
        self.config.slow_query = limit;
        self
    }

    /// Sets the behaviour of reads when no replica is usable. Default: they go to the primary.
    pub fn no_replica(mut self, choice: NoReplica) -> Self {
        self.config.no_replica = choice;
        self
    }

    /// Adds a function of the application that neither writes nor locks.
    pub fn safe_function(mut self, name: impl Into<String>) -> Self {
        self.config.safe_functions.push(name.into());
        self
    }

    /// Sets code that runs on each new connection after this crate's own setup (timeouts, pragmas),
    /// for example `set time zone`, `set role`, extensions.
    pub fn after_connect<F>(mut self, run: F) -> Self
    where
        F: for<'c> Fn(
                &'c mut DB::Connection,
                PoolConnectionMetadata,
            ) -> BoxFuture<'c, Result<(), sqlx::Error>>
            + Send
            + Sync
            + 'static,
    {
        self.after_connect = Some(Arc::new(run));
        self
    }

    /// Connects. At least one node must answer and be the primary.
    ///
    /// # Errors
    /// See [`Config::connect`].
    pub async fn connect(self) -> Result<Db<DB>, Error> {
        DB::prepare_driver();
        let Self { config, after_connect } = self;
        let mut all =
            vec![Replica { options: config.options.clone(), ..Replica::new(&config.url) }];
        all.extend(config.replicas.iter().cloned());
        let source = config
            .discover_with
            .clone()
            .or_else(|| config.discover.clone().map(ReplicaSource::dns));
        let listed = source.is_none();
        let pools = Pools::<DB>::new(&all, config.discover.as_deref(), after_connect)?;
        let nodes = pools.listed(&config, &all, listed)?;
        Db::start(config, pools, nodes, source).await
    }
}
