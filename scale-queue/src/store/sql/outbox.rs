//! Jobs pushed inside the application's own transaction: they exist if it commits, and only then.
//!
//! If the queue is in the same database, the job is written where it belongs. If not, it is written to an outbox, and a [`Relay`] moves it
//! into the queue's store. A relay that dies between the two moves it again: the store drops the second one by the job's id.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Database, Row, Transaction};

use super::texts::{System, Texts};
use super::{failed, hex, key_text, millis, unhex};
use crate::envelope::{group_of, tag_of};
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
    async fn notify(&mut self, payload: String) -> Result<(), sqlx::Error>;

    /// Runs a statement whose parameters are texts.
    #[doc(hidden)]
    async fn run(&mut self, sql: Arc<str>, texts: &[&str]) -> Result<(), sqlx::Error>;

    /// Reads one text by texts.
    #[doc(hidden)]
    async fn read(&mut self, sql: Arc<str>, texts: &[&str]) -> Result<Option<String>, sqlx::Error>;

    /// Runs one insert.
    #[doc(hidden)]
    async fn insert(&mut self, sql: Arc<str>, row: NewRow) -> Result<u64, sqlx::Error>;

    /// Rows of an application's outbox, their numbers first.
    #[doc(hidden)]
    async fn take(&mut self, sql: Arc<str>, app: &str, limit: i64) -> Result<Vec<(i64, OutboxRow)>, sqlx::Error>;

    /// Removes a row of the outbox.
    #[doc(hidden)]
    async fn remove(&mut self, sql: Arc<str>, number: i64) -> Result<(), sqlx::Error>;

    /// Runs statements that answer nothing.
    #[doc(hidden)]
    async fn tell(&mut self, sql: Arc<str>) -> Result<(), sqlx::Error>;
}

/// What both inserts take: id, application, queue, delay, group, unique key, its life, body.
#[allow(unreachable_pub)]
pub type NewRow = (String, String, String, i64, Option<String>, Option<String>, i64, Vec<u8>);

/// A row of the outbox: id, queue, delay, unique key, its life, body.
#[allow(unreachable_pub)]
pub type OutboxRow = (String, String, i64, Option<String>, i64, Vec<u8>);

