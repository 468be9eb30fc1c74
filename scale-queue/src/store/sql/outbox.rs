//! Jobs pushed inside the application's own transaction: they exist if it commits, and only then.
//!
//! If the queue is in the same database, the job is written where it belongs. If not, it is written to an outbox, and a [`Relay`] moves it
//! into the queue's store. A relay that dies between the two moves it again: the store drops the second one by the job's id.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, Row};

use super::texts::{System, Texts};
use super::{SqlStore, failed, hex, millis};
use crate::envelope::tag_of;
use crate::error::Error;
use crate::queue::Queue;
use crate::store::Entry;

/// A connection that jobs can be pushed through: of Postgres or SQLite, also as sqlx's `Any`. For a transaction `tx`: `&mut *tx`.
#[async_trait]
pub trait Enlist: sealed::Sealed + Send {
    /// Which system's words to use.
    #[doc(hidden)]
    fn system(&self) -> Option<System>;

    /// Tells workers, once the transaction commits.
    #[cfg(feature = "postgres")]
    #[doc(hidden)]
    async fn notify(&mut self, queue: &str) -> Result<(), sqlx::Error>;

    /// Runs one insert.
    #[doc(hidden)]
    async fn insert(&mut self, sql: std::sync::Arc<str>, row: Row6) -> Result<u64, sqlx::Error>;
}

/// What both inserts take: id, queue, delay, unique key, its life, body.
#[allow(unreachable_pub)]
pub type Row6 = (String, String, i64, Option<String>, i64, Vec<u8>);

mod sealed {
    pub trait Sealed {}
}

macro_rules! enlist {
    ($connection:ty, $system:expr) => {
        impl sealed::Sealed for $connection {}

        #[async_trait]
        impl Enlist for $connection {
            fn system(&self) -> Option<System> {
                let system: fn(&$connection) -> Option<System> = $system;
                system(self)
            }

            #[cfg(feature = "postgres")]
            async fn notify(&mut self, queue: &str) -> Result<(), sqlx::Error> {
                let notify = sqlx::query("select pg_notify('scale_queue', $1)").bind(queue.to_owned());
                notify.execute(self).await.map(drop)
            }

            async fn insert(&mut self, sql: std::sync::Arc<str>, row: Row6) -> Result<u64, sqlx::Error> {
                let insert = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(row.0).bind(row.1).bind(row.2);
                let insert = insert.bind(row.3).bind(row.4).bind(row.5);
                Ok(insert.execute(self).await?.rows_affected())
            }
        }
    };
}

#[cfg(feature = "postgres")]
enlist!(sqlx::PgConnection, |_| Some(System::Postgres));
#[cfg(feature = "sqlite")]
enlist!(sqlx::SqliteConnection, |_| Some(System::Sqlite));
enlist!(sqlx::AnyConnection, |connection| match connection.backend_name() {
    #[cfg(feature = "postgres")]
    "PostgreSQL" => Some(System::Postgres),
    #[cfg(feature = "sqlite")]
    "SQLite" => Some(System::Sqlite),
    _ => None,
});

/// Writes an entry through a connection of the application's.
pub(crate) async fn enlist(connection: &mut impl Enlist, queue: &str, entry: &Entry, direct: bool) -> Result<bool, Error> {
    let system = connection.system().ok_or_else(|| Error::Address("a connection of another database system".into()))?;
    let texts = Texts::new(system);
    let row = (
        hex(tag_of(&entry.bytes)),
        queue.to_owned(),
        if entry.delay.is_zero() { 0 } else { millis(entry.delay) },
        entry.unique.as_ref().map(|(key, _)| key.clone()),
        entry.unique.as_ref().map_or(0, |(_, life)| millis(*life)),
        entry.bytes.clone(),
    );
    let sql = if direct { texts.push.text() } else { texts.outbox_put.text() };
    let stored = connection.insert(sql, row).await.map_err(failed)? > 0;
    #[cfg(feature = "postgres")]
    if direct && system == System::Postgres {
        connection.notify(queue).await.map_err(failed)?;
    }
    Ok(stored)
}

/// Moves jobs from a database's outbox into a queue whose store is elsewhere, Redis as a rule. Any number may run.
///
/// ```no_run
/// # async fn example(stopped: impl Future<Output = ()>) -> Result<(), scale_queue::Error> {
/// use scale_queue::{Queue, store::Relay};
///
/// let queue = Queue::connect("redis://127.0.0.1", "shop").await?;
/// Relay::connect("postgres://primary/shop", &queue).await?.run(stopped).await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Relay {
    pool: AnyPool,
    texts: Texts,
    queue: Queue,
}

/// Jobs moved in one transaction at most.
const BATCH: i64 = 500;
/// How long the store remembers which jobs it was given.
const REMEMBERED: Duration = Duration::from_hours(1);
/// How often an empty outbox is looked into.
const LOOK: Duration = Duration::from_millis(200);

impl Relay {
    /// Connects to the database, and makes its outbox if it is not there.
    pub async fn connect(url: &str, queue: &Queue) -> Result<Self, Error> {
        // The same tables as those of a store there.
        let store = SqlStore::connect(url).await?;
        let system = store.system;
        store.pool.close().await;
        let pool = AnyPoolOptions::new().max_connections(1).connect_lazy(url);
        let pool = pool.map_err(|_| Error::Address("a database address that cannot be read".into()))?;
        Ok(Self { pool, texts: Texts::new(system), queue: queue.clone() })
    }

    /// Moves until `stop` ends. Errors of either side are waited out.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let work = async {
            loop {
                match self.step().await {
                    Ok(0) => tokio::time::sleep(LOOK.mul_f64(0.75 + fastrand::f64() / 2.0)).await,
                    Ok(moved) => metrics::counter!("scale_queue_relayed_total").increment(moved as u64),
                    Err(error) => {
                        tracing::warn!(%error, "the outbox could not be moved; trying again");
                        tokio::time::sleep(LOOK * 5).await;
                    }
                }
            }
        };
        tokio::select! {
            () = stop => {}
            () = work => {}
        }
    }

    /// One batch; returns how many were moved.
    pub async fn step(&self) -> Result<usize, Error> {
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let rows = self.texts.outbox_take.query().bind(BATCH).fetch_all(&mut *tx).await.map_err(failed)?;
        for row in &rows {
            let (seq, id): (i64, String) = row.try_get(0).and_then(|seq| Ok((seq, row.try_get(1)?))).map_err(failed)?;
            let queue: String = row.try_get(2).map_err(failed)?;
            let delay: i64 = row.try_get(3).map_err(failed)?;
            let key: Option<String> = row.try_get(4).map_err(failed)?;
            let life: i64 = row.try_get(5).map_err(failed)?;
            let bytes: Vec<u8> = row.try_get(6).map_err(failed)?;
            let time = |ms: i64| Duration::from_millis(ms.max(0) as u64);
            let unique = key.map_or_else(|| (format!("once:{id}"), REMEMBERED), |key| (key, time(life)));
            let entry = Entry { bytes, delay: time(delay), unique: Some(unique) };
            self.queue.store().push(&queue, &[entry]).await?;
            self.texts.outbox_drop.query().bind(seq).execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(rows.len())
    }
}
