//! `&Db` as an sqlx executor: the statement is taken apart, a node is chosen, and what was taken apart runs there.
//!
//! | the statement | fails with | then |
//! | --- | --- | --- |
//! | reads, on a replica | a lost connection before the first row, or the node is found down | the node is ejected, the statement repeated on another |
//! | reads, on a replica | "read-only" (its text hid a write) | repeated on the primary once; its text is remembered as a write |
//! | reads, on a replica | "not supported" (an unlogged table) | repeated on the primary once; its text is remembered if the primary ran it |
//! | any | "cached plan must not change" (its table was changed after it was prepared; nothing has run) | prepared anew and repeated once; the node's connections forget what they prepared |
//! | reads, on a replica | "no such table" (it may be new) | repeated on the primary once |
//! | reads, on a replica | a conflict with recovery | repeated on another node |
//! | reads, on a replica | no free connection | repeated on another replica that has one, not on the primary |
//! | reads, on the primary | a lost connection before the first row | repeated there once, on a connection that was asked, if it reads tables alone: a view may write |
//! | writes | "read-only" (the primary was demoted) | repeated once, if the monitor finds another primary |
//! | writes | a lost connection | never repeated: it may have run. The monitor looks at once |
//! | is prepared or described | a lost connection | asked again, as a read is |

use std::sync::Arc;

use either::Either;
use futures_core::future::BoxFuture;
use futures_core::stream::{BoxStream, Stream};
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::{AssertSqlSafe, Database, Error, Execute, Executor, SqlSafeStr, SqlStr};
use tokio::sync::OwnedSemaphorePermit;

use crate::backend::Backend;
use crate::db::{Db, Target, Via};
use crate::deadline::{Deadline, Rows};
use crate::failure::{Lacks, is_broken, is_lost, is_recovery_conflict, is_stale_plan, lack};
use crate::node::{Node, Visit};
use crate::router::Verdict;
use crate::sticky;
use crate::tables;

/// A query taken apart, ready to run, and to run again.
struct Parts<DB: Database> {
    sql: SqlStr,
    statement: Option<DB::Statement>,
    arguments: Option<DB::Arguments>,
    persistent: bool,
}

impl<DB: Backend> Parts<DB> {
    fn take<'q, E: Execute<'q, DB>>(mut query: E) -> Result<Self, Error> {
        let arguments = query.take_arguments().map_err(Error::Encode)?;
        let persistent = query.persistent();
        let statement = query.statement().cloned();
        Ok(Self { sql: query.sql(), statement, arguments, persistent })
    }

