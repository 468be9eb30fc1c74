//! Classification of failures, for the executor's decisions. Pure: no I/O.

use std::borrow::Cow;

use sqlx::Error;

use crate::dialect::Dialect;

/// Returns the error number of MySQL or MariaDB, where many errors share one SQLSTATE, and the code
/// of other systems.
pub(crate) fn code(error: &dyn sqlx::error::DatabaseError) -> Option<Cow<'_, str>> {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return Some(error.number().to_string().into());
    }
    error.code()
}

/// Returns whether a primary was rejected because it is older than a mark.
pub(crate) fn is_unseen(error: &Error) -> bool {
    matches!(
        error,
        Error::Configuration(cause) if matches!(cause.downcast_ref(), Some(crate::Error::Unseen)),
    )
}

/// Returns whether the connection or the server is gone: a read may be repeated on another node.
pub(crate) fn is_lost(error: &Error) -> bool {
    matches!(error, Error::PoolTimedOut) || is_broken(error)
}

/// Returns whether the connection is gone: another connection to the same server may work.
pub(crate) fn is_broken(error: &Error) -> bool {
    match error {
        Error::Io(_) | Error::Tls(_) | Error::Protocol(_) | Error::WorkerCrashed => true,
        // Class 57P: the server shuts down, crashed, or is starting. 08: connection exceptions.
        Error::Database(e) => e.code().is_some_and(|c| c.starts_with("57P") || c.starts_with("08")),
        _ => false,
    }
}

/// Returns whether a replica ended a statement because of a conflict with replay.
pub(crate) fn is_recovery_conflict(error: &Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "40001")
}

/// Reason why a replica cannot run a statement that the primary can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lacks {
    /// The replica never can: unlogged tables, serializable transactions, functions of a primary,
    /// tables attached only to SQLite's writer.
    Ever,
    /// The replica cannot yet: the table, column or function is new.
    Yet,
}

pub(crate) fn lack(dialect: Dialect, error: &Error) -> Option<Lacks> {
    let error = error.as_database_error()?;
    let code = code(error)?;
    match dialect {
        Dialect::Postgres if ["0A000", "55000"].contains(&&*code) => Some(Lacks::Ever),
        // undefined_table, _column, _function, _object, _parameter, invalid_schema_name
        Dialect::Postgres if ["42P01", "42703", "42883", "42704", "3F000"].contains(&&*code) => {
            Some(Lacks::Yet)
        }
        // ER_NO_SUCH_TABLE, ER_BAD_FIELD_ERROR, ER_SP_DOES_NOT_EXIST, ER_BAD_DB_ERROR
        Dialect::MySql if ["1146", "1054", "1305", "1049"].contains(&&*code) => Some(Lacks::Yet),
        // SQLITE_ERROR: "no such table".
        Dialect::Sqlite if code == "1" => Some(Lacks::Ever),
        _ => None,
    }
}

/// Returns whether a prepared statement is older than a change of its table; any node may report
/// that.
pub(crate) fn is_stale_plan(error: &dyn sqlx::error::DatabaseError) -> bool {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        return error.routine() == Some("RevalidateCachedQuery");
    }
    let _ = error;
    false
}
