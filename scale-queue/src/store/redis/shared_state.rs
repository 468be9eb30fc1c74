//! Shared state in Redis.
//!
//! | key | type | holds |
//! | --- | --- | --- |
//! | `{app}:queue:{batch:<id>}:state`, `…:done`, `…:dead` | hash, strings | a batch: counts and plan; a bit for each job that is done, or dead |
//! | `{app}:queue:{present:<kind>}:until`, `…:about` | sorted set, hash | registered workers, schedules, batches, by the end of the registration, ms; their descriptions |
//! | `{app}:queue:{note:<key>}:value` | string | a note |
//!
//! All expire.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{AsyncCommands, Script};
use scale_common::clock::millis;

use super::RedisStore;
use super::calls::failed;
use crate::error::Error;
use crate::store::{BatchStore, End, MAX_REGISTERED, NewBatch, Notes, Registry, Store, Tally};

/// Number of commands on their way at a time.
const AT_ONCE: usize = 64;

pub(super) struct Scripts {
    mark: Script,
    grow: Script,
    conclude: Script,
    announce: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            mark: Script::new(include_str!("batch_progress.lua")),
            grow: Script::new(include_str!("grow_batch.lua")),
            conclude: Script::new(include_str!("conclude_batch.lua")),
            announce: Script::new(include_str!("register.lua")),
        }
    }
}

impl RedisStore {
    fn batch_key(&self, id: &str, name: &str) -> String {
        self.key(&format!("batch:{id}"), name)
    }

    fn present_key(&self, kind: &str, name: &str) -> String {
        self.key(&format!("present:{kind}"), name)
    }
}

#[async_trait]
impl BatchStore for RedisStore {
    async fn open_batch(&self, id: &str, batch: NewBatch<'_>) -> Result<(), Error> {
        let (key, life) = (self.batch_key(id, "state"), millis(batch.life));
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.hset_nx(&key, "life", life)
            .ignore()
            .hset_nx(&key, "lenient", u8::from(batch.lenient))
            .ignore();
        pipe.hset_nx(&key, "plan", batch.plan)
            .ignore()
            .hset_nx(&key, "total", batch.total)
            .ignore();
        pipe.pexpire(&key, life as i64).ignore();
        pipe.query_async::<()>(&mut self.server.clone()).await.map_err(failed)
    }

