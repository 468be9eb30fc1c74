//! Poolers that stand between a client and a Postgres, each on a port of its own; they end when dropped.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::binary::require;
use crate::home::Home;
use crate::port::Port;
use crate::process::Process;
use crate::wait::{accepts, eventually};

/// What they run as: neither wants to be root.
const USER: &str = "postgres";

/// A pooler before one Postgres.
#[derive(Debug)]
pub struct Pooler {
    port: Port,
    _process: Process,
    // Removed last, after the process is gone.
    _home: Home,
}

impl Pooler {
    /// pgbouncer, by sessions: Debian's 1.18 knows no prepared statements in another mode.
    pub async fn pgbouncer(postgres: u16) -> Result<Self> {
        let (home, port) = (Home::new(Some(USER))?, Port::claim()?);
        let users = home.join("users.txt");
        fs::write(&users, "\"postgres\" \"\"\n")?;
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={postgres} dbname=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {}\nauth_type = trust\nauth_file = {}\npool_mode = session\n\
             unix_socket_dir =\nlogfile =\npidfile =\nignore_startup_parameters = extra_float_digits\n",
            port.number(),
            users.display()
        );
        let file = home.join("pgbouncer.ini");
        fs::write(&file, settings)?;
        let mut command = Command::new(require("pgbouncer")?);
        command.arg(file);
        Self::start(&command, port, home).await
    }

    /// Pgpool-II over one server, as a pooler alone: it neither splits reads from writes nor watches the server.
    pub async fn pgpool(postgres: u16) -> Result<Self> {
        let (home, port) = (Home::new(Some(USER))?, Port::claim()?);
        let administration = Port::claim()?;
        let here = home.path().display();
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{here}'\npcp_listen_addresses = ''\n\
             pcp_socket_dir = '{here}'\npcp_port = {}\nwd_ipc_socket_dir = '{here}'\nlogdir = '{here}'\npid_file_name = '{here}/pid'\n\
             backend_clustering_mode = 'raw'\nbackend_hostname0 = '127.0.0.1'\nbackend_port0 = {postgres}\nbackend_weight0 = 1\n\
             num_init_children = 8\nmax_pool = 1\nconnection_cache = on\nload_balance_mode = off\nenable_pool_hba = off\n\
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
        eventually("a pooler to answer", async || (accepts(port.number()).await || !process.is_running()).then_some(())).await?;
        ensure!(process.is_running(), "a pooler ended at start: {}", process.log_tail());
        Ok(Self { port, _process: process, _home: home })
    }

    /// `postgres://…/postgres`, through the pooler.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port.number())
    }
}
