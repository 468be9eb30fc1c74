//! MariaDB 10.6 or newer, and MySQL 8 without positions.
//!
//! A position is the sequence number of a MariaDB GTID. It grows along one replication domain and over fail-overs, so it is an order as an
//! LSN is. With several domains, and on MySQL, there is no such order: the position is unknown, and sticky reads stay on the primary.

use std::time::Duration;

use super::Probe;
use crate::node::Role;
use crate::position::Position;

/// Role: a node that refuses writes of ordinary users is a replica. Only MariaDB reads what stands in `/*M! */`.
pub(super) const PROBE: &str = "select cast(@@global.read_only as char) /*M! , cast(@@global.gtid_current_pos as char) */";

/// How far this server has come, as a primary or as a replica.
pub(super) const POSITION: &str = "select cast('' as char) /*M! , cast(@@global.gtid_current_pos as char) */";

pub(super) fn read(row: &[Option<String>]) -> Option<Probe> {
    let role = if ["0", "OFF"].contains(&row.first()?.as_deref()?) { Role::Primary } else { Role::Replica };
    Some(Probe { role, timeline: 0, position: position(row).unwrap_or_default(), lag: None, cluster: None })
}

/// Reads `domain-server-sequence` from the second column. A server nothing was ever written to has none.
pub(super) fn position(row: &[Option<String>]) -> Option<Position> {
    let text = row.get(1)?.as_deref()?;
    if text.is_empty() {
        return Some(Position::default());
    }
    let mut parts = text.split('-');
    let (_domain, _server, sequence) = (parts.next()?, parts.next()?, parts.next()?);
    sequence.parse().ok().filter(|_| parts.next().is_none()).map(Position)
}

/// `explain`'s table: MySQL has a column more than MariaDB before the type.
pub(super) fn full_scans(plan: &[Vec<Option<String>>], limited: bool) -> Vec<String> {
    let full = |row: &&Vec<Option<String>>| {
        let column = |n: usize| row.get(n + usize::from(row.len() > 10)).and_then(Option::as_deref);
        match column(3) {
            // The table inserted into is listed as read.
            _ if row.get(1).is_some_and(|kind| kind.as_deref() == Some("INSERT")) => false,
            Some("ALL") => column(4).is_none(),
            Some("index") => !limited,
            _ => false,
        }
    };
    // Derived and temporary tables are written `<derived2>`.
    let tables = plan.iter().filter(full).filter_map(|row| row.get(2)?.clone());
    tables.filter(|table| !table.starts_with('<')).collect()
}

pub(super) fn greeting(lock: Duration) -> String {
    format!("set innodb_lock_wait_timeout = {}", lock.as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_where_they_are_an_order() {
        let row = |gtid: &str| [Some("OFF".to_owned()), Some(gtid.to_owned())];
        assert_eq!(position(&row("0-1-57")), Some(Position(57)));
        assert_eq!(position(&row("")), Some(Position(0)));
        for unknown in ["0-1-57,1-1-9", "0-1", "x", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-77"] {
            assert_eq!(position(&row(unknown)), None, "{unknown}");
        }
        assert_eq!(position(&[Some("0".to_owned())]), None, "MySQL");
        assert_eq!(read(&row("0-1-57")).unwrap().role, Role::Primary);
    }
}
