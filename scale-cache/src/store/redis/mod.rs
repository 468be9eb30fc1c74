//! The second level on Redis: standalone, Sentinel or Cluster.
//!
//! | key | type | holds | expires |
//! | --- | --- | --- | --- |
//! | `{app}:cache:{<space>:<key>}:e` | string | an entry; without a space `{:<key>}` | TTL + stale time |
//! | `{app}:cache:{<space>:<key>}:l` | string | the token of the process that loads it | 3 s, renewed while it loads |
//! | `{app}:cache:tag:<tag>` | string | the tag's version, µs, and `:` and a database position if one was given | 30 days after its last invalidation or first use |
//! | channel `{app}:cache:news` | | 16 hexadecimal digits of who says so, then `t<version>:<length of tag>:<tag><position>` or `k<key>` | |
//!
//! A tag that expired or was evicted gets a new version, which invalidates what carries it: losing a tag is safe.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use redis::{RedisError, Script, Value};
use scale_redis::{Event, Keys};

use super::{Begun, News, Position, Store, Version};
use crate::codec::{ENDS, VERSION};
use crate::error::Error;

const TAG_LIFE: Duration = Duration::from_hours(30 * 24);

/// Entries shared through Redis.
pub struct RedisStore {
    server: scale_redis::Redis,
    keys: Keys,
    /// Drawn anew at each start: what this process itself says is no news to it.
    speaker: Arc<str>,
    /// The server's clock minus ours, µs.
    offset: Arc<AtomicI64>,
    begin: Script,
    renew: Script,
    fill: Script,
    change: Script,
    touch: Script,
    version: Script,
    invalidate: Script,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.server).finish()
    }
}

impl RedisStore {
    /// The cache of `app`.
    pub fn new(redis: scale_redis::Redis, app: &str) -> Self {
        Self {
            server: redis,
            keys: Keys::new(app, "cache"),
            speaker: format!("{:016x}", fastrand::u64(..)).into(),
            offset: Arc::default(),
            begin: Script::new(include_str!("begin.lua")),
            renew: Script::new(include_str!("renew.lua")),
            fill: Script::new(include_str!("fill.lua")),
            change: Script::new(include_str!("change.lua")),
            touch: Script::new(include_str!("touch.lua")),
            version: Script::new(include_str!("version.lua")),
            invalidate: Script::new(include_str!("invalidate.lua")),
        }
    }

    /// Learns the server's clock.
    pub(crate) async fn synchronise(&self) -> Result<(), Error> {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut self.server.clone()).await.map_err(failed)?;
        self.tell_time(seconds * 1_000_000 + micros);
        Ok(())
    }

    fn tell_time(&self, server_us: u64) {
        self.offset.store(server_us as i64 - local_us(), Relaxed);
    }

    fn entry(&self, key: &str) -> String {
        self.keys.tagged(key, "e")
    }

    fn lease(&self, key: &str) -> String {
        self.keys.tagged(key, "l")
    }

    fn channel(&self) -> String {
        self.keys.plain("news")
    }

    async fn change(&self, key: &str, bytes: Option<&[u8]>, keep: Duration) -> Result<(), Error> {
        let mut call = self.change.key(self.entry(key));
        call.key(self.lease(key)).arg(self.channel()).arg(format!("{}k{key}", self.speaker));
        if let Some(bytes) = bytes {
            call.arg(bytes).arg(millis(keep));
        }
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }
}

fn failed(error: RedisError) -> Error {
    Error::store(error)
}

fn local_us() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

fn millis(time: Duration) -> u64 {
    time.as_millis().clamp(1, u128::from(u32::MAX) * 1_000) as u64
}

/// A message, without its speaker.
fn read(payload: &[u8]) -> Option<News> {
    let (kind, rest) = payload.split_first()?;
    match kind {
        b'k' => Some(News::Changed(std::str::from_utf8(rest).ok()?.into())),
        b't' => {
            let (at_us, rest) = number(rest)?;
            let (length, rest) = number(rest)?;
            let (tag, position) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            let position = (!position.is_empty()).then(|| position.into());
            Some(News::Invalidated(std::str::from_utf8(tag).ok()?.into(), Version { at_us, position }))
        }
        _ => None,
    }
}

/// A number, and what follows its colon.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let colon = bytes.iter().position(|b| *b == b':')?;
    let text = std::str::from_utf8(&bytes[..colon]).ok()?;
    Some((text.parse().ok()?, &bytes[colon + 1..]))
}

