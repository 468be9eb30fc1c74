//! The family side by side with its peers and with the bare limit, on the same servers in the same run.
//!
//! `cargo run --release -p scale-bench -- SUITE [--quick] [--only CASE] [--json FILE] [--against FILE] [--svg FOLDER]`
//!
//! Subjects of a case take turns, ours before each peer's (A B A C …), so that a machine whose speed drifts drifts for both of a pair; they
//! go on until the ratios are settled. Printed are the median, the spread (half the range between the quartiles, as a share of the median)
//! and the ratio: how many times *better* ours is, whatever is measured, by the median of all pairs' ratios.

mod measure;
mod peer;
mod plot;
mod report;
mod suites;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

#[derive(Parser)]
#[command(name = "scale-bench", about = "The scale family side by side with its peers")]
struct Arguments {
    /// What to measure.
    suite: Suite,
    /// A minute a suite instead of several: for a look, not for a README.
    #[arg(long)]
    quick: bool,
    /// Only the cases whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// Writes the figures there.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Says how far each ratio is from that of an earlier run, of which this is the JSON.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Draws the curves of `growth` into that folder.
    #[arg(long)]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    Db,
    Cache,
    Queue,
    Limit,
    Session,
    Growth,
    All,
}

/// How thoroughly.
#[derive(Clone, Copy)]
struct Effort {
    /// Of each subject, at the least.
    turns: usize,
    /// So many times as many at the most, where a ratio is not settled.
    patience: usize,
    /// Multiplies sizes.
    scale: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    // A part of a suite that needs a process of its own.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [part, subject] = &words[..]
        && let Some(figure) = part_alone(part, subject).await
    {
        #[allow(clippy::print_stdout)]
        {
            println!("{figure}");
        }
        return Ok(());
    }
    let arguments = Arguments::parse();
    if let Some(only) = arguments.only {
        let _ = measure::ONLY.set(only);
    }
    let effort =
        if arguments.quick { Effort { turns: 1, patience: 1, scale: 1 } } else { Effort { turns: 7, patience: 4, scale: 2 } };
    let mut reports = Vec::new();
    let wants = |suite| arguments.suite == suite || arguments.suite == Suite::All;
    if wants(Suite::Db) {
        reports.push(suites::db::run(effort).await?);
    }
    if wants(Suite::Cache) {
        reports.push(suites::cache::run(effort).await?);
    }
    if wants(Suite::Queue) {
        reports.push(suites::queue::run(effort).await?);
    }
    if wants(Suite::Limit) {
        reports.push(suites::limit::run(effort).await?);
    }
    if wants(Suite::Session) {
        reports.push(suites::session::run(effort).await?);
    }
    if wants(Suite::Growth) {
        let report = suites::growth::run(effort).await?;
        if let Some(folder) = &arguments.svg {
            plot::draw(&report, folder)?;
        }
        reports.push(report);
    }
    let earlier = arguments.against.map(std::fs::read_to_string).transpose()?;
    let earlier: Option<serde_json::Value> = earlier.map(|text| serde_json::from_str(&text)).transpose()?;
    for report in &reports {
        report.print();
        if let Some(earlier) = &earlier {
            report.print_against(earlier);
        }
    }
    if let Some(path) = arguments.json {
        let all = reports.iter().map(report::Report::to_json).collect::<Result<Vec<_>, _>>()?;
        let text = if let [one] = &all[..] { one.clone() } else { format!("[{}]\n", all.join(",")) };
        std::fs::write(path, text)?;
    }
    Ok(())
}

async fn part_alone(part: &str, subject: &str) -> Option<f64> {
    match (part, subject) {
        ("flood", "scale-cache") => Some(suites::cache::flooded().await),
        ("flood", subject) => Some(suites::limit::flooded(subject).await),
        ("storm", _) => Some(suites::session::memory().await),
        _ => None,
    }
}
