//! A process of the fleet, and its successors at the same address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, Result};
use testkit::{Process, eventually};

/// Returns the program of this process.
pub(super) fn program() -> Result<PathBuf> {
    std::env::current_exe().context("this program")
}

/// A web process or a worker.
pub(crate) struct Member {
    name: String,
    address: SocketAddr,
    operations: SocketAddr,
    words: Vec<String>,
    log: PathBuf,
    process: Mutex<Process>,
    starts: AtomicUsize,
}

impl Member {
    /// Starts a process, and waits until it is ready. Without a command it is the whole shop.
    pub(crate) async fn start(
        config: &Path,
        folder: &Path,
        name: &str,
        command: Option<&str>,
    ) -> Result<Self> {
        let (address, operations) = (free()?, free()?);
        let mut words = vec![
            "--config".to_owned(),
            config.display().to_string(),
            "--listen".into(),
            address.to_string(),
            "--operations".into(),
            operations.to_string(),
        ];
        words.extend(command.map(str::to_owned));
        let log = folder.join(format!("{name}.log"));
        let process = Mutex::new(spawn(&words, &log)?);
        let (name, starts) = (name.to_owned(), AtomicUsize::new(1));
        let member = Self { name, address, operations, words, log, process, starts };
        member.ready().await?;
        Ok(member)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the address of its pages.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of its metrics.
    pub(crate) fn operations(&self) -> SocketAddr {
        self.operations
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process().pid()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process().is_running()
    }

    /// Returns how many processes there have been.
    pub(crate) fn starts(&self) -> usize {
        self.starts.load(Relaxed)
    }

    pub(crate) fn kill(&self) -> Result<()> {
        self.process().kill()
    }

    pub(crate) fn pause(&self) -> Result<()> {
        self.process().pause()
    }

    pub(crate) fn resume(&self) -> Result<()> {
        self.process().resume()
    }

    pub(crate) fn terminate(&self) -> Result<()> {
        if self.is_running() { self.process().terminate() } else { Ok(()) }
    }

    /// Waits until the process has ended.
    pub(crate) async fn ended(&self) -> Result<()> {
        let what = format!("{} to end", self.name);
        eventually(&what, async || (!self.is_running()).then_some(())).await
    }

    /// Starts a successor of a process that has ended, and waits until it is ready.
    pub(crate) async fn restart(&self) -> Result<()> {
        *self.process() = spawn(&self.words, &self.log)?;
        self.starts.fetch_add(1, Relaxed);
        self.ready().await
    }

    /// Lets the process leave, and starts its successor.
    pub(crate) async fn replace(&self) -> Result<()> {
        self.terminate()?;
        self.ended().await?;
        self.restart().await
    }

    /// Waits until the process answers that it is ready.
    async fn ready(&self) -> Result<()> {
        let what = format!("{} to be ready", self.name);
        let answer = eventually(&what, async || {
            if !self.is_running() {
                return Some(Err(anyhow::anyhow!("{} ended: {}", self.name, self.log_tail())));
            }
            is_ready(self.operations).await.then_some(Ok(()))
        });
        answer.await?
    }

    fn log_tail(&self) -> String {
        self.process().log_tail()
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn spawn(words: &[String], log: &Path) -> Result<Process> {
    let mut command = Command::new(program()?);
    command.args(words);
    if let Some(filter) = std::env::var_os("RUST_LOG") {
        command.env("RUST_LOG", filter);
    }
    Process::spawn(&command, None, log)
}

/// Returns an address that was free a moment ago, and stays the same for all successors.
fn free() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

async fn is_ready(operations: SocketAddr) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(operations).await?;
        stream.write_all(b"GET /health/ready HTTP/1.0\r\n\r\n").await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.ends_with(b" 200"))
    };
    ask.await.unwrap_or(false)
}
