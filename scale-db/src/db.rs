//! The handle.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use sqlx::Pool;
use tokio::sync::{Notify, Semaphore};

use crate::backend::Backend;
use crate::config::{Builder, Config};
use crate::dialect::{Dialect, Probe};
use crate::discover::{self, Discover};
use crate::error::Error;
use crate::lag::History;
use crate::log::Log;
use crate::monitor;
use crate::node::{Node, NodeStatus, Role};
use crate::pools::Pools;
use crate::reign::{Election, Reign};
use crate::replica::Replica;
use crate::router::{Router, Verdict};

/// A primary and its replicas behind one sqlx executor. Cloning costs one reference count.
///
/// `&Db` goes wherever sqlx takes an executor; the statement decides which node runs it. See the [crate docs](crate).
pub struct Db<DB: Backend>(pub(crate) Arc<Inner<DB>>);

pub(crate) struct Inner<DB: Backend> {
    /// Tells the handles of one process apart, for sticky scopes.
    pub(crate) id: usize,
    pub(crate) dialect: Dialect,
    pub(crate) pools: Pools<DB>,
    pub(crate) nodes: ArcSwap<Vec<Arc<Node<DB>>>>,
    pub(crate) router: Router,
    pub(crate) config: Config,
    pub(crate) reign: Arc<Reign>,
    /// Log of the primary at the last look that saw one.
    pub(crate) primary_log: ArcSwapOption<Log>,
    /// The last look saw a primary, and every node answered.
    pub(crate) all_seen: AtomicBool,
    cluster: Mutex<Option<String>>,
    rivals: Mutex<Vec<usize>>,
    /// Leave to read from the primary what a replica would serve.
    pub(crate) spill: Arc<Semaphore>,
    pub(crate) closed: AtomicBool,
    /// Asks the monitor to look now.
    pub(crate) wake: Arc<Notify>,
    /// Told after each look.
    pub(crate) looked: Notify,
}

/// Where a statement is meant to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Where its text allows.
    Proven,
    /// On the primary, whatever it is.
    Primary,
    /// On a replica, whatever it is: the caller knows it only reads.
    Replica,
}

/// The database with the choice of node made by hand: from [`Db::primary`] and [`Db::replica`]. An executor like [`Db`] itself.
#[derive(Debug)]
pub struct Via<'a, DB: Backend> {
    pub(crate) db: &'a Db<DB>,
    pub(crate) target: Target,
}

impl<DB: Backend> Copy for Via<'_, DB> {}

