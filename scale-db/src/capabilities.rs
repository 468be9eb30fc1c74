//! Asks a node about itself in the fullest way that it allows.
//!
//! A managed service may not offer every function, and a role may not be allowed every one: a statement that a node refuses is not asked
//! again on that connection, and the next, which tells less, is.

use parking_lot::Mutex;
use sqlx::SqlSafeStr;

use crate::backend::Backend;
use crate::dialect::{Dialect, Probe};
use crate::log::Log;
use crate::node::{Asked, Role};

/// Returns whether a node does not offer or allow what it was asked. A node that changes its role meanwhile fails otherwise.
fn is_denied(dialect: Dialect, error: &sqlx::Error) -> bool {
    let Some(code) = error.as_database_error().and_then(sqlx::error::DatabaseError::code) else { return false };
    // Class 42: no such function, no right to call it. 0A000: not supported.
    code.starts_with("42") || code == "0A000" || (dialect == Dialect::MySql && code == "HY000")
}

/// Asks through one connection; which statement was answered is remembered in `asked`.
pub(crate) async fn ask<DB: Backend>(
    dialect: Dialect,
    connection: &mut DB::Connection,
    asked: &Mutex<Asked>,
) -> Result<Probe, sqlx::Error> {
    let probes = dialect.probes();
    let mut number = asked.lock().probe;
    let row = loop {
        match DB::ask(connection, probes[number].into_sql_str()).await {
            Err(error) if number + 1 < probes.len() && is_denied(dialect, &error) => {
                tracing::warn!(%error, "a database node does not tell all of itself; less is asked");
                number += 1;
            }
            answer => break answer?,
        }
    };
    asked.lock().probe = number;
    let unreadable = || sqlx::Error::Protocol("a node's account of itself cannot be read".into());
    let mut probe = dialect.read_probe(&row).ok_or_else(unreadable)?;
    if probe.role == Role::Primary {
        for statement in dialect.follower_statements() {
            if let Ok(row) = DB::named(connection, (*statement).into_sql_str()).await {
                probe.role = if row.is_empty() { Role::Primary } else { Role::Replica };
                break;
            }
        }
    }
    if probe.log == Log::Unknown && probe.role == Role::Replica && probe.lag.is_none() {
        for statement in dialect.lag_statements() {
            if let Ok(row) = DB::named(connection, (*statement).into_sql_str()).await {
                probe.lag = Dialect::read_lag(&row);
                break;
            }
        }
    }
    Ok(probe)
}
