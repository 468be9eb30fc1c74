//! What differs between database systems and needs no I/O: SQL texts, how their answers read, which errors mean "read-only".

mod mysql;
mod postgres;
mod sqlite;

use std::time::Duration;

use sqlparser::dialect::{Dialect as Grammar, MySqlDialect, PostgreSqlDialect, SQLiteDialect};

use crate::node::Role;
use crate::position::Position;

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

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) role: Role,
    /// Of two that say they are primary, the higher one is.
    pub(crate) timeline: u64,
    pub(crate) position: Position,
    /// Where the node itself knows its lag; else it is derived from positions.
    pub(crate) lag: Option<Duration>,
    /// Equal on all nodes of one database cluster; `None` where the system has no such thing or hides it.
    pub(crate) cluster: Option<String>,
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

    /// Asks a node about itself: one row of text columns.
    pub(crate) fn probe_sql(self) -> &'static str {
        match self {
            Self::Postgres => postgres::PROBE,
            Self::MySql => mysql::PROBE,
            Self::Sqlite => sqlite::PROBE,
        }
    }

    /// Reads the answer to [`probe_sql`](Self::probe_sql).
    pub(crate) fn read_probe(self, row: &[Option<String>]) -> Option<Probe> {
        match self {
            Self::Postgres => postgres::read(row),
            Self::MySql => mysql::read(row),
            Self::Sqlite => sqlite::read(row),
        }
    }

    /// Asks the primary how far it has written; `None` where every reader sees every commit.
    pub(crate) fn position_sql(self) -> Option<&'static str> {
        match self {
            Self::Postgres => Some("select pg_current_wal_insert_lsn()::text"),
            Self::MySql => Some(mysql::POSITION),
            Self::Sqlite => None,
        }
    }

    /// Reads the answer to [`position_sql`](Self::position_sql); `None` if positions of this server are no order.
    pub(crate) fn read_position(self, row: &[Option<String>]) -> Option<Position> {
        match self {
            Self::Postgres => Position::from_lsn(row.first()?.as_deref()?),
            Self::MySql => mysql::position(row),
            Self::Sqlite => Some(Position::default()),
        }
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

    /// What every new connection is told, by the limits configured.
    pub(crate) fn greeting(self, reader: bool, statement: Duration, lock: Duration) -> String {
        match self {
            Self::Postgres => postgres::greeting(statement, lock),
            Self::MySql => mysql::greeting(lock),
            Self::Sqlite => sqlite::greeting(reader, lock),
        }
    }
}
