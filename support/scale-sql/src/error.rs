//! Errors of connecting and migrating; statements return sqlx's errors.

use crate::system::System;

/// Reason why a database cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is invalid, or its driver is not compiled in. Contains only the scheme.
    #[error(
        "cannot use {0} as a database: expected postgres, mysql or sqlite, with its feature \
         enabled"
    )]
    Address(String),
    /// The address is of a supported system, and a part of it cannot be read. Contains only the
    /// scheme: the driver's reason may contain the password.
    #[error(
        "the host, port or options of the {0} address cannot be read: expected \
         scheme://user:password@host:port/database, with special characters of the password \
         percent-encoded"
    )]
    Syntax(String),
    /// A setting is invalid.
    #[error("{0}")]
    Setting(&'static str),
    /// The connection belongs to an unsupported database system.
    #[error("unsupported database system {0}: expected PostgreSQL, MySQL, MariaDB or SQLite")]
    System(String),
    /// The tables are missing, or older than this version of the crate needs.
    #[error(
        "the tables of {name} are at version {found}, and this version needs {wanted}: run its \
         `migrate`, or apply the \
         files of its `migrations` folder for {system}"
    )]
    Older {
        /// Crate that owns the tables.
        name: &'static str,
        /// Database system.
        system: System,
        /// Version found; 0 for none.
        found: i64,
        /// Version needed.
        wanted: i64,
    },
    /// The tables are too new for this version of the crate.
    #[error(
        "the tables of {name} are at version {found}, and this version knows {known} at most: use \
         a newer version of the crate"
    )]
    Newer {
        /// Crate that owns the tables.
        name: &'static str,
        /// Version found.
        found: i64,
        /// Newest known version.
        known: i64,
    },
    /// A migration failed.
    #[error("could not migrate the tables of {name}: {source}")]
    Migrate {
        /// Crate that owns the tables.
        name: &'static str,
        /// Error of sqlx.
        source: sqlx::migrate::MigrateError,
    },
    /// Another process has been migrating for ten minutes.
    #[error("the tables of {0} are being migrated by another process: try again when it is done")]
    Busy(&'static str),
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl Error {
    /// Creates an address error that contains only the scheme: the rest may contain a password.
    pub(crate) fn address(url: &str) -> Self {
        Self::Address(scale_common::address::shown_scheme(url))
    }

    pub(crate) fn syntax(url: &str) -> Self {
        Self::Syntax(scale_common::address::shown_scheme(url))
    }
}

/// Returns whether the database refused a statement, so that it had no effect.
pub fn is_refusal(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(_))
}

/// Returns whether the database rolled back a transaction in favour of another one (a deadlock, or
/// a failed serialization), so that it had no effect and may be retried.
pub fn is_undone(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    let codes = ["40001", "40P01", "1213"];
    let number = error.code().is_some_and(|code| codes.contains(&&*code));
    number || is_mysql_deadlock(error.as_ref())
}

#[cfg(feature = "mysql")]
fn is_mysql_deadlock(error: &dyn sqlx::error::DatabaseError) -> bool {
    let error = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>();
    error.is_some_and(|error| error.number() == 1213)
}

#[cfg(not(feature = "mysql"))]
fn is_mysql_deadlock(_: &dyn sqlx::error::DatabaseError) -> bool {
    false
}
