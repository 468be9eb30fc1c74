//! `&Db` as an sqlx executor: a query is detached from its type, a node is chosen, and the query
//! runs there.
//!
//! | statement | fails with | then |
//! | --- | --- | --- |
//! | read, on a replica | a lost connection before the first row, or the node is found down | the node is ejected, the statement repeated on another node |
//! | read, on a replica | "read-only" (its text hid a write) | repeated once on the primary; its text is remembered as a write |
//! | read, on a replica | "not supported" (an unlogged table) | repeated once on the primary; its text is remembered as a write if the primary ran it |
//! | any | "cached plan must not change" (its table was changed after it was prepared; nothing has run) | prepared again and repeated once; the node's connections clear their prepared statements |
//! | read, on a replica | "no such table" (it may be new) | repeated once on the primary |
//! | read, on a replica | a conflict with recovery | repeated on another node |
//! | read, on a replica | no free connection | repeated on another replica that has one, not on the primary |
//! | read, on the primary | a lost connection before the first row | repeated there once, on a connection that was pinged, if it reads only tables: a view may write |
//! | write | "read-only" (the primary was demoted) | repeated once, if the monitor finds another primary |
//! | write | a lost connection | never repeated: it may have run. The monitor probes at once |
//! | prepare or describe | a lost connection | repeated, as a read is |

use std::sync::Arc;

use either::Either;
use futures_core::future::BoxFuture;
use futures_core::stream::{BoxStream, Stream};
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::{AssertSqlSafe, Database, Error, Execute, Executor, SqlSafeStr, SqlStr};
use tokio::sync::OwnedSemaphorePermit;

use crate::backend::Backend;
use crate::cluster::node::{InFlight, Node};
use crate::db::{Db, RoutedExecutor, Target};
use crate::deadline::{Deadline, Rows};
use crate::failure::{Lacks, is_broken, is_lost, is_recovery_conflict, is_stale_plan, lack};
use crate::router::Verdict;
use crate::sticky;
use crate::tables;

/// A query detached from its type, which can run more than once.
struct DetachedQuery<DB: Database> {
    sql: SqlStr,
    statement: Option<DB::Statement>,
    arguments: Option<DB::Arguments>,
    persistent: bool,
}

impl<DB: Backend> DetachedQuery<DB> {
    fn take<'q, E: Execute<'q, DB>>(mut query: E) -> Result<Self, Error> {
        let arguments = query.take_arguments().map_err(Error::Encode)?;
        let persistent = query.persistent();
        let statement = query.statement().cloned();
        Ok(Self { sql: query.sql(), statement, arguments, persistent })
    }

    /// Returns the query for another run; with `anew`, without the statement that was prepared for
    /// its text.
    fn again(self, anew: bool) -> Self {
        if !anew {
            return self;
        }
        let sql = format!("{}\n", self.sql.as_str());
        // A line break makes the text a different one for the statement cache.
        Self { sql: AssertSqlSafe(sql).into_sql_str(), statement: None, persistent: false, ..self }
    }

    fn copy(&self) -> Self {
        Self {
            sql: self.sql.clone(),
            statement: self.statement.clone(),
            arguments: self.arguments.as_ref().map(DB::copy),
            persistent: self.persistent,
        }
    }
}

impl<DB: Database> Execute<'_, DB> for DetachedQuery<DB> {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&DB::Statement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<DB::Arguments>, sqlx::error::BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

/// State of one statement while nodes are tried.
struct StatementRun<DB: Backend> {
    db: Db<DB>,
    verdict: Verdict,
    /// Bit set of the numbers of nodes that failed the statement.
    tried: u64,
    repeats_left: u32,
    /// True if the caller declared the statement a read without a proof: on the primary it may
    /// write.
    trusted: bool,
    /// True if the prepared statement was older than a change of its table, so that it is prepared
    /// again; once only.
    anew: bool,
    /// True if a replica could not run it and the primary is tried; if that works, the text is
    /// remembered as a write.
    refused: bool,
}

/// Node on which a statement runs.
struct Chosen<DB: Backend> {
    node: Arc<Node<DB>>,
    /// Permit to read from the primary, held as long as the statement runs.
    leave: Option<OwnedSemaphorePermit>,
}

impl<DB: Backend> StatementRun<DB> {
    fn new(db: Db<DB>, target: Target, sql: &str) -> Self {
        let verdict = db.verdict(target, sql);
        let repeats_left = match verdict {
            Verdict::Read => db.0.nodes.load().len() as u32,
            Verdict::Write => 1,
        };
        // A statement that may write marks the scope, even if the caller has chosen the node.
        let may_write = db.0.router.verdict(sql) == Verdict::Write;
        if may_write && target != Target::Replica {
            sticky::wrote(db.0.id);
        }
        let trusted = may_write && target == Target::Replica;
        Self { db, verdict, tried: 0, repeats_left, trusted, anew: false, refused: false }
    }

