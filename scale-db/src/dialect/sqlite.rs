//! SQLite in WAL mode: one writer, and many readers of the same file, all of which see every
//! commit.

use std::time::Duration;

use super::Probe;
use crate::cluster::role::Role;
use crate::log::Log;

/// A connection that may not write belongs to the readers' pool.
pub(super) const PROBES: [&str; 1] = ["select cast(query_only as text) from pragma_query_only"];

pub(super) fn read(row: &[Option<String>]) -> Option<Probe> {
    let role = if row.first()?.as_deref()? == "0" { Role::Primary } else { Role::Replica };
    Some(Probe { role, log: Log::Shared, lag: Some(Duration::ZERO), ..Probe::default() })
}

/// Finds `SCAN t`, and `SCAN t USING INDEX i` unless that gives a limited answer its order.
pub(super) fn full_scans(plan: &[Vec<Option<String>>], limited: bool) -> Vec<String> {
    let details = plan.iter().filter_map(|row| row.last()?.as_deref());
    let scans = details.filter_map(|detail| detail.strip_prefix("SCAN "));
    let full = scans
        .filter(|scan| !(scan.contains("CONSTANT ROW") || limited && scan.contains(" USING ")));
    full.filter_map(|scan| scan.split(' ').next()).map(str::to_owned).collect()
}

pub(super) fn greeting(reader: bool, lock: Duration) -> String {
    let wait = lock.as_millis();
    let query_only = u8::from(reader);
    format!(
        "pragma busy_timeout = {wait}; pragma journal_mode = wal; pragma synchronous = normal; \
         pragma foreign_keys = on; \
         pragma query_only = {query_only}"
    )
}
