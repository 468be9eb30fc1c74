//! Logs of nodes: the transactions that a node has written or replayed, and comparisons between
//! nodes. Pure: no I/O.
//!
//! | question | Postgres | MariaDB, MySQL |
//! | --- | --- | --- |
//! | does this node show a given write? | its (timeline, LSN) is at or past the write's | it has the transactions of the writing server up to it |
//! | does this node have all that another node has? | as above | each GTID range of the other lies within one of its own |
//! | does this replica share the primary's history? | their timelines are equal | the primary has everything that other servers wrote |
//! | does this node know the writer of a position? | its timeline is no older | it has some transaction of that server |

use crate::position::Position;

/// Log of a node: the transactions that it has written or replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Log {
    /// The node reports none.
    #[default]
    Unknown,
    /// Every reader sees every commit.
    Shared,
    /// Postgres. Timeline 0: the node does not report it.
    Wal {
        timeline: u64,
        lsn: u64,
    },
    Gtids(Gtids),
}

/// Transactions of a MariaDB or MySQL server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gtids {
    /// Id of the server itself.
    pub(crate) own: u128,
    /// Last write, if writes are ordered on this server.
    pub(crate) last: Option<Position>,
    pub(crate) streams: Vec<Stream>,
}

/// Transactions of one server in one domain (MariaDB) or of one tag (MySQL).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) domain: u32,
    pub(crate) origin: u128,
    /// First and last sequence number of each range, in order.
    pub(crate) ranges: Vec<(u64, u64)>,
}

/// Result of comparing a replica's history with the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lineage {
    /// As far as known, the replica has nothing that the primary lacks.
    Same,
    /// The replica follows another primary, or followed one beyond the failover.
    Other,
}

impl Log {
    /// Returns the position of the last write; `None` if writes are not ordered.
    pub(crate) fn position(&self) -> Option<Position> {
        match self {
            Self::Unknown => None,
            Self::Shared => Some(Position::default()),
            Self::Wal { timeline, lsn } => {
                Some(Position { era: *timeline, sequence: *lsn, origin: 0 })
            }
            Self::Gtids(gtids) => gtids.last,
        }
    }

    /// Returns whether a node with this log shows the write at a position.
    pub(crate) fn shows(&self, write: Position) -> bool {
        match self {
            Self::Unknown => false,
            Self::Shared => true,
            _ if write == Position::default() => true,
            Self::Wal { timeline, lsn } if *timeline == 0 || write.era == 0 => {
                *lsn >= write.sequence
            }
            Self::Wal { timeline, lsn } => (*timeline, *lsn) >= (write.era, write.sequence),
            Self::Gtids(gtids) => gtids.shows(write),
        }
    }

    /// Returns whether this node or its history knows the server that wrote at a position. If not,
    /// there may be a primary that is newer than this node.
    pub(crate) fn knows(&self, write: Position) -> bool {
        match self {
            Self::Unknown | Self::Shared => true,
            Self::Wal { timeline, .. } => *timeline == 0 || *timeline >= write.era,
            Self::Gtids(gtids) => {
                gtids.own == write.origin || gtids.streams.iter().any(|s| s.origin == write.origin)
            }
        }
    }

    /// Returns whether this node has all that another one had; `None` if unknown.
    pub(crate) fn has_all_of(&self, other: &Self) -> Option<bool> {
        match (self, other) {
            (Self::Shared, _) | (_, Self::Shared) => Some(true),
            (Self::Wal { .. }, Self::Wal { .. }) => Some(self.shows(other.position()?)),
            (Self::Gtids(mine), Self::Gtids(theirs)) => {
                Some(theirs.streams.iter().all(|stream| mine.has(stream)))
            }
            _ => None,
        }
    }

    /// Compares the history of a replica with this log with the primary's. Both were probed at
    /// about the same time.
    pub(crate) fn lineage(&self, primary: &Self) -> Lineage {
        let same = match (self, primary) {
            (Self::Wal { timeline: mine, .. }, Self::Wal { timeline: theirs, .. }) => {
                *mine == 0 || *theirs == 0 || mine == theirs
            }
            (Self::Gtids(mine), Self::Gtids(theirs)) => mine.streams.iter().all(|stream| {
                // The primary keeps writing while the replica is probed.
                stream.origin == theirs.own
                    || theirs.has(stream)
                    // No other node has these transactions: they were written by hand on this
                    // replica.
                    || stream.origin == mine.own && !theirs.streams.iter()
                        .any(|s| s.origin == mine.own)
            }),
            _ => true,
        };
        if same { Lineage::Same } else { Lineage::Other }
    }

    /// Returns whether this node, which takes writes, took over from another one that still takes
    /// writes.
    pub(crate) fn succeeds(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Wal { timeline: mine, .. }, Self::Wal { timeline: theirs, .. }) => {
                *theirs != 0 && mine > theirs
            }
            (Self::Gtids(mine), Self::Gtids(theirs)) => {
                let wrote =
                    |log: &Gtids, server: u128| log.streams.iter().any(|s| s.origin == server);
                wrote(mine, mine.own) && wrote(mine, theirs.own) && !wrote(theirs, mine.own)
            }
            _ => false,
        }
    }
}

impl Gtids {
    fn shows(&self, write: Position) -> bool {
        if self.last.is_some_and(|last| last.origin == write.origin && last >= write) {
            return true;
        }
        let stream = |s: &&Stream| s.origin == write.origin;
        // After a gap, a sequence number says nothing about those before it.
        self.streams.iter().filter(stream).any(|s| {
            s.ranges.first().is_some_and(|(first, last)| *first <= 1 && *last >= write.sequence)
        })
    }

