//! Compares the family with its peers and with the bare minimum, on the same servers and in the
//! same run.
//!
//! ```text
//! cargo run --release -p scale-bench -- SUITE [--quick] [--only CASE] [--json FILE] \
//!     [--against FILE] [--svg FOLDER]
//! ```
//!
//! The subjects of a case take turns, with a turn of the family's crate before each turn of a peer
//! (A B A C …), so that a drift of the machine's speed affects both turns of a pair. Turns continue
//! until the ratios are settled. The output has the median, the spread (half the range between the
//! quartiles, as a share of the median) and the ratio: how many times *better* the family's crate
//! is, whatever is measured, as the median of the ratios of all pairs.

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
    /// Suite to measure.
    suite: Suite,
    /// Runs each suite in about a minute instead of several; not exact enough for a README.
    #[arg(long)]
    quick: bool,
    /// Measures only the cases whose names contain this text.
    #[arg(long)]
    only: Option<String>,
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Prints the difference of each ratio from that of an earlier run, given by its JSON file.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Draws the curves of `growth` into this folder.
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

/// Thoroughness of a run.
#[derive(Clone, Copy)]
struct Effort {
    /// Minimum number of turns of each subject.
    turns: usize,
    /// Maximum number of turns, as a factor, if a ratio is not settled.
    patience: usize,
    /// Factor of the sizes.
    scale: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    // A part of a suite that needs a separate process.
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
    let effort = if arguments.quick {
        Effort { turns: 1, patience: 1, scale: 1 }
    } else {
        Effort { turns: 7, patience: 4, scale: 2 }
    };
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
    let earlier: Option<serde_json::Value> =
        earlier.map(|text| serde_json::from_str(&text)).transpose()?;
    for report in &reports {
        report.print();
        if let Some(earlier) = &earlier {
            report.print_against(earlier);
        }
    }
    if let Some(path) = arguments.json {
        let all = reports.iter().map(report::Report::to_json).collect::<Result<Vec<_>, _>>()?;
        let text =
            if let [one] = &all[..] { one.clone() } else { format!("[{}]\n", all.join(",")) };
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
