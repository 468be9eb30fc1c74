//! Listener for pushes and cancellations of other processes on the same database.
//!
//! | database | method |
//! | --- | --- |
//! | PostgreSQL | a connection that listens to notifications |
//! | an SQLite file, through the store's own connection | polls twice a second whether the file has changed |
//! | MySQL, MariaDB; PostgreSQL behind a pooler; the application's own pool of an SQLite file | polls four times a second whether there are jobs for queues with idle workers |

use std::collections::{HashMap, HashSet};
#[cfg(feature = "postgres")]
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use scale_sql::{Database, Statement, System};

use super::idle_workers::IdleWorkers;
use super::statements::Statements;
use super::unhex;

/// Channel of notifications; the payload is an application and a queue.
#[cfg(feature = "postgres")]
const CHANNEL: &str = "scale_queue";
/// Polling interval for changes of an SQLite file, which has no notifications.
const WATCH: Duration = Duration::from_millis(500);
/// Polling interval for jobs where there are no notifications.
const POLL: Duration = Duration::from_millis(250);

/// Parts of the store that the listener task needs; weak, so that the task does not keep the store
/// alive.
pub(super) struct Listener {
    pub(super) app: String,
    pub(super) idle: Weak<IdleWorkers>,
    pub(super) database: Database,
    pub(super) texts: &'static Statements,
}

impl Listener {
    /// Starts the task for the database in use.
    pub(super) fn spawn(self) -> tokio::task::JoinHandle<()> {
        match self.database.system() {
            #[cfg(feature = "postgres")]
            System::Postgres if !self.database.is_pooled() => tokio::spawn(self.listen()),
            System::Sqlite if self.database.is_own() => tokio::spawn(self.watch()),
            _ => tokio::spawn(self.poll()),
        }
    }

    /// Wakes all idle workers and repeats all cancellations, because some may have been missed.
    /// Returns `false` if the store was dropped.
    async fn catch_up(&self) -> bool {
        let Some(idle) = self.idle.upgrade() else { return false };
        idle.wake_all();
        // A failure of the database shows at the next fetch of a worker.
        for id in self.cancelled().await {
            idle.cancel(&unhex(&id));
        }
        true
    }

    async fn cancelled(&self) -> Vec<String> {
        let rows = self
            .texts
            .fetch
            .cancelled
            .bind(self.app.clone())
            .fetch_all(&self.database)
            .await
            .unwrap_or_default();
        rows.iter().filter_map(|row| row.get(0).ok()).collect()
    }

    /// Polls for changes by other processes until the store is dropped.
    async fn watch(self) {
        let version = Statement::new(System::Sqlite, "pragma data_version");
        let mut known: Option<i64> = None;
        loop {
            tokio::time::sleep(WATCH).await;
            if self.idle.strong_count() == 0 {
                return;
            }
            // The version does not change by writes of its own connection, and this process has no
            // other one.
            let version =
                version.query().fetch_one(&self.database).await.and_then(|row| row.get(0)).ok();
            if version != known && !self.catch_up().await {
                return;
            }
            known = version;
        }
    }

    /// Polls for jobs and cancellations until the store is dropped.
    async fn poll(self) {
        let mut cancelled: HashSet<String> = HashSet::new();
        let mut unhandled: HashMap<String, HashSet<String>> = HashMap::new();
        loop {
            // With jitter, so that processes do not poll at the same time.
            tokio::time::sleep(POLL.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            let Some(queues) = self.idle.upgrade().map(|idle| idle.queues()) else { return };
            for queue in queues {
                let is_due = self.is_due(&queue).await;
                let lines = self.unhandled(&queue).await;
                let is_new = lines
                    .iter()
                    .any(|line| !unhandled.get(&queue).is_some_and(|known| known.contains(line)));
                let Some(idle) = self.idle.upgrade() else { return };
                if is_new {
                    // Any of the workers may be the one that can handle it.
                    idle.wake(&queue, usize::MAX);
                } else if is_due {
                    idle.wake(&queue, 1);
                }
                unhandled.insert(queue, lines);
            }
            let now = self.cancelled().await;
            let Some(idle) = self.idle.upgrade() else { return };
            now.iter().filter(|id| !cancelled.contains(*id)).for_each(|id| idle.cancel(&unhex(id)));
            cancelled = now.into_iter().collect();
        }
    }

    async fn is_due(&self, queue: &str) -> bool {
        let is_due = self.texts.fetch.is_due.bind(self.app.clone()).bind(queue);
        let due = is_due.fetch_one(&self.database).await.and_then(|row| row.get::<i64>(0));
        due.is_ok_and(|count| count > 0)
    }

    async fn unhandled(&self, queue: &str) -> HashSet<String> {
        let lines = self.texts.lines.unhandled_lines.bind(self.app.clone()).bind(queue);
        let rows = lines.fetch_all(&self.database).await.unwrap_or_default();
        rows.iter().filter_map(|row| row.get(0).ok()).collect()
    }

    /// Receives notifications until the store is dropped.
    #[cfg(feature = "postgres")]
    async fn listen(self) {
        let Some(options) = self.database.postgres().map(|pool| (*pool.connect_options()).clone())
        else {
            return;
        };
        let mut pause = Duration::from_millis(50);
        while self.idle.strong_count() > 0 {
            let listening = async {
                // A separate pool, because this connection is held as long as the process lives.
                let pool = sqlx::postgres::PgPoolOptions::new()
                    .max_connections(1)
                    .connect_lazy_with(options.clone());
                let mut channel = sqlx::postgres::PgListener::connect_with(&pool).await?;
                // A lost connection has to be an error here, so that missed notifications are made
                // up for.
                channel.eager_reconnect(false);
                channel.listen(CHANNEL).await?;
                Ok::<_, sqlx::Error>(channel)
            };
            match listening.await {
                Ok(mut channel) => {
                    pause = Duration::from_millis(50);
                    self.catch_up().await;
                    while let Ok(Some(notification)) = channel.try_recv().await {
                        let Some(idle) = self.idle.upgrade() else { return };
                        self.hear(&idle, notification.payload());
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "could not listen for notifications; workers poll until that works again",
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    #[cfg(feature = "postgres")]
    fn hear(&self, idle: &Arc<IdleWorkers>, payload: &str) {
        // An application's name may contain any character, a queue's name no slash.
        let Some((app, queue)) = payload.rsplit_once('/') else { return };
        match queue.strip_prefix('!') {
            _ if app != self.app => {}
            Some(tag) => idle.cancel(&unhex(tag)),
            None => idle.wake(queue, 1),
        }
    }
}
