//! A fleet on one machine: real servers, two web processes, a worker. For exploring, and for
//! killing parts of it.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};
use testkit::{Postgres, Process, Redis, eventually};
use tokio::io::AsyncWriteExt;

/// Account of the staff, whose password is made at each start.
const ACCOUNT: &str = "ann@example.com";

/// Port of the first web process; the second one uses the next port.
const PORT: u16 = 3000;

#[allow(clippy::print_stdout)]
pub(crate) async fn run(listen: Option<SocketAddr>) -> Result<()> {
    println!("Starting Postgres with two replicas, and Redis …");
    let (postgres, redis) = tokio::try_join!(Postgres::start(2), Redis::start())?;
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("fleet.toml");
    std::fs::write(&config, configuration(&postgres, &redis))?;
    let shop = std::env::current_exe()?;
    let command = |words: &[&str]| {
        let mut command = Command::new(&shop);
        command.arg("--config").arg(&config).args(words);
        if let Some(filter) = std::env::var_os("RUST_LOG") {
            command.env("RUST_LOG", filter);
        }
        command
    };
    let seeded = tokio::process::Command::from(command(&["seed"])).status().await?;
    anyhow::ensure!(seeded.success(), "`shop seed` failed: the tables could not be created");

    let password = uuid::Uuid::new_v4().to_string();
    let account = ["account", ACCOUNT, "--name", "Ann", "--role", "staff"];
    let mut account = tokio::process::Command::from(command(&account))
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let mut input = account.stdin.take().context("no input")?;
    input.write_all(format!("{password}\n").as_bytes()).await?;
    drop(input);
    anyhow::ensure!(account.wait().await?.success(), "`shop account` failed");

    let first = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], PORT)));
    let second = SocketAddr::new(first.ip(), if first.port() == 0 { 0 } else { first.port() + 1 });
    let start = |name: &str, words: &[&str]| {
        let log = folder.path().join(name);
        Process::spawn(&command(words), None, &log).map(|process| (process, log))
    };
    let webs = [
        start("web-1.log", &["serve", "--listen", &first.to_string()])?,
        start("web-2.log", &["serve", "--listen", &second.to_string()])?,
    ];
    let (worker, worker_log) = start("worker.log", &["work"])?;
    for (web, log) in &webs {
        let address = eventually("a web process to open", async || {
            if !web.is_running() {
                return Some(Err(web.log_tail()));
            }
            let text = std::fs::read_to_string(log).ok()?;
            text.lines()
                .find_map(|line| line.strip_prefix("The shop is open: ").map(|a| Ok(a.to_owned())))
        })
        .await?
        .map_err(anyhow::Error::msg)
        .context("a web process ended during its start")?;
        println!("web       {address}   (process {})", web.pid());
    }
    println!("worker    process {}, its log: {}", worker.pid(), worker_log.display());
    println!("primary   {}", postgres.node(0).url());
    for replica in &postgres.nodes()[1..] {
        println!("replica   {}", replica.url());
    }
    println!("redis     {}", redis.url());
    println!("config    {}", config.display());
    println!("log in as {ACCOUNT}, password {password}");
    println!("Press Ctrl-C to stop everything.");
    super::stopped().await;
    println!("Stopping …");
    for process in webs.iter().map(|(web, _)| web).chain([&worker]) {
        let _ = process.terminate();
    }
    eventually("the processes to end", async || {
        (!worker.is_running() && webs.iter().all(|(w, _)| !w.is_running())).then_some(())
    })
    .await
}

fn configuration(postgres: &Postgres, redis: &Redis) -> String {
    let replicas: Vec<_> = postgres.nodes()[1..].iter().map(|n| format!("{:?}", n.url())).collect();
    let (primary, replicas, redis) = (postgres.node(0).url(), replicas.join(", "), redis.url());
    format!(
        "plain_http = true\n\n[database]\nurl = {primary:?}\nreplicas = [{replicas}]\n\n[cache]\n\
         url = {redis:?}\n\n\
         [queue]\nurl = {redis:?}\nlease = \"3s\"\n\n[session]\nurl = {redis:?}\n\n[limit]\n\
         url = {redis:?}\n"
    )
}
