//! Random faults against the family for some minutes, and counts of their effects. See the README.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use scale_chaos::db;
use scale_chaos::queue::{self, Setting, StoreKind};

#[derive(Parser)]
#[command(name = "scale-chaos", about = "Random faults, and counts of their effects")]
struct Arguments {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// Jobs: workers, servers and connections fail.
    Queue {
        /// Minutes for which faults are played on each store.
        #[arg(long, default_value_t = 2.0)]
        minutes: f64,
        /// On these stores only.
        #[arg(long, value_enum)]
        store: Vec<StoreKind>,
        /// Draws the same faults again.
        #[arg(long)]
        seed: Option<u64>,
        /// This program, built from an earlier commit: both versions run, as during a deployment.
        #[arg(long)]
        beside: Option<PathBuf>,
    },
    /// Databases: primaries move, replicas lag, links are cut.
    Db {
        /// Minutes for which faults are played.
        #[arg(long, default_value_t = 2.0)]
        minutes: f64,
        /// Draws the same faults again.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// An application process of the suite `db`.
    #[command(hide = true)]
    DbApp {
        /// Number of this process.
        number: usize,
        /// Number of processes.
        processes: usize,
        /// Folder of the journals.
        folder: PathBuf,
        /// Addresses of the nodes, through the proxies of this process.
        urls: Vec<String>,
    },
    /// A worker process of the suite `queue`.
    #[command(hide = true)]
    QueueWorker {
        /// Address of the jobs' store.
        url: String,
        /// File in which the worker records the jobs that it begins and ends.
        journal: PathBuf,
    },
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    match Arguments::parse().suite {
        Suite::QueueWorker { url, journal } => queue::work(&url, &journal).await,
        Suite::DbApp { number, processes, folder, urls } => {
            db::app(number, processes, &folder, &urls).await
        }
        Suite::Db { minutes, seed } => {
            let seed = seed.unwrap_or_else(|| fastrand::u64(..));
            report(format_args!("seed {seed}, {minutes} minutes\n{}", db::Outcome::HEAD));
            let time = Duration::from_secs_f64(minutes * 60.0);
            let outcome =
                db::run(db::Setting { time, seed, program: std::env::current_exe()? }).await?;
            report(format_args!("{outcome}"));
            ensure!(outcome.broken() == 0, "{} promises were broken", outcome.broken());
            Ok(())
        }
        Suite::Queue { minutes, store, seed, beside } => {
            let seed = seed.unwrap_or_else(|| fastrand::u64(..));
            let stores = if store.is_empty() { StoreKind::ALL.to_vec() } else { store };
            let mut broken = 0;
            report(format_args!(
                "seed {seed}, {minutes} minutes a store\n{}",
                queue::Outcome::HEAD
            ));
            for store in stores {
                let time = Duration::from_secs_f64(minutes * 60.0);
                let outcome = queue::run(Setting {
                    store,
                    time,
                    seed,
                    program: std::env::current_exe()?,
                    beside: beside.clone(),
                })
                .await?;
                broken += outcome.broken();
                report(format_args!("{outcome}"));
            }
            ensure!(broken == 0, "{broken} promises were broken");
            Ok(())
        }
    }
}

#[expect(clippy::print_stdout, reason = "what this program is for")]
fn report(line: std::fmt::Arguments<'_>) {
    println!("{line}");
}
