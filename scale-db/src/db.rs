//! The handle.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_core::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::{Acquire, Pool, SqlSafeStr, SqlStr, Transaction};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::backend::Backend;
use crate::balance;
use crate::capabilities;
use crate::config::{Builder, Config, NoReplica};
use crate::dialect::{Dialect, Probe};
use crate::discover::{self, Discover};
use crate::error::Error;
use crate::lag::History;
use crate::log::Log;
use crate::monitor;
use crate::node::{Node, NodeStatus, Role};
use crate::pools::Pools;
use crate::position::Position;
use crate::reign::{Election, Reign};
use crate::replica::Replica;
use crate::router::{Router, Verdict};
use crate::sticky::{self, Need};

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
    /// What the primary had written at the last look that saw one.
    pub(crate) primary_log: ArcSwapOption<Log>,
    /// The last look saw a primary, and every node answered.
    pub(crate) all_seen: AtomicBool,
    cluster: Mutex<Option<String>>,
    rivals: Mutex<Vec<usize>>,
    /// Leave to read from the primary what a replica would serve.
    spill: Arc<Semaphore>,
    pub(crate) closed: AtomicBool,
    /// Asks the monitor to look now.
    pub(crate) wake: Arc<Notify>,
    /// Told after each look.
    pub(crate) looked: Notify,
}

/// A read-only transaction. Looks through to its connection, as sqlx's `Transaction` does, and ends with `commit`, `rollback`, or when dropped.
pub struct Snapshot<DB: Backend> {
    tx: Transaction<'static, DB>,
    /// Leave to read from the primary, for as long as this lives.
    _leave: Option<OwnedSemaphorePermit>,
}

impl<DB: Backend> Snapshot<DB> {
    /// Ends the transaction.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.tx.commit().await
    }

    /// Ends the transaction.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.tx.rollback().await
    }
}

impl<DB: Backend> std::ops::Deref for Snapshot<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.tx
    }
}

impl<DB: Backend> std::ops::DerefMut for Snapshot<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.tx
    }
}

