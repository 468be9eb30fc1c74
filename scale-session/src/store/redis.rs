//! Sessions in Redis, shared by all servers: one hash per session.
//!
//! | key | type | holds | expires |
//! | --- | --- | --- | --- |
//! | `{app}:session:{<family>}:s` | hash | the fields; `\0ends`, `\0renewed` (ms, server clock), `\0proofs`; `\0seen` once the client has sent its cookie; once the session is replaced, `\0frozen`, the time (ms) until which it may be read | after the idle time-out, never later than the absolute one; an hour after it was replaced |
//! | `{app}:session:{<owner>}:s:<family>` | hash | the same for a session with an owner, and `\0turn`, its number | as above |
//! | `{app}:session:{<owner>}:owner` | hash | the last number assigned, and the number up to which sessions are revoked | a second after the last session can expire |
//! | `{app}:session:{<owner>}:all` | sorted set | families of the owner's sessions, by expiry | with the last of them |

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redis::{AsyncCommands, RedisError, Script, ScriptInvocation, Value};
use scale_common::clock::{millis, ttl_millis};
use scale_redis::Keys;

use super::{
    Destroyed, Fields, Handle, Lifetime, OLD_PROOFS, Owner, PendingChanges, Proof, Proofs,
    REPLACED_FOR, Record, Renewal, Saved, Standing, Store, Succession, Swapped,
};
use crate::error::Error;
use crate::value::{IDENTITY, PREDECESSORS};

/// Maximum number of listed sessions per owner.
const LISTED: isize = 1_000;

/// Session store in Redis: standalone, Sentinel or Cluster.
pub struct RedisStore {
    server: scale_redis::Redis,
    keys: Keys,
    load: Script,
    create: Script,
    save: Script,
    swap: Script,
    add: Script,
    rotate: Script,
    freeze: Script,
    succeed: Script,
    revoke: Script,
    destroy: Script,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.server).finish()
    }
}

impl RedisStore {
    /// Creates a store for the sessions of `app`.
    pub fn new(redis: scale_redis::Redis, app: &str) -> Self {
        Self {
            server: redis,
            keys: Keys::new(app, "session"),
            load: script(include_str!("load.lua")),
            create: script(include_str!("create.lua")),
            save: script(include_str!("save.lua")),
            swap: script(include_str!("swap.lua")),
            add: script(include_str!("add.lua")),
            rotate: script(include_str!("rotate.lua")),
            freeze: script(include_str!("freeze.lua")),
            succeed: script(include_str!("succeed.lua")),
            revoke: script(include_str!("revoke.lua")),
            destroy: script(include_str!("destroy.lua")),
        }
    }

    fn key(&self, handle: &Handle) -> String {
        match handle.owner() {
            None => self.keys.tagged(&handle.family(), "s"),
            Some(owner) => self.keys.tagged(&owner.text(), &format!("s:{}", handle.family())),
        }
    }

    fn owner_key(&self, owner: &Owner, name: &str) -> String {
        self.keys.tagged(&owner.text(), name)
    }

    /// Loads an anonymous session, which has no owner record.
    async fn load_anonymous(&self, handle: &Handle) -> Result<Fields, RedisError> {
        let mut get = redis::Cmd::with_capacity(2, 96);
        get.arg("HGETALL").arg(self.key(handle));
        self.server.command(&get).await.map(fields)
    }

    /// Loads the session and its owner's record in one round trip: two concurrent commands cost
    /// less than a pipeline of two. A session that fails the check may have got a new number
    /// between the two reads, so the script checks again and reads both in one step.
    async fn load_owned(&self, handle: &Handle, owner: &Owner) -> Result<Fields, RedisError> {
        let mut word = redis::Cmd::with_capacity(4, 128);
        word.arg("HMGET").arg(self.owner_key(owner, "owner")).arg("life").arg("revoked");
        let (held, word) = tokio::join!(self.load_anonymous(handle), self.server.command(&word));
        let (held, word): (Fields, [Option<Vec<u8>>; 2]) = (held?, redis::from_redis_value(word?)?);
        if held.is_empty() || stands(held.get("\0turn"), &word) {
            return Ok(held);
        }
        self.load_with_time(handle).await
    }

