//! Jobs in tables of a PostgreSQL or SQLite database. Tables and statements: `texts.rs`.
//!
//! Workers claim rows with `for update skip locked` on Postgres, and one after the other on SQLite, which has one writer. On Postgres a
//! push notifies; on SQLite workers of the same process are woken, and each process looks twice a second whether another has written.

mod fetch;
mod idle_workers;
mod ledger;
mod limits;
mod lines;
mod listener;
mod outbox;
mod settle;
mod texts;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::{AnyConnection, AnyPool, Connection, Row, Transaction};

use self::idle_workers::IdleWorkers;
use self::listener::Listener;
pub(crate) use self::outbox::enlist;
pub use self::outbox::{Enlist, Relay};
pub(crate) use self::texts::System;
use self::texts::{Statement, Texts};
use super::{
    CANCELLED, Cancellation, Corpse, Entry, Fetched, History, Listed, ONCE_AFTER, PAGE_BYTES, Reclaimed, Request, Resolution,
    Revival, Sample, Settlement, State, Stats, Store, Wake, WorkerId,
};
use crate::envelope::{count_failure, group_of, pushed_ms, tag_of, without_failures};
use crate::error::Error;

/// Keys of one statement.
const BATCH: usize = 1_000;
/// Of so many deaths one trims the dead: they are a little more than allowed at times.
const TRIM_EVERY: u32 = 64;

/// Jobs in a PostgreSQL or SQLite database.
#[derive(Debug)]
pub struct SqlStore {
    pool: AnyPool,
    system: System,
    /// The application's name, and as it is in tables.
    app: String,
    app_text: String,
    texts: Arc<Texts>,
    idle: Arc<IdleWorkers>,
    #[cfg(feature = "sqlite")]
    synchronous: Synchronous,
    history: History,
    /// The database's clock minus ours, ms.
    offset: AtomicI64,
    /// Queues whose rows are known to be there.
    known: Mutex<HashSet<String>>,
    /// By queue: what the last look at it said.
    hints: Mutex<HashMap<String, Hints>>,
    /// Workers of which the store says that some jobs have not begun, or that one runs alone, by queue: to be cleared.
    unbegun: Mutex<HashSet<(String, WorkerId)>>,
}

/// What decides whether a fetch needs more than the common statement.
#[derive(Clone, Debug, Default)]
struct Hints {
    lines: bool,
    suspects: bool,
    unhandled: Vec<String>,
    /// A job was put in line since lines were last looked after: others of its line may be waiting behind it.
    blocked: bool,
    /// When lines were last looked after: ms since 1970.
    tended_ms: i64,
    /// When the first in one of them is to be tried: ms since 1970, by the database's clock.
    retry_ms: Option<i64>,
}

impl Hints {
    /// Whether the first in a line is to be tried.
    fn are_lines_due(&self, now_ms: i64) -> bool {
        self.retry_ms.is_none_or(|at| at <= now_ms)
    }
}

/// Jobs whose line is not empty are put there by a fetch that finds nothing else, or after so long.
const SWEEP_AFTER_MS: i64 = 100;

fn failed(error: sqlx::Error) -> Error {
    Error::store(error)
}

/// Whether the database has refused a statement, so that nothing of its transaction has happened.
pub(crate) fn is_refusal(error: &Error) -> bool {
    let Error::Store(source) = error else { return false };
    matches!(source.downcast_ref::<sqlx::Error>(), Some(sqlx::Error::Database(_)))
}

