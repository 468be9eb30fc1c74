//! A server process that ends with the test that started it.

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

/// A running server in its own process group; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with a parent-death signal, as `user` if the caller is root, with its
    /// output in `log`.
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
        wrapped
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .current_dir("/");
        let child = on_lasting_thread(wrapped)
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self { child: Mutex::new(child), log: log.to_owned() })
    }

    /// Runs a short command to its end, and returns its output.
    pub(crate) async fn run(command: &Command, user: Option<&str>) -> Result<String> {
        let mut wrapped = guarded(user)?;
        wrapped
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .current_dir("/");
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(key, value);
            }
        }
        let name = command.get_program().to_string_lossy().into_owned();
        // One thread runs the command from start to end, so the death signal cannot be sent early.
        let run = tokio::task::spawn_blocking(move || wrapped.output());
        let output = tokio::time::timeout(DEADLINE, run)
            .await
            .with_context(|| format!("{name} took over {DEADLINE:?}"))?;
        let output = output?.with_context(|| format!("running {name}"))?;
        if !output.status.success() {
            bail!(
                "{name} failed ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Returns the process id of the group's leader.
    pub fn pid(&self) -> u32 {
        self.child.lock().id()
    }

    /// Returns whether the leader is still running.
    pub fn is_running(&self) -> bool {
        matches!(self.child.lock().try_wait(), Ok(None))
    }

    /// Sends SIGKILL to the whole group, and waits until the leader has ended.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.child.lock();
        let group = Pid::from_raw(child.id().cast_signed());
        let _ = killpg(group, Signal::SIGCONT);
        let _ = killpg(group, Signal::SIGKILL);
        child.wait().context("waiting for a killed server")?;
        Ok(())
    }

    /// Sends SIGTERM to the group, for a regular shutdown.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Sends SIGSTOP: the process stays alive, but does not answer.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Sends SIGCONT: resumes after [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Returns the end of the server's output, for error messages.
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid();
        killpg(Pid::from_raw(pid.cast_signed()), signal)
            .with_context(|| format!("sending {signal} to {pid}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Returns a command prefix with `setpriv`, which sets the death signal and the user without unsafe
/// code here.
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

/// Spawns a command on a thread that never ends: the death signal is sent when the *thread* that
/// forked ends.
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

/// Returns a command that starts this test binary again, to run one of its tests as a helper
/// process. The helper should do nothing without certain environment variables. Its stdin and
/// stdout are piped.
pub fn helper(test: &str) -> Result<Command> {
    let mut helper = Command::new(std::env::current_exe()?);
    helper.args(["--exact", test, "--nocapture"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(helper)
}
