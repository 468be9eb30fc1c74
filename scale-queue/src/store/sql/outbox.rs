//! Jobs pushed inside the application's own transaction: they exist if and only if it commits.
//!
//! If the queue is in the same database, the job is written to the queue's table. Otherwise it is
//! written to an outbox, and a [`Relay`](crate::relay::Relay) moves it into the queue's store. A
//! relay that dies between push and delete pushes the job again, and the store rejects the second
//! push by the job's id.

use std::collections::HashMap;
use std::time::Duration;

use scale_sql::{Connection, System};

use super::push::{delay_ms, notify, push_one};
use super::statements::Statements;
use super::{app_text, failed, hex, key_text, millis, schema};
use crate::error::Error;
use crate::format::{group_of, pushed_ms, tag_of};
use crate::store::{Debounce, Entry, Store};

/// Connection through which jobs can be pushed: PostgreSQL, MySQL, MariaDB or SQLite, or sqlx's
/// `Any`. For a transaction `tx`, pass `&mut *tx`.
pub trait Enlist: sealed::Sealed + Send {
    #[doc(hidden)]
    fn lend(&mut self) -> Result<Connection<'_>, Error>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! enlist {
    ($feature:literal, $connection:ty) => {
        #[cfg(feature = $feature)]
        impl sealed::Sealed for $connection {}

        #[cfg(feature = $feature)]
        impl Enlist for $connection {
            fn lend(&mut self) -> Result<Connection<'_>, Error> {
                Ok(Connection::try_from(self)?)
            }
        }
    };
}

enlist!("postgres", sqlx::PgConnection);
enlist!("mysql", sqlx::MySqlConnection);
enlist!("sqlite", sqlx::SqliteConnection);
enlist!("sql", sqlx::AnyConnection);

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// Writes an entry through a connection of the application. Returns the id of the job that holds
/// its unique key, if any.
pub(crate) async fn enlist(
    connection: &mut impl Enlist,
    app: &str,
    queue: &str,
    entry: &Entry,
    direct: bool,
    is_pooled: bool,
) -> Result<Option<Vec<u8>>, Error> {
    let mut connection = connection.lend()?.behind_a_pooler(is_pooled);
    let texts = Statements::of(connection.system());
    let app = app_text(app);
    if !direct {
        put(texts, &mut connection, app, queue, entry).await?;
        return Ok(None);
    }
    if connection.system() == System::Sqlite {
        let know = texts.push.know.bind(app.clone()).bind(queue);
        know.execute(&mut connection).await.map_err(failed)?;
    }
    let holder = push_one(texts, &mut connection, &app, queue, entry, None).await?;
    if holder.is_none() {
        notify(texts, &mut connection, format!("{app}/{queue}")).await?;
    }
    Ok(holder)
}
/// Writes an entry into the outbox.
async fn put(
    texts: &Statements,
    connection: &mut Connection<'_>,
    app: String,
    queue: &str,
    entry: &Entry,
) -> Result<(), Error> {
    let put = texts
        .outbox
        .put
        .bind(hex(tag_of(&entry.bytes)))
        .bind(app)
        .bind(queue)
        .bind(delay_ms(entry));
    let put = put.bind(group_of(&entry.bytes).map(key_text));
    let put = put.bind(entry.unique.as_ref().map(|(key, _)| key_text(key)));
    let put = put.bind(entry.unique.as_ref().map_or(0, |(_, life)| millis(*life)));
    let put = put.bind(entry.bytes.clone());
    let put = put.bind(entry.debounce.as_ref().map(|debounce| key_text(&debounce.key)));
    let put = put.bind(entry.debounce.as_ref().map(|debounce| millis(debounce.at_most)));
    let put = put.bind(entry.once.as_ref().map(|(key, _)| key_text(key)));
    let put = put.bind(entry.once.as_ref().map(|(_, life)| millis(*life)));
    put.execute(connection).await.map(drop).map_err(failed)
}

/// Maximum number of jobs moved in one transaction.
const BATCH: i64 = 500;
/// Time for which the store remembers the moved jobs, to reject duplicates.
const REMEMBERED: Duration = Duration::from_hours(24);

/// Moves one batch of an outbox into a store, inside a transaction that the caller commits. Returns
/// the number of moved jobs. With `adopt`, rows of versions without application names are first
/// assigned to this application.
pub(crate) async fn move_batch(
    store: &dyn Store,
    connection: &mut impl Enlist,
    adopt: bool,
) -> Result<usize, Error> {
    move_rows(store, &mut connection.lend()?, adopt).await
}

