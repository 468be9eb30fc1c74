//! A pool of connections to one database: its own, or the application's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use sqlx::Error as SqlError;

use crate::connection::{Connection, Held, Inner, in_time};
use crate::error::Error;
use crate::system::System;

/// Time limit for finding the reason why a pool has no connection.
const REASON: Duration = Duration::from_secs(1);

/// Settings of a pool made by [`Database::connect`], and timeouts of any pool.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Maximum number of connections. Default: 10. SQLite has one writer, and one connection.
    pub max_connections: u32,
    /// Longest wait for a connection. Default: 5 s.
    pub acquire_timeout: Duration,
    /// Longest wait for an answer, after which the connection is closed. Default: 30 s. For an
    /// SQLite file there is no limit.
    pub statement_timeout: Duration,
    /// Longest wait for a row that another transaction has locked. Default: 5 s.
    pub lock_timeout: Duration,
    /// True if a pooler gives each transaction another connection to the server (pgbouncer's
    /// transaction mode). Statements are then not prepared, each runs in a transaction, and nothing
    /// is set on a connection. Default: `false`.
    pub transaction_pooling: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_connections: 10,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(5),
            transaction_pooling: false,
        }
    }
}

impl Options {
    /// Returns the default settings.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Handle of a database. Cloning costs a few reference counts.
///
/// Created by [`connect`](Self::connect), or with `From` from the application's own pool: a
/// `PgPool`, a `MySqlPool`, an `SqlitePool`, or a reference to one.
#[derive(Clone, Debug)]
pub struct Database {
    pool: Pool,
    statement_timeout: Duration,
    lock_timeout: Duration,
    is_pooled: bool,
    /// True if a single statement would run at an isolation level that the stores do not support.
    is_isolated: Arc<AtomicBool>,
    is_own: bool,
}

#[derive(Clone, Debug)]
enum Pool {
    #[cfg(feature = "postgres")]
    Postgres(sqlx::PgPool),
    #[cfg(feature = "mysql")]
    MySql(sqlx::MySqlPool),
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::SqlitePool),
    #[allow(dead_code)]
    Never(std::convert::Infallible),
}

macro_rules! from_pool {
    ($feature:literal, $pool:ty, $variant:ident) => {
        #[cfg(feature = $feature)]
        impl From<$pool> for Database {
            fn from(pool: $pool) -> Self {
                Self::new(Pool::$variant(pool), &Options::default(), false)
            }
        }

        #[cfg(feature = $feature)]
        impl From<&$pool> for Database {
            fn from(pool: &$pool) -> Self {
                pool.clone().into()
            }
        }
    };
}

from_pool!("postgres", sqlx::PgPool, Postgres);
from_pool!("mysql", sqlx::MySqlPool, MySql);
from_pool!("sqlite", sqlx::SqlitePool, Sqlite);

impl Database {
    fn new(pool: Pool, options: &Options, is_own: bool) -> Self {
        Self {
            pool,
            statement_timeout: options.statement_timeout,
            lock_timeout: options.lock_timeout,
            is_pooled: options.transaction_pooling,
            is_isolated: Arc::default(),
            is_own,
        }
    }

    /// Creates a pool for an address; connections are made when they are needed. A missing SQLite
    /// file is created, unless the address has a `mode`.
    ///
    /// # Errors
    /// [`Error::Address`] for an unsupported address; [`Error::Syntax`] for one that is not
    /// readable.
    #[allow(clippy::unused_async, reason = "a pool is made inside a runtime")]
    pub async fn connect(url: &str, options: &Options) -> Result<Self, Error> {
        let system = System::of(url).ok_or_else(|| Error::address(url))?;
        if system != System::Sqlite && !url.contains("://") {
            return Err(Error::syntax(url));
        }
        // sqlx's error text may contain the password.
        let pool = own_pool(system, url, options).map_err(|_| Error::syntax(url))?;
        Ok(Self::new(pool, options, true))
    }

    /// Returns the same database with other timeouts and pooler setting.
    #[must_use]
    pub fn with(mut self, options: &Options) -> Self {
        self.statement_timeout = options.statement_timeout;
        self.lock_timeout = options.lock_timeout;
        self.is_pooled = options.transaction_pooling;
        self
    }

    /// Returns the database system.
    pub fn system(&self) -> System {
        match &self.pool {
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => System::Postgres,
            #[cfg(feature = "mysql")]
            Pool::MySql(_) => System::MySql,
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => System::Sqlite,
            Pool::Never(never) => match *never {},
        }
    }

    /// Returns the longest wait for a row that another transaction has locked.
    pub fn lock_timeout(&self) -> Duration {
        self.lock_timeout
    }

