//! Jobs in tables of a PostgreSQL, MySQL, MariaDB or SQLite database. Tables and statements are in
//! `statements`, migrations in `schema`.
//!
//! Workers claim rows with `for update skip locked`. SQLite has only one writer, so there workers
//! claim rows one after the other. `listener` receives notifications of pushes by other processes.

mod connect;
mod dead;
mod ended;
mod fetch;
mod groups;
mod idle_workers;
mod leases;
mod limits;
mod lines;
mod listener;
pub(crate) mod outbox;
mod push;
mod schema;
mod settings;
mod settle;
mod shared_state;
mod statements;
mod text;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use scale_common::clock::ServerClock;
use scale_sql::{Connection, Database, Query, Row, Statement, System, millis};

pub use self::connect::{migrate, migrations};
use self::idle_workers::IdleWorkers;
pub use self::outbox::Enlist;
pub(crate) use self::outbox::enlist;
use self::push::notify;
pub(crate) use self::settings::Settings;
pub use self::settings::Synchronous;
use self::statements::Statements;
use self::text::{app_text, hex, hexes, key_of, key_text, unhex};
use super::{
    AfterDeath, Cancellation, DeadJob, Entry, Fetched, History, Listed, ONCE_AFTER, PAGE_BYTES,
    Reclaimed, Request, Resolution, Sample, Settlement, State, Stats, Store, WakeUp, WorkerId,
};
use crate::error::Error;
use crate::format::{pushed_ms, turn_of};

/// Maximum number of keys in one statement.
const BATCH: usize = 1_000;
/// On MySQL: kind of registry entries that announce cancelled jobs, and their life.
const CANCEL: &str = "!cancel";
const CANCEL_KNOWN_FOR: Duration = Duration::from_mins(10);
const MOST_CANCELLED: i64 = 10_000;
/// Maximum length of a list parameter: MySQL allows 65,535 parameters.
const LIST: usize = 10_000;
/// Maximum bytes of an application's name.
const LONGEST_APP: usize = 255;

/// Store of jobs in a PostgreSQL, MySQL, MariaDB or SQLite database.
#[derive(Debug)]
pub struct SqlStore {
    database: Database,
    /// Name of the application, and its form in tables.
    app: String,
    app_text: String,
    texts: &'static Statements,
    idle: Arc<IdleWorkers>,
    synchronous: Synchronous,
    history: History,
    clock: ServerClock,
    /// Queues whose rows are known to exist.
    known: Arc<Mutex<HashSet<String>>>,
    /// Results of the last fetch, by queue.
    hints: Mutex<HashMap<String, Hints>>,
    /// Task that listens to other processes.
    listening: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Workers, by queue, whose rows list jobs that have not begun or a suspect that runs alone;
    /// both have to be cleared.
    unbegun: Mutex<HashSet<(String, WorkerId)>>,
    /// Groups, by queue, whose row was locked when a turn was free, and the time of the next try.
    groups: Mutex<HashMap<(String, String), Instant>>,
}

/// State that decides whether a fetch needs more than the common statement.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a queue")]
struct Hints {
    lines: bool,
    suspects: bool,
    /// True if jobs with a priority wait or are scheduled.
    ranked: bool,
    unhandled: Vec<String>,
    /// True if a job was put in line since the lines were last tended; jobs of the same line may
    /// wait outside of it.
    blocked: bool,
    /// Time at which lines were last tended: ms since 1970.
    tended_ms: i64,
    /// Time at which the first of the lines is to be tried: ms since 1970, by the database's clock.
    retry_ms: Option<i64>,
    /// On MySQL: due time from which the next pick starts, and time of the last pick over all jobs.
    floor_ms: i64,
    looked_ms: i64,
    /// On MySQL: time at which the other hints were last read, and the worker whose lease had
    /// expired then.
    read_ms: i64,
    expired: String,
}

impl Hints {
    /// Returns whether the first job in a line is to be tried.
    fn are_lines_due(&self, now_ms: i64) -> bool {
        self.retry_ms.is_none_or(|at| at <= now_ms)
    }
}

/// On MySQL: interval of picks over all due jobs; others continue from the last one.
const WHOLE_LOOK_MS: i64 = 100;
/// On MySQL: interval at which hints are read while picks are full.
const READ_AGAIN_MS: i64 = 20;
/// Interval after which jobs of non-empty lines are put in line; a fetch that finds nothing else
/// does so at once.
const SWEEP_AFTER_MS: i64 = 100;

