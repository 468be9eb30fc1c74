//! MariaDB 10.6 or newer, and MySQL 8.
//!
//! Both report the transactions of a server as GTIDs. On MariaDB, writes are ordered within one
//! replication domain; with several domains a write's position is unknown, and sticky reads stay on
//! the primary. A server that takes writes and is configured to follow another one is a replica;
//! while its replication is stopped, only a role with access to the replication status can tell. A
//! MySQL server without GTIDs (`gtid_mode = off`) only reports its lag by its own clock
//! (`Seconds_Behind_Source`), to a role with `replication client`.

use std::time::Duration;

use super::Probe;
use crate::cluster::role::Role;
use crate::log::{Gtids, Log, Stream};
use crate::position::Position;

/// Only MariaDB executes `/*M! */`, and only MySQL executes `/*!80000 */`. A server with a running
/// replication thread is a replica even if it takes writes.
pub(super) const PROBES: [&str; 2] = [
    "select concat(@@global.read_only, '/', @@global.innodb_read_only) \
     /*M! , cast(@@global.gtid_current_pos as char), cast(@@global.gtid_binlog_state as char), \
     cast(@@global.server_id as char), \
       (select cast(variable_value as char) from information_schema.global_status \
       where variable_name = 'SLAVE_RUNNING') */ \
     /*!80000 , cast(@@global.gtid_executed as char), cast(@@global.server_uuid as char) */ \
     , concat(@@hostname, ':', @@port, ' ', @@global.server_id)",
    "select concat(@@global.read_only, '/', @@global.innodb_read_only)",
];

/// Statements that show whether a server is configured to follow another one, running or not:
/// MariaDB's, then MySQL's. They require `replica monitor` or `replication client`.
pub(super) const FOLLOWS: [&str; 2] = ["show all slaves status", "show replica status"];

/// Statements that show the lag of a replica without GTIDs, by version of the server.
pub(super) const LAGS: [&str; 2] = ["show replica status", "show slave status"];

/// Names of the column with the lag in seconds.
pub(super) const LAG_COLUMNS: [&str; 2] = ["Seconds_Behind_Source", "Seconds_Behind_Master"];

pub(super) fn read(row: &[Option<String>]) -> Option<Probe> {
    let text = |n: usize| row.get(n).and_then(Option::as_deref);
    let writable = text(0)?.split('/').all(|flag| ["0", "OFF"].contains(&flag));
    let follows = text(4) == Some("ON");
    let role = if writable && !follows { Role::Primary } else { Role::Replica };
    let log = match row.len() {
        6 => mariadb(
            text(1).unwrap_or_default(),
            text(2).unwrap_or_default(),
            text(3)?.parse().ok()?,
        )?,
        4 => mysql(text(1).unwrap_or_default(), uuid(text(2)?)?)?,
        _ => Log::Unknown,
    };
    Some(Probe {
        role,
        log,
        started: text(row.len() - 1).filter(|_| row.len() > 1).map(str::to_owned),
        ..Probe::default()
    })
}

/// Parses lists of `domain-server-sequence`: the last GTID of each domain, and the last of each
/// server in each domain.
fn mariadb(current: &str, binlog: &str, own: u128) -> Option<Log> {
    let read = |list: &str| {
        let parse = |gtid: &str| {
            let mut parts = gtid.trim().split('-');
            let gtid = (
                parts.next()?.parse().ok()?,
                parts.next()?.parse().ok()?,
                parts.next()?.parse().ok()?,
            );
            parts.next().is_none().then_some(gtid)
        };
        list.split(',')
            .filter(|gtid| !gtid.trim().is_empty())
            .map(parse)
            .collect::<Option<Vec<(u32, u128, u64)>>>()
    };
    let current = read(current)?;
    let mut streams: Vec<Stream> = Vec::new();
    for (domain, origin, last) in read(binlog)?.into_iter().chain(current.iter().copied()) {
        match streams.iter_mut().find(|s| s.domain == domain && s.origin == origin) {
            Some(stream) => stream.ranges[0].1 = stream.ranges[0].1.max(last),
            None => streams.push(Stream { domain, origin, ranges: vec![(1, last)] }),
        }
    }
    let last = match current.as_slice() {
        [] => Some(Position::default()),
        [(domain, origin, sequence)] => {
            Some(Position { era: u64::from(*domain), sequence: *sequence, origin: *origin })
        }
        _ => None,
    };
    Some(Log::Gtids(Gtids { own, last, streams }))
}

