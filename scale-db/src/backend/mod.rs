//! The few things only a concrete sqlx driver can do. One line per driver; all else is shared.

use std::future::Future;

use futures_core::future::BoxFuture;
use sqlx::{Database, Pool, SqlStr};

use crate::dialect::Dialect;

/// A sqlx database that a [`Db`](crate::Db) can be made of. Implemented for the drivers whose features are on.
pub trait Backend: Database + sealed::Sealed {
    #[doc(hidden)]
    fn prepare_driver();

    /// Which dialect an address of this driver speaks; `None` if it is not one of this driver's.
    #[doc(hidden)]
    fn dialect(url: &str) -> Option<Dialect>;

    /// Returns the dialect that a pool speaks.
    #[doc(hidden)]
    fn dialect_of(pool: &Pool<Self>) -> Option<Dialect>;

    /// Arguments for a second run of the same statement.
    #[doc(hidden)]
    fn copy(arguments: &Self::Arguments) -> Self::Arguments;

    /// Runs statements that answer nothing.
    #[doc(hidden)]
    fn tell(connection: &mut Self::Connection, sql: String) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Asks a connection whether it lives.
    #[doc(hidden)]
    fn ping(connection: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// The first row of a query whose columns are all text.
    #[doc(hidden)]
    fn ask(
        connection: &mut Self::Connection,
        sql: SqlStr,
    ) -> impl Future<Output = Result<Vec<Option<String>>, sqlx::Error>> + Send;

    /// Forgets the statements that a connection has prepared, where their plans can become stale.
    #[doc(hidden)]
    fn forget_plans(connection: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// The names and texts of a query's first row, if it has one.
    #[doc(hidden)]
    fn named(
        connection: &mut Self::Connection,
        sql: SqlStr,
    ) -> impl Future<Output = Result<Vec<(String, Option<String>)>, sqlx::Error>> + Send;

    /// All rows of a query; a column that is null or no text reads as `None`.
    #[doc(hidden)]
    fn rows(
        connection: &mut Self::Connection,
        sql: String,
    ) -> impl Future<Output = Result<Vec<Vec<Option<String>>>, sqlx::Error>> + Send;
}

mod sealed {
    pub trait Sealed {}
}

#[allow(unused_macros)]
macro_rules! backend {
    ($db:ty, $prepare:expr, $dialect:expr, $of:expr, $forget:expr, $copy:expr) => {
        impl sealed::Sealed for $db {}

        impl Backend for $db {
            fn prepare_driver() {
                $prepare
            }

            fn dialect(url: &str) -> Option<Dialect> {
                let allowed: fn(Dialect) -> bool = $dialect;
                Dialect::of(url).filter(|d| allowed(*d))
            }

            fn dialect_of(pool: &Pool<Self>) -> Option<Dialect> {
                let of: fn(&Pool<$db>) -> Option<Dialect> = $of;
                of(pool)
            }

            fn forget_plans(connection: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
                let forget: fn(&mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>> = $forget;
                forget(connection)
            }

            fn copy(arguments: &Self::Arguments) -> Self::Arguments {
                let copy: fn(&Self::Arguments) -> Self::Arguments = $copy;
                copy(arguments)
            }

            async fn tell(connection: &mut Self::Connection, sql: String) -> Result<(), sqlx::Error> {
                // Built by the dialect from numbers; nothing of a user's is in it.
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection).await.map(drop)
            }

            fn ping(connection: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
                Box::pin(sqlx::Connection::ping(connection))
            }

            async fn ask(connection: &mut Self::Connection, sql: SqlStr) -> Result<Vec<Option<String>>, sqlx::Error> {
                use sqlx::Row;
                let row = sqlx::query(sql).fetch_one(connection).await?;
                (0..row.len()).map(|n| row.try_get::<Option<String>, _>(n)).collect()
            }

            async fn named(connection: &mut Self::Connection, sql: SqlStr) -> Result<Vec<(String, Option<String>)>, sqlx::Error> {
                use sqlx::{Column, Row};
                let Some(row) = sqlx::raw_sql(sql).fetch_optional(connection).await? else { return Ok(Vec::new()) };
                let text = |column: &<$db as Database>::Column| {
                    // The text protocol sends numbers as texts, too.
                    (column.name().to_owned(), row.try_get_unchecked(column.ordinal()).ok().flatten())
                };
                Ok(row.columns().iter().map(text).collect())
            }

            async fn rows(connection: &mut Self::Connection, sql: String) -> Result<Vec<Vec<Option<String>>>, sqlx::Error> {
                use sqlx::Row;
                let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(connection).await?;
                let texts = |row: &<$db as Database>::Row| (0..row.len()).map(|n| row.try_get(n).ok().flatten()).collect();
                Ok(rows.iter().map(texts).collect())
            }
        }
    };
}

#[allow(dead_code)]
fn nothing<C>(_: &mut C) -> BoxFuture<'_, Result<(), sqlx::Error>> {
    Box::pin(std::future::ready(Ok(())))
}

#[cfg(feature = "postgres")]
backend!(
    sqlx::Postgres,
    (),
    |d| d == Dialect::Postgres,
    |_| Some(Dialect::Postgres),
    |c| Box::pin(sqlx::Connection::clear_cached_statements(c)),
    Clone::clone
);
#[cfg(feature = "sqlite")]
backend!(sqlx::Sqlite, (), |d| d == Dialect::Sqlite, |_| Some(Dialect::Sqlite), nothing, Clone::clone);
#[cfg(feature = "mysql")]
backend!(sqlx::MySql, (), |d| d == Dialect::MySql, |_| Some(Dialect::MySql), nothing, Clone::clone);
#[cfg(feature = "any")]
backend!(
    sqlx::Any,
    sqlx::any::install_default_drivers(),
    |_| true,
    |pool| Dialect::of(pool.connect_options().database_url.as_str()),
    nothing,
    |arguments| {
        // The driver has no `Clone` for them, but its values have.
        sqlx_core::any::AnyArguments { values: sqlx_core::any::AnyArgumentBuffer(arguments.values.0.clone()) }
    }
);
