//! Differences between database systems that need no I/O: SQL texts, parsing of answers, and errors
//! that mean "read-only".

mod mysql;
mod postgres;
mod sqlite;

use std::time::Duration;

use sqlparser::dialect::{Dialect as Grammar, MySqlDialect, PostgreSqlDialect, SQLiteDialect};

use crate::cluster::role::Role;
use crate::log::Log;

/// Family of database systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB.
    MySql,
    /// SQLite.
    Sqlite,
}

/// Answer of a node to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) role: Role,
    /// Log that the node has written or replayed.
    pub(crate) log: Log,
    /// Lag reported by the node itself; otherwise it is derived from positions.
    pub(crate) lag: Option<Duration>,
    /// Id shared by all nodes of one database cluster; `None` if the system has none or hides it.
    pub(crate) cluster: Option<String>,
    /// Start time of the server, as text of the server.
    pub(crate) started: Option<String>,
}

impl Default for Probe {
    fn default() -> Self {
        Self { role: Role::Primary, log: Log::Unknown, lag: None, cluster: None, started: None }
    }
}

impl Probe {
    /// Returns the timeline: of two nodes that report to be the primary, the one with the higher
    /// timeline is. 0 if the system has none.
    pub(crate) fn timeline(&self) -> u64 {
        match self.log {
            Log::Wal { timeline, .. } => timeline,
            _ => 0,
        }
    }
}

impl Dialect {
    /// Returns the dialect of an address. Unused without any driver.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "mysql", feature = "sqlite", feature = "any")),
        allow(dead_code)
    )]
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

    /// Returns the probes of a node, each with one row of text columns. The first is the most
    /// detailed; a node that cannot answer it gets the next.
    pub(crate) fn probes(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &postgres::PROBES,
            Self::MySql => &mysql::PROBES,
            Self::Sqlite => &sqlite::PROBES,
        }
    }

    /// Parses the answer to one of [`probes`](Self::probes).
    pub(crate) fn read_probe(self, row: &[Option<String>]) -> Option<Probe> {
        match self {
            Self::Postgres => postgres::read(row),
            Self::MySql => mysql::read(row),
            Self::Sqlite => sqlite::read(row),
        }
    }

    /// Returns statements that have a row if a server that takes writes is configured to follow
    /// another.
    pub(crate) fn follower_statements(self) -> &'static [&'static str] {
        if self == Self::MySql { &mysql::FOLLOWS } else { &[] }
    }

    /// Returns statements that read the lag of a replica without positions, in a row of named
    /// columns.
    pub(crate) fn lag_statements(self) -> &'static [&'static str] {
        if self == Self::MySql { &mysql::LAGS } else { &[] }
    }

    /// Parses the answer to one of [`lag_statements`](Self::lag_statements); `None` if the replica
    /// does not replicate.
    pub(crate) fn read_lag(row: &[(String, Option<String>)]) -> Option<Duration> {
        let column = row.iter().find(|(name, _)| mysql::LAG_COLUMNS.contains(&name.as_str()))?;
        column.1.as_deref()?.parse().ok().map(Duration::from_secs)
    }

    /// Quotes a name; its parts (`schema.table`) are quoted separately.
    pub(crate) fn quoted(self, name: &str) -> String {
        let quote = if self == Self::MySql { '`' } else { '"' };
        let part =
            |p: &str| format!("{quote}{}{quote}", p.replace(quote, &format!("{quote}{quote}")));
        name.split('.').map(part).collect::<Vec<_>>().join(".")
    }

    /// Quotes a text as an SQL literal.
    pub(crate) fn literal(self, text: &str) -> String {
        let text = if self == Self::MySql { text.replace('\\', "\\\\") } else { text.to_owned() };
        format!("'{}'", text.replace('\'', "''"))
    }

    /// Returns an expression that casts another one to text.
    pub(crate) fn text_of(self, expression: &str) -> String {
        let kind = if self == Self::MySql { "char" } else { "text" };
        format!("cast({expression} as {kind})")
    }

    /// Returns the tables that a plan scans completely; `limited` if the statement has a limit.
    pub(crate) fn full_scans(self, plan: &[Vec<Option<String>>], limited: bool) -> Vec<String> {
        match self {
            Self::Postgres => postgres::full_scans(plan),
            Self::MySql => mysql::full_scans(plan, limited),
            Self::Sqlite => sqlite::full_scans(plan, limited),
        }
    }

    /// Returns whether an error code (MySQL, MariaDB: an error number) means that the node does not
    /// take writes.
    pub(crate) fn is_read_only_code(self, code: &str) -> bool {
        match self {
            // read_only_sql_transaction; a standby reports the same for row locks, temporary tables
            // and sequences.
            Self::Postgres => code == "25006",
            // ER_OPTION_PREVENTS_STATEMENT, ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION,
            // ER_READ_ONLY_MODE
            Self::MySql => ["1290", "1792", "1836"].contains(&code),
            // SQLITE_READONLY and its extended codes
            Self::Sqlite => code.parse::<u32>().is_ok_and(|c| c & 0xFF == 8),
        }
    }

    /// Returns the statement that removes the timeouts of a connection.
    pub(crate) fn without_limits(self) -> Option<&'static str> {
        match self {
            Self::Postgres => Some("set statement_timeout = 0; set lock_timeout = 0"),
            Self::MySql => Some(
                "set innodb_lock_wait_timeout = 1073741824 /*M! , max_statement_time = 0 */ \
                 /*!80000 , max_execution_time = 0 */",
            ),
            Self::Sqlite => None,
        }
    }

    /// Returns the statements that every new connection runs first, with the configured timeouts.
    pub(crate) fn greeting(self, reader: bool, statement: Duration, lock: Duration) -> String {
        match self {
            Self::Postgres => postgres::greeting(statement, lock),
            Self::MySql => mysql::greeting(statement, lock),
            Self::Sqlite => sqlite::greeting(reader, lock),
        }
    }
}
