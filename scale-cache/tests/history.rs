//! Processes that read, load and invalidate at random over one Redis, while their links are cut and Redis is killed. Each writes down what
//! it did and when; afterwards the histories are held against what is promised.
//!
//! The truth is a counter a key in a Redis of its own, which nothing happens to. An invalidation of a key's value `v` that returned means: no
//! read on that node that begins later returns less than `v`; and on the other nodes, if it [reached](Reach) them, no read that begins
//! more than the bound later.
#![cfg(feature = "redis")]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::HashMap;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use redis::AsyncCommands;
use scale_cache::{Cache, Options, Reach};
use testkit::{Proxy, Redis, eventually, helper};

const NODES: usize = 3;
const KEYS: usize = 16;
/// Under way at once on each node.
const TASKS: usize = 8;
const TRUST: Duration = Duration::from_millis(500);
/// As the crate's docs state it: that, and 1.5 s.
const BOUND: Duration = Duration::from_secs(2);

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_micros() as u64)
}

/// One line of a history; times in µs since 1970.
#[derive(Clone, Copy, Debug)]
struct Event {
    kind: char,
    key: usize,
    began: u64,
    ended: u64,
    value: u64,
}

impl Event {
    fn write(self) -> String {
        format!("event {} {} {} {} {}", self.kind, self.key, self.began, self.ended, self.value)
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("event ")?.split(' ');
        let kind = words.next()?.chars().next()?;
        let mut number = || words.next()?.parse().ok();
        Some(Self { kind, key: number()? as usize, began: number()?, ended: number()?, value: number()? })
    }
}

/// A node of the fleet.
struct Node {
    cache: Cache,
    truth: scale_redis::Redis,
    history: Mutex<Vec<Event>>,
}

impl Node {
    fn options(key: usize) -> Options {
        let ttl = Duration::from_millis(fastrand::u64(5..3_000));
        Options::ttl(ttl).tags([format!("key:{key}"), format!("half:{}", key % 2)])
    }

    async fn read(&self, key: usize) -> u64 {
        let mut truth = self.truth.clone();
        let load =
            move |_| async move { truth.get::<_, Option<u64>>(format!("truth:{key}")).await.map(Option::unwrap_or_default) };
        *self.cache.space::<u64>("n").get_or_load_with(key, &Self::options(key), load).await.unwrap()
    }

    async fn act(&self) {
        let key = fastrand::usize(..KEYS);
        let began = now();
        // Seldom, so that there is something in the first level to be stale.
        if fastrand::u32(..1_000) > 0 {
            let value = self.read(key).await;
            self.history.lock().push(Event { kind: 'r', key, began, ended: now(), value });
            return;
        }
        let kind = fastrand::u32(..8);
        let keys = match kind {
            0..=5 => vec![key],
            6 => (0..KEYS).filter(|k| k % 2 == key % 2).collect(),
            _ => (0..KEYS).collect(),
        };
        let mut written = Vec::new();
        for key in keys {
            written.push((key, self.truth.clone().incr::<_, _, u64>(format!("truth:{key}"), 1).await.unwrap()));
        }
        let space = self.cache.space::<u64>("n");
        let reach = match kind {
            0..=2 => space.remove(key).await,
            3..=5 => self.cache.invalidate_tags([format!("key:{key}")]).await,
            6 => self.cache.invalidate_tags([format!("half:{}", key % 2)]).await,
            _ => space.clear().await,
        };
        let kind = if reach == Reach::Everywhere { 'i' } else { 'h' };
        let ended = now();
        self.history.lock().extend(written.into_iter().map(|(key, value)| Event { kind, key, began, ended, value }));
    }
}

