//! The five handles. A clone costs a few reference counts.

use std::sync::Arc;

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use scale_cache::Cache;
use scale_db::{Db, sticky};
use scale_limit::client::ClientIp;
use scale_limit::guard::login::{Limits, SendGuard};
use scale_limit::{Limiter, LoginGuard};
use scale_queue::{Job, Queue};
use scale_session::SessionLayer;
use scale_session::auth::audit::Event;
use scale_session::auth::token::Keys;
use scale_session::auth::{AccountLinks, OneTimeStore, Passkeys, Passwords, Records};
use scale_session::store::{Database as Pool, Options, System};
use sha2::{Digest, Sha256};
use sqlx::Any;

use crate::audit::Audit;
use crate::config::Config;
use crate::db;
use crate::jobs::SendReceipt;
use crate::mail::Mailer;
use crate::second_factors::SecondFactors;

/// Database handle; the address selects the system.
pub(crate) type Database = Db<Any>;

#[derive(Clone)]
pub(crate) struct App {
    pub(crate) db: Database,
    pub(crate) cache: Cache,
    pub(crate) queue: Queue,
    pub(crate) sessions: SessionLayer,
    pub(crate) limiter: Limiter,
    /// Guards passwords, and codes of second factors.
    pub(crate) logins: LoginGuard,
    pub(crate) codes: LoginGuard,
    /// Limits mails that strangers ask for.
    pub(crate) sign_ups: SendGuard,
    pub(crate) mailer: Mailer,
    pub(crate) passwords: Passwords,
    /// Passkeys, if the address that browsers use is configured.
    pub(crate) passkeys: Option<Passkeys>,
    /// Links in mails, if a secret to sign them is configured as well.
    pub(crate) links: Option<AccountLinks>,
    /// Second factors, if a secret is configured to encrypt them.
    pub(crate) second_factors: Option<SecondFactors>,
    /// Log of what staff has changed, if a secret is configured to seal it.
    pub(crate) audit: Option<Arc<Audit>>,
    /// Finds the address of a client.
    pub(crate) clients: ClientIp,
    /// `true` if the log-in page shows an account whose password everybody knows.
    pub(crate) is_demonstration: bool,
    /// `true` if cookies are also sent over plain HTTP.
    pub(crate) plain_http: bool,
}

/// Application name, which separates the shop's keys in Redis from those of others.
pub(crate) const NAME: &str = "shop";

impl App {
    pub(crate) async fn connect(config: &Config) -> Result<Self> {
        let session = if config.plain_http {
            let cookie = scale_session::CookiePolicy::default().insecure();
            config.session.settings.clone().cookie(cookie)
        } else {
            config.session.settings.clone()
        };
        let db = config.database.clone().connect().await.context("[database]")?;
        let limiter = Limiter::connect(&config.limit.url, NAME).await.context("[limit]")?;
        // One pool for the queue and the session stores, if they use the same database.
        let pool = match System::of(config.queue_url()) {
            Some(_) => Some(
                Pool::connect(config.queue_url(), &Options::default()).await.context("[queue]")?,
            ),
            None => None,
        };
        let queue = match &pool {
            Some(pool) => Queue::with_pool(pool.clone(), NAME).connect().await,
            None => Queue::connect(config.queue_url(), NAME).await,
        };
        let url = config.session_url();
        let pool = pool.filter(|_| config.queue_url() == url);
        let passkeys = match &config.origin {
            Some(origin) => {
                let records = match &pool {
                    Some(pool) => Records::with_pool(pool.clone(), NAME).await,
                    None => Records::connect(url, NAME).await,
                };
                let records = records.context("[session]")?;
                Some(Passkeys::new("Fathom & Field", origin, &records).context("origin")?)
            }
            None => None,
        };
        let one_time = match &pool {
            Some(pool) => OneTimeStore::with_pool(pool.clone(), NAME).await,
            None => OneTimeStore::connect(url, NAME).await,
        };
        let one_time = one_time.context("[session]")?;
        let links = match (&config.origin, &config.secret) {
            (Some(origin), Some(secret)) => Some(
                AccountLinks::new("Fathom & Field", origin, keys(secret, "links")?, &one_time)
                    .context("origin")?
                    .in_the_query(),
            ),
            _ => None,
        };
        let second_factors = match &config.secret {
            Some(secret) => Some(SecondFactors::new(&derived(secret, "second factors")?, one_time)),
            None => None,
        };
        let audit = match &config.secret {
            Some(secret) => {
                let nodes = db::from_primary(&db, config.nodes());
                let audit = Audit::connect(nodes, keys(secret, "audit")?).await;
                Some(Arc::new(audit.context("[database] audit log")?))
            }
            None => None,
        };
        let sessions = match &pool {
            Some(pool) => SessionLayer::with_pool(pool.clone(), NAME, session).await,
            None => SessionLayer::connect(url, NAME, session).await,
        };
        Ok(Self {
            passkeys,
            links,
            second_factors,
            audit,
            mailer: Mailer::new(&config.mail, &db).context("[mail]")?,
            db,
            cache: config.cache.clone().connect(NAME).await.context("[cache]")?,
            queue: queue.context("[queue]")?,
            sessions: sessions.context("[session]")?,
            logins: LoginGuard::new(&limiter, "login"),
            codes: LoginGuard::with_limits(&limiter, "code", &Limits::one_time_codes()),
            sign_ups: SendGuard::new(&limiter, "sign-up"),
            passwords: Passwords::new(),
            limiter,
            clients: config.clients.clone(),
            is_demonstration: false,
            plain_http: config.plain_http,
        })
    }

    /// Invalidates cached content after a write: later loads read it, also from replicas.
    pub(crate) async fn invalidate(&self, tags: impl IntoIterator<Item = String>) {
        match sticky::mark(&self.db).await {
            Some(mark) => self.cache.invalidate_tags_at(tags, &mark.to_bytes()).await,
            None => self.cache.invalidate_tags(tags).await,
        };
    }

    /// Records what a member of the staff does, if a log is kept.
    pub(crate) async fn record(&self, event: Event) -> Result<()> {
        match &self.audit {
            Some(audit) => audit.record(event).await,
            None => Ok(()),
        }
    }

    /// Checks that a database answers.
    pub(crate) async fn asks_database(&self) -> Result<()> {
        sqlx::query("select 1").fetch_one(&self.db).await.context("database").map(drop)
    }

    /// Checks that the store of the jobs answers.
    pub(crate) async fn asks_queue(&self) -> Result<()> {
        self.queue.stats(SendReceipt::QUEUE).await.context("queue").map(drop)
    }
}

/// Derives the keys of one purpose from the secret of the shop.
fn keys(secret: &str, purpose: &str) -> Result<Keys> {
    Keys::new(&derived(secret, purpose)?).context("secret")
}

fn derived(secret: &str, purpose: &str) -> Result<[u8; 32]> {
    let secret = HEXLOWER.decode(secret.as_bytes()).context("secret: hexadecimal digits")?;
    anyhow::ensure!(secret.len() == 32, "secret: 64 hexadecimal digits are needed");
    Ok(Sha256::new().chain_update(&secret).chain_update(purpose).finalize().into())
}