    async fn mark(&self, id: &str, number: u32, end: End) -> Result<Option<Tally>, Error> {
        let mut call = self.shared_state.mark.prepare_invoke();
        for name in ["state", "done", "dead"] {
            call.key(self.batch_key(id, name));
        }
        let ending = match end {
            End::Done => "done",
            End::Dead => "dead",
            End::Skipped => "skipped",
        };
        let tally: Option<(u32, u32, u32, u8, u8, u8)> = call
            .arg(number)
            .arg(ending)
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)?;
        Ok(tally.map(|(total, done, dead, cancelled, followed, skipped)| Tally {
            total,
            done,
            dead,
            cancelled: cancelled > 0,
            by_death: cancelled == 2,
            skipped: skipped == 1,
            followed: followed == 1,
        }))
    }

    async fn conclude_batch(&self, id: &str, life: Duration) -> Result<(), Error> {
        let mut call = self.shared_state.conclude.prepare_invoke();
        for name in ["state", "done", "dead"] {
            call.key(self.batch_key(id, name));
        }
        call.arg(millis(life)).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn grow_batch(&self, id: &str, name: &str, by: u32) -> Result<Option<(u32, u32)>, Error> {
        let mut call = self.shared_state.grow.key(self.batch_key(id, "state"));
        call.arg(name).arg(by);
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn ends(&self, id: &str, below: u32) -> Result<Vec<(u32, End)>, Error> {
        let last = (below / 8) as isize;
        let mut pipe = redis::pipe();
        pipe.getrange(self.batch_key(id, "done"), 0, last).getrange(
            self.batch_key(id, "dead"),
            0,
            last,
        );
        let (done, dead): (Vec<u8>, Vec<u8>) =
            pipe.query_async(&mut self.server.clone()).await.map_err(failed)?;
        // Redis numbers the bits of a byte from the highest.
        let is_set = |bits: &[u8], number: u32| {
            bits.get(number as usize / 8).is_some_and(|byte| byte & (0x80 >> (number % 8)) != 0)
        };
        Ok((0..below)
            .filter_map(|number| match () {
                () if is_set(&done, number) => Some((number, End::Done)),
                () if is_set(&dead, number) => Some((number, End::Dead)),
                () => None,
            })
            .collect())
    }

    async fn batch(&self, id: &str) -> Result<Option<(Tally, Vec<u8>)>, Error> {
        let fields = ["total", "done", "dead", "cancelled", "followed", "skipped"];
        let mut pipe = redis::pipe();
        pipe.hmget(self.batch_key(id, "state"), &fields[..])
            .hget(self.batch_key(id, "state"), "plan");
        let (counts, plan): (Vec<Option<u32>>, Option<Vec<u8>>) =
            pipe.query_async(&mut self.server.clone()).await.map_err(failed)?;
        let count = |n: usize| counts.get(n).copied().flatten();
        let Some(total) = count(0) else { return Ok(None) };
        let number = |n| count(n).unwrap_or_default();
        let flag = |n| number(n) > 0;
        let tally = Tally {
            total,
            done: number(1),
            dead: number(2),
            cancelled: flag(3),
            by_death: number(3) == 2,
            followed: flag(4),
            skipped: flag(5),
        };
        Ok(Some((tally, plan.unwrap_or_default())))
    }

    async fn cancel_batch(&self, id: &str, by_death: bool) -> Result<bool, Error> {
        let (mut server, key) = (self.server.clone(), self.batch_key(id, "state"));
        if !server.hexists(&key, "total").await.map_err(failed)? {
            return Ok(false);
        }
        // 2: by a death, as in `batch_progress.lua`.
        let cause = if by_death { 2 } else { 1 };
        server.hset_nx::<_, _, _, ()>(&key, "cancelled", cause).await.map_err(failed)?;
        // If the batch expired in between, this field would otherwise stay forever.
        if server.pttl::<_, i64>(&key).await.map_err(failed)? < 0 {
            server
                .pexpire::<_, ()>(&key, millis(Duration::from_hours(7 * 24)) as i64)
                .await
                .map_err(failed)?;
        }
        Ok(true)
    }

    async fn is_cancelled(&self, id: &str, number: u32) -> Result<bool, Error> {
        let mut pipe = redis::pipe();
        pipe.hexists(self.batch_key(id, "state"), "cancelled")
            .getbit(self.batch_key(id, "dead"), number as usize);
        let (is_cancelled, is_dead): (bool, bool) =
            pipe.query_async(&mut self.server.clone()).await.map_err(failed)?;
        Ok(is_cancelled && !is_dead)
    }
}

#[async_trait]
impl Registry for RedisStore {
    async fn register(
        &self,
        kind: &str,
        name: &str,
        about: &[u8],
        life: Duration,
    ) -> Result<(), Error> {
        let mut call = self.shared_state.announce.key(self.present_key(kind, "until"));
        call.key(self.present_key(kind, "about"))
            .arg(name)
            .arg(about)
            .arg(millis(life))
            .arg(MAX_REGISTERED);
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn deregister(&self, kind: &str, name: &str) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.zrem(self.present_key(kind, "until"), name)
            .ignore()
            .hdel(self.present_key(kind, "about"), name)
            .ignore();
        pipe.query_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn registered(
        &self,
        kind: &str,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let (mut server, until) = (self.server.clone(), self.present_key(kind, "until"));
        let (latest, now) = ("+inf", format!("({}", self.now_ms()));
        let names: Vec<String> = server
            .zrevrangebyscore_limit(until, latest, now, offset as isize, limit as isize)
            .await
            .map_err(failed)?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let about: Vec<Option<Vec<u8>>> =
            server.hmget(self.present_key(kind, "about"), &names).await.map_err(failed)?;
        Ok(names.into_iter().zip(about).filter_map(|(name, about)| Some((name, about?))).collect())
    }
}

#[async_trait]
impl Notes for RedisStore {
    async fn put_note(&self, key: &str, value: &[u8], life: Duration) -> Result<(), Error> {
        let key = self.key(&format!("note:{key}"), "value");
        self.server.clone().pset_ex(key, value, millis(life).max(1)).await.map_err(failed)
    }

    async fn forget_notes(&self, keys: &[String]) -> Result<(), Error> {
        // Each note has a slot of its own.
        let forget = |key: String| {
            let mut server = self.server.clone();
            async move { server.unlink::<_, ()>(key).await }
        };
        let note = |key: &String| self.key(&format!("note:{key}"), "value");
        let keys: Vec<String> = keys.iter().map(note).collect();
        stream::iter(keys)
            .map(forget)
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await
            .map_err(failed)
    }

    async fn read_note(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.server.clone().get(self.key(&format!("note:{key}"), "value")).await.map_err(failed)
    }
}
