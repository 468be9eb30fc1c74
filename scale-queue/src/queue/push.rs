//! Pushes of one job, of many jobs, and of a job in a transaction of the application.

use crate::error::Error;
use crate::format::{Body, Envelope, Extra, MAX_SIZE};
use crate::job::{Job, JobId};
use crate::push::{Push, PushOptions, Pushed, coalesce};
use crate::queue::{Queue, checked};
use crate::store::Entry;

impl Queue {
    /// Pushes a job, to be run by a [`Worker`](crate::Worker). Concurrent pushes share a round
    /// trip.
    ///
    /// # Errors
    /// Awaiting the push may fail. After [`Error::Full`] or [`Error::TooLarge`] nothing is stored;
    /// after [`Error::Store`] the job may or may not be stored.
    pub fn push<J: Job>(&self, job: J) -> Push<'_, J> {
        Push::new(self, job)
    }

    /// Pushes many jobs of one type to their own queue, with a round trip for every 1,000 jobs or 4
    /// MiB. Each of these portions is stored as a whole or not at all. After an error, earlier
    /// portions are stored.
    pub async fn push_many<J: Job>(
        &self,
        jobs: impl IntoIterator<Item = J>,
    ) -> Result<Vec<Pushed>, Error> {
        let entries: Vec<_> = jobs
            .into_iter()
            .map(|job| self.entry(&job, PushOptions::default()))
            .collect::<Result<_, _>>()?;
        let (ids, entries): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        checked(J::QUEUE)?;
        let answers = self.store.push(J::QUEUE, &entries).await?;
        let pushed: Vec<_> =
            ids.into_iter().zip(answers).map(|(id, holder)| verdict(id, holder)).collect();
        count_pushed(J::QUEUE, pushed.iter().filter(|p| p.is_new).count());
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
    pub async fn push_in<J: Job>(
        &self,
        connection: &mut impl crate::store::Enlist,
        job: J,
    ) -> Result<Pushed, Error> {
        let (id, entry) = self.entry(&job, PushOptions::default())?;
        let queue = checked(J::QUEUE)?;
        if self.store.enlists() {
            self.store.make_known(queue).await?;
        }
        let holder = {
            let (app, direct, is_pooled) =
                (self.store.app(), self.store.enlists(), self.store.is_pooled());
            crate::store::sql::enlist(connection, app, queue, &entry, direct, is_pooled).await?
        };
        let pushed = verdict(id, holder);
        count_pushed(queue, usize::from(pushed.is_new));
        Ok(pushed)
    }

    /// Returns whether jobs of [`push_in`](Self::push_in) stay in an outbox until a
    /// [`Relay`](crate::relay::Relay) moves them. If so, run a relay.
    #[cfg(feature = "sql")]
    pub fn needs_relay(&self) -> bool {
        !self.store.enlists()
    }

    pub(crate) fn envelope<J: Job>(
        &self,
        job: &J,
        unique: Option<String>,
    ) -> Result<Envelope, Error> {
        let payload =
            serde_json::to_vec(job).map_err(|source| Error::Encode { job: J::NAME, source })?;
        if payload.len() > MAX_SIZE {
            return Err(Error::TooLarge { job: J::NAME, size: payload.len() });
        }
        let payload = match &self.encryption {
            Some(encryption) => encryption
                .0
                .encrypt(J::NAME, &payload)
                .map_err(|source| Error::Encryption { job: J::NAME, source })?,
            None => payload,
        };
        let extra = Extra { metadata: self.metadata(), ..Extra::default() };
        let group = job.limits().into_iter().next().map(|limit| limit.key);
        let body = Body {
            name: J::NAME.into(),
            payload,
            unique,
            last_error: None,
            then: Vec::new(),
            extra,
        };
        Ok(Envelope {
            id: JobId::new(),
            failed: 0,
            suspect: false,
            pushed_ms: self.store.now_ms(),
            group,
            body,
        })
    }

    pub(crate) async fn push_entry(
        &self,
        queue: &str,
        id: JobId,
        entry: Entry,
    ) -> Result<Pushed, Error> {
        let holder = coalesce::push(&self.pushes, checked(queue)?, entry).await?;
        let pushed = verdict(id, holder);
        count_pushed(queue, usize::from(pushed.is_new));
        Ok(pushed)
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
