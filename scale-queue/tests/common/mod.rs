//! Jobs, workers and a log, shared by the tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::sync::Arc;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::{Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;
use tokio::sync::watch;
use tokio::task::JoinHandle;

macro_rules! job {
    ($name:ident, $label:literal, $queue:literal) => {
        #[derive(Clone, Copy, Serialize, Deserialize)]
        pub struct $name {
            pub n: u64,
        }

        impl Job for $name {
            const NAME: &'static str = $label;
            const QUEUE: &'static str = $queue;
        }
    };
}

job!(Note, "note", "notes");
job!(Urgent, "urgent", "high");
job!(Slow, "slow", "slow");

/// Numbers of the jobs done, in order.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u64>>>);

impl Log {
    pub fn add(&self, n: u64) {
        self.0.lock().push(n);
    }

    pub fn all(&self) -> Vec<u64> {
        self.0.lock().clone()
    }

    pub fn sorted(&self) -> Vec<u64> {
        let mut all = self.all();
        all.sort_unstable();
        all
    }

    pub async fn wait_for(&self, count: usize) -> Result<()> {
        eventually(&format!("{count} jobs to be done"), async || {
            (self.0.lock().len() >= count).then_some(())
        })
        .await
    }

    /// Waits until no job is waiting or running.
    pub async fn settle(&self, queue: &Queue) -> Result<()> {
        eventually("the queue to be empty", async || {
            let stats = queue.stats("notes").await.ok()?;
            (stats.waiting + stats.leased == 0).then_some(())
        })
        .await
    }
}

/// Starts a worker that records its jobs, on the queues `high`, `notes` and `low`.
pub fn log_worker(queue: &Queue, log: &Log) -> Worker {
    let (notes, urgent) = (log.clone(), log.clone());
    Worker::new(queue)
        .queues(["high", "notes", "low"])
        .handle(move |job: Note| {
            notes.add(job.n);
            async { Ok::<(), std::io::Error>(()) }
        })
        .handle(move |job: Urgent| {
            urgent.add(job.n);
            async { Ok::<(), std::io::Error>(()) }
        })
}

/// Running workers, until they are stopped.
pub struct Workers {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<Result<(), scale_queue::Error>>>,
}

pub fn running(workers: impl IntoIterator<Item = Worker>) -> Workers {
    let (stop, stopped) = watch::channel(false);
    let run = |worker: Worker| {
        let mut stopped = stopped.clone();
        tokio::spawn(worker.run(async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        }))
    };
    Workers { tasks: workers.into_iter().map(run).collect(), stop }
}

impl Workers {
    pub async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }

    /// Aborts the workers as if the process had been killed.
    pub fn kill(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
