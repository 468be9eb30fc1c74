//! Processes that read, load and invalidate at random over one Redis, while every possible fault
//! happens: connections are cut, processes are stopped, a runtime shuts down, clocks are set, Redis
//! is killed, comes back without acknowledged data, or fails over. Each process records its
//! operations with their times; afterwards the histories are checked against the guarantees.
//!
//! The truth is a counter per key in a separate Redis without faults. An invalidation of a key's
//! value `v` that returned means: no later read on that node returns less than `v`; and, if it
//! [reached](Reach) the other nodes, no read there that begins more than the bound later does.
#![cfg(feature = "redis")]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use redis::AsyncCommands;
use scale_cache::store::since_boot;
use scale_cache::{Cache, Options, Reach};
use testkit::{Proxy, Redis, RedisCluster, RedisSentinel, eventually, helper};

const NODES: usize = 3;
const KEYS: usize = 16;
/// Concurrent tasks on each node.
const TASKS: usize = 8;
const TRUST: Duration = Duration::from_millis(500);
/// The bound of the crate's docs: this duration, and 1.5 s.
const BOUND: Duration = Duration::from_secs(2);

/// Reads a clock that all processes share and that no fault sets.
fn now() -> u64 {
    since_boot().as_micros() as u64
}

/// One line of a history; times in µs.
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
        Some(Self {
            kind,
            key: number()? as usize,
            began: number()?,
            ended: number()?,
            value: number()?,
        })
    }
}

/// A process of the fleet.
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
        let load = move |_| async move {
            truth.get::<_, Option<u64>>(format!("truth:{key}")).await.map(Option::unwrap_or_default)
        };
        *self
            .cache
            .space::<u64>("n")
            .get_or_load_with(key, &Self::options(key), load)
            .await
            .unwrap()
    }

    async fn act(&self) {
        let key = fastrand::usize(..KEYS);
        let began = now();
        // Rarely, so that the first level contains entries that can be stale.
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
            written.push((
                key,
                self.truth.clone().incr::<_, _, u64>(format!("truth:{key}"), 1).await.unwrap(),
            ));
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
        self.history.lock().extend(written.into_iter().map(|(key, value)| Event {
            kind,
            key,
            began,
            ended,
            value,
        }));
    }
}

