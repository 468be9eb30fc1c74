//! Failovers, lag and cut connections, with processes that write rows, and read their own rows and
//! those of others.

mod app;
mod cluster;
mod journal;
mod verify;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

pub use self::app::run as app;
use self::cluster::Cluster;
pub use self::verify::Outcome;

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Duration of the faults.
    pub time: Duration,
    /// Seed of the faults.
    pub seed: u64,
    /// Path of this program, which has a hidden command for the application.
    pub program: PathBuf,
}

/// Interval at which each process probes the nodes.
const INTERVAL: Duration = Duration::from_millis(200);
/// Longest lag of a replica.
const LAG: Duration = Duration::from_secs(2);

/// Applies faults for the configured time, and counts what the processes saw.
pub async fn run(setting: Setting) -> Result<Outcome> {
    let mut random = fastrand::Rng::with_seed(setting.seed);
    let mut cluster = Cluster::start(&setting).await?;
    let end = Instant::now() + setting.time;
    while Instant::now() < end {
        cluster.fault(&mut random).await?;
    }
    cluster.settle().await?;
    verify::verify(&cluster).await
}

fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}