    /// Loads the session together with the server's time.
    async fn load_with_time(&self, handle: &Handle) -> Result<Fields, RedisError> {
        self.call(&self.load, handle).invoke_async(&mut self.server.clone()).await.map(fields)
    }

    /// Prepares a script call with the session's key and its owner's keys.
    fn call<'s>(&self, script: &'s Script, handle: &Handle) -> ScriptInvocation<'s> {
        let mut call = script.key(self.key(handle));
        if let Some(owner) = handle.owner() {
            call.key(self.owner_key(owner, "owner")).key(self.owner_key(owner, "all"));
        }
        call
    }
}

fn script(own: &str) -> Script {
    Script::new(&format!("{}\n{own}", include_str!("owner.lua")))
}

fn unreadable() -> Error {
    Error::Store("the script returned an unexpected reply".into())
}

fn failed(error: RedisError) -> Error {
    Error::Store(Box::new(error))
}

/// Returns whether a session is not revoked. `turn` consists of the owner record's id and the
/// session's number.
fn stands(turn: Option<&Vec<u8>>, [life, revoked]: &[Option<Vec<u8>>; 2]) -> bool {
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
    let turn = turn.and_then(|turn| Some((turn.iter().rposition(|byte| *byte == b':')?, turn)));
    let Some((colon, turn)) = turn else { return false };
    let revoked = revoked.as_deref().map_or(Some(0), number);
    life.as_deref() == Some(&turn[..colon])
        && number(&turn[colon + 1..]).zip(revoked).is_some_and(|(own, revoked)| own > revoked)
}

/// Removes and parses a number in a reserved field.
fn number(fields: &mut Fields, name: &str) -> Option<u64> {
    fields.remove(name).and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok())
}

/// Parses a session. Returns `None` if there is none.
fn read(mut fields: Fields, proof: Option<&Proof>) -> Option<Record> {
    let proofs = fields
        .remove("\0proofs")
        .and_then(|text| Proofs::parse(std::str::from_utf8(&text).ok()?))?;
    let now = number(&mut fields, "\0now");
    let is_known = proof.is_none_or(|proof| proofs.accepts(proof, now.unwrap_or(u64::MAX - 1)));
    let frozen = number(&mut fields, "\0frozen");
    let standing = match (frozen, now) {
        _ if !is_known => Standing::Stale,
        (None, _) => Standing::Live,
        (Some(until), Some(now)) if now < until => Standing::Frozen,
        (Some(_), _) => Standing::Replaced,
    };
    let renewed = SystemTime::UNIX_EPOCH
        + Duration::from_millis(number(&mut fields, "\0renewed").unwrap_or(0));
    let seen = fields.remove("\0seen").is_some();
    let next =
        fields.remove("\0next").and_then(|text| Handle::parse(std::str::from_utf8(&text).ok()?));
    let is_read = matches!(standing, Standing::Live | Standing::Frozen);
    fields.retain(|field, _| !field.starts_with('\0') && is_read);
    let (is_current, is_unconfirmed) =
        (proof.is_none_or(|proof| proofs.is_current(proof)), proofs.is_unconfirmed());
    Some(Record { fields, renewed, standing, is_current, seen, is_unconfirmed, next })
}

/// Returns whether the result depends on the server's time: for a replaced session, or an earlier
/// proof.
fn needs_time(fields: &Fields, proof: Option<&Proof>) -> bool {
    let current =
        fields.get("\0proofs").and_then(|text| Proofs::parse(std::str::from_utf8(text).ok()?));
    !fields.is_empty()
        && (fields.contains_key("\0frozen")
            || proof.is_some_and(|proof| current.is_none_or(|current| !current.is_current(proof))))
}

