//! Store and workers, and the faults that are applied to them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scale_queue::Queue;
use testkit::{MariaDb, Postgres, Proxy, Redis};

use super::jobs::{APP, LEASE};
use super::journal::{self, Notes};
use super::{Setting, StoreKind, now_us};

const WORKERS: usize = 4;
/// Longest time a worker takes to stop.
const STOP: Duration = Duration::from_secs(30);

enum Server {
    Redis(Box<Redis>, Proxy),
    Postgres(Box<Postgres>, Proxy),
    MariaDb(Box<MariaDb>, Proxy),
    Sqlite,
}

/// A worker process.
struct Process {
    child: Child,
    path: PathBuf,
    stopped_us: Option<u64>,
    notes: Notes,
}

impl Process {
    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    fn resume(&mut self) -> Result<()> {
        if let Some(from) = self.stopped_us.take() {
            self.signal(Signal::SIGCONT)?;
            self.notes.stops_us.push((from, now_us()));
        }
        Ok(())
    }
}

/// Numbers of faults applied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Workers killed.
    pub kills: u32,
    /// Workers stopped for some time.
    pub stops: u32,
    /// Connections cut, reset, refused or delayed.
    pub cuts: u32,
    /// Servers killed and started again.
    pub restarts: u32,
}

/// Server and worker processes of a run.
pub(super) struct Fleet {
    server: Server,
    near: String,
    far: String,
    program: PathBuf,
    beside: Option<PathBuf>,
    folder: tempfile::TempDir,
    workers: Vec<Process>,
    gone: Vec<(PathBuf, Notes)>,
    counts: Counts,
    /// Times at which the server was killed: microseconds since 1970.
    crashes_us: Vec<u64>,
}

