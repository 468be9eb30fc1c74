//! Connections: taken from a pool, or lent by the application.

use std::future::Future;
use std::io;
use std::time::Duration;

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite", feature = "any"))]
use sqlx::AssertSqlSafe;
use sqlx::Error;
use sqlx::pool::PoolConnection;
use sqlx_core::transaction::TransactionManager;

use crate::database::Database;
use crate::row;
use crate::statement::{Answer, Query};
use crate::system::System;
use crate::value::Value;

/// Longest wait for a connection that returns to its pool; then it is closed.
const RETURN: Duration = Duration::from_secs(2);

/// Executor of a [`Query`]: a [`Database`], or a [`Connection`] of one.
pub trait Executor: Send + sealed::Sealed {
    #[doc(hidden)]
    fn run(self, query: Query, rows: bool) -> impl Future<Output = Result<Answer, Error>> + Send;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for &super::Database {}
    impl Sealed for &mut super::Connection<'_> {}
}

impl Executor for &Database {
    async fn run(self, query: Query, rows: bool) -> Result<Answer, Error> {
        let attempt = || async {
            if self.needs_transactions() {
                let mut tx = self.begin().await?;
                let answer = tx.answer(query.clone(), rows).await?;
                tx.commit().await?;
                return Ok(answer);
            }
            self.acquire().await?.answer(query.clone(), rows).await
        };
        crate::retry(|error: &Error| Some(error), attempt).await
    }
}

impl Executor for &mut Connection<'_> {
    async fn run(self, query: Query, rows: bool) -> Result<Answer, Error> {
        self.answer(query, rows).await
    }
}

/// A connection: a transaction from [`Database::begin`], a connection from [`Database::acquire`],
/// or one lent by the application through `From`.
///
/// A transaction that is dropped before [`commit`](Self::commit) is rolled back.
#[derive(Debug)]
pub struct Connection<'c> {
    pub(crate) inner: Inner<'c>,
    pub(crate) system: System,
    pub(crate) deadline: Option<Duration>,
    /// True if each transaction may use another connection to the server.
    pub(crate) is_pooled: bool,
}