fn failed(error: sqlx::Error) -> Error {
    Error::store(error)
}

impl From<scale_sql::Error> for Error {
    fn from(error: scale_sql::Error) -> Self {
        match error {
            scale_sql::Error::Address(said) => Self::unsupported(&said),
            scale_sql::Error::Syntax(_) => Self::Address(error.to_string()),
            scale_sql::Error::Sql(error) => Self::store(error),
            other => Self::Schema(Box::new(other)),
        }
    }
}

fn source_of(error: &Error) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
    let Error::Store(source) = error else { return None };
    Some(&**source)
}

/// Runs a transaction, and repeats it if the database rolled it back in favour of another one.
async fn again<T, F: Future<Output = Result<T, Error>>>(
    attempt: impl FnMut() -> F,
) -> Result<T, Error> {
    scale_sql::retry(source_of, attempt).await
}

/// Returns the statements that a store runs on a system (`postgres`, `mysql`, `sqlite`), by name.
/// Used by tests of query plans.
#[doc(hidden)]
pub fn statements(system: &str) -> Vec<(&'static str, String)> {
    let Some(system) = System::of(&format!("{system}:")) else { return Vec::new() };
    Statements::of(system)
        .all()
        .into_iter()
        .map(|(name, statement)| (name, statement.text().to_owned()))
        .collect()
}

impl SqlStore {
    /// Connects to a database. The tables of an SQLite file are created and migrated; those of a
    /// server must exist, see [`migrate`].
    ///
    /// # Errors
    /// [`Error::Address`]; [`Error::Schema`] if the tables are older or newer than this version
    /// needs; [`Error::Store`] if the database cannot be reached.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        let settings = Settings::default();
        Self::open(Database::connect(url, &settings.options).await?, app, &settings).await
    }

    async fn begin(&self) -> Result<Connection<'static>, Error> {
        self.database.begin().await.map_err(failed)
    }

    /// Binds the application's name, the first parameter.
    fn ask(&self, statement: &Statement) -> Query {
        statement.bind(self.app_text.clone())
    }

    /// Binds the application and the queue, the first two parameters of most statements.
    fn of(&self, statement: &Statement, queue: &str) -> Query {
        self.ask(statement).bind(queue)
    }

    /// Returns the notification about a queue for other processes.
    fn payload(&self, queue: &str) -> String {
        format!("{}/{queue}", self.app_text)
    }

    /// Notifies other processes' idle workers when the transaction commits. This process's workers
    /// are woken by [`IdleWorkers::wake`] after the commit.
    async fn notify(&self, connection: &mut Connection<'_>, payload: String) -> Result<(), Error> {
        notify(self.texts, connection, payload).await
    }

    /// Creates a queue's row outside the application's transaction: inside, the row would block
    /// other pushes until the transaction ends. In the background, because the transaction may hold
    /// the pool's only connection.
    fn know_soon(&self, queue: &str) {
        if self.known.lock().contains(queue) {
            return;
        }
        let (know, known) = (self.of(&self.texts.push.know, queue), Arc::clone(&self.known));
        let (database, queue) = (self.database.clone(), queue.to_owned());
        tokio::spawn(async move {
            if know.execute(&database).await.is_ok() {
                known.lock().insert(queue);
            }
        });
    }

    /// Creates a queue's row before its first job.
    async fn know(&self, queue: &str) -> Result<(), Error> {
        if !self.known.lock().contains(queue) {
            again(async || {
                self.of(&self.texts.push.know, queue).execute(&self.database).await.map_err(failed)
            })
            .await?;
            self.known.lock().insert(queue.to_owned());
        }
        Ok(())
    }

    /// Notifies the worker that holds a cancelled job, in whatever process.
    async fn tell_of_cancellation(&self, tx: &mut Connection<'_>, tag: &[u8]) -> Result<(), Error> {
        if self.system() == System::MySql {
            let forget = self.of(&self.texts.registry.forget, CANCEL).bind(MOST_CANCELLED);
            forget.execute(&mut *tx).await.map_err(failed)?;
            let tell = self
                .of(&self.texts.registry.announce, CANCEL)
                .bind(hex(tag))
                .bind(Vec::<u8>::new());
            tell.bind(millis(CANCEL_KNOWN_FOR)).execute(&mut *tx).await.map_err(failed)?;
        }
        self.notify(tx, self.payload(&format!("!{}", hex(tag)))).await
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

    /// Returns how many rows of a page fit into one answer, at least one if there is any.
    async fn fitting(
        &self,
        sizes: &Statement,
        queue: &str,
        offset: usize,
        limit: usize,
    ) -> Result<usize, Error> {
        let sizes = self.of(sizes, queue).bind(limit as i64).bind(offset as i64);
        let rows = sizes.fetch_all(&self.database).await.map_err(failed)?;
        let sizes: Vec<i64> =
            rows.iter().map(|row| row.get(1).map_err(failed)).collect::<Result<_, _>>()?;
        Ok(super::within(sizes, PAGE_BYTES, |size| *size as usize).len())
    }
}

