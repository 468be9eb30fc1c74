//! A store to attack, and workers of it.

use std::any::Any;
use std::sync::Arc;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::{Queue, Stats, Worker};
use testkit::{Postgres, Redis, eventually};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A store of one kind, and whatever keeps it alive.
pub(crate) struct Server {
    pub(crate) kind: &'static str,
    pub(crate) url: String,
    memory: Option<Queue>,
    keep: Box<dyn Any + Send + Sync>,
}

impl Server {
    pub(crate) async fn start(kind: &'static str) -> Result<Self> {
        let (url, memory, keep): (_, _, Box<dyn Any + Send + Sync>) = match kind {
            "redis" => {
                let server = Redis::start().await?;
                (server.url(), None, Box::new(server))
            }
            "postgres" => {
                let server = Postgres::start(0).await?;
                (server.node(0).url(), None, Box::new(server))
            }
            "sqlite" => {
                let folder = tempfile::tempdir()?;
                (format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display()), None, Box::new(folder))
            }
            _ => ("memory:".to_owned(), Some(Queue::memory()), Box::new(())),
        };
        Ok(Self { kind, url, memory, keep })
    }

    /// A connection of its own, as another process has one; of memory the same store.
    pub(crate) async fn queue(&self) -> Result<Queue> {
        self.queue_of("test").await
    }

    pub(crate) async fn queue_of(&self, app: &str) -> Result<Queue> {
        match &self.memory {
            Some(queue) => Ok(queue.clone()),
            None => Ok(Queue::connect(&self.url, app).await?),
        }
    }

    pub(crate) fn redis(&self) -> &Redis {
        self.keep.downcast_ref().unwrap()
    }

    pub(crate) fn postgres(&self) -> &Postgres {
        self.keep.downcast_ref().unwrap()
    }
}

/// A worker under way.
pub(crate) struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), scale_queue::Error>>,
}

pub(crate) fn run(worker: Worker) -> Running {
    let (stop, mut stopped) = watch::channel(false);
    let task = tokio::spawn(worker.run(async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    }));
    Running { stop, task }
}

impl Running {
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        Ok(self.task.await??)
    }

    /// As if its process had been killed: nothing of it runs any more.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Waits until the queue's counts are as wanted.
pub(crate) async fn until(queue: &Queue, name: &str, what: &str, wanted: impl Fn(&Stats) -> bool) -> Result<Stats> {
    let last = Arc::new(Mutex::new(None));
    let check = async || {
        let stats = queue.stats(name).await.ok()?;
        *last.lock() = Some(stats);
        wanted(&stats).then_some(stats)
    };
    eventually(what, check).await.map_err(|error| error.context(format!("{:?}", last.lock())))
}

/// Nothing waits, runs or is to run.
pub(crate) fn is_empty(stats: &Stats) -> bool {
    stats.waiting + stats.leased + stats.scheduled + stats.blocked == 0
}
