//! MariaDB alone, or a primary with a GTID replica.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use nix::unistd::Uid;
use parking_lot::Mutex;

use crate::binary::require;
use crate::home::Home;
use crate::port::Port;
use crate::process::Process;
use crate::tls::{Authority, Identity};
use crate::wait::eventually;

const USER: &str = "mysql";

/// A primary (node 0) and its replicas. Dropping it stops all of them.
#[derive(Debug)]
pub struct MariaDb {
    nodes: Vec<MariaNode>,
}

/// One MariaDB server.
#[derive(Debug)]
pub struct MariaNode {
    port: Port,
    data: PathBuf,
    id: usize,
    process: Mutex<Arc<Process>>,
    identity: Mutex<Option<Identity>>,
    home: Home,
}

impl MariaDb {
    /// Starts a primary with `replicas` GTID replicas, and waits until all answer.
    pub async fn start(replicas: usize) -> Result<Self> {
        let mut nodes = Vec::new();
        for id in 0..=replicas {
            nodes.push(MariaNode::start(id).await?);
        }
        let source = nodes[0].port();
        for replica in &nodes[1..] {
            replica
                .sql(&format!(
                    "change master to master_host='127.0.0.1', master_port={source}, \
                     master_user='test', master_use_gtid=slave_pos, \
                     master_connect_retry=1; start slave; set global read_only=1"
                ))
                .await?;
        }
        Ok(Self { nodes })
    }

    /// Returns node `n`; 0 is the first primary.
    pub fn node(&self, n: usize) -> &MariaNode {
        &self.nodes[n]
    }

    /// Returns all nodes.
    pub fn nodes(&self) -> &[MariaNode] {
        &self.nodes
    }
}

impl MariaNode {
    async fn start(id: usize) -> Result<Self> {
        let home = Home::new(Some(USER))?;
        let data = home.join("data");
        let mut install = Command::new(require("mariadb-install-db")?);
        install.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
        ]);
        install.arg(format!("--datadir={}", data.display()));
        // A starting server deletes all temporary tables it finds, including those of other
        // servers.
        install.arg(format!("--tmpdir={}", home.path().display()));
        install.args(["--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=32M"]);
        Process::run(&install, Some(USER)).await?;
        let port = Port::claim()?;
        let process = spawn(&data, port.number(), id, &home, None)?;
        let node = Self {
            port,
            data,
            id,
            process: Mutex::new(Arc::new(process)),
            identity: Mutex::default(),
            home,
        };
        node.ready().await?;
        node.root(
            "create user test@'127.0.0.1'; grant all on *.* to test@'127.0.0.1' \
            with grant option; create database test; reset master",
        )
        .await?;
        Ok(node)
    }

    /// Returns the loopback port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns `mysql://…/test`.
    pub fn url(&self) -> String {
        format!("mysql://test@127.0.0.1:{}/test", self.port())
    }

    /// Restarts with TLS, using a certificate of the authority.
    pub async fn offer_tls(&self, authority: &Authority) -> Result<()> {
        let identity = authority.identify(self.home.path(), USER)?;
        *self.identity.lock() = Some(identity);
        self.restart().await
    }

    /// Runs SQL with the `mariadb` client, and returns the unformatted answer.
    pub async fn sql(&self, query: &str) -> Result<String> {
        self.client(&["-utest", "-h127.0.0.1", &format!("-P{}", self.port())], query).await
    }

    /// Promotes a replica to primary.
    pub async fn promote(&self) -> Result<()> {
        self.sql("stop slave; reset slave all; set global read_only=0").await.map(drop)
    }

    /// Pauses replay; the replica still receives.
    pub async fn pause_replay(&self) -> Result<()> {
        self.sql("stop slave sql_thread").await.map(drop)
    }

    /// Resumes replay after [`pause_replay`](Self::pause_replay).
    pub async fn resume_replay(&self) -> Result<()> {
        self.sql("start slave sql_thread").await.map(drop)
    }

    /// Sends SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.process.lock().kill()
    }

    /// Sends SIGSTOP.
    pub fn freeze(&self) -> Result<()> {
        self.process.lock().pause()
    }

    /// Sends SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.process.lock().resume()
    }

    /// Kills the server if it is running, then starts it with the same data and port.
    pub async fn restart(&self) -> Result<()> {
        self.kill()?;
        let process =
            spawn(&self.data, self.port(), self.id, &self.home, self.identity.lock().as_ref())?;
        *self.process.lock() = Arc::new(process);
        self.ready().await
    }

    async fn root(&self, query: &str) -> Result<String> {
        self.client(&["-uroot", "-S", &self.home.join("sock").display().to_string()], query).await
    }

    async fn client(&self, to: &[&str], query: &str) -> Result<String> {
        let mut client = Command::new(require("mariadb")?);
        client
            .args(["--no-defaults", "--connect-timeout=5", "-N", "-B"])
            .args(to)
            .args(["-e", query]);
        Process::run(&client, None).await
    }

    async fn ready(&self) -> Result<()> {
        eventually("MariaDB to answer", async || {
            if !self.process.lock().is_running() {
                return Some(Err(()));
            }
            self.root("select 1").await.ok().map(|_| Ok(()))
        })
        .await?
        .map_err(|()| anyhow!("MariaDB ended at start: {}", self.process.lock().log_tail()))
        .context("starting MariaDB")
    }
}

fn spawn(
    data: &std::path::Path,
    port: u16,
    id: usize,
    home: &Home,
    identity: Option<&Identity>,
) -> Result<Process> {
    let mut command = Command::new(require("mariadbd")?);
    command.arg("--no-defaults").arg(format!("--datadir={}", data.display()));
    command
        .arg(format!("--socket={}", home.join("sock").display()))
        .arg(format!("--pid-file={}", home.join("pid").display()));
    command.args([
        format!("--port={port}"),
        format!("--server-id={}", id + 1),
        format!("--tmpdir={}", home.path().display()),
    ]);
    command.args([
        "--bind-address=127.0.0.1",
        "--log-bin=binlog",
        "--log-slave-updates",
        "--binlog-format=ROW",
        "--gtid-strict-mode=1",
        "--innodb-flush-log-at-trx-commit=2",
        "--innodb-buffer-pool-size=64M",
        "--skip-name-resolve",
        "--slave-net-timeout=5",
        // The default of MySQL 8, which is stricter.
        concat!(
            "--sql-mode=ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,",
            "ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
        ),
    ]);
    if let Some(Identity { certificate, key }) = identity {
        command.args([
            format!("--ssl-cert={}", certificate.display()),
            format!("--ssl-key={}", key.display()),
        ]);
    }
    if Uid::effective().is_root() {
        command.arg(format!("--user={USER}"));
    }
    Process::spawn(&command, Some(USER), &home.join("log"))
}
