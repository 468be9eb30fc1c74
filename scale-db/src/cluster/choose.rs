//! Choice of the node for a statement, by the writes that its scope must see.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::backend::Backend;
use crate::cluster::balance;
use crate::cluster::node::Node;
use crate::config::NoReplica;
use crate::db::Db;
use crate::dialect::Dialect;
use crate::error::Error;
use crate::failure::{code, is_lost};
use crate::position::Position;
use crate::sticky::{self, Need};

impl<DB: Backend> Db<DB> {
    /// Returns a replica that shows the writes that this scope must see, without those in the bit
    /// set `tried`.
    pub(crate) fn reader(&self, tried: u64) -> Option<Arc<Node<DB>>> {
        let needed = match sticky::needed(self.0.id) {
            Need::Nothing => None,
            Need::Write(position) => Some(position),
            Need::Primary => return None,
        };
        let fits = |node: &&Arc<Node<DB>>| {
            tried & (1 << (node.number % 64)) == 0
                && node.is_fit_replica()
                && needed.is_none_or(|write| node.log().shows(write))
        };
        let nodes = self.0.nodes.load();
        let mut fitting = nodes.iter().filter(fits);
        let first = fitting.next()?;
        let Some(second) = fitting.next() else { return Some(Arc::clone(first)) };
        let all: Vec<_> = [first, second].into_iter().chain(fitting).collect();
        balance::pick(&all, |n| n.cost()).map(|n| Arc::clone(n))
    }

    /// Returns the primary for a read that no replica can serve, with a permit. A part of the
    /// primary's connections is kept for statements that need the primary itself.
    pub(crate) async fn primary_for_reading(
        &self,
    ) -> Result<(Arc<Node<DB>>, Option<OwnedSemaphorePermit>), sqlx::Error> {
        let several = self.0.nodes.load().len() > 1;
        match sticky::needed(self.0.id) {
            Need::Nothing if self.0.config.no_replica == NoReplica::Refuse && several => {
                Err(Error::NoReplica.into())
            }
            Need::Nothing if several => {
                let wait = tokio::time::timeout(
                    self.0.config.acquire_timeout,
                    Arc::clone(&self.0.spill).acquire_owned(),
                );
                let leave = wait
                    .await
                    .map_err(|_| sqlx::Error::PoolTimedOut)?
                    .map_err(|_| sqlx::Error::PoolClosed)?;
                Ok((self.primary_node().await?, Some(leave)))
            }
            _ => Ok((self.primary_node().await?, None)),
        }
    }

    /// Returns a primary that is no older than the one that wrote at `position`: a mark from
    /// another process may come from after a failover that this process has not seen.
    async fn primary_that_knows(&self, position: Position) -> Result<Arc<Node<DB>>, sqlx::Error> {
        let knows = |node: &Node<DB>| node.log().knows(position);
        let node = self.any_primary().await?;
        if knows(&node) {
            return Ok(node);
        }
        self.look().await;
        let node = self.any_primary().await?;
        // Every node has answered, and none knows the writer of that position: the mark is forged,
        // or from a database that no longer exists.
        if knows(&node) || self.0.all_seen.load(Ordering::Relaxed) {
            return Ok(node);
        }
        Err(Error::Unseen.into())
    }

    /// Waits for one probe round that begins from now on, at most as long as two rounds take.
    pub(crate) async fn look(&self) {
        if self.0.dialect == Dialect::Sqlite {
            return;
        }
        let one = async {
            let looked = self.0.looked.notified();
            self.0.wake.notify_one();
            looked.await;
        };
        // The current round may have begun before.
        let two = async { (one.await, self.0.wake.notify_one(), self.0.looked.notified().await) };
        let _ =
            tokio::time::timeout(2 * self.0.config.look_limit() + Duration::from_millis(100), two)
                .await;
    }

    /// Returns the primary, no older than the marks of this scope require. Waits for one at most as
    /// long as configured.
    pub(crate) async fn primary_node(&self) -> Result<Arc<Node<DB>>, sqlx::Error> {
        match sticky::told(self.0.id) {
            position if position == Position::default() => self.any_primary().await,
            // Boxed, because it is rare, and would make every future larger.
            position => Box::pin(self.primary_that_knows(position)).await,
        }
    }

    async fn any_primary(&self) -> Result<Arc<Node<DB>>, sqlx::Error> {
        if let Some(node) = self.0.primary_node() {
            return Ok(node);
        }
        let wait = async {
            loop {
                let looked = self.0.looked.notified();
                self.0.wake.notify_one();
                looked.await;
                if let Some(node) = self.0.primary_node() {
                    return node;
                }
            }
        };
        tokio::time::timeout(self.0.config.primary_wait, wait)
            .await
            .map_err(|_| self.0.no_primary().into())
    }

    /// Wakes the monitor after a failed write, which may be the first sign of a failover.
    pub(crate) fn judge_write(&self, node: &Node<DB>, error: &sqlx::Error) {
        if is_lost(error) {
            node.doubt();
        }
        if is_lost(error) || self.is_refusal(error) {
            self.0.wake.notify_one();
        }
    }

    /// Returns whether the node refused a write; the statement has not run.
    pub(crate) fn is_refusal(&self, error: &sqlx::Error) -> bool {
        error
            .as_database_error()
            .and_then(code)
            .is_some_and(|code| self.0.dialect.is_read_only_code(&code))
    }
}