    async fn stop(&self) -> Result<Chosen<DB>, Error> {
        if self.verdict == Verdict::Write {
            return Ok(Chosen { node: self.db.primary_node().await?, leave: None });
        }
        if let Some(node) = self.db.reader(self.tried) {
            return Ok(Chosen { node, leave: None });
        }
        let (node, leave) = self.db.primary_for_reading().await?;
        if self.trusted {
            sticky::wrote(self.db.0.id);
        }
        Ok(Chosen { node, leave })
    }

    fn deadline(&self) -> Deadline {
        match self.verdict {
            Verdict::Read => self.db.0.deadline(),
            Verdict::Write => self.db.0.deadline().for_write(),
        }
    }

    /// Remembers a statement as a write that the primary ran after a replica could not.
    fn ran(&self, sql: &str) {
        if self.refused {
            self.db.0.router.mark_as_write(sql);
        }
    }

    /// Returns whether the statement may run again after this error, by the table above, and
    /// arranges on which node.
    async fn again_after(&mut self, error: &Error, node: &Arc<Node<DB>>, sql: &str) -> bool {
        if self.verdict == Verdict::Write {
            self.db.judge_write(node, error);
        }
        if self.repeats_left == 0 {
            return false;
        }
        self.repeats_left -= 1;
        // Postgres reports this before it runs anything.
        if error.as_database_error().is_some_and(is_stale_plan)
            && !std::mem::replace(&mut self.anew, true)
        {
            node.forget_plans();
            return true;
        }
        let on_primary = self.db.0.primary_number() == Some(node.number);
        let bit = 1 << (node.number % 64);
        let first = self.tried & bit == 0;
        match self.verdict {
            Verdict::Read if self.db.is_refusal(error) => {
                self.db.0.router.mark_as_write(sql);
                self.turn_to_primary();
                sticky::wrote(self.db.0.id);
                true
            }
            Verdict::Read if !on_primary && let Some(lacks) = lack(self.db.0.dialect, error) => {
                self.refused = lacks == Lacks::Ever;
                self.turn_to_primary();
                true
            }
            // All connections of the node are in use: another replica may have a free one. The
            // primary is not used as overflow.
            Verdict::Read if matches!(error, Error::PoolTimedOut) && node.is_full() => {
                self.tried |= bit;
                !on_primary && self.db.reader(self.tried).is_some()
            }
            Verdict::Read if is_lost(error) => {
                node.eject();
                self.db.0.wake.notify_one();
                self.tried |= bit;
                // The primary, the last resort of reads, is tried once more, because only the
                // connection may have failed. But a view may have written there before the
                // connection was lost.
                !on_primary
                    || (first
                        && is_broken(error)
                        && !self.trusted
                        && Box::pin(tables::are_all_it_reads(&self.db, sql)).await)
            }
            Verdict::Read if is_recovery_conflict(error) => {
                self.tried |= bit;
                !on_primary
            }
            Verdict::Write if self.db.is_refusal(error) => {
                Box::pin(self.has_moved_from(node)).await
            }
            _ => false,
        }
    }

    fn turn_to_primary(&mut self) {
        self.verdict = Verdict::Write;
        self.repeats_left = 0;
    }

    /// Waits until the primary is another node, as long as a write may wait for one.
    async fn has_moved_from(&self, node: &Node<DB>) -> bool {
        let inner = &self.db.0;
        let limit = inner.config.primary_wait.max(inner.config.monitor_interval);
        let moved = async {
            while inner.primary_number().is_none_or(|number| number == node.number) {
                let looked = inner.looked.notified();
                inner.wake.notify_one();
                looked.await;
            }
        };
        tokio::time::timeout(limit, moved).await.is_ok()
    }
}

type Step<DB> = Result<Either<<DB as Database>::QueryResult, <DB as Database>::Row>, Error>;

async fn many<DB>(
    mut attempt: StatementRun<DB>,
    mut parts: DetachedQuery<DB>,
) -> Result<BoxStream<'static, Step<DB>>, Error>
where
    DB: Backend,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    loop {
        let Chosen { node, leave } = attempt.stop().await?;
        let copy = (attempt.repeats_left > 0).then(|| parts.copy());
        let sql = parts.sql.clone();
        let steps = node.pool().fetch_many(parts);
        let mut rows = Rows::new(steps, attempt.deadline(), InFlight::new(node));
        let first = rows.next().await;
        rows.in_flight().answered(
            attempt.db.0.dialect,
            sql.as_str(),
            attempt.db.0.config.slow_query,
        );
        if let (Some(Err(error)), Some(copy)) = (&first, copy)
            && attempt.again_after(error, &rows.in_flight().node, sql.as_str()).await
        {
            parts = copy.again(attempt.anew);
            continue;
        }
        if matches!(first, Some(Ok(_)) | None) {
            attempt.ran(sql.as_str());
        }
        // The permit is held until the stream ends, and its connection returns to the pool.
        return Ok(stream::iter(first).chain(rows).map(move |step| (&leave, step).1).boxed());
    }
}

