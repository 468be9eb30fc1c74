//! `&Db` as an sqlx executor: the statement is taken apart, a node is chosen, and what was taken apart runs there.
//!
//! | the statement | fails with | then |
//! | --- | --- | --- |
//! | reads, on a replica | a lost connection before the first row | the node is ejected, the statement repeated on another |
//! | reads, on a replica | "read-only" (its text hid a write) | repeated on the primary once; its text is remembered as a write |
//! | reads, on the primary | a lost connection before the first row | repeated there once, on a connection that was asked |
//! | reads, on a replica | a conflict with recovery | repeated on another node |
//! | writes | "read-only" (the primary was demoted) | repeated once, if the monitor finds another primary |
//! | writes | a lost connection | never repeated: it may have run. The monitor looks at once |

use std::sync::Arc;

use either::Either;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::{Database, Error, Execute, Executor, SqlStr};

use crate::backend::Backend;
use crate::db::{Db, Target, Via, is_broken, is_lost};
use crate::node::{Node, Visit};
use crate::router::Verdict;
use crate::sticky;

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
        Self { db, verdict, tried: 0, repeats_left, trusted: may_write && target == Target::Replica }
    }

    async fn node(&self) -> Result<Arc<Node<DB>>, Error> {
        match self.verdict {
            Verdict::Write => self.db.primary_node().await,
            Verdict::Read => {
                if let Some(node) = self.db.reader(self.tried) {
                    return Ok(node);
                }
                let node = self.db.primary_for_reading().await?;
                if self.trusted {
                    sticky::wrote(self.db.0.id);
                }
                Ok(node)
            }
        }
    }

    /// Whether the statement may run again after this error, by the table above; arranges for it to run elsewhere.
    async fn again_after(&mut self, error: &Error, node: &Node<DB>, sql: &str) -> bool {
        if self.verdict == Verdict::Write {
            self.db.judge_write(node, error);
        }
        if self.repeats_left == 0 {
            return false;
        }
        self.repeats_left -= 1;
        match self.verdict {
            Verdict::Read if self.db.is_refusal(error) => {
                self.db.0.router.refuse(sql);
                self.verdict = Verdict::Write;
                self.repeats_left = 0;
                sticky::wrote(self.db.0.id);
                true
            }
            Verdict::Read if is_lost(error) => {
                node.eject();
                self.db.0.wake.notify_one();
                let bit = 1 << (node.number % 64);
                let first = self.tried & bit == 0;
                self.tried |= bit;
                // The primary, on which reads end at last, is asked once more: it may have been the connection alone.
                self.db.0.primary_number() != Some(node.number) || (first && is_broken(error))
            }
            Verdict::Read if is_recovery_conflict(error) => {
                self.tried |= 1 << (node.number % 64);
                self.db.0.primary_number() != Some(node.number)
            }
            Verdict::Write if self.db.is_refusal(error) => self.has_moved_from(node).await,
            _ => false,
        }
    }

    /// Lets the monitor look, and says whether the primary is another node now.
    async fn has_moved_from(&self, node: &Node<DB>) -> bool {
        let inner = &self.db.0;
        let looked = inner.looked.notified();
        inner.wake.notify_one();
        let limit = inner.config.primary_wait.max(inner.config.monitor_interval);
        let _ = tokio::time::timeout(limit, looked).await;
        inner.primary_number().is_some_and(|number| number != node.number)
    }
}

fn is_recovery_conflict(error: &Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "40001")
}

type Step<DB> = Result<Either<<DB as Database>::QueryResult, <DB as Database>::Row>, Error>;

async fn many<DB>(mut journey: Journey<DB>, mut parts: Parts<DB>) -> Result<BoxStream<'static, Step<DB>>, Error>
where
    DB: Backend,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    loop {
        let visit = Visit::new(journey.node().await?);
        let copy = (journey.repeats_left > 0).then(|| parts.copy());
        let sql = parts.sql.clone();
        let mut steps = visit.node.pool.fetch_many(parts);
        let first = steps.next().await;
        visit.answered(journey.db.0.dialect, sql.as_str(), journey.db.0.config.slow_query);
        if let (Some(Err(error)), Some(copy)) = (&first, copy)
            && journey.again_after(error, &visit.node, sql.as_str()).await
        {
            parts = copy;
            continue;
        }
        // The visit ends with the stream, whose connection goes back to its pool then.
        return Ok(stream::iter(first).chain(steps).map(move |step| (&visit, step).1).boxed());
    }
}

async fn optional<DB>(mut journey: Journey<DB>, mut parts: Parts<DB>) -> Result<Option<DB::Row>, Error>
where
    DB: Backend,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    loop {
        let visit = Visit::new(journey.node().await?);
        let copy = (journey.repeats_left > 0).then(|| parts.copy());
        let sql = parts.sql.clone();
        let result = visit.node.pool.fetch_optional(parts).await;
        visit.answered(journey.db.0.dialect, sql.as_str(), journey.db.0.config.slow_query);
        match (result, copy) {
            (Err(error), Some(copy)) => {
                if !journey.again_after(&error, &visit.node, sql.as_str()).await {
                    return Err(error);
                }
                parts = copy;
            }
            (result, _) => return result,
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
        Box::pin(async move { journey.node().await?.pool.prepare_with(sql, parameters).await })
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx_core::describe::Describe<DB>, Error>>
    where
        'p: 'e,
    {
        let journey = Journey::new(self.db.clone(), self.target, sql.as_str());
        Box::pin(async move { journey.node().await?.pool.describe(sql).await })
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
