//! Records in Redis: a hash for each owner.

use std::time::Duration;

use async_trait::async_trait;
use redis::{RedisError, Script};
use scale_redis::Keys;

use super::{Owner, Store};
use crate::auth::error::Error;

/// Records in Redis: standalone, Sentinel or Cluster.
pub struct RedisRecords {
    server: scale_redis::Redis,
    keys: Keys,
    put: Script,
    update: Script,
    remove_all: Script,
}

impl std::fmt::Debug for RedisRecords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisRecords").field(&self.server).finish()
    }
}

fn failed(error: RedisError) -> Error {
    Error::Ledger(Box::new(error))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, 100 * 365 * 86_400_000)
}

impl RedisRecords {
    /// Keeps the records of `app`.
    pub fn new(redis: scale_redis::Redis, app: &str) -> Self {
        Self {
            server: redis,
            keys: Keys::new(app, "auth"),
            put: Script::new(include_str!("put.lua")),
            update: Script::new(include_str!("update.lua")),
            remove_all: Script::new(include_str!("remove_all.lua")),
        }
    }

    fn key(&self, owner: &Owner) -> String {
        self.keys.tagged(&owner.text(), "r")
    }
}

#[async_trait]
impl Store for RedisRecords {
    async fn put(&self, owner: &Owner, id: &str, record: &[u8], keep: Option<Duration>) -> Result<(), Error> {
        let mut call = self.put.key(self.key(owner));
        let call = call.arg(id).arg(record).arg(keep.map_or(0, millis));
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn get(&self, owner: &Owner, id: &str) -> Result<Option<Vec<u8>>, Error> {
        redis::cmd("HGET").arg(self.key(owner)).arg(id).query_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn update(&self, owner: &Owner, id: &str, record: &[u8]) -> Result<bool, Error> {
        let mut call = self.update.key(self.key(owner));
        call.arg(id).arg(record).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn list(&self, owner: &Owner) -> Result<Vec<(String, Vec<u8>)>, Error> {
        redis::cmd("HGETALL").arg(self.key(owner)).query_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn remove(&self, owner: &Owner, id: &str) -> Result<bool, Error> {
        redis::cmd("HDEL").arg(self.key(owner)).arg(id).query_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn remove_all(&self, owner: &Owner) -> Result<u64, Error> {
        self.remove_all.key(self.key(owner)).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }
}