fn millis(time: Duration) -> i64 {
    // A delay of less than a millisecond is one, not none.
    i64::try_from(time.as_micros().div_ceil(1_000)).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

fn local_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// Ids and other tags as text.
fn hex(tag: &[u8]) -> String {
    let digits = tag.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    text.as_bytes().chunks_exact(2).filter_map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn hex_list(tags: &[Vec<u8>]) -> String {
    let ids: Vec<_> = tags.iter().map(|tag| hex(tag)).collect();
    ids.join(",")
}

/// A key as text that every system takes, distinct ones as distinct texts: Postgres takes no zero byte.
fn key_text(key: &str) -> String {
    if key.contains(['\0', '\\', ',']) {
        key.replace('\\', "\\\\").replace('\0', "\\0").replace(',', "\\c")
    } else {
        key.to_owned()
    }
}

/// The key again.
fn key_of(text: &str) -> String {
    let (mut key, mut characters) = (String::with_capacity(text.len()), text.chars());
    while let Some(character) = characters.next() {
        key.push(match character {
            '\\' => match characters.next() {
                Some('0') => '\0',
                Some('c') => ',',
                _ => '\\',
            },
            other => other,
        });
    }
    key
}

/// How safely an SQLite file keeps what was pushed.
///
/// Whatever else is written may be lost in a power cut without losing a job: a lease, an acknowledgement, a permit. The job is then done
/// again.
#[cfg(feature = "sqlite")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// A push that is `Ok` is on the disk: a power cut loses none.
    #[default]
    Full,
    /// A power cut may lose the last pushes, a crash of the process none.
    Normal,
}

/// An SQLite file has one writer. WAL, so that its readers do not mind it.
#[cfg(feature = "sqlite")]
fn one_writer(options: AnyPoolOptions) -> AnyPoolOptions {
    options.max_connections(1).idle_timeout(None).max_lifetime(None).after_connect(|connection, _| {
        Box::pin(async move {
            let settings = "pragma journal_mode = wal; pragma synchronous = normal; pragma busy_timeout = 5000";
            sqlx::raw_sql(settings).execute(connection).await.map(drop)
        })
    })
}

/// The address of an SQLite file that is made if it is not there, unless the address says otherwise.
#[cfg(feature = "sqlite")]
fn creating(url: &str, system: System) -> std::borrow::Cow<'_, str> {
    if system != System::Sqlite || url.contains("mode=") || url.contains(":memory:") {
        return url.into();
    }
    format!("{url}{}mode=rwc", if url.contains('?') { '&' } else { '?' }).into()
}

/// The statements that a store runs on such a database, by name: for tests of their plans, and for people who want to know.
#[doc(hidden)]
pub fn statements(system: &str) -> Vec<(&'static str, Arc<str>)> {
    System::of(&format!("{system}:")).map(|system| Texts::new(system).all()).unwrap_or_default()
}

/// Row locks are what orders writers here, whatever isolation the database is set to by default.
#[cfg(feature = "postgres")]
fn read_committed(options: AnyPoolOptions) -> AnyPoolOptions {
    options.after_connect(|connection, _| {
        Box::pin(async move {
            let setting = "set session characteristics as transaction isolation level read committed";
            sqlx::raw_sql(setting).execute(connection).await.map(drop)
        })
    })
}