impl<DB: Backend> Clone for Via<'_, DB> {
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

    /// Begins with the first node, given by its address or by sqlx's options (`PgConnectOptions`, …); replicas and limits follow.
    pub fn builder(first: impl Into<Replica>) -> Builder<DB> {
        Builder::new(first.into())
    }

    /// Makes a database of pools that there are already, the first of them the primary's as a rule. Their roles are observed.
    ///
    /// Pools of one's own are not told this crate's [time-outs](Config::statement_timeout), and do not close the door to a primary of
    /// before a fail-over at each new connection, but at the next look alone.
    ///
    /// # Errors
    /// See [`Config::connect`].
    pub async fn from_pools(pools: impl IntoIterator<Item = Pool<DB>>) -> Result<Self, Error> {
        let pools: Vec<_> = pools.into_iter().collect();
        let none = || Error::Address("there is no pool to make a database of".into());
        let dialect = DB::dialect_of(pools.first().ok_or_else(none)?).ok_or_else(none)?;
        let nodes = pools.into_iter().enumerate().map(|(number, pool)| Node::of_pool(number, pool)).collect();
        Self::start(Config::new(""), Pools::of_others(dialect), nodes, None).await
    }

    fn assemble(config: Config, pools: Pools<DB>, nodes: Vec<Node<DB>>) -> Arc<Inner<DB>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            dialect: pools.dialect,
            nodes: ArcSwap::from_pointee(nodes.into_iter().map(Arc::new).collect()),
            router: Router::new(pools.dialect, config.safe_functions.iter().cloned()),
            reign: Arc::clone(&pools.reign),
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
            return Err(Error::Stranger { node: node.number });
        }
        if inner.config.min_connections > 0 {
            let nodes = inner.nodes.load_full();
            tokio::spawn(async move { futures_util::future::join_all(nodes.iter().map(|node| node.fill())).await });
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

    /// The primary, for a read that must not be late by even the lag allowed.
    pub fn primary(&self) -> Via<'_, DB> {
        Via { db: self, target: Target::Primary }
    }

    /// A replica, for a statement that the router cannot prove but that you know to be reading.
    pub fn replica(&self) -> Via<'_, DB> {
        Via { db: self, target: Target::Replica }
    }

    /// Returns the status of every node.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.0.nodes.load().iter().map(|n| n.status()).collect()
    }

    /// The verdicts of this database's router.
    pub fn router(&self) -> &Router {
        &self.0.router
    }

    /// The dialect spoken.
    pub fn dialect(&self) -> Dialect {
        self.0.dialect
    }

    /// Waits until every connection is closed. Handles that remain fail with `PoolClosed`.
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
        self.reign.primary()
    }

    pub(crate) fn primary_node(&self) -> Option<Arc<Node<DB>>> {
        let number = self.primary_number()?;
        self.nodes.load().iter().find(|node| node.number == number).cloned()
    }

    /// A pool that ran out of time does not say why its connections failed: one made by hand does.
    async fn cause_of(&self, error: sqlx::Error) -> sqlx::Error {
        let (sqlx::Error::PoolTimedOut, Some(node)) = (&error, self.nodes.load().first().cloned()) else { return error };
        let options = node.pool().connect_options();
        let attempt = <DB::Connection as sqlx::Connection>::connect_with(&options);
        match tokio::time::timeout(self.config.acquire_timeout, attempt).await {
            Ok(Err(cause)) => cause,
            _ => error,
        }
    }

    /// Nodes that take writes with equal rights, while there is no primary for it.
    fn rivals(&self) -> Vec<usize> {
        self.rivals.lock().clone()
    }

    pub(crate) fn no_primary(&self) -> Error {
        match self.rivals() {
            rivals if rivals.is_empty() => Error::NoPrimary(self.nodes.load().len()),
            nodes => Error::TwoPrimaries { nodes },
        }
    }

    /// Makes an election's outcome known.
    pub(crate) fn set_primary(&self, election: &Election) {
        let (rivals, undecided) = match election {
            Election::Undecided(nodes) => (nodes.clone(), nodes.clone()),
            Election::Primary { rivals, .. } => (rivals.clone(), Vec::new()),
            Election::Nobody => (Vec::new(), Vec::new()),
        };
        if !rivals.is_empty() {
            tracing::error!(nodes = ?rivals, "more than one database node takes writes: end all but one");
        }
        metrics::gauge!("scale_db_rival_primaries").set(rivals.len() as f64);
        *self.rivals.lock() = undecided;
        // Before anybody writes to it.
        if let Election::Primary { number, .. } = election {
            self.nodes.load().iter().filter(|node| node.number == *number).for_each(|node| node.depose(false));
        }
        match self.reign.accept(election) {
            (old, new) if old == new => {}
            (_, None) => tracing::error!("there is no database primary"),
            (old, Some(new)) => {
                let nodes = self.nodes.load();
                nodes.iter().filter(|node| node.number != new).for_each(|node| node.depose(true));
                if old.is_some() {
                    tracing::warn!(node = new, "the database primary has moved");
                } else {
                    tracing::info!(node = new, "the database primary is known");
                }
            }
        }
    }

    /// Compares a node's cluster with the first one heard of.
    pub(crate) fn is_stranger(&self, probe: &Probe) -> bool {
        let Some(theirs) = &probe.cluster else { return false };
        self.cluster.lock().get_or_insert_with(|| theirs.clone()) != theirs
    }
}

impl<DB: Backend> From<Pool<DB>> for Db<DB> {
    /// Takes a pool as that of a lone primary, as in `#[sqlx::test]`. Nothing is asked and nothing observed: for replicas and fail-overs see
    /// [`Db::from_pools`].
    fn from(pool: Pool<DB>) -> Self {
        let dialect = DB::dialect_of(&pool).unwrap_or(Dialect::Postgres);
        let inner = Self::assemble(Config::new(""), Pools::of_others(dialect), vec![Node::of_pool(0, pool)]);
        inner.set_primary(&Election::Primary { number: 0, timeline: 0, rivals: Vec::new() });
        inner.nodes.load().iter().for_each(|node| node.saw(Role::Primary, Log::Unknown, Some(Duration::ZERO), true));
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
        f.debug_struct("Db").field("dialect", &self.0.dialect).field("nodes", &self.nodes()).finish()
    }
}
