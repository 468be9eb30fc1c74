//! Redis alone, with Sentinel, and as a Cluster.

use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;

use crate::binary::require;
use crate::home::Home;
use crate::port::Port;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::wait::eventually;

/// One Redis server with an append-only file, so that a restart keeps what was acknowledged.
#[derive(Debug)]
pub struct Redis {
    port: Port,
    /// Held: nobody else is given it.
    _bus: Port,
    arguments: Vec<String>,
    process: Mutex<Process>,
    home: Home,
}

impl Redis {
    /// A server on its own.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// A server with more `redis.conf` directives as arguments, for example `["--maxmemory", "2mb"]`.
    pub async fn start_with(arguments: &[&str]) -> Result<Self> {
        Self::start_on(Port::claim()?, arguments).await
    }

    /// `bus`: where it listens to other nodes of a Cluster.
    async fn start_on(bus: Port, arguments: &[&str]) -> Result<Self> {
        let (port, home) = (Port::claim()?, Home::new(None)?);
        let mut all: Vec<String> = [
            "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--enable-debug-command",
            "local", "--repl-diskless-sync-delay", "0",
        ]
        .map(String::from)
        .into();
        all.extend(["--port".into(), port.number().to_string(), "--dir".into(), home.path().display().to_string()]);
        all.extend(["--cluster-port".into(), bus.number().to_string()]);
        all.extend(arguments.iter().copied().map(String::from));
        let process = spawn(&all, &home)?;
        let server = Self { port, _bus: bus, arguments: all, process: Mutex::new(process), home };
        server.ready().await?;
        Ok(server)
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// `redis://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// Runs one command through `redis-cli`; an error reply is an error.
    pub async fn command(&self, words: &[&str]) -> Result<String> {
        command(self.port(), words).await
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.process.lock().kill()
    }

    /// SIGSTOP: connections open, no answer.
    pub fn pause(&self) -> Result<()> {
        self.process.lock().pause()
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.process.lock().resume()
    }

    /// Kills if running, then starts on the same data and port.
    pub async fn restart(&self) -> Result<()> {
        self.kill()?;
        *self.process.lock() = spawn(&self.arguments, &self.home)?;
        self.ready().await
    }

    /// Makes a replica a primary of its own.
    pub async fn promote(&self) -> Result<()> {
        self.command(&["REPLICAOF", "NO", "ONE"]).await.map(drop)
    }

    /// How often each command ran since the start or the last `CONFIG RESETSTAT`, of those named.
    pub async fn calls(&self, names: &[&str]) -> Result<u64> {
        let stats = self.command(&["INFO", "commandstats"]).await?;
        Ok(stats
            .lines()
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
            .filter(|(name, _)| names.contains(name))
            .filter_map(|(_, rest)| rest.split(',').next()?.parse::<u64>().ok())
            .sum())
    }

    async fn ready(&self) -> Result<()> {
        eventually("Redis to answer", async || {
            if !self.process.lock().is_running() {
                return Some(Err(()));
            }
            (self.command(&["PING"]).await.ok()? == "PONG").then_some(Ok(()))
        })
        .await?
        .map_err(|()| anyhow!("Redis ended at start: {}", self.process.lock().log_tail()))
        .context("starting Redis")
    }
}

/// A master, a replica and three Sentinels that fail over within two seconds or so.
#[derive(Debug)]
pub struct RedisSentinel {
    servers: Vec<Redis>,
    sentinels: Vec<(Port, Process, Home)>,
}

impl RedisSentinel {
    /// The name under which the Sentinels watch the master.
    pub const NAME: &str = "main";

    /// Starts them all and waits until every Sentinel knows the replica and the other Sentinels.
    pub async fn start() -> Result<Self> {
        let master = Redis::start().await?;
        let replica = Redis::start_with(&["--replicaof", &format!("127.0.0.1 {}", master.port())]).await?;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(sentinel(master.port())?);
        }
        let group = Self { servers: vec![master, replica], sentinels };
        for (port, _, _) in &group.sentinels {
            eventually("a Sentinel to know its group", async || {
                let info = command(port.number(), &["SENTINEL", "MASTER", Self::NAME]).await.ok()?;
                let lines: Vec<&str> = info.lines().collect();
                let field = |name| lines.iter().position(|l| *l == name).and_then(|i| lines.get(i + 1).copied());
                (field("num-slaves") == Some("1") && field("num-other-sentinels") == Some("2")).then_some(())
            })
            .await?;
        }
        Ok(group)
    }

