//! Settings that differ between a laptop and a fleet. `CONFIG` names the file; addresses that
//! contain passwords come from `QUEUE` and `SMTP`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Store of the jobs: `sqlite://…`, `postgres://…`, `redis://…`, Sentinel or Cluster.
    #[serde(default)]
    pub queue: String,
    /// Jobs that run at a time in this process.
    pub concurrency: usize,
    /// Address at which `/metrics` and `/health` answer.
    pub metrics: SocketAddr,
    #[serde(default)]
    pub json_logs: bool,
    pub mail: Mail,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    pub from: String,
    /// Folder into which mails are written, instead of being sent.
    pub folder: Option<PathBuf>,
    /// `smtps://user:password@host`.
    pub smtp: Option<String>,
}

impl Config {
    pub fn read() -> Result<Self> {
        let variable = |name| std::env::var(name).ok();
        let path = variable("CONFIG").unwrap_or_else(|| "config/laptop.toml".into());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading `{path}`"))?;
        let mut config: Self =
            toml::from_str(&text).with_context(|| format!("reading `{path}`"))?;
        config.queue = variable("QUEUE").unwrap_or(config.queue);
        config.mail.smtp = variable("SMTP").or(config.mail.smtp);
        Ok(config)
    }
}