impl<DB: Backend> fmt::Debug for Snapshot<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshot")
    }
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

    /// Returns the pool of the present primary, for what takes a pool (`PgListener`, session stores, other libraries). It does not follow a
    /// fail-over; ask again then.
    ///
    /// # Errors
    /// [`Error::NoPrimary`] inside `sqlx::Error::Configuration`.
    pub async fn primary_pool(&self) -> Result<Pool<DB>, sqlx::Error> {
        sticky::wrote(self.0.id);
        Ok(self.primary_node().await?.pool.clone())
    }

    /// Returns the pools of the replicas that are fit for reading now.
    pub fn replica_pools(&self) -> Vec<Pool<DB>> {
        self.0.nodes.load().iter().filter(|node| node.is_fit_replica()).map(|node| node.pool.clone()).collect()
    }

    /// The primary, for a read that must not be late by even the lag allowed.
    pub fn primary(&self) -> Via<'_, DB> {
        Via { db: self, target: Target::Primary }
    }

    /// A replica, for a statement that the router cannot prove but that you know to be reading.
    pub fn replica(&self) -> Via<'_, DB> {
        Via { db: self, target: Target::Replica }
    }

    /// A transaction on the primary. Rolled back when dropped before `commit`.
    ///
    /// # Errors
    /// [`Error::NoPrimary`] inside `sqlx::Error::Configuration`, or what sqlx says.
    pub async fn begin(&self) -> Result<Transaction<'static, DB>, sqlx::Error> {
        let node = self.primary_node().await?;
        sticky::wrote(self.0.id);
        // A transaction of SQLite that becomes a writer later fails at once if there is another.
        let statement = if self.0.dialect == Dialect::Sqlite { "begin immediate" } else { "begin" };
        self.begin_on(&node, statement.into_sql_str()).await
    }

    /// Begins a transaction on the primary by a statement of yours: `begin isolation level serializable`.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); `sqlx::Error::BeginFailed` if the statement begins no transaction.
    pub async fn begin_with(&self, statement: impl SqlSafeStr) -> Result<Transaction<'static, DB>, sqlx::Error> {
        let node = self.primary_node().await?;
        sticky::wrote(self.0.id);
        self.begin_on(&node, statement.into_sql_str()).await
    }

    /// Begins a read-only transaction on a replica: one snapshot for several queries.
    ///
    /// # Errors
    /// [`Error::NoReplica`] if so configured, or what sqlx says.
    pub async fn begin_read(&self) -> Result<Snapshot<DB>, sqlx::Error> {
        let (node, leave) = match self.reader(0) {
            Some(node) => (node, None),
            None => self.primary_for_reading().await?,
        };
        let statement = match self.0.dialect {
            Dialect::Postgres => "begin read only",
            Dialect::MySql => "start transaction read only",
            // A transaction that only reads does not wait for the writer.
            Dialect::Sqlite => "begin",
        };
        let tx = self.begin_on(&node, statement.into_sql_str()).await?;
        Ok(Snapshot { tx, _leave: leave })
    }

    async fn begin_on(&self, node: &Node<DB>, statement: SqlStr) -> Result<Transaction<'static, DB>, sqlx::Error> {
        let begin = || Box::pin(self.within_deadline(node, node.pool.begin_with(statement.clone())));
        match begin().await {
            // Nothing has run yet; the next connection is asked first.
            Err(error) if is_broken(&error) => {
                node.doubt();
                begin().await
            }
            begun => begun,
        }
        .inspect_err(|error| self.judge_write(node, error))
    }

    /// A connection to the primary, for what lives on one connection (advisory locks, `LISTEN`, temp tables).
    pub async fn acquire(&self) -> Result<PoolConnection<DB>, sqlx::Error> {
        let node = self.primary_node().await?;
        sticky::wrote(self.0.id);
        let acquire = || async {
            let mut connection = node.pool.acquire().await?;
            DB::ping(&mut connection).await.map(|()| connection)
        };
        match Box::pin(self.within_deadline(&node, acquire())).await {
            Err(error) if is_broken(&error) => {
                node.doubt();
                Box::pin(self.within_deadline(&node, acquire())).await
            }
            acquired => acquired,
        }
        .inspect_err(|error| self.judge_write(&node, error))
    }

    /// Returns how far the primary has written: a node at or past it shows every write that has returned by now. One round trip.
    ///
    /// # Errors
    /// `sqlx::Error::Protocol` where the system's positions are no order (MariaDB with several replication domains, MySQL without GTIDs,
    /// Aurora), or what sqlx says.
    pub async fn position(&self) -> Result<Position, sqlx::Error> {
        if self.0.dialect == Dialect::Sqlite {
            return Ok(Position::default());
        }
        let node = self.primary_node().await?;
        let ask = async {
            let mut connection = node.pool.acquire().await?;
            capabilities::ask::<DB>(self.0.dialect, &mut connection, &node.asked).await
        };
        let probe = Box::pin(self.within_deadline(&node, ask)).await?;
        let position = (probe.role == Role::Primary).then(|| probe.log.position()).flatten();
        position.ok_or_else(|| sqlx::Error::Protocol("the primary's position is not known".into()))
    }

    /// What is known of every node.
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
        futures_util::future::join_all(nodes.iter().map(|n| n.pool.close())).await;
    }

    pub(crate) fn verdict(&self, target: Target, sql: &str) -> Verdict {
        match target {
            Target::Proven => self.0.router.verdict(sql),
            Target::Primary => Verdict::Write,
            Target::Replica => Verdict::Read,
        }
    }

    /// Returns a replica that shows what this scope needs, except those in the bit set `tried`.
    pub(crate) fn reader(&self, tried: u64) -> Option<Arc<Node<DB>>> {
        let needed = match sticky::needed(self.0.id) {
            Need::Nothing => None,
            Need::Write(position) => Some(position),
            Need::Primary => return None,
        };
        let fits = |node: &&Arc<Node<DB>>| {
            tried & (1 << (node.number % 64)) == 0 && node.is_fit_replica() && needed.is_none_or(|write| node.log().shows(write))
        };
        let nodes = self.0.nodes.load();
        let mut fitting = nodes.iter().filter(fits);
        let first = fitting.next()?;
        let Some(second) = fitting.next() else { return Some(Arc::clone(first)) };
        let all: Vec<_> = [first, second].into_iter().chain(fitting).collect();
        balance::pick(&all, |n| n.cost()).map(|n| Arc::clone(n))
    }

    /// Returns the primary for a read that no replica can serve, and leave to use it: a part of its connections is kept for those who
    /// need the primary itself.
    pub(crate) async fn primary_for_reading(&self) -> Result<(Arc<Node<DB>>, Option<OwnedSemaphorePermit>), sqlx::Error> {
        let several = self.0.nodes.load().len() > 1;
        match sticky::needed(self.0.id) {
            Need::Nothing if self.0.config.no_replica == NoReplica::Refuse && several => Err(Error::NoReplica.into()),
            Need::Nothing if several => {
                let wait = tokio::time::timeout(self.0.config.acquire_timeout, Arc::clone(&self.0.spill).acquire_owned());
                let leave = wait.await.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)?;
                Ok((self.primary_node().await?, Some(leave)))
            }
            _ => Ok((self.primary_node().await?, None)),
        }
    }

    /// Returns a primary that is no older than the one that wrote at a position: the mark of another process may know of a fail-over
    /// before this one does.
    async fn primary_that_knows(&self, position: Position) -> Result<Arc<Node<DB>>, sqlx::Error> {
        let knows = |node: &Node<DB>| node.log().knows(position);
        let node = self.any_primary().await?;
        if knows(&node) {
            return Ok(node);
        }
        self.look().await;
        let node = self.any_primary().await?;
        // Every node has answered, and none knows who wrote that: the mark is forged, or of a database that is no more.
        if knows(&node) || self.0.all_seen.load(Ordering::Relaxed) {
            return Ok(node);
        }
        Err(Error::Unseen.into())
    }

    /// Waits for one look of the monitor that begins from now on, no longer than two of them take.
    pub(crate) async fn look(&self) {
        if self.0.dialect == Dialect::Sqlite {
            return;
        }
        let one = async {
            let looked = self.0.looked.notified();
            self.0.wake.notify_one();
            looked.await;
        };
        // A look may be under way that began before.
        let two = async { (one.await, self.0.wake.notify_one(), self.0.looked.notified().await) };
        let _ = tokio::time::timeout(2 * self.0.config.look_limit() + Duration::from_millis(100), two).await;
    }

    /// Returns the primary, waiting for one no longer than configured: no older than what this scope was told of.
    pub(crate) async fn primary_node(&self) -> Result<Arc<Node<DB>>, sqlx::Error> {
        match sticky::told(self.0.id) {
            position if position == Position::default() => self.any_primary().await,
            // Seldom: not every future carries it.
            position => Box::pin(self.primary_that_knows(position)).await,
        }
    }

    async fn any_primary(&self) -> Result<Arc<Node<DB>>, sqlx::Error> {
        if let Some(node) = self.0.primary_node() {
            return Ok(node);
        }
        let wait = async {
            loop {
                let looked = self.0.looked.notified();
                self.0.wake.notify_one();
                looked.await;
                if let Some(node) = self.0.primary_node() {
                    return node;
                }
            }
        };
        tokio::time::timeout(self.0.config.primary_wait, wait).await.map_err(|_| self.0.no_primary().into())
    }

    /// A failed write may be the first to know of a fail-over.
    pub(crate) fn judge_write(&self, node: &Node<DB>, error: &sqlx::Error) {
        if is_lost(error) {
            node.doubt();
        }
        if is_lost(error) || self.is_refusal(error) {
            self.0.wake.notify_one();
        }
    }

    /// The node does not take writes; the statement has not run.
    pub(crate) fn is_refusal(&self, error: &sqlx::Error) -> bool {
        error.as_database_error().and_then(code).is_some_and(|code| self.0.dialect.is_read_only_code(&code))
    }
}