    /// Returns whether the pool was made by [`connect`](Self::connect).
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// Returns whether a pooler gives each transaction another connection to the server.
    pub fn is_pooled(&self) -> bool {
        self.is_pooled
    }

    /// Returns the pool of a PostgreSQL database.
    #[cfg(feature = "postgres")]
    pub fn postgres(&self) -> Option<&sqlx::PgPool> {
        let Pool::Postgres(pool) = &self.pool else { return None };
        Some(pool)
    }

    /// Returns the pool of an SQLite database.
    #[cfg(feature = "sqlite")]
    pub fn sqlite(&self) -> Option<&sqlx::SqlitePool> {
        let Pool::Sqlite(pool) = &self.pool else { return None };
        Some(pool)
    }

    pub(crate) fn needs_transactions(&self) -> bool {
        self.is_pooled || self.is_isolated.load(Relaxed)
    }

    fn deadline(&self) -> Option<Duration> {
        (self.system() != System::Sqlite).then_some(self.statement_timeout)
    }

    fn connection(&self, inner: Inner<'static>) -> Connection<'static> {
        Connection {
            inner,
            system: self.system(),
            deadline: self.deadline(),
            is_pooled: self.is_pooled,
        }
    }

    /// Takes a connection from the pool; it returns when dropped.
    ///
    /// # Errors
    /// The errors of sqlx: the server does not answer, or no connection came free in time.
    pub async fn acquire(&self) -> Result<Connection<'static>, SqlError> {
        let limit = self.deadline();
        // Boxed, because it is large, and would be part of all futures that wait for it.
        let inner = Box::pin(async {
            Ok(match &self.pool {
                #[cfg(feature = "postgres")]
                Pool::Postgres(pool) => Inner::Postgres(crate::connection::Handle::Held(
                    Held::new(pool.acquire().await?),
                )),
                #[cfg(feature = "mysql")]
                Pool::MySql(pool) => {
                    Inner::MySql(crate::connection::Handle::Held(Held::new(pool.acquire().await?)))
                }
                #[cfg(feature = "sqlite")]
                Pool::Sqlite(pool) => {
                    Inner::Sqlite(crate::connection::Handle::Held(Held::new(pool.acquire().await?)))
                }
                Pool::Never(never) => match *never {},
            })
        });
        match in_time(limit, inner).await {
            Ok(inner) => Ok(self.connection(inner)),
            Err(SqlError::PoolTimedOut) => Err(self.reason().await),
            Err(error) => Err(error),
        }
    }

    /// Finds the reason why a pool has no connection; the pool itself only reports its timeout.
    async fn reason(&self) -> SqlError {
        #[allow(unused_imports, reason = "as features are")]
        use sqlx::ConnectOptions as _;

        let connect = Box::pin(async {
            match &self.pool {
                #[cfg(feature = "postgres")]
                Pool::Postgres(pool) if pool.size() == 0 => {
                    pool.connect_options().connect().await.map(drop)
                }
                #[cfg(feature = "mysql")]
                Pool::MySql(pool) if pool.size() == 0 => {
                    pool.connect_options().connect().await.map(drop)
                }
                Pool::Never(never) => match *never {},
                #[allow(unreachable_patterns)]
                _ => Ok(()),
            }
        });
        in_time(Some(REASON), connect).await.err().unwrap_or(SqlError::PoolTimedOut)
    }

    /// Begins a transaction in which each statement sees what was committed before it, and rows
    /// stay locked until the end. On SQLite it is the only writer from its beginning.
    ///
    /// # Errors
    /// The errors of [`acquire`](Self::acquire).
    pub async fn begin(&self) -> Result<Connection<'static>, SqlError> {
        let mut connection = self.acquire().await?;
        connection.begin(self.lock_timeout).await?;
        Ok(connection)
    }

    /// Reads whether single statements need a transaction, which is the case if the database's
    /// default isolation level is above `read committed`. Called once, when a store is created.
    ///
    /// # Errors
    /// The errors of [`acquire`](Self::acquire).
    pub async fn look(&self) -> Result<(), SqlError> {
        let text = match self.system() {
            System::Postgres if !self.is_pooled => {
                "select current_setting('default_transaction_isolation')"
            }
            System::MySql => "select case when @@session.autocommit = 1 then 'on' else 'off' end",
            System::Postgres | System::Sqlite => return Ok(()),
        };
        let ask = crate::Statement::new(self.system(), text).query();
        let setting: String = ask.fetch_one(&mut self.acquire().await?).await?.get(0)?;
        if setting == "off" {
            return Err(SqlError::Configuration(
                "the pool's connections have `autocommit = 0`: expected 1".into(),
            ));
        }
        self.is_isolated
            .store(self.system() == System::Postgres && !setting.starts_with("read "), Relaxed);
        Ok(())
    }
}

