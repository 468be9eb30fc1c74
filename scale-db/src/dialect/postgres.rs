//! PostgreSQL 12 and newer, and services that speak its protocol.
//!
//! A node is probed with the first of these statements that it answers:
//!
//! | statement | reads | not answered |
//! | --- | --- | --- |
//! | 0 | role, LSN, timeline, cluster | without permission to call `pg_control_*` |
//! | 1 | role, LSN, and timeline as visible to members of `pg_monitor` | by Amazon Aurora |
//! | 2 | role, lag as measured by Aurora | by other systems |
//! | 3 | role only | |
//!
//! The timeline of a replica is the higher one of two: that of the stream it receives (visible to
//! members of `pg_monitor` only) and that of its last restart point.

use std::time::Duration;

use super::Probe;
use crate::cluster::role::Role;
use crate::log::Log;

/// Columns: role, LSN, timeline, cluster, start of the server, lag in milliseconds.
pub(super) const PROBES: [&str; 4] = [
    "select pg_is_in_recovery()::text, \
     case when pg_is_in_recovery() then coalesce(pg_last_wal_replay_lsn(), '0/0') \
     else pg_current_wal_insert_lsn() end::text, \
     case when pg_is_in_recovery() then greatest( \
         (select received_tli from pg_stat_wal_receiver), (select timeline_id \
         from pg_control_checkpoint())) \
     else ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int \
     end::text, \
     (select system_identifier from pg_control_system())::text, pg_postmaster_start_time()::text, \
     null::text",
    "select pg_is_in_recovery()::text, \
     case when pg_is_in_recovery() then coalesce(pg_last_wal_replay_lsn(), '0/0') \
     else pg_current_wal_insert_lsn() end::text, \
     case when pg_is_in_recovery() then (select received_tli from pg_stat_wal_receiver) \
     else ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int \
     end::text, \
     null::text, pg_postmaster_start_time()::text, null::text",
    "select pg_is_in_recovery()::text, null::text, null::text, null::text, null::text, \
     (select ceil(replica_lag_in_msec)::bigint from aurora_replica_status() \
     where server_id = aurora_db_instance_identifier())::text",
    "select pg_is_in_recovery()::text, null::text, null::text, null::text, null::text, null::text",
];

pub(super) fn read(row: &[Option<String>]) -> Option<Probe> {
    let [in_recovery, lsn, timeline, cluster, started, lag] = row else { return None };
    let role = match in_recovery.as_deref()? {
        "true" | "t" => Role::Replica,
        _ => Role::Primary,
    };
    let log = match lsn {
        Some(lsn) => Log::Wal {
            timeline: timeline.as_deref().and_then(|t| t.parse().ok()).unwrap_or(0),
            lsn: without_header(lsn_of(lsn)?),
        },
        None => Log::Unknown,
    };
    let lag = lag.as_deref().and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
    Some(Probe { role, log, lag, cluster: cluster.clone(), started: started.clone() })
}

/// Parses `16/B374D848`.
fn lsn_of(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(
        (u64::from(u32::from_str_radix(high, 16).ok()?) << 32)
            | u64::from(u32::from_str_radix(low, 16).ok()?),
    )
}

