//! A Postgres primary with streaming replicas.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use parking_lot::Mutex;

use crate::binary::require;
use crate::home::Home;
use crate::port::Port;
use crate::process::Process;
use crate::tls::Authority;
use crate::wait::{accepts, eventually};

const USER: &str = "postgres";

/// Settings for speed and small size, without durability across power failures.
const SETTINGS: &[&str] = &[
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=on",
    "shared_buffers=64MB",
    "max_connections=200",
    "wal_level=replica",
    "max_wal_senders=10",
    "wal_keep_size=512MB",
    "hot_standby=on",
    "hot_standby_feedback=on",
    "wal_receiver_status_interval=1s",
    "wal_retrieve_retry_interval=200ms",
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "shared_preload_libraries=pg_stat_statements",
];

/// A primary (node 0 at first) and its replicas. Dropping it stops all of them.
#[derive(Debug)]
pub struct Postgres {
    nodes: Vec<PgNode>,
}

/// One Postgres server.
#[derive(Debug)]
pub struct PgNode {
    port: Port,
    data: PathBuf,
    process: Mutex<Arc<Process>>,
    // Removed last, after the process is gone.
    home: Home,
}

impl Postgres {
    /// Starts a primary with `replicas` streaming replicas, and waits until all answer.
    pub async fn start(replicas: usize) -> Result<Self> {
        let primary = PgNode::primary().await?;
        let mut nodes = vec![primary];
        for _ in 0..replicas {
            let replica = PgNode::replica_of(&nodes[0]).await?;
            nodes.push(replica);
        }
        Ok(Self { nodes })
    }

    /// Returns node `n`; 0 is the first primary, the replicas follow.
    pub fn node(&self, n: usize) -> &PgNode {
        &self.nodes[n]
    }

    /// Returns all nodes.
    pub fn nodes(&self) -> &[PgNode] {
        &self.nodes
    }

    /// Returns the addresses of all nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(PgNode::url).collect()
    }

    /// Waits until every replica has replayed what node 0 has written until now.
    pub async fn caught_up(&self) -> Result<()> {
        let position = self.node(0).sql("select pg_current_wal_lsn()").await?;
        for replica in &self.nodes[1..] {
            let query = format!("select pg_last_wal_replay_lsn() >= '{position}'::pg_lsn");
            eventually("a replica to catch up", async || {
                (replica.sql(&query).await.ok()? == "t").then_some(())
            })
            .await?;
        }
        Ok(())
    }
}

impl PgNode {
    async fn primary() -> Result<Self> {
        let home = Home::new(Some(USER))?;
        let data = home.join("data");
        let mut initdb = Command::new(require("initdb")?);
        initdb.arg("-D").arg(&data).args([
            "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync",
            "--no-instructions",
        ]);
        Process::run(&initdb, Some(USER)).await?;
        Self::launch(home, data).await
    }

    async fn replica_of(source: &Self) -> Result<Self> {
        let home = Home::new(Some(USER))?;
        let data = home.join("data");
        copy(source.port(), &data).await?;
        Self::launch(home, data).await
    }

    async fn launch(home: Home, data: PathBuf) -> Result<Self> {
        let port = Port::claim()?;
        let process = spawn(&data, port.number(), &home)?;
        let node = Self { port, data, process: Mutex::new(Arc::new(process)), home };
        node.ready().await?;
        Ok(node)
    }