/// Parses `uuid:1-5:7,uuid:tag:1-3`. Without GTIDs the list is always empty.
fn mysql(executed: &str, own: u128) -> Option<Log> {
    if executed.trim().is_empty() {
        return Some(Log::Unknown);
    }
    let mut streams: Vec<Stream> = Vec::new();
    for set in executed.split(',') {
        let mut parts = set.trim().split(':');
        let origin = uuid(parts.next()?)?;
        let mut domain = 0;
        for part in parts {
            if part.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
                domain = xxhash_rust::xxh3::xxh3_64(part.as_bytes()) as u32;
                continue;
            }
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = (first.parse().ok()?, last.parse().ok()?);
            match streams.iter_mut().find(|s| s.domain == domain && s.origin == origin) {
                Some(stream) => stream.ranges.push(range),
                None => streams.push(Stream { domain, origin, ranges: vec![range] }),
            }
        }
    }
    // The total number of transactions grows along a succession of primaries, as does the sequence
    // number of each of them.
    let all: u64 = streams
        .iter()
        .flat_map(|s| &s.ranges)
        .map(|(first, last)| last.saturating_sub(*first).saturating_add(1))
        .sum();
    let written =
        streams.iter().find(|s| s.origin == own && s.domain == 0).and_then(|s| s.ranges.last());
    let last = written.map(|(_, last)| Position { era: all, sequence: *last, origin: own });
    Some(Log::Gtids(Gtids { own, last, streams }))
}

fn uuid(text: &str) -> Option<u128> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())?
}

/// Reads the table of `explain`: MySQL has one more column than MariaDB before the type.
pub(super) fn full_scans(plan: &[Vec<Option<String>>], limited: bool) -> Vec<String> {
    let full = |row: &&Vec<Option<String>>| {
        let column = |n: usize| row.get(n + usize::from(row.len() > 10)).and_then(Option::as_deref);
        match column(3) {
            // The table of an insert is listed as if it were read.
            _ if row.get(1).is_some_and(|kind| kind.as_deref() == Some("INSERT")) => false,
            Some("ALL") => column(4).is_none(),
            Some("index") => !limited,
            _ => false,
        }
    };
    // Derived and temporary tables are written as `<derived2>`.
    let tables = plan.iter().filter(full).filter_map(|row| row.get(2)?.clone());
    tables.filter(|table| !table.starts_with('<')).collect()
}

