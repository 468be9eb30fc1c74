//! Comparison of the workers' journals with the pushed jobs.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use scale_queue::batch::BatchStatus;

use super::StoreKind;
use super::faults::Counts;
use super::jobs::{BURST, LINKS, PARTS, PERMITS, Pushed, RATE, TICK};
use super::journal::{Line, Notes, What, by_subject};

/// Time that a process has after a stop to end jobs that it may no longer run, in microseconds.
const AFTER_A_STOP: u64 = 500_000;

/// Result of a run. See the README for the columns.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the README's table has them")]
pub struct Outcome {
    pub store: StoreKind,
    pub pushed: usize,
    pub faults: Counts,
    pub lost: usize,
    pub stuck: u64,
    pub repeats: usize,
    pub phantom: usize,
    pub chains: usize,
    pub batches: usize,
    pub limits: usize,
    pub rates: usize,
    pub cron: usize,
}

impl Outcome {
    /// Head of the table.
    pub const HEAD: &str = "store            acknowledged  kills  stops   cuts  restarts \
        |   lost  stuck repeats phantom chains batches limits rates  cron";

    /// Returns how many promises were broken.
    pub fn broken(&self) -> usize {
        let Self { lost, stuck, phantom, chains, batches, limits, rates, cron, .. } = *self;
        lost + stuck as usize + phantom + chains + batches + limits + rates + cron
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            store,
            pushed,
            faults,
            lost,
            stuck,
            repeats,
            phantom,
            chains,
            batches,
            limits,
            rates,
            cron,
        } = self;
        let Counts { kills, stops, cuts, restarts } = faults;
        let store = format!("{store:?}");
        write!(
            f,
            "{store:<16} {pushed:>12} {kills:>6} {stops:>6} {cuts:>6} {restarts:>9} | {lost:>6} \
             {stuck:>6} "
        )?;
        write!(
            f,
            "{repeats:>7} {phantom:>7} {chains:>6} {batches:>7} {limits:>6} {rates:>5} {cron:>5}"
        )
    }
}

pub(super) fn verify(
    store: StoreKind,
    pushed: &Pushed,
    notes: &[Notes],
    batches: &HashMap<u64, Option<BatchStatus>>,
    stuck: u64,
    faults: Counts,
    total: Duration,
) -> Outcome {
    let (mut lost, mut repeats, mut phantom) = (0, 0, 0);
    for kind in ["single", "limited", "paced"] {
        let subjects = by_subject(notes, kind);
        let ends: HashMap<u64, usize> = subjects
            .iter()
            .map(|((a, _), lines)| (*a, lines.iter().filter(|line| line.what == What::End).count()))
            .collect();
        lost += pushed
            .stored
            .keys()
            .filter(|(known, a)| *known == kind && ends.get(a).is_none_or(|ends| *ends == 0))
            .count();
        repeats += ends.values().map(|ends| ends.saturating_sub(1)).sum::<usize>();
        phantom += ends.keys().filter(|a| !pushed.tried.contains(&(kind, **a))).count();
    }
    Outcome {
        store,
        pushed: pushed.stored.len(),
        faults,
        lost,
        stuck,
        repeats,
        phantom,
        chains: broken_chains(pushed, notes),
        batches: broken_batches(notes, batches),
        limits: exceeded_permits(notes),
        rates: exceeded_rates(notes),
        cron: extra_ticks(total, notes),
    }
}

fn ids<'l>(lines: &[&'l Line]) -> HashSet<&'l str> {
    lines.iter().map(|line| line.id.as_str()).collect()
}

/// Counts chains that are not done, in which a job began before the previous one had ended, or in
/// which a job was pushed twice.
fn broken_chains(pushed: &Pushed, notes: &[Notes]) -> usize {
    let links = by_subject(notes, "link");
    let first = |a: u64, b: u64, what: What| {
        links.get(&(a, b))?.iter().find(|line| line.what == what).map(|line| line.at_us)
    };
    let is_broken = |a: u64, stored: bool| {
        (0..LINKS).any(|b| {
            let twice = links.get(&(a, b)).is_some_and(|lines| ids(lines).len() > 1);
            let early = b > 0
                && first(a, b, What::Begin)
                    .is_some_and(|at| first(a, b - 1, What::End).is_none_or(|end| at < end));
            let missing = stored && first(a, b, What::End).is_none();
            twice || early || missing
        })
    };
    let tried = pushed.tried.iter().filter(|(kind, _)| *kind == "link");
    tried.filter(|(_, a)| is_broken(*a, pushed.stored.contains_key(&("link", *a)))).count()
}

