//! Shared state of the public types: the first level, the client of the second level, the known tag
//! versions.

#[cfg(feature = "http")]
pub(crate) mod conditional_put;
pub(crate) mod events;
pub(crate) mod first_level;
pub(crate) mod invalidation;
pub(crate) mod keyspace;
pub(crate) mod l2_client;
pub(crate) mod load_task;
pub(crate) mod lookup;
pub(crate) mod new_entry;
pub(crate) mod pending_invalidations;
pub(crate) mod single_flight;
pub(crate) mod subscription;
pub(crate) mod tag_versions;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use scale_common::circuit_breaker::CircuitBreaker;
use tokio::task::AbortHandle;

use self::first_level::FirstLevel;
use self::keyspace::Keyspace;
use self::pending_invalidations::Pending;
use self::single_flight::Flights;
use self::subscription::Subscription;
use crate::clock::Instant;
use crate::policy::journal::Journal;
use crate::policy::versions::{Cell, Versions};
use crate::store::Store;

pub(crate) struct Core {
    pub(crate) local: FirstLevel,
    pub(crate) l2: Option<Arc<dyn Store>>,
    pub(crate) versions: Versions,
    pub(crate) flights: Arc<Flights>,
    pub(crate) pending: Pending,
    pub(crate) journal: Journal,
    pub(crate) subscription: Subscription,
    /// `true` if no task listens to the store's events, for example because its runtime has ended.
    pub(crate) is_unsubscribed: AtomicBool,
    /// Task that listens to the store's events.
    pub(crate) listener: Mutex<Option<AbortHandle>>,
    /// `true` if a task is examining the store for losses.
    pub(crate) is_examined: AtomicBool,
    /// Circuit breaker of the second level, with the time since `started`.
    pub(crate) breaker: CircuitBreaker,
    pub(crate) started: Instant,
    pub(crate) store_timeout: Duration,
    /// Time-out for sending an invalidation to the store.
    pub(crate) invalidation_timeout: Duration,
    /// `true` if the store's `get` enforces the time-out itself.
    pub(crate) gets_in_time: bool,
    pub(crate) compress_over: usize,
    pub(crate) strict: bool,
    pub(crate) everything: Arc<Cell>,
    /// Space of keys without a space name.
    pub(crate) plain: Arc<Keyspace>,
    pub(crate) this: Weak<Core>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("shared", &self.l2)
            .field("link_up", &self.subscription.is_up())
            .finish_non_exhaustive()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get_mut().take() {
            listener.abort();
        }
    }
}