/// `max_statement_time` is of MariaDB, and ends any statement; `max_execution_time` is of MySQL,
/// and ends reads only.
pub(super) fn greeting(statement: Duration, lock: Duration) -> String {
    format!(
        "set innodb_lock_wait_timeout = {} /*M! , max_statement_time = {} */ /*!80000 , \
         max_execution_time = {} */",
        lock.as_secs().max(1),
        statement.as_secs_f64(),
        statement.as_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(row: &[&str]) -> Vec<Option<String>> {
        row.iter().map(|text| Some((*text).to_owned())).collect()
    }

    fn maria(current: &str, binlog: &str) -> Probe {
        read(&texts(&["0/0", current, binlog, "1", "OFF", "a:1 1"])).unwrap()
    }

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const B: &str = "4e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn mysql_of(own: &str, executed: &str) -> Log {
        read(&texts(&["1/0", executed, own, "a:1 1"])).unwrap().log
    }

    #[test]
    fn roles_are_what_a_server_does() {
        assert_eq!(maria("", "").role, Role::Primary);
        assert_eq!(read(&texts(&["1/0", "", "", "1", "OFF", "a"])).unwrap().role, Role::Replica);
        assert_eq!(
            read(&texts(&["OFF/OFF", "", "", "1", "ON", "a"])).unwrap().role,
            Role::Replica,
            "it follows another"
        );
        assert_eq!(
            read(&texts(&["0/1", "", A, "a"])).unwrap().role,
            Role::Replica,
            "a reader of Aurora's"
        );
        assert_eq!(
            read(&texts(&["0/0"])).unwrap(),
            Probe { role: Role::Primary, ..Probe::default() }
        );
        assert_eq!(read(&[None]), None);
    }

    #[test]
    fn positions_of_mariadb_are_an_order_within_one_domain() {
        assert_eq!(
            maria("0-2-57", "0-1-50,0-2-57").log.position(),
            Some(Position { era: 0, sequence: 57, origin: 2 })
        );
        assert_eq!(maria("", "").log.position(), Some(Position::default()));
        let two = maria("0-1-57,1-1-9", "0-1-57,1-1-9").log;
        assert_eq!(two.position(), None);
        assert_eq!(two.has_all_of(&maria("0-1-57,1-1-8", "").log), Some(true));
        assert_eq!(two.has_all_of(&maria("0-1-57,1-1-10", "").log), Some(false));
        for bad in ["0-1", "x", "0-1-2-3"] {
            assert_eq!(read(&texts(&["0/0", bad, "", "1", "OFF", "a"])), None, "{bad}");
        }
    }

    /// Answers as from MySQL 8; the sets are those of its manual.
    #[test]
    fn positions_of_mysql_are_sets() {
        let primary = mysql_of(A, &format!("{A}:1-77"));
        let write = primary.position().unwrap();
        assert!(mysql_of(B, &format!("{A}:1-77")).shows(write));
        assert!(!mysql_of(B, &format!("{A}:1-76")).shows(write));
        assert!(!mysql_of(B, &format!("{A}:1-70:72-90")).shows(write), "a gap");
        assert_eq!(mysql_of(B, &format!("{A}:1-76")).has_all_of(&primary), Some(false));
        assert_eq!(mysql_of(B, &format!("{A}:1-80,\n{B}:1-3")).has_all_of(&primary), Some(true));
        let after = mysql_of(B, &format!("{A}:1-77,{B}:1"));
        assert!(after.position().unwrap() > write && after.succeeds(&primary));
        assert_eq!(mysql_of(A, "").position(), None, "without GTIDs");
        assert_eq!(
            mysql_of(B, &format!("{A}:1-5")).position(),
            None,
            "it has written nothing itself"
        );
        assert!(matches!(
            mysql_of(A, &format!("{A}:1-5:tag:1-3")), Log::Gtids(g) if g.streams.len() == 2,
        ));
        assert_eq!(read(&texts(&["0/0", "nonsense", A, "a"])), None);
    }

    /// Columns of `show replica status` and of `show slave status`, as their manuals list them.
    #[test]
    fn without_gtids_the_server_s_own_lag_counts() {
        let row = |name: &str, lag: Option<&str>| {
            vec![
                ("Replica_IO_State".to_owned(), Some("Waiting".to_owned())),
                (name.to_owned(), lag.map(str::to_owned)),
            ]
        };
        let read = |row: &[(String, Option<String>)]| crate::Dialect::read_lag(row);
        assert_eq!(read(&row("Seconds_Behind_Source", Some("7"))), Some(Duration::from_secs(7)));
        assert_eq!(read(&row("Seconds_Behind_Master", Some("0"))), Some(Duration::ZERO));
        assert_eq!(read(&row("Seconds_Behind_Source", None)), None, "it does not follow");
        assert_eq!(read(&[]), None);
    }
}