/// Returns the start of a WAL page for a position right after the page's header (24 bytes, or 40 at
/// the start of a file), because nothing was written in between. A primary that has switched to a
/// new file reports the latter, a replica that has replayed everything the former.
fn without_header(lsn: u64) -> u64 {
    const PAGE: u64 = 8_192;
    if [24, 40].contains(&(lsn % PAGE)) { lsn - lsn % PAGE } else { lsn }
}
/// Finds sequential scans, and index scans without a condition that no limit ends early. The plan
/// has one line per row; nodes begin with `->`, and details of a node are indented below it.
pub(super) fn full_scans(plan: &[Vec<Option<String>>]) -> Vec<String> {
    let lines: Vec<_> = plan.iter().filter_map(|row| row.first()?.as_deref()).collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let node =
        |n: usize| if n == 0 { Some(lines[n]) } else { lines[n].trim_start().strip_prefix("->  ") };
    let mut parents: Vec<(usize, bool)> = Vec::new();
    let mut found = Vec::new();
    for n in 0..lines.len() {
        let Some(what) = node(n) else { continue };
        parents.retain(|(at, _)| *at < depth(lines[n]) || (*at == 0 && n > 0));
        let limited = parents.iter().any(|(_, limit)| *limit);
        let said = || {
            lines[n + 1..]
                .iter()
                .take_while(|line| !line.trim_start().starts_with("->"))
                .map(|line| line.trim_start())
        };
        let whole = if what.starts_with("Seq Scan on ") || what.starts_with("Parallel Seq Scan on ")
        {
            true
        } else if what.contains("Index Scan using ") || what.contains("Index Only Scan using ") {
            let filtered = said().any(|s| s.starts_with("Filter:"));
            !said().any(|s| s.starts_with("Index Cond:")) && (filtered || !limited)
        } else {
            false
        };
        if whole && let Some((_, table)) = what.split_once(" on ") {
            found.push(
                table
                    .split("  ")
                    .next()
                    .unwrap_or(table)
                    .split(' ')
                    .next()
                    .unwrap_or(table)
                    .trim_matches('"')
                    .to_owned(),
            );
        }
        parents.push((depth(lines[n]), what.starts_with("Limit")));
    }
    found
}

pub(super) fn greeting(statement: Duration, lock: Duration) -> String {
    format!(
        "set statement_timeout = {}; set lock_timeout = {}",
        statement.as_millis(),
        lock.as_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Position;

    #[test]
    fn full_scans_are_told_from_pages_and_look_ups() {
        let scans = |plan: &str| {
            full_scans(&plan.lines().map(|l| vec![Some(l.to_owned())]).collect::<Vec<_>>())
        };
        assert_eq!(scans("Seq Scan on items\n  Filter: (note = $1)"), ["items"]);
        assert_eq!(
            scans(
                "Index Scan using items_pkey on items\n  Index Cond: (id = $1)\n  Filter: (n > 1)"
            ),
            [""; 0]
        );
        assert_eq!(
            scans("Index Scan using items_pkey on items i\n  Filter: (note = $1)"),
            ["items"]
        );
        assert_eq!(
            scans("Limit\n  ->  Index Scan using items_pkey on items"),
            [""; 0],
            "a first page"
        );
        assert_eq!(
            scans("Limit\n  ->  Index Scan using items_pkey on items\n        Filter: (n = $1)"),
            ["items"]
        );
        let join = "Nested Loop\n  ->  Limit\n        ->  Index Only Scan using a_pkey \
            on a\n  ->  Index Only Scan using b_pkey on b";
        assert_eq!(scans(join), ["b"], "the limit is another branch's");
        assert_eq!(scans("Result"), [""; 0]);
        assert_eq!(scans(""), [""; 0]);
    }

    #[test]
    fn answers_of_both_roles_and_of_services_are_read() {
        let text = |s: &str| Some(s.to_owned());
        let primary =
            read(&[text("false"), text("1/A0"), text("12"), text("77"), text("2026"), None])
                .unwrap();
        assert_eq!((primary.role, primary.timeline()), (Role::Primary, 12));
        assert_eq!(
            primary.log.position(),
            Some(Position { era: 12, sequence: 0x1_0000_00A0, origin: 0 })
        );
        let replica = read(&[text("true"), text("0/10"), None, None, None, None]).unwrap();
        assert_eq!((replica.role, replica.timeline(), replica.cluster), (Role::Replica, 0, None));
        let aurora = read(&[text("true"), None, None, None, None, text("17")]).unwrap();
        assert_eq!((aurora.log, aurora.lag), (Log::Unknown, Some(Duration::from_millis(17))));
        assert_eq!(read(&[None, None, None, None, None, None]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_page_s_header_is_no_write() {
        assert_eq!(without_header(0x500_0028), 0x500_0000);
        assert_eq!(without_header(0x500_2018), 0x500_2000);
        assert_eq!(without_header(0x500_0029), 0x500_0029);
    }
}
