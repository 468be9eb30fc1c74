//! What the tables of this crate have in common: the words of each system, and a pool that makes its tables.

use std::sync::Arc;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyPool, AssertSqlSafe, Row, Transaction};

use crate::error::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    #[cfg(feature = "postgres")]
    Postgres,
    #[cfg(feature = "sqlite")]
    Sqlite,
}

impl System {
    pub(crate) fn of(url: &str) -> Option<Self> {
        match url.split(':').next()? {
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => Some(Self::Postgres),
            #[cfg(feature = "sqlite")]
            "sqlite" => Some(Self::Sqlite),
            _ => None,
        }
    }

    /// Words in braces as this system says them.
    pub(crate) fn say(self, text: &str) -> Arc<str> {
        let words = match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => [
                ("{now}", "(extract(epoch from clock_timestamp()) * 1000)::bigint"),
                ("{bytes}", "bytea"),
                ("{text}", "text collate \"C\""),
                ("{least}", "least"),
                ("{most}", "greatest"),
                ("{lock}", "for update"),
                ("{one_at_a_time}", "select pg_advisory_xact_lock(7222013)"),
                ("{lock_owner}", "select pg_advisory_xact_lock(hashtextextended($1 || ':' || $2, 7222014))"),
            ],
            #[cfg(feature = "sqlite")]
            Self::Sqlite => [
                ("{now}", "cast(unixepoch('subsec') * 1000 as integer)"),
                ("{bytes}", "blob"),
                ("{text}", "text"),
                ("{least}", "min"),
                ("{most}", "max"),
                ("{lock}", ""),
                // Its transactions are, by themselves.
                ("{one_at_a_time}", "select 1"),
                ("{lock_owner}", "select $1, $2"),
            ],
        };
        words.iter().fold(text.to_owned(), |text, (word, own)| text.replace(word, own)).into()
    }
}

/// A file's statements, said once in the words of the system.
macro_rules! statements {
    ($($name:ident = $text:expr;)*) => {
        #[derive(Debug)]
        struct Texts { $($name: std::sync::Arc<str>,)* }

        impl Texts {
            fn new(system: $crate::sql::System) -> Self {
                Self { $($name: system.say($text),)* }
            }
        }
    };
}
pub(crate) use statements;

/// A pool, and which system it leads to.
#[derive(Debug)]
pub(crate) struct Database {
    pool: AnyPool,
    system: System,
}

fn failed(error: sqlx::Error) -> Error {
    Error::Store(Box::new(error))
}

/// An SQLite file has one writer. WAL, so that its readers do not mind it.
#[cfg(feature = "sqlite")]
fn one_writer(options: AnyPoolOptions) -> AnyPoolOptions {
    options.max_connections(1).idle_timeout(None).max_lifetime(None).after_connect(|connection, _| {
        Box::pin(async move {
            let settings = "pragma journal_mode = wal; pragma synchronous = normal; pragma busy_timeout = 5000";
            sqlx::raw_sql(settings).execute(connection).await.map(drop)
        })
    })
}

/// Row locks are what orders writers here, whatever isolation the database is set to by default.
#[cfg(feature = "postgres")]
fn read_committed(options: AnyPoolOptions) -> AnyPoolOptions {
    options.after_connect(|connection, _| {
        Box::pin(async move {
            // Nobody waits for longer than they would for a connection: one that is stuck must not take the others.
            let setting = "set session characteristics as transaction isolation level read committed; set lock_timeout = '2s'";
            sqlx::raw_sql(setting).execute(connection).await.map(drop)
        })
    })
}

/// A name as text that every system takes, distinct ones as distinct texts: Postgres takes no zero byte.
pub(crate) fn text_of(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\0', "\\0")
}

/// The address of an SQLite file that is made if it is not there, unless the address says otherwise.
#[cfg(feature = "sqlite")]
fn creating(url: &str, system: System) -> std::borrow::Cow<'_, str> {
    if system != System::Sqlite || url.contains("mode=") || url.contains(":memory:") {
        return url.into();
    }
    format!("{url}{}mode=rwc", if url.contains('?') { '&' } else { '?' }).into()
}

impl Database {
    /// Connects, and makes the tables if they are not there.
    pub(crate) async fn connect(url: &str, tables: &Arc<str>) -> Result<Self, Error> {
        sqlx::any::install_default_drivers();
        let system = System::of(url).ok_or_else(|| Error::address(url))?;
        let options = AnyPoolOptions::new().acquire_timeout(Duration::from_secs(2));
        #[cfg(feature = "sqlite")]
        let options = if system == System::Sqlite { one_writer(options) } else { options };
        #[cfg(feature = "postgres")]
        let options = if system == System::Postgres { read_committed(options) } else { options };
        // sqlx's words may hold the password.
        #[cfg(feature = "sqlite")]
        let url = &*creating(url, system);
        let pool = options.connect_lazy(url).map_err(|_| Error::Address("a database address that cannot be read".into()))?;
        let database = Self { pool, system };
        if database.has(tables).await? {
            return Ok(database);
        }
        let mut tx = database.begin().await?;
        #[cfg(feature = "postgres")]
        if system == System::Postgres {
            // Several processes may start at once; Postgres does not like two to make one table.
            sqlx::query("select pg_advisory_xact_lock(7222012)").execute(&mut *tx).await.map_err(failed)?;
        }
        sqlx::raw_sql(AssertSqlSafe(Arc::clone(tables))).execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(database)
    }

    /// Whether every table and index is there: then no lock is taken that would wait for a long transaction and hold up all behind it.
    async fn has(&self, tables: &Arc<str>) -> Result<bool, Error> {
        let name = |line: &str| line.split_once(" if not exists ")?.1.split_whitespace().next().map(str::to_owned);
        let names: Vec<String> = tables.lines().filter_map(name).collect();
        let text = match self.system {
            #[cfg(feature = "postgres")]
            System::Postgres => "select count(*) from unnest(string_to_array($1, ',')) as name where to_regclass(name) is null",
            #[cfg(feature = "sqlite")]
            System::Sqlite => {
                "select count(*) from json_each('[\"' || replace($1, ',', '\",\"') || '\"]') as name \
                where name.value not in (select known.name from sqlite_master as known)"
            }
        };
        let row = sqlx::query(AssertSqlSafe(text)).bind(names.join(",")).fetch_one(&self.pool).await.map_err(failed)?;
        Ok(row.try_get::<i64, _>(0).map_err(failed)? == 0)
    }

    pub(crate) fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// On SQLite a transaction asks for the writer's place at its beginning: one that asks later may be refused it.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Any>, Error> {
        match self.system {
            #[cfg(feature = "postgres")]
            System::Postgres => self.pool.begin().await.map_err(failed),
            #[cfg(feature = "sqlite")]
            System::Sqlite => self.pool.begin_with(sqlx::SqlSafeStr::into_sql_str("begin immediate")).await.map_err(failed),
        }
    }
}
