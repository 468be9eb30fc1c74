//! Pushes of one job, of many jobs, and of a job in a transaction of the application.

use std::borrow::Cow;

use crate::error::Error;
use crate::format::turn_of;
use crate::job::JobId;
use crate::options::IntoPush;
use crate::push::{Encoded, Push, Pushed, coalesce};
use crate::queue::{Queue, checked};
use crate::store::Entry;

impl Queue {
    /// Pushes a job, to be run by a [`Worker`](crate::Worker). Concurrent pushes share a round
    /// trip.
    ///
    /// # Errors
    /// Awaiting the push may fail. After [`Error::Full`] or [`Error::TooLarge`] nothing is stored;
    /// after [`Error::Store`] the job may or may not be stored.
    pub fn push<P: IntoPush>(&self, job: P) -> Push<'_, P::Job> {
        let (job, options) = job.into_push();
        Push::new(self, job, options)
    }

    /// Pushes many jobs, with a round trip for every 1,000 jobs or 4 MiB of a queue. Each of these
    /// portions is stored as a whole or not at all. After an error, earlier portions are stored.
    /// Returns the results in the order of the jobs.
    pub async fn push_many<P: IntoPush>(
        &self,
        jobs: impl IntoIterator<Item = P>,
    ) -> Result<Vec<Pushed>, Error> {
        let mut grouped = Grouped::default();
        for job in jobs {
            let (job, options) = job.into_push();
            grouped.add(self.encoded(&job, &options)?);
        }
        self.push_all(grouped).await
    }

    /// Pushes encoded jobs, those of each queue together.
    pub(crate) async fn push_all(&self, jobs: Grouped) -> Result<Vec<Pushed>, Error> {
        let Grouped { mut pushed, queues } = jobs;
        for (queue, places, entries) in queues {
            let answers = self.target.push(&queue, &entries).await?;
            for (place, holder) in places.iter().zip(answers) {
                pushed[*place] = verdict(pushed[*place].id, holder);
            }
            count_pushed(&queue, places.iter().filter(|place| pushed[**place].is_new).count());
            for place in places {
                self.run_inline(&queue, pushed[place].id).await;
            }
        }
        Ok(pushed)
    }

    /// Pushes a job inside a transaction of the application: the job exists if and only if the
    /// transaction commits. If the queue's store is the same database, the commit puts the job into
    /// the queue. If the store is another one, for example Redis, the job goes through an outbox,
    /// from which a [`Relay`](crate::relay::Relay) moves it.
    ///
    /// ```no_run
    /// # use scale_queue::{Job, Queue};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendReceipt { order: i64 }
    /// # impl Job for SendReceipt { const NAME: &'static str = "send-receipt"; }
    /// # async fn example(
    /// #     pool: sqlx::PgPool,
    /// #     queue: Queue,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = pool.begin().await?;
    /// sqlx::query("insert into orders (id) values (7)").execute(&mut *tx).await?;
    /// queue.push_in(&mut *tx, SendReceipt { order: 7 }).await?;
    /// tx.commit().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The errors of [`push`](Self::push); then the transaction should be rolled back.
    /// [`Error::Store`] if the tables are missing: [`store::migrate`](crate::store::migrate)
    /// creates all of them, [`Relay::migrate`](crate::relay::Relay::migrate) only the outbox.
    #[cfg(feature = "sql")]
    pub async fn push_in<P: IntoPush>(
        &self,
        connection: &mut impl crate::store::Enlist,
        job: P,
    ) -> Result<Pushed, Error> {
        let (job, options) = job.into_push();
        self.enlist(connection, self.encoded(&job, &options)?).await
    }

    /// Pushes an encoded job inside a transaction of the application.
    #[cfg(feature = "sql")]
    pub(crate) async fn enlist(
        &self,
        connection: &mut impl crate::store::Enlist,
        job: Encoded,
    ) -> Result<Pushed, Error> {
        let Encoded { queue, id, entry } = job;
        let queue = &*queue;
        #[cfg(feature = "testing")]
        if self.fake.is_some() {
            return self.push_entry(queue, id, entry).await;
        }
        if self.store().enlists() {
            self.store().make_known(queue).await?;
        } else {
            say_who_moves_jobs();
        }
        let holder = {
            let (app, direct, is_pooled) =
                (self.store().app(), self.store().enlists(), self.store().is_pooled());
            crate::store::sql::enlist(connection, app, queue, &entry, direct, is_pooled).await?
        };
        let pushed = verdict(id, holder);
        count_pushed(queue, usize::from(pushed.is_new));
        Ok(pushed)
    }

    /// Returns whether jobs of [`push_in`](Self::push_in) stay in an outbox until a
    /// [`Relay`](crate::relay::Relay) moves them.
    #[cfg(feature = "sql")]
    pub fn needs_relay(&self) -> bool {
        #[cfg(feature = "testing")]
        if self.fake.is_some() {
            return false;
        }
        !self.store().enlists()
    }

    pub(crate) async fn push_entry(
        &self,
        queue: &str,
        id: JobId,
        entry: Entry,
    ) -> Result<Pushed, Error> {
        let queue = checked(queue)?;
        let may_wait = self.store().enlists() && waits_for_transactions(&entry);
        let holder = coalesce::push(&self.pushes, queue, entry, may_wait).await?;
        let pushed = verdict(id, holder);
        count_pushed(queue, usize::from(pushed.is_new));
        if pushed.is_new {
            self.run_inline(queue, id).await;
        }
        Ok(pushed)
    }
}

/// Returns whether the push of a job to a database may wait for a transaction of the application
/// that has pushed one of the same key or group.
fn waits_for_transactions(entry: &Entry) -> bool {
    let Entry { unique, once, debounce, bytes, .. } = entry;
    unique.is_some() || once.is_some() || debounce.is_some() || turn_of(bytes).is_some()
}

/// Encoded jobs by queue, with their places among all.
#[derive(Debug, Default)]
pub(crate) struct Grouped {
    /// Results, as if all were stored.
    pushed: Vec<Pushed>,
    queues: Vec<(Cow<'static, str>, Vec<usize>, Vec<Entry>)>,
}

impl Grouped {
    pub(crate) fn add(&mut self, job: Encoded) {
        let Encoded { queue, id, entry } = job;
        let place = self.pushed.len();
        self.pushed.push(verdict(id, None));
        match self.queues.iter_mut().rev().find(|(known, ..)| *known == queue) {
            Some((_, places, entries)) => {
                places.push(place);
                entries.push(entry);
            }
            None => self.queues.push((queue, vec![place], vec![entry])),
        }
    }
}

pub(crate) fn count_pushed(queue: &str, count: usize) {
    metrics::counter!("scale_queue_pushed_total", "queue" => queue.to_owned())
        .increment(count as u64);
}

fn verdict(id: JobId, holder: Option<Vec<u8>>) -> Pushed {
    match holder {
        None => Pushed { id, is_new: true },
        Some(holder) => {
            Pushed { id: holder.try_into().map_or(id, JobId::from_bytes), is_new: false }
        }
    }
}

/// Logs once that jobs of transactions wait in an outbox.
#[cfg(feature = "sql")]
fn say_who_moves_jobs() {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        tracing::info!(
            "jobs pushed in a transaction wait in the table `scale_queue_outbox`, because the \
             queue has another store: a `scale_queue::relay::Relay` must run in some process",
        );
    });
}
