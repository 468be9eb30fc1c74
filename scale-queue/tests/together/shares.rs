//! Shares of a worker's slots among its queues.

use std::collections::HashMap;
use std::future::IntoFuture;

use futures_util::future::try_join_all;
use tokio::sync::watch;

use super::*;

#[derive(Serialize, Deserialize)]
struct Work {
    /// `None`: runs until the gate opens.
    takes: Option<Duration>,
}

impl Job for Work {
    const NAME: &'static str = "work";
}

fn works(count: usize, takes: Option<Duration>) -> impl Iterator<Item = Work> {
    (0..count).map(move |_| Work { takes })
}

async fn push(queue: &Queue, name: &str, jobs: impl Iterator<Item = Work>) -> Result<()> {
    try_join_all(jobs.map(|job| queue.push(job).to(name).into_future())).await?;
    Ok(())
}

const SHORT: usize = 1_000;

#[derive(Clone, Copy, Default)]
struct Count {
    begun: usize,
    running: usize,
    most: usize,
}

/// Counts running jobs, by queue.
#[derive(Clone)]
struct Census {
    counts: Arc<Mutex<HashMap<String, Count>>>,
    gate: watch::Sender<bool>,
    /// Highest number of running jobs of the queue `long` while jobs of `short` waited.
    hogged: Arc<AtomicUsize>,
}

impl Census {
    fn new() -> Self {
        Self { counts: Arc::default(), gate: watch::Sender::new(false), hogged: Arc::default() }
    }

    fn of(&self, queue: &str) -> Count {
        self.counts.lock().get(queue).copied().unwrap_or_default()
    }

    async fn wait_for(&self, queue: &str, running: usize) -> Result<()> {
        eventually(&format!("{running} of {queue} to run"), async || {
            (self.of(queue).running >= running).then_some(())
        })
        .await
    }

    fn worker(&self, queue: &Queue) -> Worker {
        let census = self.clone();
        Worker::new(queue).handle(move |job: Work, context: Context| {
            let census = census.clone();
            let queue = context.queue.to_string();
            {
                let mut counts = census.counts.lock();
                let count = counts.entry(queue.clone()).or_default();
                count.begun += 1;
                count.running += 1;
                count.most = count.most.max(count.running);
                let of = |name| counts.get(name).copied().unwrap_or_default();
                // Near the end, there are no jobs left to fetch.
                if of("short").begun < SHORT - 200 {
                    census.hogged.fetch_max(of("long").running, SeqCst);
                }
            }
            async move {
                match job.takes {
                    Some(time) => tokio::time::sleep(time).await,
                    None => drop(census.gate.subscribe().wait_for(|open| *open).await),
                }
                census.counts.lock().entry(queue).or_default().running -= 1;
                Ok::<(), std::io::Error>(())
            }
        })
    }
}

pub(super) async fn a_queue_keeps_its_places_and_takes_no_more_than_its_most(
    queue: &Queue,
) -> Result<()> {
    let census = Census::new();
    let worker = census.worker(queue).queues(["flood", "rest", "vip"]).concurrency(6);
    let workers = running([worker.concurrency_of("flood", ..=4).concurrency_of("vip", 1..)]);
    for (name, count) in [("flood", 300), ("rest", 30)] {
        push(queue, name, works(count, None)).await?;
    }
    census.wait_for("flood", 4).await?;
    census.wait_for("rest", 1).await?;
    assert_eq!(census.of("rest").running, 1, "one place is kept");
    queue.push(Work { takes: None }).to("vip").await?;
    census.wait_for("vip", 1).await?;
    census.gate.send_replace(true);
    let all = async || {
        (["flood", "rest", "vip"].iter().map(|name| census.of(name).begun).sum::<usize>() == 331)
            .then_some(())
    };
    eventually("all to be done", all).await?;
    assert_eq!(census.of("flood").most, 4, "however fast they end");
    workers.stop().await
}

pub(super) async fn balanced_shares_are_places_however_long_jobs_take(queue: &Queue) -> Result<()> {
    let census = Census::new();
    push(queue, "short", works(SHORT, Some(Duration::from_millis(5)))).await?;
    push(queue, "long", works(150, Some(Duration::from_millis(50)))).await?;
    let workers = running([census.worker(queue).balanced(["long", "short"]).concurrency(20)]);
    let all =
        async || (census.of("long").begun + census.of("short").begun == 150 + SHORT).then_some(());
    eventually("all to be done", all).await?;
    // With equal lag, each queue gets half of the slots. The short jobs have more lag by the time
    // that pushing the long jobs took.
    let hogged = census.hogged.load(SeqCst);
    assert!((2..=11).contains(&hogged), "{hogged} of 20 places");
    workers.stop().await
}

pub(super) async fn balanced_shares_follow_how_late_queues_are(queue: &Queue) -> Result<()> {
    let census = Census::new();
    let takes = Some(Duration::from_millis(20));
    push(queue, "late", works(600, takes)).await?;
    let late = async || (queue.stats("late").await.ok()?.lag_ms >= 1_000).then_some(());
    eventually("the late one to be late", late).await?;
    push(queue, "fresh", works(200, takes)).await?;
    let workers = running([census.worker(queue).balanced(["fresh", "late"]).concurrency(20)]);
    census.wait_for("late", 14).await?;
    let all = async || (census.of("late").begun + census.of("fresh").begun == 800).then_some(());
    eventually("all to be done, and none to starve", all).await?;
    workers.stop().await
}
