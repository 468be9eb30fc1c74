//! Differences between database systems that need no I/O: SQL texts, the reading of their answers, errors that mean "read-only".

mod mysql;
mod postgres;
mod sqlite;

use std::time::Duration;

use sqlparser::dialect::{Dialect as Grammar, MySqlDialect, PostgreSqlDialect, SQLiteDialect};

use crate::log::Log;
use crate::node::Role;

/// A family of database systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB.
    MySql,
    /// SQLite.
    Sqlite,
}

/// A node's account of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) role: Role,
    /// Log that it has written or replayed.
    pub(crate) log: Log,
    /// Where the node itself knows its lag; else it is derived from positions.
    pub(crate) lag: Option<Duration>,
    /// Equal on all nodes of one database cluster; `None` where the system has no such thing or hides it.
    pub(crate) cluster: Option<String>,
    /// Since when the server has run, in its own words.
    pub(crate) started: Option<String>,
}

impl Default for Probe {
    fn default() -> Self {
        Self { role: Role::Primary, log: Log::Unknown, lag: None, cluster: None, started: None }
    }
}

impl Probe {
    /// Returns the timeline: of two nodes that say they are primary, the one on the higher timeline is. 0 where there is no such thing.
    pub(crate) fn timeline(&self) -> u64 {
        match self.log {
            Log::Wal { timeline, .. } => timeline,
            _ => 0,
        }
    }
}

impl Dialect {
    /// The dialect an address speaks of. Without any driver nobody asks.
    #[cfg_attr(not(any(feature = "postgres", feature = "mysql", feature = "sqlite", feature = "any")), allow(dead_code))]
    pub(crate) fn of(url: &str) -> Option<Self> {
        match url.split(':').next()? {
            "postgres" | "postgresql" => Some(Self::Postgres),
            "mysql" | "mariadb" => Some(Self::MySql),
            "sqlite" => Some(Self::Sqlite),
            _ => None,
        }
    }

    pub(crate) fn parser(self) -> &'static dyn Grammar {
        match self {
            Self::Postgres => &PostgreSqlDialect {},
            Self::MySql => &MySqlDialect {},
            Self::Sqlite => &SQLiteDialect {},
        }
    }

    /// Ask a node about itself, each in one row of text columns. The first tells most; a node that may or can not answer it is asked the
    /// next.
    pub(crate) fn probes(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &postgres::PROBES,
            Self::MySql => &mysql::PROBES,
            Self::Sqlite => &sqlite::PROBES,
        }
    }

    /// Reads the answer to one of [`probes`](Self::probes).
    pub(crate) fn read_probe(self, row: &[Option<String>]) -> Option<Probe> {
        match self {
            Self::Postgres => postgres::read(row),
            Self::MySql => mysql::read(row),
            Self::Sqlite => sqlite::read(row),
        }
    }

    /// Ask a server that takes writes whether it is told to follow another: if so, there is a row.
    pub(crate) fn follower_statements(self) -> &'static [&'static str] {
        if self == Self::MySql { &mysql::FOLLOWS } else { &[] }
    }

    /// Ask a replica that has no positions how late it is, in a row of named columns.
    pub(crate) fn lag_statements(self) -> &'static [&'static str] {
        if self == Self::MySql { &mysql::LAGS } else { &[] }
    }

    /// Reads the answer to one of [`lag_statements`](Self::lag_statements); `None` while the replica does not follow.
    pub(crate) fn read_lag(row: &[(String, Option<String>)]) -> Option<Duration> {
        let column = row.iter().find(|(name, _)| mysql::LAG_COLUMNS.contains(&name.as_str()))?;
        column.1.as_deref()?.parse().ok().map(Duration::from_secs)
    }

    /// A name as SQL takes it, its parts (`schema.table`) quoted one by one.
    pub(crate) fn quoted(self, name: &str) -> String {
        let quote = if self == Self::MySql { '`' } else { '"' };
        let part = |p: &str| format!("{quote}{}{quote}", p.replace(quote, &format!("{quote}{quote}")));
        name.split('.').map(part).collect::<Vec<_>>().join(".")
    }

    /// A text as SQL takes it.
    pub(crate) fn literal(self, text: &str) -> String {
        let text = if self == Self::MySql { text.replace('\\', "\\\\") } else { text.to_owned() };
        format!("'{}'", text.replace('\'', "''"))
    }

    /// An expression's value as text.
    pub(crate) fn text_of(self, expression: &str) -> String {
        let kind = if self == Self::MySql { "char" } else { "text" };
        format!("cast({expression} as {kind})")
    }

    /// The tables that a plan reads from end to end; `limited` if the statement has a limit.
    pub(crate) fn full_scans(self, plan: &[Vec<Option<String>>], limited: bool) -> Vec<String> {
        match self {
            Self::Postgres => postgres::full_scans(plan),
            Self::MySql => mysql::full_scans(plan, limited),
            Self::Sqlite => sqlite::full_scans(plan, limited),
        }
    }

    /// Returns whether an error's code, or its number in MySQL and MariaDB, says that the node does not take writes.
    pub(crate) fn is_read_only_code(self, code: &str) -> bool {
        match self {
            // read_only_sql_transaction; what a standby says to row locks, temp tables and sequences is of the same class.
            Self::Postgres => code == "25006",
            // ER_OPTION_PREVENTS_STATEMENT, ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION, ER_READ_ONLY_MODE
            Self::MySql => ["1290", "1792", "1836"].contains(&code),
            // SQLITE_READONLY and its extended codes
            Self::Sqlite => code.parse::<u32>().is_ok_and(|c| c & 0xFF == 8),
        }
    }

    /// Returns the statement that takes a connection's limits back.
    pub(crate) fn without_limits(self) -> Option<&'static str> {
        match self {
            Self::Postgres => Some("set statement_timeout = 0; set lock_timeout = 0"),
            Self::MySql => Some(
                "set innodb_lock_wait_timeout = 1073741824 /*M! , max_statement_time = 0 */ /*!80000 , max_execution_time = 0 */",
            ),
            Self::Sqlite => None,
        }
    }

    /// Returns the statements that every new connection runs first, by the limits configured.
    pub(crate) fn greeting(self, reader: bool, statement: Duration, lock: Duration) -> String {
        match self {
            Self::Postgres => postgres::greeting(statement, lock),
            Self::MySql => mysql::greeting(statement, lock),
            Self::Sqlite => sqlite::greeting(reader, lock),
        }
    }
}
