//! MySQL 8 and MariaDB 10.6 or newer.

use std::time::Duration;

use super::Probe;
use crate::node::Role;
use crate::position::Position;

/// Role: a node that refuses writes of ordinary users is a replica.
pub(super) const PROBE: &str = "select cast(@@global.read_only as char)";

pub(super) fn read(row: &[Option<String>]) -> Option<Probe> {
    let role = if row.first()?.as_deref()? == "0" { Role::Primary } else { Role::Replica };
    Some(Probe { role, timeline: 0, position: Position::default(), lag: None, cluster: None })
}

pub(super) fn greeting(lock: Duration) -> String {
    format!("set innodb_lock_wait_timeout = {}", lock.as_secs().max(1))
}