/// What lies under a tag's key.
fn version(bytes: &[u8]) -> Result<Version, Error> {
    let unreadable = || Error::store("a tag's version cannot be read");
    let read = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse().ok();
    match number(bytes) {
        Some((at_us, position)) => Ok(Version { at_us, position: Some(position.into()) }),
        None => Ok(Version { at_us: read(bytes).ok_or_else(unreadable)?, position: None }),
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let mut get = redis::Cmd::with_capacity(2, 96);
        get.arg("GET").arg(self.entry(key));
        match self.server.command(&get).await.map_err(failed)? {
            Value::BulkString(bytes) => Ok(Some(bytes)),
            _ => Ok(None),
        }
    }

    async fn begin(&self, key: &str, token: u64, lease: Duration) -> Result<Begun, Error> {
        let mut call = self.begin.key(self.entry(key));
        call.key(self.lease(key)).arg(token).arg(millis(lease));
        let (won, now_us, entry): (bool, u64, Option<Vec<u8>>) =
            call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        self.tell_time(now_us);
        Ok(Begun { won, entry, now_us })
    }

    async fn renew(&self, key: &str, token: u64, lease: Duration) -> Result<bool, Error> {
        let mut call = self.renew.key(self.lease(key));
        call.arg(token).arg(millis(lease)).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn fill(&self, key: &str, token: u64, bytes: &[u8], keep: Duration) -> Result<bool, Error> {
        let mut call = self.fill.key(self.entry(key));
        call.key(self.lease(key)).arg(token).arg(bytes).arg(millis(keep));
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn release(&self, key: &str, token: u64) -> Result<(), Error> {
        let mut call = self.fill.key(self.entry(key));
        call.key(self.lease(key)).arg(token).invoke_async::<bool>(&mut self.server.clone()).await.map(drop).map_err(failed)
    }

    async fn set(&self, key: &str, bytes: &[u8], keep: Duration) -> Result<(), Error> {
        self.change(key, Some(bytes), keep).await
    }

    async fn touch(&self, key: &str, ends: [u8; 16], keep: Duration) -> Result<bool, Error> {
        let mut call = self.touch.key(self.entry(key));
        call.arg(VERSION).arg(ENDS.start).arg(&ends[..]).arg(millis(keep));
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        self.change(key, None, Duration::ZERO).await
    }

    async fn version(&self, tag: &str) -> Result<Version, Error> {
        let mut call = self.version.key(self.keys.plain(&format!("tag:{tag}")));
        let bytes: Vec<u8> = call.arg(millis(TAG_LIFE)).invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        version(&bytes)
    }

    async fn invalidate(&self, tag: &str, position: Option<&Position>) -> Result<Version, Error> {
        let mut call = self.invalidate.key(self.keys.plain(&format!("tag:{tag}")));
        call.arg(millis(TAG_LIFE)).arg(self.channel()).arg(tag).arg(position.map_or(&[][..], |p| p)).arg(&*self.speaker);
        let bytes: Vec<u8> = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        version(&bytes)
    }

    fn news(&self) -> BoxStream<'static, News> {
        let speaker = Arc::clone(&self.speaker);
        let news = self.server.subscribe([self.channel()]).filter_map(move |event| {
            std::future::ready(match event {
                Event::Message { payload, .. } => match payload.split_at_checked(speaker.len()) {
                    Some((who, what)) if who != speaker.as_bytes() => read(what),
                    _ => None,
                },
                Event::Lost => Some(News::Lost),
                Event::Restored => Some(News::Restored),
            })
        });
        Box::pin(news)
    }

    fn get_within(&self) -> Option<Duration> {
        self.server.bound()
    }

    fn now_us(&self) -> u64 {
        (local_us() + self.offset.load(Relaxed)).max(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_message_is_survived(payload: Vec<u8>) {
            let _ = read(&payload);
        }
    }

    #[test]
    fn tags_keys_and_positions_may_hold_anything() {
        let news = |tag: &str, at_us, position: Option<&[u8]>| {
            Some(News::Invalidated(tag.into(), Version { at_us, position: position.map(Into::into) }))
        };
        assert_eq!(read(b"t12:3:a:b"), news("a:b", 12, None));
        assert_eq!(read(b"t12:3:a:b:\xff:1"), news("a:b", 12, Some(b":\xff:1")));
        assert_eq!(read("kключ:1".as_bytes()), Some(News::Changed("ключ:1".into())));
        for junk in [&b"t12"[..], b"t12:99:a", b"tx:1:a", b""] {
            assert_eq!(read(junk), None);
        }
        assert_eq!(version(b"7").unwrap(), Version { at_us: 7, position: None });
        assert_eq!(version(b"7:1.0/A:").unwrap().position.as_deref(), Some(&b"1.0/A:"[..]));
    }
}