#[derive(Debug)]
pub(crate) enum Inner<'c> {
    #[cfg(feature = "postgres")]
    Postgres(Handle<'c, sqlx::Postgres>),
    #[cfg(feature = "mysql")]
    MySql(Handle<'c, sqlx::MySql>),
    #[cfg(feature = "sqlite")]
    Sqlite(Handle<'c, sqlx::Sqlite>),
    #[cfg(feature = "any")]
    Any(&'c mut sqlx::AnyConnection),
    #[allow(dead_code)]
    Never(std::convert::Infallible, std::marker::PhantomData<&'c ()>),
}

#[derive(Debug)]
pub(crate) enum Handle<'c, DB: sqlx::Database> {
    Held(Held<DB>),
    Lent(&'c mut DB::Connection),
}

impl<DB: sqlx::Database> Handle<'_, DB> {
    pub(crate) fn get(&mut self) -> Result<&mut DB::Connection, Error> {
        match self {
            Self::Held(held) => held.connection.as_deref_mut().ok_or(Error::PoolClosed),
            Self::Lent(connection) => Ok(connection),
        }
    }

    fn held(&mut self) -> Option<&mut Held<DB>> {
        match self {
            Self::Held(held) => Some(held),
            Self::Lent(_) => None,
        }
    }
}

/// A connection of a pool. When dropped, its transaction is rolled back, and it returns to the
/// pool.
#[derive(Debug)]
pub(crate) struct Held<DB: sqlx::Database> {
    connection: Option<PoolConnection<DB>>,
    /// True if its state is unknown or it does not answer; then it is closed.
    is_broken: bool,
    /// True if it is closed after use even if it works.
    is_spent: bool,
    has_begun: bool,
}

impl<DB: sqlx::Database> Held<DB> {
    pub(crate) fn new(connection: PoolConnection<DB>) -> Self {
        Self { connection: Some(connection), is_broken: false, is_spent: false, has_begun: false }
    }

    /// Begins a transaction.
    pub(crate) async fn begin(&mut self, statement: String) -> Result<(), Error> {
        let connection = self.connection.as_deref_mut().ok_or(Error::PoolClosed)?;
        // If this future is dropped, the transaction may or may not have begun.
        self.is_broken = true;
        let statement = sqlx::SqlSafeStr::into_sql_str(sqlx::AssertSqlSafe(statement));
        let begun = DB::TransactionManager::begin(connection, Some(statement)).await;
        self.is_broken = begun.is_err();
        self.has_begun = begun.is_ok();
        begun
    }

    async fn commit(&mut self) -> Result<(), Error> {
        let connection = self.connection.as_deref_mut().ok_or(Error::PoolClosed)?;
        self.is_broken = true;
        let committed = DB::TransactionManager::commit(connection).await;
        self.is_broken = false;
        self.has_begun = committed.is_err();
        committed
    }
}

impl<DB: sqlx::Database> Drop for Held<DB> {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            // Without a runtime the connection cannot be checked.
            drop(connection.detach());
            return;
        };
        if self.is_broken || self.is_spent {
            connection.close_on_drop();
            return;
        }
        if self.has_begun {
            DB::TransactionManager::start_rollback(&mut connection);
        }
        // Without the timeout, a connection would wait for a silent server forever, and occupy a
        // slot of the pool.
        let back = connection.return_to_pool();
        runtime.spawn(tokio::time::timeout(RETURN, back));
    }
}

/// Runs an expression with the connection of any driver.
macro_rules! each {
    ($inner:expr, $handle:ident => $held:expr, any $any:ident => $lent:expr) => {
        match $inner {
            #[cfg(feature = "postgres")]
            Inner::Postgres($handle) => $held,
            #[cfg(feature = "mysql")]
            Inner::MySql($handle) => $held,
            #[cfg(feature = "sqlite")]
            Inner::Sqlite($handle) => $held,
            #[cfg(feature = "any")]
            Inner::Any($any) => $lent,
            Inner::Never(never, _) => match *never {},
        }
    };
}

impl Connection<'_> {
    /// Returns the database system of the connection.
    pub fn system(&self) -> System {
        self.system
    }

    /// Declares that a pooler may give the next transaction another connection to the server:
    /// statements are then prepared for one use only.
    #[must_use]
    pub fn behind_a_pooler(mut self, is_pooled: bool) -> Self {
        self.is_pooled = is_pooled;
        self
    }

    /// Runs any number of statements without parameters.
    ///
    /// # Errors
    /// The errors of sqlx; an [`Error::Io`] of kind `TimedOut` if no answer came in time.
    pub async fn tell(&mut self, statements: &str) -> Result<(), Error> {
        let limit = self.deadline;
        let text = statements.to_owned();
        let _ = &text;
        let told = async {
            each!(&mut self.inner,
                handle => sqlx::raw_sql(AssertSqlSafe(text)).execute(handle.get()?).await.map(drop),
                any any => sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut **any).await.map(drop))
        };
        let told = in_time(limit, told).await;
        self.judge(&told);
        told
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// The errors of sqlx; whether the transaction was committed is unknown then.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.commit_and_keep().await
    }

    /// Commits the transaction; the connection stays usable.
    ///
    /// # Errors
    /// The errors of [`commit`](Self::commit).
    pub async fn commit_and_keep(&mut self) -> Result<(), Error> {
        let limit = self.deadline;
        let committed = Box::pin(async {
            each!(&mut self.inner,
                handle => match handle.held() {
                    Some(held) => held.commit().await,
                    None => Ok(()),
                },
                any _any => Ok(()))
        });
        let committed = in_time(limit, committed).await;
        self.judge(&committed);
        committed
    }

    pub(crate) async fn answer(&mut self, query: Query, rows: bool) -> Result<Answer, Error> {
        let (text, values) = query.written();
        let _ = (&text, &values, rows);
        let (limit, is_persistent) = (self.deadline, !self.is_pooled);
        let _ = is_persistent;
        // Boxed, because a driver's future is large, and would be part of all futures that wait for
        // it.
        let answer = Box::pin(async {
            match &mut self.inner {
                #[cfg(feature = "postgres")]
                Inner::Postgres(handle) => {
                    run::postgres(handle.get()?, text, values, rows, is_persistent).await
                }
                #[cfg(feature = "mysql")]
                Inner::MySql(handle) => {
                    run::mysql(handle.get()?, text, values, rows, is_persistent).await
                }
                #[cfg(feature = "sqlite")]
                Inner::Sqlite(handle) => {
                    run::sqlite(handle.get()?, text, values, rows, is_persistent).await
                }
                #[cfg(feature = "any")]
                Inner::Any(connection) => {
                    run::any(connection, text, values, rows, is_persistent).await
                }
                Inner::Never(never, _) => match *never {},
            }
        });
        let answer = in_time(limit, answer).await;
        self.judge(&answer);
        answer
    }

    /// Closes the connection when dropped, instead of returning it to the pool.
    pub(crate) fn close_on_drop(&mut self) {
        each!(&mut self.inner,
            handle => if let Some(held) = handle.held() { held.is_spent = true },
            any _any => {});
    }

    /// Marks a connection that did not answer in time as broken.
    fn judge<T>(&mut self, answer: &Result<T, Error>) {
        if answer.as_ref().is_err_and(is_late) {
            each!(&mut self.inner,
                handle => if let Some(held) = handle.held() { held.is_broken = true },
                any _any => {});
        }
    }
}