pub(crate) async fn move_rows(
    store: &dyn Store,
    connection: &mut Connection<'_>,
    adopt: bool,
) -> Result<usize, Error> {
    let texts = &Statements::of(connection.system()).outbox;
    let app = app_text(store.app());
    if adopt {
        texts.adopt.bind(app.clone()).execute(&mut *connection).await.map_err(failed)?;
    }
    let mut first = async |statement: &scale_sql::Statement| {
        let row = statement.bind(app.clone()).fetch_optional(&mut *connection).await?;
        row.map(|row| row.get::<i64>(0)).transpose()
    };
    let mine = first(&texts.first_unlocked).await.map_err(failed)?;
    if mine.is_none() || first(&texts.oldest).await.map_err(failed)? != mine {
        return Ok(0);
    }
    let rows =
        texts.take.bind(app).bind(BATCH).fetch_all(&mut *connection).await.map_err(failed)?;
    let now_ms = store.now_ms();
    let rows: Vec<OutboxRow> = rows
        .iter()
        .map(|row| OutboxRow::of(row, now_ms))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    let (mut moved, mut failed_queues, mut first_error) = (0, Vec::new(), None);
    // In order: rows of a queue that follow each other are pushed together.
    for same in rows.chunk_by(|a, b| a.queue == b.queue) {
        let queue = &same[0].queue;
        if failed_queues.contains(queue) {
            continue;
        }
        let entries = current(same);
        // Other queues may be on another node of a Cluster, which answers.
        if let Err(error) = store.push(queue, &entries).await {
            failed_queues.push(queue.clone());
            first_error.get_or_insert(error);
            continue;
        }
        for row in same {
            texts.drop.bind(row.number).execute(&mut *connection).await.map_err(failed)?;
        }
        moved += same.len();
    }
    match first_error {
        // What was moved is kept.
        Some(error) if moved == 0 => Err(error),
        _ => Ok(moved),
    }
}

/// Returns whether the outbox has no rows of the application.
#[cfg(all(feature = "sql", feature = "redis"))]
pub(crate) async fn is_empty(database: &scale_sql::Database, app: &str) -> Result<bool, Error> {
    let texts = &Statements::of(database.system()).outbox;
    let count = texts.is_empty.bind(app_text(app)).fetch_one(database).await.map_err(failed)?;
    Ok(count.get::<i64>(0).map_err(failed)? == 0)
}

/// Writes entries into the outbox, all or none.
#[cfg(all(feature = "sql", feature = "redis"))]
pub(crate) async fn put_all(
    database: &scale_sql::Database,
    app: &str,
    queue: &str,
    entries: &[Entry],
) -> Result<(), Error> {
    let mut tx = database.begin().await.map_err(failed)?;
    let texts = Statements::of(tx.system());
    for entry in entries {
        put(texts, &mut tx, app_text(app), queue, entry).await?;
    }
    tx.commit().await.map_err(failed)
}

/// Returns the key under which the store remembers a job that came through an outbox.
#[cfg(all(feature = "sql", feature = "redis"))]
pub(crate) fn key_of_job(bytes: &[u8]) -> String {
    hex(tag_of(bytes))
}

/// Checks the version of the outbox.
#[cfg(all(feature = "sql", feature = "redis"))]
pub(crate) async fn check(database: &scale_sql::Database) -> Result<(), Error> {
    Ok(schema::OUTBOX.check(database).await?)
}

/// Migrates the outbox of a database to this version of the crate.
pub(crate) async fn migrate(database: &scale_sql::Database) -> Result<(), Error> {
    Ok(schema::OUTBOX.migrate(database).await?)
}

/// Returns the entries of rows of a queue, without debounced ones whose content was replaced before
/// they were due.
fn current(rows: &[OutboxRow]) -> Vec<Entry> {
    // By key: position of the last push, the time of the first push, and the time at which the job
    // is due.
    let mut debounced: HashMap<&str, (usize, u64, u64)> = HashMap::new();
    let mut entries: Vec<_> = rows.iter().map(|row| Some(&row.entry)).collect();
    for (place, row) in rows.iter().enumerate() {
        let Some(Debounce { key, at_most }) = &row.entry.debounce else { continue };
        let known = debounced.get(key.as_str()).filter(|(.., due)| row.pushed_ms < *due);
        let first = known.map_or(row.pushed_ms, |(_, first, _)| *first);
        if let Some((replaced, ..)) = known {
            entries[*replaced] = None;
        }
        let due = (row.pushed_ms + row.delay_ms).min(first.saturating_add(millis(*at_most) as u64));
        debounced.insert(key, (place, first, due));
    }
    entries.into_iter().flatten().cloned().collect()
}

/// A row of the outbox.
struct OutboxRow {
    number: i64,
    queue: String,
    pushed_ms: u64,
    /// Delay from the push.
    delay_ms: u64,
    entry: Entry,
}

impl OutboxRow {
    fn of(row: &scale_sql::Row, now_ms: u64) -> Result<Self, sqlx::Error> {
        let time = |ms: i64| Duration::from_millis(ms.max(0) as u64);
        let keyed = |key: usize| -> Result<Option<(String, Duration)>, sqlx::Error> {
            let life = time(row.get::<Option<i64>>(key + 1)?.unwrap_or(0));
            Ok(row.get::<Option<String>>(key)?.map(|key| (super::key_of(&key), life)))
        };
        let bytes: Vec<u8> = row.get(6)?;
        // The delay began with the push.
        let pushed_ms = pushed_ms(&bytes).unwrap_or(now_ms);
        let delay_ms = row.get::<i64>(3)?.max(0) as u64;
        let waited = now_ms.saturating_sub(pushed_ms);
        let delay = Duration::from_millis(delay_ms.saturating_sub(waited));
        // A job that was moved already is refused by its own key, or by its id.
        let once = keyed(9)?.or(Some((row.get(1)?, REMEMBERED)));
        let debounce = keyed(7)?.map(|(key, at_most)| Debounce { key, at_most });
        let entry = Entry { bytes, delay, unique: keyed(4)?, once, debounce };
        Ok(Self { number: row.get(0)?, queue: row.get(2)?, pushed_ms, delay_ms, entry })
    }
}