/// Several processes may make the tables at once, which Postgres does not like.
#[cfg(feature = "postgres")]
pub(super) const MIGRATION_LOCK: &str = "select pg_advisory_xact_lock(7222011)";

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
            async fn notify(&mut self, payload: String) -> Result<(), sqlx::Error> {
                let notify = sqlx::query("select pg_notify('scale_queue', $1)").bind(payload);
                notify.execute(self).await.map(drop)
            }

            async fn run(&mut self, sql: Arc<str>, texts: &[&str]) -> Result<(), sqlx::Error> {
                let query = texts.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, text| query.bind((*text).to_owned()));
                query.execute(self).await.map(drop)
            }

            async fn read(&mut self, sql: Arc<str>, texts: &[&str]) -> Result<Option<String>, sqlx::Error> {
                let query = texts.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, text| query.bind((*text).to_owned()));
                query.fetch_optional(self).await?.map(|row| row.try_get(0)).transpose()
            }

            async fn insert(&mut self, sql: Arc<str>, row: NewRow) -> Result<u64, sqlx::Error> {
                let insert = sqlx::query(AssertSqlSafe(sql)).bind(row.0).bind(row.1).bind(row.2).bind(row.3);
                let insert = insert.bind(row.4).bind(row.5).bind(row.6).bind(row.7);
                Ok(insert.execute(self).await?.rows_affected())
            }

            async fn take(&mut self, sql: Arc<str>, app: &str, limit: i64) -> Result<Vec<(i64, OutboxRow)>, sqlx::Error> {
                let rows = sqlx::query(AssertSqlSafe(sql)).bind(app.to_owned()).bind(limit).fetch_all(self).await?;
                let read = |row: &<<$connection as sqlx::Connection>::Database as sqlx::Database>::Row| {
                    let body =
                        (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
                    Ok((row.try_get(0)?, body))
                };
                rows.iter().map(read).collect()
            }

            async fn remove(&mut self, sql: Arc<str>, number: i64) -> Result<(), sqlx::Error> {
                sqlx::query(AssertSqlSafe(sql)).bind(number).execute(self).await.map(drop)
            }

            async fn tell(&mut self, sql: Arc<str>) -> Result<(), sqlx::Error> {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(self).await.map(drop)
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

/// Writes an entry through a connection of the application's. Returns the id of the job that holds its unique key, if one does.
pub(crate) async fn enlist(
    connection: &mut impl Enlist,
    app: &str,
    queue: &str,
    entry: &Entry,
    direct: bool,
) -> Result<Option<Vec<u8>>, Error> {
    let (system, texts) = texts_of(connection)?;
    let app = key_text(app);
    let row = || {
        (
            hex(tag_of(&entry.bytes)),
            app.clone(),
            queue.to_owned(),
            if entry.delay.is_zero() { 0 } else { millis(entry.delay) },
            group_of(&entry.bytes).map(key_text),
            entry.unique.as_ref().map(|(key, _)| key_text(key)),
            entry.unique.as_ref().map_or(0, |(_, life)| millis(*life)),
            entry.bytes.clone(),
        )
    };
    let _ = system;
    if !direct {
        connection.insert(texts.outbox_put.text(), row()).await.map_err(failed)?;
        return Ok(None);
    }
    #[cfg(feature = "sqlite")]
    if system == System::Sqlite {
        connection.run(texts.know.text(), &[&app, queue]).await.map_err(failed)?;
    }
    // As in a push: a key whose time is over is free, and a holder may end in between.
    for _ in 0..10 {
        if let Some((key, _)) = &entry.unique {
            connection.run(texts.free_late.text(), &[&app, queue, &key_text(key)]).await.map_err(failed)?;
        }
        if connection.insert(texts.push.text(), row()).await.map_err(failed)? > 0 {
            #[cfg(feature = "postgres")]
            if system == System::Postgres {
                connection.notify(format!("{app}/{queue}")).await.map_err(failed)?;
            }
            return Ok(None);
        }
        let Some((key, _)) = &entry.unique else { return Ok(None) };
        if let Some(id) = connection.read(texts.holder.text(), &[&app, queue, &key_text(key)]).await.map_err(failed)? {
            return Ok(Some(unhex(&id)));
        }
    }
    Err(Error::store("a unique key changed hands ten times during a push"))
}

fn texts_of(connection: &impl Enlist) -> Result<(System, Texts), Error> {
    let system = connection.system().ok_or_else(|| Error::Address("a connection of another database system".into()))?;
    Ok((system, Texts::new(system)))
}

/// Moves jobs from a database's outbox into a queue whose store is elsewhere, Redis as a rule. Any number may run.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool, stopped: impl Future<Output = ()>) -> Result<(), scale_queue::Error> {
/// use scale_queue::{Queue, store::Relay};
///
/// let queue = Queue::connect("redis://127.0.0.1", "shop").await?;
/// Relay::new(&queue).run(|| pool.begin(), stopped).await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Relay {
    queue: Queue,
}

/// Jobs moved in one transaction at most.
const BATCH: i64 = 500;
/// How long the store remembers which jobs it was given.
const REMEMBERED: Duration = Duration::from_hours(1);
/// How often an empty outbox is looked into.
const LOOK: Duration = Duration::from_millis(200);

impl Relay {
    /// Into this queue.
    pub fn new(queue: &Queue) -> Self {
        Self { queue: queue.clone() }
    }

    /// Makes the outbox, if it is not there. Run it where the application makes its own tables.
    pub async fn migrate(connection: &mut impl Enlist) -> Result<(), Error> {
        let (system, texts) = texts_of(connection)?;
        let _ = system;
        #[cfg(feature = "postgres")]
        if system == System::Postgres {
            // One message is one transaction, so that the lock holds until the tables are there.
            let tables = format!("{MIGRATION_LOCK};{}", texts.tables.text());
            return connection.tell(tables.into()).await.map_err(failed);
        }
        connection.tell(texts.tables.text()).await.map_err(failed)
    }

    /// Moves until `stop` ends; `begin` begins a transaction. Errors of either side are waited out.
    pub async fn run<DB, F>(self, begin: impl Fn() -> F, stop: impl Future<Output = ()>)
    where
        DB: Database,
        DB::Connection: Enlist,
        F: Future<Output = Result<Transaction<'static, DB>, sqlx::Error>>,
    {
        let step = async || {
            let mut tx = begin().await.map_err(failed)?;
            let moved = self.step(&mut *tx).await?;
            tx.commit().await.map_err(failed)?;
            Ok::<_, Error>(moved)
        };
        let work = async {
            loop {
                match step().await {
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

    /// Moves one batch inside a transaction, which the caller commits; returns how many.
    pub async fn step(&self, connection: &mut impl Enlist) -> Result<usize, Error> {
        let (_, texts) = texts_of(connection)?;
        let rows = connection.take(texts.outbox_take.text(), &key_text(self.queue.store().app()), BATCH).await.map_err(failed)?;
        let count = rows.len();
        for (number, (id, queue, delay, key, life, bytes)) in rows {
            let time = |ms: i64| Duration::from_millis(ms.max(0) as u64);
            let unique = key.map(|key| (super::key_of(&key), time(life)));
            let entry = Entry { bytes, delay: time(delay), unique, once: Some((id, REMEMBERED)) };
            self.queue.store().push(&queue, &[entry]).await?;
            connection.remove(texts.outbox_drop.text(), number).await.map_err(failed)?;
        }
        Ok(count)
    }
}
