//! One-time events of a fleet: claims, exchanges of token families, counters.
//!
//! | entry | in Redis | in SQL | kept until |
//! | --- | --- | --- | --- |
//! | a claim | `{app}:auth:{<hash>}:c`, a string | a row of `scale_ledger` | the time given by the caller has passed |
//! | a token family | `{app}:auth:{<hash>}:f`, a hash: the number of the next exchange, and the time of the last one | a row of `scale_ledger` | the end of the family |
//! | a counter | `{app}:auth:{<hash>}:n`, a string | a row of `scale_ledger` | the last requested time has passed |
//!
//! Names are hashed: the store contains neither codes nor account names.

mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sql")]
mod sql;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

pub use self::memory::MemoryLedger;
#[cfg(feature = "redis")]
pub use self::redis::RedisLedger;
#[cfg(feature = "sql")]
pub use self::sql::SqlLedger;
#[cfg(feature = "sql")]
pub(crate) use self::sql::Texts;
use super::error::Error;

/// Result of advancing a token family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FamilyAdvance {
    /// The number was the next one, or one of the last few within the grace time. Contains the
    /// number to issue.
    Taken(u64),
    /// The number was used before; the family is closed now.
    Repeated,
    /// There is no such family.
    Gone,
}

/// Store of one-time events. Every method is atomic.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Claims a key for `time`. Returns `false` if the key is claimed already.
    async fn claim(&self, key: &str, time: Duration) -> Result<bool, Error>;

    /// Returns whether a key is claimed.
    async fn claimed(&self, key: &str) -> Result<bool, Error>;

    /// Begins a family at number 0, for `time`.
    async fn open(&self, key: &str, time: Duration) -> Result<(), Error>;

    /// Advances a family by its number `turn`. The last three numbers are accepted again for
    /// `grace` after the last advance; any other number that was used before closes the family.
    async fn turn(&self, key: &str, turn: u64, grace: Duration) -> Result<FamilyAdvance, Error>;

    /// Ends a family.
    async fn close(&self, key: &str) -> Result<(), Error>;

    /// Returns a counter's value, 0 if there is none. Keeps an existing counter for `keep` from now
    /// on.
    async fn count(&self, key: &str, keep: Option<Duration>) -> Result<u64, Error>;

    /// Adds one to a counter, keeps it for `keep` from now on, and returns its value.
    async fn advance(&self, key: &str, keep: Duration) -> Result<u64, Error>;
}

/// Handle to a one-time store. A clone costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use std::time::Duration;
/// use scale_session::auth::OneTimeStore;
///
/// // or OneTimeStore::connect("redis://…" or "postgres://…" or "sqlite://…", "shop")
/// let one_time = OneTimeStore::memory();
/// assert!(one_time.claim("invitation", "abc", Duration::from_secs(3_600)).await?);
/// assert!(!one_time.claim("invitation", "abc", Duration::from_secs(3_600)).await?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct OneTimeStore {
    store: Arc<dyn Store>,
    app: Arc<str>,
}

impl OneTimeStore {
    /// Uses the given store.
    pub fn new(store: impl Store) -> Self {
        Self { store: Arc::new(store), app: "".into() }
    }

    /// Creates a store of this process alone.
    pub fn memory() -> Self {
        Self::new(MemoryLedger::default())
    }

