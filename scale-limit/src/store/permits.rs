//! Permits that this process holds in a shared store: renewed while the process lives, released
//! when dropped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::Error;

/// Time after which the permits of a process expire that has died or is disconnected.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// Maximum number of permits per call.
const BATCH: usize = 500;
/// Maximum number of concurrent calls.
const AT_ONCE: usize = 64;
/// Delay before a failed call, or one that may still be executed, is repeated.
const AGAIN: Duration = Duration::from_secs(1);

/// Calls to the store that holds the permits.
#[async_trait]
pub(super) trait PermitStore: Send + Sync + 'static {
    /// Renews permits of one key for [`HOLD`]. Permits that have expired stay so.
    async fn extend(&self, key: &str, permits: &[u64]) -> Result<(), Error>;

    /// Releases a permit.
    async fn release(&self, key: &str, permit: u64) -> Result<(), Error>;
}

/// Permits held by this process; see the module.
pub(super) struct Places<S> {
    store: S,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Ids of permits by key.
    permits: HashMap<String, HashSet<u64>>,
    /// Runtime of a holder of permits, if the task that renews all permits is running.
    renewal: Option<Handle>,
}

impl<S: PermitStore> Places<S> {
    pub(super) fn new(store: S) -> Arc<Self> {
        Arc::new(Self { store, held: Mutex::default() })
    }

    /// Registers permits, each with its key, so that they are renewed.
    pub(super) fn hold(self: &Arc<Self>, permits: &[(String, u64)]) {
        let mut held = self.held.lock();
        for (key, permit) in permits {
            held.permits.entry(key.clone()).or_default().insert(*permit);
        }
        let runtime = Handle::current();
        if held.renewal.is_none() {
            runtime.spawn(RenewalTask(Arc::clone(self)).keep());
        }
        // This runtime may outlive that of the renewal task.
        held.renewal = Some(runtime);
    }

    /// Releases permits, in a separate task.
    pub(super) fn free(self: &Arc<Self>, runtime: &Handle, permits: Vec<(String, u64)>) {
        {
            let mut held = self.held.lock();
            for (key, permit) in &permits {
                if let Some(of_key) = held.permits.get_mut(key) {
                    of_key.remove(permit);
                    if of_key.is_empty() {
                        held.permits.remove(key);
                    }
                }
            }
        }
        let this = Arc::clone(self);
        runtime.spawn(async move { this.release(permits).await });
    }

    /// Releases the permits of a call that was not answered: it may still be executed.
    pub(super) fn free_unanswered(self: &Arc<Self>, permits: Vec<(String, u64)>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            this.release(permits.clone()).await;
            tokio::time::sleep(AGAIN).await;
            this.release(permits).await;
        });
    }

    /// Retries until the permits would have expired.
    async fn release(&self, permits: Vec<(String, u64)>) {
        let start = Instant::now();
        for (key, permit) in permits {
            loop {
                match self.store.release(&key, permit).await {
                    Ok(()) => break,
                    Err(error) if start.elapsed() > HOLD => {
                        tracing::warn!(%error, "releasing a permit failed: it has expired by now");
                        break;
                    }
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        }
    }

    async fn extend(&self, key: &str, permits: &[u64]) {
        for batch in permits.chunks(BATCH) {
            if let Err(error) = self.store.extend(key, batch).await {
                tracing::warn!(%error, "permits were not renewed: trying again until they expire");
            }
        }
    }
}

/// Task that renews permits; if it ends with its runtime, another one takes over.
struct RenewalTask<S: PermitStore>(Arc<Places<S>>);

impl<S: PermitStore> RenewalTask<S> {
    async fn keep(self) {
        self.0.held.lock().renewal.get_or_insert_with(Handle::current);
        loop {
            let next = Instant::now() + HOLD / 6;
            let all: Vec<(String, Vec<u64>)> = {
                let mut held = self.0.held.lock();
                if held.permits.is_empty() {
                    held.renewal = None;
                    return;
                }
                held.permits
                    .iter()
                    .map(|(key, permits)| (key.clone(), permits.iter().copied().collect()))
                    .collect()
            };
            let mut calls = JoinSet::new();
            for (key, permits) in all {
                if calls.len() >= AT_ONCE {
                    calls.join_next().await;
                }
                let places = Arc::clone(&self.0);
                calls.spawn(async move { places.extend(&key, &permits).await });
            }
            while calls.join_next().await.is_some() {}
            tokio::time::sleep_until(next).await;
        }
    }
}

impl<S: PermitStore> Drop for RenewalTask<S> {
    fn drop(&mut self) {
        // Taken, so that a successor that is dropped unstarted, because its runtime has ended too,
        // does not start another one.
        let renewal = self.0.held.lock().renewal.take();
        if let Some(runtime) = renewal {
            runtime.spawn(Self(Arc::clone(&self.0)).keep());
        }
    }
}
