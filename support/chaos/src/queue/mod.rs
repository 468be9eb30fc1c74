//! Jobs under faults.

mod faults;
mod jobs;
mod journal;
mod verify;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use scale_queue::Queue;
use scale_queue::status::{State, Stats};

use self::faults::Fleet;
pub use self::jobs::work;
use self::jobs::{Pushed, QUEUES};
pub use self::verify::Outcome;

/// A store, with its durability setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "their names say it")]
pub enum StoreKind {
    RedisAlways,
    RedisEverysec,
    RedisNo,
    Postgres,
    Mariadb,
    Sqlite,
}

impl StoreKind {
    /// All kinds of stores.
    pub const ALL: [Self; 6] = [
        Self::RedisAlways,
        Self::RedisEverysec,
        Self::RedisNo,
        Self::Postgres,
        Self::Mariadb,
        Self::Sqlite,
    ];
}

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Kind of the store.
    pub store: StoreKind,
    /// Duration of the faults.
    pub time: Duration,
    /// Seed of the faults.
    pub seed: u64,
    /// Path of this program, which has a hidden command for workers.
    pub program: PathBuf,
    /// Path of this program in an earlier version, which runs every second worker.
    pub beside: Option<PathBuf>,
}

/// Longest time for all jobs to end after the last fault.
const END: Duration = Duration::from_secs(90);

/// Applies faults for the configured time, waits until all jobs have ended, and counts.
pub async fn run(setting: Setting) -> Result<Outcome> {
    let mut random = fastrand::Rng::with_seed(setting.seed);
    let start = Instant::now();
    let mut fleet = Fleet::start(&setting).await?;
    let queue = fleet.queue().await?;
    let pusher = tokio::spawn(jobs::push(queue.clone(), setting.time, setting.seed));
    let end = Instant::now() + setting.time;
    while Instant::now() < end {
        fleet.fault(&mut random).await?;
    }
    fleet.heal().await?;
    let mut pushed: Pushed = pusher.await?;
    if setting.store == StoreKind::RedisEverysec {
        // Redis may delay a write to the disk by this time while the previous one is under way.
        pushed.excuse(fleet.crashes_us(), Duration::from_millis(2_500));
    }
    let left = settled(&queue).await?;
    if left > 0 {
        fleet.report_tables().await?;
    }
    fleet.stop().await?;
    let total = start.elapsed();
    let journals = fleet.journals()?;
    let batches = jobs::batch_states(&queue, &pushed).await?;
    Ok(verify::verify(setting.store, &pushed, &journals, &batches, left, fleet.counts(), total))
}

/// Waits until no job is left. Returns the number of jobs left if that takes too long.
async fn settled(queue: &Queue) -> Result<u64> {
    let deadline = Instant::now() + END;
    loop {
        let mut left = 0;
        for name in QUEUES {
            let stats: Stats = loop {
                match queue.stats(name).await {
                    Ok(stats) => break stats,
                    Err(error) if Instant::now() > deadline => {
                        bail!("the store does not come back: {error}")
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            };
            // The schedule pushes ticks as long as a worker runs.
            if *name != jobs::TICKS {
                left += stats.waiting + stats.leased + stats.scheduled + stats.blocked;
            }
        }
        if left == 0 {
            return Ok(0);
        }
        if Instant::now() > deadline {
            for name in QUEUES {
                report_left(queue, name).await?;
            }
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Prints the jobs that are left in a queue.
#[expect(clippy::print_stderr, reason = "a run that has failed says why")]
async fn report_left(queue: &Queue, name: &str) -> Result<()> {
    eprintln!("left in {name}: {:?}", queue.stats(name).await?);
    for state in [State::Waiting, State::Blocked, State::Scheduled, State::Leased] {
        for job in queue.jobs(name, state, 0, 3).await? {
            eprintln!(
                "  {state:?}: {} {:?} due {:?} with {:?} behind {:?}",
                job.name, job.id, job.due_ms, job.worker, job.blocked_by
            );
        }
    }
    Ok(())
}

fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.context("before 1970").map_or(0, |since| since.as_micros() as u64)
}
