//! Failover of pushes: while the queue's store does not answer, jobs go to an outbox in a database.
//!
//! | when | then |
//! | --- | --- |
//! | a push fails because the store does not answer or is full | the jobs are stored in the outbox, and the push succeeds |
//! | the answer of a push was lost, although the store has the job | the job is moved to the store a second time; the store knows its id for a day, and refuses it |
//! | the store answers again | the jobs of the outbox are moved, in the order of their pushes |
//! | a process has pushed jobs of a queue to the outbox | its next pushes to that queue go there too, until the outbox was found empty: its jobs keep their order |
//! | a process dies | its jobs in the outbox are moved by any other process with the same setting |
//! | the database does not answer either | the push fails with the store's error |
//! | unique keys | are checked when the job is moved; until then a push of the same key is reported as new |
//! | a push is [debounced](crate::push::Push::debounce) | of the pushes that wait in the outbox together, those whose content was replaced before it was due are dropped when they are moved |
//! | a process is stopped while it moves jobs | the others wait, so that jobs keep their order, until its database connection ends |
//! | a chain is pushed | its first job goes to the outbox; workers push the others, and wait for the store |
//! | a batch is pushed | the push fails, because its progress is kept in the store: push it again under its [name](crate::Batch::named) |
//! | the store does not answer when a process starts | [`QueueBuilder::connect`](crate::QueueBuilder::connect) fails |

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use scale_sql::Database;
use tokio::sync::RwLock;

use crate::error::Error;
use crate::store::{Entry, Store, outbox};

/// Time for which the store remembers each pushed job, to refuse one that is moved to it again.
pub(crate) const REMEMBERED: Duration = Duration::from_hours(24);
/// Interval between two looks into an outbox that was empty, and after a failure.
const LOOK: Duration = Duration::from_millis(500);
/// The same if this process has not failed over.
const LOOK_FOR_OTHERS: Duration = Duration::from_secs(5);

/// Outbox of pushes that the store could not take.
#[derive(Debug)]
pub(crate) struct Failover {
    database: Database,
    app: String,
    /// Queues whose pushes go to the outbox.
    over: Mutex<HashSet<String>>,
    /// Read-locked while jobs are put into the outbox.
    gate: RwLock<()>,
}

impl Failover {
    /// Opens the outbox, and starts to move its jobs into the store.
    pub(crate) async fn open(
        database: Database,
        store: &Arc<dyn Store>,
        migrates: bool,
    ) -> Result<Arc<Self>, Error> {
        if migrates {
            outbox::migrate(&database).await?;
        } else {
            outbox::check(&database).await?;
        }
        let app = store.app().to_owned();
        let (over, gate) = <_>::default();
        let failover = Arc::new(Self { database, app, over, gate });
        tokio::spawn(relay(Arc::downgrade(&failover), Arc::clone(store)));
        Ok(failover)
    }

    /// Pushes jobs into the store, or into the outbox if that fails.
    pub(crate) async fn push(
        &self,
        store: &dyn Store,
        queue: &str,
        entries: &[Entry],
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let mut gate = Some(self.gate.read().await);
        let error = if self.over.lock().contains(queue) {
            Error::store("jobs of this queue wait in the outbox")
        } else {
            gate = None;
            let entries: Vec<_> = entries.iter().map(remembered).collect();
            match store.push(queue, &entries).await {
                Ok(answers) => {
                    // The id of the job itself: it is stored already.
                    let holders = answers.into_iter().zip(&entries).map(|(holder, entry)| {
                        holder.filter(|holder| *holder != crate::format::tag_of(&entry.bytes))
                    });
                    return Ok(holders.collect());
                }
                Err(error @ (Error::Store(_) | Error::Full)) if !error.is_refusal() => error,
                Err(error) => return Err(error),
            }
        };
        if gate.is_none() {
            gate = Some(self.gate.read().await);
        }
        if let Err(failed) = outbox::put_all(&self.database, &self.app, queue, entries).await {
            tracing::error!(%failed, "neither the queue's store nor its outbox takes jobs");
            let (error, failed) = (error.without_prefix(), failed.without_prefix());
            return Err(Error::store(format!("{error}; and the outbox: {failed}")));
        }
        if self.over.lock().insert(queue.to_owned()) {
            tracing::warn!(
                %error, queue,
                "the queue's store takes no jobs; pushes go to the outbox until it does",
            );
            metrics::counter!("scale_queue_failovers_total").increment(1);
        }
        drop(gate);
        Ok(vec![None; entries.len()])
    }

    /// Lets pushes go to the store again, if the outbox is empty while none is put into it.
    async fn come_back(&self, store: &dyn Store) -> Result<(), Error> {
        let _gate = self.gate.write().await;
        if self.step(store).await? == 0 && outbox::is_empty(&self.database, &self.app).await? {
            self.over.lock().clear();
            tracing::info!("the outbox is empty; pushes go to the queue's store again");
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        !self.over.lock().is_empty()
    }

    /// Moves jobs from the outbox into the store. Returns their number.
    async fn step(&self, store: &dyn Store) -> Result<usize, Error> {
        let mut tx = self.database.begin().await.map_err(Error::store)?;
        let moved = outbox::move_rows(store, &mut tx, false).await?;
        tx.commit().await.map_err(Error::store)?;
        Ok(moved)
    }
}

/// Returns the entry with a key by which the store refuses the job if it is pushed again.
fn remembered(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    entry.once.get_or_insert_with(|| (outbox::key_of_job(&entry.bytes), REMEMBERED));
    entry
}

/// Moves jobs from the outbox into the store, until the queue's last handle is dropped.
async fn relay(failover: std::sync::Weak<Failover>, store: Arc<dyn Store>) {
    loop {
        let Some(outbox) = failover.upgrade() else { return };
        let wait = match outbox.step(&*store).await {
            Ok(0) if outbox.is_over() => {
                if let Err(error) = outbox.come_back(&*store).await {
                    tracing::debug!(%error, "could not look whether the outbox is empty");
                }
                LOOK
            }
            Ok(0) => LOOK_FOR_OTHERS,
            Ok(moved) => {
                metrics::counter!("scale_queue_relayed_total").increment(moved as u64);
                Duration::ZERO
            }
            Err(error) => {
                tracing::debug!(%error, "could not move jobs out of the outbox; trying again");
                LOOK
            }
        };
        let wait = if outbox.is_over() { wait.min(LOOK) } else { wait };
        drop(outbox);
        tokio::time::sleep(wait.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
    }
}
