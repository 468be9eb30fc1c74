//! One-time store in Redis, shared by a fleet.

use std::time::Duration;

use async_trait::async_trait;
use redis::{RedisError, Script};
use scale_common::clock::ttl_millis;
use scale_redis::Keys;

use super::{FamilyAdvance, LATE, Store};
use crate::auth::error::Error;

/// One-time store in Redis: standalone, Sentinel or Cluster.
pub struct RedisLedger {
    server: scale_redis::Redis,
    keys: Keys,
    turn: Script,
    count: Script,
}

impl std::fmt::Debug for RedisLedger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisLedger").field(&self.server).finish()
    }
}

fn failed(error: RedisError) -> Error {
    Error::OneTimeStore(Box::new(error))
}

impl RedisLedger {
    /// Creates the one-time store of `app`.
    pub fn new(redis: scale_redis::Redis, app: &str) -> Self {
        Self {
            server: redis,
            keys: Keys::new(app, "auth"),
            turn: Script::new(include_str!("advance_token_family.lua")),
            count: Script::new(include_str!("count.lua")),
        }
    }
}

#[async_trait]
impl Store for RedisLedger {
    async fn claim(&self, key: &str, time: Duration) -> Result<bool, Error> {
        let mut set = redis::cmd("SET");
        set.arg(self.keys.tagged(key, "c")).arg(1).arg("NX").arg("PX").arg(ttl_millis(time));
        let set: Option<String> =
            set.query_async(&mut self.server.clone()).await.map_err(failed)?;
        Ok(set.is_some())
    }

    async fn claimed(&self, key: &str) -> Result<bool, Error> {
        redis::cmd("EXISTS")
            .arg(self.keys.tagged(key, "c"))
            .query_async(&mut self.server.clone())
            .await
            .map_err(failed)
    }

    async fn open(&self, key: &str, time: Duration) -> Result<(), Error> {
        let key = self.keys.tagged(key, "f");
        let mut both = redis::pipe();
        both.atomic().hset_multiple(&key, &[("next", 0), ("taken", 0)]).ignore();
        both.cmd("PEXPIRE").arg(&key).arg(ttl_millis(time)).ignore();
        both.query_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn turn(&self, key: &str, turn: u64, grace: Duration) -> Result<FamilyAdvance, Error> {
        let mut call = self.turn.key(self.keys.tagged(key, "f"));
        let reply: String = call
            .arg(turn)
            .arg(ttl_millis(grace))
            .arg(LATE)
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)?;
        match reply.as_str() {
            "repeated" => Ok(FamilyAdvance::Repeated),
            "gone" => Ok(FamilyAdvance::Gone),
            next => next
                .parse()
                .map(FamilyAdvance::Taken)
                .map_err(|_| Error::OneTimeStore("the script returned an unexpected reply".into())),
        }
    }

    async fn close(&self, key: &str) -> Result<(), Error> {
        redis::cmd("DEL")
            .arg(self.keys.tagged(key, "f"))
            .query_async(&mut self.server.clone())
            .await
            .map_err(failed)
    }

    async fn count(&self, key: &str, keep: Option<Duration>) -> Result<u64, Error> {
        let key = self.keys.tagged(key, "n");
        let count: Option<u64> = match keep {
            None => redis::cmd("GET").arg(&key).query_async(&mut self.server.clone()).await,
            Some(keep) => {
                self.count
                    .key(&key)
                    .arg(ttl_millis(keep))
                    .arg(0)
                    .invoke_async(&mut self.server.clone())
                    .await
            }
        }
        .map_err(failed)?;
        Ok(count.unwrap_or(0))
    }

    async fn advance(&self, key: &str, keep: Duration) -> Result<u64, Error> {
        let key = self.keys.tagged(key, "n");
        self.count
            .key(&key)
            .arg(ttl_millis(keep))
            .arg(1)
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)
    }
}
