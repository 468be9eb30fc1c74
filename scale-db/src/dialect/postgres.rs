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

/// Sequential scans, and index scans without a condition unless a limit ends them early. The plan is one text per line, nodes begin with
/// `->`, what is said of a node stands below it, deeper.
pub(super) fn full_scans(plan: &[Vec<Option<String>>]) -> Vec<String> {
    let lines: Vec<_> = plan.iter().filter_map(|row| row.first()?.as_deref()).collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let node = |n: usize| if n == 0 { Some(lines[n]) } else { lines[n].trim_start().strip_prefix("->  ") };
    let mut parents: Vec<(usize, bool)> = Vec::new();
    let mut found = Vec::new();
    for n in 0..lines.len() {
        let Some(what) = node(n) else { continue };
        parents.retain(|(at, _)| *at < depth(lines[n]) || (*at == 0 && n > 0));
        let limited = parents.iter().any(|(_, limit)| *limit);
        let said = || lines[n + 1..].iter().take_while(|line| !line.trim_start().starts_with("->")).map(|line| line.trim_start());
        let whole = if what.starts_with("Seq Scan on ") || what.starts_with("Parallel Seq Scan on ") {
            true
        } else if what.contains("Index Scan using ") || what.contains("Index Only Scan using ") {
            let filtered = said().any(|s| s.starts_with("Filter:"));
            !said().any(|s| s.starts_with("Index Cond:")) && (filtered || !limited)
        } else {
            false
        };
        if whole && let Some((_, table)) = what.split_once(" on ") {
            found.push(table.split("  ").next().unwrap_or(table).split(' ').next().unwrap_or(table).trim_matches('"').to_owned());
        }
        parents.push((depth(lines[n]), what.starts_with("Limit")));
    }
    found
}

pub(super) fn greeting(statement: Duration, lock: Duration) -> String {
    format!("set statement_timeout = {}; set lock_timeout = {}", statement.as_millis(), lock.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_scans_are_told_from_pages_and_look_ups() {
        let scans = |plan: &str| full_scans(&plan.lines().map(|l| vec![Some(l.to_owned())]).collect::<Vec<_>>());
        assert_eq!(scans("Seq Scan on items\n  Filter: (note = $1)"), ["items"]);
        assert_eq!(scans("Index Scan using items_pkey on items\n  Index Cond: (id = $1)\n  Filter: (n > 1)"), [""; 0]);
        assert_eq!(scans("Index Scan using items_pkey on items i\n  Filter: (note = $1)"), ["items"]);
        assert_eq!(scans("Limit\n  ->  Index Scan using items_pkey on items"), [""; 0], "a first page");
        assert_eq!(scans("Limit\n  ->  Index Scan using items_pkey on items\n        Filter: (n = $1)"), ["items"]);
        let join =
            "Nested Loop\n  ->  Limit\n        ->  Index Only Scan using a_pkey on a\n  ->  Index Only Scan using b_pkey on b";
        assert_eq!(scans(join), ["b"], "the limit is another branch's");
        assert_eq!(scans("Result"), [""; 0]);
        assert_eq!(scans(""), [""; 0]);
    }

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