impl Connection<'static> {
    /// Begins a transaction on a connection from [`Database::acquire`].
    ///
    /// # Errors
    /// The errors of sqlx.
    pub async fn begin(&mut self, lock_timeout: Duration) -> Result<(), SqlError> {
        let statement = match self.system {
            System::Postgres => {
                let lock = lock_timeout.as_millis().clamp(1, i32::MAX as u128);
                format!("begin isolation level read committed; set local lock_timeout = {lock}")
            }
            System::MySql => {
                "set transaction isolation level read committed; start transaction".to_owned()
            }
            // A transaction that starts to write later may be refused.
            System::Sqlite => "begin immediate".to_owned(),
        };
        let _ = &statement;
        let limit = self.deadline;
        let begun = Box::pin(async {
            match &mut self.inner {
                #[cfg(feature = "postgres")]
                Inner::Postgres(crate::connection::Handle::Held(held)) => {
                    held.begin(statement).await
                }
                #[cfg(feature = "mysql")]
                Inner::MySql(crate::connection::Handle::Held(held)) => held.begin(statement).await,
                #[cfg(feature = "sqlite")]
                Inner::Sqlite(crate::connection::Handle::Held(held)) => held.begin(statement).await,
                Inner::Never(never, _) => match *never {},
                #[allow(unreachable_patterns)]
                _ => Ok(()),
            }
        });
        in_time(limit, begun).await
    }
}

#[allow(unused_variables)]
fn own_pool(system: System, url: &str, options: &Options) -> Result<Pool, SqlError> {
    match system {
        #[cfg(feature = "postgres")]
        System::Postgres => postgres_pool(url, options).map(Pool::Postgres),
        #[cfg(feature = "mysql")]
        System::MySql => mysql_pool(url, options).map(Pool::MySql),
        #[cfg(feature = "sqlite")]
        System::Sqlite => sqlite_pool(url, options).map(Pool::Sqlite),
        #[allow(unreachable_patterns)]
        _ => Err(SqlError::Configuration("not compiled in".into())),
    }
}

/// Creates a pool with isolation level `read committed`, whatever the default of the database,
/// because row locks order the writers.
#[cfg(feature = "postgres")]
fn postgres_pool(url: &str, options: &Options) -> Result<sqlx::PgPool, SqlError> {
    let lock = options.lock_timeout.as_millis().clamp(1, i32::MAX as u128);
    let settings = format!(
        "set session characteristics as transaction isolation level read committed; \
         set lock_timeout = {lock}"
    );
    // A pooler would pass the settings on to the next user of the connection.
    let settings = (!options.transaction_pooling).then_some(settings);
    let pool = sqlx::postgres::PgPoolOptions::new().after_connect(move |connection, _| {
        let settings = settings.clone();
        Box::pin(async move {
            match settings {
                Some(settings) => {
                    sqlx::raw_sql(sqlx::AssertSqlSafe(settings)).execute(connection).await.map(drop)
                }
                None => Ok(()),
            }
        })
    });
    pool.max_connections(options.max_connections)
        .acquire_timeout(options.acquire_timeout)
        .connect_lazy(url)
}

#[cfg(feature = "mysql")]
fn mysql_pool(url: &str, options: &Options) -> Result<sqlx::MySqlPool, SqlError> {
    let lock = options.lock_timeout.as_secs().max(1);
    let settings = format!(
        "set session transaction isolation level read committed; \
         set session innodb_lock_wait_timeout = {lock}"
    );
    let pool = sqlx::mysql::MySqlPoolOptions::new().after_connect(move |connection, _| {
        let settings = settings.clone();
        Box::pin(async move {
            sqlx::raw_sql(sqlx::AssertSqlSafe(settings)).execute(connection).await.map(drop)
        })
    });
    pool.max_connections(options.max_connections)
        .acquire_timeout(options.acquire_timeout)
        .connect_lazy(url)
}

/// Creates a pool of one connection, because an SQLite file has one writer. WAL mode lets the
/// application's readers work at the same time.
#[cfg(feature = "sqlite")]
fn sqlite_pool(url: &str, options: &Options) -> Result<sqlx::SqlitePool, SqlError> {
    use sqlx::sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
    };

    let mut connect: SqliteConnectOptions = url.parse()?;
    if !url.contains("mode=") && !url.contains(":memory:") {
        connect = connect.create_if_missing(true);
    }
    let connect =
        connect.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Normal);
    let connect = connect.busy_timeout(Duration::from_secs(5));
    let pool = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    Ok(pool.acquire_timeout(options.acquire_timeout).connect_lazy_with(connect))
}
