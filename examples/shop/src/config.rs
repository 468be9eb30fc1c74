//! What differs between the tiers. The rest of the shop does not know which one it runs on.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The whole configuration; every part has the laptop's default.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    /// Cookies over plain HTTP too: for development on the loopback interface.
    pub(crate) plain_http: bool,
    /// The address that browsers see, which passkeys are for: `https://shop.example.com`.
    pub(crate) origin: Option<String>,
    /// 64 hexadecimal digits that links in mails are signed by, the same for all processes. Without them, or an origin, nobody can ask for
    /// a new password.
    pub(crate) link_secret: Option<String>,
    /// Proxies in front, whose forwarding headers are believed.
    pub(crate) clients: scale_limit::client::ClientIp,
    pub(crate) database: scale_db::Config,
    pub(crate) cache: scale_cache::Config,
    pub(crate) queue: Queue,
    pub(crate) session: Session,
    pub(crate) limit: Limit,
}

/// Where jobs are, and how they are worked off. In the shop's own database, or in Redis: then they go there through an outbox.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Queue {
    pub(crate) url: String,
    pub(crate) concurrency: usize,
    /// After so long without a sign of life a worker's jobs are given to others.
    #[serde(with = "humantime_serde")]
    pub(crate) lease: Duration,
    /// What sending a mail takes, since this shop sends none.
    #[serde(with = "humantime_serde")]
    pub(crate) mail_takes: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Session {
    pub(crate) url: String,
    pub(crate) settings: scale_session::Config,
}

/// What nobody may do too often. `login` bounds what an address makes the server hash; guessing is bounded by the login guard.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limit {
    pub(crate) url: String,
    pub(crate) site: scale_limit::Policy,
    pub(crate) login: scale_limit::Policy,
    /// Whether looking around is put off when there is more to do than can be done.
    pub(crate) shed: bool,
}

/// The laptop's file, for rows, jobs and sessions.
const DATABASE: &str = "sqlite://shop.db?mode=rwc";

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            plain_http: false,
            origin: None,
            link_secret: None,
            clients: scale_limit::client::ClientIp::direct(),
            database: scale_db::Config::new(DATABASE),
            cache: scale_cache::Config::new("memory:"),
            queue: Queue::default(),
            session: Session::default(),
            limit: Limit::default(),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { url: DATABASE.into(), concurrency: 8, lease: Duration::from_secs(30), mail_takes: Duration::from_millis(300) }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self { url: DATABASE.into(), settings: scale_session::Config::default() }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            url: "memory:".into(),
            site: scale_limit::Policy::per_second("site", 100).burst(300),
            login: scale_limit::Policy::per_minute("login", 20),
            shed: false,
        }
    }
}

impl Config {
    /// One process, nothing to install.
    pub(crate) fn laptop() -> Self {
        // Links end with the process, as they may on a laptop.
        let mut secret = [0; 32];
        let link_secret = getrandom::fill(&mut secret).ok().map(|()| data_encoding::HEXLOWER.encode(&secret));
        Self { plain_http: true, origin: Some("http://localhost:3000".into()), link_secret, ..Self::default() }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        // The parser's picture of the line could hold a password; its words and the place do not.
        toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            anyhow::anyhow!("{}, line {line}: {}", path.display(), e.message())
        })
    }
}