    /// For another run, `anew` without what was prepared for the text before.
    fn again(self, anew: bool) -> Self {
        if !anew {
            return self;
        }
        let sql = format!("{}\n", self.sql.as_str());
        // The text is the same, but for its end.
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

impl<DB: Database> Execute<'_, DB> for Parts<DB> {
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

/// One statement's way through the nodes.
struct Journey<DB: Backend> {
    db: Db<DB>,
    verdict: Verdict,
    /// Bit set of node numbers that failed it.
    tried: u64,
    repeats_left: u32,
    /// Said to be reading, and not proven: on the primary it may write.
    trusted: bool,
    /// A statement prepared before was older than a change of its table: it is prepared anew, for once.
    anew: bool,
    /// A replica could not run it, and the primary is asked: if it can, the text is remembered.
    refused: bool,
}

/// A node to run a statement on.
struct Stop<DB: Backend> {
    node: Arc<Node<DB>>,
    /// Leave to read from the primary, for as long as that takes.
    leave: Option<OwnedSemaphorePermit>,
}

impl<DB: Backend> Journey<DB> {
    fn new(db: Db<DB>, target: Target, sql: &str) -> Self {
        let verdict = db.verdict(target, sql);
        let repeats_left = match verdict {
            Verdict::Read => db.0.nodes.load().len() as u32,
            Verdict::Write => 1,
        };
        // Whatever may write marks the scope, whoever has chosen the node.
        let may_write = db.0.router.verdict(sql) == Verdict::Write;
        if may_write && target != Target::Replica {
            sticky::wrote(db.0.id);
        }
        let trusted = may_write && target == Target::Replica;
        Self { db, verdict, tried: 0, repeats_left, trusted, anew: false, refused: false }
    }

    async fn stop(&self) -> Result<Stop<DB>, Error> {
        if self.verdict == Verdict::Write {
            return Ok(Stop { node: self.db.primary_node().await?, leave: None });
        }
        if let Some(node) = self.db.reader(self.tried) {
            return Ok(Stop { node, leave: None });
        }
        let (node, leave) = self.db.primary_for_reading().await?;
        if self.trusted {
            sticky::wrote(self.db.0.id);
        }
        Ok(Stop { node, leave })
    }

    fn deadline(&self) -> Deadline {
        match self.verdict {
            Verdict::Read => self.db.0.deadline(),
            Verdict::Write => self.db.0.deadline().for_write(),
        }
    }

    /// Remembers a statement that the primary ran after a replica could not.
    fn ran(&self, sql: &str) {
        if self.refused {
            self.db.0.router.refuse(sql);
        }
    }

    /// Returns whether the statement may run again after this error, by the table above; arranges for it to run elsewhere.
    async fn again_after(&mut self, error: &Error, node: &Arc<Node<DB>>, sql: &str) -> bool {
        if self.verdict == Verdict::Write {
            self.db.judge_write(node, error);
        }
        if self.repeats_left == 0 {
            return false;
        }
        self.repeats_left -= 1;
        // Postgres says so before it runs anything.
        if error.as_database_error().is_some_and(is_stale_plan) && !std::mem::replace(&mut self.anew, true) {
            node.forget_plans();
            return true;
        }
        let on_primary = self.db.0.primary_number() == Some(node.number);
        let bit = 1 << (node.number % 64);
        let first = self.tried & bit == 0;
        match self.verdict {
            Verdict::Read if self.db.is_refusal(error) => {
                self.db.0.router.refuse(sql);
                self.turn_to_primary();
                sticky::wrote(self.db.0.id);
                true
            }
            Verdict::Read if !on_primary && let Some(lacks) = lack(self.db.0.dialect, error) => {
                self.refused = lacks == Lacks::Ever;
                self.turn_to_primary();
                true
            }
            // All its connections are in use: another replica may have one, and the primary is not there for that.
            Verdict::Read if matches!(error, Error::PoolTimedOut) && node.is_full() => {
                self.tried |= bit;
                !on_primary && self.db.reader(self.tried).is_some()
            }
            Verdict::Read if is_lost(error) => {
                node.eject();
                self.db.0.wake.notify_one();
                self.tried |= bit;
                // The primary, on which reads end at last, is asked once more: it may have been the connection alone. But there a view may
                // have written before it was lost.
                !on_primary
                    || (first && is_broken(error) && !self.trusted && Box::pin(tables::are_all_it_reads(&self.db, sql)).await)
            }
            Verdict::Read if is_recovery_conflict(error) => {
                self.tried |= bit;
                !on_primary
            }
            Verdict::Write if self.db.is_refusal(error) => Box::pin(self.has_moved_from(node)).await,
            _ => false,
        }
    }

    fn turn_to_primary(&mut self) {
        self.verdict = Verdict::Write;
        self.repeats_left = 0;
    }

    /// Waits for the primary to be another node, as long as a write may wait for one.
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

async fn many<DB>(mut journey: Journey<DB>, mut parts: Parts<DB>) -> Result<BoxStream<'static, Step<DB>>, Error>
where
    DB: Backend,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    loop {
        let Stop { node, leave } = journey.stop().await?;
        let copy = (journey.repeats_left > 0).then(|| parts.copy());
        let sql = parts.sql.clone();
        let steps = node.pool().fetch_many(parts);
        let mut rows = Rows::new(steps, journey.deadline(), Visit::new(node));
        let first = rows.next().await;
        rows.visit().answered(journey.db.0.dialect, sql.as_str(), journey.db.0.config.slow_query);
        if let (Some(Err(error)), Some(copy)) = (&first, copy)
            && journey.again_after(error, &rows.visit().node, sql.as_str()).await
        {
            parts = copy.again(journey.anew);
            continue;
        }
        if matches!(first, Some(Ok(_)) | None) {
            journey.ran(sql.as_str());
        }
        // Leave ends with the stream, whose connection goes back to its pool then.
        return Ok(stream::iter(first).chain(rows).map(move |step| (&leave, step).1).boxed());
    }
}

/// Returns the first row of a write, which is waited for to its end: until then it has not committed, and may fail still.
async fn first_of_all<Q, R>(mut steps: impl Stream<Item = Result<Either<Q, R>, Error>> + Unpin) -> Result<Option<R>, Error> {
    let mut found = None;
    while let Some(step) = steps.try_next().await? {
        if let Either::Right(row) = step {
            found.get_or_insert(row);
        }
    }
    Ok(found)
}

async fn optional<DB>(mut journey: Journey<DB>, mut parts: Parts<DB>) -> Result<Option<DB::Row>, Error>
where
    DB: Backend,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    loop {
        let Stop { node, leave: _leave } = journey.stop().await?;
        let visit = Visit::new(node);
        let copy = (journey.repeats_left > 0).then(|| parts.copy());
        let sql = parts.sql.clone();
        let verdict = journey.verdict;
        let run = async {
            match verdict {
                Verdict::Read => visit.node.pool().fetch_optional(parts).await,
                Verdict::Write => first_of_all(visit.node.pool().fetch_many(parts)).await,
            }
        };
        let result = journey.deadline().answer(&visit.node, run).await;
        visit.answered(journey.db.0.dialect, sql.as_str(), journey.db.0.config.slow_query);
        match (result, copy) {
            (Err(error), Some(copy)) => {
                if !journey.again_after(&error, &visit.node, sql.as_str()).await {
                    return Err(error);
                }
                parts = copy.again(journey.anew);
            }
            (Ok(row), _) => {
                journey.ran(sql.as_str());
                return Ok(row);
            }
            (result, _) => return result,
        }
    }
}

/// Asks what a statement is like, on whichever node would run it.
async fn about<'a, DB: Backend, T>(
    mut journey: Journey<DB>,
    sql: SqlStr,
    ask: impl Fn(sqlx::Pool<DB>) -> BoxFuture<'a, Result<T, Error>>,
) -> Result<T, Error> {
    loop {
        let Stop { node, leave: _leave } = journey.stop().await?;
        // Nothing runs, so it may be asked again wherever it was asked.
        let error = match journey.db.within_deadline(&node, ask(node.pool())).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let again = journey.again_after(&error, &node, sql.as_str()).await;
        if !again
            && (journey.verdict == Verdict::Read || !is_broken(&error) || std::mem::replace(&mut journey.repeats_left, 0) == 0)
        {
            return Err(error);
        }
    }
}

