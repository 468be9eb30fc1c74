//! Redis alone, with Sentinel, and as a Cluster.

use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;

use crate::binary::require;
use crate::home::Home;
use crate::port::Port;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::tls::Authority;
use crate::wait::eventually;

/// A Redis server with an append-only file, so that acknowledged writes survive a restart.
#[derive(Debug)]
pub struct Redis {
    port: Port,
    /// Reserved for the Cluster bus.
    _bus: Port,
    arguments: Vec<String>,
    process: Mutex<Process>,
    tls: Option<(Port, Home)>,
    home: Home,
}

impl Redis {
    /// Starts a single server.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts a server with more `redis.conf` directives as arguments, for example `["--maxmemory",
    /// "2mb"]`.
    pub async fn start_with(arguments: &[&str]) -> Result<Self> {
        Self::start_on(Port::claim()?, arguments).await
    }

    /// Starts a server that also supports TLS, with a certificate of the authority:
    /// [`tls_url`](Self::tls_url).
    pub async fn start_with_tls(authority: &Authority) -> Result<Self> {
        let (port, home) = (Port::claim()?, Home::new(None)?);
        let identity = authority.identify(home.path(), "root")?;
        let (certificate, key) =
            (identity.certificate.display().to_string(), identity.key.display().to_string());
        let number = port.number().to_string();
        let arguments = [
            "--tls-port", &number, "--tls-cert-file", &certificate, "--tls-key-file", &key,
            "--tls-auth-clients", "no",
        ];
        let mut server = Self::start_with(&arguments).await?;
        server.tls = Some((port, home));
        Ok(server)
    }

    /// Returns `rediss://localhost:…` for a server with TLS.
    pub fn tls_url(&self) -> Option<String> {
        self.tls.as_ref().map(|(port, _)| format!("rediss://localhost:{}", port.number()))
    }

    /// Starts a server; `bus` is its port for the Cluster bus.
    async fn start_on(bus: Port, arguments: &[&str]) -> Result<Self> {
        let (port, home) = (Port::claim()?, Home::in_memory()?);
        let mut all: Vec<String> = [
            "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync",
            "everysec", "--enable-debug-command", "local", "--repl-diskless-sync-delay", "0",
        ]
        .map(String::from)
        .into();
        all.extend([
            "--port".into(),
            port.number().to_string(),
            "--dir".into(),
            home.path().display().to_string(),
        ]);
        all.extend(["--cluster-port".into(), bus.number().to_string()]);
        all.extend(arguments.iter().copied().map(String::from));
        let process = spawn(&all, &home)?;
        let server =
            Self { port, _bus: bus, arguments: all, process: Mutex::new(process), tls: None, home };
        server.ready().await?;
        Ok(server)
    }

    /// Returns the loopback port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns `redis://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// Runs a command with `redis-cli`; an error reply is an error.
    pub async fn command(&self, words: &[&str]) -> Result<String> {
        command(self.port(), words).await
    }

    /// Sends SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.process.lock().kill()
    }

    /// Sends SIGSTOP: connections stay open, without answers.
    pub fn pause(&self) -> Result<()> {
        self.process.lock().pause()
    }

    /// Sends SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.process.lock().resume()
    }

    /// Kills the server if it is running, then starts it with the same data and port.
    pub async fn restart(&self) -> Result<()> {
        self.kill()?;
        *self.process.lock() = spawn(&self.arguments, &self.home)?;
        self.ready().await
    }

    /// Promotes a replica to primary.
    pub async fn promote(&self) -> Result<()> {
        self.command(&["REPLICAOF", "NO", "ONE"]).await.map(drop)
    }

    /// Returns how often each of the named commands ran since the start or the last
    /// `CONFIG RESETSTAT`.
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

/// A master, a replica, and three Sentinels that fail over within about two seconds.
#[derive(Debug)]
pub struct RedisSentinel {
    servers: Vec<Redis>,
    sentinels: Vec<(Port, Process, Home)>,
}