#[test]
fn helper_that_is_one_node() -> Result<()> {
    let (Ok(cache), Ok(truth)) = (std::env::var("HISTORY_CACHE"), std::env::var("HISTORY_TRUTH")) else { return Ok(()) };
    let end = now() + std::env::var("HISTORY_SECONDS")?.parse::<u64>()? * 1_000_000;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let cache = Cache::builder(&cache).trust(TRUST).connect_lazy("history")?;
        let truth = scale_redis::Config::new(&truth).response_timeout(Duration::from_secs(20)).connect().await?;
        let node = Arc::new(Node { cache, truth, history: Mutex::default() });
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let node = Arc::clone(&node);
                tokio::spawn(async move {
                    while now() < end {
                        node.act().await;
                        // A pause as between requests: else one node alone would keep the others from their turns.
                        tokio::time::sleep(Duration::from_micros(fastrand::u64(..2_000))).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        // The weather is fine again: in the end every node agrees with the truth.
        for key in 0..KEYS {
            eventually("agreement", async || {
                let truth: Option<u64> = node.truth.clone().get(format!("truth:{key}")).await.ok()?;
                (node.read(key).await == truth.unwrap_or_default()).then_some(())
            })
            .await?;
        }
        for event in node.history.lock().iter() {
            println!("{}", event.write());
        }
        Ok(())
    })
}

fn node(cache: u16, truth: &Redis, seconds: u64) -> Result<Child> {
    helper("helper_that_is_one_node")?
        .env("HISTORY_CACHE", format!("redis://127.0.0.1:{cache}"))
        .env("HISTORY_TRUTH", truth.url())
        .env("HISTORY_SECONDS", seconds.to_string())
        .spawn()
        .context("starting a node")
}

/// Links cut in silence, reset and slowed, one at a time and all at once, and Redis killed, until shortly before the nodes come to their end.
async fn weather(server: &Redis, proxies: &[Proxy], end: u64) -> Result<()> {
    while now() + 4_000_000 < end {
        let proxy = &proxies[fastrand::usize(..NODES)];
        let pause = async |from, to| tokio::time::sleep(Duration::from_millis(fastrand::u64(from..to))).await;
        match fastrand::u32(..6) {
            0 | 1 => proxy.cut(),
            2 => proxy.reset(),
            3 => proxy.delay(Duration::from_millis(30)),
            4 => proxies.iter().for_each(Proxy::cut),
            _ => {
                server.kill()?;
                pause(50, 1_500).await;
                server.restart().await?;
            }
        }
        pause(100, 2_500).await;
        proxies.iter().for_each(Proxy::heal);
        pause(200, 1_000).await;
    }
    Ok(())
}

/// By key: when an invalidation had returned, and the highest value that any had by then.
type Floors = HashMap<usize, Vec<(u64, u64)>>;

fn floors<'e>(events: impl Iterator<Item = &'e Event>) -> Floors {
    let mut floors = Floors::new();
    for event in events {
        floors.entry(event.key).or_default().push((event.ended, event.value));
    }
    for floor in floors.values_mut() {
        floor.sort_unstable();
        let mut highest = 0;
        for (_, value) in floor {
            highest = highest.max(*value);
            *value = highest;
        }
    }
    floors
}

/// The least a read may return that begins then.
fn floor(floors: &Floors, key: usize, began: u64) -> u64 {
    let Some(floor) = floors.get(&key) else { return 0 };
    floor[..floor.partition_point(|(ended, _)| *ended < began)].last().map_or(0, |(_, value)| *value)
}

/// `HISTORY=600 cargo test --release -p scale-cache --all-features --test history` for ten minutes of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_what_is_promised() -> Result<()> {
    let seconds = std::env::var("HISTORY").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    // What Redis acknowledged it still has when it is back: losing it is another promise, with a test of its own.
    let (server, truth) = (Redis::start_with(&["--appendfsync", "always"]).await?, Redis::start().await?);
    let mut proxies = Vec::new();
    for _ in 0..NODES {
        proxies.push(Proxy::start(server.port()).await?);
    }
    let end = now() + seconds * 1_000_000;
    let children: Vec<Child> = proxies.iter().map(|proxy| node(proxy.port(), &truth, seconds)).collect::<Result<_>>()?;
    let children = children.into_iter().map(|child| tokio::task::spawn_blocking(move || child.wait_with_output()));
    let children: Vec<_> = children.collect();
    eventually("all nodes", async || (server.calls(&["subscribe"]).await.ok()? >= NODES as u64).then_some(())).await?;
    weather(&server, &proxies, end).await?;
    let mut histories: Vec<Vec<Event>> = Vec::new();
    for child in children {
        let output = child.await??;
        ensure!(output.status.success(), "a node failed: {}", String::from_utf8_lossy(&output.stdout));
        histories.push(String::from_utf8(output.stdout)?.lines().filter_map(Event::read).collect());
    }

    let of = |kinds: &'static [char]| move |event: &&Event| kinds.contains(&event.kind);
    let everywhere = floors(histories.iter().flatten().filter(of(&['i'])));
    let (mut reads, mut behind) = (0, 0);
    for (number, history) in histories.iter().enumerate() {
        let here = floors(history.iter().filter(of(&['i', 'h'])));
        for read in history.iter().filter(of(&['r'])) {
            let least = floor(&here, read.key, read.began);
            ensure!(read.value >= least, "node {number}: {read:?} after {least} was invalidated there");
            let least = floor(&everywhere, read.key, read.began - BOUND.as_micros() as u64);
            ensure!(read.value >= least, "node {number}: {read:?} more than {BOUND:?} after {least} was invalidated elsewhere");
            reads += 1;
            behind += usize::from(read.value < floor(&everywhere, read.key, read.began));
        }
    }
    let count = |kind| histories.iter().flatten().filter(of(kind)).count();
    println!(
        "{reads} reads, {behind} of them behind by less than {BOUND:?}, {} invalidations, {} of them with the link cut",
        count(&['i', 'h']),
        count(&['h'])
    );
    ensure!(reads > 1_000 && count(&['i']) > 50, "next to nothing was done");
    Ok(())
}