impl<'p, DB> Executor<'p> for Via<'_, DB>
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
        match Parts::take(query) {
            Ok(parts) => {
                let journey = Journey::new(self.db.clone(), self.target, parts.sql.as_str());
                // Read later, it still is of this scope.
                sticky::carry_stream(stream::once(many(journey, parts)).try_flatten()).boxed()
            }
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        match Parts::take(query) {
            Ok(parts) => {
                let journey = Journey::new(self.db.clone(), self.target, parts.sql.as_str());
                Box::pin(optional(journey, parts))
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [DB::TypeInfo]) -> BoxFuture<'e, Result<DB::Statement, Error>>
    where
        'p: 'e,
    {
        let journey = Journey::new(self.db.clone(), self.target, sql.as_str());
        Box::pin(about(journey, sql.clone(), move |pool| {
            let sql = sql.clone();
            Box::pin(async move { pool.prepare_with(sql, parameters).await })
        }))
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx_core::describe::Describe<DB>, Error>>
    where
        'p: 'e,
    {
        let journey = Journey::new(self.db.clone(), self.target, sql.as_str());
        Box::pin(about(journey, sql.clone(), move |pool| {
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
        Via { db: self, target: Target::Proven }.fetch_many(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Via { db: self, target: Target::Proven }.fetch_optional(query)
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [DB::TypeInfo]) -> BoxFuture<'e, Result<DB::Statement, Error>>
    where
        'p: 'e,
    {
        Via { db: self, target: Target::Proven }.prepare_with(sql, parameters)
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx_core::describe::Describe<DB>, Error>>
    where
        'p: 'e,
    {
        Via { db: self, target: Target::Proven }.describe(sql)
    }
}
