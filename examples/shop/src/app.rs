//! The five handles. Cloning the app costs a few reference counts.

use std::time::Duration;

use anyhow::{Context, Result};
use scale_cache::Cache;
use scale_db::Db;
use scale_limit::client::ClientIp;
use scale_limit::{Limiter, LoginGuard};
use scale_queue::Queue;
use scale_session::SessionLayer;
use scale_session::auth::token::Keys;
use scale_session::auth::{AccountLinks, Ledger, Passkeys, Passwords, Records};
use sqlx::Any;

use crate::config::Config;

/// The database; which one is the address' business.
pub(crate) type Database = Db<Any>;

#[derive(Clone)]
pub(crate) struct App {
    pub(crate) db: Database,
    pub(crate) cache: Cache,
    pub(crate) queue: Queue,
    pub(crate) sessions: SessionLayer,
    pub(crate) limiter: Limiter,
    pub(crate) logins: LoginGuard,
    pub(crate) passwords: Passwords,
    /// Where the address that browsers see is known.
    pub(crate) passkeys: Option<Passkeys>,
    /// The same, and with a secret to sign them by.
    pub(crate) links: Option<AccountLinks>,
    /// Finds out who asks.
    pub(crate) clients: ClientIp,
    /// Cookies over plain HTTP too.
    pub(crate) plain_http: bool,
}

/// Sets the shop's keys in Redis apart from others'.
const NAME: &str = "shop";

impl App {
    pub(crate) async fn connect(config: &Config) -> Result<Self> {
        let session = if config.plain_http {
            let cookie = scale_session::CookiePolicy::default().insecure();
            config.session.settings.clone().cookie(cookie)
        } else {
            config.session.settings.clone()
        };
        let limiter = Limiter::connect(&config.limit.url, NAME).await.context("[limit]")?;
        let passkeys = match &config.origin {
            Some(origin) => {
                let records = Records::connect(&config.session.url, NAME).await.context("[session]")?;
                Some(Passkeys::new("Fathom & Field", origin, &records).context("origin")?)
            }
            None => None,
        };
        let links = match (&config.origin, &config.link_secret) {
            (Some(origin), Some(secret)) => {
                let secret = data_encoding::HEXLOWER.decode(secret.as_bytes()).context("link_secret: hexadecimal digits")?;
                let ledger = Ledger::connect(&config.session.url, NAME).await.context("[session]")?;
                let keys = Keys::new(&secret).context("link_secret")?;
                Some(AccountLinks::new("Fathom & Field", origin, keys, &ledger).context("origin")?.in_the_query())
            }
            _ => None,
        };
        Ok(Self {
            passkeys,
            links,
            db: config.database.clone().connect().await.context("[database]")?,
            cache: config.cache.clone().connect(NAME).await.context("[cache]")?,
            queue: Queue::connect(&config.queue.url, NAME).await.context("[queue]")?,
            sessions: SessionLayer::connect(&config.session.url, NAME, session).await.context("[session]")?,
            logins: LoginGuard::new(&limiter, "login"),
            passwords: Passwords::new(),
            limiter,
            clients: config.clients.clone(),
            plain_http: config.plain_http,
        })
    }

    /// Whether it can serve: a load balancer's question.
    pub(crate) async fn ready(&self) -> Result<()> {
        let ask = async {
            sqlx::query("select 1").fetch_one(&self.db).await.context("database")?;
            self.queue.queues().await.context("queue")?;
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(1), ask).await.context("no answer within a second")?
    }
}
