//! Changes many rows in short, throttled transactions.
//!
//! The table is walked by its key. Each chunk of keys is one transaction on the primary, so it
//! locks few rows for a short time, and replicas keep up.
//!
//! | when | then |
//! | --- | --- |
//! | a chunk takes longer than [`target`](Chunked::target) | the next one is smaller; after a fast chunk the next one is larger, at most twice as large |
//! | a replica lags over [`max_lag`](Chunked::max_lag) | the walk pauses until it has caught up |
//! | the database asks for a retry (a deadlock) | that chunk is retried, up to five attempts in total |
//! | the process dies, or the future is dropped | the current chunk rolls back; a [`named`](Chunked::named) walk continues exactly after the last committed chunk |
//! | two processes run the same named walk | they take turns: no chunk runs twice |
//! | rows are inserted beyond the last key during the walk | they are not walked: the end is fixed at the start, so the walk ends |
//! | rows are inserted behind the walk | they are not seen: let the application write the new form before the walk begins |

use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Error, SqlSafeStr, SqlStr};

use crate::backend::Backend;
use crate::cluster::node::Node;
use crate::cluster::role::Role;
use crate::db::Db;
use crate::log::Log;
use crate::retry::{Attempt, RetryBudget, Transient};

/// Table that stores the progress of named walks.
const TABLE: &str = "scale_db_walks";
/// Maximum rows of a chunk, however fast it is.
const LARGEST: u64 = 100_000;

/// Progress of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Number of chunks committed by this call.
    pub chunks: u64,
    /// Number of rows changed, as reported by the work; for a named walk, over all its calls.
    pub rows: u64,
    /// First key of the walk.
    pub first: i64,
    /// Last key that was processed.
    pub upto: i64,
    /// Last key of the table at the start.
    pub last: i64,
    /// Number of rows in the next chunk.
    pub size: u64,
}

impl Progress {
    /// Returns the completed fraction by keys, between 0 and 1.
    pub fn fraction(&self) -> f64 {
        let span = |a: i64, b: i64| (i128::from(b) - i128::from(a) + 1) as f64;
        (span(self.first, self.upto) / span(self.first, self.last)).clamp(0.0, 1.0)
    }
}

/// Builder of a walk through a table; from [`Db::chunked`].
#[must_use = "nothing happens before `run`"]
pub struct Chunked<'a, DB: Backend> {
    db: &'a Db<DB>,
    table: String,
    key: String,
    size: u64,
    target: Duration,
    max_lag: Duration,
    name: Option<String>,
    tell: Box<dyn FnMut(&Progress) + Send + 'a>,
}

impl<DB: Backend> fmt::Debug for Chunked<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunked")
            .field("table", &self.table)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// State of a walk.
struct Walk {
    first: i64,
    last: i64,
    /// First key of the next chunk; `None` after the last one.
    next: Option<i64>,
    rows: u64,
}

impl<DB: Backend> Db<DB> {
    /// Starts a walk through `table` by its integer column `key` in many short transactions. The
    /// column must be indexed and unique, as a primary key is. Both names are quoted as given,
    /// including upper and lower case.
    ///
    /// ```no_run
    /// # async fn example(db: scale_db::Db<sqlx::Postgres>) -> Result<(), sqlx::Error> {
    /// let done = db.chunked("orders", "id")
    ///     .named("orders-in-euro")
    ///     .on_progress(|p| println!("{:.0} %", p.fraction() * 100.0))
    ///     .run(async |mut tx, ids| {
    ///         let update = sqlx::query(
    ///             "update orders set currency = 'EUR'
    ///              where id between $1 and $2 and currency is null",
    ///         );
    ///         Ok::<_, sqlx::Error>(
    ///             update.bind(*ids.start())
    ///                 .bind(*ids.end())
    ///                 .execute(&mut **tx).await?
    ///                 .rows_affected(),
    ///         )
    ///     })
    ///     .await?;
    /// println!("{} rows", done.rows);
    /// # Ok(()) }
    /// ```
    pub fn chunked(&self, table: &str, key: &str) -> Chunked<'_, DB> {
        Chunked {
            table: self.dialect().quoted(table),
            key: self.dialect().quoted(key),
            size: 500,
            target: Duration::from_millis(100),
            max_lag: self.0.config.max_replica_lag / 2,
            name: None,
            tell: Box::new(|_| {}),
            db: self,
        }
    }

    /// Waits until no replica that answers lags more than `lag`.
    pub(crate) async fn caught_up(&self, lag: Duration) {
        // A replica that has not reached the primary's position of the start of this process is
        // late by an unknown time.
        let is_late = |node: &Node<DB>| {
            let status = node.status();
            status.role == Role::Replica
                && status.lag.map_or(**node.log() != Log::Unknown, |late| late > lag)
        };
        let late = || self.0.nodes.load().iter().any(|node| is_late(node));
        if late() {
            tracing::info!("waiting for replicas to catch up");
        }
        while late() {
            let _ = tokio::time::timeout(self.0.config.monitor_interval, self.0.looked.notified())
                .await;
        }
    }
}

