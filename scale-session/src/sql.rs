//! Shared parts of this crate's SQL stores: migrations and connections.

use std::future::Future;
use std::time::Duration;

pub(crate) use scale_sql::{Connection, Database, Query, Statement, System, statements};
use scale_sql::{Mark, Migration, Options, Schema};

macro_rules! migration {
    ($version:literal, $folder:literal, $name:literal, $mark:expr) => {
        Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!(
                "../migrations/", $folder, "/000", $version, "_", $name, ".sql"
            )),
            mark: $mark,
        }
    };
}

/// Tables of sessions.
pub(crate) const SESSIONS: Schema = Schema {
    name: "scale_sessions",
    lock: 7_222_012,
    postgres: &[
        migration!(1, "sessions/postgres", "sessions", Mark::Table("scale_sessions")),
        migration!(
            2,
            "sessions/postgres",
            "expand_owners",
            Mark::Column("scale_sessions", "owner")
        ),
        migration!(3, "sessions/postgres", "applications", Mark::Column("scale_sessions", "app")),
        migration!(4, "sessions/postgres", "expand_next", Mark::Column("scale_sessions", "next")),
    ],
    mysql: &[migration!(4, "sessions/mysql", "sessions", Mark::Table("scale_session_fields"))],
    sqlite: &[
        migration!(1, "sessions/sqlite", "sessions", Mark::Table("scale_sessions")),
        migration!(2, "sessions/sqlite", "expand_owners", Mark::Column("scale_sessions", "owner")),
        migration!(3, "sessions/sqlite", "applications", Mark::Column("scale_sessions", "app")),
        migration!(4, "sessions/sqlite", "expand_next", Mark::Column("scale_sessions", "next")),
    ],
};

/// Table of the one-time store.
#[cfg(feature = "auth")]
pub(crate) const LEDGER: Schema = Schema {
    name: "scale_ledger",
    lock: 7_222_012,
    postgres: &[
        migration!(1, "ledger/postgres", "ledger", Mark::Table("scale_ledger")),
        migration!(2, "ledger/postgres", "applications", Mark::Column("scale_ledger", "app")),
    ],
    mysql: &[migration!(2, "ledger/mysql", "ledger", Mark::Table("scale_ledger"))],
    sqlite: &[
        migration!(1, "ledger/sqlite", "ledger", Mark::Table("scale_ledger")),
        migration!(2, "ledger/sqlite", "applications", Mark::Column("scale_ledger", "app")),
    ],
};

/// Table of the audit log.
#[cfg(feature = "auth")]
pub(crate) const AUDIT: Schema = Schema {
    name: "scale_audit",
    lock: 7_222_012,
    postgres: &[
        migration!(1, "audit/postgres", "audit", Mark::Table("scale_audit")),
        migration!(2, "audit/postgres", "applications", Mark::Column("scale_audit", "app")),
    ],
    mysql: &[migration!(2, "audit/mysql", "audit", Mark::Table("scale_audit"))],
    sqlite: &[
        migration!(1, "audit/sqlite", "audit", Mark::Table("scale_audit")),
        migration!(2, "audit/sqlite", "applications", Mark::Column("scale_audit", "app")),
    ],
};

/// Table of records that belong to users.
#[cfg(feature = "auth")]
pub(crate) const RECORDS: Schema = Schema {
    name: "scale_auth_records",
    lock: 7_222_012,
    postgres: &[migration!(1, "records/postgres", "records", Mark::Table("scale_auth_records"))],
    mysql: &[migration!(1, "records/mysql", "records", Mark::Table("scale_auth_locks"))],
    sqlite: &[migration!(1, "records/sqlite", "records", Mark::Table("scale_auth_records"))],
};

/// All schemas, in the order in which they are migrated.
#[cfg(feature = "auth")]
const SCHEMAS: &[Schema] = &[SESSIONS, LEDGER, AUDIT, RECORDS];
#[cfg(not(feature = "auth"))]
const SCHEMAS: &[Schema] = &[SESSIONS];