/// Counts batches of which not all jobs are done and counted, or without exactly one follow-up job.
fn broken_batches(notes: &[Notes], batches: &HashMap<u64, Option<BatchStatus>>) -> usize {
    let (parts, thens) = (by_subject(notes, "part"), by_subject(notes, "then"));
    let is_broken = |(a, status): (&u64, &Option<BatchStatus>)| {
        let counted =
            status.is_some_and(|status| u64::from(status.done) == PARTS && status.dead == 0);
        let done = (0..PARTS).all(|b| {
            let lines = parts.get(&(*a, b)).map(Vec::as_slice).unwrap_or_default();
            lines.iter().any(|line| line.what == What::End) && ids(lines).len() == 1
        });
        let followed = thens.get(&(*a, 0)).is_some_and(|lines| {
            ids(lines).len() == 1 && lines.iter().any(|line| line.what == What::End)
        });
        !(counted && done && followed)
    };
    batches.iter().filter(|batch| is_broken(*batch)).count()
}

/// Returns the times of each run of a limited job, by key, without the times at which its process
/// was stopped.
fn runs(notes: &Notes) -> Vec<(u64, u64, u64)> {
    let mut open: HashMap<(&str, u64), (u64, u64)> = HashMap::new();
    let mut runs = Vec::new();
    for line in notes.lines.iter().filter(|line| line.kind == "limited") {
        match line.what {
            What::Begin => drop(open.insert((&line.id, line.a), (line.b, line.at_us))),
            What::End | What::Dropped => {
                if let Some((key, from)) = open.remove(&(line.id.as_str(), line.a)) {
                    runs.push((key, from, line.at_us));
                }
            }
        }
    }
    let end = notes.killed_us.unwrap_or(u64::MAX);
    runs.extend(open.into_values().map(|(key, from)| (key, from, end)));
    let mut running = Vec::new();
    for (key, mut from, to) in runs {
        for (stopped, resumed) in &notes.stops_us {
            if *stopped < to && *resumed > from {
                running.push((key, from, (*stopped).max(from)));
                from = (resumed + AFTER_A_STOP).min(to);
            }
        }
        running.push((key, from, to));
    }
    running
}

/// Counts the times at which more jobs of a key ran than it has permits.
fn exceeded_permits(notes: &[Notes]) -> usize {
    let mut changes: Vec<(u64, i32, u64)> = Vec::new();
    for (key, from, to) in notes.iter().flat_map(runs).filter(|(_, from, to)| from < to) {
        changes.push((from, 1, key));
        changes.push((to, -1, key));
    }
    // At the same time, ends come before begins.
    changes.sort_unstable();
    let (mut running, mut exceeded) = (HashMap::<u64, i32>::new(), 0);
    for (_, change, key) in changes {
        let now = running.entry(key).or_default();
        *now += change;
        exceeded += usize::from(change > 0 && *now > PERMITS as i32);
    }
    exceeded
}

/// Counts the begins after which, within a second, more jobs began than the rate and its burst
/// allow, plus a tenth for the delay before the handler.
fn exceeded_rates(notes: &[Notes]) -> usize {
    let lines = notes
        .iter()
        .flat_map(|notes| &notes.lines)
        .filter(|line| line.kind == "paced" && line.what == What::Begin);
    let mut begins: Vec<u64> = lines.map(|line| line.at_us).collect();
    begins.sort_unstable();
    let most = (RATE + BURST) as usize + RATE as usize / 10 + 1;
    (0..begins.len())
        .filter(|n| {
            begins[*n..].iter().take_while(|at| **at < begins[*n] + 1_000_000).count() > most
        })
        .count()
}

/// Counts the jobs of the schedule beyond its runs.
fn extra_ticks(total: Duration, notes: &[Notes]) -> usize {
    let lines: Vec<&Line> =
        notes.iter().flat_map(|notes| &notes.lines).filter(|line| line.kind == "tick").collect();
    let moments = total.as_millis() / TICK.as_millis() + 1;
    ids(&lines).len().saturating_sub(moments as usize)
}
