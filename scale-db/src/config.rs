//! Which nodes there are, and the limits they work under.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use sqlx::pool::PoolOptions;

use crate::alive::Alive;
use crate::backend::Backend;
use crate::capabilities;
use crate::db::Db;
use crate::dialect::Dialect;
use crate::discover::Discover;
use crate::error::Error;
use crate::node::{Asked, Node};
use crate::reign::Reign;
use crate::replica::Replica;

/// What reads do when no replica is fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NoReplica {
    /// They go to the primary.
    #[default]
    UsePrimary,
    /// They fail with [`Error::NoReplica`]: the primary is kept for writes.
    Refuse,
}

/// Settings of a [`Db`], for files and environment.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Any node's address; with `replicas`, the one that is the primary as a rule.
    pub url: String,
    /// More nodes. Their roles are observed, not believed.
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// An address whose host name stands for all replicas: each IP address it resolves to is one, now and later. A certificate is then
    /// checked against the IP address; list replicas by name where that matters.
    #[serde(default)]
    pub discover: Option<String>,
    /// How often replicas are looked for. Default: 5 s.
    #[serde(default = "defaults::discovery", with = "humantime_serde")]
    pub discovery_interval: Duration,
    #[serde(skip)]
    discover_with: Option<Discover>,
    /// Connections to each node at most, and one more to look at it through. Default: 10.
    #[serde(default = "defaults::connections")]
    pub max_connections: u32,
    /// How long to wait for a connection. Default: 3 s.
    #[serde(default = "defaults::acquire", with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// A replica further behind gets no reads. Default: 5 s.
    #[serde(default = "defaults::lag", with = "humantime_serde")]
    pub max_replica_lag: Duration,
    /// How often every node is asked for role and position. Default: 500 ms.
    #[serde(default = "defaults::interval", with = "humantime_serde")]
    pub monitor_interval: Duration,
    /// How long a write waits for a primary while there is none. Default: 0, it fails at once.
    #[serde(default, with = "humantime_serde")]
    pub primary_wait: Duration,
    /// The server ends a statement that runs longer (MySQL: a read), and two seconds later the client gives up waiting for its answer. Zero
    /// switches both off. SQLite has none. Default: 30 s.
    #[serde(default = "defaults::statement", with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// Longest wait for a lock (SQLite: for the writer). Default: 5 s.
    #[serde(default = "defaults::lock", with = "humantime_serde")]
    pub lock_timeout: Duration,
    /// A statement whose first answer takes longer is logged, without its values. Default: 500 ms.
    #[serde(default = "defaults::slow", with = "humantime_serde")]
    pub slow_query: Duration,
    /// What reads do when no replica is fit.
    #[serde(default)]
    pub no_replica: NoReplica,
    /// Functions of the application that neither write nor lock.
    #[serde(default)]
    pub safe_functions: Vec<String>,
}

mod defaults {
    use std::time::Duration;

    pub(super) fn connections() -> u32 {
        10
    }
    pub(super) fn acquire() -> Duration {
        Duration::from_secs(3)
    }
    pub(super) fn lag() -> Duration {
        Duration::from_secs(5)
    }
    pub(super) fn discovery() -> Duration {
        Duration::from_secs(5)
    }
    pub(super) fn interval() -> Duration {
        Duration::from_millis(500)
    }
    pub(super) fn statement() -> Duration {
        Duration::from_secs(30)
    }
    pub(super) fn slow() -> Duration {
        Duration::from_millis(500)
    }
    pub(super) fn lock() -> Duration {
        Duration::from_secs(5)
    }
}