fn saved(reply: &str) -> Result<Saved, Error> {
    match reply {
        "done" => Ok(Saved::Done),
        "stale" => Ok(Saved::Stale),
        "frozen" => Ok(Saved::Frozen),
        "gone" => Ok(Saved::Gone),
        _ => Err(unreadable()),
    }
}

/// Takes the fields out of a map, or out of a list that alternates names and values. Strings are
/// moved, not copied.
fn fields(reply: Value) -> Fields {
    let pairs = match reply {
        Value::Map(pairs) => pairs,
        Value::Array(list) => {
            let mut list = list.into_iter();
            std::iter::from_fn(|| list.next().zip(list.next())).collect()
        }
        Value::BulkString(packed) => return unpacked(&packed).unwrap_or_default(),
        _ => Vec::new(),
    };
    let mut fields = Fields::with_capacity_and_hasher(pairs.len(), <_>::default());
    for pair in pairs {
        if let (Value::BulkString(name), Value::BulkString(value)) = pair
            && let Ok(name) = String::from_utf8(name)
        {
            fields.insert(name, value);
        }
    }
    fields
}

/// Parses a MessagePack array of strings that alternates names and values. Returns `None` for
/// anything else.
fn unpacked(mut packed: &[u8]) -> Option<Fields> {
    fn number(packed: &mut &[u8], bytes: usize) -> Option<usize> {
        Some(take(packed, bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }
    fn take<'p>(packed: &mut &'p [u8], count: usize) -> Option<&'p [u8]> {
        let (taken, left) = packed.split_at_checked(count)?;
        *packed = left;
        Some(taken)
    }
    fn text<'p>(packed: &mut &'p [u8]) -> Option<&'p [u8]> {
        let length = match number(packed, 1)? {
            short @ 0xA0..=0xBF => short & 0x1F,
            0xD9 => number(packed, 1)?,
            0xDA => number(packed, 2)?,
            0xDB => number(packed, 4)?,
            _ => return None,
        };
        take(packed, length)
    }
    let packed = &mut packed;
    let count = match number(packed, 1)? {
        short @ 0x90..=0x9F => short & 0x0F,
        0xDC => number(packed, 2)?,
        0xDD => number(packed, 4)?,
        _ => return None,
    };
    let mut fields = Fields::with_capacity_and_hasher(count.min(512) / 2, <_>::default());
    for _ in 0..count / 2 {
        let (name, value) = (text(packed)?, text(packed)?);
        fields.insert(std::str::from_utf8(name).ok()?.to_owned(), value.to_vec());
    }
    Some(fields)
}

#[async_trait]
impl Store for RedisStore {
    async fn load(&self, handle: &Handle, proof: Option<&Proof>) -> Result<Option<Record>, Error> {
        let found = match handle.owner() {
            None => self.load_anonymous(handle).await,
            Some(owner) => self.load_owned(handle, owner).await,
        };
        let mut found = found.map_err(failed)?;
        if !found.contains_key("\0now") && needs_time(&found, proof) {
            found = self.load_with_time(handle).await.map_err(failed)?;
        }
        Ok(read(found, proof))
    }

    async fn create(
        &self,
        handle: &Handle,
        proof: &Proof,
        changes: &PendingChanges,
        lifetime: Lifetime,
    ) -> Result<(), Error> {
        let mut call = self.call(&self.create, handle);
        call.arg(ttl_millis(lifetime.idle))
            .arg(ttl_millis(lifetime.absolute))
            .arg(handle.family())
            .arg(fastrand::u64(..))
            .arg(proof.text());
        for (field, value) in changes.iter() {
            if let Some(value) = value {
                call.arg(field).arg(value);
            }
        }
        call.invoke_async::<i64>(&mut self.server.clone()).await.map(drop).map_err(failed)
    }

