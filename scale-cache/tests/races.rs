//! Random interleavings of reads, loads, writes and invalidations on three nodes: no invalidated
//! value comes back.
//!
//! The model: a database of counters, and for each node and key the value that was current when an
//! invalidation *returned* there. No later read on that node may return less.
#![allow(clippy::print_stdout, clippy::single_match_else, clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use scale_cache::store::{Begun, Position, SharedMemory, Store, StoreEvent, Version};
use scale_cache::{Cache, Config, Error, Options, Reach};
use testkit::eventually;
use tokio::sync::watch;

const NODES: usize = 3;
const KEYS: usize = 6;

/// A store with random delays.
#[derive(Debug)]
struct Jittery(SharedMemory, watch::Receiver<Link>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Fine,
    /// Events are not delivered.
    Deaf,
    /// Events are delivered, responses are not.
    Mute,
}

impl Jittery {
    fn speaks(&self) -> Result<(), Error> {
        let mute =
            || Error::Store(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from("mute")));
        if *self.1.borrow() == Link::Mute { Err(mute()) } else { Ok(()) }
    }
}

async fn dawdle() {
    for _ in 0..fastrand::usize(..4) {
        tokio::task::yield_now().await;
    }
}

macro_rules! dawdling {
    ($this:ident, $call:expr) => {{
        dawdle().await;
        $this.speaks()?;
        let answer = $call.await;
        dawdle().await;
        answer
    }};
}

#[async_trait]
impl Store for Jittery {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        dawdling!(self, self.0.get(key))
    }

    async fn begin(&self, key: &str, token: u64, lease: Duration) -> Result<Begun, Error> {
        dawdling!(self, self.0.begin(key, token, lease))
    }

    async fn renew(&self, key: &str, token: u64, lease: Duration) -> Result<bool, Error> {
        dawdling!(self, self.0.renew(key, token, lease))
    }

    async fn fill(
        &self,
        key: &str,
        token: u64,
        bytes: &[u8],
        keep: Duration,
    ) -> Result<bool, Error> {
        dawdling!(self, self.0.fill(key, token, bytes, keep))
    }

    async fn release(&self, key: &str, token: u64) -> Result<(), Error> {
        dawdling!(self, self.0.release(key, token))
    }

    async fn set(&self, key: &str, bytes: &[u8], keep: Duration) -> Result<(), Error> {
        dawdling!(self, self.0.set(key, bytes, keep))
    }

    async fn touch(&self, key: &str, ends: [u8; 16], keep: Duration) -> Result<bool, Error> {
        dawdling!(self, self.0.touch(key, ends, keep))
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        dawdling!(self, self.0.remove(key))
    }

    async fn version(&self, tag: &str) -> Result<(Version, u64), Error> {
        dawdling!(self, self.0.version(tag))
    }

    async fn invalidate(&self, tag: &str, position: Option<&Position>) -> Result<Version, Error> {
        dawdling!(self, self.0.invalidate(tag, position))
    }

    fn events(&self) -> BoxStream<'static, StoreEvent> {
        let state = (self.0.events(), self.1.clone());
        Box::pin(stream::unfold(state, async |(mut news, mut link)| {
            loop {
                tokio::select! {
                    biased;
                    changed = link.changed() => {
                        changed.ok()?;
                        let now = *link.borrow();
                        if now != Link::Mute {
                            let is_up = now != Link::Deaf;
                            let event =
                                if is_up { StoreEvent::Restored } else { StoreEvent::Lost };
                            return Some((event, (news, link)));
                        }
                    }
                    heard = news.next() => {
                        if *link.borrow() != Link::Deaf {
                            return Some((heard?, (news, link)));
                        }
                    }
                }
            }
        }))
    }

    fn now_us(&self) -> u64 {
        self.0.now_us()
    }
}

