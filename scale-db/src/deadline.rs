//! Limits on waiting for a node.
//!
//! | waiting | ends when |
//! | --- | --- |
//! | a read, the beginning of a transaction | its node is found down, or [`statement_timeout`](crate::Config::statement_timeout) and two seconds have passed |
//! | a write | another node has become the primary, or that time has passed: it may have run, and is not repeated |
//! | the rows of a stream | as for their statement, from one row to the next |
//! | a statement in a transaction of the caller | it has its answer: the connection is the caller's, and so is the timeout |
//! | any statement on SQLite | it has its answer |
//!
//! A connection that a firewall has dropped, or whose cable was pulled, gives no error for many
//! minutes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use futures_core::future::BoxFuture;
use sqlx::Database;

use crate::backend::Backend;
use crate::cluster::Cluster;
use crate::cluster::node::{InFlight, Node};
use crate::db::Db;
use crate::dialect::Dialect;

/// Added to the time after which the server itself ends a statement.
const GRACE: Duration = Duration::from_secs(2);

/// Event that ends waiting for a node before the time limit.
#[derive(Clone, Copy, Debug)]
enum EndsEarly {
    /// The node is found down.
    UntilDown,
    /// Another node has become the primary.
    UntilDeposed,
    Never,
}

/// Limit on waiting for one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    limit: Option<Duration>,
    ends_early: EndsEarly,
}

impl<DB: Backend> Cluster<DB> {
    /// Returns the limit for reads, which may be repeated on another node.
    pub(crate) fn deadline(&self) -> Deadline {
        let timeout = self.config.statement_timeout;
        let limit =
            (self.dialect != Dialect::Sqlite && !timeout.is_zero()).then(|| timeout + GRACE);
        let ends_early =
            if self.dialect == Dialect::Sqlite { EndsEarly::Never } else { EndsEarly::UntilDown };
        Deadline { limit, ends_early }
    }
}

impl Deadline {
    /// Returns the limit for writes, which must not be repeated.
    pub(crate) fn for_write(self) -> Self {
        match self.ends_early {
            EndsEarly::Never => self,
            _ => Self { ends_early: EndsEarly::UntilDeposed, ..self },
        }
    }

    async fn passes<DB: Database>(self, node: &Node<DB>) -> io::Error {
        let lost = async {
            match self.ends_early {
                EndsEarly::UntilDown => node.lost().await,
                EndsEarly::UntilDeposed => node.deposed().await,
                EndsEarly::Never => std::future::pending().await,
            }
        };
        let late = async {
            match self.limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = lost => io::Error::new(io::ErrorKind::ConnectionAborted, "the database node was \
                found down, or is no longer the primary"),
            () = late => {
                // The server itself would have reported the timeout by now, so the connection is
                // dead.
                node.renew();
                io::Error::new(io::ErrorKind::TimedOut, "the database did not answer within its \
                    statement timeout")
            }
        }
    }

    /// Waits for an answer within the time limit only.
    pub(crate) async fn in_time<T>(
        self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let Some(limit) = self.limit else { return work.await };
        tokio::time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    /// Waits for an answer of a node.
    pub(crate) async fn answer<DB: Database, T>(
        self,
        node: &Node<DB>,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        tokio::pin!(work);
        // Dropped before `work`: a connection that `work` returns is already in doubt then.
        let mut unfinished = Unfinished { node, finished: false };
        tokio::select! {
            biased;
            answer = &mut work => {
                unfinished.finished = true;
                answer
            }
            error = self.passes(node) => Err(error.into()),
        }
    }
}

/// Guard that marks the node's connections as doubtful when waiting is abandoned.
struct Unfinished<'a, DB: Database> {
    node: &'a Node<DB>,
    finished: bool,
}

impl<DB: Database> Drop for Unfinished<'_, DB> {
    fn drop(&mut self) {
        if !self.finished {
            self.node.doubt();
        }
    }
}

impl<DB: Backend> Db<DB> {
    /// Waits for an answer that may be requested again on another node.
    pub(crate) async fn within_deadline<T>(
        &self,
        node: &Node<DB>,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        self.0.deadline().answer(node, work).await
    }
}

/// Stream of rows that ends with an error when its node stops answering. Counts as a running
/// statement of the node until dropped.
pub(crate) struct Rows<DB: Database, S> {
    steps: S,
    deadline: Deadline,
    in_flight: Arc<InFlight<DB>>,
    passes: Option<BoxFuture<'static, io::Error>>,
    ended: bool,
}

impl<DB: Database, S> Drop for Rows<DB, S> {
    fn drop(&mut self) {
        if !self.ended {
            self.in_flight.node.doubt();
        }
    }
}

impl<DB: Database, S> Rows<DB, S> {
    pub(crate) fn new(steps: S, deadline: Deadline, in_flight: InFlight<DB>) -> Self {
        Self { steps, deadline, in_flight: Arc::new(in_flight), passes: None, ended: false }
    }

    pub(crate) fn in_flight(&self) -> &InFlight<DB> {
        &self.in_flight
    }
}

impl<DB: Database, T, S: Stream<Item = Result<T, sqlx::Error>> + Unpin> Stream for Rows<DB, S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if let Poll::Ready(step) = Pin::new(&mut self.steps).poll_next(cx) {
            self.passes = None;
            self.ended = step.is_none();
            return Poll::Ready(step);
        }
        let (deadline, in_flight) = (self.deadline, Arc::clone(&self.in_flight));
        let passes = self
            .passes
            .get_or_insert_with(|| Box::pin(async move { deadline.passes(&in_flight.node).await }));
        let error = std::task::ready!(passes.as_mut().poll(cx));
        self.passes = None;
        Poll::Ready(Some(Err(error.into())))
    }
}