fn bodies(rows: &[Row], column: usize) -> Result<Vec<Vec<u8>>, Error> {
    rows.iter().map(|row| row.get(column).map_err(failed)).collect()
}

#[async_trait]
impl Store for SqlStore {
    async fn push(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        self.push_all(queue, entries).await
    }

    async fn fetch(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: Request<'_>,
    ) -> Result<Fetched, Error> {
        if request.max > 0 {
            self.listen();
            // Before the fetch, so that a push after it wakes this worker.
            self.idle.sleep(queue, worker);
        }
        let late = self.give_late_turns(queue).await;
        let mut fetched = self.fetch_jobs(queue, worker, &request).await?;
        if !fetched.jobs.is_empty() {
            // A job pushed inside an application's transaction may be the queue's first.
            self.know_soon(queue);
        }
        // A worker that got jobs begins them, and looks again.
        if fetched.jobs.is_empty() && request.max > 0 && fetched.look_again.is_none() {
            self.outlook(queue, worker, &mut fetched).await?;
        } else if request.max > 0 {
            fetched.look_again = None;
            self.idle.rise(queue, worker);
        }
        if let Some(late) = late
            && fetched.armed
        {
            fetched.look_again = Some(fetched.look_again.map_or(late, |known| known.min(late)));
        }
        Ok(fetched)
    }

    async fn settle(
        &self,
        queue: &str,
        worker: &WorkerId,
        settlements: &[&Settlement],
    ) -> Vec<Result<bool, Error>> {
        self.settle_all(queue, worker, settlements).await
    }

    async fn checkpoint(
        &self,
        queue: &str,
        worker: &WorkerId,
        tag: &[u8],
        bytes: &[u8],
    ) -> Result<bool, Error> {
        let replace = || {
            let replace = self.of(&self.texts.leases.checkpoint, queue).bind(worker.to_string());
            replace.bind(hex(tag)).bind(bytes.to_vec())
        };
        again(|| async { Ok(replace().execute(&self.database).await.map_err(failed)? > 0) }).await
    }

    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error> {
        self.ids_held(queue, worker).await
    }

    async fn held_jobs(
        &self,
        queue: &str,
        worker: &WorkerId,
        tags: &[Vec<u8>],
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.bodies_held(queue, worker, tags, max_bytes).await
    }

    async fn heartbeat(
        &self,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<bool, Error> {
        let beat =
            || self.of(&self.texts.leases.beat, queue).bind(worker.to_string()).bind(millis(lease));
        again(|| async { Ok(beat().execute(&self.database).await.map_err(failed)? > 0) }).await
    }

    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<Reclaimed, Error> {
        again(|| self.take_back(queue, expired)).await
    }

    async fn orphans(&self, queue: &str) -> Result<Vec<WorkerId>, Error> {
        self.reopen_lost_lines(queue).await?;
        if let Err(error) = self.give_lost_turns(queue).await {
            tracing::warn!(%error, queue, "could not search for turns in groups left by a fault");
        }
        let rows = self
            .of(&self.texts.leases.orphans, queue)
            .fetch_all(&self.database)
            .await
            .map_err(failed)?;
        rows.iter().map(|row| row.get::<String>(0).map(Into::into).map_err(failed)).collect()
    }

    fn wake_ups(&self, worker: &WorkerId) -> BoxStream<'static, WakeUp> {
        self.idle.listen(worker)
    }

    async fn pass_on(&self, queue: &str, leaves: Option<&WorkerId>) -> Result<(), Error> {
        leaves.inspect(|worker| self.idle.rise(queue, worker));
        self.idle.wake(queue, 1);
        Ok(())
    }

