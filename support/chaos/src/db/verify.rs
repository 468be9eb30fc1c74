//! Compares the journals of the processes with the rows of the last primary.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use anyhow::Result;

use super::cluster::{Cluster, Counts};
use super::journal::Entry;
use super::{INTERVAL, LAG};

/// Time after a promotion during which a process may still write to the previous primary: one probe
/// round, which waits a second for silent nodes, and delays of processes on a busy machine.
const LIMIT: Duration = Duration::from_millis(3_200);
/// Longest allowed time of a failure: the statement timeout, its grace, the waits for a connection
/// and for a primary, and the mark's round trip.
const LONGEST: Duration = Duration::from_secs(20);

/// Counts of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Rows that were written.
    pub written: usize,
    /// Reads with a mark.
    pub marked: usize,
    /// Reads without a mark.
    pub plain: usize,
    /// Statements that failed.
    pub failed: usize,
    /// Rows that a failover lost: their primary had not sent them to a replica.
    pub lost: usize,
    /// Reads with the mark of an existing row that did not see the row.
    pub unseen: usize,
    /// Rows written to a stale primary, later than the limit.
    pub strayed: usize,
    /// Reads of a replica with more lag than allowed.
    pub stale: usize,
    /// Statements that failed later than any timeout.
    pub hung: usize,
    counts: Counts,
}

impl Outcome {
    /// Head of the table.
    pub const HEAD: &'static str = "promotions  leftovers  others   written   marked    plain   \
        failed   lost | unseen strayed stale hung";

    /// Returns how many promises were broken.
    pub fn broken(&self) -> usize {
        self.unseen + self.strayed + self.stale + self.hung
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { promotions, leftovers, others } = self.counts;
        write!(
            f,
            "{promotions:>10} {leftovers:>10} {others:>7} {:>9} {:>8} {:>8} {:>8} {:>6} | {:>6} \
             {:>7} {:>5} {:>4}",
            self.written,
            self.marked,
            self.plain,
            self.failed,
            self.lost,
            self.unseen,
            self.strayed,
            self.stale,
            self.hung
        )
    }
}

pub(super) async fn verify(cluster: &Cluster) -> Result<Outcome> {
    let ids = cluster.pg.node(cluster.primary).sql("select id from writes").await?;
    let there: HashSet<u64> = ids.lines().filter_map(|id| id.parse().ok()).collect();
    let journals = cluster.journals()?;
    let us = |time: Duration| time.as_micros() as u64;
    // The primary that everybody knows by then, and those that were promoted since, or are being
    // promoted.
    let may_write = |began: u64, ended: u64| {
        let known =
            cluster.promotions.iter().rposition(|p| p.at + us(LIMIT) <= began).unwrap_or_default();
        cluster.promotions[known..]
            .iter()
            .take_while(move |p| p.at <= ended + us(LIMIT))
            .map(|p| p.port)
    };
    let is_cut_off = |process: usize, from: u64, to: u64| {
        let from = from.saturating_sub(us(LIMIT));
        cluster
            .cuts
            .iter()
            .any(|cut| cut.process == process && cut.from < to && cut.to + us(LIMIT) > from)
    };
    // Rows that are there, by when they were known to be.
    let mut known: Vec<(u64, u64)> = Vec::new();
    for entry in journals.iter().flatten() {
        if let Entry::Wrote { id, ended, .. } = entry
            && there.contains(id)
        {
            known.push((*ended, *id));
        }
    }
    known.sort_unstable();
    let mut newest = 0;
    for (_, id) in &mut known {
        newest = newest.max(*id);
        *id = newest;
    }
    let mut outcome = Outcome { counts: cluster.counts, ..Outcome::default() };
    for (process, journal) in journals.iter().enumerate() {
        for entry in journal {
            match entry {
                Entry::Wrote { id, began, ended, port, .. } => {
                    outcome.written += 1;
                    if !there.contains(id) {
                        let astray = !may_write(*began, *ended).any(|of| of == *port)
                            && !is_cut_off(process, *began, *ended);
                        if astray {
                            tell(format_args!(
                                "process {process} wrote {id} to {port}, till {ended}"
                            ));
                            outcome.strayed += 1;
                        } else {
                            outcome.lost += 1;
                        }
                    }
                }
                Entry::Read { id, began, found, port } => {
                    outcome.marked += 1;
                    if *found == 0 && there.contains(id) {
                        let written = journals
                            .iter()
                            .flatten()
                            .find(|entry| matches!(entry, Entry::Wrote { id: of, .. } if of == id));
                        tell(format_args!(
                            "process {process} did not see {written:?} at {began}, on {port}"
                        ));
                        outcome.unseen += 1;
                    }
                }
                Entry::Newest { began, id } => {
                    outcome.plain += 1;
                    let before = began.saturating_sub(us(LAG + INTERVAL + LIMIT));
                    let must = known
                        .partition_point(|(ended, _)| *ended < before)
                        .checked_sub(1)
                        .map(|at| known[at].1);
                    if must.is_some_and(|must| *id < must) && !is_cut_off(process, *began, *began) {
                        tell(format_args!("process {process} saw {id}, not {must:?}, at {began}"));
                        outcome.stale += 1;
                    }
                }
                Entry::Failed { began, ended, what } => {
                    outcome.failed += 1;
                    if ended - began > us(LONGEST) {
                        tell(format_args!(
                            "process {process} waited {} s for: {what}",
                            (ended - began) / 1_000_000
                        ));
                        outcome.hung += 1;
                    }
                }
            }
        }
    }
    Ok(outcome)
}

/// Prints details of a violation.
#[expect(clippy::print_stderr, reason = "a run that has failed says why")]
fn tell(what: fmt::Arguments<'_>) {
    eprintln!("{what}");
}
