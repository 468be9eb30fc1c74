//! Jobs in tables of a PostgreSQL or SQLite database. Tables and statements: `texts.rs`.
//!
//! Workers claim rows with `for update skip locked` on Postgres, and one after the other on SQLite, which has one writer. On Postgres a
//! push notifies; on SQLite workers of the same process are woken, and each process looks twice a second whether another has written.

mod ears;
mod ledger;
mod outbox;
mod sleepers;
mod texts;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::{AnyConnection, AnyPool, Row, Transaction};

use self::ears::Ear;
pub(crate) use self::outbox::enlist;
pub use self::outbox::{Enlist, Relay};
use self::sleepers::Sleepers;
pub(crate) use self::texts::System;
use self::texts::Texts;
use super::{
    CANCELLED, Cancellation, Corpse, Destination, Entry, Fetched, History, Listed, Request, Settlement, State, Stats, Store,
    Wake, WorkerId,
};
use crate::envelope::{count_failure, pushed_ms, tag_of};
use crate::error::Error;

/// The soonest look after one that left what is due to others.
const BEHIND_MS: i64 = 5;

/// Jobs in a PostgreSQL or SQLite database.
#[derive(Debug)]
pub struct SqlStore {
    pool: AnyPool,
    system: System,
    texts: Arc<Texts>,
    sleepers: Arc<Sleepers>,
    history: History,
    /// The database's clock minus ours, ms.
    offset: AtomicI64,
}

