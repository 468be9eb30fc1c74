//! A small shop: one binary for a laptop and for a fleet.
//!
//! | module | contents |
//! | --- | --- |
//! | `config` | settings that differ between the tiers: addresses, nothing else |
//! | `app` | the five handles, made from the configuration |
//! | `db` | tables, sample data, queries |
//! | `pages` | web pages, one file per page |
//! | `jobs` | background jobs |
//! | `serve`, `work`, `cluster` | the processes |

mod app;
mod cluster;
mod config;
mod db;
mod jobs;
mod pages;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use scale_db::Dialect;
use tracing_subscriber::EnvFilter;

use crate::app::App;
use crate::config::Config;
use crate::db::users::{self, NewAccount, Role};

/// Without a command: web pages and jobs in one process, migrated. On an SQLite file this is a
/// demonstration: with sample products, and an account whose password everybody knows.
#[derive(Parser)]
#[command(name = "shop", version, about = "A small shop: one binary for a laptop and for a fleet")]
struct Arguments {
    /// A TOML file; see `config/` for examples.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// Address to listen on, for example 127.0.0.1:3000.
    #[arg(long, global = true)]
    listen: Option<std::net::SocketAddr>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves web pages only.
    Serve,
    /// Runs jobs only.
    Work,
    /// Creates the tables.
    Migrate,
    /// Creates the tables, and fills an empty catalogue with sample products.
    Seed,
    /// Creates an account. Its password is the first line of the input.
    Account {
        email: String,
        #[arg(long)]
        name: String,
        #[arg(long, value_enum, default_value = "customer")]
        role: Role,
    },
    /// Starts a fleet on this machine: Postgres with two replicas, Redis, two web processes and a
    /// worker.
    Cluster,
}

/// Runs the command line. The error is printed before this returns.
pub async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "warn,shop=info,scale_redis=error".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("shop: {}", told(&error));
            }
            ExitCode::FAILURE
        }
    }
}

/// Returns the error and its causes in one line. Many errors repeat their cause, which is printed
/// once.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, words| match told.as_str() {
        "" => words,
        told if told.contains(&words) => told.into(),
        told => format!("{told}: {words}"),
    })
}

async fn run(arguments: Arguments) -> Result<()> {
    if matches!(arguments.command, Some(Command::Cluster)) {
        return cluster::run(arguments.listen).await;
    }
    let mut config = match &arguments.config {
        Some(path) => Config::read(path)?,
        None => Config::laptop(),
    };
    if let Some(listen) = arguments.listen {
        config.listen = listen;
    }
    let alone = arguments.command.is_none();
    if !alone
        && arguments.config.is_none()
        && matches!(arguments.command, Some(Command::Serve | Command::Work))
    {
        bail!(
            "`serve` and `work` run as several processes, which need shared servers: pass \
             --config, or no command at all"
        );
    }
    if matches!(arguments.command, None | Some(Command::Migrate | Command::Seed)) {
        db::migrate(&config).await?;
    }
    if matches!(arguments.command, Some(Command::Migrate)) {
        return Ok(());
    }
    let mut app = App::connect(&config).await?;
    match arguments.command {
        Some(Command::Seed) => db::seed::products(&app.db).await.map(drop),
        Some(Command::Account { email, name, role }) => {
            let mut password = String::new();
            std::io::stdin().read_line(&mut password).context("reading the password")?;
            let password = password.trim_end_matches(['\r', '\n']);
            anyhow::ensure!(password.chars().count() >= 12, "a password has 12 characters or more");
            let new = NewAccount { email: &email, name: &name, role, password };
            let is_new = users::create(&app.db, &app.passwords, new).await?;
            anyhow::ensure!(is_new, "{email} has an account already");
            Ok(())
        }
        Some(Command::Serve) => serve::run(app, &config, stopped()).await,
        Some(Command::Work) => jobs::work(app, &config, stopped()).await,
        Some(Command::Cluster | Command::Migrate) => unreachable!("handled above"),
        None => {
            if app.db.dialect() == Dialect::Sqlite {
                db::seed::products(&app.db).await?;
                db::seed::demo_account(&app).await?;
                app.is_demonstration = true;
            }
            let (stop, heard) = tokio::sync::watch::channel(false);
            let stopping = move || {
                let mut heard = heard.clone();
                async move {
                    let _ = heard.wait_for(|stop| *stop).await;
                }
            };
            let (pages, work) = (
                serve::run(app.clone(), &config, stopping()),
                jobs::work(app, &config, stopping()),
            );
            let signal = async {
                stopped().await;
                stop.send_replace(true);
                Ok(())
            };
            tokio::try_join!(pages, work, signal).map(drop)
        }
    }
}

/// Completes on Ctrl-C or SIGTERM.
async fn stopped() {
    let mut terminate =
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(signal) => signal,
            Err(error) => {
                tracing::error!(%error, "installing the SIGTERM handler failed: stop with SIGKILL");
                return std::future::pending().await;
            }
        };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