    /// `redis+sentinel://h1,h2,h3/main`.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|(port, _, _)| format!("127.0.0.1:{}", port.number())).collect();
        format!("redis+sentinel://{}/{}", hosts.join(","), Self::NAME)
    }

    /// Server 0 is the first master, 1 its replica.
    pub fn server(&self, n: usize) -> &Redis {
        &self.servers[n]
    }

    /// The port of the master the Sentinels agree on now.
    pub async fn master_port(&self) -> Result<u16> {
        let port = self.sentinels[0].0.number();
        let answer = command(port, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::NAME]).await?;
        answer.lines().nth(1).and_then(|p| p.parse().ok()).context("Sentinel knows no master")
    }
}

/// A three-node Cluster without replicas.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
    /// In front of each node's bus.
    bus: Vec<Proxy>,
}

impl RedisCluster {
    /// Starts three nodes, shares the slots among them and waits until every node agrees.
    pub async fn start() -> Result<Self> {
        let (mut nodes, mut bus) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let port = Port::claim()?;
            let proxy = Proxy::start(port.number()).await?;
            let announced = proxy.port().to_string();
            let arguments =
                ["--cluster-enabled", "yes", "--cluster-node-timeout", "6000", "--cluster-announce-bus-port", &announced];
            nodes.push(Redis::start_on(port, &arguments).await?);
            bus.push(proxy);
        }
        for (node, (from, to)) in nodes.iter().zip([("0", "5460"), ("5461", "10922"), ("10923", "16383")]) {
            node.command(&["CLUSTER", "ADDSLOTSRANGE", from, to]).await?;
        }
        for (other, proxy) in nodes.iter().zip(&bus).skip(1) {
            nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string(), &proxy.port().to_string()]).await?;
        }
        for node in &nodes {
            eventually("the Cluster to agree", async || {
                let info = node.command(&["CLUSTER", "INFO"]).await.ok()?;
                (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")).then_some(())
            })
            .await?;
        }
        Ok(Self { nodes, bus })
    }

    /// Cuts the bus between the nodes, by which they tell each other what was published. They notice after six seconds.
    pub fn cut_bus(&self) {
        self.bus.iter().for_each(Proxy::cut);
    }

    /// The bus is well again.
    pub fn heal_bus(&self) {
        self.bus.iter().for_each(Proxy::heal);
    }

    /// `redis+cluster://h1,h2,h3`.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.port())).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Node `n` of three.
    pub fn node(&self, n: usize) -> &Redis {
        &self.nodes[n]
    }
}

fn spawn(arguments: &[String], home: &Home) -> Result<Process> {
    let mut command = Command::new(require("redis-server")?);
    command.args(arguments);
    Process::spawn(&command, None, &home.join("log"))
}

fn sentinel(master: u16) -> Result<(Port, Process, Home)> {
    let (port, home) = (Port::claim()?, Home::new(None)?);
    let name = RedisSentinel::NAME;
    let config = home.join("sentinel.conf");
    std::fs::write(
        &config,
        format!(
            "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor {name} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 2000\n",
            port.number(),
            home.path().display(),
        ),
    )?;
    let mut command = Command::new(require("redis-server")?);
    command.arg(&config).arg("--sentinel");
    let process = Process::spawn(&command, None, &home.join("log"))?;
    Ok((port, process, home))
}

async fn command(port: u16, words: &[&str]) -> Result<String> {
    let mut cli = Command::new(require("redis-cli")?);
    cli.args(["-h", "127.0.0.1", "-e", "-p", &port.to_string()]).args(words);
    let answer = Process::run(&cli, None).await?;
    if answer.starts_with("ERR ") {
        bail!("{}: {answer}", words.join(" "));
    }
    Ok(answer)
}
