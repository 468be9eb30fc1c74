//! What hears of other processes on the same database: Postgres notifies, an SQLite file has to be looked at.

use std::sync::Weak;
use std::time::Duration;

use sqlx::{AnyPool, Row};

use super::sleepers::Sleepers;
use super::texts::Statement;
use super::unhex;

/// The channel of notifications; the payload is a queue's name.
#[cfg(feature = "postgres")]
const CHANNEL: &str = "scale_queue";
/// How often a process looks whether another one has written to an SQLite file, which cannot tell it.
#[cfg(feature = "sqlite")]
const POLL: Duration = Duration::from_millis(500);

/// What hears of other processes needs of a store, and does not keep it alive by.
pub(super) struct Ear {
    pub(super) sleepers: Weak<Sleepers>,
    pub(super) pool: AnyPool,
    pub(super) cancelled: Statement,
}

impl Ear {
    /// News may have been missed: whoever is idle looks, whoever holds what is cancelled ends it. `false`: the store is gone.
    async fn catch_up(&self) -> bool {
        let Some(sleepers) = self.sleepers.upgrade() else { return false };
        sleepers.wake_all();
        // A failure shows with the next look of a worker.
        for row in self.cancelled.query().fetch_all(&self.pool).await.unwrap_or_default() {
            row.try_get(0).map(|id: String| sleepers.cancel(&unhex(&id))).unwrap_or_default();
        }
        true
    }
}

/// Looks whether other processes have written, as long as the store is there.
#[cfg(feature = "sqlite")]
pub(super) async fn watch(ear: Ear) {
    let mut known: Option<i64> = None;
    loop {
        tokio::time::sleep(POLL).await;
        if ear.sleepers.strong_count() == 0 {
            return;
        }
        // It does not change by what its own connection writes, and that is the only one of this process.
        let version = sqlx::query("pragma data_version").fetch_one(&ear.pool).await.and_then(|row| row.try_get(0)).ok();
        if version != known && !ear.catch_up().await {
            return;
        }
        known = version;
    }
}

/// Hears of pushes by other processes, as long as the store is there.
#[cfg(feature = "postgres")]
pub(super) async fn listen(url: String, ear: Ear) {
    let mut pause = Duration::from_millis(50);
    while ear.sleepers.strong_count() > 0 {
        let listening = async {
            let mut listener = sqlx::postgres::PgListener::connect(&url).await?;
            // A lost connection is an error here, so that what was missed meanwhile is looked for.
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok::<_, sqlx::Error>(listener)
        };
        match listening.await {
            Ok(mut listener) => {
                pause = Duration::from_millis(50);
                ear.catch_up().await;
                while let Ok(Some(notification)) = listener.try_recv().await {
                    let Some(sleepers) = ear.sleepers.upgrade() else { return };
                    match notification.payload().strip_prefix('!') {
                        Some(tag) => sleepers.cancel(&unhex(tag)),
                        None => sleepers.wake(notification.payload(), 1),
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
