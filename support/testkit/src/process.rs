//! A server process that cannot outlive the test that started it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid};
use parking_lot::Mutex;

use crate::binary::require;
use crate::wait::DEADLINE;

/// A running server, in a process group of its own; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` under a parent-death signal, as `user` where the caller is root, its output going to `log`.
    pub fn spawn(command: &Command, user: Option<&str>, log: &Path) -> Result<Self> {
        let mut wrapped = guarded(user)?;
        wrapped.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        let out = File::options().create(true).append(true).open(log)?;
        wrapped.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0).current_dir("/");
        let child = on_lasting_thread(wrapped).with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self { child: Mutex::new(child), log: log.to_owned() })
    }

    /// Runs a short command to its end and returns what it printed.
    pub(crate) async fn run(command: &Command, user: Option<&str>) -> Result<String> {
        let mut wrapped = guarded(user)?;
        wrapped.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null()).current_dir("/");
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(key, value);
            }
        }
        let name = command.get_program().to_string_lossy().into_owned();
        // Stays on one thread from start to end, so the death signal cannot come early.
        let run = tokio::task::spawn_blocking(move || wrapped.output());
        let output = tokio::time::timeout(DEADLINE, run).await.with_context(|| format!("{name} took over {DEADLINE:?}"))?;
        let output = output?.with_context(|| format!("running {name}"))?;
        if !output.status.success() {
            bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The process number of the group's leader.
    pub fn pid(&self) -> u32 {
        self.child.lock().id()
    }

    /// Whether the leader is still running.
    pub fn is_running(&self) -> bool {
        matches!(self.child.lock().try_wait(), Ok(None))
    }

    /// SIGKILL to the whole group, and waits until the leader is gone.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.child.lock();
        let group = Pid::from_raw(child.id().cast_signed());
        let _ = killpg(group, Signal::SIGCONT);
        let _ = killpg(group, Signal::SIGKILL);
        child.wait().context("waiting for a killed server")?;
        Ok(())
    }

    /// SIGTERM to the leader's group: a polite stop.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// SIGSTOP: alive for the kernel, silent for its clients.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT: goes on after [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// The end of what the server printed, for error messages.
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid();
        killpg(Pid::from_raw(pid.cast_signed()), signal).with_context(|| format!("sending {signal} to {pid}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// `setpriv` sets the death signal and the user without a line of unsafe code of ours.
fn guarded(user: Option<&str>) -> Result<Command> {
    let mut command = Command::new(require("setpriv")?);
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user.filter(|_| Uid::effective().is_root()) {
        command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    command.arg("--");
    Ok(command)
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// The death signal fires when the *thread* that forked ends, so all servers are forked by one that never does.
fn on_lasting_thread(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, answer) = mpsc::channel();
    spawner.lock().send((command, reply)).map_err(|_| anyhow!("the spawner thread is gone"))?;
    Ok(answer.recv()??)
}

fn tail(log: &Path) -> Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(2_000)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// This test binary anew, as a process of its own that runs one of its tests, a helper that does nothing without what it finds in its
/// environment. What it is told and what it says are piped.
pub fn helper(test: &str) -> Result<Command> {
    let mut helper = Command::new(std::env::current_exe()?);
    helper.args(["--exact", test, "--nocapture"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(helper)
}
