//! Places this process holds in Redis: held on to while it lives, and freed when they are dropped.

use std::collections::HashMap;
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
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Members of the sorted sets, by key.
    members: HashMap<String, Vec<String>>,
    /// Somebody holds on to them.
    kept: bool,
}

impl Places {
    pub(super) fn new(server: scale_redis::Redis) -> Arc<Self> {
        Arc::new(Self { server, extend: Script::new(include_str!("extend.lua")), held: Mutex::default() })
    }

    /// From now on these are held.
    pub(super) fn hold(self: &Arc<Self>, members: &[(String, String)]) {
        let mut held = self.held.lock();
        for (key, member) in members {
            held.members.entry(key.clone()).or_default().push(member.clone());
        }
        if !held.kept {
            held.kept = true;
            tokio::spawn(Arc::clone(self).keep());
        }
    }

    /// Frees them, in a task of its own.
    pub(super) fn free(self: &Arc<Self>, runtime: &Handle, members: Vec<(String, String)>) {
        {
            let mut held = self.held.lock();
            for (key, member) in &members {
                if let Some(of_key) = held.members.get_mut(key) {
                    of_key.retain(|m| m != member);
                    if of_key.is_empty() {
                        held.members.remove(key);
                    }
                }
            }
        }
        let mut server = self.server.clone();
        runtime.spawn(async move {
            for (key, member) in members {
                let freed: Result<(), _> = redis::cmd("ZREM").arg(key).arg(member).query_async(&mut server).await;
                if let Err(error) = freed {
                    tracing::warn!(%error, "a place could not be freed; it frees itself in half a minute");
                }
            }
        });
    }

    async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HOLD / 3).await;
            let all: Vec<(String, Vec<String>)> = {
                let mut held = self.held.lock();
                if held.members.is_empty() {
                    held.kept = false;
                    return;
                }
                held.members.iter().map(|(key, members)| (key.clone(), members.clone())).collect()
            };
            for (key, members) in all {
                for batch in members.chunks(BATCH) {
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