/// Returns the number of an error of MySQL or MariaDB, whose SQLSTATE is the same for many, and the code of others.
pub(crate) fn code(error: &dyn sqlx::error::DatabaseError) -> Option<Cow<'_, str>> {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return Some(error.number().to_string().into());
    }
    error.code()
}

/// The connection or the server is gone: a read may be asked again elsewhere.
pub(crate) fn is_lost(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::PoolTimedOut) || is_broken(error)
}

/// The connection is gone: another one to the same server may be in order.
pub(crate) fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        // Class 57P: the server shuts down, crashed, or is starting. 08: connection exceptions.
        sqlx::Error::Database(e) => e.code().is_some_and(|c| c.starts_with("57P") || c.starts_with("08")),
        _ => false,
    }
}

impl<DB: Backend> Inner<DB> {
    pub(crate) fn primary_number(&self) -> Option<usize> {
        self.reign.primary()
    }

    fn primary_node(&self) -> Option<Arc<Node<DB>>> {
        let number = self.primary_number()?;
        self.nodes.load().iter().find(|node| node.number == number).cloned()
    }

    /// A pool that ran out of time does not say why its connections failed: one made by hand does.
    async fn cause_of(&self, error: sqlx::Error) -> sqlx::Error {
        let (sqlx::Error::PoolTimedOut, Some(node)) = (&error, self.nodes.load().first().cloned()) else { return error };
        let options = node.pool.connect_options();
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

impl<'a, DB: Backend> Acquire<'a> for &Db<DB> {
    type Database = DB;
    type Connection = PoolConnection<DB>;

    fn acquire(self) -> BoxFuture<'a, Result<PoolConnection<DB>, sqlx::Error>> {
        let db = self.clone();
        Box::pin(async move { db.acquire().await })
    }

    fn begin(self) -> BoxFuture<'a, Result<Transaction<'a, DB>, sqlx::Error>> {
        let db = self.clone();
        Box::pin(async move { db.begin().await })
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
