//! Poolers that stand between a client and a Postgres, each on a port of its own; they end when dropped.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testkit::{Process, eventually};

/// What they run as: neither wants to be root.
const USER: &str = "postgres";

pub(crate) struct Pooler {
    port: u16,
    _process: Process,
    _folder: TempDir,
}

impl Pooler {
    /// By sessions: Debian's 1.18 knows no prepared statements in another mode.
    pub(crate) async fn pgbouncer(postgres: u16) -> Result<Self> {
        let (folder, port) = (open_folder()?, free_port()?);
        let users = folder.path().join("users.txt");
        fs::write(&users, "\"postgres\" \"\"\n")?;
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={postgres} dbname=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = trust\nauth_file = {}\npool_mode = session\n\
             unix_socket_dir =\nlogfile =\npidfile =\nignore_startup_parameters = extra_float_digits\n",
            users.display()
        );
        let file = folder.path().join("pgbouncer.ini");
        fs::write(&file, settings)?;
        let mut command = Command::new(binary("pgbouncer", "pgbouncer")?);
        command.arg(file);
        Self::start(&command, port, folder).await
    }

    /// Over one server, as a pooler alone: it neither splits reads from writes nor watches the server.
    pub(crate) async fn pgpool(postgres: u16) -> Result<Self> {
        let (folder, port) = (open_folder()?, free_port()?);
        let here = folder.path().display();
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{here}'\npcp_listen_addresses = ''\n\
             pcp_socket_dir = '{here}'\npcp_port = {}\nwd_ipc_socket_dir = '{here}'\nlogdir = '{here}'\npid_file_name = '{here}/pid'\n\
             backend_clustering_mode = 'raw'\nbackend_hostname0 = '127.0.0.1'\nbackend_port0 = {postgres}\nbackend_weight0 = 1\n\
             num_init_children = 8\nmax_pool = 1\nconnection_cache = on\nload_balance_mode = off\nenable_pool_hba = off\n\
             log_min_messages = error\n",
            free_port()?
        );
        let (file, none) = (folder.path().join("pgpool.conf"), folder.path().join("none.conf"));
        fs::write(&file, settings)?;
        fs::write(&none, "")?;
        let mut command = Command::new(binary("pgpool", "pgpool2")?);
        command.arg("-n").arg("-f").arg(file).arg("-F").arg(&none).arg("-a").arg(&none);
        Self::start(&command, port, folder).await
    }

    async fn start(command: &Command, port: u16, folder: TempDir) -> Result<Self> {
        let process = Process::spawn(command, Some(USER), &folder.path().join("log"))?;
        eventually("a pooler to answer", async || {
            let up = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
            (up || !process.is_running()).then_some(())
        })
        .await?;
        ensure!(process.is_running(), "a pooler ended at start: {}", process.log_tail());
        Ok(Self { port, _process: process, _folder: folder })
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port)
    }
}

fn binary(name: &str, package: &str) -> Result<String> {
    let places = ["/usr/sbin", "/usr/bin"].map(|folder| format!("{folder}/{name}"));
    places
        .into_iter()
        .find(|path| Path::new(path).exists())
        .with_context(|| format!("{name} is missing: apt-get install -y {package}"))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A folder that the user of the pooler may write in.
fn open_folder() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    Ok(folder)
}