/// Returns the first row of a write after reading all rows: before the end, the write has not
/// committed and may still fail.
async fn first_of_all<Q, R>(
    mut steps: impl Stream<Item = Result<Either<Q, R>, Error>> + Unpin,
) -> Result<Option<R>, Error> {
    let mut found = None;
    while let Some(step) = steps.try_next().await? {
        if let Either::Right(row) = step {
            found.get_or_insert(row);
        }
    }
    Ok(found)
}

async fn optional<DB>(
    mut attempt: StatementRun<DB>,
    mut parts: DetachedQuery<DB>,
) -> Result<Option<DB::Row>, Error>
where
    DB: Backend,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    loop {
        let Chosen { node, leave: _leave } = attempt.stop().await?;
        let in_flight = InFlight::new(node);
        let copy = (attempt.repeats_left > 0).then(|| parts.copy());
        let sql = parts.sql.clone();
        let verdict = attempt.verdict;
        let run = async {
            match verdict {
                Verdict::Read => in_flight.node.pool().fetch_optional(parts).await,
                Verdict::Write => first_of_all(in_flight.node.pool().fetch_many(parts)).await,
            }
        };
        let result = attempt.deadline().answer(&in_flight.node, run).await;
        in_flight.answered(attempt.db.0.dialect, sql.as_str(), attempt.db.0.config.slow_query);
        match (result, copy) {
            (Err(error), Some(copy)) => {
                if !attempt.again_after(&error, &in_flight.node, sql.as_str()).await {
                    return Err(error);
                }
                parts = copy.again(attempt.anew);
            }
            (Ok(row), _) => {
                attempt.ran(sql.as_str());
                return Ok(row);
            }
            (result, _) => return result,
        }
    }
}

/// Prepares or describes a statement on the node that would run it.
async fn about<'a, DB: Backend, T>(
    mut attempt: StatementRun<DB>,
    sql: SqlStr,
    ask: impl Fn(sqlx::Pool<DB>) -> BoxFuture<'a, Result<T, Error>>,
) -> Result<T, Error> {
    loop {
        let Chosen { node, leave: _leave } = attempt.stop().await?;
        // Nothing runs, so the request may be repeated on any node.
        let error = match attempt.db.within_deadline(&node, ask(node.pool())).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let again = attempt.again_after(&error, &node, sql.as_str()).await;
        if !again
            && (attempt.verdict == Verdict::Read
                || !is_broken(&error)
                || std::mem::replace(&mut attempt.repeats_left, 0) == 0)
        {
            return Err(error);
        }
    }
}

impl<'p, DB> Executor<'p> for RoutedExecutor<'_, DB>
where
    DB: Backend,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Step<DB>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        match DetachedQuery::take(query) {
            Ok(parts) => {
                let attempt = StatementRun::new(self.db.clone(), self.target, parts.sql.as_str());
                // The rows belong to this scope even if they are read later.
                sticky::carry_stream(stream::once(many(attempt, parts)).try_flatten()).boxed()
            }
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        match DetachedQuery::take(query) {
            Ok(parts) => {
                let attempt = StatementRun::new(self.db.clone(), self.target, parts.sql.as_str());
                Box::pin(optional(attempt, parts))
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, Error>>
    where
        'p: 'e,
    {
        let attempt = StatementRun::new(self.db.clone(), self.target, sql.as_str());
        Box::pin(about(attempt, sql.clone(), move |pool| {
            let sql = sql.clone();
            Box::pin(async move { pool.prepare_with(sql, parameters).await })
        }))
    }

    #[doc(hidden)]
    fn describe<'e>(
        self,
        sql: SqlStr,
    ) -> BoxFuture<'e, Result<sqlx_core::describe::Describe<DB>, Error>>
    where
        'p: 'e,
    {
        let attempt = StatementRun::new(self.db.clone(), self.target, sql.as_str());
        Box::pin(about(attempt, sql.clone(), move |pool| {
            let sql = sql.clone();
            Box::pin(async move { pool.describe(sql).await })
        }))
    }
}

impl<'p, DB> Executor<'p> for &Db<DB>
where
    DB: Backend,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Step<DB>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        RoutedExecutor { db: self, target: Target::Proven }.fetch_many(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        RoutedExecutor { db: self, target: Target::Proven }.fetch_optional(query)
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, Error>>
    where
        'p: 'e,
    {
        RoutedExecutor { db: self, target: Target::Proven }.prepare_with(sql, parameters)
    }

    #[doc(hidden)]
    fn describe<'e>(
        self,
        sql: SqlStr,
    ) -> BoxFuture<'e, Result<sqlx_core::describe::Describe<DB>, Error>>
    where
        'p: 'e,
    {
        RoutedExecutor { db: self, target: Target::Proven }.describe(sql)
    }
}