/// Waits for a future within a limit.
pub(crate) async fn in_time<T>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(limit) = limit else { return work.await };
    let late = || {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the database did not answer within {limit:?}"),
        )
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late().into()))
}

fn is_late(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// Runs a written query on each driver's connection.
mod run {
    use std::sync::Arc;

    use super::{Answer, Error, Value, row};
    use crate::row::Row;

    #[allow(dead_code)]
    fn no_array() -> Error {
        Error::Encode("arrays are not supported as parameters of this system".into())
    }

    macro_rules! runs {
        (
            $feature:literal,
            $name:ident,
            $driver:ident,
            $connection:ty,
            $variant:ident,
            $value:ident => $lists:expr $(,)?
        ) => {
            #[cfg(feature = $feature)]
            pub(super) async fn $name(
                connection: &mut $connection,
                text: Arc<str>,
                values: Vec<Value>,
                rows: bool,
                is_persistent: bool,
            ) -> Result<Answer, Error> {
                // Built from the stores' constants and placeholders.
                let mut query = sqlx::query::<sqlx::$driver>(sqlx::AssertSqlSafe(text))
                    .persistent(is_persistent);
                for value in values {
                    query = match value {
                        Value::Number(number) => query.bind(number),
                        Value::Text(text) => query.bind(text),
                        Value::Bytes(bytes) => query.bind(bytes),
                        $value => $lists(query, $value)?,
                    };
                }
                if rows {
                    let rows = query.fetch_all(connection).await?;
                    let rows = rows.into_iter().map(|row| Row(row::Inner::$variant(row))).collect();
                    return Ok(Answer { rows, affected: 0 });
                }
                let affected = query.execute(connection).await?.rows_affected();
                Ok(Answer { rows: Vec::new(), affected })
            }
        };
    }

    runs!("postgres", postgres, Postgres, sqlx::PgConnection, Postgres, list => with_array);
    runs!(
        "mysql", mysql, MySql, sqlx::MySqlConnection, MySql, list => |_, _: Value| Err(no_array()),
    );
    runs!("sqlite", sqlite, Sqlite, sqlx::SqliteConnection, Sqlite, list => with_json);
    runs!("any", any, Any, sqlx::AnyConnection, Any, list => |_, _: Value| Err(no_array()));

    #[cfg(feature = "postgres")]
    type PgQuery = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;
    #[cfg(feature = "sqlite")]
    type SqliteQuery = sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

    #[cfg(feature = "postgres")]
    #[allow(clippy::unnecessary_wraps, reason = "as its like")]
    fn with_array(query: PgQuery, list: Value) -> Result<PgQuery, Error> {
        Ok(match list {
            Value::Numbers(list) => query.bind(list),
            Value::Texts(list) => query.bind(list),
            Value::Blobs(list) => query.bind(list),
            Value::Number(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Bytes(bytes) => query.bind(bytes),
        })
    }

    /// Binds a list as JSON, which SQLite reads with `json_each`.
    #[cfg(feature = "sqlite")]
    fn with_json(query: SqliteQuery, list: Value) -> Result<SqliteQuery, Error> {
        let json = match list {
            Value::Numbers(list) => serde_json::to_string(&list),
            Value::Texts(list) => serde_json::to_string(&list),
            _ => return Err(no_array()),
        };
        Ok(query.bind(json.map_err(|error| Error::Encode(error.into()))?))
    }
}

macro_rules! lent {
    ($feature:literal, $connection:ty, $variant:ident) => {
        #[cfg(feature = $feature)]
        impl<'c> From<&'c mut $connection> for Connection<'c> {
            fn from(connection: &'c mut $connection) -> Self {
                let inner = Inner::$variant(Handle::Lent(connection));
                Self { inner, system: System::$variant, deadline: None, is_pooled: false }
            }
        }
    };
}

lent!("postgres", sqlx::PgConnection, Postgres);
lent!("mysql", sqlx::MySqlConnection, MySql);
lent!("sqlite", sqlx::SqliteConnection, Sqlite);

#[cfg(feature = "any")]
impl<'c> TryFrom<&'c mut sqlx::AnyConnection> for Connection<'c> {
    type Error = crate::error::Error;

    fn try_from(connection: &'c mut sqlx::AnyConnection) -> Result<Self, Self::Error> {
        let system = match connection.backend_name() {
            "PostgreSQL" => System::Postgres,
            "MySQL" => System::MySql,
            "SQLite" => System::Sqlite,
            other => return Err(crate::error::Error::System(other.to_owned())),
        };
        Ok(Self { inner: Inner::Any(connection), system, deadline: None, is_pooled: false })
    }
}