    /// Picks the store by its address, as [`SessionLayer::connect`](crate::SessionLayer::connect)
    /// does.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unsupported address; [`Error::OneTimeStore`] if the server does
    /// not answer.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        match url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Self::memory()),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let redis = scale_redis::Redis::connect(url)
                    .await
                    .map_err(|e| Error::OneTimeStore(Box::new(e)))?;
                redis.warn_of_eviction("used one-time tokens (which are then valid again)").await;
                Ok(Self::new(RedisLedger::new(redis, app)).of(app))
            }
            #[cfg(feature = "sql")]
            _ if scale_sql::System::of(url).is_some() => {
                Ok(Self::new(SqlLedger::connect(url, app).await?).of(app))
            }
            _ => {
                let _ = app;
                Err(Error::Setting(
                    "unsupported address of a one-time store: expected memory:, redis:, postgres:, \
                     mysql: or sqlite:",
                ))
            }
        }
    }

    /// Uses a database, through the application's own pool: a `PgPool`, a `MySqlPool` or an
    /// `SqlitePool`. The table must exist, see [`migrate`](crate::store::migrate).
    ///
    /// # Errors
    /// [`Error::Schema`] if the table is older or newer than this version needs;
    /// [`Error::OneTimeStore`] if the database does not answer.
    #[cfg(feature = "sql")]
    pub async fn with_pool(pool: impl Into<scale_sql::Database>, app: &str) -> Result<Self, Error> {
        Ok(Self::new(SqlLedger::with_pool(pool, app).await?).of(app))
    }

    /// Claims a key for `time`. Returns `false` if the key was claimed before, anywhere in the
    /// fleet. `scope` separates kinds of keys.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the answer is unknown. Refuse access.
    pub async fn claim(&self, scope: &str, key: &str, time: Duration) -> Result<bool, Error> {
        self.store.claim(&hashed(scope, key), time).await
    }

    /// Does the same for claims that limit a rate. In memory they are counted separately: a flood
    /// of them affects nothing else.
    pub(super) async fn count_off(
        &self,
        scope: &str,
        key: &str,
        time: Duration,
    ) -> Result<bool, Error> {
        self.store.claim(&format!("{LIMIT}{}", hashed(scope, key)), time).await
    }

    #[cfg(any(feature = "redis", feature = "sql"))]
    fn of(self, app: &str) -> Self {
        Self { app: app.into(), ..self }
    }

    /// Returns the binding of this application's tokens, combined with `bound`: a token of another
    /// application is invalid here, even with the same keys.
    pub(super) fn binding(&self, bound: &str) -> String {
        format!("{}:{}{bound}", self.app.len(), self.app)
    }

    pub(super) async fn claimed(&self, scope: &str, key: &str) -> Result<bool, Error> {
        self.store.claimed(&hashed(scope, key)).await
    }

    pub(super) async fn open(&self, family: &str, time: Duration) -> Result<(), Error> {
        self.store.open(&hashed("family", family), time).await
    }

    pub(super) async fn turn(
        &self,
        family: &str,
        turn: u64,
        grace: Duration,
    ) -> Result<FamilyAdvance, Error> {
        self.store.turn(&hashed("family", family), turn, grace).await
    }

    pub(super) async fn close(&self, family: &str) -> Result<(), Error> {
        self.store.close(&hashed("family", family)).await
    }

    pub(super) async fn count(
        &self,
        scope: &str,
        key: &str,
        keep: Option<Duration>,
    ) -> Result<u64, Error> {
        self.store.count(&hashed(scope, key), keep).await
    }

    pub(super) async fn advance(
        &self,
        scope: &str,
        key: &str,
        keep: Duration,
    ) -> Result<u64, Error> {
        self.store.advance(&hashed(scope, key), keep).await
    }
}

fn hashed(scope: &str, key: &str) -> String {
    let digest = Sha256::digest(format!("{}:{scope}{key}", scope.len()).as_bytes());
    HEXLOWER.encode(&digest[..20])
}

/// Prefix of keys that limit a rate. Other keys are hexadecimal.
const LIMIT: &str = "limit-";

/// Number of exchanges by which a cookie may be late: a lost response, or other tabs of the
/// browser.
const LATE: u64 = 3;

/// Decides about an exchange, given the number of the next one and the time since the last one.
fn judge(next: u64, since: Duration, turn: u64, grace: Duration) -> FamilyAdvance {
    match turn {
        turn if turn == next => FamilyAdvance::Taken(next + 1),
        turn if turn < next && next - turn <= LATE && since <= grace => FamilyAdvance::Taken(next),
        turn if turn < next => FamilyAdvance::Repeated,
        // Signed, but ahead of the store: the store has lost data.
        _ => FamilyAdvance::Gone,
    }
}
