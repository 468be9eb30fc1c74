//! Places this process holds in Redis: held on to while it lives, and freed when they are dropped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::Script;
use tokio::runtime::Handle;

/// A process that dies, or is cut off, loses its places after that.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// Permits of one call at most.
const BATCH: usize = 500;

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
    /// Somebody holds on to them.
    kept: bool,
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
        if !held.kept {
            held.kept = true;
            tokio::spawn(Arc::clone(self).keep());
        }
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
        runtime.spawn(async move {
            for (key, permit) in permits {
                let mut call = this.release.key(key);
                if let Err(error) = call.arg(permit).invoke_async::<i64>(&mut this.server.clone()).await {
                    tracing::warn!(%error, "a place could not be freed; it frees itself in half a minute");
                }
            }
        });
    }

    async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HOLD / 3).await;
            let all: Vec<(String, Vec<u64>)> = {
                let mut held = self.held.lock();
                if held.permits.is_empty() {
                    held.kept = false;
                    return;
                }
                held.permits.iter().map(|(key, permits)| (key.clone(), permits.iter().copied().collect())).collect()
            };
            for (key, permits) in all {
                for batch in permits.chunks(BATCH) {
                    let mut call = self.extend.key(&key);
                    call.arg(HOLD.as_micros() as u64).arg(batch);
                    if let Err(error) = call.invoke_async::<i64>(&mut self.server.clone()).await {
                        tracing::warn!(%error, "places could not be held on to");
                    }
                }
            }
        }
    }
}