    /// Returns the loopback port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Returns `postgres://…/postgres`.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port())
    }

    /// Enables TLS with a certificate of the authority.
    pub async fn offer_tls(&self, authority: &Authority) -> Result<()> {
        authority.identify(&self.data, USER)?;
        self.sql("alter system set ssl = on").await?;
        self.sql("select pg_reload_conf()").await?;
        eventually("Postgres to offer TLS", async || {
            (self.sql("show ssl").await.ok()? == "on").then_some(())
        })
        .await
    }

    /// Runs SQL with `psql`, and returns the unaligned answer.
    pub async fn sql(&self, query: &str) -> Result<String> {
        let mut psql = Command::new(require("psql")?);
        psql.env("PGCONNECT_TIMEOUT", "5").args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &self.url(),
            "-c",
            query,
        ]);
        Process::run(&psql, None).await
    }

    /// Promotes a replica to primary, and waits until it takes writes.
    pub async fn promote(&self) -> Result<()> {
        self.sql("select pg_promote(true, 30)").await?;
        eventually("a promoted node to leave recovery", async || {
            (self.sql("select pg_is_in_recovery()").await.ok()? == "f").then_some(())
        })
        .await
    }

    /// Makes this replica follow another primary.
    pub async fn follow(&self, primary: &Self) -> Result<()> {
        self.sql(&format!(
            "alter system set primary_conninfo = 'host=127.0.0.1 port={} user={USER}'",
            primary.port()
        ))
        .await?;
        self.sql("select pg_reload_conf()").await?;
        Ok(())
    }

    /// Pauses replay; the replica still receives, and its readers see old data.
    pub async fn pause_replay(&self) -> Result<()> {
        self.sql("select pg_wal_replay_pause()").await?;
        eventually("replay to pause", async || {
            (self.sql("select pg_get_wal_replay_pause_state()").await.ok()? == "paused")
                .then_some(())
        })
        .await
    }

    /// Resumes replay after [`pause_replay`](Self::pause_replay).
    pub async fn resume_replay(&self) -> Result<()> {
        self.sql("select pg_wal_replay_resume()").await.map(drop)
    }

    /// Sends SIGKILL, like a power failure of the server.
    pub fn kill(&self) -> Result<()> {
        self.process.lock().kill()
    }

    /// Sends SIGSTOP to the whole server: connections stay open, without answers.
    pub fn freeze(&self) -> Result<()> {
        // Backends have their own process groups, so each is stopped by its id.
        self.each_backend(nix::sys::signal::Signal::SIGSTOP)
    }

    /// Resumes the server after [`freeze`](Self::freeze).
    pub fn thaw(&self) -> Result<()> {
        self.each_backend(nix::sys::signal::Signal::SIGCONT)
    }

    /// Kills the server if it is running, then starts it with the same data and port.
    pub async fn restart(&self) -> Result<()> {
        self.kill()?;
        let children_gone = async || (!accepts(self.port()).await).then_some(());
        eventually("a killed server's port to close", children_gone).await?;
        // Backends of a killed postmaster end by themselves; the data folder stays locked until
        // then.
        eventually("the backends of a killed server to leave", async || {
            self.backends().is_empty().then_some(())
        })
        .await?;
        let _ = std::fs::remove_file(self.data.join("postmaster.pid"));
        let process = spawn(&self.data, self.port(), &self.home)?;
        *self.process.lock() = Arc::new(process);
        self.ready().await
    }

    /// Makes this node a replica of another one: with a new copy of its data, on the same port.
    pub async fn rejoin(&self, primary: &Self) -> Result<()> {
        self.thaw()?;
        self.kill()?;
        eventually("the backends of a killed server to leave", async || {
            self.backends().is_empty().then_some(())
        })
        .await?;
        std::fs::remove_dir_all(&self.data)?;
        copy(primary.port(), &self.data).await?;
        let process = spawn(&self.data, self.port(), &self.home)?;
        *self.process.lock() = Arc::new(process);
        self.ready().await
    }

    async fn ready(&self) -> Result<()> {
        eventually("Postgres to answer", async || {
            if !self.process.lock().is_running() {
                return Some(Err(()));
            }
            self.sql("select 1").await.ok().map(|_| Ok(()))
        })
        .await?
        .map_err(|()| anyhow!("Postgres ended at start: {}", self.process.lock().log_tail()))
        .context("starting Postgres")
    }

    fn backends(&self) -> Vec<i32> {
        let postmaster = self.data.as_os_str().to_owned();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                std::fs::read_link(format!("/proc/{pid}/cwd"))
                    .is_ok_and(|cwd| cwd.as_os_str() == postmaster)
            })
            .collect()
    }

    fn each_backend(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        for pid in self.backends() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)?;
        }
        Ok(())
    }
}

impl Drop for PgNode {
    fn drop(&mut self) {
        let _ = self.thaw();
        let _ = self.kill();
    }
}

/// Copies the data of a running server, to become its replica.
async fn copy(source: u16, data: &std::path::Path) -> Result<()> {
    let mut copy = Command::new(require("pg_basebackup")?);
    copy.args([
        "-h",
        "127.0.0.1",
        "-p",
        &source.to_string(),
        "-U",
        USER,
        "-R",
        "-X",
        "stream",
        "-c",
        "fast",
        "--no-sync",
        "-D",
    ]);
    copy.arg(data);
    Process::run(&copy, Some(USER)).await.map(drop)
}

fn spawn(data: &std::path::Path, port: u16, home: &Home) -> Result<Process> {
    let mut command = Command::new(require("postgres")?);
    command.arg("-D").arg(data).args(["-p", &port.to_string()]);
    for setting in SETTINGS {
        command.args(["-c", setting]);
    }
    Process::spawn(&command, Some(USER), &home.join("log"))
}
