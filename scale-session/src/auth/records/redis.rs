//! Records in Redis: one hash per owner.

use std::time::Duration;

use async_trait::async_trait;
use redis::{RedisError, Script};
use scale_common::clock::ttl_millis;
use scale_redis::Keys;

use super::{Owner, Store, Swapped};
use crate::auth::error::Error;

/// Record store in Redis: standalone, Sentinel or Cluster.
pub struct RedisRecords {
    server: scale_redis::Redis,
    keys: Keys,
    put: Script,
    swap: Script,
    remove_all: Script,
}

impl std::fmt::Debug for RedisRecords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisRecords").field(&self.server).finish()
    }
}

fn failed(error: RedisError) -> Error {
    Error::OneTimeStore(Box::new(error))
}

impl RedisRecords {
    /// Creates the record store of `app`.
    pub fn new(redis: scale_redis::Redis, app: &str) -> Self {
        Self {
            server: redis,
            keys: Keys::new(app, "auth"),
            put: Script::new(include_str!("put.lua")),
            swap: Script::new(include_str!("swap.lua")),
            remove_all: Script::new(include_str!("remove_all.lua")),
        }
    }

    fn key(&self, owner: &Owner) -> String {
        self.keys.tagged(&owner.text(), "r")
    }
}

/// Returns a record without the expiry before it; a record with an expiry also contains that
/// expiry.
fn without_end(mut held: Vec<u8>) -> Vec<u8> {
    let colon = held.iter().position(|byte| *byte == b':').map_or(0, |at| at + 1);
    held.split_off(colon)
}

#[async_trait]
impl Store for RedisRecords {
    async fn put(
        &self,
        owner: &Owner,
        id: &str,
        record: &[u8],
        keep: Option<Duration>,
        most: usize,
    ) -> Result<bool, Error> {
        let mut call = self.put.key(self.key(owner));
        let call = call.arg(id).arg(record).arg(keep.map_or(0, ttl_millis)).arg(most);
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn get(&self, owner: &Owner, id: &str) -> Result<Option<Vec<u8>>, Error> {
        let get = redis::cmd("HGET").arg(self.key(owner)).arg(id).to_owned();
        let held: Option<Vec<u8>> =
            get.query_async(&mut self.server.clone()).await.map_err(failed)?;
        Ok(held.map(without_end))
    }

    async fn swap(
        &self,
        owner: &Owner,
        id: &str,
        old: &[u8],
        new: &[u8],
    ) -> Result<Swapped, Error> {
        let mut call = self.swap.key(self.key(owner));
        let reply: String = call
            .arg(id)
            .arg(old)
            .arg(new)
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)?;
        match &*reply {
            "done" => Ok(Swapped::Done),
            "changed" => Ok(Swapped::Changed),
            "gone" => Ok(Swapped::Gone),
            _ => Err(Error::Stored("reply of the script")),
        }
    }

    async fn list(&self, owner: &Owner) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let get = redis::cmd("HGETALL").arg(self.key(owner)).to_owned();
        let held: Vec<(String, Vec<u8>)> =
            get.query_async(&mut self.server.clone()).await.map_err(failed)?;
        Ok(held.into_iter().map(|(id, held)| (id, without_end(held))).collect())
    }

    async fn remove(&self, owner: &Owner, id: &str) -> Result<bool, Error> {
        redis::cmd("HDEL")
            .arg(self.key(owner))
            .arg(id)
            .query_async(&mut self.server.clone())
            .await
            .map_err(failed)
    }

    async fn remove_all(&self, owner: &Owner) -> Result<u64, Error> {
        self.remove_all
            .key(self.key(owner))
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)
    }
}
