//! Probes a node with the most detailed statement that it allows.
//!
//! A managed service may lack functions, and a role may lack permissions. A statement that a node
//! refuses is not sent again on that connection; the next, less detailed one is used.

use parking_lot::Mutex;
use sqlx::SqlSafeStr;

use crate::backend::Backend;
use crate::cluster::node::ProbeState;
use crate::cluster::role::Role;
use crate::dialect::{Dialect, Probe};
use crate::log::Log;

/// Returns whether a node does not support or permit a probe. A node that changes its role during
/// the probe fails with other errors.
fn is_denied(dialect: Dialect, error: &sqlx::Error) -> bool {
    let Some(code) = error.as_database_error().and_then(sqlx::error::DatabaseError::code) else {
        return false;
    };
    // Class 42: no such function, or no permission to call it. 0A000: not supported.
    code.starts_with("42") || code == "0A000" || (dialect == Dialect::MySql && code == "HY000")
}

/// Probes a node through one connection; `asked` remembers which statement was answered.
pub(crate) async fn ask<DB: Backend>(
    dialect: Dialect,
    connection: &mut DB::Connection,
    asked: &Mutex<ProbeState>,
) -> Result<Probe, sqlx::Error> {
    let probes = dialect.probes();
    let mut number = asked.lock().probe;
    let row = loop {
        match DB::ask(connection, probes[number].into_sql_str()).await {
            Err(error) if number + 1 < probes.len() && is_denied(dialect, &error) => {
                tracing::warn!(
                    %error,
                    "a database node refused a probe; using a less detailed one",
                );
                number += 1;
            }
            answer => break answer?,
        }
    };
    asked.lock().probe = number;
    let unreadable = || sqlx::Error::Protocol("a node's answer to a probe is invalid".into());
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