    async fn save(
        &self,
        handle: &Handle,
        changes: &PendingChanges,
        renewal: Option<Renewal>,
    ) -> Result<Saved, Error> {
        let mut call = self.call(&self.save, handle);
        let set = changes.iter().filter(|(_, value)| value.is_some()).count();
        call.arg(renewal.map_or(0, |renewal| ttl_millis(renewal.idle)))
            .arg(renewal.map_or(0, |renewal| millis(renewal.grace)));
        call.arg(handle.family()).arg(set);
        for (field, value) in changes.iter() {
            if let Some(value) = value {
                call.arg(field).arg(value);
            }
        }
        for (field, _) in changes.iter().filter(|(_, value)| value.is_none()) {
            call.arg(field);
        }
        let reply: String = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        saved(&reply)
    }

    async fn swap(
        &self,
        handle: &Handle,
        field: &str,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swapped, Error> {
        let mut call = self.call(&self.swap, handle);
        call.arg(field).arg(u8::from(expected.is_some())).arg(expected.unwrap_or_default());
        call.arg(u8::from(new.is_some())).arg(new.unwrap_or_default());
        let reply: Vec<Vec<u8>> =
            call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        let mut reply = reply.into_iter();
        match reply.next().as_deref() {
            Some(b"done") => Ok(Swapped::Done),
            Some(b"gone") => Ok(Swapped::Gone),
            Some(b"found") => Ok(Swapped::Found(reply.next())),
            Some(b"frozen") => Ok(Swapped::Frozen),
            _ => Err(unreadable()),
        }
    }

    async fn add(
        &self,
        handle: &Handle,
        field: &str,
        by: i64,
    ) -> Result<Option<Result<i64, Swapped>>, Error> {
        let mut call = self.call(&self.add, handle);
        call.arg(field).arg(by).arg(&[crate::value::VERSION][..]);
        let reply: Vec<String> =
            call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["done", sum] => sum.parse().map(|sum| Some(Ok(sum))).map_err(|_| unreadable()),
            ["gone"] => Ok(Some(Err(Swapped::Gone))),
            ["frozen"] => Ok(Some(Err(Swapped::Frozen))),
            ["other"] => Ok(None),
            _ => Err(unreadable()),
        }
    }

    async fn rotate(&self, handle: &Handle, from: &Proof, to: &Proof) -> Result<Saved, Error> {
        let mut call = self.call(&self.rotate, handle);
        call.arg(from.text()).arg(to.text()).arg(OLD_PROOFS);
        let reply: String = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        saved(&reply)
    }

    async fn freeze(
        &self,
        handle: &Handle,
        next: &Handle,
        grace: Duration,
    ) -> Result<Option<Fields>, Error> {
        let mut call = self.call(&self.freeze, handle);
        call.arg(millis(grace)).arg(ttl_millis(REPLACED_FOR)).arg(handle.family()).arg(next.text());
        let held = fields(call.invoke_async(&mut self.server.clone()).await.map_err(failed)?);
        let own =
            |held: Fields| held.into_iter().filter(|(field, _)| !field.starts_with('\0')).collect();
        Ok((!held.is_empty()).then(|| own(held)))
    }

