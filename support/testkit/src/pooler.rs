//! Poolers between a client and a Postgres, each on its own port; stopped when dropped.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::binary::require;
use crate::home::Home;
use crate::port::Port;
use crate::process::Process;
use crate::wait::{accepts, eventually};

/// User of the poolers' processes: both refuse to run as root.
const USER: &str = "postgres";

/// A pooler in front of one Postgres.
#[derive(Debug)]
pub struct Pooler {
    port: Port,
    _process: Process,
    // Removed last, after the process is gone.
    _home: Home,
}

impl Pooler {
    /// Starts pgbouncer in session mode: Debian's 1.18 supports prepared statements in no other
    /// mode.
    pub async fn pgbouncer(postgres: u16) -> Result<Self> {
        Self::pgbouncer_by(postgres, "session").await
    }

    /// Starts pgbouncer in transaction mode, with another server connection for each transaction.
    pub async fn pgbouncer_by_transactions(postgres: u16) -> Result<Self> {
        Self::pgbouncer_by(postgres, "transaction").await
    }

    async fn pgbouncer_by(postgres: u16, mode: &str) -> Result<Self> {
        let (home, port) = (Home::new(Some(USER))?, Port::claim()?);
        let users = home.join("users.txt");
        fs::write(&users, "\"postgres\" \"\"\n")?;
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={postgres} dbname=postgres\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {}\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\n\
             unix_socket_dir =\nlogfile =\npidfile =\nignore_startup_parameters = \
             extra_float_digits\n",
            port.number(),
            users.display()
        );
        let file = home.join("pgbouncer.ini");
        fs::write(&file, settings)?;
        let mut command = Command::new(require("pgbouncer")?);
        command.arg(file);
        Self::start(&command, port, home).await
    }

    /// Starts Pgpool-II in front of one server, only as a pooler: it neither splits reads and
    /// writes nor monitors the server.
    pub async fn pgpool(postgres: u16) -> Result<Self> {
        let (home, port) = (Home::new(Some(USER))?, Port::claim()?);
        let administration = Port::claim()?;
        let here = home.path().display();
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{here}'\n\
             pcp_listen_addresses = ''\n\
             pcp_socket_dir = '{here}'\npcp_port = {}\nwd_ipc_socket_dir = '{here}'\n\
             logdir = '{here}'\npid_file_name = '{here}/pid'\n\
             backend_clustering_mode = 'raw'\nbackend_hostname0 = '127.0.0.1'\n\
             backend_port0 = {postgres}\nbackend_weight0 = 1\n\
             num_init_children = 8\nmax_pool = 1\nconnection_cache = on\nload_balance_mode = off\n\
             enable_pool_hba = off\n\
             log_min_messages = error\n",
            port.number(),
            administration.number()
        );
        let (file, none) = (home.join("pgpool.conf"), home.join("none.conf"));
        fs::write(&file, settings)?;
        fs::write(&none, "")?;
        let mut command = Command::new(require("pgpool")?);
        command.arg("-n").arg("-f").arg(file).arg("-F").arg(&none).arg("-a").arg(&none);
        Self::start(&command, port, home).await
    }

    async fn start(command: &Command, port: Port, home: Home) -> Result<Self> {
        let process = Process::spawn(command, Some(USER), &home.join("log"))?;
        eventually("a pooler to answer", async || {
            (accepts(port.number()).await || !process.is_running()).then_some(())
        })
        .await?;
        ensure!(process.is_running(), "a pooler ended at start: {}", process.log_tail());
        Ok(Self { port, _process: process, _home: home })
    }

    /// Returns `postgres://…/postgres`, through the pooler.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port.number())
    }
}
