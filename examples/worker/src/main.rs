//! A worker: jobs, a schedule, mails, metrics. `cargo run` works on an SQLite file;
//! `cargo run -- push ann@example.org` gives it a job, also while it runs.

mod config;
mod jobs;
mod mail;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use config::Config;
use jobs::{Digest, Welcome};
use mail::Mailer;
use metrics_exporter_prometheus::PrometheusBuilder;
use scale_queue::{Queue, Scheduler, Worker};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Separates this application's jobs from those of others in the same store.
const NAME: &str = "job-worker";
/// A job should begin at most that long after its push.
const TARGET: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let config = Config::read()?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.json_logs {
        log.json().init()
    } else {
        log.init()
    }
    match arguments[..] {
        [] => work(&config).await,
        ["push", to] => {
            let job = Welcome { to: to.to_owned() };
            let pushed = connect(&config).await?.push(job).await?;
            println!("job {}", pushed.id);
            Ok(())
        }
        ["migrate"] => {
            Queue::builder(&config.queue, NAME).migrate(true).connect().await?;
            Ok(())
        }
        _ => bail!("usage: job-worker [push ADDRESS | migrate]"),
    }
}

async fn connect(config: &Config) -> Result<Queue> {
    Queue::connect(&config.queue, NAME).await.context("queue")
}

/// Runs jobs until the process is asked to stop.
async fn work(config: &Config) -> Result<()> {
    PrometheusBuilder::new().with_http_listener(config.metrics).install().context("metrics")?;
    let queue = connect(config).await?;
    let worker = Worker::new(&queue)
        .queues(["mail", "default"])
        .concurrency(config.concurrency)
        .with_state(Mailer::new(&config.mail)?)
        .handle(jobs::welcome)
        .handle(jobs::digest);
    // In every process: the job of each run is pushed once.
    let scheduler = Scheduler::new(&queue)
        .cron("digest", "0 7 * * *", "Europe/Zurich", || Digest)?
        .catch_up(Duration::from_hours(1));
    let (stop, stopping) = watch::channel(());
    let mut terminate = signal(SignalKind::terminate())?;
    let asked = async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        drop(stop);
    };
    let until = |mut stopping: watch::Receiver<()>| async move { stopping.changed().await };
    // The same numbers from every process; a dashboard takes one of them.
    let observe = async {
        tokio::select! {
            () = queue.observe(TARGET) => {}
            _ = until(stopping.clone()) => {}
        }
    };
    let schedule = scheduler.run(until(stopping.clone()));
    let (worked, ..) = tokio::join!(worker.run(until(stopping.clone())), schedule, observe, asked);
    Ok(worked?)
}
