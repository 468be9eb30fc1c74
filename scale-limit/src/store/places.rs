//! Places this process holds in Redis: held on to while it lives, and freed when they are dropped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use redis::Script;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A process that dies, or is cut off, loses its places after that.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// Permits of one call at most.
const BATCH: usize = 500;
/// Calls under way at once.
const AT_ONCE: usize = 64;
/// When what failed, or may not have been carried out yet, is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Places {
    server: scale_redis::Redis,
    extend: Script,
    release: Script,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Permits by key.
    permits: HashMap<String, HashSet<u64>>,
    /// The runtime of somebody who holds places: one task holds on to all.
    keeper: Option<Handle>,
}

impl Places {
    pub(super) fn new(server: scale_redis::Redis) -> Arc<Self> {
        Arc::new(Self {
            server,
            extend: Script::new(include_str!("extend.lua")),
            release: Script::new(include_str!("release.lua")),
            held: Mutex::default(),
        })
    }

    /// From now on these are held: permits, each with the key it is of.
    pub(super) fn hold(self: &Arc<Self>, permits: &[(String, u64)]) {
        let mut held = self.held.lock();
        for (key, permit) in permits {
            held.permits.entry(key.clone()).or_default().insert(*permit);
        }
        let runtime = Handle::current();
        if held.keeper.is_none() {
            runtime.spawn(Keeper(Arc::clone(self)).keep());
        }
        // Of a runtime that may outlive that of the keeper.
        held.keeper = Some(runtime);
    }

    /// Frees them, in a task of its own.
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

    /// Frees those that a call asked for which was not answered: it may be carried out yet.
    pub(super) fn free_unanswered(self: &Arc<Self>, permits: Vec<(String, u64)>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            this.release(permits.clone()).await;
            tokio::time::sleep(AGAIN).await;
            this.release(permits).await;
        });
    }

    /// Tries for as long as they would be held.
    async fn release(&self, permits: Vec<(String, u64)>) {
        let start = Instant::now();
        for (key, permit) in permits {
            loop {
                let mut call = self.release.key(&key);
                match call.arg(permit).invoke_async::<i64>(&mut self.server.clone()).await {
                    Ok(_) => break,
                    Err(error) if start.elapsed() > HOLD => {
                        tracing::warn!(%error, "a place could not be freed; it has freed itself");
                        break;
                    }
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        }
    }

    async fn extend(&self, key: String, permits: Vec<u64>) {
        for batch in permits.chunks(BATCH) {
            let mut call = self.extend.key(&key);
            call.arg(HOLD.as_micros() as u64).arg(batch);
            if let Err(error) = call.invoke_async::<i64>(&mut self.server.clone()).await {
                tracing::warn!(%error, "places could not be held on to");
            }
        }
    }
}

/// Holds on to places, in a task; if that ends with its runtime, another one goes on.
struct Keeper(Arc<Places>);

impl Keeper {
    async fn keep(self) {
        self.0.held.lock().keeper.get_or_insert_with(Handle::current);
        loop {
            let next = Instant::now() + HOLD / 6;
            let all: Vec<(String, Vec<u64>)> = {
                let mut held = self.0.held.lock();
                if held.permits.is_empty() {
                    held.keeper = None;
                    return;
                }
                held.permits.iter().map(|(key, permits)| (key.clone(), permits.iter().copied().collect())).collect()
            };
            let calls = all.into_iter().map(|(key, permits)| self.0.extend(key, permits));
            futures_util::stream::iter(calls).buffer_unordered(AT_ONCE).collect::<()>().await;
            tokio::time::sleep_until(next).await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Taken, so that one that is dropped unstarted, as its runtime has ended too, leaves it at that.
        let keeper = self.0.held.lock().keeper.take();
        if let Some(runtime) = keeper {
            runtime.spawn(Self(Arc::clone(&self.0)).keep());
        }
    }
}
