//! A fleet on this machine: Postgres with two replicas, Redis with Sentinels, web processes behind
//! HAProxy, workers. For exploring it, for measuring it, and for killing parts of it.

mod balancer;
mod member;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use testkit::{Postgres, RedisSentinel};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

pub(crate) use self::balancer::{Balancer, Traffic};
pub(crate) use self::member::Member;

/// Account of the staff, whose password is made at each start.
pub(crate) const STAFF: &str = "ann@example.com";

/// Size of a fleet.
pub(crate) struct Plan {
    /// Address of the balancer.
    pub(crate) listen: SocketAddr,
    pub(crate) webs: usize,
    pub(crate) workers: usize,
    /// Rest of the configuration, as TOML: `[limit]` without its address, and other tables.
    pub(crate) limits: &'static str,
}

pub(crate) struct Fleet {
    pub(crate) postgres: Postgres,
    pub(crate) redis: RedisSentinel,
    pub(crate) balancer: Balancer,
    pub(crate) webs: Vec<Member>,
    pub(crate) workers: Vec<Member>,
    /// Password of [`STAFF`].
    pub(crate) password: String,
    pub(crate) config: PathBuf,
    _folder: tempfile::TempDir,
}

impl Fleet {
    /// Starts everything, with sample products; returns when the balancer has a web process that is
    /// ready.
    pub(crate) async fn start(plan: &Plan) -> Result<Self> {
        let (postgres, redis) = tokio::try_join!(Postgres::start(2), RedisSentinel::start())?;
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("fleet.toml");
        std::fs::write(&config, configuration(&postgres, &redis, plan.limits))?;
        let shop = |words: &[&str]| {
            let mut command = std::process::Command::new(member::program()?);
            command.arg("--config").arg(&config).args(words);
            anyhow::Ok(command)
        };
        let seeded = Command::from(shop(&["seed"])?).status().await?;
        ensure!(seeded.success(), "`shop seed` failed: the tables could not be created");
        let password = uuid::Uuid::new_v4().to_string();
        let account = shop(&["account", STAFF, "--name", "Ann", "--role", "staff"])?;
        let mut account = Command::from(account).stdin(Stdio::piped()).spawn()?;
        let mut input = account.stdin.take().context("no input")?;
        input.write_all(format!("{password}\n").as_bytes()).await?;
        drop(input);
        ensure!(account.wait().await?.success(), "`shop account` failed");
        postgres.caught_up().await?;

        let mut webs = Vec::new();
        for n in 1..=plan.webs {
            let name = format!("web-{n}");
            webs.push(Member::start(&config, folder.path(), &name, Some("serve")).await?);
        }
        let mut workers = Vec::new();
        for n in 1..=plan.workers {
            let name = format!("worker-{n}");
            workers.push(Member::start(&config, folder.path(), &name, Some("work")).await?);
        }
        let balancer = Balancer::start(folder.path(), plan.listen, &webs).await?;
        Ok(Self { postgres, redis, balancer, webs, workers, password, config, _folder: folder })
    }

    /// Replaces the web processes one after the other: each leaves, ends, and its successor is
    /// ready before the next one leaves.
    pub(crate) async fn roll(&self) -> Result<()> {
        for web in &self.webs {
            web.replace().await?;
            self.balancer.has(web.name()).await?;
        }
        Ok(())
    }

    /// Ends all processes of the shop in their order.
    pub(crate) async fn stop(&self) -> Result<()> {
        for member in self.webs.iter().chain(&self.workers) {
            member.terminate()?;
        }
        for member in self.webs.iter().chain(&self.workers) {
            member.ended().await?;
        }
        Ok(())
    }
}

fn configuration(postgres: &Postgres, redis: &RedisSentinel, limits: &str) -> String {
    let replicas: Vec<_> = postgres.nodes()[1..].iter().map(|n| format!("{:?}", n.url())).collect();
    let (primary, replicas, redis) = (postgres.node(0).url(), replicas.join(", "), redis.url());
    let secret = data_encoding::HEXLOWER.encode(uuid::Uuid::new_v4().as_bytes()).repeat(2);
    format!(
        "plain_http = true\norigin = \"http://localhost:3000\"\nsecret = {secret:?}\n\
         clients = {{ trusted = [\"127.0.0.1/32\"], header = \"x-forwarded-for\" }}\n\n\
         [stop]\nlameduck = \"2s\"\ndrain = \"10s\"\n\n\
         [database]\nurl = {primary:?}\nreplicas = [{replicas}]\n\
         primary_wait = \"5s\"\n\n[cache]\nurl = {redis:?}\n\n\
         [queue]\nurl = {redis:?}\nlease = \"3s\"\n[mail]\ntakes = \"20ms\"\n\n\
         [session]\nurl = {redis:?}\n\n[limit]\nurl = {redis:?}\n{limits}"
    )
}
