//! What hears of other processes on the same database: Postgres notifies, an SQLite file has to be looked at.

use std::sync::Weak;
use std::time::Duration;

use sqlx::{AnyPool, Row};

use super::idle_workers::IdleWorkers;
use super::texts::Statement;
use super::unhex;

/// The channel of notifications; the payload is a queue's name.
#[cfg(feature = "postgres")]
const CHANNEL: &str = "scale_queue";
/// How often a process looks whether another one has written to an SQLite file, which cannot tell it.
#[cfg(feature = "sqlite")]
const POLL: Duration = Duration::from_millis(500);

/// What the listening task needs of its store; it does not keep the store alive.
pub(super) struct Listener {
    #[cfg(feature = "postgres")]
    pub(super) app: String,
    pub(super) idle: Weak<IdleWorkers>,
    pub(super) pool: AnyPool,
    pub(super) cancelled: Statement,
}

impl Listener {
    /// News may have been missed: whoever is idle looks, whoever holds what is cancelled ends it. `false`: the store is gone.
    async fn catch_up(&self) -> bool {
        let Some(idle) = self.idle.upgrade() else { return false };
        idle.wake_all();
        // A failure shows with the next look of a worker.
        for row in self.cancelled.query().fetch_all(&self.pool).await.unwrap_or_default() {
            row.try_get(0).map(|id: String| idle.cancel(&unhex(&id))).unwrap_or_default();
        }
        true
    }
}

/// Looks whether other processes have written, as long as the store is there.
#[cfg(feature = "sqlite")]
pub(super) async fn watch(listener: Listener) {
    let mut known: Option<i64> = None;
    loop {
        tokio::time::sleep(POLL).await;
        if listener.idle.strong_count() == 0 {
            return;
        }
        // It does not change by what its own connection writes, and that is the only one of this process.
        let version = sqlx::query("pragma data_version").fetch_one(&listener.pool).await.and_then(|row| row.try_get(0)).ok();
        if version != known && !listener.catch_up().await {
            return;
        }
        known = version;
    }
}

/// Hears of pushes by other processes, as long as the store is there.
#[cfg(feature = "postgres")]
pub(super) async fn listen(url: String, listener: Listener) {
    let mut pause = Duration::from_millis(50);
    while listener.idle.strong_count() > 0 {
        let listening = async {
            let mut channel = sqlx::postgres::PgListener::connect(&url).await?;
            // A lost connection is an error here, so that what was missed meanwhile is looked for.
            channel.eager_reconnect(false);
            channel.listen(CHANNEL).await?;
            Ok::<_, sqlx::Error>(channel)
        };
        match listening.await {
            Ok(mut channel) => {
                pause = Duration::from_millis(50);
                listener.catch_up().await;
                while let Ok(Some(notification)) = channel.try_recv().await {
                    let Some(idle) = listener.idle.upgrade() else { return };
                    // An application's name may have any character, a queue's name has no slash.
                    let Some((app, queue)) = notification.payload().rsplit_once('/') else { continue };
                    match queue.strip_prefix('!') {
                        _ if app != listener.app => {}
                        Some(tag) => idle.cancel(&unhex(tag)),
                        None => idle.wake(queue, 1),
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot hear of pushes; workers look by themselves");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
}
