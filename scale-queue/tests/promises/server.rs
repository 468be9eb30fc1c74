//! A store for these tests, and workers on it.

use std::any::Any;
use std::sync::Arc;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::status::Stats;
use scale_queue::store::{RedisStore, SqlStore, Store};
use scale_queue::{Queue, Worker};
use testkit::{MariaDb, Pooler, Postgres, Redis, RedisCluster, eventually};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A store of one kind, and the handles that keep it alive.
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
            "cluster" => {
                let cluster = RedisCluster::start().await?;
                (cluster.url(), None, Box::new(cluster))
            }
            "postgres" => {
                let server = Postgres::start(0).await?;
                (server.node(0).url(), None, Box::new(server))
            }
            // Behind pgbouncer, with another server connection for each transaction.
            "pooled" => {
                let server = Postgres::start(0).await?;
                let pooler = Pooler::pgbouncer_by_transactions(server.node(0).port()).await?;
                (pooler.url(), None, Box::new((server, pooler)))
            }
            "mariadb" => {
                let server = MariaDb::start(0).await?;
                (server.node(0).url(), None, Box::new(server))
            }
            "sqlite" => {
                let folder = tempfile::tempdir()?;
                (
                    format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display()),
                    None,
                    Box::new(folder),
                )
            }
            _ => ("memory:".to_owned(), Some(Queue::memory()), Box::new(())),
        };
        Ok(Self { kind, url, memory, keep })
    }

    /// Opens a separate connection, like another process; for memory, the same store.
    pub(crate) async fn queue(&self) -> Result<Queue> {
        self.queue_of("test").await
    }

    pub(crate) async fn queue_of(&self, app: &str) -> Result<Queue> {
        if let Some(queue) = &self.memory {
            return Ok(queue.clone());
        }
        let migrates = matches!(self.kind, "postgres" | "pooled" | "mariadb" | "sqlite");
        let queue = Queue::builder(&self.url, app).migrate(migrates);
        Ok(queue.transaction_pooling(self.kind == "pooled").connect().await?)
    }

    /// Opens the store itself.
    pub(crate) async fn store(&self) -> Result<Arc<dyn Store>> {
        Ok(match self.kind {
            "memory" => anyhow::bail!("a store in memory belongs to its queue"),
            "redis" | "cluster" => {
                Arc::new(RedisStore::new(scale_redis::Redis::connect(&self.url).await?, "test"))
            }
            _ => Arc::new(SqlStore::connect(&self.url, "test").await?),
        })
    }

    pub(crate) fn redis(&self) -> &Redis {
        self.keep.downcast_ref().unwrap()
    }

    /// Runs SQL on the server and returns the raw answer.
    pub(crate) async fn sql(&self, query: &str) -> Result<String> {
        match self.keep.downcast_ref::<MariaDb>() {
            Some(server) => server.node(0).sql(&format!("use test; {query}")).await,
            None => self.postgres().node(0).sql(query).await,
        }
    }

    pub(crate) fn postgres(&self) -> &Postgres {
        self.keep.downcast_ref().unwrap()
    }
}

/// A running worker.
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

    /// Aborts the worker as if its process had been killed: no part of it continues to run.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Waits until the queue's counts are as wanted.
pub(crate) async fn until(
    queue: &Queue,
    name: &str,
    what: &str,
    wanted: impl Fn(&Stats) -> bool,
) -> Result<Stats> {
    let last = Arc::new(Mutex::new(None));
    let check = async || {
        let stats = queue.stats(name).await.ok()?;
        *last.lock() = Some(stats);
        wanted(&stats).then_some(stats)
    };
    eventually(what, check).await.map_err(|error| error.context(format!("{:?}", last.lock())))
}

/// Returns `true` if no job is waiting, running or scheduled.
pub(crate) fn is_empty(stats: &Stats) -> bool {
    stats.waiting + stats.leased + stats.scheduled + stats.blocked == 0
}
