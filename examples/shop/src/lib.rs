//! A small shop: one binary for a laptop and for a fleet.
//!
//! | module | contents |
//! | --- | --- |
//! | `config` | settings that differ between the tiers: addresses, nothing else |
//! | `app` | the five handles, made from the configuration |
//! | `audit` | the log of what staff has changed |
//! | `db` | tables, sample data, queries |
//! | `pages` | web pages, one file per page |
//! | `jobs` | background jobs |
//! | `operations` | metrics and health checks |
//! | `serve` | the web process |
//! | `fleet`, `cluster` | a fleet on this machine |
//! | `load`, `plan` | a load of visitors; what a number of users needs |

mod app;
mod audit;
mod cluster;
mod config;
mod db;
mod fleet;
mod jobs;
mod load;
mod mail;
mod operations;
mod pages;
mod plan;
mod second_factors;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use scale_db::Dialect;
use scale_session::auth::audit::Event;
use scale_session::auth::password::Rules;
use tracing_subscriber::EnvFilter;

use crate::app::App;
use crate::config::Config;
use crate::db::users::{self, NewAccount, Role};
use crate::operations::Operations;
use crate::operations::health::{self, Health};

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
    /// Address of metrics and health checks, for example 127.0.0.1:9100.
    #[arg(long, global = true)]
    operations: Option<std::net::SocketAddr>,
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
    /// Checks that no record of the audit log was changed; prints its end, to be kept elsewhere.
    Audit {
        /// End of the log at an earlier check: then it is also seen if last records are missing.
        #[arg(long)]
        anchor: Option<String>,
    },
    /// Starts a fleet on this machine: Postgres with two replicas, Redis with Sentinels, web
    /// processes behind HAProxy, workers, and customers; with a live page and buttons that break
    /// parts of it.
    Cluster(cluster::Options),
    /// Measures a shop under a mixed load of fixed rates.
    Load(load::Options),
    /// Computes what a number of users needs, from the cost of a request on this machine.
    Plan(plan::Options),
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
pub(crate) fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, words| match told.as_str() {
        "" => words,
        told if told.contains(&words) => told.into(),
        told => format!("{told}: {words}"),
    })
}

async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { config, listen, operations, command } = arguments;
    let command = match command {
        Some(Command::Cluster(options)) => return cluster::run(listen, options).await,
        Some(Command::Load(options)) => return load::run(options).await,
        Some(Command::Plan(options)) => return plan::run(options).await,
        command => command,
    };
    let is_one_of_many = matches!(command, Some(Command::Serve | Command::Work));
    if is_one_of_many && config.is_none() {
        bail!(
            "`serve` and `work` run as several processes, which need shared servers: pass \
             --config, or no command at all"
        );
    }
    let mut config = match &config {
        Some(path) => Config::read(path)?,
        None => Config::laptop(listen.map_or(3000, |listen| listen.port()))?,
    };
    config.check()?;
    config.listen = listen.unwrap_or(config.listen);
    config.operations = operations.or(config.operations);
    match command {
        None => {
            db::migrate(&config).await?;
            let operations = Operations::listen(config.operations).await?;
            alone(App::connect(&config).await?, &config, operations).await
        }
        Some(Command::Serve) => {
            let operations = Operations::listen(config.operations).await?;
            let app = App::connect(&config).await?;
            let health = Health::new(&app, health::Role::Web);
            let pages = serve::run(app.clone(), &config, health.clone(), stopped());
            operations.during(app, health, pages).await
        }
        Some(Command::Work) => {
            let operations = Operations::listen(config.operations).await?;
            let app = App::connect(&config).await?;
            let health = Health::new(&app, health::Role::Worker);
            let work = jobs::work(app.clone(), &config, health.clone(), stopped());
            operations.during(app, health, work).await
        }
        Some(Command::Migrate) => db::migrate(&config).await,
        Some(Command::Seed) => {
            db::migrate(&config).await?;
            let app = App::connect(&config).await?;
            db::seed::products(&app.db).await.map(drop)
        }
        Some(Command::Account { email, name, role }) => {
            db::migrate(&config).await?;
            account(&App::connect(&config).await?, &email, &name, role).await
        }
        Some(Command::Audit { anchor }) => audit(&App::connect(&config).await?, anchor).await,
        Some(Command::Cluster(_) | Command::Load(_) | Command::Plan(_)) => {
            unreachable!("handled above")
        }
    }
}

/// Runs pages and jobs in this process until it is asked to stop.
async fn alone(mut app: App, config: &Config, operations: Operations) -> Result<()> {
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
    let health = Health::new(&app, health::Role::Alone);
    let (pages, work) = (
        serve::run(app.clone(), config, health.clone(), stopping()),
        jobs::work(app.clone(), config, health.clone(), stopping()),
    );
    let signal = async {
        stopped().await;
        stop.send_replace(true);
        Ok(())
    };
    let work = async { tokio::try_join!(pages, work, signal).map(drop) };
    operations.during(app, health, work).await
}

/// Creates an account, whose password is the first line of the input.
async fn account(app: &App, email: &str, name: &str, role: Role) -> Result<()> {
    let email = users::address(email);
    ensure!(users::is_address(&email), "expected an e-mail address, not “{email}”");
    ensure!(!name.trim().is_empty(), "--name: expected a name");
    let mut password = String::new();
    std::io::stdin().read_line(&mut password).context("reading the password")?;
    let password = password.trim_end_matches(['\r', '\n']);
    Rules::default().check(password, &[&email]).context("the password")?;
    let event = Event::new("command line", "account.create");
    app.record(event.to(&*email).details(format!("{role:?}"))).await?;
    let hash = app.passwords.hash(password).await?;
    let new = NewAccount { email: &email, name, role, hash };
    let is_new = users::create(&app.db, new).await?;
    ensure!(is_new, "{email} has an account already");
    Ok(())
}

#[allow(clippy::print_stdout)]
async fn audit(app: &App, anchor: Option<String>) -> Result<()> {
    let log = app.audit.as_ref().context("the configuration has no `secret`: no log is kept")?;
    let anchor = anchor.map(|text| text.parse()).transpose().context("--anchor")?;
    match log.verify(anchor).await? {
        Ok((count, end)) => println!("{count} records, unchanged. Anchor: {end}"),
        Err(tampered) => bail!("the audit log was changed: {tampered}"),
    }
    Ok(())
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
