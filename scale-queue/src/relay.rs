//! Moves jobs that were pushed inside transactions of a database into a queue with another store.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use sqlx::{Database, Transaction};

use crate::error::Error;
use crate::queue::Queue;
use crate::store::{Enlist, outbox};

/// Moves jobs from a database's outbox into a queue with another store, usually Redis. Any number
/// of relays may run: one at a time moves jobs, in the order of their pushes.
///
/// ```no_run
/// # async fn example(
/// #     pool: sqlx::PgPool,
/// #     stopped: impl Future<Output = ()>,
/// # ) -> Result<(), scale_queue::Error> {
/// use scale_queue::{Queue, relay::Relay};
///
/// let queue = Queue::connect("redis://127.0.0.1", "shop").await?;
/// Relay::new(&queue).run(|| pool.begin(), stopped).await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Relay {
    queue: Queue,
    /// True if the relay has looked for rows of versions without an application name.
    has_adopted: Arc<AtomicBool>,
}

/// Polling interval of an empty outbox.
const LOOK: Duration = Duration::from_millis(200);

impl Relay {
    /// Creates a relay into this queue.
    pub fn new(queue: &Queue) -> Self {
        Self { queue: queue.clone(), has_adopted: Arc::default() }
    }

    /// Migrates the outbox of a database to this version of the crate, as
    /// [`store::migrate`](crate::store::migrate) does for all tables. Run it where the application
    /// runs its own migrations.
    ///
    /// # Errors
    /// [`Error::Schema`], [`Error::Store`].
    pub async fn migrate(database: impl Into<scale_sql::Database>) -> Result<(), Error> {
        outbox::migrate(&database.into()).await
    }

    /// Moves jobs until `stop` completes; `begin` begins a transaction. After an error of either
    /// side the relay waits and tries again.
    ///
    /// If the queue itself is in the database, transactions push into it directly, and there is
    /// nothing to move: so a worker can run a relay whatever the store is.
    pub async fn run<DB, F, T>(self, begin: impl Fn() -> F, stop: impl Future<Output = T>)
    where
        DB: Database,
        DB::Connection: Enlist,
        F: Future<Output = Result<Transaction<'static, DB>, sqlx::Error>>,
    {
        if !self.queue.needs_relay() {
            stop.await;
            return;
        }
        let step = async || {
            let mut tx = begin().await.map_err(Error::store)?;
            let moved = self.step(&mut *tx).await?;
            tx.commit().await.map_err(Error::store)?;
            Ok::<_, Error>(moved)
        };
        let work = async {
            loop {
                match step().await {
                    Ok(0) => tokio::time::sleep(LOOK.mul_f64(0.75 + fastrand::f64() / 2.0)).await,
                    Ok(moved) => {
                        metrics::counter!("scale_queue_relayed_total").increment(moved as u64);
                    }
                    Err(error) => {
                        tracing::warn!(
                            %error,
                            "could not move jobs out of the outbox; trying again",
                        );
                        // What this step has adopted was rolled back with it.
                        self.has_adopted.store(false, Relaxed);
                        tokio::time::sleep(LOOK * 5).await;
                    }
                }
            }
        };
        tokio::select! {
            _ = stop => {}
            () = work => {}
        }
    }

    /// Moves one batch of jobs inside a transaction, which the caller commits. Returns the number
    /// of moved jobs.
    ///
    /// # Errors
    /// [`Error::Store`] if the database or the queue's store fails: then the caller must not
    /// commit.
    pub async fn step(&self, connection: &mut impl Enlist) -> Result<usize, Error> {
        let adopt = !self.has_adopted.load(Relaxed);
        let moved = outbox::move_batch(&**self.queue.store(), connection, adopt).await?;
        self.has_adopted.store(true, Relaxed);
        Ok(moved)
    }
}
