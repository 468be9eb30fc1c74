//! Handle of a database: a primary and its replicas.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use sqlx::Pool;
use tokio::sync::{Notify, Semaphore};

use crate::backend::Backend;
use crate::cluster::discover::{self, Discover};
use crate::cluster::lag::History;
use crate::cluster::monitor;
use crate::cluster::node::{Node, NodeStatus, Role};
use crate::cluster::primary::{Election, PrimaryTracker};
use crate::config::{Builder, Config};
use crate::dialect::{Dialect, Probe};
use crate::error::Error;
use crate::log::Log;
use crate::pool::Pools;
use crate::replica::Replica;
use crate::router::{Router, Verdict};

/// A primary and its replicas behind one sqlx executor. Cloning costs one reference count.
///
/// Pass `&Db` wherever sqlx takes an executor; the statement decides which node runs it. See the
/// [crate docs](crate).
pub struct Db<DB: Backend>(pub(crate) Arc<Inner<DB>>);

pub(crate) struct Inner<DB: Backend> {
    /// Distinguishes the handles of one process, for sticky scopes.
    pub(crate) id: usize,
    pub(crate) dialect: Dialect,
    pub(crate) pools: Pools<DB>,
    pub(crate) nodes: ArcSwap<Vec<Arc<Node<DB>>>>,
    pub(crate) router: Router,
    pub(crate) config: Config,
    pub(crate) tracker: Arc<PrimaryTracker>,
    /// Log of the primary, from the last probe round that found one.
    pub(crate) primary_log: ArcSwapOption<Log>,
    /// True if the last probe round found a primary, and every node answered.
    pub(crate) all_seen: AtomicBool,
    cluster: Mutex<Option<String>>,
    rivals: Mutex<Vec<usize>>,
    /// Permits to read from the primary what a replica would serve.
    pub(crate) spill: Arc<Semaphore>,
    pub(crate) closed: AtomicBool,
    /// Wakes the monitor for a probe round now.
    pub(crate) wake: Arc<Notify>,
    /// Notified after each probe round.
    pub(crate) looked: Notify,
}

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

    fn assemble(config: Config, pools: Pools<DB>, nodes: Vec<Node<DB>>) -> Arc<Inner<DB>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            dialect: pools.dialect,
            nodes: ArcSwap::from_pointee(nodes.into_iter().map(Arc::new).collect()),
            router: Router::new(pools.dialect, config.safe_functions.iter().cloned()),
            tracker: Arc::clone(&pools.tracker),
            pools,
            primary_log: ArcSwapOption::empty(),
            all_seen: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            cluster: Mutex::new(None),
            rivals: Mutex::default(),
            spill: Arc::new(Semaphore::new(config.max_connections.div_ceil(2).max(1) as usize)),
            config,
            wake: Arc::new(Notify::new()),
            looked: Notify::new(),
        })
    }

    pub(crate) async fn start(
        config: Config,
        pools: Pools<DB>,
        nodes: Vec<Node<DB>>,
        discover: Option<Discover>,
    ) -> Result<Self, Error> {
        let inner = Self::assemble(config, pools, nodes);
        if let Some(discover) = &discover {
            discover::look(&inner, discover).await;
        }
        let mut history = History::new(inner.config.max_replica_lag);
        let failed = monitor::round(&inner, &mut history).await;
        if inner.primary_number().is_none() {
            return Err(match failed {
                _ if !inner.rivals().is_empty() => inner.no_primary(),
                Some(error) => Error::Unreachable(inner.cause_of(error).await),
                None => inner.no_primary(),
            });
        }
        if let Some(node) = inner.nodes.load().iter().find(|n| n.is_stranger()) {
            return Err(Error::WrongCluster { node: node.number });
        }
        if inner.config.min_connections > 0 {
            let nodes = inner.nodes.load_full();
            tokio::spawn(async move {
                futures_util::future::join_all(nodes.iter().map(|node| node.fill())).await
            });
        }
        // The roles of SQLite's two pools never change.
        if inner.dialect != Dialect::Sqlite {
            let interval = inner.config.monitor_interval;
            tokio::spawn(monitor::run(Arc::downgrade(&inner), history, interval));
            if let Some(discover) = discover {
                tokio::spawn(discover::run(Arc::downgrade(&inner), discover));
            }
        }
        Ok(Self(inner))
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

impl<DB: Backend> Inner<DB> {
    pub(crate) fn primary_number(&self) -> Option<usize> {
        self.tracker.primary()
    }

    pub(crate) fn primary_node(&self) -> Option<Arc<Node<DB>>> {
        let number = self.primary_number()?;
        self.nodes.load().iter().find(|node| node.number == number).cloned()
    }

    /// Connects once by hand to find the cause of an error: a pool that timed out does not say why
    /// its connections failed.
    async fn cause_of(&self, error: sqlx::Error) -> sqlx::Error {
        let (sqlx::Error::PoolTimedOut, Some(node)) = (&error, self.nodes.load().first().cloned())
        else {
            return error;
        };
        let options = node.pool().connect_options();
        let attempt = <DB::Connection as sqlx::Connection>::connect_with(&options);
        match tokio::time::timeout(self.config.acquire_timeout, attempt).await {
            Ok(Err(cause)) => cause,
            _ => error,
        }
    }

    /// Returns the nodes that take writes with equal rights, if that leaves no primary.
    fn rivals(&self) -> Vec<usize> {
        self.rivals.lock().clone()
    }

    pub(crate) fn no_primary(&self) -> Error {
        match self.rivals() {
            rivals if rivals.is_empty() => Error::NoPrimary(self.nodes.load().len()),
            nodes => Error::TwoPrimaries { nodes },
        }
    }

    /// Applies the outcome of an election.
    pub(crate) fn set_primary(&self, election: &Election) {
        let (rivals, undecided) = match election {
            Election::Undecided(nodes) => (nodes.clone(), nodes.clone()),
            Election::Primary { rivals, .. } => (rivals.clone(), Vec::new()),
            Election::Nobody => (Vec::new(), Vec::new()),
        };
        if !rivals.is_empty() {
            tracing::error!(
                nodes = ?rivals,
                "several database nodes take writes: stop all but one",
            );
        }
        metrics::gauge!("scale_db_rival_primaries").set(rivals.len() as f64);
        *self.rivals.lock() = undecided;
        // Before any statement can write to it.
        if let Election::Primary { number, .. } = election {
            self.nodes
                .load()
                .iter()
                .filter(|node| node.number == *number)
                .for_each(|node| node.depose(false));
        }
        match self.tracker.accept(election) {
            (old, new) if old == new => {}
            (_, None) => tracing::error!("no database primary: no writes until one is found"),
            (old, Some(new)) => {
                let nodes = self.nodes.load();
                nodes.iter().filter(|node| node.number != new).for_each(|node| node.depose(true));
                if old.is_some() {
                    tracing::warn!(node = new, "the database primary has changed");
                } else {
                    tracing::info!(node = new, "found the database primary");
                }
            }
        }
    }

    /// Returns whether a node belongs to another cluster than the first node that named its
    /// cluster.
    pub(crate) fn is_stranger(&self, probe: &Probe) -> bool {
        let Some(theirs) = &probe.cluster else { return false };
        self.cluster.lock().get_or_insert_with(|| theirs.clone()) != theirs
    }
}

impl<DB: Backend> From<Pool<DB>> for Db<DB> {
    /// Uses a pool as that of a single primary, as in `#[sqlx::test]`. Nothing is queried, and
    /// nothing is monitored; for replicas and failovers see [`Db::from_pools`].
    fn from(pool: Pool<DB>) -> Self {
        let dialect = DB::dialect_of(&pool).unwrap_or(Dialect::Postgres);
        let inner = Self::assemble(
            Config::new(""),
            Pools::of_others(dialect),
            vec![Node::of_pool(0, pool)],
        );
        inner.set_primary(&Election::Primary { number: 0, timeline: 0, rivals: Vec::new() });
        inner
            .nodes
            .load()
            .iter()
            .for_each(|node| node.saw(Role::Primary, Log::Unknown, Some(Duration::ZERO), true));
        Self(inner)
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
