//! Small records that belong to users: API tokens, passkeys, and remember-me families.
//!
//! | in Redis | in SQL | kept until |
//! | --- | --- | --- |
//! | `{app}:auth:{<owner>}:r`, a hash: by id, the expiry (ms since 1970, 0 for none), a colon and the record | a row of `scale_auth_records` each | removed, or expired |
//!
//! An owner is a hash of a kind of record and a user's id. Use a durable store for records: a Redis
//! that evicts keys, or loses its data at a restart, loses API tokens. Records contain hashes of
//! secrets, not the secrets.

mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sql")]
mod sql;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

pub use self::memory::MemoryRecords;
#[cfg(feature = "redis")]
pub use self::redis::RedisRecords;
#[cfg(feature = "sql")]
pub use self::sql::SqlRecords;
#[cfg(feature = "sql")]
pub(crate) use self::sql::Texts;
use super::error::Error;

/// Hash of a kind of record and of the user that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub(crate) [u8; 16]);

impl Owner {
    pub(crate) fn of(kind: &str, user: &str) -> Self {
        let digest = Sha256::digest(format!("{}:{kind}{user}", kind.len()).as_bytes());
        let mut owner = [0; 16];
        owner.copy_from_slice(&digest[..16]);
        Self(owner)
    }

    /// Returns the hash as 32 hexadecimal digits.
    pub fn text(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

/// Result of [`Store::swap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The record was written.
    Done,
    /// There is another record with this id now; nothing was written.
    Changed,
    /// There is no record with this id.
    Gone,
}

/// A store of records. Each method is atomic.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Adds a record, or replaces the one with that id. The store may remove it after `keep`.
    /// Returns `false` and adds nothing if the owner has `most` other records that have not
    /// expired.
    async fn put(
        &self,
        owner: &Owner,
        id: &str,
        record: &[u8],
        keep: Option<Duration>,
        most: usize,
    ) -> Result<bool, Error>;

    /// Returns a record.
    async fn get(&self, owner: &Owner, id: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Replaces a record, if it is unchanged. A record that was removed stays removed.
    async fn swap(&self, owner: &Owner, id: &str, old: &[u8], new: &[u8])
    -> Result<Swapped, Error>;

    /// Returns all records of an owner by id.
    async fn list(&self, owner: &Owner) -> Result<Vec<(String, Vec<u8>)>, Error>;

    /// Removes a record. Returns whether it existed.
    async fn remove(&self, owner: &Owner, id: &str) -> Result<bool, Error>;

    /// Removes all records of an owner. Returns how many there were.
    async fn remove_all(&self, owner: &Owner) -> Result<u64, Error>;
}

/// Handle to a record store. A clone costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{ApiTokens, Records};
///
/// // or "postgres://…", "sqlite://…", "redis://…"
/// let records = Records::connect("memory:", "shop").await?;
/// let tokens = ApiTokens::new(&records);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Records(Arc<dyn Store>);

impl Records {
    /// Keeps records in the given store.
    pub fn new(store: impl Store) -> Self {
        Self(Arc::new(store))
    }

    /// Keeps records in the memory of this process.
    pub fn memory() -> Self {
        Self::new(MemoryRecords::default())
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
                redis.warn_of_eviction("API tokens").await;
                Ok(Self::new(RedisRecords::new(redis, app)))
            }
            #[cfg(feature = "sql")]
            _ if scale_sql::System::of(url).is_some() => {
                Ok(Self::new(SqlRecords::connect(url, app).await?))
            }
            _ => {
                let _ = app;
                Err(Error::Setting(
                    "unsupported address of a record store: expected memory:, redis:, postgres:, \
                     mysql: or sqlite:",
                ))
            }
        }
    }

    /// Keeps records in a database, through the application's own pool: a `PgPool`, a `MySqlPool`
    /// or an `SqlitePool`. The table must exist, see [`migrate`](crate::store::migrate).
    ///
    /// # Errors
    /// [`Error::Schema`] if the table is older or newer than this version needs;
    /// [`Error::OneTimeStore`] if the database does not answer.
    #[cfg(feature = "sql")]
    pub async fn with_pool(pool: impl Into<scale_sql::Database>, app: &str) -> Result<Self, Error> {
        Ok(Self::new(SqlRecords::with_pool(pool, app).await?))
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.0
    }
}
