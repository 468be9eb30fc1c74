//! Peers of other languages: scripts beside this crate, started as processes, printing one number.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::sync::OnceCell;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

/// `npm install`, once a run, if it has not been done.
async fn installed() -> Result<()> {
    static DONE: OnceCell<()> = OnceCell::const_new();
    DONE.get_or_try_init(|| async {
        if folder("node").join("node_modules").is_dir() {
            return Ok(());
        }
        let install =
            Command::new("npm").args(["install", "--no-audit", "--no-fund", "--silent"]).current_dir(folder("node")).status();
        ensure!(install.await.context("npm is missing: apt-get install -y nodejs npm")?.success(), "npm install failed");
        anyhow::Ok(())
    })
    .await
    .map(drop)
}

/// Runs a script of `peers/node` and returns the number it prints last.
pub(crate) async fn node(script: &str, arguments: impl AsRef<[String]>) -> Result<f64> {
    installed().await?;
    run("node", "node", script, arguments.as_ref(), "apt-get install -y nodejs npm").await
}

/// Runs a script of `peers/laravel` and returns the number it prints last.
pub(crate) async fn laravel(script: &str, arguments: impl AsRef<[String]>) -> Result<f64> {
    let install = "apt-get install -y --no-install-recommends php-cli php-redis php-laravel-framework";
    ensure!(std::path::Path::new("/usr/share/php/Illuminate").is_dir(), "Laravel is missing: {install}");
    run("php", "laravel", script, arguments.as_ref(), install).await
}

/// Runs a script of `peers/ruby` and returns the number it prints last.
pub(crate) async fn ruby(script: &str, arguments: impl AsRef<[String]>) -> Result<f64> {
    let install = "apt-get install -y --no-install-recommends ruby-sidekiq";
    ensure!(std::path::Path::new("/usr/bin/sidekiq").exists(), "Sidekiq is missing: {install}");
    run("ruby", "ruby", script, arguments.as_ref(), install).await
}

/// Runs this program anew, as the hidden command `words`, and returns the number it prints last.
pub(crate) async fn myself<const N: usize>(words: [&str; N]) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?).args(words).stdin(Stdio::null()).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

async fn run(program: &str, peers: &str, script: &str, arguments: &[String], install: &str) -> Result<f64> {
    let output = Command::new(program).arg(folder(peers).join(script)).args(arguments).stdin(Stdio::null()).output();
    let output = output.await.with_context(|| format!("{program} is missing: {install}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr).trim());
    text.split_whitespace()
        .next_back()
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("{script} printed no number: {text}"))
}
