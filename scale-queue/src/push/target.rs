//! Receiver of an application's pushes: the store, and the outbox that stands in for it.

use std::sync::Arc;

use crate::error::Error;
#[cfg(all(feature = "sql", feature = "redis"))]
use crate::failover::Failover;
use crate::store::{Entry, Store};

#[derive(Clone, Debug)]
pub(crate) struct Target {
    store: Arc<dyn Store>,
    #[cfg(all(feature = "sql", feature = "redis"))]
    failover: Option<Arc<Failover>>,
}

impl Target {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            #[cfg(all(feature = "sql", feature = "redis"))]
            failover: None,
        }
    }

    #[cfg(all(feature = "sql", feature = "redis"))]
    pub(crate) fn with_failover(mut self, failover: Arc<Failover>) -> Self {
        self.failover = Some(failover);
        self
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Stores jobs; otherwise like [`Store::push`].
    pub(crate) async fn push(
        &self,
        queue: &str,
        entries: &[Entry],
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        #[cfg(all(feature = "sql", feature = "redis"))]
        if let Some(failover) = &self.failover {
            return failover.push(&*self.store, queue, entries).await;
        }
        self.store.push(queue, entries).await
    }
}
