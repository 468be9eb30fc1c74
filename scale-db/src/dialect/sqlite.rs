//! SQLite in WAL mode: one writer, many readers of the same file, all of which see every commit.

use std::time::Duration;

use super::Probe;
use crate::node::Role;
use crate::position::Position;

/// A connection that may not write belongs to the readers' pool.
pub(super) const PROBE: &str = "select cast(query_only as text) from pragma_query_only";

pub(super) fn read(row: &[Option<String>]) -> Option<Probe> {
    let role = if row.first()?.as_deref()? == "0" { Role::Primary } else { Role::Replica };
    Some(Probe { role, timeline: 0, position: Position::default(), lag: Some(Duration::ZERO), cluster: None })
}

pub(super) fn greeting(reader: bool, lock: Duration) -> String {
    let wait = lock.as_millis();
    let query_only = u8::from(reader);
    format!(
        "pragma busy_timeout = {wait}; pragma journal_mode = wal; pragma synchronous = normal; pragma foreign_keys = on; \
         pragma query_only = {query_only}"
    )
}
