//! What must happen only once in a whole fleet, written down.
//!
//! | kept as | in Redis | in SQL | until |
//! | --- | --- | --- | --- |
//! | something used | `{app}:auth:{<hash>}:c`, a string | a row of `scale_ledger` | whoever claimed it said so |
//! | a family's turns | `{app}:auth:{<hash>}:f`, a hash: the next turn, when the last one was taken | a row of `scale_ledger` | the family's end |
//! | a counter | `{app}:auth:{<hash>}:n`, a string | a row of `scale_ledger` | nobody asked to keep it |
//!
//! Names are hashed: neither codes nor accounts lie there.

mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

pub use self::memory::MemoryLedger;
#[cfg(feature = "redis")]
pub use self::redis::RedisLedger;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::sql::SqlLedger;
use super::error::Error;

/// What came of taking a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It was the next one, or one of the last few within the grace: the number of the one to give out.
    Taken(u64),
    /// It was taken before; the family is closed now.
    Repeated,
    /// There is no such family.
    Gone,
}

/// Where it is written. Every method is atomic.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Whether nobody has claimed this before; remembered for `time`.
    async fn claim(&self, key: &str, time: Duration) -> Result<bool, Error>;

    /// Whether this is claimed.
    async fn claimed(&self, key: &str) -> Result<bool, Error>;

    /// Begins a family at turn 0, for `time`.
    async fn open(&self, key: &str, time: Duration) -> Result<(), Error>;

    /// Takes a turn of a family. The last three taken may be taken again for `grace` after the last; any other that was taken before closes
    /// the family.
    async fn turn(&self, key: &str, turn: u64, grace: Duration) -> Result<Turn, Error>;

    /// Ends a family.
    async fn close(&self, key: &str) -> Result<(), Error>;

    /// A counter's value, 0 if there is none. One that is there is kept for `keep` from now on.
    async fn count(&self, key: &str, keep: Option<Duration>) -> Result<u64, Error>;

    /// Adds one to a counter, keeps it for `keep` from now on, and returns its value.
    async fn advance(&self, key: &str, keep: Duration) -> Result<u64, Error>;
}

/// The handle. Cloning costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::auth::Error> {
/// use std::time::Duration;
/// use scale_session::auth::Ledger;
///
/// let ledger = Ledger::memory(); // or Ledger::connect("redis://…" or "postgres://…" or "sqlite://…", "shop")
/// assert!(ledger.claim("invitation", "abc", Duration::from_secs(3_600)).await?);
/// assert!(!ledger.claim("invitation", "abc", Duration::from_secs(3_600)).await?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Ledger {
    store: Arc<dyn Store>,
    app: Arc<str>,
}

impl Ledger {
    /// In a store of your choice.
    pub fn new(store: impl Store) -> Self {
        Self { store: Arc::new(store), app: "".into() }
    }

    /// Of this process alone.
    pub fn memory() -> Self {
        Self::new(MemoryLedger::default())
    }

    /// Picks the store by its address, as [`SessionLayer::connect`](crate::SessionLayer::connect) does.
    ///
    /// # Errors
    /// [`Error::Setting`] for an address that is none; [`Error::Ledger`] if nobody answers there.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        match url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Self::memory()),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let redis = scale_redis::Redis::connect(url).await.map_err(|e| Error::Ledger(Box::new(e)))?;
                redis.warn_of_eviction("what was used once: tokens and codes would be good again").await;
                Ok(Self::new(RedisLedger::new(redis, app)).of(app))
            }
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            _ if crate::sql::System::of(url).is_some() => Ok(Self::new(SqlLedger::connect(url, app).await?).of(app)),
            _ => {
                let _ = app;
                Err(Error::Setting("that is no address of a ledger"))
            }
        }
    }

    /// Whether nobody in the fleet has claimed this before; remembered for `time`. `scope` sets kinds of things apart.
    ///
    /// # Errors
    /// [`Error::Ledger`]: nobody can know. Refuse.
    pub async fn claim(&self, scope: &str, key: &str, time: Duration) -> Result<bool, Error> {
        self.store.claim(&hashed(scope, key), time).await
    }

    /// The same for what limits how often something is done. In memory it has room of its own: a flood of it stops nothing else.
    pub(super) async fn count_off(&self, scope: &str, key: &str, time: Duration) -> Result<bool, Error> {
        self.store.claim(&format!("{LIMIT}{}", hashed(scope, key)), time).await
    }

    #[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
    fn of(self, app: &str) -> Self {
        Self { app: app.into(), ..self }
    }

    /// What a token of this application is bound to beside `bound`: one of another application is none here, though the keys are the same.
    pub(super) fn binding(&self, bound: &str) -> String {
        format!("{}:{}{bound}", self.app.len(), self.app)
    }

    pub(super) async fn claimed(&self, scope: &str, key: &str) -> Result<bool, Error> {
        self.store.claimed(&hashed(scope, key)).await
    }

    pub(super) async fn open(&self, family: &str, time: Duration) -> Result<(), Error> {
        self.store.open(&hashed("family", family), time).await
    }

    pub(super) async fn turn(&self, family: &str, turn: u64, grace: Duration) -> Result<Turn, Error> {
        self.store.turn(&hashed("family", family), turn, grace).await
    }

    pub(super) async fn close(&self, family: &str) -> Result<(), Error> {
        self.store.close(&hashed("family", family)).await
    }

    pub(super) async fn count(&self, scope: &str, key: &str, keep: Option<Duration>) -> Result<u64, Error> {
        self.store.count(&hashed(scope, key), keep).await
    }

    pub(super) async fn advance(&self, scope: &str, key: &str, keep: Duration) -> Result<u64, Error> {
        self.store.advance(&hashed(scope, key), keep).await
    }
}

fn hashed(scope: &str, key: &str) -> String {
    let digest = Sha256::digest(format!("{}:{scope}{key}", scope.len()).as_bytes());
    HEXLOWER.encode(&digest[..20])
}

/// Keys of what limits how often something is done begin so. Others are hexadecimal.
const LIMIT: &str = "limit-";

/// Turns that may be late: a lost answer, or tabs of one browser that came in between.
const LATE: u64 = 3;

/// What a turn is worth, given the next one and how long ago the last one was taken.
fn judge(next: u64, since: Duration, turn: u64, grace: Duration) -> Turn {
    match turn {
        turn if turn == next => Turn::Taken(next + 1),
        turn if turn < next && next - turn <= LATE && since <= grace => Turn::Taken(next),
        turn if turn < next => Turn::Repeated,
        // Signed, and yet ahead of us: the ledger has lost something.
        _ => Turn::Gone,
    }
}
