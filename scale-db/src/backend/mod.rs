//! Operations that only a concrete sqlx driver supports. One line per driver; everything else is
//! shared.

use std::future::Future;

use futures_core::future::BoxFuture;
use sqlx::{Database, Pool, SqlStr};

use crate::dialect::Dialect;

/// A sqlx database supported by [`Db`](crate::Db). Implemented for the drivers whose features are
/// enabled.
pub trait Backend: Database + sealed::Sealed {
    #[doc(hidden)]
    fn prepare_driver();

    /// Returns the dialect of an address; `None` if the address is not one of this driver.
    #[doc(hidden)]
    fn dialect(url: &str) -> Option<Dialect>;

    /// Returns the dialect of a pool.
    #[doc(hidden)]
    fn dialect_of(pool: &Pool<Self>) -> Option<Dialect>;

    /// Copies arguments, for a second run of the same statement.
    #[doc(hidden)]
    fn copy(arguments: &Self::Arguments) -> Self::Arguments;

    /// Runs statements without results.
    #[doc(hidden)]
    fn tell(
        connection: &mut Self::Connection,
        sql: String,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Checks whether a connection is alive.
    #[doc(hidden)]
    fn ping(connection: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// Returns the first row of a query whose columns are all text.
    #[doc(hidden)]
    fn ask(
        connection: &mut Self::Connection,
        sql: SqlStr,
    ) -> impl Future<Output = Result<Vec<Option<String>>, sqlx::Error>> + Send;

    /// Clears the prepared statements of a connection, where their plans can become stale.
    #[doc(hidden)]
    fn forget_plans(connection: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// Returns the column names and texts of a query's first row, or nothing if there is no row.
    #[doc(hidden)]
    fn named(
        connection: &mut Self::Connection,
        sql: SqlStr,
    ) -> impl Future<Output = Result<Vec<(String, Option<String>)>, sqlx::Error>> + Send;

    /// Returns all rows of a query; a column that is null or not text is `None`.
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

            fn forget_plans(
                connection: &mut Self::Connection,
            ) -> BoxFuture<'_, Result<(), sqlx::Error>> {
                let forget: fn(&mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>> =
                    $forget;
                forget(connection)
            }

            fn copy(arguments: &Self::Arguments) -> Self::Arguments {
                let copy: fn(&Self::Arguments) -> Self::Arguments = $copy;
                copy(arguments)
            }

            async fn tell(
                connection: &mut Self::Connection,
                sql: String,
            ) -> Result<(), sqlx::Error> {
                // Built by the dialect from numbers; contains no user input.
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection).await.map(drop)
            }

            fn ping(connection: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
                Box::pin(sqlx::Connection::ping(connection))
            }

            async fn ask(
                connection: &mut Self::Connection,
                sql: SqlStr,
            ) -> Result<Vec<Option<String>>, sqlx::Error> {
                use sqlx::Row;
                let row = sqlx::query(sql).fetch_one(connection).await?;
                (0..row.len()).map(|n| row.try_get::<Option<String>, _>(n)).collect()
            }

            async fn named(
                connection: &mut Self::Connection,
                sql: SqlStr,
            ) -> Result<Vec<(String, Option<String>)>, sqlx::Error> {
                use sqlx::{Column, Row};
                let Some(row) = sqlx::raw_sql(sql).fetch_optional(connection).await? else {
                    return Ok(Vec::new());
                };
                let text = |column: &<$db as Database>::Column| {
                    // The text protocol sends numbers as text too.
                    (
                        column.name().to_owned(),
                        row.try_get_unchecked(column.ordinal()).ok().flatten(),
                    )
                };
                Ok(row.columns().iter().map(text).collect())
            }

            async fn rows(
                connection: &mut Self::Connection,
                sql: String,
            ) -> Result<Vec<Vec<Option<String>>>, sqlx::Error> {
                use sqlx::Row;
                let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(connection).await?;
                let texts = |row: &<$db as Database>::Row| {
                    (0..row.len()).map(|n| row.try_get(n).ok().flatten()).collect()
                };
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
backend!(
    sqlx::Sqlite,
    (),
    |d| d == Dialect::Sqlite,
    |_| Some(Dialect::Sqlite),
    nothing,
    Clone::clone
);
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
        // The driver's arguments are not `Clone`, but their values are.
        sqlx_core::any::AnyArguments {
            values: sqlx_core::any::AnyArgumentBuffer(arguments.values.0.clone()),
        }
    }
);
