//! PostgreSQL 12 and newer.

use std::time::Duration;

use super::Probe;
use crate::node::Role;
use crate::position::Position;

/// Role, position, timeline (of a primary; from its WAL file's name), cluster.
pub(super) const PROBE: &str = "select pg_is_in_recovery()::text, \
    case when pg_is_in_recovery() then coalesce(pg_last_wal_replay_lsn(), '0/0') else pg_current_wal_insert_lsn() end::text, \
    case when pg_is_in_recovery() then null else substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) end::text, \
    (select system_identifier::text from pg_control_system())";

pub(super) fn read(row: &[Option<String>]) -> Option<Probe> {
    let [in_recovery, position, timeline, cluster] = row else { return None };
    let role = match in_recovery.as_deref()? {
        "true" | "t" => Role::Replica,
        _ => Role::Primary,
    };
    Some(Probe {
        role,
        timeline: timeline.as_deref().and_then(|t| u64::from_str_radix(t, 16).ok()).unwrap_or(0),
        position: Position::from_lsn(position.as_deref()?)?,
        lag: None,
        cluster: cluster.clone(),
    })
}

pub(super) fn greeting(statement: Duration, lock: Duration) -> String {
    format!("set statement_timeout = {}; set lock_timeout = {}", statement.as_millis(), lock.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_both_roles_are_read() {
        let text = |s: &str| Some(s.to_owned());
        let primary = read(&[text("false"), text("1/A0"), text("0000000C"), text("77")]).unwrap();
        assert_eq!((primary.role, primary.timeline, primary.position), (Role::Primary, 12, Position(0x1_0000_00A0)));
        let replica = read(&[text("true"), text("0/10"), None, None]).unwrap();
        assert_eq!((replica.role, replica.timeline, replica.cluster), (Role::Replica, 0, None));
        assert_eq!(read(&[text("true"), None, None, None]), None);
        assert_eq!(read(&[]), None);
    }
}
