//! The handle.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::{SqlSafeStr, Transaction};
use tokio::sync::Notify;

use crate::backend::Backend;
use crate::balance;
use crate::config::{Builder, Config, NoReplica};
use crate::dialect::{Dialect, Probe};
use crate::discover::{self, Discover};
use crate::error::Error;
use crate::lag::History;
use crate::monitor;
use crate::node::{Node, NodeStatus};
use crate::position::Position;
use crate::reign::Reign;
use crate::router::{Router, Verdict};
use crate::sticky;

/// A primary and its replicas behind one sqlx executor. Cloning costs one reference count.
///
/// `&Db` goes wherever sqlx takes an executor; the statement decides which node runs it. See the [crate docs](crate).
pub struct Db<DB: Backend>(pub(crate) Arc<Inner<DB>>);

pub(crate) struct Inner<DB: Backend> {
    /// Tells the handles of one process apart, for sticky scopes.
    pub(crate) id: usize,
    pub(crate) dialect: Dialect,
    pub(crate) nodes: ArcSwap<Vec<Arc<Node<DB>>>>,
    pub(crate) router: Router,
    pub(crate) config: Config,
    pub(crate) reign: Arc<Reign>,
    cluster: Mutex<Option<String>>,
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
    /// One node, or an SQLite file, with the default settings.
    ///
    /// # Errors
    /// See [`Config::connect`].
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Config::new(url).connect().await
    }

    /// The long way, with replicas and limits.
    pub fn builder(url: &str) -> Builder<DB> {
        Builder::new(url)
    }

    pub(crate) async fn start(
        config: Config,
        dialect: Dialect,
        nodes: Vec<Node<DB>>,
        reign: Arc<Reign>,
        discover: Option<Discover>,
    ) -> Result<Self, Error> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let interval = config.monitor_interval;
        let inner = Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            dialect,
            nodes: ArcSwap::from_pointee(nodes.into_iter().map(Arc::new).collect()),
            router: Router::new(dialect, config.safe_functions.iter().cloned()),
            config,
            reign,
            cluster: Mutex::new(None),
            wake: Arc::new(Notify::new()),
            looked: Notify::new(),
        });
        if let Some(discover) = &discover {
            discover::look(&inner, discover).await;
        }
        let mut history = History::default();
        let failed = monitor::round(&inner, &mut history).await;
        if inner.primary_number().is_none() {
            return Err(match failed {
                Some(error) => Error::Unreachable(inner.cause_of(error).await),
                None => Error::NoPrimary(inner.nodes.load().len()),
            });
        }
        if let Some(node) = inner.nodes.load().iter().find(|n| n.is_stranger()) {
            return Err(Error::Stranger { node: node.number });
        }
        // The roles of SQLite's two pools never change.
        if dialect != Dialect::Sqlite {
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

    /// A transaction on the primary. Rolled back when dropped before `commit`.
    ///
    /// # Errors
    /// [`Error::NoPrimary`] inside `sqlx::Error::Configuration`, or what sqlx says.
    pub async fn begin(&self) -> Result<Transaction<'static, DB>, sqlx::Error> {
        let node = self.primary_node().await?;
        sticky::wrote(self.0.id);
        self.begin_on(&node, "begin").await
    }

    /// A read-only transaction on a replica: one snapshot for several queries.
    pub async fn begin_read(&self) -> Result<Transaction<'static, DB>, sqlx::Error> {
        let node = match self.reader(0) {
            Some(node) => node,
            None => self.primary_for_reading().await?,
        };
        let statement = match self.0.dialect {
            Dialect::Postgres => "begin read only",
            Dialect::MySql => "start transaction read only",
            Dialect::Sqlite => "begin",
        };
        self.begin_on(&node, statement).await
    }

    async fn begin_on(&self, node: &Node<DB>, statement: &'static str) -> Result<Transaction<'static, DB>, sqlx::Error> {
        let begin = || node.pool.begin_with(statement.into_sql_str());
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
        let acquire = || async { node.pool.acquire().await.inspect_err(|e| self.judge_write(&node, e)) };
        let mut connection = acquire().await?;
        if DB::ping(&mut connection).await.is_ok() {
            return Ok(connection);
        }
        node.doubt();
        acquire().await
    }

    /// How far the primary has written: a node at or past it shows every write that has returned by now. One round trip.
    pub async fn position(&self) -> Result<Position, sqlx::Error> {
        let Some(sql) = self.0.dialect.position_sql() else { return Ok(Position::default()) };
        let node = self.primary_node().await?;
        let mut connection = node.pool.acquire().await?;
        let row = DB::ask(&mut connection, sql.into_sql_str()).await?;
        let position = self.0.dialect.read_position(&row);
        position.ok_or_else(|| sqlx::Error::Protocol("the primary's position cannot be read".into()))
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

    /// A replica that shows what this scope needs, except those in the bit set `tried`.
    pub(crate) fn reader(&self, tried: u64) -> Option<Arc<Node<DB>>> {
        let needed = sticky::needed(self.0.id)?;
        let fits = |node: &&Arc<Node<DB>>| tried & (1 << (node.number % 64)) == 0 && node.serves(needed);
        let nodes = self.0.nodes.load();
        let mut fitting = nodes.iter().filter(fits);
        let first = fitting.next()?;
        let Some(second) = fitting.next() else { return Some(Arc::clone(first)) };
        let all: Vec<_> = [first, second].into_iter().chain(fitting).collect();
        balance::pick(&all, |n| n.cost()).map(|n| Arc::clone(n))
    }

    pub(crate) async fn primary_for_reading(&self) -> Result<Arc<Node<DB>>, sqlx::Error> {
        // A scope that wrote must see its write: that is not what the refusal is about.
        let must = sticky::needed(self.0.id).is_none_or(|p| p > Position::default());
        if self.0.config.no_replica == NoReplica::Refuse && self.0.nodes.load().len() > 1 && !must {
            return Err(Error::NoReplica.into());
        }
        self.primary_node().await
    }

    /// The primary, waiting for one no longer than configured.
    pub(crate) async fn primary_node(&self) -> Result<Arc<Node<DB>>, sqlx::Error> {
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
        let none = |_| Error::NoPrimary(self.0.nodes.load().len()).into();
        tokio::time::timeout(self.0.config.primary_wait, wait).await.map_err(none)
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
fn code(error: &dyn sqlx::error::DatabaseError) -> Option<Cow<'_, str>> {
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

    pub(crate) fn set_primary(&self, found: Option<(usize, u64)>) {
        match self.reign.found(found) {
            (old, new) if old == new => {}
            (_, None) => tracing::error!("there is no database primary"),
            (Some(_), Some(node)) => tracing::warn!(node, "the database primary has moved"),
            (None, Some(node)) => tracing::info!(node, "the database primary is known"),
        }
    }

    /// Compares a node's cluster with the first one heard of.
    pub(crate) fn is_stranger(&self, probe: &Probe) -> bool {
        let Some(theirs) = &probe.cluster else { return false };
        self.cluster.lock().get_or_insert_with(|| theirs.clone()) != theirs
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