struct World {
    caches: Vec<Cache>,
    database: [AtomicU64; KEYS],
    /// Minimum permitted value by node and key.
    floors: [[AtomicU64; KEYS]; NODES],
    /// Numbers of reads, loads and invalidations.
    counts: [AtomicU64; 3],
}

impl World {
    fn new(caches: Vec<Cache>) -> Arc<Self> {
        Arc::new(Self {
            caches,
            database: Default::default(),
            floors: Default::default(),
            counts: Default::default(),
        })
    }

    fn options(key: usize) -> Options {
        // Short, so that values expire and are refreshed ahead as well.
        Options::ttl(Duration::from_millis(fastrand::u64(1..50)))
            .tags([format!("key:{key}"), format!("half:{}", key % 2)])
    }

    async fn read(self: &Arc<Self>, node: usize, key: usize) -> u64 {
        let world = Arc::clone(self);
        let load = move |_| async move {
            world.counts[1].fetch_add(1, SeqCst);
            let value = world.database[key].load(SeqCst);
            // The value is out of date by the time it is returned.
            dawdle().await;
            Ok::<_, std::io::Error>(value)
        };
        let space = self.caches[node].space::<u64>("n");
        *space.get_or_load_with(key, &Self::options(key), load).await.unwrap()
    }

    async fn act(self: Arc<Self>) {
        let (node, key) = (fastrand::usize(..NODES), fastrand::usize(..KEYS));
        let cache = &self.caches[node];
        match fastrand::u32(..13) {
            // The object of the invalidation: the key, a tag of its own, a shared tag, its space,
            // everything.
            kind @ 0..=4 => {
                self.counts[2].fetch_add(1, SeqCst);
                let keys: Vec<usize> = match kind {
                    0 | 1 => vec![key],
                    2 => (0..KEYS).filter(|k| k % 2 == key % 2).collect(),
                    _ => (0..KEYS).collect(),
                };
                let written: Vec<u64> =
                    keys.iter().map(|k| self.database[*k].fetch_add(1, SeqCst) + 1).collect();
                dawdle().await;
                let _: Reach = match kind {
                    0 => cache.space::<u64>("n").remove(key).await,
                    1 => cache.invalidate_tags([format!("key:{key}")]).await,
                    2 => cache.invalidate_tags([format!("half:{}", key % 2)]).await,
                    3 => cache.space::<u64>("n").clear().await,
                    _ => cache.clear().await,
                };
                for (key, value) in keys.into_iter().zip(written) {
                    self.floors[node][key].fetch_max(value, SeqCst);
                }
            }
            // Extended, which must not make the entry valid again.
            5 => drop(cache.space::<u64>("n").touch(key).await),
            _ => {
                self.counts[0].fetch_add(1, SeqCst);
                let floor = self.floors[node][key].load(SeqCst);
                let value = self.read(node, key).await;
                assert!(
                    value >= floor,
                    "node {node} read {value} of key {key} after {floor} was invalidated there"
                );
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
                eventually("agreement", async || {
                    (self.read(node, key).await == truth).then_some(())
                })
                .await?;
            }
        }
        let [reads, loads, invalidations] = [0, 1, 2].map(|n| self.counts[n].load(SeqCst));
        println!("{reads} reads, {loads} loads, {invalidations} invalidations: nothing came back");
        Ok(())
    }
}

