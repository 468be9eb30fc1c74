//! Peers of other languages: scripts beside this crate, started as processes, printing one number.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::sync::OnceCell;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers/node")
}

/// `npm install`, once a run, if it has not been done.
async fn installed() -> Result<()> {
    static DONE: OnceCell<()> = OnceCell::const_new();
    DONE.get_or_try_init(|| async {
        if folder().join("node_modules").is_dir() {
            return Ok(());
        }
        let install = Command::new("npm").args(["install", "--no-audit", "--no-fund", "--silent"]).current_dir(folder()).status();
        ensure!(install.await.context("npm is missing: apt-get install -y nodejs npm")?.success(), "npm install failed");
        anyhow::Ok(())
    })
    .await
    .map(drop)
}

/// Runs a script of `peers/node` and returns the number it prints last.
pub(crate) async fn node(script: &str, arguments: &[String]) -> Result<f64> {
    installed().await?;
    let output = Command::new("node")
        .arg(folder().join(script))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("node is missing: apt-get install -y nodejs npm")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr).trim());
    text.split_whitespace()
        .next_back()
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("{script} printed no number: {text}"))
}
