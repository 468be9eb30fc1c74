//! Taking turns, and what is made of the figures.

use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Result;
use futures_util::future::LocalBoxFuture;

use crate::report::{Missing, Ratio, Report, Row};

/// Which way is up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// If set, only cases whose names contain it are measured.
pub(crate) static ONLY: OnceLock<String> = OnceLock::new();

type Run<'a> = Box<dyn FnMut() -> LocalBoxFuture<'a, Result<f64>> + 'a>;

/// One question, put to several subjects; the first is ours.
pub(crate) struct Case<'a> {
    name: String,
    unit: &'static str,
    better: Better,
    /// The ratio is at most 1: beyond the bound nothing is better.
    bounded: bool,
    subjects: Vec<(String, Option<f64>, Run<'a>)>,
}

impl<'a> Case<'a> {
    pub(crate) fn new(name: &str, unit: &'static str, better: Better) -> Self {
        Self { name: name.into(), unit, better, bounded: false, subjects: Vec::new() }
    }

    /// A question of yes or no: how far our figure is on the good side says nothing, and the ratio is 1 there.
    pub(crate) fn bounded(mut self) -> Self {
        self.bounded = true;
        self
    }

    /// A subject; `run` returns one figure.
    pub(crate) fn subject<F>(mut self, name: &str, mut run: impl FnMut() -> F + 'a) -> Self
    where
        F: Future<Output = Result<f64>> + 'a,
    {
        self.subjects.push((name.into(), None, Box::new(move || Box::pin(run()))));
        self
    }

    /// The ratio to the last subject that is asked for.
    pub(crate) fn target(mut self, ratio: f64) -> Self {
        if let Some(last) = self.subjects.last_mut() {
            last.1 = Some(ratio);
        }
        self
    }

    /// Runs all, in turns. A subject that fails at its first turn is reported as missing.
    pub(crate) async fn measure(mut self, rounds: usize, report: &mut Report) {
        if ONLY.get().is_some_and(|only| !self.name.contains(only.as_str())) {
            return;
        }
        let mut figures: Vec<Vec<f64>> = vec![Vec::new(); self.subjects.len()];
        let mut failed: Vec<Option<String>> = vec![None; self.subjects.len()];
        // The first turn warms up and does not count.
        for round in 0..=rounds {
            for (n, (name, _, run)) in self.subjects.iter_mut().enumerate() {
                if failed[n].is_some() {
                    continue;
                }
                match run().await {
                    Ok(figure) if round > 0 => figures[n].push(figure),
                    Ok(_) => {}
                    Err(error) => {
                        #[allow(clippy::print_stderr)]
                        {
                            eprintln!("{} {name}: {error:#}", self.name);
                        }
                        failed[n] = Some(format!("{error:#}"));
                    }
                }
            }
        }
        let ours = figures[0].clone();
        for (n, (name, target, _)) in self.subjects.iter().enumerate() {
            if let Some(why) = &failed[n] {
                report.missing.push(Missing { case: self.name.clone(), subject: name.clone(), why: why.clone() });
                continue;
            }
            // Of each turn by itself, so that a machine whose speed drifts drifts for both.
            let mut ratios: Vec<f64> = ours.iter().zip(&figures[n]).map(|(ours, theirs)| self.ratio(*ours, *theirs)).collect();
            let value = median(&mut figures[n]);
            let spread = spread(&figures[n], value);
            report.rows.push(Row { case: self.name.clone(), subject: name.clone(), value, unit: self.unit, spread });
            if n > 0 {
                let ratio = median(&mut ratios);
                report.ratios.push(Ratio { case: self.name.clone(), against: name.clone(), ratio, target: *target });
            }
        }
    }
}

impl Case<'_> {
    /// How many times better ours is.
    fn ratio(&self, ours: f64, theirs: f64) -> f64 {
        let ratio = if self.better == Better::Higher { ours / theirs } else { theirs / ours };
        if self.bounded { ratio.min(1.0) } else { ratio }
    }
}

/// Runs `one` from many tasks at once; operations a second.
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

/// Gives each of many tasks its number and its share of `count` operations; operations a second.
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

/// Resident memory now (MB).
pub(crate) fn resident() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(f64::NAN) * 4_096.0 / 1e6
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => figures[n / 2],
        n => f64::midpoint(figures[n / 2 - 1], figures[n / 2]),
    }
}

/// Half the distance between the quartiles, of sorted figures.
fn spread(figures: &[f64], median: f64) -> f64 {
    let at = |share: f64| figures.get(((figures.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or(median);
    (at(0.75) - at(0.25)) / 2.0 / median
}
