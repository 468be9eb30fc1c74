//! Servers and processes, and the faults that are applied to them.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::{Postgres, Proxy, eventually};

use super::{Setting, journal, now_us};

const PROCESSES: usize = 3;
const NODES: usize = 3;

/// A failover that has happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promotion {
    pub(super) at: u64,
    pub(super) port: u16,
}

/// A connection between a process and a node that was silent for some time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) process: usize,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Numbers of faults applied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) promotions: u32,
    pub(super) leftovers: u32,
    pub(super) others: u32,
}

/// Servers and processes of a run.
pub(super) struct Cluster {
    pub(super) pg: Postgres,
    /// Number of the current primary.
    pub(super) primary: usize,
    pub(super) promotions: Vec<Promotion>,
    pub(super) cuts: Vec<Cut>,
    pub(super) counts: Counts,
    pub(super) folder: tempfile::TempDir,
    /// Proxies of each process, one to each node.
    ways: Vec<Vec<Proxy>>,
    processes: Vec<Child>,
    setting: Setting,
}

impl Cluster {
    pub(super) async fn start(setting: &Setting) -> Result<Self> {
        let pg = Postgres::start(NODES - 1).await?;
        pg.node(0)
            .sql("create table writes (id bigint primary key); create table tokens (n bigint)")
            .await?;
        pg.caught_up().await?;
        let mut ways = Vec::new();
        for _ in 0..PROCESSES {
            let mut own = Vec::new();
            for node in pg.nodes() {
                own.push(Proxy::start(node.port()).await?);
            }
            ways.push(own);
        }
        let promotions = vec![Promotion { at: 0, port: pg.node(0).port() }];
        let mut cluster = Self {
            pg,
            primary: 0,
            promotions,
            cuts: Vec::new(),
            counts: Counts::default(),
            folder: tempfile::tempdir()?,
            ways,
            processes: Vec::new(),
            setting: setting.clone(),
        };
        for number in 0..PROCESSES {
            let child = cluster.spawn(number)?;
            cluster.processes.push(child);
        }
        cluster.working().await?;
        Ok(cluster)
    }

    fn spawn(&self, number: usize) -> Result<Child> {
        let urls = self.ways[number]
            .iter()
            .map(|way| format!("postgres://postgres@127.0.0.1:{}/postgres", way.port()));
        Command::new(&self.setting.program)
            .args(["db-app", &number.to_string(), &PROCESSES.to_string()])
            .arg(self.folder.path())
            .args(urls)
            .stdin(Stdio::null())
            .spawn()
            .context("starting a process")
    }

    /// Waits until each process has written to the current primary.
    async fn working(&self) -> Result<()> {
        let (from, port) = (now_us(), self.pg.node(self.primary).port());
        for number in 0..PROCESSES {
            let path = journal::path(self.folder.path(), number);
            let wrote = |entry: &journal::Entry| {
                let journal::Entry::Wrote { began, port: at, .. } = entry else { return false };
                *began > from && *at == port
            };
            eventually("a process to write", async || {
                journal::tail(&path).ok()?.iter().any(wrote).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// Applies one fault, and repairs it.
    pub(super) async fn fault(&mut self, random: &mut fastrand::Rng) -> Result<()> {
        let replica = (self.primary + random.usize(1..NODES)) % NODES;
        let while_ms =
            |random: &mut fastrand::Rng, most: u64| Duration::from_millis(random.u64(300..most));
        match random.u32(..10) {
            0..4 => self.promote(replica, random).await?,
            4 => {
                self.counts.others += 1;
                self.pg.node(replica).pause_replay().await?;
                tokio::time::sleep(while_ms(random, 6_000)).await;
                self.pg.node(replica).resume_replay().await?;
            }
            5 => {
                self.counts.others += 1;
                self.pg.node(replica).freeze()?;
                tokio::time::sleep(while_ms(random, 4_000)).await;
                self.pg.node(replica).thaw()?;
            }
            6 => {
                self.counts.others += 1;
                self.pg.node(replica).restart().await?;
            }
            7 => {
                self.counts.others += 1;
                self.pg.node(self.primary).freeze()?;
                tokio::time::sleep(while_ms(random, 3_000)).await;
                self.pg.node(self.primary).thaw()?;
            }
            8 => {
                self.counts.others += 1;
                let (process, node) = (random.usize(..PROCESSES), random.usize(..NODES));
                let from = now_us();
                self.ways[process][node].cut();
                tokio::time::sleep(while_ms(random, 4_000)).await;
                self.ways[process][node].heal();
                self.cuts.push(Cut { process, from, to: now_us() });
            }
            _ => {
                self.counts.others += 1;
                let number = random.usize(..PROCESSES);
                self.processes[number].kill()?;
                self.processes[number].wait()?;
                self.processes[number] = self.spawn(number)?;
            }
        }
        tokio::time::sleep(while_ms(random, 1_500)).await;
        Ok(())
    }

    /// Promotes a replica; the old primary dies, freezes, or continues to run, with or without a
    /// replica that follows it.
    async fn promote(&mut self, new: usize, random: &mut fastrand::Rng) -> Result<()> {
        self.counts.promotions += 1;
        let (old, third) = (
            self.primary,
            (0..NODES).find(|n| *n != self.primary && *n != new).context("a third")?,
        );
        let fate = random.u32(..3);
        match fate {
            0 => self.pg.node(old).kill()?,
            1 => self.pg.node(old).freeze()?,
            _ => self.counts.leftovers += 1,
        }
        self.pg.node(new).promote().await?;
        self.promotions.push(Promotion { at: now_us(), port: self.pg.node(new).port() });
        self.primary = new;
        let follows = random.bool();
        if follows {
            tokio::time::sleep(Duration::from_millis(random.u64(..1_000))).await;
            self.pg.node(third).follow(self.pg.node(new)).await?;
        }
        if fate == 1 {
            tokio::time::sleep(Duration::from_millis(random.u64(500..4_000))).await;
            self.pg.node(old).thaw()?;
        }
        if fate != 0 {
            // A client that missed the failover still writes to the stale primary.
            let _ = self
                .pg
                .node(old)
                .sql("create table if not exists astray as select generate_series(1, 20000)")
                .await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(500..5_000))).await;
        self.pg.node(old).rejoin(self.pg.node(new)).await?;
        // This replica may have followed the stale primary beyond the failover, and would then
        // never receive new writes.
        if !follows || !self.sees_what_is_written(third, 40).await? {
            self.pg.node(third).rejoin(self.pg.node(new)).await?;
        }
        for replica in [old, third] {
            ensure!(self.sees_what_is_written(replica, 600).await?, "a replica does not follow");
        }
        Ok(())
    }

    /// Returns whether a replica shows a write to the primary within `patience` twentieths of a
    /// second.
    async fn sees_what_is_written(&self, replica: usize, patience: u32) -> Result<bool> {
        let token = fastrand::u64(..) >> 1;
        self.pg.node(self.primary).sql(&format!("insert into tokens values ({token})")).await?;
        for _ in 0..patience {
            let seen = self
                .pg
                .node(replica)
                .sql(&format!("select count(*) from tokens where n = {token}"))
                .await;
            if seen.is_ok_and(|seen| seen == "1") {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(false)
    }

    /// Lets every process write once more, and stops the processes.
    pub(super) async fn settle(&mut self) -> Result<()> {
        self.working().await?;
        for process in &mut self.processes {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    pub(super) fn journals(&self) -> Result<Vec<Vec<journal::Entry>>> {
        (0..PROCESSES)
            .map(|number| journal::read(&journal::path(self.folder.path(), number)))
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