impl RedisSentinel {
    /// Name of the master for the Sentinels.
    pub const NAME: &str = "main";

    /// Starts all servers, and waits until every Sentinel knows the replica and the other
    /// Sentinels.
    pub async fn start() -> Result<Self> {
        let master = Redis::start().await?;
        let replica =
            Redis::start_with(&["--replicaof", &format!("127.0.0.1 {}", master.port())]).await?;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(sentinel(master.port())?);
        }
        let group = Self { servers: vec![master, replica], sentinels };
        for (port, _, _) in &group.sentinels {
            eventually("a Sentinel to know its group", async || {
                let info =
                    command(port.number(), &["SENTINEL", "MASTER", Self::NAME]).await.ok()?;
                let lines: Vec<&str> = info.lines().collect();
                let field = |name| {
                    lines.iter().position(|l| *l == name).and_then(|i| lines.get(i + 1).copied())
                };
                (field("num-slaves") == Some("1") && field("num-other-sentinels") == Some("2"))
                    .then_some(())
            })
            .await?;
        }
        Ok(group)
    }

    /// Returns `redis+sentinel://h1,h2,h3/main`.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self
            .sentinels
            .iter()
            .map(|(port, _, _)| format!("127.0.0.1:{}", port.number()))
            .collect();
        format!("redis+sentinel://{}/{}", hosts.join(","), Self::NAME)
    }

    /// Returns server `n`; 0 is the first master, 1 its replica.
    pub fn server(&self, n: usize) -> &Redis {
        &self.servers[n]
    }

    /// Returns the port of the current master, according to a Sentinel.
    pub async fn master_port(&self) -> Result<u16> {
        let port = self.sentinels[0].0.number();
        let answer = command(port, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::NAME]).await?;
        answer.lines().nth(1).and_then(|p| p.parse().ok()).context("the Sentinel knows no master")
    }
}

/// A three-node Cluster without replicas.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
    /// Proxies in front of the nodes' bus ports.
    bus: Vec<Proxy>,
}

impl RedisCluster {
    /// Starts three nodes, distributes the slots, and waits until every node agrees.
    pub async fn start() -> Result<Self> {
        let (mut nodes, mut bus) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let port = Port::claim()?;
            let proxy = Proxy::start(port.number()).await?;
            let announced = proxy.port().to_string();
            let arguments = [
                "--cluster-enabled", "yes", "--cluster-node-timeout", "6000",
                "--cluster-announce-bus-port", &announced,
            ];
            nodes.push(Redis::start_on(port, &arguments).await?);
            bus.push(proxy);
        }
        for (node, (from, to)) in
            nodes.iter().zip([("0", "5460"), ("5461", "10922"), ("10923", "16383")])
        {
            node.command(&["CLUSTER", "ADDSLOTSRANGE", from, to]).await?;
        }
        for (other, proxy) in nodes.iter().zip(&bus).skip(1) {
            nodes[0]
                .command(&[
                    "CLUSTER",
                    "MEET",
                    "127.0.0.1",
                    &other.port().to_string(),
                    &proxy.port().to_string(),
                ])
                .await?;
        }
        for node in &nodes {
            eventually("the Cluster to agree", async || {
                let info = node.command(&["CLUSTER", "INFO"]).await.ok()?;
                (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3"))
                    .then_some(())
            })
            .await?;
        }
        Ok(Self { nodes, bus })
    }

    /// Cuts the bus between the nodes, over which published messages are forwarded. The nodes
    /// notice after six seconds.
    pub fn cut_bus(&self) {
        self.bus.iter().for_each(Proxy::cut);
    }

    /// Restores the bus.
    pub fn heal_bus(&self) {
        self.bus.iter().for_each(Proxy::heal);
    }

    /// Returns `redis+cluster://h1,h2,h3`.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.port())).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Returns node `n` of three.
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
