//! HAProxy in front of the web processes, with its plain health checks.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use testkit::{Process, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Member;

pub(crate) struct Balancer {
    address: SocketAddr,
    socket: PathBuf,
    process: Process,
}

/// Requests that have passed through the balancer since its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) requests: u64,
    /// Answers of class 5xx, of a web process or of the balancer itself.
    pub(crate) failures: u64,
    /// Web processes that get requests.
    pub(crate) up: usize,
}

impl Balancer {
    pub(super) async fn start(folder: &Path, listen: SocketAddr, webs: &[Member]) -> Result<Self> {
        let (socket, file) = (folder.join("haproxy.sock"), folder.join("haproxy.cfg"));
        std::fs::write(&file, configuration(&socket, listen, webs))?;
        let mut command = Command::new("/usr/sbin/haproxy");
        command.args(["-db", "-f"]).arg(&file);
        let process = Process::spawn(&command, None, &folder.join("haproxy.log"))
            .context("apt-get install haproxy")?;
        let balancer = Self { address: listen, socket, process };
        eventually("HAProxy to find the web processes", async || {
            if !balancer.process.is_running() {
                return Some(Err(anyhow::anyhow!("HAProxy: {}", balancer.process.log_tail())));
            }
            let traffic = balancer.traffic().await.ok()?;
            (traffic.up == webs.len()).then_some(Ok(()))
        })
        .await??;
        Ok(balancer)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until a web process gets requests.
    pub(crate) async fn has(&self, web: &str) -> Result<()> {
        eventually("HAProxy to find a web process", async || {
            let lines = self.statistics().await.ok()?;
            let is_up = |line: &Line| line.server == web && line.status.starts_with("UP");
            lines.iter().any(is_up).then_some(())
        })
        .await
    }

    pub(crate) async fn traffic(&self) -> Result<Traffic> {
        let mut traffic = Traffic::default();
        for line in self.statistics().await? {
            match line.server.as_str() {
                "FRONTEND" => {
                    traffic.requests += line.requests;
                    traffic.failures += line.failures;
                }
                "BACKEND" => {}
                _ => traffic.up += usize::from(line.status.starts_with("UP")),
            }
        }
        Ok(traffic)
    }

    /// Returns the state of each server, by its name.
    pub(crate) async fn states(&self) -> Result<Vec<(String, String)>> {
        let lines = self.statistics().await?.into_iter();
        let servers = lines.filter(|line| !["FRONTEND", "BACKEND"].contains(&line.server.as_str()));
        Ok(servers.map(|line| (line.server, line.status)).collect())
    }

    async fn statistics(&self) -> Result<Vec<Line>> {
        let mut socket = UnixStream::connect(&self.socket).await?;
        socket.write_all(b"show stat\n").await?;
        let mut text = String::new();
        socket.read_to_string(&mut text).await?;
        let mut lines = text.lines();
        let names: Vec<&str> =
            lines.next().context("no statistics")?.trim_start_matches("# ").split(',').collect();
        let at = |name: &str| {
            names.iter().position(|n| *n == name).with_context(|| format!("no column {name}"))
        };
        let (server, status, requests, failures) =
            (at("svname")?, at("status")?, at("req_tot")?, at("hrsp_5xx")?);
        Ok(lines
            .map(|line| line.split(',').collect::<Vec<_>>())
            .filter(|cells| cells.len() >= names.len() - 1)
            .map(|cells| Line {
                server: cells[server].to_owned(),
                status: cells[status].to_owned(),
                requests: cells[requests].parse().unwrap_or(0),
                failures: cells[failures].parse().unwrap_or(0),
            })
            .collect())
    }
}

/// A line of HAProxy's statistics.
struct Line {
    server: String,
    status: String,
    requests: u64,
    failures: u64,
}

/// Returns a configuration like `ops/haproxy/haproxy.cfg`, without TLS.
fn configuration(socket: &Path, listen: SocketAddr, webs: &[Member]) -> String {
    let mut text = format!(
        "global\n  maxconn 4000\n  stats socket {} mode 600 level admin\n\
         defaults\n  mode http\n  timeout connect 2s\n  timeout client 30s\n  \
         timeout server 60s\n  timeout http-request 10s\n  timeout http-keep-alive 30s\n  \
         timeout queue 5s\n\
         frontend shop\n  bind {listen}\n  http-request del-header Forwarded\n  \
         http-request set-header X-Forwarded-For %[src]\n  default_backend web\n\
         backend web\n  balance leastconn\n  option httpchk GET /health/ready\n  \
         http-check expect status 200\n  option redispatch 1\n  retries 3\n  \
         retry-on conn-failure empty-response\n  http-request disable-l7-retry unless METH_GET\n  \
         http-reuse always\n  default-server check inter 500ms fall 2 rise 2\n",
        socket.display()
    );
    for web in webs {
        let _ = writeln!(text, "  server {} {}", web.name(), web.address());
    }
    text
}