impl Fleet {
    pub(super) async fn start(setting: &Setting) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let redis = async |fsync: &str| -> Result<(Server, String, String)> {
            let server = Redis::start_with(&["--appendfsync", fsync]).await?;
            let proxy = Proxy::start(server.port()).await?;
            let (near, far) = (server.url(), format!("redis://127.0.0.1:{}", proxy.port()));
            Ok((Server::Redis(Box::new(server), proxy), near, far))
        };
        let (server, near, far) = match setting.store {
            StoreKind::RedisAlways => redis("always").await?,
            StoreKind::RedisEverysec => redis("everysec").await?,
            StoreKind::RedisNo => redis("no").await?,
            StoreKind::Postgres => {
                let server = Postgres::start(0).await?;
                let port = server.node(0).port();
                let proxy = Proxy::start(port).await?;
                let near = server.node(0).url();
                let far = near.replace(&format!(":{port}"), &format!(":{}", proxy.port()));
                (Server::Postgres(Box::new(server), proxy), near, far)
            }
            StoreKind::Mariadb => {
                let server = MariaDb::start(0).await?;
                let port = server.node(0).port();
                let proxy = Proxy::start(port).await?;
                let near = server.node(0).url();
                let far = near.replace(&format!(":{port}"), &format!(":{}", proxy.port()));
                (Server::MariaDb(Box::new(server), proxy), near, far)
            }
            StoreKind::Sqlite => {
                let url = format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display());
                (Server::Sqlite, url.clone(), url)
            }
        };
        let mut fleet = Self {
            server,
            near,
            far,
            program: setting.program.clone(),
            beside: setting.beside.clone(),
            folder,
            workers: Vec::new(),
            gone: Vec::new(),
            counts: Counts::default(),
            crashes_us: Vec::new(),
        };
        if let Some(beside) = &fleet.beside {
            fleet.begin_with(beside.clone()).await?;
        }
        let migrates =
            matches!(setting.store, StoreKind::Postgres | StoreKind::Mariadb | StoreKind::Sqlite);
        drop(Queue::builder(&fleet.near, APP).migrate(migrates).connect().await?);
        for _ in 0..WORKERS {
            fleet.add_worker()?;
        }
        Ok(fleet)
    }

    /// Prints what a database knows of lines, limits and workers, if jobs are left in one.
    #[expect(clippy::print_stderr, reason = "a run that has failed says why")]
    pub(super) async fn report_tables(&self) -> Result<()> {
        for table in ["lines", "permits", "rates", "workers", "queues"] {
            let rows = match &self.server {
                Server::MariaDb(server, _) => {
                    server.node(0).sql(&format!("select * from test.scale_queue_{table}")).await?
                }
                Server::Postgres(server, _) => {
                    server.node(0).sql(&format!("select * from scale_queue_{table}")).await?
                }
                _ => return Ok(()),
            };
            eprintln!("scale_queue_{table}:\n{rows}");
        }
        if let Server::MariaDb(server, _) = &self.server {
            let open = "select trx_id, trx_state, trx_started, trx_query, trx_rows_locked \
                from information_schema.innodb_trx";
            eprintln!("open transactions:\n{}", server.node(0).sql(open).await?);
        }
        Ok(())
    }

    /// Connects directly, so that faults of the network do not affect the connection.
    pub(super) async fn queue(&self) -> Result<Queue> {
        Ok(Queue::connect(&self.near, APP).await?)
    }

    /// Lets an earlier version create its tables first.
    async fn begin_with(&mut self, program: PathBuf) -> Result<()> {
        let current = std::mem::replace(&mut self.program, program);
        self.add_worker()?;
        let made =
            async || Queue::builder(&self.near, APP).migrate(false).connect().await.ok().map(drop);
        testkit::eventually("the tables of the earlier version", made).await?;
        self.program = current;
        Ok(())
    }

    fn add_worker(&mut self) -> Result<()> {
        let path =
            self.folder.path().join(format!("{}.journal", self.gone.len() + self.workers.len()));
        let number = self.gone.len() + self.workers.len();
        let program =
            self.beside.as_ref().filter(|_| number.is_multiple_of(2)).unwrap_or(&self.program);
        let mut command = Command::new(program);
        command
            .arg("queue-worker")
            .arg(&self.far)
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("{}", self.program.display()))?;
        self.workers.push(Process { child, path, stopped_us: None, notes: Notes::default() });
        Ok(())
    }

    /// Applies one fault, and waits until the next one is due.
    pub(super) async fn fault(&mut self, random: &mut fastrand::Rng) -> Result<()> {
        match random.u8(..10) {
            0..4 => self.kill_worker(random)?,
            4..6 => {
                let time = LEASE.mul_f64(0.2 + 2.0 * random.f64());
                let victim = random.usize(..self.workers.len());
                self.workers[victim].signal(Signal::SIGSTOP)?;
                self.workers[victim].stopped_us = Some(now_us());
                self.counts.stops += 1;
                tokio::time::sleep(time).await;
                self.workers[victim].resume()?;
            }
            6..9 => self.trouble_network(random).await,
            _ => self.restart_server().await?,
        }
        tokio::time::sleep(Duration::from_millis(random.u64(100..1_500))).await;
        Ok(())
    }

    fn kill_worker(&mut self, random: &mut fastrand::Rng) -> Result<()> {
        let mut victim = self.workers.swap_remove(random.usize(..self.workers.len()));
        victim.child.kill()?;
        victim.child.wait()?;
        victim.notes.killed_us = Some(now_us());
        self.gone.push((victim.path, victim.notes));
        self.counts.kills += 1;
        self.add_worker()
    }

    async fn trouble_network(&mut self, random: &mut fastrand::Rng) {
        let (Server::Redis(_, proxy) | Server::Postgres(_, proxy) | Server::MariaDb(_, proxy)) =
            &self.server
        else {
            return;
        };
        self.counts.cuts += 1;
        let time = LEASE.mul_f64(0.1 + 2.0 * random.f64());
        match random.u8(..4) {
            0 => return proxy.reset(),
            1 => proxy.cut(),
            2 => proxy.refuse(),
            _ => proxy.delay(Duration::from_millis(random.u64(1..100))),
        }
        tokio::time::sleep(time).await;
        proxy.heal();
    }

    async fn restart_server(&mut self) -> Result<()> {
        let from = now_us();
        match &self.server {
            Server::Redis(server, _) => server.restart().await?,
            Server::Postgres(server, _) => server.node(0).restart().await?,
            Server::MariaDb(server, _) => server.node(0).restart().await?,
            Server::Sqlite => return Ok(()),
        }
        self.counts.restarts += 1;
        self.crashes_us.extend([from, now_us()]);
        Ok(())
    }

    /// Ends all faults.
    pub(super) async fn heal(&mut self) -> Result<()> {
        if let Server::Redis(_, proxy) | Server::Postgres(_, proxy) | Server::MariaDb(_, proxy) =
            &self.server
        {
            proxy.heal();
        }
        self.workers.iter_mut().try_for_each(Process::resume)
    }

    /// Stops all workers cleanly.
    pub(super) async fn stop(&mut self) -> Result<()> {
        for worker in &self.workers {
            worker.signal(Signal::SIGTERM)?;
        }
        let deadline = Instant::now() + STOP;
        for mut worker in self.workers.drain(..) {
            while worker.child.try_wait()?.is_none() {
                anyhow::ensure!(Instant::now() < deadline, "a worker does not stop");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            self.gone.push((worker.path, worker.notes));
        }
        Ok(())
    }

    /// Returns the journals of all workers.
    pub(super) fn journals(&self) -> Result<Vec<Notes>> {
        let read = |(path, notes): &(PathBuf, Notes)| {
            // A worker that was killed before it began has none.
            let lines = if path.exists() { journal::read(path)? } else { Vec::new() };
            Ok(Notes { lines, ..notes.clone() })
        };
        self.gone.iter().map(read).collect()
    }

    pub(super) fn crashes_us(&self) -> &[u64] {
        &self.crashes_us
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            let _ = worker.child.kill();
            let _ = worker.child.wait();
        }
    }
}