impl Config {
    /// The defaults for an address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            replicas: Vec::new(),
            discover: None,
            discovery_interval: defaults::discovery(),
            discover_with: None,
            max_connections: defaults::connections(),
            acquire_timeout: defaults::acquire(),
            max_replica_lag: defaults::lag(),
            monitor_interval: defaults::interval(),
            primary_wait: Duration::ZERO,
            statement_timeout: defaults::statement(),
            lock_timeout: defaults::lock(),
            slow_query: defaults::slow(),
            no_replica: NoReplica::default(),
            safe_functions: Vec::new(),
        }
    }

    /// Connects: at least one node must answer and be a primary.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Unreachable`], [`Error::NoPrimary`], [`Error::Stranger`].
    pub async fn connect<DB: Backend>(self) -> Result<Db<DB>, Error> {
        DB::prepare_driver();
        let dialect = DB::dialect(&self.url).ok_or_else(|| Self::wrong::<DB>(&self.url))?;
        if let Some(other) = self.replicas.iter().find(|r| DB::dialect(&r.url) != Some(dialect)) {
            return Err(Self::wrong::<DB>(&other.url));
        }
        if let Some(url) = self.discover.as_ref().filter(|url| DB::dialect(url) != Some(dialect)) {
            return Err(Self::wrong::<DB>(url));
        }
        let reign = Arc::<Reign>::default();
        let nodes = match dialect {
            Dialect::Sqlite => self.sqlite_nodes::<DB>(&reign)?,
            _ => std::iter::once(&Replica::new(&self.url))
                .chain(&self.replicas)
                .enumerate()
                .map(|(number, replica)| self.node(&reign, dialect, number, replica, false, false))
                .collect::<Result<_, _>>()?,
        };
        let discover = self.discover_with.clone().or_else(|| self.discover.clone().map(Discover::dns));
        Db::start(self, dialect, nodes, reign, discover).await
    }

    /// One writer; readers of the same file beside it, unless it only lives in memory.
    fn sqlite_nodes<DB: Backend>(&self, reign: &Arc<Reign>) -> Result<Vec<Node<DB>>, Error> {
        if !self.replicas.is_empty() || self.discover.is_some() {
            return Err(Error::Address("SQLite has no replicas: its readers share the file".into()));
        }
        let writer = Replica::new(&self.url).max_connections(1);
        let mut nodes = vec![self.node(reign, Dialect::Sqlite, 0, &writer, false, false)?];
        if !self.url.contains(":memory:") && !self.url.contains("mode=memory") {
            nodes.push(self.node(reign, Dialect::Sqlite, 1, &Replica::new(&self.url), true, false)?);
        }
        Ok(nodes)
    }

    /// How long a node has to say how it is.
    pub(crate) fn look_limit(&self) -> Duration {
        self.acquire_timeout.min(self.monitor_interval.max(Duration::from_secs(1)))
    }

    /// A node that was not listed.
    pub(crate) fn found_node<DB: Backend>(
        &self,
        reign: &Arc<Reign>,
        dialect: Dialect,
        number: usize,
        at: &Replica,
    ) -> Result<Node<DB>, Error> {
        match DB::dialect(&at.url) {
            Some(theirs) if theirs == dialect => self.node(reign, dialect, number, at, false, true),
            _ => Err(Self::wrong::<DB>(&at.url)),
        }
    }

    fn node<DB: Backend>(
        &self,
        reign: &Arc<Reign>,
        dialect: Dialect,
        number: usize,
        at: &Replica,
        reader: bool,
        found: bool,
    ) -> Result<Node<DB>, Error> {
        if !(at.weight.is_finite() && at.weight > 0.0) {
            return Err(Error::Address(format!("node {number}'s weight is not above zero")));
        }
        let connections = at.max_connections.unwrap_or(self.max_connections);
        let greeting = dialect.greeting(reader, self.statement_timeout, self.lock_timeout);
        let (reign, alive, asked) = (Arc::clone(reign), Alive::default(), Arc::<Mutex<Asked>>::default());
        let (doubted, told) = (alive.clone(), Arc::clone(&asked));
        let pool = PoolOptions::<DB>::new()
            .max_connections(connections.max(1))
            .acquire_timeout(self.acquire_timeout)
            // A connection in memory is the database itself.
            .idle_timeout((dialect != Dialect::Sqlite).then_some(Duration::from_mins(10)))
            .max_lifetime((dialect != Dialect::Sqlite).then_some(Duration::from_mins(30)))
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                if !doubted.is_doubtful(meta.idle_for) {
                    return Box::pin(std::future::ready(Ok(true)));
                }
                Box::pin(async move { DB::ping(connection).await.map(|()| true) })
            })
            .after_connect(move |connection, _| {
                let (greeting, reign, told) = (greeting.clone(), Arc::clone(&reign), Arc::clone(&told));
                Box::pin(async move {
                    DB::tell(connection, greeting).await?;
                    if dialect != Dialect::Sqlite {
                        let probe = capabilities::ask::<DB>(dialect, connection, &told).await?;
                        if reign.is_over(number, &probe) {
                            return Err(Error::Leftover { node: number }.into());
                        }
                    }
                    Ok(())
                })
            })
            .connect_lazy(&at.url)
            // sqlx's words may hold the password.
            .map_err(|_| Error::Address(format!("node {number}'s address cannot be read by the driver `{}`", DB::NAME)))?;
        let mut node = Node::new(number, pool, alive, asked, at.weight);
        node.found = found.then(|| at.url.clone());
        Ok(node)
    }

    fn wrong<DB: Backend>(url: &str) -> Error {
        // The scheme alone: the rest may hold a password.
        let scheme = url.split_once(':').map(|(scheme, _)| scheme.chars().take(20).collect::<String>());
        match scheme.filter(|scheme| !scheme.is_empty()) {
            Some(scheme) => Error::Address(format!(
                "`{scheme}:` is no address of the driver `{}`, or of another system than the first",
                DB::NAME
            )),
            None => Error::Address("it has no scheme".into()),
        }
    }
}