    async fn succeed(
        &self,
        handle: &Handle,
        next: &Succession<'_>,
        changes: &PendingChanges,
    ) -> Result<Saved, Error> {
        let mut call = self.call(&self.succeed, handle);
        call.key(self.key(next.handle))
            .arg(next.proof.text())
            .arg(ttl_millis(next.idle))
            .arg(millis(next.grace));
        call.arg(ttl_millis(REPLACED_FOR)).arg(handle.family()).arg(next.handle.text());
        call.arg(changes.iter().filter(|(_, value)| value.is_some()).count());
        for (field, value) in changes.iter() {
            if let Some(value) = value {
                call.arg(field).arg(value);
            }
        }
        for (field, _) in changes.iter().filter(|(_, value)| value.is_none()) {
            call.arg(field);
        }
        let reply: String = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        saved(&reply)
    }

    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error> {
        let mut server = self.server.clone();
        let hashes: Vec<String> =
            server.zrevrange(self.owner_key(owner, "all"), 0, LISTED - 1).await.map_err(failed)?;
        let handles: Vec<_> = hashes
            .iter()
            .filter_map(|hash| Handle::parse(&format!("{hash}{}", owner.text())))
            .collect();
        if handles.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        pipe.hmget(self.owner_key(owner, "owner"), &["life", "revoked"][..]);
        for handle in &handles {
            pipe.hmget(
                self.key(handle),
                &["\0turn", "\0renewed", "\0seen", "\0frozen", IDENTITY, PREDECESSORS][..],
            );
        }
        let mut rows: Vec<Vec<Option<Vec<u8>>>> =
            pipe.query_async(&mut server).await.map_err(failed)?;
        let text = |value: &Option<Vec<u8>>| {
            value.as_deref().and_then(|v| std::str::from_utf8(v).ok()).map(str::to_owned)
        };
        let known = rows.remove(0);
        let (life, revoked) = (known.first().and_then(text), known.get(1).and_then(text));
        let revoked: u64 = revoked.and_then(|n| n.parse().ok()).unwrap_or(0);
        let record = |(handle, row): (Handle, Vec<Option<Vec<u8>>>)| {
            let turn = text(row.first()?)?;
            let (its_life, number) = turn.rsplit_once(':')?;
            if Some(its_life) != life.as_deref() || number.parse::<u64>().ok()? <= revoked {
                return None;
            }
            let renewed =
                SystemTime::UNIX_EPOCH + Duration::from_millis(text(row.get(1)?)?.parse().ok()?);
            if row.get(2)?.is_none() || row.get(3)?.is_some() {
                return None;
            }
            let fields = [IDENTITY, PREDECESSORS].into_iter().zip(row.into_iter().skip(4));
            let fields =
                fields.filter_map(|(field, value)| Some((field.to_owned(), value?))).collect();
            let standing = Standing::Live;
            Some((
                handle,
                Record {
                    fields,
                    renewed,
                    standing,
                    is_current: true,
                    seen: true,
                    is_unconfirmed: false,
                    next: None,
                },
            ))
        };
        Ok(handles.into_iter().zip(rows).filter_map(record).collect())
    }

    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<bool, Error> {
        let keys = (self.owner_key(owner, "owner"), self.owner_key(owner, "all"));
        let mut call =
            self.revoke.key(except.map_or_else(|| keys.0.clone(), |handle| self.key(handle)));
        call.key(keys.0).key(keys.1).arg(except.map(Handle::family).unwrap_or_default());
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn destroy(&self, handle: &Handle, known_for: Duration) -> Result<Destroyed, Error> {
        let mut call = self.call(&self.destroy, handle);
        call.arg(handle.family()).arg(ttl_millis(known_for));
        let reply: Vec<String> =
            call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["done"] => Ok(Destroyed::Done),
            ["gone"] => Ok(Destroyed::Gone),
            ["frozen", next] => Ok(Destroyed::Replaced(Handle::parse(next))),
            _ => Err(unreadable()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn packed_fields_come_back(pairs: std::collections::HashMap<String, Vec<u8>>) {
            let mut packed = vec![0xDC];
            packed.extend_from_slice(&(pairs.len() as u16 * 2).to_be_bytes());
            for part in pairs.iter().flat_map(|(name, value)| [name.as_bytes(), value]) {
                packed.push(0xDA);
                packed.extend_from_slice(&(part.len() as u16).to_be_bytes());
                packed.extend_from_slice(part);
            }
            let found: std::collections::HashMap<_, _> = unpacked(&packed)
                .unwrap()
                .into_iter()
                .collect();
            proptest::prop_assert_eq!(found, pairs);
        }

        #[test]
        fn any_bytes_are_survived(packed: Vec<u8>) {
            let _ = unpacked(&packed);
        }
    }
}
