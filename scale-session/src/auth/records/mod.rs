//! Small records that belong to users: API tokens, and who stays signed in where.
//!
//! | in Redis | in SQL | until |
//! | --- | --- | --- |
//! | `{app}:auth:{<owner>}:r`, a hash: by id, the end (ms since 1970, 0 for none), a colon and the record | a row of `scale_auth_records` each | removed, or its time has passed |
//!
//! An owner is a hash of a kind of record and a user's id. Keep records where they last: a Redis that evicts, or forgets at a restart, forgets
//! API tokens. Secrets are not in them, their hashes are.

mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

pub use self::memory::MemoryRecords;
#[cfg(feature = "redis")]
pub use self::redis::RedisRecords;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::sql::SqlRecords;
use super::error::Error;

/// A hash of a kind of record and of the user it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub(crate) [u8; 16]);

impl Owner {
    pub(crate) fn of(kind: &str, user: &str) -> Self {
        let digest = Sha256::digest(format!("{}:{kind}{user}", kind.len()).as_bytes());
        let mut owner = [0; 16];
        owner.copy_from_slice(&digest[..16]);
        Self(owner)
    }

    /// Returns it as 32 hexadecimal digits.
    pub fn text(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

/// What came of [`Store::swap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// It is written.
    Done,
    /// There is another record of that id by now; nothing is written.
    Changed,
    /// There is no record of that id.
    Gone,
}

/// A store of records. Each method is atomic.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Adds a record, or replaces the one of that id. It may be forgotten after `keep`. Returns `false`, and adds nothing, if the owner has
    /// `most` others whose time has not passed.
    async fn put(&self, owner: &Owner, id: &str, record: &[u8], keep: Option<Duration>, most: usize) -> Result<bool, Error>;

    /// Returns a record.
    async fn get(&self, owner: &Owner, id: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Replaces a record, if it is still the old one; one that was removed stays so.
    async fn swap(&self, owner: &Owner, id: &str, old: &[u8], new: &[u8]) -> Result<Swapped, Error>;

    /// Returns all records of an owner by id.
    async fn list(&self, owner: &Owner) -> Result<Vec<(String, Vec<u8>)>, Error>;

    /// Removes a record. Returns whether it was there.
    async fn remove(&self, owner: &Owner, id: &str) -> Result<bool, Error>;

    /// Removes all records of an owner. Returns how many there were.
    async fn remove_all(&self, owner: &Owner) -> Result<u64, Error>;
}

/// The handle. Cloning costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{ApiTokens, Records};
///
/// let records = Records::connect("memory:", "shop").await?; // or "postgres://…", "sqlite://…", "redis://…"
/// let tokens = ApiTokens::new(&records);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Records(Arc<dyn Store>);

impl Records {
    /// Keeps records in a store of your choice.
    pub fn new(store: impl Store) -> Self {
        Self(Arc::new(store))
    }

    /// Keeps records in this process.
    pub fn memory() -> Self {
        Self::new(MemoryRecords::default())
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
                redis.warn_of_eviction("API tokens").await;
                Ok(Self::new(RedisRecords::new(redis, app)))
            }
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            _ if crate::sql::System::of(url).is_some() => Ok(Self::new(SqlRecords::connect(url, app).await?)),
            _ => {
                let _ = app;
                Err(Error::Setting("the address names no store for records: use memory:, redis:, postgres: or sqlite:"))
            }
        }
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.0
    }
}