impl SqlStore {
    /// Connects, and makes the tables if they are not there.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        Self::connect_with(
            url,
            app,
            #[cfg(feature = "sqlite")]
            Synchronous::Full,
        )
        .await
    }

    /// Connects to an SQLite file that may lose its last commits in a power cut, or not: see [`Synchronous`].
    pub(crate) async fn connect_with(
        url: &str,
        app: &str,
        #[cfg(feature = "sqlite")] synchronous: Synchronous,
    ) -> Result<Self, Error> {
        sqlx::any::install_default_drivers();
        let system = System::of(url).ok_or_else(|| Error::address(url))?;
        let options = AnyPoolOptions::new().acquire_timeout(Duration::from_secs(5));
        #[cfg(feature = "sqlite")]
        let options = if system == System::Sqlite { one_writer(options) } else { options };
        #[cfg(feature = "postgres")]
        let options = if system == System::Postgres { read_committed(options) } else { options };
        // sqlx's words may hold the password.
        #[cfg(feature = "sqlite")]
        let url = &*creating(url, system);
        let pool = options.connect_lazy(url).map_err(|_| Error::Address("a database address that cannot be read".into()))?;
        let store = Self {
            pool,
            system,
            app: app.to_owned(),
            app_text: key_text(app),
            texts: Arc::new(Texts::new(system)),
            idle: Arc::default(),
            #[cfg(feature = "sqlite")]
            synchronous,
            history: History::default(),
            offset: AtomicI64::new(0),
            known: Mutex::default(),
            hints: Mutex::default(),
            unbegun: Mutex::default(),
        };
        store.migrate().await?;
        let now: i64 = store.texts.clock.query().fetch_one(&store.pool).await.and_then(|row| row.try_get(0)).map_err(failed)?;
        store.offset.store(now - local_ms(), Relaxed);
        #[cfg(feature = "postgres")]
        if system == System::Postgres {
            tokio::spawn(listener::listen(url.to_owned(), store.listener()));
        }
        #[cfg(feature = "sqlite")]
        if system == System::Sqlite {
            tokio::spawn(listener::watch(store.listener()));
        }
        Ok(store)
    }

    /// How many of the dead are kept, and for how long.
    pub fn history(mut self, history: History) -> Self {
        self.history = history;
        self
    }

    /// Several processes may start at once; Postgres does not like two to make one table.
    async fn migrate(&self) -> Result<(), Error> {
        if self.is_complete().await? {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        #[cfg(feature = "postgres")]
        if self.system == System::Postgres {
            sqlx::query(outbox::MIGRATION_LOCK).execute(&mut *tx).await.map_err(failed)?;
        }
        for tables in [&self.texts.tables, &self.texts.shared_tables] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(tables.text())).execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    /// Whether every table and index is there: then no lock is taken that would wait for a long transaction and hold up all behind it.
    async fn is_complete(&self) -> Result<bool, Error> {
        let names = |text: Arc<str>| {
            let after = |word: &'static str, line: &str| line.split_once(word)?.1.split_whitespace().next().map(str::to_owned);
            text.lines().filter_map(|line| after(" if not exists ", line)).collect::<Vec<_>>()
        };
        let names = [names(self.texts.tables.text()), names(self.texts.shared_tables.text())].concat();
        let row = self.texts.missing.query().bind(names.join(",")).fetch_one(&self.pool).await.map_err(failed)?;
        Ok(row.try_get::<i64, _>(0).map_err(failed)? == 0)
    }

    fn listener(&self) -> Listener {
        Listener {
            #[cfg(feature = "postgres")]
            app: self.app_text.clone(),
            idle: Arc::downgrade(&self.idle),
            pool: self.pool.clone(),
            cancelled: self.texts.cancelled.clone(),
        }
    }

    /// On SQLite a transaction asks for the writer's place at its beginning: one that asks later may be refused it.
    async fn begin(&self) -> Result<Transaction<'static, sqlx::Any>, Error> {
        match self.system {
            #[cfg(feature = "postgres")]
            System::Postgres => self.pool.begin().await.map_err(failed),
            #[cfg(feature = "sqlite")]
            System::Sqlite => self.pool.begin_with(sqlx::SqlSafeStr::into_sql_str("begin immediate")).await.map_err(failed),
        }
    }

    /// Sets what reaches the disk with a commit of this connection, for an SQLite file that is to keep every push.
    async fn set_synchronous(&self, connection: &mut AnyConnection, mode: &'static str) -> Result<(), Error> {
        let _ = (&connection, mode);
        #[cfg(feature = "sqlite")]
        if self.system == System::Sqlite && self.synchronous == Synchronous::Full {
            sqlx::raw_sql(mode).execute(connection).await.map_err(failed)?;
        }
        Ok(())
    }

    /// A statement with the first two parameters of most of them.
    fn of(&self, statement: &Statement, queue: &str) -> sqlx::query::Query<'static, sqlx::Any, sqlx::any::AnyArguments> {
        statement.query().bind(self.app_text.clone()).bind(queue.to_owned())
    }

    /// What other processes are told of a queue.
    fn payload(&self, queue: &str) -> String {
        format!("{}/{queue}", self.app_text)
    }

    /// Tells idle workers of other processes, once the transaction commits; ours by [`IdleWorkers::wake`] after it.
    async fn notify(&self, connection: &mut AnyConnection, payload: String) -> Result<(), Error> {
        let _ = (&connection, &payload);
        #[cfg(feature = "postgres")]
        if self.system == System::Postgres {
            let notify = sqlx::query("select pg_notify('scale_queue', $1)").bind(payload);
            notify.execute(connection).await.map_err(failed)?;
        }
        Ok(())
    }

    /// A queue's row is there before its first job.
    async fn know(&self, queue: &str) -> Result<(), Error> {
        if !self.known.lock().contains(queue) {
            self.of(&self.texts.know, queue).execute(&self.pool).await.map_err(failed)?;
            self.known.lock().insert(queue.to_owned());
        }
        Ok(())
    }

    async fn bury(
        &self,
        connection: &mut AnyConnection,
        queue: &str,
        tag: &[u8],
        reason: &str,
        body: &[u8],
    ) -> Result<(), Error> {
        let bury = self.of(&self.texts.bury, queue).bind(hex(tag)).bind(reason.to_owned()).bind(body.to_vec());
        bury.execute(&mut *connection).await.map_err(failed)?;
        if fastrand::u32(..TRIM_EVERY) == 0 {
            let old = self.of(&self.texts.trim_old, queue).bind(millis(self.history.age));
            old.execute(&mut *connection).await.map_err(failed)?;
            let many = self.of(&self.texts.trim_many, queue).bind(self.history.dead as i64);
            many.execute(connection).await.map_err(failed)?;
        }
        Ok(())
    }

    fn hints(&self, queue: &str) -> Hints {
        self.hints.lock().get(queue).cloned().unwrap_or_default()
    }

    fn hint(&self, queue: &str, change: impl FnOnce(&mut Hints)) {
        let mut hints = self.hints.lock();
        if let Some(known) = hints.get_mut(queue) {
            change(known);
        } else {
            change(hints.entry(queue.to_owned()).or_default());
        }
    }

    /// How many rows of a page fit one answer: at least one, unless there is none.
    async fn fitting(&self, sizes: &Statement, queue: &str, offset: usize, limit: usize) -> Result<usize, Error> {
        let sizes = self.of(sizes, queue).bind(limit as i64).bind(offset as i64);
        let rows = sizes.fetch_all(&self.pool).await.map_err(failed)?;
        let sizes: Vec<i64> = rows.iter().map(|row| row.try_get(1).map_err(failed)).collect::<Result<_, _>>()?;
        Ok(super::within(sizes, PAGE_BYTES, |size| *size as usize).len())
    }

    /// Many jobs without keys in one statement.
    #[cfg(feature = "postgres")]
    async fn push_plain(&self, queue: &str, entries: &[&Entry]) -> Result<(), Error> {
        let list = |of: &dyn Fn(&Entry) -> String| entries.iter().map(|entry| of(entry)).collect::<Vec<_>>().join(",");
        let mut bodies = Vec::with_capacity(entries.iter().map(|entry| entry.bytes.len()).sum());
        let mut starts = Vec::with_capacity(entries.len());
        for entry in entries {
            starts.push(bodies.len().to_string());
            bodies.extend_from_slice(&entry.bytes);
        }
        let push = self
            .of(&self.texts.push_plain, queue)
            .bind(list(&|entry| hex(tag_of(&entry.bytes))))
            .bind(list(&|entry| delay_ms(entry).to_string()))
            .bind(starts.join(","))
            .bind(bodies)
            .bind(list(&|entry| entry.bytes.len().to_string()))
            .bind(self.payload(queue));
        push.execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn push_portion(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        #[cfg(feature = "postgres")]
        if self.system == System::Postgres && entries.iter().all(is_plain) {
            if !entries.is_empty() {
                self.push_plain(queue, &entries.iter().collect::<Vec<_>>()).await?;
            }
            return Ok(vec![None; entries.len()]);
        }
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        self.set_synchronous(&mut connection, "pragma synchronous = full").await?;
        let mut tx = match self.system {
            #[cfg(feature = "postgres")]
            System::Postgres => connection.begin().await.map_err(failed)?,
            #[cfg(feature = "sqlite")]
            System::Sqlite => connection.begin_with(sqlx::SqlSafeStr::into_sql_str("begin immediate")).await.map_err(failed)?,
        };
        let mut answers = Vec::with_capacity(entries.len());
        for entry in entries {
            answers.push(self.push_one(&mut tx, queue, entry).await?);
        }
        self.notify(&mut tx, self.payload(queue)).await?;
        tx.commit().await.map_err(failed)?;
        // Should this be dropped before here, what comes next is safer than it has to be.
        self.set_synchronous(&mut connection, "pragma synchronous = normal").await?;
        Ok(answers)
    }

    async fn push_one(&self, tx: &mut AnyConnection, queue: &str, entry: &Entry) -> Result<Option<Vec<u8>>, Error> {
        let id = hex(tag_of(&entry.bytes));
        if let Some((key, life)) = &entry.once {
            let key = key_text(key);
            let late = self.of(&self.texts.forget_late_once, queue).bind(key.clone());
            late.execute(&mut *tx).await.map_err(failed)?;
            let once = self.of(&self.texts.once, queue).bind(key.clone()).bind(id.clone()).bind(millis(*life));
            if once.execute(&mut *tx).await.map_err(failed)?.rows_affected() == 0 {
                let holder = self.of(&self.texts.once_holder, queue).bind(key).fetch_optional(&mut *tx).await.map_err(failed)?;
                let holder: Option<String> = holder.map(|row| row.try_get(0)).transpose().map_err(failed)?;
                // Its time may have ended just now: nobody holds it, and this push has not got it either.
                return Ok(Some(holder.map_or_else(|| tag_of(&entry.bytes).to_vec(), |id| unhex(&id))));
            }
        }
        // A holder may end between the insert that it was in the way of and the look at who it is: then the insert is tried again.
        for _ in 0..10 {
            if let Some((key, _)) = &entry.unique {
                let free = self.of(&self.texts.free_late, queue).bind(key_text(key));
                free.execute(&mut *tx).await.map_err(failed)?;
            }
            let push = self
                .texts
                .push
                .query()
                .bind(id.clone())
                .bind(self.app_text.clone())
                .bind(queue.to_owned())
                .bind(delay_ms(entry))
                .bind(group_of(&entry.bytes).map(key_text))
                .bind(entry.unique.as_ref().map(|(key, _)| key_text(key)))
                .bind(entry.unique.as_ref().map_or(0, |(_, life)| millis(*life)))
                .bind(entry.bytes.clone());
            let stored = push.execute(&mut *tx).await.map_err(failed)?.rows_affected() > 0;
            let Some((key, _)) = entry.unique.as_ref().filter(|_| !stored) else { return Ok(None) };
            let holder = self.of(&self.texts.holder, queue).bind(key_text(key)).fetch_optional(&mut *tx).await.map_err(failed)?;
            if let Some(row) = holder {
                return Ok(Some(row.try_get::<String, _>(0).map(|id| unhex(&id)).map_err(failed)?));
            }
        }
        Err(Error::store("a unique key changed hands ten times during a push"))
    }
}

