//! Sessions shared by all servers: one hash each.
//!
//! | key | type | holds | expires |
//! | --- | --- | --- | --- |
//! | `{app}:session:{<handle>}:s` | hash | the fields; `\0ends`, `\0renewed` (ms, server clock); `\0moved` after a rotation | idle time-out, never past the absolute one |

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redis::{AsyncCommands, RedisError, Script};
use scale_redis::Keys;

use super::{Changes, Handle, Lifetime, Record, Saved, Store, Swapped};
use crate::error::Error;

/// Sessions in Redis: standalone, Sentinel or Cluster.
pub struct RedisStore {
    server: scale_redis::Redis,
    keys: Keys,
    create: Script,
    save: Script,
    swap: Script,
    leave: Script,
    destroy: Script,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.server).finish()
    }
}

impl RedisStore {
    /// The sessions of `app`.
    pub fn new(redis: scale_redis::Redis, app: &str) -> Self {
        Self {
            server: redis,
            keys: Keys::new(app, "session"),
            create: Script::new(include_str!("create.lua")),
            save: Script::new(include_str!("save.lua")),
            swap: Script::new(include_str!("swap.lua")),
            leave: Script::new(include_str!("leave.lua")),
            destroy: Script::new(include_str!("destroy.lua")),
        }
    }

    fn key(&self, handle: &Handle) -> String {
        self.keys.tagged(&handle.text(), "s")
    }
}

fn unreadable() -> Error {
    Error::Store("the script's reply cannot be read".into())
}

fn failed(error: RedisError) -> Error {
    Error::Store(Box::new(error))
}

/// `None` for an empty hash: there is no such session.
fn read(mut fields: HashMap<String, Vec<u8>>) -> Option<Record> {
    if fields.is_empty() {
        return None;
    }
    let moved_to = fields.remove("\0moved").and_then(|h| Handle::parse(std::str::from_utf8(&h).ok()?));
    let renewed = fields.remove("\0renewed").and_then(|ms| std::str::from_utf8(&ms).ok()?.parse().ok()).unwrap_or(0);
    fields.remove("\0ends");
    Some(Record { fields, renewed: SystemTime::UNIX_EPOCH + Duration::from_millis(renewed), moved_to })
}

fn millis(time: Duration) -> u64 {
    time.as_millis().max(1) as u64
}

#[async_trait]
impl Store for RedisStore {
    async fn load(&self, handle: &Handle) -> Result<Option<Record>, Error> {
        let fields = self.server.clone().hgetall(self.key(handle)).await.map_err(failed)?;
        Ok(read(fields))
    }

    async fn create(&self, handle: &Handle, changes: &Changes, lifetime: Lifetime) -> Result<(), Error> {
        let mut call = self.create.key(self.key(handle));
        call.arg(millis(lifetime.idle)).arg(millis(lifetime.absolute));
        for (field, value) in changes.iter() {
            if let Some(value) = value {
                call.arg(field).arg(value);
            }
        }
        call.invoke_async::<i64>(&mut self.server.clone()).await.map(drop).map_err(failed)
    }

    async fn save(&self, handle: &Handle, changes: &Changes, lifetime: Lifetime) -> Result<Saved, Error> {
        let mut call = self.save.key(self.key(handle));
        let set = changes.iter().filter(|(_, value)| value.is_some()).count();
        call.arg(millis(lifetime.idle)).arg(set);
        for (field, value) in changes.iter() {
            if let Some(value) = value {
                call.arg(field).arg(value);
            }
        }
        for (field, _) in changes.iter().filter(|(_, value)| value.is_none()) {
            call.arg(field);
        }
        let reply: String = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        match reply.as_str() {
            "done" => Ok(Saved::Done),
            "gone" => Ok(Saved::Gone),
            handle => Handle::parse(handle).map(Saved::Moved).ok_or_else(unreadable),
        }
    }

    async fn swap(&self, handle: &Handle, field: &str, expected: Option<&[u8]>, new: Option<&[u8]>) -> Result<Swapped, Error> {
        let mut call = self.swap.key(self.key(handle));
        call.arg(field).arg(u8::from(expected.is_some())).arg(expected.unwrap_or_default());
        call.arg(u8::from(new.is_some())).arg(new.unwrap_or_default());
        let reply: Vec<Vec<u8>> = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        let mut reply = reply.into_iter();
        match reply.next().as_deref() {
            Some(b"done") => Ok(Swapped::Done),
            Some(b"gone") => Ok(Swapped::Gone),
            Some(b"found") => Ok(Swapped::Found(reply.next())),
            Some(b"moved") => {
                let handle = reply.next().and_then(|h| Handle::parse(std::str::from_utf8(&h).ok()?));
                handle.map(Swapped::Moved).ok_or_else(unreadable)
            }
            _ => Err(unreadable()),
        }
    }

    async fn leave(&self, handle: &Handle, to: &Handle, grace: Duration) -> Result<Option<Record>, Error> {
        let mut call = self.leave.key(self.key(handle));
        let held: Vec<Vec<u8>> =
            call.arg(to.text()).arg(millis(grace)).invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        let pairs = held.chunks_exact(2).map(|pair| (String::from_utf8_lossy(&pair[0]).into_owned(), pair[1].clone()));
        Ok(read(pairs.collect()))
    }

    async fn destroy(&self, handle: &Handle) -> Result<Option<Handle>, Error> {
        let moved: Option<String> =
            self.destroy.key(self.key(handle)).invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        Ok(moved.and_then(|h| Handle::parse(&h)))
    }
}