impl<'a, DB: Backend> Chunked<'a, DB> {
    /// Sets the number of rows of the first chunk. Default: 500.
    pub fn size(mut self, rows: u64) -> Self {
        self.size = rows.clamp(1, LARGEST);
        self
    }

    /// Sets the target duration of a chunk, during which other transactions wait for its locks.
    /// Default: 100 ms.
    pub fn target(mut self, time: Duration) -> Self {
        self.target = time.max(Duration::from_millis(1));
        self
    }

    /// Sets the lag above which the walk waits for replicas. Default: half of
    /// [`max_replica_lag`](crate::Config::max_replica_lag), so that they keep serving reads.
    pub fn max_lag(mut self, lag: Duration) -> Self {
        self.max_lag = lag;
        self
    }

    /// Names the walk. Its progress is stored in the table `scale_db_walks`, within the transaction
    /// of each chunk, and another `run` with the same name continues there. A completed walk does
    /// not run again until [`Db::forget_walk`] is called.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(self.db.dialect().literal(name));
        self
    }

    /// Sets a function that is called after each committed chunk.
    pub fn on_progress(mut self, tell: impl FnMut(&Progress) + Send + 'a) -> Self {
        self.tell = Box::new(tell);
        self
    }

    /// Runs the walk. `work` gets a range of keys, both ends included, and returns the number of
    /// changed rows. It must have no effects outside of the transaction.
    ///
    /// # Errors
    /// The errors of `work` and of sqlx. Committed chunks stay.
    pub async fn run<E, F, R>(mut self, mut work: F) -> Result<Progress, E>
    where
        F: FnMut(Attempt<DB>, RangeInclusive<i64>) -> R,
        R: Future<Output = Result<u64, E>>,
        E: From<Error> + Transient,
    {
        let walk = self.begin().await?;
        let Some(mut walk) = walk else {
            return Ok(Progress {
                chunks: 0,
                rows: 0,
                first: 0,
                upto: 0,
                last: 0,
                size: self.size,
            });
        };
        let upto = walk.next.map_or(walk.last, |next| next.saturating_sub(1));
        let mut progress = Progress {
            chunks: 0,
            rows: walk.rows,
            first: walk.first,
            upto,
            last: walk.last,
            size: self.size,
        };
        while walk.next.is_some() {
            self.db.caught_up(self.max_lag).await;
            let start = Instant::now();
            let mut patience = RetryBudget::default();
            let more = loop {
                match self.chunk(&mut walk, &mut work).await {
                    Ok(more) => break more,
                    Err(error) if patience.again(&error).await => {}
                    Err(error) => return Err(error),
                }
            };
            let Some(upto) = more else { break };
            self.size = fitting(self.size, start.elapsed(), self.target);
            progress = Progress {
                chunks: progress.chunks + 1,
                rows: walk.rows,
                upto,
                size: self.size,
                ..progress
            };
            metrics::counter!("scale_db_chunks_total").increment(1);
            (self.tell)(&progress);
        }
        // Another process may have done the rest of the walk.
        Ok(Progress { rows: walk.rows, upto: walk.last, ..progress })
    }

    /// Reads the first and last key of the table, and the progress of a named walk. Returns `None`
    /// if the table is empty.
    async fn begin(&mut self) -> Result<Option<Walk>, Error> {
        let dialect = self.db.dialect();
        let mut connection = self.db.acquire().await?;
        let (least, most) = (format!("min({})", self.key), format!("max({})", self.key));
        let ends = select(dialect, &[&least, &most], &self.table);
        let row = DB::ask(&mut connection, ends).await?;
        let [Some(first), Some(last)] = [number(&row, 0)?, number(&row, 1)?] else {
            return Ok(None);
        };
        let Some(name) = &self.name else {
            return Ok(Some(Walk { first, last, next: Some(first), rows: 0 }));
        };
        DB::tell(
            &mut connection,
            format!(
                "create table if not exists {TABLE} (name varchar(200) primary key, first_key \
                 bigint not null, \
                 last_key bigint not null, next_key bigint, row_count bigint not null)"
            ),
        )
        .await?;
        let ignore = match dialect {
            crate::Dialect::MySql => "on duplicate key update name = name",
            _ => "on conflict (name) do nothing",
        };
        DB::tell(
            &mut connection,
            format!("insert into {TABLE} values ({name}, {first}, {last}, {first}, 0) {ignore}"),
        )
        .await?;
        Self::read(&mut connection, dialect, name, "").await.map(Some)
    }

    /// Runs one transaction. Returns its last key, or `None` if nothing was left.
    async fn chunk<E, F, R>(&mut self, walk: &mut Walk, work: &mut F) -> Result<Option<i64>, E>
    where
        F: FnMut(Attempt<DB>, RangeInclusive<i64>) -> R,
        R: Future<Output = Result<u64, E>>,
        E: From<Error> + Transient,
    {
        let dialect = self.db.dialect();
        let mut tx = self.db.begin().await?;
        if let Some(name) = &self.name {
            // Other processes with the same walk wait here, and continue after this chunk.
            let lock = if dialect == crate::Dialect::Sqlite { "" } else { " for update" };
            *walk = Self::read(&mut tx, dialect, name, lock).await?;
        }
        let Some(from) = walk.next else { return Ok(None) };
        let (key, table, last, size) = (&self.key, &self.table, walk.last, self.size);
        let keys = format!(
            "(select {key} as k from {table} where {key} between {from} and {last} \
             order by {key} limit {size}) c"
        );
        let keys = select(dialect, &["max(k)"], &keys);
        let upto = number(&self.db.0.deadline().in_time(DB::ask(&mut tx, keys)).await?, 0)?;
        let rows = match upto {
            Some(upto) => {
                let (attempt, home) = Attempt::lend(tx);
                let rows = work(attempt, from..=upto).await;
                tx = Attempt::returned(&home)?;
                rows?
            }
            None => 0,
        };
        let after = Walk {
            rows: walk.rows + rows,
            next: upto.filter(|u| *u < walk.last).map(|u| u + 1),
            ..*walk
        };
        if let Some(name) = &self.name {
            let next = after.next.map_or_else(|| "null".to_owned(), |n| n.to_string());
            let rows = after.rows;
            DB::tell(
                &mut tx,
                format!(
                    "update {TABLE} set next_key = {next}, row_count = {rows} where name = {name}"
                ),
            )
            .await?;
        }
        tx.commit().await?;
        *walk = after;
        Ok(upto)
    }

    async fn read(
        connection: &mut DB::Connection,
        dialect: crate::Dialect,
        name: &str,
        lock: &str,
    ) -> Result<Walk, Error> {
        let from = format!("{TABLE} where name = {name}{lock}");
        let row = select(dialect, &["first_key", "last_key", "next_key", "row_count"], &from);
        let row = DB::ask(connection, row).await?;
        Ok(Walk {
            first: number(&row, 0)?.unwrap_or_default(),
            last: number(&row, 1)?.unwrap_or_default(),
            next: number(&row, 2)?,
            rows: number(&row, 3)?.unwrap_or_default() as u64,
        })
    }
}