fn delay_ms(entry: &Entry) -> i64 {
    if entry.delay.is_zero() { 0 } else { millis(entry.delay) }
}

#[cfg(feature = "postgres")]
fn is_plain(entry: &Entry) -> bool {
    entry.unique.is_none() && entry.once.is_none() && group_of(&entry.bytes).is_none()
}

fn bodies(rows: &[AnyRow], column: usize) -> Result<Vec<Vec<u8>>, Error> {
    rows.iter().map(|row| row.try_get(column).map_err(failed)).collect()
}

#[async_trait]
impl Store for SqlStore {
    async fn push(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        self.know(queue).await?;
        let mut answers = Vec::with_capacity(entries.len());
        for portion in super::portions(entries) {
            answers.extend(self.push_portion(queue, portion).await?);
            self.idle.wake(queue, portion.len());
        }
        Ok(answers)
    }

    async fn fetch(&self, queue: &str, worker: &WorkerId, request: Request<'_>) -> Result<Fetched, Error> {
        if request.max > 0 {
            // Before the look: a push after it must find us.
            self.idle.sleep(queue, worker);
        }
        let mut fetched = self.fetch_jobs(queue, worker, &request).await?;
        // Whoever got something begins with it, and looks again.
        if fetched.jobs.is_empty() && request.max > 0 && fetched.look_again.is_none() {
            self.outlook(queue, worker, &mut fetched).await?;
        } else if request.max > 0 {
            fetched.look_again = None;
            self.idle.rise(queue, worker);
        }
        Ok(fetched)
    }