impl std::fmt::Debug for Config {
    /// Without addresses: they may hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("nodes", &(1 + self.replicas.len())).finish_non_exhaustive()
    }
}

/// The long way to a [`Db`].
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
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder<DB> {
    config: Config,
    database: std::marker::PhantomData<fn() -> DB>,
}

impl<DB: Backend> Builder<DB> {
    pub(crate) fn new(url: &str) -> Self {
        Self { config: Config::new(url), database: std::marker::PhantomData }
    }

    /// One more node: an address, or a [`Replica`] with a weight.
    pub fn replica(mut self, replica: impl Into<Replica>) -> Self {
        self.config.replicas.push(replica.into());
        self
    }

    /// Every IP address of this address's host is a replica, now and later. See [`Config::discover`].
    pub fn discover(mut self, url: impl Into<String>) -> Self {
        self.config.discover = Some(url.into());
        self
    }

    /// Replicas are whatever `find` says: addresses from Consul, Kubernetes, a file.
    pub fn discover_with<F>(mut self, find: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<Vec<String>>> + Send + 'static,
    {
        self.config.discover_with = Some(Discover::with(find));
        self
    }

    /// How often replicas are looked for.
    pub fn discovery_interval(mut self, interval: Duration) -> Self {
        self.config.discovery_interval = interval;
        self
    }

    /// Connections to each node at most.
    pub fn max_connections(mut self, count: u32) -> Self {
        self.config.max_connections = count;
        self
    }

    /// How long to wait for a connection.
    pub fn acquire_timeout(mut self, limit: Duration) -> Self {
        self.config.acquire_timeout = limit;
        self
    }

    /// A replica further behind gets no reads.
    pub fn max_replica_lag(mut self, limit: Duration) -> Self {
        self.config.max_replica_lag = limit;
        self
    }

    /// How often every node is asked for role and position.
    pub fn monitor_interval(mut self, interval: Duration) -> Self {
        self.config.monitor_interval = interval;
        self
    }

    /// How long a write waits for a primary while there is none.
    pub fn primary_wait(mut self, limit: Duration) -> Self {
        self.config.primary_wait = limit;
        self
    }

    /// Postgres ends a statement that runs longer.
    pub fn statement_timeout(mut self, limit: Duration) -> Self {
        self.config.statement_timeout = limit;
        self
    }

    /// Longest wait for a lock.
    pub fn lock_timeout(mut self, limit: Duration) -> Self {
        self.config.lock_timeout = limit;
        self
    }

    /// A statement that takes longer is logged.
    pub fn slow_query(mut self, limit: Duration) -> Self {
        self.config.slow_query = limit;
        self
    }

    /// What reads do when no replica is fit.
    pub fn no_replica(mut self, choice: NoReplica) -> Self {
        self.config.no_replica = choice;
        self
    }

    /// A function of the application that neither writes nor locks.
    pub fn safe_function(mut self, name: impl Into<String>) -> Self {
        self.config.safe_functions.push(name.into());
        self
    }

    /// See [`Config::connect`].
    pub async fn connect(self) -> Result<Db<DB>, Error> {
        self.config.connect().await
    }
}
