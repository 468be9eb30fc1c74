//! Random interleavings of reads, loads, writes and invalidations on three nodes: nothing that was invalidated comes back.
//!
//! The model: a database of counters, and for each node and key the value that was current when an invalidation *returned* there. No read
//! on that node that begins later may return less.
#![allow(clippy::print_stdout, clippy::single_match_else, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use scale_cache::store::{Begun, News, Position, SharedMemory, Store, Version};
use scale_cache::{Cache, Config, Error, Options};
use testkit::eventually;

const NODES: usize = 3;
const KEYS: usize = 6;

/// A store whose answers come when they like.
#[derive(Debug)]
struct Jittery(SharedMemory);

async fn dawdle() {
    for _ in 0..fastrand::usize(..4) {
        tokio::task::yield_now().await;
    }
}

macro_rules! dawdling {
    ($call:expr) => {{
        dawdle().await;
        let answer = $call.await;
        dawdle().await;
        answer
    }};
}

#[async_trait]
impl Store for Jittery {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        dawdling!(self.0.get(key))
    }

    async fn begin(&self, key: &str, token: u64, lease: Duration) -> Result<Begun, Error> {
        dawdling!(self.0.begin(key, token, lease))
    }

    async fn renew(&self, key: &str, token: u64, lease: Duration) -> Result<bool, Error> {
        dawdling!(self.0.renew(key, token, lease))
    }

    async fn fill(&self, key: &str, token: u64, bytes: &[u8], keep: Duration) -> Result<bool, Error> {
        dawdling!(self.0.fill(key, token, bytes, keep))
    }

    async fn release(&self, key: &str, token: u64) -> Result<(), Error> {
        dawdling!(self.0.release(key, token))
    }

    async fn set(&self, key: &str, bytes: &[u8], keep: Duration) -> Result<(), Error> {
        dawdling!(self.0.set(key, bytes, keep))
    }

    async fn touch(&self, key: &str, ends: [u8; 16], keep: Duration) -> Result<bool, Error> {
        dawdling!(self.0.touch(key, ends, keep))
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        dawdling!(self.0.remove(key))
    }

    async fn version(&self, tag: &str) -> Result<Version, Error> {
        dawdling!(self.0.version(tag))
    }

    async fn invalidate(&self, tag: &str, position: Option<&Position>) -> Result<Version, Error> {
        dawdling!(self.0.invalidate(tag, position))
    }

    fn news(&self) -> BoxStream<'static, News> {
        self.0.news()
    }

    fn now_us(&self) -> u64 {
        self.0.now_us()
    }
}

struct World {
    caches: Vec<Cache>,
    database: [AtomicU64; KEYS],
    /// By node and key.
    floors: [[AtomicU64; KEYS]; NODES],
    /// Reads, loads, invalidations.
    counts: [AtomicU64; 3],
}

impl World {
    fn new(caches: Vec<Cache>) -> Arc<Self> {
        Arc::new(Self { caches, database: Default::default(), floors: Default::default(), counts: Default::default() })
    }

    fn options(key: usize) -> Options {
        // Short, so that values expire and are refreshed ahead as well.
        Options::ttl(Duration::from_millis(fastrand::u64(1..50))).tags([format!("key:{key}"), format!("half:{}", key % 2)])
    }

    async fn read(self: &Arc<Self>, node: usize, key: usize) -> u64 {
        let world = Arc::clone(self);
        let load = move |_| async move {
            world.counts[1].fetch_add(1, SeqCst);
            let value = world.database[key].load(SeqCst);
            // The value is old by the time it is returned.
            dawdle().await;
            Ok::<_, std::io::Error>(value)
        };
        let space = self.caches[node].space::<u64>("n");
        *space.get_or_load_with(key, &Self::options(key), load).await.unwrap()
    }

    async fn act(self: Arc<Self>) {
        let (node, key) = (fastrand::usize(..NODES), fastrand::usize(..KEYS));
        let cache = &self.caches[node];
        match fastrand::u32(..12) {
            // What is invalidated: the key, a tag of its own, a tag it shares, its space, everything.
            kind @ 0..=4 => {
                self.counts[2].fetch_add(1, SeqCst);
                let keys: Vec<usize> = match kind {
                    0 | 1 => vec![key],
                    2 => (0..KEYS).filter(|k| k % 2 == key % 2).collect(),
                    _ => (0..KEYS).collect(),
                };
                let written: Vec<u64> = keys.iter().map(|k| self.database[*k].fetch_add(1, SeqCst) + 1).collect();
                dawdle().await;
                match kind {
                    0 => cache.space::<u64>("n").remove(key).await,
                    1 => cache.invalidate_tags([format!("key:{key}")]).await,
                    2 => cache.invalidate_tags([format!("half:{}", key % 2)]).await,
                    3 => cache.space::<u64>("n").clear().await,
                    _ => cache.clear().await,
                }
                for (key, value) in keys.into_iter().zip(written) {
                    self.floors[node][key].fetch_max(value, SeqCst);
                }
            }
            _ => {
                self.counts[0].fetch_add(1, SeqCst);
                let floor = self.floors[node][key].load(SeqCst);
                let value = self.read(node, key).await;
                assert!(value >= floor, "node {node} read {value} of key {key} after {floor} was invalidated there");
            }
        }
    }

    async fn run(self: &Arc<Self>, actions: usize) -> Result<()> {
        for cache in &self.caches {
            eventually("the link", async || cache.is_healthy().then_some(())).await?;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..actions {
            tasks.spawn(Arc::clone(self).act());
            while tasks.len() > 40
                && let Some(ended) = tasks.join_next().await
            {
                ended?;
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended?;
        }
        // In the end every node agrees with the database.
        for node in 0..NODES {
            for key in 0..KEYS {
                let truth = self.database[key].load(SeqCst);
                eventually("agreement", async || (self.read(node, key).await == truth).then_some(())).await?;
            }
        }
        let [reads, loads, invalidations] = [0, 1, 2].map(|n| self.counts[n].load(SeqCst));
        println!("{reads} reads, {loads} loads, {invalidations} invalidations: nothing came back");
        Ok(())
    }
}

/// `RACES=1000000 cargo test --release -p scale-cache --test races` for a long run.
fn actions(default: usize) -> usize {
    std::env::var("RACES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[tokio::test]
async fn on_one_thread() -> Result<()> {
    let store = SharedMemory::new();
    let caches = (0..NODES).map(|_| Cache::with_store(Jittery(store.clone()), &Config::new("memory:"))).collect();
    World::new(caches).run(actions(60_000)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_two_threads() -> Result<()> {
    let store = SharedMemory::new();
    let caches = (0..NODES).map(|_| Cache::with_store(Jittery(store.clone()), &Config::new("memory:"))).collect();
    World::new(caches).run(actions(60_000)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_store_that_comes_and_goes() -> Result<()> {
    let store = SharedMemory::new();
    let caches = (0..NODES).map(|_| Cache::with_store(Jittery(store.clone()), &Config::new("memory:"))).collect();
    let world = World::new(caches);
    let weather = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(5..40))).await;
            store.set_down(true);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..20))).await;
            store.set_down(false);
        }
    });
    let ran = world.run(actions(60_000)).await;
    weather.abort();
    ran
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_alone() -> Result<()> {
    let cache = Cache::memory();
    World::new(vec![cache.clone(), cache.clone(), cache]).run(actions(60_000)).await
}