    async fn settle(&self, queue: &str, worker: &WorkerId, settlements: &[&Settlement]) -> Vec<Result<bool, Error>> {
        self.settle_all(queue, worker, settlements).await
    }

    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error> {
        let held = self.of(&self.texts.held, queue).bind(worker.to_string());
        let rows = held.fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get::<String, _>(0).map(|id| unhex(&id)).map_err(failed)).collect()
    }

    async fn held_jobs(&self, queue: &str, worker: &WorkerId, tags: &[Vec<u8>], max_bytes: usize) -> Result<Vec<Vec<u8>>, Error> {
        let asked = |statement: &Statement, ids: String| self.of(statement, queue).bind(worker.to_string()).bind(ids);
        let rows = asked(&self.texts.held_sizes, hex_list(tags)).fetch_all(&self.pool).await.map_err(failed)?;
        let sizes: Vec<(String, i64)> =
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)?;
        let ids: Vec<_> = super::within(sizes, max_bytes, |(_, size)| *size as usize).into_iter().map(|(id, _)| id).collect();
        let rows = asked(&self.texts.held_jobs, ids.join(",")).fetch_all(&self.pool).await.map_err(failed)?;
        bodies(&rows, 1)
    }

    async fn beat(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<bool, Error> {
        let beat = self.of(&self.texts.beat, queue).bind(worker.to_string()).bind(millis(lease));
        Ok(beat.execute(&self.pool).await.map_err(failed)?.rows_affected() > 0)
    }

    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<Reclaimed, Error> {
        let mut tx = self.begin().await?;
        let worker = expired.to_string();
        let row = self.of(&self.texts.expired, queue).bind(worker.clone()).fetch_optional(&mut *tx).await.map_err(failed)?;
        let (unbegun, trial) = match row {
            Some(row) if row.try_get::<i64, _>(2).map_err(failed)? == 0 => return Ok(Reclaimed::default()),
            Some(row) => row.try_get::<String, _>(0).and_then(|u| Ok((u, row.try_get::<String, _>(1)?))).map_err(failed)?,
            None => Default::default(),
        };
        let unbegun: HashSet<&str> = unbegun.split(',').collect();
        let held = self.of(&self.texts.held, queue).bind(worker.clone()).fetch_all(&mut *tx).await.map_err(failed)?;
        let held: HashSet<String> = held.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)?;
        // '!': the suspect that ran alone was taken back in an earlier step.
        let on_trial = !trial.is_empty() && (trial == "!" || held.contains(&trial));
        let rows = self.of(&self.texts.held_some, queue).bind(worker.clone()).fetch_all(&mut *tx).await.map_err(failed)?;
        let jobs = rows.len();
        let mut failures = 0_i64;
        for row in rows {
            let (id, mut body): (String, Vec<u8>) = row.try_get(0).and_then(|id| Ok((id, row.try_get(1)?))).map_err(failed)?;
            let is_suspect = if on_trial { id == trial } else { !unbegun.contains(id.as_str()) };
            if is_suspect {
                failures += 1;
                count_failure(&mut body);
                if on_trial {
                    self.of(&self.texts.blame, queue).bind(worker.clone()).execute(&mut *tx).await.map_err(failed)?;
                }
            }
            let back = self.of(&self.texts.take_back, queue).bind(id).bind(body).bind(i64::from(is_suspect));
            back.execute(&mut *tx).await.map_err(failed)?;
        }
        self.of(&self.texts.fold, queue).bind(0_i64).bind(failures).bind(0_i64).execute(&mut *tx).await.map_err(failed)?;
        self.dismiss(&mut tx, queue, &worker).await?;
        // Those that hold nothing go with it.
        let idle = self.of(&self.texts.idle_expired, queue).fetch_all(&mut *tx).await.map_err(failed)?;
        for row in idle {
            let idle: String = row.try_get(0).map_err(failed)?;
            self.dismiss(&mut tx, queue, &idle).await?;
        }
        self.notify(&mut tx, self.payload(queue)).await?;
        tx.commit().await.map_err(failed)?;
        self.hint(queue, |hints| hints.suspects |= failures > 0);
        self.idle.wake(queue, jobs);
        Ok(Reclaimed { jobs, left: held.len() - jobs })
    }

    async fn orphans(&self, queue: &str) -> Result<Vec<WorkerId>, Error> {
        self.reopen_lost_lines(queue).await?;
        let rows = self.of(&self.texts.orphans, queue).fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get::<String, _>(0).map(Into::into).map_err(failed)).collect()
    }

    fn wakes(&self, worker: &WorkerId) -> BoxStream<'static, Wake> {
        self.idle.listen(worker)
    }

    async fn pass_on(&self, queue: &str, leaves: Option<&WorkerId>) -> Result<(), Error> {
        leaves.inspect(|worker| self.idle.rise(queue, worker));
        self.idle.wake(queue, 1);
        Ok(())
    }

    async fn leave(&self, queue: &str, worker: &WorkerId) -> Result<(), Error> {
        self.idle.rise(queue, worker);
        let mut tx = self.begin().await?;
        self.dismiss(&mut tx, queue, worker).await?;
        tx.commit().await.map_err(failed)
    }

    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        self.of(&self.texts.know, queue).execute(&mut *tx).await.map_err(failed)?;
        self.of(&self.texts.pause, queue).bind(i64::from(paused)).execute(&mut *tx).await.map_err(failed)?;
        if !paused {
            self.of(&self.texts.try_lines, queue).execute(&mut *tx).await.map_err(failed)?;
        }
        self.notify(&mut tx, self.payload(queue)).await?;
        tx.commit().await.map_err(failed)?;
        if !paused {
            self.hint(queue, |hints| hints.retry_ms = None);
        }
        self.idle.wake(queue, usize::MAX);
        Ok(())
    }

    async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        let row = self.of(&self.texts.stats, queue).fetch_one(&self.pool).await.map_err(failed)?;
        let count = |n: usize| row.try_get::<i64, _>(n).map(|n| n.max(0) as u64).map_err(failed);
        let oldest = row.try_get::<Option<Vec<u8>>, _>(9).ok().flatten();
        let (waiting, scheduled, blocked, leased) = (count(0)?, count(1)?, count(2)?, count(3)?);
        Ok(Stats {
            waiting,
            scheduled,
            blocked,
            leased,
            dead: count(4)?,
            pushed_total: waiting + scheduled + blocked + leased + count(5)? + count(7)?,
            done_total: count(5)?,
            failed_total: count(6)?,
            paused: count(8)? == 1,
            lag_ms: oldest.and_then(|b| pushed_ms(&b)).map_or(0, |then| self.now_ms().saturating_sub(then)),
        })
    }

    async fn record(&self, queue: &str, resolution: Resolution, sample: &Sample) -> Result<(), Error> {
        let bytes = rmp_serde::to_vec(sample).map_err(Error::store)?;
        let record = self.of(&self.texts.record, queue).bind(resolution.name()).bind(sample.at_ms as i64).bind(bytes);
        if record.execute(&self.pool).await.map_err(failed)?.rows_affected() > 0 {
            let oldest = sample.at_ms.saturating_sub(resolution.step_ms() * resolution.most());
            let forget = self.of(&self.texts.forget_samples, queue).bind(resolution.name()).bind(oldest as i64);
            forget.execute(&self.pool).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn history_of(&self, queue: &str, resolution: Resolution, since_ms: u64) -> Result<Vec<Sample>, Error> {
        let samples = self.of(&self.texts.samples, queue).bind(resolution.name()).bind(since_ms as i64);
        let rows = bodies(&samples.fetch_all(&self.pool).await.map_err(failed)?, 0)?;
        Ok(rows.iter().filter_map(|bytes| rmp_serde::from_slice(bytes).ok()).collect())
    }

    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<Corpse>, Error> {
        let limit = self.fitting(&self.texts.dead_sizes, queue, offset, limit).await?;
        let dead = self.of(&self.texts.dead, queue).bind(limit as i64).bind(offset as i64);
        let rows = dead.fetch_all(&self.pool).await.map_err(failed)?;
        let corpse = |row: &AnyRow| {
            let died: i64 = row.try_get(2)?;
            Ok(Corpse { bytes: row.try_get(0)?, reason: row.try_get(1)?, died_ms: died.max(0) as u64 })
        };
        rows.iter().map(corpse).collect::<Result<_, _>>().map_err(failed)
    }

    async fn take_dead(&self, queue: &str, tag: &[u8], died_ms: u64, revival: &Revival) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let take = self.of(&self.texts.take_dead, queue).bind(hex(tag)).bind(died_ms as i64);
        let Some(row) = take.fetch_optional(&mut *tx).await.map_err(failed)? else { return Ok(false) };
        if let Revival::Again(unique) = revival {
            let body: Vec<u8> = row.try_get(0).map_err(failed)?;
            let bytes = without_failures(&body);
            let entry = Entry { bytes, delay: Duration::ZERO, unique: unique.clone(), once: None };
            // Else another job holds its key: the transaction ends here, and it stays dead.
            if self.push_one(&mut tx, queue, &entry).await?.is_some() {
                return Ok(false);
            }
            let back = self.of(&self.texts.fold, queue).bind(0_i64).bind(0_i64).bind(-1_i64);
            back.execute(&mut *tx).await.map_err(failed)?;
            self.notify(&mut tx, self.payload(queue)).await?;
        }
        tx.commit().await.map_err(failed)?;
        if *revival != Revival::Gone {
            self.idle.wake(queue, 1);
        }
        Ok(true)
    }

    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error> {
        let mut tx = self.begin().await?;
        let cancel = self.of(&self.texts.cancel, queue).bind(hex(tag));
        if let Some(row) = cancel.fetch_optional(&mut *tx).await.map_err(failed)? {
            let body: Vec<u8> = row.try_get(0).map_err(failed)?;
            self.bury(&mut tx, queue, tag, CANCELLED, &body).await?;
            let ended = self.of(&self.texts.fold, queue).bind(0_i64).bind(0_i64).bind(1_i64);
            ended.execute(&mut *tx).await.map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            return Ok(Cancellation::Buried(body));
        }
        let leased = self.of(&self.texts.cancel_leased, queue).bind(hex(tag));
        if leased.execute(&mut *tx).await.map_err(failed)?.rows_affected() == 0 {
            return Ok(Cancellation::Unknown);
        }
        self.notify(&mut tx, self.payload(&format!("!{}", hex(tag)))).await?;
        tx.commit().await.map_err(failed)?;
        self.idle.cancel(tag);
        Ok(Cancellation::Asked)
    }

    async fn list(&self, queue: &str, state: State, offset: usize, limit: usize) -> Result<Vec<Listed>, Error> {
        let mut offset = offset;
        let texts = &self.texts;
        let (sizes, list) = match state {
            State::Waiting => {
                let row = self.of(&texts.count_suspect, queue).fetch_one(&self.pool).await.map_err(failed)?;
                let suspects = row.try_get::<i64, _>(0).map_err(failed)?.max(0) as usize;
                if offset < suspects {
                    (&texts.sizes_suspect, &texts.list_suspect)
                } else {
                    offset -= suspects;
                    (&texts.sizes_waiting, &texts.list_waiting)
                }
            }
            State::Scheduled => (&texts.sizes_scheduled, &texts.list_scheduled),
            State::Blocked => (&texts.sizes_blocked, &texts.list_blocked),
            State::Leased => (&texts.sizes_leased, &texts.list_leased),
        };
        let limit = self.fitting(sizes, queue, offset, limit).await?;
        let list = self.of(list, queue).bind(limit as i64).bind(offset as i64);
        let rows = list.fetch_all(&self.pool).await.map_err(failed)?;
        let listed = |row: &AnyRow| {
            let due: i64 = row.try_get(1)?;
            let due_ms = (state == State::Scheduled).then_some(due.max(0) as u64);
            Ok(Listed { bytes: row.try_get(0)?, due_ms, worker: row.try_get(2)?, line: row.try_get(3)? })
        };
        rows.iter().map(listed).collect::<Result<_, _>>().map_err(failed)
    }

    async fn take_all(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<Vec<Vec<u8>>, Error> {
        let mut tx = self.begin().await?;
        let rows = self.of(&self.texts.pick_any, queue).fetch_all(&mut *tx).await.map_err(failed)?;
        let sizes: Vec<(String, i64)> =
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)?;
        let ids: Vec<_> = super::within(sizes, PAGE_BYTES, |(_, size)| *size as usize).into_iter().map(|(id, _)| id).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids = ids.join(",");
        let claim = self.of(&self.texts.claim, queue).bind(worker.to_string()).bind(ids.clone());
        let jobs = bodies(&claim.fetch_all(&mut *tx).await.map_err(failed)?, 1)?;
        let lease = self.of(&self.texts.lease, queue).bind(worker.to_string()).bind(millis(lease)).bind(0_i64).bind(ids).bind("");
        lease.execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(jobs)
    }

    async fn expire_once(&self, queue: &str, keys: &[String]) -> Result<(), Error> {
        for keys in keys.chunks(BATCH) {
            let keys: Vec<_> = keys.iter().map(|key| key_text(key)).collect();
            let expire = self.of(&self.texts.expire_once, queue).bind(keys.join(",")).bind(millis(ONCE_AFTER));
            expire.execute(&self.pool).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn queues(&self) -> Result<Vec<String>, Error> {
        let rows = self.texts.queues.query().bind(self.app_text.clone()).fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
    }

    fn now_ms(&self) -> u64 {
        (local_ms() + self.offset.load(Relaxed)).max(0) as u64
    }

    async fn make_known(&self, queue: &str) -> Result<(), Error> {
        let _ = queue;
        match self.system {
            #[cfg(feature = "postgres")]
            System::Postgres => self.know(queue).await,
            // There is one writer, and that may be the application's transaction.
            #[cfg(feature = "sqlite")]
            System::Sqlite => Ok(()),
        }
    }

    fn enlists(&self) -> bool {
        true
    }

    fn app(&self) -> &str {
        &self.app
    }
}

impl SqlStore {
    /// A worker that holds nothing: its row goes, and what it has done is added to the queue's.
    async fn dismiss(&self, connection: &mut AnyConnection, queue: &str, worker: &str) -> Result<(), Error> {
        let dismiss = self.of(&self.texts.dismiss, queue).bind(worker.to_owned());
        if let Some(row) = dismiss.fetch_optional(&mut *connection).await.map_err(failed)? {
            let count = |n: usize| row.try_get::<i64, _>(n).map_err(failed);
            let fold = self.of(&self.texts.fold, queue).bind(count(0)?).bind(count(1)?).bind(count(2)?);
            fold.execute(connection).await.map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn distinct_keys_are_distinct_texts_that_every_system_takes(a: String, b: String) {
            prop_assert_eq!(key_text(&a) == key_text(&b), a == b);
            prop_assert!(!key_text(&a).contains(['\0', ',']));
            prop_assert_eq!(key_of(&key_text(&a)), a);
        }
    }
}
