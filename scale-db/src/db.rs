//! Handle of a database: a primary and its replicas.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::Pool;

use crate::backend::Backend;
use crate::builder::Builder;
use crate::cluster::lag::History;
use crate::cluster::node::{Node, NodeStatus};
use crate::cluster::primary::Election;
use crate::cluster::replica_source::ReplicaSource;
use crate::cluster::role::Role;
use crate::cluster::{Cluster, discover, monitor};
use crate::config::Config;
use crate::dialect::Dialect;
use crate::error::Error;
use crate::log::Log;
use crate::pool::Pools;
use crate::replica::Replica;
use crate::router::{Router, Verdict};

/// A primary and its replicas behind one sqlx executor. Cloning costs one reference count.
///
/// Pass `&Db` wherever sqlx takes an executor; the statement decides which node runs it. See the
/// [crate docs](crate).
pub struct Db<DB: Backend>(pub(crate) Arc<Cluster<DB>>);

/// Target of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Any node that the statement's text allows.
    Proven,
    /// The primary, whatever the statement.
    Primary,
    /// A replica, whatever the statement: the caller knows that it only reads.
    Replica,
}

/// Executor with a node chosen by the caller: from [`Db::primary`] and [`Db::replica`].
#[derive(Debug)]
pub struct RoutedExecutor<'a, DB: Backend> {
    pub(crate) db: &'a Db<DB>,
    pub(crate) target: Target,
}

impl<DB: Backend> Copy for RoutedExecutor<'_, DB> {}

impl<DB: Backend> Clone for RoutedExecutor<'_, DB> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<DB: Backend> Db<DB> {
    /// Connects to one node, or opens an SQLite file, with the default settings.
    ///
    /// # Errors
    /// See [`Config::connect`].
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Config::new(url).connect().await
    }

    /// Returns a builder with the first node, given by its address or by sqlx's options
    /// (`PgConnectOptions`, …). Replicas and limits can be added.
    pub fn builder(first: impl Into<Replica>) -> Builder<DB> {
        Builder::new(first.into())
    }

    /// Makes a database of existing pools. Their roles are observed; the first is normally the
    /// primary's.
    ///
    /// This crate sets no [timeouts](Config::statement_timeout) on connections of such pools. A
    /// stale primary is detected only by the next probe round, not at each new connection.
    ///
    /// # Errors
    /// See [`Config::connect`].
    pub async fn from_pools(pools: impl IntoIterator<Item = Pool<DB>>) -> Result<Self, Error> {
        let pools: Vec<_> = pools.into_iter().collect();
        let none = || Error::Address("no pool given: expected at least one".into());
        let dialect = DB::dialect_of(pools.first().ok_or_else(none)?).ok_or_else(none)?;
        let nodes = pools
            .into_iter()
            .enumerate()
            .map(|(number, pool)| Node::of_pool(number, pool))
            .collect();
        Self::start(Config::new(""), Pools::of_others(dialect), nodes, None).await
    }

    pub(crate) async fn start(
        config: Config,
        pools: Pools<DB>,
        nodes: Vec<Node<DB>>,
        source: Option<ReplicaSource>,
    ) -> Result<Self, Error> {
        let cluster = Cluster::new(config, pools, nodes);
        if let Some(source) = &source {
            discover::look(&cluster, source).await;
        }
        let mut history = History::new(cluster.config.max_replica_lag);
        let failed = monitor::round(&cluster, &mut history).await;
        if cluster.primary_number().is_none() {
            return Err(match failed {
                _ if !cluster.rivals().is_empty() => cluster.no_primary(),
                Some(error) => Error::Unreachable(cluster.cause_of(error).await),
                None => cluster.no_primary(),
            });
        }
        if let Some(node) = cluster.nodes.load().iter().find(|n| n.is_stranger()) {
            return Err(Error::WrongCluster { node: node.number });
        }
        if cluster.config.min_connections > 0 {
            let nodes = cluster.nodes.load_full();
            tokio::spawn(async move {
                futures_util::future::join_all(nodes.iter().map(|node| node.fill())).await
            });
        }
        // The roles of SQLite's two pools never change.
        if cluster.dialect != Dialect::Sqlite {
            let interval = cluster.config.monitor_interval;
            tokio::spawn(monitor::run(Arc::downgrade(&cluster), history, interval));
            if let Some(source) = source {
                tokio::spawn(discover::run(Arc::downgrade(&cluster), source));
            }
        }
        Ok(Self(cluster))
    }

    /// Returns an executor on the primary, for reads that must not even have the lag that is
    /// allowed.
    pub fn primary(&self) -> RoutedExecutor<'_, DB> {
        RoutedExecutor { db: self, target: Target::Primary }
    }

    /// Returns an executor on a replica, for a statement that the router cannot prove and that you
    /// know to be read-only.
    pub fn replica(&self) -> RoutedExecutor<'_, DB> {
        RoutedExecutor { db: self, target: Target::Replica }
    }

    /// Returns the status of every node.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.0.nodes.load().iter().map(|n| n.status()).collect()
    }

    /// Returns the router of this database.
    pub fn router(&self) -> &Router {
        &self.0.router
    }

    /// Returns the dialect of this database.
    pub fn dialect(&self) -> Dialect {
        self.0.dialect
    }

    /// Closes all connections, and waits for those in use. Other handles then fail with
    /// `PoolClosed`.
    pub async fn close(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
        self.0.wake.notify_one();
        let nodes = self.0.nodes.load_full();
        nodes.iter().for_each(|node| node.watched(None));
        futures_util::future::join_all(nodes.iter().map(|n| n.close())).await;
    }

    pub(crate) fn verdict(&self, target: Target, sql: &str) -> Verdict {
        match target {
            Target::Proven => self.0.router.verdict(sql),
            Target::Primary => Verdict::Write,
            Target::Replica => Verdict::Read,
        }
    }
}

impl<DB: Backend> From<Pool<DB>> for Db<DB> {
    /// Uses a pool as that of a single primary, as in `#[sqlx::test]`. Nothing is queried, and
    /// nothing is monitored; for replicas and failovers see [`Db::from_pools`].
    fn from(pool: Pool<DB>) -> Self {
        let dialect = DB::dialect_of(&pool).unwrap_or(Dialect::Postgres);
        let cluster =
            Cluster::new(Config::new(""), Pools::of_others(dialect), vec![Node::of_pool(0, pool)]);
        cluster.set_primary(&Election::Primary { number: 0, timeline: 0, rivals: Vec::new() });
        cluster
            .nodes
            .load()
            .iter()
            .for_each(|node| node.saw(Role::Primary, Log::Unknown, Some(Duration::ZERO), true));
        Self(cluster)
    }
}

impl<DB: Backend> Clone for Db<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Backend> fmt::Debug for Db<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db")
            .field("dialect", &self.0.dialect)
            .field("nodes", &self.nodes())
            .finish()
    }
}
