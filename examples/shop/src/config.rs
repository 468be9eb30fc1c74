//! Settings that differ between the tiers. The rest of the shop is independent of the tier.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use scale_queue::store::System;
use serde::Deserialize;

use crate::mail;

/// The whole configuration; every part has a default for a laptop.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    /// Address of metrics and health checks for operators, which visitors must not reach. Default:
    /// none, and then there are no metrics.
    pub(crate) operations: Option<SocketAddr>,
    pub(crate) timeouts: Timeouts,
    pub(crate) stop: Stop,
    /// Sends cookies over plain HTTP as well: for development on the loopback interface.
    pub(crate) plain_http: bool,
    /// Address that browsers use, which passkeys are bound to: `https://shop.example.com`.
    pub(crate) origin: Option<String>,
    /// Secret of the shop: 64 hexadecimal digits, the same for all processes. It signs links in
    /// mails, encrypts second factors, and seals the audit log.
    pub(crate) secret: Option<String>,
    /// Proxies in front, whose forwarding headers are trusted.
    pub(crate) clients: scale_limit::client::ClientIp,
    pub(crate) database: scale_db::Config,
    pub(crate) cache: scale_cache::Config,
    pub(crate) queue: Queue,
    pub(crate) mail: mail::Config,
    pub(crate) session: Session,
    pub(crate) limit: Limit,
}

/// Time that clients get.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Timeouts {
    /// For the head of a request, also of the next one of a connection. Default: 20 s.
    #[serde(with = "humantime_serde")]
    pub(crate) head: Duration,
    /// Between two parts of a request's body. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub(crate) body_part: Duration,
    /// For a whole request until its response begins. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub(crate) request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let [head, body_part, request] = [20, 10, 30].map(Duration::from_secs);
        Self { head, body_part, request }
    }
}

/// End of a web process that is asked to stop.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Stop {
    /// Time for which the process still serves, but tells its load balancer that it leaves: longer
    /// than the balancer takes to notice. Default: zero.
    #[serde(with = "humantime_serde")]
    pub(crate) lameduck: Duration,
    /// Longest time for requests in progress after that. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub(crate) drain: Duration,
}

impl Default for Stop {
    fn default() -> Self {
        Self { lameduck: Duration::ZERO, drain: Duration::from_secs(10) }
    }
}

/// Queue of the shop: the store of its jobs, and how workers run. The store is the shop's own
/// database, or Redis: then jobs go there through an outbox.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Queue {
    /// Default: the database.
    url: Option<String>,
    pub(crate) concurrency: usize,
    /// Time without a heartbeat after which a worker's jobs are given to other workers.
    #[serde(with = "humantime_serde")]
    pub(crate) lease: Duration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Session {
    /// Default: the database.
    url: Option<String>,
    pub(crate) settings: scale_session::Config,
}

/// Limits of the shop. `login` limits how many password hashes an address can cause; the login
/// guard limits guessing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limit {
    pub(crate) url: String,
    pub(crate) site: scale_limit::Policy,
    pub(crate) login: scale_limit::Policy,
    /// Searches of a client.
    pub(crate) search: scale_limit::Policy,
    /// `true` if requests for catalogue pages are refused under overload.
    pub(crate) shed: bool,
}

/// File of the laptop tier, for rows, jobs and sessions.
const FILE: &str = "shop.db";
const DATABASE: &str = "sqlite://shop.db?mode=rwc";

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            operations: None,
            timeouts: Timeouts::default(),
            stop: Stop::default(),
            plain_http: false,
            origin: None,
            secret: None,
            clients: scale_limit::client::ClientIp::direct(),
            database: scale_db::Config::new(DATABASE),
            cache: scale_cache::Config::new("memory:"),
            queue: Queue::default(),
            mail: mail::Config::default(),
            session: Session::default(),
            limit: Limit::default(),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { url: None, concurrency: 8, lease: Duration::from_secs(30) }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            url: "memory:".into(),
            site: scale_limit::Policy::per_second("site", 100).burst(300),
            login: scale_limit::Policy::per_minute("login", 20),
            search: scale_limit::Policy::per_second("search", 2).burst(30),
            shed: false,
        }
    }
}

/// File of the secret on the laptop tier, beside the database.
const SECRET: &str = "shop.secret";

/// Reads the secret, which the first start makes.
fn kept_secret() -> Result<String> {
    let read = || match std::fs::read_to_string(SECRET) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    if let Some(secret) = read()? {
        return Ok(secret);
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let secret = data_encoding::HEXLOWER.encode(&secret);
    // The file appears whole, and only once, even if two processes start.
    let draft = format!("{SECRET}.{}", std::process::id());
    let mut file = std::fs::OpenOptions::new();
    let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(secret.as_bytes())?;
    let placed = std::fs::hard_link(&draft, SECRET);
    std::fs::remove_file(&draft)?;
    match placed {
        Ok(()) => Ok(secret),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read()?.context("it was removed"),
        Err(error) => Err(error.into()),
    }
}

impl Config {
    /// Returns the configuration for a single process with nothing to install.
    /// Browsers find it at `localhost`, which passkeys work with, unlike with an IP address.
    pub(crate) fn laptop(port: u16) -> Result<Self> {
        // For the owner only: the file has hashes of passwords.
        let mut file = std::fs::OpenOptions::new();
        file.append(true).create(true).mode(0o600).open(FILE).context(FILE)?;
        Ok(Self {
            plain_http: true,
            origin: Some(format!("http://localhost:{port}")),
            secret: Some(kept_secret().with_context(|| format!("`{SECRET}`"))?),
            ..Self::default()
        })
    }

    /// Returns the address of the store of jobs.
    pub(crate) fn queue_url(&self) -> &str {
        self.queue.url.as_deref().unwrap_or(&self.database.url)
    }

    /// Returns the address of the store of sessions.
    pub(crate) fn session_url(&self) -> &str {
        self.session.url.as_deref().unwrap_or(&self.database.url)
    }

    /// Checks what the parts need of each other.
    ///
    /// # Errors
    /// If orders and their jobs could not be written together.
    pub(crate) fn check(&self) -> Result<()> {
        let (database, queue) = (&self.database.url, self.queue_url());
        let is_elsewhere = System::of(queue).is_some() && queue != database;
        anyhow::ensure!(
            !is_elsewhere,
            "[queue] url: expected that of [database], or Redis: an order and its job are written \
             in one transaction"
        );
        if !self.mail.sends() && System::of(database) != Some(System::Sqlite) {
            tracing::warn!("[mail] neither `smtp` nor `folder`: mails are kept in the database");
        }
        if self.secret.is_none() || self.origin.is_none() {
            tracing::warn!(
                "without `secret` and `origin` there are no sign-ups, second factors and new \
                 passwords, and changes by staff are not recorded"
            );
        }
        Ok(())
    }

    /// Returns the addresses of the database's nodes.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let replicas = self.database.replicas.iter().map(|replica| replica.url.clone());
        std::iter::once(self.database.url.clone()).chain(replicas).collect()
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading `{}`", path.display()))?;
        // The parser's excerpt of the line could contain a password; its message and the line
        // number do not.
        toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            anyhow::anyhow!("{}, line {line}: {}", path.display(), e.message())
        })
    }
}