    fn has(&self, other: &Stream) -> bool {
        let stream =
            self.streams.iter().find(|s| s.origin == other.origin && s.domain == other.domain);
        let within = |(first, last): &(u64, u64)| {
            stream.is_some_and(|s| s.ranges.iter().any(|(from, to)| from <= first && last <= to))
        };
        other.ranges.iter().all(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wal(timeline: u64, lsn: u64) -> Log {
        Log::Wal { timeline, lsn }
    }

    /// Returns the log of a MariaDB server: the last write of each server; the last entry is the
    /// last write.
    fn maria(own: u128, ends: &[(u128, u64)]) -> Log {
        let streams = ends
            .iter()
            .map(|(origin, end)| Stream { domain: 0, origin: *origin, ranges: vec![(1, *end)] })
            .collect();
        let last =
            ends.last().map(|(origin, end)| Position { era: 0, sequence: *end, origin: *origin });
        Log::Gtids(Gtids { own, last, streams })
    }

    #[test]
    fn a_later_timeline_shows_what_was_left_of_the_earlier_one() {
        let write = wal(1, 500).position().unwrap();
        assert!(wal(1, 500).shows(write) && !wal(1, 499).shows(write));
        assert!(wal(2, 300).shows(write), "what of it was lost will never be seen");
        assert!(
            !wal(1, 900).shows(wal(2, 450).position().unwrap()),
            "a leftover is ahead and shows nothing of it"
        );
        assert!(wal(0, 500).shows(write), "without timelines the LSN decides");
        assert!(wal(2, 1).knows(write) && !wal(1, 900).knows(wal(2, 1).position().unwrap()));
    }

    #[test]
    fn a_replica_of_a_leftover_is_of_another_lineage() {
        assert_eq!(wal(1, 900).lineage(&wal(2, 450)), Lineage::Other);
        assert_eq!(wal(2, 400).lineage(&wal(2, 450)), Lineage::Same);
        assert_eq!(
            wal(3, 400).lineage(&wal(2, 450)),
            Lineage::Other,
            "it knows a newer primary than we do"
        );
        let primary = maria(2, &[(1, 430), (2, 450)]);
        assert_eq!(maria(3, &[(1, 430), (2, 445)]).lineage(&primary), Lineage::Same);
        assert_eq!(
            maria(3, &[(1, 430), (2, 460)]).lineage(&primary),
            Lineage::Same,
            "asked a little later"
        );
        assert_eq!(
            maria(3, &[(1, 400)]).lineage(&primary),
            Lineage::Same,
            "late, and nothing else"
        );
        assert_eq!(
            maria(3, &[(1, 431)]).lineage(&primary),
            Lineage::Other,
            "a follower of server 1"
        );
        assert_eq!(
            maria(3, &[(9, 1)]).lineage(&primary),
            Lineage::Other,
            "a follower of a stranger"
        );
        assert_eq!(
            maria(3, &[(1, 430), (3, 1)]).lineage(&primary),
            Lineage::Same,
            "written on the replica by hand"
        );
        assert_eq!(
            maria(1, &[(1, 435), (2, 450)]).lineage(&primary),
            Lineage::Other,
            "a primary with lost writes"
        );
    }

    #[test]
    fn a_write_is_shown_by_whoever_has_its_server_s_transactions() {
        let write = Position { era: 0, sequence: 440, origin: 2 };
        assert!(maria(3, &[(1, 430), (2, 440)]).shows(write));
        assert!(!maria(3, &[(1, 430), (2, 439)]).shows(write));
        assert!(!maria(1, &[(1, 900)]).shows(write), "the sequence number alone does not tell");
        assert!(!maria(1, &[(1, 900)]).knows(write) && maria(2, &[(1, 430)]).knows(write));
        let gap = Gtids {
            own: 3,
            last: None,
            streams: vec![Stream { domain: 0, origin: 2, ranges: vec![(1, 400), (402, 450)] }],
        };
        assert!(!Log::Gtids(gap).shows(write), "401 is missing");
    }

    #[test]
    fn a_successor_has_the_past_of_whom_it_succeeds() {
        assert!(wal(2, 10).succeeds(&wal(1, 900)) && !wal(1, 900).succeeds(&wal(2, 10)));
        assert!(!wal(2, 10).succeeds(&wal(2, 5)), "both were promoted");
        let (old, new) = (maria(1, &[(1, 440)]), maria(2, &[(1, 430), (2, 431)]));
        assert!(new.succeeds(&old) && !old.succeeds(&new));
        assert!(!maria(2, &[(1, 430)]).succeeds(&old), "it has written nothing yet");
    }

    #[test]
    fn all_of_another_log_is_told_by_ranges() {
        assert_eq!(wal(1, 9).has_all_of(&wal(1, 9)), Some(true));
        assert_eq!(wal(1, 8).has_all_of(&wal(1, 9)), Some(false));
        assert_eq!(
            maria(3, &[(1, 5), (2, 9)]).has_all_of(&maria(2, &[(1, 5), (2, 8)])),
            Some(true)
        );
        assert_eq!(maria(3, &[(2, 9)]).has_all_of(&maria(2, &[(1, 5), (2, 8)])), Some(false));
        assert_eq!(Log::Unknown.has_all_of(&wal(1, 1)), None);
    }
}
