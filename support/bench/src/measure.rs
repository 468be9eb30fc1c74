//! Turns of the subjects, and evaluation of the figures.

use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Result;
use futures_util::future::LocalBoxFuture;

use crate::Effort;
use crate::report::{Missing, Ratio, Report, Row};

/// Direction in which figures improve.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// If set, only cases whose names contain it are measured.
pub(crate) static ONLY: OnceLock<String> = OnceLock::new();

type Run<'a> = Box<dyn FnMut() -> LocalBoxFuture<'a, Result<f64>> + 'a>;

/// Estimated standard error at which a ratio is settled.
const SETTLED: f64 = 0.03;

/// One measurement of several subjects; the first is the family's crate.
pub(crate) struct Case<'a> {
    name: String,
    unit: &'static str,
    better: Better,
    /// True if the ratio is at most 1: beyond the bound, no figure is better.
    bounded: bool,
    turns: Option<usize>,
    subjects: Vec<Subject<'a>>,
}

struct Subject<'a> {
    name: String,
    target: Option<f64>,
    run: Run<'a>,
    figures: Vec<f64>,
    /// Ratio to the first subject, for each turn.
    ratios: Vec<f64>,
    failed: Option<String>,
}

impl<'a> Case<'a> {
    pub(crate) fn new(name: &str, unit: &'static str, better: Better) -> Self {
        Self { name: name.into(), unit, better, bounded: false, turns: None, subjects: Vec::new() }
    }

    /// Declares a yes-or-no measurement: on the good side of the bound the distance does not
    /// matter, and the ratio is 1.
    pub(crate) fn bounded(mut self) -> Self {
        self.bounded = true;
        self
    }

    /// Sets the minimum number of turns, if that of the run is too small or takes too long.
    pub(crate) fn turns(mut self, turns: usize) -> Self {
        self.turns = Some(turns);
        self
    }

    /// Adds a subject; `run` returns one figure.
    pub(crate) fn subject<F>(mut self, name: &str, mut run: impl FnMut() -> F + 'a) -> Self
    where
        F: Future<Output = Result<f64>> + 'a,
    {
        let run: Run<'a> = Box::new(move || Box::pin(run()));
        self.subjects.push(Subject {
            name: name.into(),
            target: None,
            run,
            figures: vec![],
            ratios: vec![],
            failed: None,
        });
        self
    }

    /// Sets the target of the ratio to the last subject.
    pub(crate) fn target(mut self, ratio: f64) -> Self {
        if let Some(last) = self.subjects.last_mut() {
            last.target = Some(ratio);
        }
        self
    }

    /// Runs all subjects in turns, the first one before each turn of a peer, so that a drift of the
    /// machine's speed affects both turns of a pair. Turns continue until each ratio is settled, or
    /// the maximum is reached. A subject that fails is reported as missing.
    pub(crate) async fn measure(mut self, effort: Effort, report: &mut Report) {
        if self.subjects.is_empty()
            || ONLY.get().is_some_and(|only| !self.name.contains(only.as_str()))
        {
            return;
        }
        #[allow(clippy::print_stderr)]
        {
            eprintln!("{} …", self.name);
        }
        let mut ours = self.subjects.remove(0);
        let mut peers = std::mem::take(&mut self.subjects);
        let least = self.turns.unwrap_or(effort.turns);
        // The first turn is a warm-up and does not count.
        for turn in 0..=least * effort.patience {
            let counts = turn > 0;
            if peers.is_empty() && turn <= least {
                ours.take_turn(&self.name, counts).await;
            }
            for peer in
                peers.iter_mut().filter(|peer| peer.failed.is_none() && !peer.is_settled(least))
            {
                let mine = ours.take_turn(&self.name, counts).await;
                let theirs = peer.take_turn(&self.name, counts).await;
                if let (Some(mine), Some(theirs), true) = (mine, theirs, counts) {
                    // There is no ratio to zero.
                    peer.ratios
                        .extend(Some(self.ratio(mine, theirs)).filter(|ratio| ratio.is_finite()));
                }
            }
        }
        for subject in std::iter::once(ours).chain(peers) {
            let (case, name) = (self.name.clone(), subject.name);
            if let Some(why) = subject.failed {
                report.missing.push(Missing { case, subject: name, why });
                continue;
            }
            let (figures, unit) = (subject.figures, self.unit);
            let (value, spread) = (median(&figures), spread(&figures));
            report.rows.push(Row {
                case: case.clone(),
                subject: name.clone(),
                value,
                unit,
                spread,
                figures,
            });
            if !subject.ratios.is_empty() {
                let ratio = median(&subject.ratios);
                report.ratios.push(Ratio { case, against: name, ratio, target: subject.target });
            }
        }
    }

    /// Returns how many times better the first subject is.
    fn ratio(&self, ours: f64, theirs: f64) -> f64 {
        let ratio = if self.better == Better::Higher { ours / theirs } else { theirs / ours };
        if self.bounded { ratio.min(1.0) } else { ratio }
    }
}

impl Subject<'_> {
    async fn take_turn(&mut self, case: &str, counts: bool) -> Option<f64> {
        if self.failed.is_some() {
            return None;
        }
        match (self.run)().await {
            Ok(figure) => {
                if counts {
                    self.figures.push(figure);
                }
                Some(figure)
            }
            Err(error) => {
                #[allow(clippy::print_stderr)]
                {
                    eprintln!("{case} {}: {error:#}", self.name);
                }
                self.failed = Some(format!("{error:#}"));
                None
            }
        }
    }

    /// Decides by the standard error of the median of an approximately normal distribution.
    fn is_settled(&self, least: usize) -> bool {
        let turns = self.figures.len();
        turns >= least
            && (self.ratios.is_empty()
                || 1.86 * spread(&self.ratios) / (turns as f64).sqrt() <= SETTLED)
    }
}

/// Runs `one` from many tasks concurrently. Returns operations per second.
pub(crate) async fn concurrently<F, Fut>(tasks: usize, count: usize, one: F) -> Result<f64>
where
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    each_task(tasks, count, move |task, count| {
        let one = one.clone();
        async move {
            for n in 0..count {
                one(task * 31 + n).await?;
            }
            Ok(())
        }
    })
    .await
}

/// Gives each task its number and its share of `count` operations. Returns operations per second.
pub(crate) async fn each_task<F, Fut>(tasks: usize, count: usize, share: F) -> Result<f64>
where
    F: Fn(usize, usize) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let start = Instant::now();
    let running: Vec<_> = (0..tasks).map(|task| tokio::spawn(share(task, count / tasks))).collect();
    for task in running {
        task.await??;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Returns the memory of this process as counted by the system, MB: `RssAnon` is allocated and
/// touched memory without the pages of the program; `VmRSS` is both, `VmHWM` its maximum so far.
pub(crate) fn memory(what: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok())
        .map_or(f64::NAN, |kib| kib * 1_024.0 / 1e6)
}

fn median(figures: &[f64]) -> f64 {
    f64::midpoint(quantile(figures, 0.5, f64::floor), quantile(figures, 0.5, f64::ceil))
}

/// Returns half the distance between the quartiles, as a share of the median.
fn spread(figures: &[f64]) -> f64 {
    let distance = quantile(figures, 0.75, f64::round) - quantile(figures, 0.25, f64::round);
    if distance > 0.0 { distance / 2.0 / median(figures) } else { 0.0 }
}

/// Returns the quantile at this share.
fn quantile(figures: &[f64], share: f64, whole: fn(f64) -> f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
        .get(whole((sorted.len().max(1) - 1) as f64 * share) as usize)
        .copied()
        .unwrap_or(f64::NAN)
}
