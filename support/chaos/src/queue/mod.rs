//! Jobs under faults.

mod faults;
mod jobs;
mod journal;
mod verify;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use scale_queue::{Queue, State, Stats};

use self::faults::Fleet;
pub use self::jobs::work;
use self::jobs::{Pushed, QUEUES};
pub use self::verify::Outcome;

/// A store, and how safe it is set to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "their names say it")]
pub enum StoreKind {
    RedisAlways,
    RedisEverysec,
    RedisNo,
    Postgres,
    Sqlite,
}

impl StoreKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::RedisAlways, Self::RedisEverysec, Self::RedisNo, Self::Postgres, Self::Sqlite];
}

/// What to play.
#[derive(Clone, Debug)]
pub struct Setting {
    /// On which store.
    pub store: StoreKind,
    /// For how long.
    pub time: Duration,
    /// Which faults are drawn.
    pub seed: u64,
    /// This program, whose hidden command is a worker.
    pub program: PathBuf,
}

/// How long everything may take to come to its end once no fault is played any more.
const END: Duration = Duration::from_secs(90);

/// Plays faults for a while, lets everything come to its end, and counts.
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
        // It may put a write off for so long, while the last one is on its way to the disk.
        pushed.excuse(fleet.crashes_us(), Duration::from_millis(2_500));
    }
    let left = settled(&queue).await?;
    fleet.stop().await?;
    let total = start.elapsed();
    let journals = fleet.journals()?;
    let batches = jobs::batch_states(&queue, &pushed).await?;
    Ok(verify::verify(setting.store, &pushed, &journals, &batches, left, fleet.counts(), total))
}

/// Waits until nothing is left to do; returns what is left when that takes too long.
async fn settled(queue: &Queue) -> Result<u64> {
    let deadline = Instant::now() + END;
    loop {
        let mut left = 0;
        for name in QUEUES {
            let stats: Stats = loop {
                match queue.stats(name).await {
                    Ok(stats) => break stats,
                    Err(error) if Instant::now() > deadline => bail!("the store does not come back: {error}"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            };
            // Ticks go on as long as a worker does.
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

/// Says what is left in a queue, to whoever looks for the reason.
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
