//! Waiting for a node no longer than there is hope.
//!
//! | who waits | ends when |
//! | --- | --- |
//! | a read, the beginning of a transaction | its node is found down, or [`statement_timeout`](crate::Config::statement_timeout) and two seconds have passed |
//! | a write | another node has become the primary, or that time has passed: it may have run, and is not repeated |
//! | the rows of a stream | as for their statement, from one row to the next |
//! | a statement of your own inside a transaction | it has its answer: the connection is yours, and so is the time-out |
//! | anything on SQLite | it has its answer |
//!
//! A connection that a firewall has forgotten, or whose cable was pulled, says nothing for many minutes.

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
use crate::db::{Db, Inner};
use crate::dialect::Dialect;
use crate::node::{Node, Visit};

/// Added to the time after which the server itself ends a statement.
const GRACE: Duration = Duration::from_secs(2);

/// When a node is waited for no longer, however little time has passed.
#[derive(Clone, Copy, Debug)]
enum Patience {
    /// It is found down.
    UntilDown,
    /// Another node has become the primary.
    UntilDeposed,
    Endless,
}

/// Longest wait for one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    limit: Option<Duration>,
    patience: Patience,
}

impl<DB: Backend> Inner<DB> {
    /// For reads: they may be repeated elsewhere.
    pub(crate) fn deadline(&self) -> Deadline {
        let timeout = self.config.statement_timeout;
        let limit = (self.dialect != Dialect::Sqlite && !timeout.is_zero()).then(|| timeout + GRACE);
        let patience = if self.dialect == Dialect::Sqlite { Patience::Endless } else { Patience::UntilDown };
        Deadline { limit, patience }
    }
}

impl Deadline {
    /// For writes: they may not.
    pub(crate) fn for_write(self) -> Self {
        match self.patience {
            Patience::Endless => self,
            _ => Self { patience: Patience::UntilDeposed, ..self },
        }
    }

    async fn passes<DB: Database>(self, node: &Node<DB>) -> io::Error {
        let lost = async {
            match self.patience {
                Patience::UntilDown => node.lost().await,
                Patience::UntilDeposed => node.deposed().await,
                Patience::Endless => std::future::pending().await,
            }
        };
        let late = async {
            match self.limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = lost => io::Error::new(io::ErrorKind::ConnectionAborted, "the database node was found down, or is the primary no longer"),
            () = late => {
                // The server itself would have answered that the time is over.
                node.renew();
                io::Error::new(io::ErrorKind::TimedOut, "the database did not answer within its statement time-out")
            }
        }
    }

    /// Waits for an answer, whoever gives it.
    pub(crate) async fn in_time<T>(self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
        let Some(limit) = self.limit else { return work.await };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    /// Waits for an answer of a node.
    pub(crate) async fn answer<DB: Database, T>(
        self,
        node: &Node<DB>,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        tokio::pin!(work);
        // Dropped before the work: a connection that it gives back is in doubt by then.
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

/// Somebody left while a node was to answer.
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
    /// Waits for an answer that may be asked for again elsewhere.
    pub(crate) async fn within_deadline<T>(
        &self,
        node: &Node<DB>,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        self.0.deadline().answer(node, work).await
    }
}

/// A stream of rows that ends in an error when its node has nothing more to say. Counts as a visit to the node until dropped.
pub(crate) struct Rows<DB: Database, S> {
    steps: S,
    deadline: Deadline,
    visit: Arc<Visit<DB>>,
    passes: Option<BoxFuture<'static, io::Error>>,
    ended: bool,
}

impl<DB: Database, S> Drop for Rows<DB, S> {
    fn drop(&mut self) {
        if !self.ended {
            self.visit.node.doubt();
        }
    }
}

impl<DB: Database, S> Rows<DB, S> {
    pub(crate) fn new(steps: S, deadline: Deadline, visit: Visit<DB>) -> Self {
        Self { steps, deadline, visit: Arc::new(visit), passes: None, ended: false }
    }

    pub(crate) fn visit(&self) -> &Visit<DB> {
        &self.visit
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
        let (deadline, visit) = (self.deadline, Arc::clone(&self.visit));
        let passes = self.passes.get_or_insert_with(|| Box::pin(async move { deadline.passes(&visit.node).await }));
        let error = std::task::ready!(passes.as_mut().poll(cx));
        self.passes = None;
        Poll::Ready(Some(Err(error.into())))
    }
}
