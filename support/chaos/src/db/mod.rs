//! Fail-overs, lag and cut links, under processes that write, and read what they and others have written.

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

/// What to play.
#[derive(Clone, Debug)]
pub struct Setting {
    /// For how long.
    pub time: Duration,
    /// Which faults are drawn.
    pub seed: u64,
    /// This program, whose hidden command is an application.
    pub program: PathBuf,
}

/// How often each process looks at the nodes.
const INTERVAL: Duration = Duration::from_millis(200);
/// How late a replica may be.
const LAG: Duration = Duration::from_secs(2);

/// Plays faults for a while, and counts what the processes saw.
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