/// Migrates the tables of a database to this version of the crate: the tables of sessions and, with
/// feature `auth`, of the one-time store, the audit log and the records. Call this function where
/// the application migrates its own tables, with a database role that may create tables.
///
/// One process migrates at a time; the others wait. On PostgreSQL and SQLite each store's tables
/// are migrated as a whole or not at all.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// use scale_session::{Config, SessionLayer};
///
/// scale_session::store::migrate(&pool).await?;
/// let sessions = SessionLayer::with_pool(&pool, "shop", Config::default()).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Schema`](crate::Error::Schema) if a migration fails or the tables are newer than this
/// version; [`Error::Store`](crate::Error::Store) if the database does not answer.
pub async fn migrate(database: impl Into<Database>) -> Result<(), crate::Error> {
    let database = database.into();
    for schema in SCHEMAS {
        schema.migrate(&database).await?;
    }
    Ok(())
}

/// Returns the files that [`migrate`] applies on a database system, in order, as pairs of name and
/// content. The files are in the crate's folder `migrations`, for teams that apply such files
/// themselves.
pub fn migrations(system: System) -> Vec<(String, &'static str)> {
    let name = |migration: &Migration| {
        (format!("{:04}_{}.sql", migration.version, migration.name), migration.sql)
    };
    SCHEMAS.iter().flat_map(|schema| schema.migrations(system).iter().map(name)).collect()
}

/// Opens a small connection pool for one store.
pub(crate) async fn connect(url: &str) -> Result<Database, scale_sql::Error> {
    let mut options = Options::default();
    // Waiting for a lock takes no longer than waiting for a connection: a blocked statement must
    // not hold up the others.
    (options.acquire_timeout, options.lock_timeout) =
        (Duration::from_secs(2), Duration::from_secs(2));
    options.statement_timeout = Duration::from_secs(5);
    Database::connect(url, &options).await
}

/// Checks that the tables exist: creates them in an SQLite file, expects them on a server.
pub(crate) async fn open(
    database: Database,
    app: &str,
    schema: &Schema,
) -> Result<Database, scale_sql::Error> {
    if text_of(app).len() > LONGEST_APP {
        return Err(scale_sql::Error::Setting("the application name is longer than 255 bytes"));
    }
    database.look().await?;
    match database.system() {
        System::Sqlite => schema.migrate(&database).await?,
        System::Postgres | System::MySql => schema.check(&database).await?,
    }
    Ok(database)
}

/// Maximum length of an application's name in tables, in bytes.
const LONGEST_APP: usize = 255;

/// Returns a name as text that every database system accepts, distinct names as distinct texts.
/// PostgreSQL accepts no zero byte.
pub(crate) fn text_of(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\0', "\\0")
}

/// Runs a transaction, and runs it again if the database has rolled it back in favour of another
/// one.
pub(crate) async fn again<T, E, F>(attempt: impl FnMut() -> F) -> Result<T, E>
where
    E: Sourced,
    F: Future<Output = Result<T, E>>,
{
    scale_sql::retry(E::source, attempt).await
}

/// An error that may contain a database error.
pub(crate) trait Sourced {
    fn source(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)>;
}

impl Sourced for crate::Error {
    fn source(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        let Self::Store(source) = self else { return None };
        Some(&**source)
    }
}

#[cfg(feature = "auth")]
impl Sourced for crate::auth::Error {
    fn source(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        let Self::OneTimeStore(source) = self else { return None };
        Some(&**source)
    }
}

impl From<scale_sql::Error> for crate::Error {
    fn from(error: scale_sql::Error) -> Self {
        match error {
            scale_sql::Error::Address(said) => Self::unsupported(&said),
            scale_sql::Error::Syntax(_) => Self::Address(error.to_string()),
            scale_sql::Error::Setting(said) => Self::Setting(said),
            scale_sql::Error::Sql(error) => Self::Store(Box::new(error)),
            other => Self::Schema(Box::new(other)),
        }
    }
}

#[cfg(feature = "auth")]
impl From<scale_sql::Error> for crate::auth::Error {
    fn from(error: scale_sql::Error) -> Self {
        match error {
            scale_sql::Error::Syntax(_) => {
                Self::Setting("the host, port or options of the database's address cannot be read")
            }
            scale_sql::Error::Address(_) => Self::Setting(
                "the address of the database is not supported, or its feature is not enabled",
            ),
            scale_sql::Error::Setting(said) => Self::Setting(said),
            scale_sql::Error::Sql(error) => Self::OneTimeStore(Box::new(error)),
            other => Self::Schema(Box::new(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_names_are_distinct_texts() {
        for (a, b) in [("a\\0", "a\0"), ("\\", "\\\\"), ("", "\0")] {
            assert_ne!(text_of(a), text_of(b));
        }
    }
}