#[test]
fn helper_that_is_one_node() -> Result<()> {
    let (Ok(url), Ok(truth)) = (std::env::var("HISTORY_CACHE"), std::env::var("HISTORY_TRUTH"))
    else {
        return Ok(());
    };
    let seconds = std::env::var("HISTORY_SECONDS")?.parse::<u64>()?;
    let end = now() + seconds * 1_000_000;
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    // The cache is created on a runtime that shuts down half way.
    let first = runtime()?;
    let cache = first.block_on(async {
        Cache::builder(&url).max_staleness_offline(TRUST).connect_lazy("history")
    })?;
    if std::env::var("HISTORY_RUNTIME").is_ok() {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(seconds / 2));
            first.shutdown_background();
        });
    } else {
        std::mem::forget(first);
    }
    runtime()?.block_on(async {
        let truth = scale_redis::Config::new(&truth)
            .response_timeout(Duration::from_secs(20))
            .connect()
            .await?;
        let node = Arc::new(Node { cache, truth, history: Mutex::default() });
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let node = Arc::clone(&node);
                tokio::spawn(async move {
                    while now() < end {
                        node.act().await;
                        // A pause as between requests: otherwise one node alone would keep the
                        // others from running.
                        tokio::time::sleep(Duration::from_micros(fastrand::u64(..2_000))).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        // All faults are repaired: in the end every node agrees with the truth.
        for key in 0..KEYS {
            eventually("agreement", async || {
                let truth: Option<u64> =
                    node.truth.clone().get(format!("truth:{key}")).await.ok()?;
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

fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?;
    folders
        .filter_map(|f| Some(f.ok()?.path().join("faketime/libfaketime.so.1")))
        .find(|path| path.exists())
}

/// The processes, and the faults that can be injected into them.
struct Fleet {
    nodes: Vec<Child>,
    truth: Redis,
    folder: tempfile::TempDir,
    end: u64,
}

impl Fleet {
    /// Starts one process for each address. The first one's runtime shuts down half way; the last
    /// one's clock can be set.
    async fn start(urls: [String; NODES], seconds: u64) -> Result<Self> {
        let (truth, folder) = (Redis::start().await?, tempfile::tempdir()?);
        let end = now() + seconds * 1_000_000;
        let clock = folder.path().join("clock");
        std::fs::write(&clock, "+0")?;
        let mut nodes = Vec::new();
        for (number, url) in urls.iter().enumerate() {
            let mut node = helper("helper_that_is_one_node")?;
            node.env("HISTORY_CACHE", url)
                .env("HISTORY_TRUTH", truth.url())
                .env("HISTORY_SECONDS", seconds.to_string());
            if number == 0 {
                node.env("HISTORY_RUNTIME", "ends");
            }
            if let Some(library) = faketime().filter(|_| number == NODES - 1) {
                node.env("LD_PRELOAD", library)
                    .env("FAKETIME_TIMESTAMP_FILE", &clock)
                    .env("FAKETIME_NO_CACHE", "1");
                node.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            }
            nodes.push(node.spawn().context("starting a node")?);
        }
        Ok(Self { nodes, truth, folder, end })
    }

    /// Returns whether there is time for one more fault, and to recover from it.
    fn has_time_for(&self, fault: Duration) -> bool {
        now() + fault.as_micros() as u64 + 4_000_000 < self.end
    }

    fn set_clock(&self) -> Result<()> {
        let by = ["+0", "+1h", "-1h"][fastrand::usize(..3)];
        Ok(std::fs::write(self.folder.path().join("clock"), by)?)
    }

    /// Stops a process for longer than any entry may be served unchecked.
    async fn freeze(&self) -> Result<()> {
        let id = self.nodes[fastrand::usize(..NODES)].id().to_string();
        Command::new("kill").args(["-STOP", &id]).status()?;
        pause(1_500, 3_500).await;
        Command::new("kill").args(["-CONT", &id]).status()?;
        Ok(())
    }

    /// Checks the processes' histories against the guarantees.
    async fn judged(self, scenario: &str) -> Result<()> {
        let Self { nodes, truth, .. } = self;
        let nodes: Vec<_> = nodes
            .into_iter()
            .map(|child| tokio::task::spawn_blocking(move || child.wait_with_output()))
            .collect();
        let mut histories: Vec<Vec<Event>> = Vec::new();
        for node in nodes {
            let output = node.await??;
            ensure!(
                output.status.success(),
                "a node failed: {}",
                String::from_utf8_lossy(&output.stdout)
            );
            histories
                .push(String::from_utf8(output.stdout)?.lines().filter_map(Event::read).collect());
        }
        drop(truth);
        judge(scenario, &histories)
    }
}

async fn pause(from: u64, to: u64) {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(from..to))).await;
}

/// Times at which an invalidation had returned, with the highest value invalidated by then, by key.
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

/// Returns the minimum value that a read which begins at that time may return.
fn floor(floors: &Floors, key: usize, began: u64) -> u64 {
    let Some(floor) = floors.get(&key) else { return 0 };
    floor[..floor.partition_point(|(ended, _)| *ended < began)]
        .last()
        .map_or(0, |(_, value)| *value)
}

fn judge(scenario: &str, histories: &[Vec<Event>]) -> Result<()> {
    let of = |kinds: &'static [char]| move |event: &&Event| kinds.contains(&event.kind);
    let everywhere = floors(histories.iter().flatten().filter(of(&['i'])));
    let (mut reads, mut behind) = (0, 0);
    for (number, history) in histories.iter().enumerate() {
        let here = floors(history.iter().filter(of(&['i', 'h'])));
        for read in history.iter().filter(of(&['r'])) {
            let least = floor(&here, read.key, read.began);
            ensure!(
                read.value >= least,
                "{scenario}: node {number}: {read:?} after {least} was invalidated there"
            );
            let least =
                floor(&everywhere, read.key, read.began.saturating_sub(BOUND.as_micros() as u64));
            ensure!(
                read.value >= least,
                "{scenario}: node {number}: {read:?} more than {BOUND:?} after {least} elsewhere"
            );
            reads += 1;
            behind += usize::from(read.value < floor(&everywhere, read.key, read.began));
        }
    }
    let count = |kind| histories.iter().flatten().filter(of(kind)).count();
    println!(
        "{scenario}: {reads} reads, {behind} of them behind by less than {BOUND:?}, {} \
         invalidations, {} of them with the link cut",
        count(&['i', 'h']),
        count(&['h'])
    );
    ensure!(reads > 1_000 && count(&['i']) > 20, "next to nothing was done");
    Ok(())
}

/// Seconds of each test:
/// `HISTORY=600 cargo test --release -p scale-cache --all-features --test history` for ten minutes
/// each.
fn seconds() -> u64 {
    std::env::var("HISTORY").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
}

/// Connections are cut silently, reset and slowed, one at a time and all at once, processes are
/// stopped, clocks are set, and Redis is killed. Redis may lose some of its data.
async fn one_server(scenario: &str, arguments: &[&str], loses: bool) -> Result<()> {
    let server = Redis::start_with(arguments).await?;
    let mut proxies = Vec::new();
    for _ in 0..NODES {
        proxies.push(Proxy::start(server.port()).await?);
    }
    let urls = [0, 1, 2].map(|n: usize| format!("redis://127.0.0.1:{}", proxies[n].port()));
    let fleet = Fleet::start(urls, seconds()).await?;
    eventually("all nodes", async || {
        (server.calls(&["subscribe"]).await.ok()? >= NODES as u64).then_some(())
    })
    .await?;
    while fleet.has_time_for(Duration::from_secs(3)) {
        let proxy = &proxies[fastrand::usize(..NODES)];
        match fastrand::u32(..9) {
            0 => proxy.cut(),
            1 => proxy.reset(),
            2 => proxy.delay(Duration::from_millis(30)),
            3 => proxies.iter().for_each(Proxy::cut),
            4 => fleet.freeze().await?,
            5 => {
                proxies.iter().for_each(Proxy::cut);
                fleet.freeze().await?;
            }
            6 => fleet.set_clock()?,
            _ => {
                if loses {
                    server.command(&["SAVE"]).await?;
                    pause(100, 2_000).await;
                }
                server.kill()?;
                pause(50, 1_500).await;
                server.restart().await?;
            }
        }
        pause(100, 2_500).await;
        proxies.iter().for_each(Proxy::heal);
        pause(200, 1_000).await;
    }
    fleet.judged(scenario).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_what_is_promised() -> Result<()> {
    one_server("restarts", &["--appendfsync", "always"], false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_is_one_after_redis_has_lost_its_memory() -> Result<()> {
    one_server("losses", &["--appendonly", "no"], true).await
}

/// Fail-overs to a replica that lags.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_is_one_after_fail_overs() -> Result<()> {
    let group = RedisSentinel::start().await?;
    let fleet = Fleet::start([(); NODES].map(|()| group.url()), seconds()).await?;
    pause(1_000, 2_000).await;
    while fleet.has_time_for(Duration::from_secs(5)) {
        let master = usize::from(group.master_port().await? != group.server(0).port());
        let (old, new) = (group.server(master), group.server(1 - master));
        new.pause()?;
        let _ = old.command(&["CLIENT", "KILL", "TYPE", "replica"]).await;
        pause(50, 500).await;
        old.kill()?;
        new.resume()?;
        eventually("the fail-over", async || {
            (group.master_port().await.ok()? == new.port()).then_some(())
        })
        .await?;
        if fastrand::bool() {
            fleet.set_clock()?;
        }
        pause(100, 1_000).await;
        old.restart().await?;
        eventually("the old master to follow", async || {
            old.command(&["INFO", "replication"])
                .await
                .ok()?
                .contains("master_link_status:up")
                .then_some(())
        })
        .await?;
        pause(500, 1_500).await;
    }
    fleet.judged("fail-overs").await
}

/// The bus between the nodes of a Cluster is cut, for less time than they need to notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_is_one_over_a_cut_bus() -> Result<()> {
    let cluster = RedisCluster::start().await?;
    let fleet = Fleet::start([(); NODES].map(|()| cluster.url()), seconds()).await?;
    pause(1_000, 2_000).await;
    while fleet.has_time_for(Duration::from_secs(5)) {
        match fastrand::u32(..3) {
            0 => fleet.freeze().await?,
            1 => fleet.set_clock()?,
            _ => {
                cluster.cut_bus();
                pause(1_000, 4_500).await;
                cluster.heal_bus();
            }
        }
        pause(200, 1_500).await;
    }
    fleet.judged("a cut bus").await
}