fn failed(error: sqlx::Error) -> Error {
    Error::store(error)
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
    use std::fmt::Write;
    tag.iter().fold(String::with_capacity(tag.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
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

impl SqlStore {
    /// Connects, and makes the tables if they are not there.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        sqlx::any::install_default_drivers();
        let system = System::of(url).ok_or_else(|| Error::address(url))?;
        let options = AnyPoolOptions::new().acquire_timeout(Duration::from_secs(5));
        #[cfg(feature = "sqlite")]
        let options = if system == System::Sqlite { one_writer(options) } else { options };
        // sqlx's words may hold the password.
        let pool = options.connect_lazy(url).map_err(|_| Error::Address("a database address that cannot be read".into()))?;
        let texts = Arc::new(Texts::new(system));
        let store =
            Self { pool, system, texts, sleepers: Arc::default(), history: History::default(), offset: AtomicI64::new(0) };
        store.migrate().await?;
        let now: i64 = store.texts.clock.query().fetch_one(&store.pool).await.and_then(|row| row.try_get(0)).map_err(failed)?;
        store.offset.store(now - local_ms(), Relaxed);
        #[cfg(feature = "postgres")]
        if system == System::Postgres {
            tokio::spawn(ears::listen(url.to_owned(), store.ear()));
        }
        #[cfg(feature = "sqlite")]
        if system == System::Sqlite {
            tokio::spawn(ears::watch(store.ear()));
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
        let mut tx = self.begin().await?;
        #[cfg(feature = "postgres")]
        if self.system == System::Postgres {
            sqlx::query("select pg_advisory_xact_lock(7222011)").execute(&mut *tx).await.map_err(failed)?;
        }
        for tables in [&self.texts.tables, &self.texts.ledgers] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(tables.text())).execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    fn ear(&self) -> Ear {
        Ear { sleepers: Arc::downgrade(&self.sleepers), pool: self.pool.clone(), cancelled: self.texts.cancelled.clone() }
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

    /// Tells sleepers of `count` jobs: those of other processes once the transaction commits, ours by [`Sleepers::wake`] after it.
    async fn notify(&self, connection: &mut AnyConnection, queue: &str) -> Result<(), Error> {
        let _ = (&connection, queue);
        #[cfg(feature = "postgres")]
        if self.system == System::Postgres {
            let notify = sqlx::query("select pg_notify('scale_queue', $1)").bind(queue.to_owned());
            notify.execute(connection).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn bury(&self, connection: &mut AnyConnection, queue: &str, reason: &str, body: &[u8]) -> Result<(), Error> {
        let bury = self.texts.bury.query().bind(queue.to_owned()).bind(reason.to_owned()).bind(body.to_vec());
        bury.execute(&mut *connection).await.map_err(failed)?;
        let trim = self.texts.trim.query().bind(queue.to_owned()).bind(millis(self.history.age)).bind(self.history.dead as i64);
        trim.execute(connection).await.map(drop).map_err(failed)
    }

    /// What a worker should know that got less than it wanted.
    async fn outlook(&self, queue: &str, worker: &WorkerId, fetched: &mut Fetched) -> Result<(), Error> {
        let next = self.texts.next.query().bind(queue.to_owned()).bind(worker.to_string());
        let row = next.fetch_one(&self.pool).await.map_err(failed)?;
        let number = |n: usize| row.try_get::<Option<i64>, _>(n).ok().flatten();
        let now = number(0).unwrap_or_else(local_ms);
        self.offset.store(now - local_ms(), Relaxed);
        // What is due was locked by others, or has become due since the fetch: both are for the next look.
        let moment = [number(1).map(|due| due.max(now + BEHIND_MS)), number(2)].into_iter().flatten().min();
        fetched.armed = true;
        fetched.look_again = moment.map(|at| Duration::from_millis((at - now).max(0) as u64));
        fetched.expired = row.try_get::<Option<String>, _>(3).ok().flatten().map(Into::into);
        Ok(())
    }
}

fn bodies(rows: &[AnyRow], column: usize) -> Result<Vec<Vec<u8>>, Error> {
    rows.iter().map(|row| row.try_get(column).map_err(failed)).collect()
}

#[async_trait]
impl Store for SqlStore {
    async fn push(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let mut tx = self.begin().await?;
        self.texts.know.query().bind(queue.to_owned()).execute(&mut *tx).await.map_err(failed)?;
        let mut answers = Vec::with_capacity(entries.len());
        for entry in entries {
            if let Some((key, life)) = &entry.once {
                self.texts.forget_once.query().bind(queue.to_owned()).execute(&mut *tx).await.map_err(failed)?;
                let once = self.texts.once.query().bind(queue.to_owned()).bind(key.clone()).bind(hex(tag_of(&entry.bytes)));
                if once.bind(millis(*life)).execute(&mut *tx).await.map_err(failed)?.rows_affected() == 0 {
                    let holder = self.texts.once_holder.query().bind(queue.to_owned()).bind(key.clone());
                    let id: String = holder.fetch_one(&mut *tx).await.and_then(|row| row.try_get(0)).map_err(failed)?;
                    answers.push(Some(unhex(&id)));
                    continue;
                }
            }
            if let Some((key, _)) = &entry.unique {
                let free = self.texts.free_late.query().bind(queue.to_owned()).bind(key.clone());
                free.execute(&mut *tx).await.map_err(failed)?;
            }
            let push = self
                .texts
                .push
                .query()
                .bind(hex(tag_of(&entry.bytes)))
                .bind(queue.to_owned())
                .bind(if entry.delay.is_zero() { 0 } else { millis(entry.delay) })
                .bind(entry.unique.as_ref().map(|(key, _)| key.clone()))
                .bind(entry.unique.as_ref().map_or(0, |(_, life)| millis(*life)))
                .bind(entry.bytes.clone());
            let stored = push.execute(&mut *tx).await.map_err(failed)?.rows_affected() > 0;
            answers.push(match &entry.unique {
                Some((key, _)) if !stored => {
                    let holder = self.texts.holder.query().bind(queue.to_owned()).bind(key.clone());
                    let id: String = holder.fetch_one(&mut *tx).await.and_then(|row| row.try_get(0)).map_err(failed)?;
                    Some(unhex(&id))
                }
                _ => None,
            });
        }
        self.notify(&mut tx, queue).await?;
        tx.commit().await.map_err(failed)?;
        self.sleepers.wake(queue, entries.len());
        Ok(answers)
    }

    async fn fetch(&self, queue: &str, worker: &WorkerId, request: Request<'_>) -> Result<Fetched, Error> {
        let mut fetched = Fetched::default();
        if request.max > 0 {
            // Before the look: a push after it must find us.
            self.sleepers.sleep(queue, worker);
        }
        let mut tx = self.begin().await?;
        if !request.done.is_empty() {
            let ids: Vec<_> = request.done.iter().map(|tag| hex(tag)).collect();
            let done = self.texts.done.query().bind(queue.to_owned()).bind(worker.to_string()).bind(ids.join(","));
            fetched.acknowledged = done.execute(&mut *tx).await.map_err(failed)?.rows_affected() as usize;
        }
        if request.max > 0 {
            let fetch = self.texts.fetch.query().bind(queue.to_owned()).bind(worker.to_string()).bind(request.max as i64);
            let rows = fetch.fetch_all(&mut *tx).await.map_err(failed)?;
            // `returning` keeps no order.
            let mut jobs: Vec<(i64, Vec<u8>)> =
                rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)?;
            for row in rows.iter().filter(|row| row.try_get(3).is_ok_and(|cancelled: i64| cancelled == 1)) {
                fetched.cancelled.push(unhex(&row.try_get::<String, _>(2).map_err(failed)?));
            }
            jobs.sort_unstable_by_key(|(seq, _)| *seq);
            fetched.jobs = jobs.into_iter().map(|(_, body)| body).collect();
        }
        if fetched.acknowledged > 0 || !fetched.jobs.is_empty() {
            let lease = self.texts.lease.query().bind(queue.to_owned()).bind(worker.to_string());
            let lease = lease.bind(millis(request.lease)).bind(fetched.acknowledged as i64);
            lease.execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        if fetched.jobs.len() < request.max {
            self.outlook(queue, worker, &mut fetched).await?;
        } else if request.max > 0 {
            self.sleepers.rise(queue, worker);
        }
        Ok(fetched)
    }

    async fn settle(&self, queue: &str, worker: &WorkerId, settlement: &Settlement) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let (id, worker) = (hex(&settlement.tag), worker.to_string());
        let ours = match &settlement.to {
            Destination::Done | Destination::Dead(..) => {
                let done = self.texts.done.query().bind(queue.to_owned()).bind(worker.clone()).bind(id);
                done.execute(&mut *tx).await
            }
            Destination::Scheduled(body, delay) => {
                let release = self.texts.release.query().bind(queue.to_owned()).bind(worker.clone()).bind(id);
                release.bind(body.clone()).bind(millis(*delay)).execute(&mut *tx).await
            }
            Destination::Waiting(body) => {
                let release = self.texts.release.query().bind(queue.to_owned()).bind(worker.clone()).bind(id);
                release.bind(body.clone()).bind(-1_i64).execute(&mut *tx).await
            }
        };
        if ours.map_err(failed)?.rows_affected() == 0 {
            return Ok(false);
        }
        let count = match &settlement.to {
            Destination::Done => Some(&self.texts.count_done),
            Destination::Scheduled(..) | Destination::Dead(..) => Some(&self.texts.count_failed),
            Destination::Waiting(_) => None,
        };
        if let Some(count) = count {
            count.query().bind(queue.to_owned()).bind(worker).execute(&mut *tx).await.map_err(failed)?;
        }
        if let Destination::Dead(body, reason) = &settlement.to {
            self.bury(&mut tx, queue, reason, body).await?;
        }
        let fetchable = matches!(settlement.to, Destination::Scheduled(..) | Destination::Waiting(_));
        if fetchable {
            self.notify(&mut tx, queue).await?;
        }
        tx.commit().await.map_err(failed)?;
        if fetchable {
            self.sleepers.wake(queue, 1);
        }
        Ok(true)
    }

    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error> {
        let held = self.texts.held.query().bind(queue.to_owned()).bind(worker.to_string());
        bodies(&held.fetch_all(&self.pool).await.map_err(failed)?, 0)
    }

    async fn beat(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<bool, Error> {
        let beat = self.texts.beat.query().bind(queue.to_owned()).bind(worker.to_string()).bind(millis(lease));
        Ok(beat.execute(&self.pool).await.map_err(failed)?.rows_affected() > 0)
    }

    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<usize, Error> {
        let mut tx = self.begin().await?;
        let expire = self.texts.expire.query().bind(queue.to_owned()).bind(expired.to_string());
        let Some(row) = expire.fetch_optional(&mut *tx).await.map_err(failed)? else { return Ok(0) };
        let (done, failures): (i64, i64) = row.try_get(0).and_then(|d| Ok((d, row.try_get(1)?))).map_err(failed)?;
        let held = self.texts.held.query().bind(queue.to_owned()).bind(expired.to_string());
        let jobs = bodies(&held.fetch_all(&mut *tx).await.map_err(failed)?, 0)?;
        let count = jobs.len();
        for mut body in jobs {
            let id = hex(tag_of(&body));
            count_failure(&mut body);
            let release = self.texts.release.query().bind(queue.to_owned()).bind(expired.to_string()).bind(id);
            release.bind(body).bind(-1_i64).execute(&mut *tx).await.map_err(failed)?;
        }
        let fold = self.texts.fold.query().bind(queue.to_owned()).bind(done).bind(failures + count as i64);
        fold.execute(&mut *tx).await.map_err(failed)?;
        self.notify(&mut tx, queue).await?;
        tx.commit().await.map_err(failed)?;
        self.sleepers.wake(queue, count);
        Ok(count)
    }

    fn wakes(&self, worker: &WorkerId) -> BoxStream<'static, Wake> {
        self.sleepers.listen(worker)
    }

    async fn pass_on(&self, queue: &str, worker: &WorkerId) -> Result<(), Error> {
        self.sleepers.rise(queue, worker);
        self.sleepers.wake(queue, 1);
        Ok(())
    }

    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        self.texts.know.query().bind(queue.to_owned()).execute(&mut *tx).await.map_err(failed)?;
        let pause = self.texts.pause.query().bind(queue.to_owned()).bind(i64::from(paused));
        pause.execute(&mut *tx).await.map_err(failed)?;
        self.notify(&mut tx, queue).await?;
        tx.commit().await.map_err(failed)?;
        self.sleepers.wake(queue, usize::MAX);
        Ok(())
    }

    async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        let row = self.texts.stats.query().bind(queue.to_owned()).fetch_one(&self.pool).await.map_err(failed)?;
        let count = |n: usize| row.try_get::<i64, _>(n).map(|n| n.max(0) as u64).map_err(failed);
        let oldest = row.try_get::<Option<Vec<u8>>, _>(7).ok().flatten();
        Ok(Stats {
            waiting: count(0)?,
            scheduled: count(1)?,
            leased: count(2)?,
            dead: count(3)?,
            done_total: count(4)?,
            failed_total: count(5)?,
            paused: count(6)? == 1,
            lag_ms: oldest.and_then(|b| pushed_ms(&b)).map_or(0, |then| self.now_ms().saturating_sub(then)),
        })
    }

    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<Corpse>, Error> {
        let dead = self.texts.dead.query().bind(queue.to_owned()).bind(limit as i64).bind(offset as i64);
        let rows = dead.fetch_all(&self.pool).await.map_err(failed)?;
        let corpse = |row: &AnyRow| {
            let died: i64 = row.try_get(2)?;
            Ok(Corpse { bytes: row.try_get(0)?, reason: row.try_get(1)?, died_ms: died.max(0) as u64 })
        };
        rows.iter().map(corpse).collect::<Result<_, _>>().map_err(failed)
    }

    async fn exhume(&self, queue: &str, corpse: &Corpse, again: Option<&[u8]>) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let exhume = self.texts.exhume.query().bind(queue.to_owned()).bind(corpse.died_ms as i64);
        let exhume = exhume.bind(corpse.reason.clone()).bind(corpse.bytes.clone());
        if exhume.execute(&mut *tx).await.map_err(failed)?.rows_affected() == 0 {
            return Ok(false);
        }
        if let Some(bytes) = again {
            let push = self.texts.push.query().bind(hex(tag_of(bytes))).bind(queue.to_owned()).bind(0_i64);
            push.bind(None::<String>).bind(0_i64).bind(bytes.to_vec()).execute(&mut *tx).await.map_err(failed)?;
            self.notify(&mut tx, queue).await?;
        }
        tx.commit().await.map_err(failed)?;
        if again.is_some() {
            self.sleepers.wake(queue, 1);
        }
        Ok(true)
    }

    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error> {
        let mut tx = self.begin().await?;
        let cancel = self.texts.cancel.query().bind(queue.to_owned()).bind(hex(tag));
        if let Some(row) = cancel.fetch_optional(&mut *tx).await.map_err(failed)? {
            let body: Vec<u8> = row.try_get(0).map_err(failed)?;
            self.bury(&mut tx, queue, CANCELLED, &body).await?;
            tx.commit().await.map_err(failed)?;
            return Ok(Cancellation::Buried(body));
        }
        let leased = self.texts.cancel_leased.query().bind(queue.to_owned()).bind(hex(tag));
        if leased.execute(&mut *tx).await.map_err(failed)?.rows_affected() == 0 {
            return Ok(Cancellation::Unknown);
        }
        // No queue's name begins so.
        self.notify(&mut tx, &format!("!{}", hex(tag))).await?;
        tx.commit().await.map_err(failed)?;
        self.sleepers.cancel(tag);
        Ok(Cancellation::Asked)
    }

    async fn list(&self, queue: &str, state: State, offset: usize, limit: usize) -> Result<Vec<Listed>, Error> {
        let list = match state {
            State::Waiting => &self.texts.list_waiting,
            State::Scheduled => &self.texts.list_scheduled,
            State::Leased => &self.texts.list_leased,
        };
        let list = list.query().bind(queue.to_owned()).bind(limit as i64).bind(offset as i64);
        let rows = list.fetch_all(&self.pool).await.map_err(failed)?;
        let listed = |row: &AnyRow| {
            let due: i64 = row.try_get(1)?;
            let due_ms = (state == State::Scheduled).then_some(due.max(0) as u64);
            Ok(Listed { bytes: row.try_get(0)?, due_ms, worker: row.try_get(2)? })
        };
        rows.iter().map(listed).collect::<Result<_, _>>().map_err(failed)
    }

    async fn drain(&self, queue: &str) -> Result<Vec<Vec<u8>>, Error> {
        let rows = self.texts.drain.query().bind(queue.to_owned()).fetch_all(&self.pool).await.map_err(failed)?;
        bodies(&rows, 0)
    }

    async fn queues(&self) -> Result<Vec<String>, Error> {
        let rows = self.texts.queues.query().fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
    }

    fn now_ms(&self) -> u64 {
        (local_ms() + self.offset.load(Relaxed)).max(0) as u64
    }

    fn enlists(&self) -> bool {
        true
    }
}