/// Returns the number of actions: `RACES=1000000 cargo test --release -p scale-cache --test races`
/// for a long run.
fn actions(default: usize) -> usize {
    std::env::var("RACES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Returns the nodes; the last one has no first level.
fn nodes(store: &SharedMemory) -> Vec<Cache> {
    let config =
        |node| Config::new("memory:").max_bytes(if node + 1 == NODES { 0 } else { 64 << 20 });
    (0..NODES)
        .map(|node| Cache::with_store(Jittery(store.clone(), hearing()), &config(node)))
        .collect()
}

/// Returns a subscription that is always up: its sender is never dropped.
fn hearing() -> watch::Receiver<Link> {
    static HEARING: LazyLock<watch::Sender<Link>> =
        LazyLock::new(|| watch::Sender::new(Link::Fine));
    HEARING.subscribe()
}

async fn read(cache: &Cache, options: &Options, value: u32) -> u32 {
    *cache
        .get_or_load("k", options, move |_| std::future::ready(Ok::<_, std::io::Error>(value)))
        .await
        .unwrap()
}

/// A node that cannot read from or write to the store creates its own versions; it still applies
/// the invalidations of others.
#[tokio::test]
async fn a_node_that_cannot_speak_listens() -> Result<()> {
    for own in [false, true] {
        let (store, link) = (SharedMemory::new(), watch::Sender::new(Link::Fine));
        let speaks = Cache::with_store(store.clone(), &Config::new("memory:"));
        let is_mute = Cache::with_store(Jittery(store, link.subscribe()), &Config::new("memory:"));
        for cache in [&speaks, &is_mute] {
            eventually("the link", async || cache.is_healthy().then_some(())).await?;
        }
        let options = Options::ttl(Duration::from_hours(1)).tag("t");
        link.send_replace(Link::Mute);
        if own {
            assert_eq!(is_mute.invalidate_tags(["t"]).await, Reach::Here);
        }
        assert_eq!(read(&is_mute, &options, 1).await, 1);
        assert_eq!(read(&is_mute, &options, 2).await, 1, "it is kept");
        assert_eq!(speaks.invalidate_tags(["t"]).await, Reach::Everywhere);
        eventually("the news", async || (read(&is_mute, &options, 3).await == 3).then_some(()))
            .await?;
        // Once the node can use the store, it shares entries with the others again.
        link.send_replace(Link::Fine);
        eventually("the second level", async || {
            speaks.invalidate_tags(["t"]).await;
            (read(&speaks, &options, 4).await == 4 && read(&is_mute, &options, 5).await == 4)
                .then_some(())
        })
        .await?;
    }
    Ok(())
}

/// Without events, a tag version that a node knows proves nothing about an entry of the second
/// level, even if the node reads it repeatedly.
#[tokio::test(start_paused = true)]
async fn a_node_without_news_asks_for_versions_before_it_believes_an_entry() -> Result<()> {
    let (store, deaf) = (SharedMemory::new(), watch::Sender::new(Link::Fine));
    let hears = Cache::with_store(store.clone(), &Config::new("memory:"));
    for max_bytes in [0, 1 << 20] {
        let config = Config::new("memory:")
            .max_staleness_offline(Duration::from_secs(1))
            .max_bytes(max_bytes);
        let is_deaf = Cache::with_store(Jittery(store.clone(), deaf.subscribe()), &config);
        for cache in [&hears, &is_deaf] {
            eventually("the link", async || cache.is_healthy().then_some(())).await?;
        }
        let options = Options::ttl(Duration::from_hours(1)).tag("t");
        let read = async |cache: &Cache, value| read(cache, &options, value).await;
        hears.invalidate_tags(["t"]).await;
        assert_eq!((read(&hears, 1).await, read(&is_deaf, 0).await), (1, 1));
        deaf.send_replace(Link::Deaf);
        eventually("the loss", async || (!is_deaf.is_healthy()).then_some(())).await?;
        hears.invalidate_tags(["t"]).await;
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(read(&is_deaf, 2).await, 2, "it was invalidated");
        deaf.send_replace(Link::Fine);
    }
    Ok(())
}

#[tokio::test]
async fn on_one_thread() -> Result<()> {
    let store = SharedMemory::new();
    let caches = nodes(&store);
    World::new(caches).run(actions(60_000)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_two_threads() -> Result<()> {
    let store = SharedMemory::new();
    let caches = nodes(&store);
    World::new(caches).run(actions(60_000)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_store_that_comes_and_goes() -> Result<()> {
    let store = SharedMemory::new();
    let caches = nodes(&store);
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
