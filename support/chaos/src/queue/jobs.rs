//! The pushed jobs, and the worker process that runs them.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use scale_queue::batch::BatchStatus;
use scale_queue::{Context, Error, Job, Limit, Queue, Retry, Scheduler, Worker};
use serde::{Deserialize, Serialize};

use super::journal::{Journal, Run};
use super::now_us;

pub(super) const APP: &str = "chaos";
pub(super) const TICKS: &str = "ticks";
pub(super) const QUEUES: &[&str] = &["work", "limited", "paced", "after", TICKS];
/// Number of jobs of a chain.
pub(super) const LINKS: u64 = 4;
/// Number of jobs of a batch.
pub(super) const PARTS: u64 = 20;
/// Permits of each key, and number of keys.
pub(super) const PERMITS: u32 = 2;
const KEYS: u64 = 3;
/// Rate limit, per second.
pub(super) const RATE: u32 = 20;
pub(super) const BURST: u32 = 4;
/// Period of the schedule.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// Lease of the workers; stops and cuts are both shorter and longer.
pub(super) const LEASE: Duration = Duration::from_secs(1);

const PATIENT: Retry =
    Retry::exponential(1_000).first(Duration::from_millis(50)).longest(Duration::from_secs(1));

macro_rules! job {
    ($name:ident, $label:literal, $queue:expr $(, $limits:item)?) => {
        #[derive(Clone, Copy, Serialize, Deserialize)]
        struct $name {
            a: u64,
            b: u64,
        }

        impl Job for $name {
            const NAME: &'static str = $label;
            const QUEUE: &'static str = $queue;
            const RETRY: Retry = PATIENT;
            $($limits)?
        }
    };
}

job!(Single, "single", "work");
job!(Link, "link", "work");
job!(Part, "part", "work");
job!(Then, "then", "after");
job!(
    Limited,
    "limited",
    "limited",
    fn limits(&self) -> Vec<Limit> {
        vec![Limit::concurrent(format!("key:{}", self.b), PERMITS)]
    }
);
job!(
    Paced,
    "paced",
    "paced",
    fn limits(&self) -> Vec<Limit> {
        vec![Limit::rate("rate", RATE, Duration::from_secs(1)).burst(BURST)]
    }
);
job!(Tick, "tick", TICKS);

/// Runs jobs until a signal stops the worker. Normally the process is killed instead.
pub async fn work(url: &str, journal: &Path) -> Result<()> {
    let journal = Journal::create(journal)?;
    let queue = loop {
        match Queue::connect(url, APP).await {
            Ok(queue) => break queue,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    macro_rules! handle {
        ($worker:expr, $job:ty) => {{
            let journal = journal.clone();
            $worker.handle(move |job: $job, context: Context| {
                let run = Run::begin(&journal, <$job>::NAME, job.a, job.b, context.id.to_string());
                async move {
                    // Some take longer than a lease, some fail at first.
                    let takes = match fastrand::u8(..100) {
                        0 => LEASE * 2,
                        1..=9 => LEASE / 10,
                        _ => Duration::from_millis(fastrand::u64(..10)),
                    };
                    tokio::time::sleep(takes).await;
                    if fastrand::u8(..20) == 0 {
                        return Err(std::io::Error::other("now and then"));
                    }
                    run.end();
                    Ok(())
                }
            })
        }};
    }
    let worker = Worker::new(&queue)
        .queues(QUEUES.iter().copied())
        .concurrency(20)
        .lease(LEASE)
        .grace(Duration::from_secs(5));
    let worker = handle!(worker, Single);
    let worker = handle!(worker, Link);
    let worker = handle!(worker, Part);
    let worker = handle!(worker, Then);
    let worker = handle!(worker, Limited);
    let worker = handle!(worker, Paced);
    let worker = handle!(worker, Tick);
    let schedule = Scheduler::new(&queue).every("tick", TICK, || Tick { a: 0, b: 0 })?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let schedule = tokio::spawn(schedule.run(std::future::pending::<()>()));
    worker
        .run(async {
            terminate.recv().await;
        })
        .await?;
    schedule.abort();
    Ok(())
}

/// Pushed jobs, and the results of the pushes.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    /// Times of successful pushes, by kind and number: microseconds since 1970.
    pub(super) stored: HashMap<(&'static str, u64), u64>,
    /// Jobs whose push was tried; after an error a job may or may not be stored.
    pub(super) tried: HashSet<(&'static str, u64)>,
}

impl Pushed {
    /// Removes the pushes that a store may lose with its settings: those within `window` before one
    /// of these crashes.
    pub(super) fn excuse(&mut self, crashes_us: &[u64], window: Duration) {
        let window = window.as_micros() as u64;
        self.stored
            .retain(|_, at| crashes_us.iter().all(|crash| *at > *crash || *at + window < *crash));
    }

    fn note<T>(&mut self, kind: &'static str, number: u64, answer: &Result<T, Error>) {
        self.tried.insert((kind, number));
        if answer.is_ok() {
            self.stored.insert((kind, number), now_us());
        }
    }
}

/// Pushes a few hundred jobs per second, of all kinds.
pub(super) async fn push(queue: Queue, time: Duration, seed: u64) -> Pushed {
    let (mut random, mut pushed, start) =
        (fastrand::Rng::with_seed(seed ^ 1), Pushed::default(), Instant::now());
    let mut number = 0;
    while start.elapsed() < time {
        number += 1;
        let a = number;
        match random.u8(..100) {
            0..60 => {
                let delay = if random.u8(..10) == 0 {
                    Duration::from_millis(random.u64(..3_000))
                } else {
                    Duration::ZERO
                };
                let answer = queue.push(Single { a, b: 0 }).delay(delay).await;
                pushed.note("single", a, &answer);
            }
            60..68 => {
                let jobs: Vec<_> = (0..20).map(|n| Single { a: a * 1_000_000 + n, b: 0 }).collect();
                let answer = queue.push_many(jobs.iter().copied()).await;
                for job in &jobs {
                    pushed.note("single", job.a, &answer);
                }
            }
            68..78 => {
                let chain = (0..LINKS).fold(queue.chain(), |chain, b| chain.then(Link { a, b }));
                pushed.note("link", a, &chain.push().await);
            }
            78..80 => {
                // Pushed again under the same name until it is stored, as the docs require.
                let mut answer = batch(&queue, a).await;
                while answer.is_err() && start.elapsed() < time + Duration::from_mins(1) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    answer = batch(&queue, a).await;
                }
                pushed.note("batch", a, &answer);
            }
            80..95 => {
                let answer = queue.push(Limited { a, b: a % KEYS }).await;
                pushed.note("limited", a, &answer);
            }
            _ => {
                let answer = queue.push(Paced { a, b: 0 }).await;
                pushed.note("paced", a, &answer);
            }
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..8))).await;
    }
    pushed
}

async fn batch(queue: &Queue, a: u64) -> Result<String, Error> {
    let parts = (0..PARTS).map(|b| Part { a, b });
    queue.batch().named(&format!("batch.{a}")).jobs(parts).then(Then { a, b: 0 }).push().await
}

/// Returns the progress of each batch that was stored.
pub(super) async fn batch_states(
    queue: &Queue,
    pushed: &Pushed,
) -> Result<HashMap<u64, Option<BatchStatus>>> {
    let mut states = HashMap::new();
    for (_, a) in pushed.stored.keys().filter(|(kind, _)| *kind == "batch") {
        states.insert(*a, queue.batch_status(&format!("batch.{a}")).await?);
    }
    Ok(states)
}