impl<DB: Backend> Db<DB> {
    /// Deletes the progress of a [named](Chunked::named) walk: the next walk with this name starts
    /// at the beginning.
    pub async fn forget_walk(&self, name: &str) -> Result<(), Error> {
        let name = self.dialect().literal(name);
        let mut connection = self.acquire().await?;
        DB::tell(&mut connection, format!("delete from {TABLE} where name = {name}")).await
    }
}

/// Builds a select of expressions as text.
fn select(dialect: crate::Dialect, expressions: &[&str], from: &str) -> SqlStr {
    let expressions: Vec<_> = expressions.iter().map(|e| dialect.text_of(e)).collect();
    AssertSqlSafe(format!("select {} from {from}", expressions.join(", "))).into_sql_str()
}

fn number(row: &[Option<String>], column: usize) -> Result<Option<i64>, Error> {
    let text = row.get(column).and_then(Option::as_deref);
    text.map(|t| {
        t.parse().map_err(|_| Error::Protocol("the key column of a walk must be an integer".into()))
    })
    .transpose()
}

/// Returns the size that would have taken the target time, without sudden jumps.
fn fitting(size: u64, took: Duration, target: Duration) -> u64 {
    let ratio = target.as_secs_f64() / took.as_secs_f64().max(1e-6);
    ((size as f64 * ratio.clamp(0.25, 2.0)) as u64).clamp(1, LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_time_taken() {
        let target = Duration::from_millis(100);
        assert_eq!(fitting(500, Duration::from_millis(100), target), 500);
        assert_eq!(fitting(500, Duration::from_millis(1), target), 1_000, "doubled at most");
        assert_eq!(fitting(500, Duration::from_mins(1), target), 125, "a quarter at least");
        assert_eq!(fitting(1, Duration::from_mins(1), target), 1);
        assert_eq!(fitting(LARGEST, Duration::ZERO, target), LARGEST);
    }

    #[test]
    fn the_fraction_survives_the_widest_keys() {
        let p = Progress { chunks: 0, rows: 0, first: i64::MIN, upto: -1, last: i64::MAX, size: 1 };
        assert!((p.fraction() - 0.5).abs() < 1e-9);
    }
}