    async fn leave(&self, queue: &str, worker: &WorkerId) -> Result<(), Error> {
        self.idle.rise(queue, worker);
        let leave = || async {
            let mut tx = self.begin().await?;
            self.dismiss(&mut tx, queue, worker).await?;
            tx.commit().await.map_err(failed)
        };
        again(leave).await
    }

    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error> {
        let pause = || async {
            let mut tx = self.begin().await?;
            self.of(&self.texts.push.know, queue).execute(&mut tx).await.map_err(failed)?;
            self.of(&self.texts.look.pause, queue)
                .bind(i64::from(paused))
                .execute(&mut tx)
                .await
                .map_err(failed)?;
            if !paused {
                self.of(&self.texts.lines.try_lines, queue)
                    .execute(&mut tx)
                    .await
                    .map_err(failed)?;
            }
            self.notify(&mut tx, self.payload(queue)).await?;
            tx.commit().await.map_err(failed)
        };
        again(pause).await?;
        if !paused {
            self.hint(queue, |hints| hints.retry_ms = None);
        }
        self.idle.wake(queue, usize::MAX);
        Ok(())
    }

    async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        let row = self
            .of(&self.texts.look.stats, queue)
            .fetch_one(&self.database)
            .await
            .map_err(failed)?;
        let count = |n: usize| row.get::<i64>(n).map(|n| n.max(0) as u64).map_err(failed);
        let firsts = (9..12).filter_map(|n| row.get::<Option<Vec<u8>>>(n).ok().flatten());
        let oldest = firsts.filter_map(|body| pushed_ms(&body)).min();
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
            lag_ms: oldest.map_or(0, |then| self.now_ms().saturating_sub(then)),
        })
    }

    async fn record(
        &self,
        queue: &str,
        resolution: Resolution,
        sample: &Sample,
    ) -> Result<(), Error> {
        let bytes = rmp_serde::to_vec(sample).map_err(Error::store)?;
        let record = self
            .of(&self.texts.look.record, queue)
            .bind(resolution.name())
            .bind(sample.at_ms as i64)
            .bind(bytes);
        if record.execute(&self.database).await.map_err(failed)? > 0 {
            let oldest = sample.at_ms.saturating_sub(resolution.step_ms() * resolution.most());
            let forget = self
                .of(&self.texts.look.forget_samples, queue)
                .bind(resolution.name())
                .bind(oldest as i64);
            forget.execute(&self.database).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn history_of(
        &self,
        queue: &str,
        resolution: Resolution,
        since_ms: u64,
    ) -> Result<Vec<Sample>, Error> {
        let samples =
            self.of(&self.texts.look.samples, queue).bind(resolution.name()).bind(since_ms as i64);
        let rows = bodies(&samples.fetch_all(&self.database).await.map_err(failed)?, 0)?;
        Ok(rows.iter().filter_map(|bytes| rmp_serde::from_slice(bytes).ok()).collect())
    }

    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<DeadJob>, Error> {
        let limit = self.fitting(&self.texts.dead.sizes, queue, offset, limit).await?;
        let dead = self.of(&self.texts.dead.list, queue).bind(limit as i64).bind(offset as i64);
        let rows = dead.fetch_all(&self.database).await.map_err(failed)?;
        let dead_job = |row: &Row| {
            let died: i64 = row.get(2)?;
            Ok(DeadJob { bytes: row.get(0)?, reason: row.get(1)?, died_ms: died.max(0) as u64 })
        };
        rows.iter().map(dead_job).collect::<Result<_, _>>().map_err(failed)
    }

    async fn take_dead(
        &self,
        queue: &str,
        tag: &[u8],
        died_ms: u64,
        then: &AfterDeath,
    ) -> Result<bool, Error> {
        again(|| self.take_one_dead(queue, tag, died_ms, then)).await
    }

    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error> {
        let cancelled = again(|| self.cancel_job(queue, tag)).await?;
        if let Cancellation::Cancelled(bytes) = &cancelled
            && let Some(group) = turn_of(bytes)
        {
            self.give_turns(queue, &group.key).await;
        }
        Ok(cancelled)
    }

    async fn list(
        &self,
        queue: &str,
        state: State,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<Listed>, Error> {
        let texts = &self.texts;
        let (sizes, list) = match state {
            State::Waiting => {
                let row = self
                    .of(&texts.look.count_suspect, queue)
                    .fetch_one(&self.database)
                    .await
                    .map_err(failed)?;
                let suspects = row.get::<i64>(0).map_err(failed)?.max(0) as usize;
                if offset < suspects {
                    (&texts.look.sizes_suspect, &texts.look.list_suspect)
                } else {
                    let page = &texts.look.waiting;
                    return self.list_ranked(queue, page, offset - suspects, limit, false).await;
                }
            }
            State::Scheduled => {
                return self.list_ranked(queue, &texts.look.scheduled, offset, limit, true).await;
            }
            State::Blocked => (&texts.look.sizes_blocked, &texts.look.list_blocked),
            State::Leased => (&texts.look.sizes_leased, &texts.look.list_leased),
        };
        let limit = self.fitting(sizes, queue, offset, limit).await?;
        let list = self.of(list, queue).bind(limit as i64).bind(offset as i64);
        let rows = list.fetch_all(&self.database).await.map_err(failed)?;
        let listed = |row: &Row| {
            Ok(Listed { bytes: row.get(0)?, due_ms: None, worker: row.get(2)?, line: row.get(3)? })
        };
        rows.iter().map(listed).collect::<Result<_, _>>().map_err(failed)
    }

    async fn take_all(
        &self,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        again(|| self.lease_all(queue, worker, lease)).await
    }

    async fn release_unique(&self, queue: &str, key: &str, tag: &[u8]) -> Result<(), Error> {
        let release =
            || self.of(&self.texts.push.release_unique, queue).bind(key_text(key)).bind(hex(tag));
        again(|| async { release().execute(&self.database).await.map(drop).map_err(failed) }).await
    }

    async fn expire_once(&self, queue: &str, keys: &[String]) -> Result<(), Error> {
        for keys in keys.chunks(BATCH) {
            let keys: Vec<_> = keys.iter().map(|key| key_text(key)).collect();
            let expire = || {
                self.of(&self.texts.push.expire_once, queue)
                    .bind(keys.clone())
                    .bind(millis(ONCE_AFTER))
            };
            again(|| async { expire().execute(&self.database).await.map_err(failed) }).await?;
        }
        Ok(())
    }

    async fn queues(&self) -> Result<Vec<String>, Error> {
        let rows =
            self.ask(&self.texts.look.queues).fetch_all(&self.database).await.map_err(failed)?;
        rows.iter().map(|row| row.get(0).map_err(failed)).collect()
    }

    fn now_ms(&self) -> u64 {
        self.clock.now_ms() as u64
    }

    async fn make_known(&self, queue: &str) -> Result<(), Error> {
        match self.system() {
            System::Postgres | System::MySql => {
                self.know_soon(queue);
                Ok(())
            }
            // SQLite has one writer, which may be the application's transaction.
            System::Sqlite => Ok(()),
        }
    }

    fn enlists(&self) -> bool {
        true
    }

    fn is_pooled(&self) -> bool {
        self.database.is_pooled()
    }

    fn app(&self) -> &str {
        &self.app
    }
}

impl SqlStore {
    /// Returns a page of waiting or scheduled jobs of all priorities.
    async fn list_ranked(
        &self,
        queue: &str,
        page: &Statement,
        offset: usize,
        limit: usize,
        is_scheduled: bool,
    ) -> Result<Vec<Listed>, Error> {
        let page = self.of(page, queue).bind(limit as i64).bind(offset as i64);
        let rows =
            page.bind((offset + limit) as i64).fetch_all(&self.database).await.map_err(failed)?;
        let read = |row: &Row| Ok((row.get(0)?, row.get(1)?));
        let sizes: Vec<(String, i64)> =
            rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)?;
        let ids: Vec<_> = super::within(sizes, PAGE_BYTES, |(_, size)| *size as usize)
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.of(&self.texts.look.ranked, queue).bind(ids.clone());
        let rows = rows.fetch_all(&self.database).await.map_err(failed)?;
        let read = |row: &Row| {
            let due: i64 = row.get(2)?;
            let due_ms = is_scheduled.then_some(due.max(0) as u64);
            let listed = Listed { bytes: row.get(1)?, due_ms, worker: None, line: None };
            Ok((row.get(0)?, listed))
        };
        let mut found: HashMap<String, Listed> =
            rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)?;
        Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
    }

    async fn lease_all(
        &self,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let mut tx = self.begin().await?;
        let rows =
            self.of(&self.texts.leases.pick_any, queue).fetch_all(&mut tx).await.map_err(failed)?;
        let sizes: Vec<(String, i64)> = rows
            .iter()
            .map(|row| Ok((row.get(0)?, row.get(1)?)))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let ids: Vec<_> = super::within(sizes, PAGE_BYTES, |(_, size)| *size as usize)
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let unbegun = ids.join(",");
        let claimed = self.claim(&mut tx, queue, worker, ids).await?;
        self.lease(&mut tx, queue, worker, lease, 0, unbegun, String::new()).await?;
        tx.commit().await.map_err(failed)?;
        Ok(claimed.jobs)
    }
}
