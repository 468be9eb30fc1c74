//! Permits that this process holds in Redis: renewed while the process lives, released when
//! dropped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use redis::Script;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Time after which the permits of a process expire that has died or is disconnected.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// Maximum number of permits per call.
const BATCH: usize = 500;
/// Maximum number of concurrent calls.
const AT_ONCE: usize = 64;
/// Delay before a failed call, or one that may still be executed, is repeated.
const AGAIN: Duration = Duration::from_secs(1);

/// Permits held by this process; see the module.
pub(super) struct Places {
    server: scale_redis::Redis,
    extend: Script,
    release: Script,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Ids of permits by key.
    permits: HashMap<String, HashSet<u64>>,
    /// Runtime of a holder of permits, if the task that renews all permits is running.
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

    /// Registers permits, each with its key, so that they are renewed.
    pub(super) fn hold(self: &Arc<Self>, permits: &[(String, u64)]) {
        let mut held = self.held.lock();
        for (key, permit) in permits {
            held.permits.entry(key.clone()).or_default().insert(*permit);
        }
        let runtime = Handle::current();
        if held.keeper.is_none() {
            runtime.spawn(Keeper(Arc::clone(self)).keep());
        }
        // This runtime may outlive that of the renewal task.
        held.keeper = Some(runtime);
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
                let mut call = self.release.key(&key);
                match call.arg(permit).invoke_async::<i64>(&mut self.server.clone()).await {
                    Ok(_) => break,
                    Err(error) if start.elapsed() > HOLD => {
                        tracing::warn!(%error, "releasing a permit failed: it has expired by now");
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
                tracing::warn!(%error, "permits were not renewed: trying again until they expire");
            }
        }
    }
}

/// Task that renews permits; if it ends with its runtime, another one takes over.
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
                held.permits
                    .iter()
                    .map(|(key, permits)| (key.clone(), permits.iter().copied().collect()))
                    .collect()
            };
            let calls = all.into_iter().map(|(key, permits)| self.0.extend(key, permits));
            futures_util::stream::iter(calls).buffer_unordered(AT_ONCE).collect::<()>().await;
            tokio::time::sleep_until(next).await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Taken, so that a successor that is dropped unstarted, because its runtime has ended too,
        // does not start another one.
        let keeper = self.0.held.lock().keeper.take();
        if let Some(runtime) = keeper {
            runtime.spawn(Self(Arc::clone(&self.0)).keep());
        }
    }
}
