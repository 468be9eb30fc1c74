//! The second level on Redis: standalone, Sentinel or Cluster.
//!
//! | key | type | holds | expires |
//! | --- | --- | --- | --- |
//! | `{app}:cache:{<space>:<key>}:e` | string | an entry; without a space `{:<key>}` | TTL + stale time |
//! | `{app}:cache:{<space>:<key>}:l` | string | the token of the process that holds the load lease | 3 s, renewed during the load |
//! | `{app}:cache:whole` | string | the servers (`run_id/master_replid`) for which the store is known to be complete, the time of the last mark, and the time of the previous loss, µs | |
//! | `{app}:cache:tag:<tag>` | string | the tag's version, µs, and `:` and a database position if one was given | 30 days after its last invalidation or first use |
//! | channel `{app}:cache:news`, and `:<n>` in a database other than 0 | | 16 hexadecimal digits that identify the sender, then `t<version>:<length of tag>:<tag><position>` or `k<number>:<key>` | |
//!
//! A tag that expires or is evicted gets a new version, which invalidates all entries that have it:
//! the loss of a tag is safe.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use redis::{RedisError, Script, ScriptInvocation, Value};
use scale_common::clock::ttl_millis;
use scale_redis::{Event, Keys, Subscription};

use super::{Begun, Loss, Position, Store, StoreEvent, Version};
use crate::clock::steady_us;
use crate::error::Error;
use crate::format::{ENDS, VERSION};

const TAG_LIFE: Duration = Duration::from_hours(30 * 24);
/// Maximum assumed lag of a Cluster's replica that replaces its master. The masters do not have a
/// mark of their own.
const CLUSTER_LAG_US: u64 = 60_000_000;
/// Uptime in seconds below which a Cluster's master counts as restarted, from a snapshot of any
/// age.
const RESTARTED: u64 = 120;
/// Number of messages remembered in a Cluster, to detect repetitions from another node.
const REMEMBERED: usize = 1 << 14;

/// Store of entries shared through Redis.
pub struct RedisStore {
    server: scale_redis::Redis,
    keys: Keys,
    /// Random id of this process's messages, which it ignores.
    speaker: Arc<str>,
    /// Number of the next message about a key: it makes all messages different.
    said: AtomicU64,
    /// Difference between the server's clock and this machine's, in µs.
    offset: Arc<AtomicI64>,
    /// Number of lost links in a Cluster, which has no single connection to count.
    losses: Arc<AtomicU64>,
    /// Connection, or number of losses, for which the store is known to be complete.
    whole: AtomicU64,
    /// Result of the last examination.
    examined: Mutex<Option<Examined>>,
    /// `true` if Redis refuses `INFO`, and a warning was logged.
    is_anonymous: AtomicBool,
    /// Servers for which this process last knew the store to be complete.
    own: Mutex<Option<Arc<str>>>,
    /// Replicas that must have an invalidation before it counts as sent.
    replicas: Option<Replicas>,
    begin: Script,
    renew: Script,
    fill: Script,
    change: Script,
    touch: Script,
    version: Script,
    invalidate: Script,
    mark: Script,
}

/// Result of an examination of the store.
#[derive(Clone)]
struct Examined {
    /// Incarnation of the connection.
    incarnation: u64,
    servers: Arc<str>,
    /// Time since which something is lost, in µs.
    since_us: u64,
    /// `true` if other processes have settled the loss.
    is_settled: bool,
}

/// Replicas to wait for, on a separate connection: `WAIT` delays all commands behind it.
struct Replicas {
    server: scale_redis::Redis,
    count: usize,
    within: Duration,
}

impl Replicas {
    /// Runs a script, and returns its answer once enough replicas have its writes.
    async fn acknowledged(
        &self,
        script: &Script,
        call: &ScriptInvocation<'_>,
    ) -> Result<Value, Error> {
        let mut pipe = redis::pipe();
        pipe.load_script(script).ignore().invoke_script(call);
        // `WAIT` must use the same connection as the writes it waits for.
        pipe.cmd("WAIT").arg(self.count).arg(ttl_millis(self.within));
        let answer = pipe.query_async(&mut self.server.allowing(self.within)).await;
        let (reply, reached): (Value, usize) = answer.map_err(failed)?;
        if reached < self.count {
            return Err(Error::refused(format!(
                "only {reached} of {} replicas have confirmed the invalidation",
                self.count
            )));
        }
        Ok(reply)
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.server).finish()
    }
}

impl RedisStore {
    /// Creates the store of `app`.
    pub fn new(redis: scale_redis::Redis, app: &str) -> Self {
        Self {
            server: redis,
            keys: Keys::new(app, "cache"),
            speaker: format!("{:016x}", fastrand::u64(..)).into(),
            said: AtomicU64::new(0),
            offset: Arc::default(),
            losses: Arc::new(AtomicU64::new(1)),
            whole: AtomicU64::new(0),
            examined: Mutex::default(),
            is_anonymous: AtomicBool::new(false),
            own: Mutex::default(),
            replicas: None,
            begin: Script::new(include_str!("begin.lua")),
            renew: Script::new(include_str!("renew.lua")),
            fill: Script::new(include_str!("fill.lua")),
            change: Script::new(include_str!("change.lua")),
            touch: Script::new(include_str!("touch.lua")),
            version: Script::new(include_str!("version.lua")),
            invalidate: Script::new(include_str!("invalidate.lua")),
            mark: Script::new(include_str!("mark.lua")),
        }
    }

    /// Makes an invalidation wait until `count` replicas have it, on a separate connection.
    pub(crate) fn replicas(
        self,
        server: scale_redis::Redis,
        count: usize,
        within: Duration,
    ) -> Self {
        Self { replicas: Some(Replicas { server, count, within }), ..self }
    }

    /// Runs a script that invalidates.
    async fn tell(&self, script: &Script, call: &ScriptInvocation<'_>) -> Result<Value, Error> {
        match &self.replicas {
            Some(replicas) => replicas.acknowledged(script, call).await,
            None => call.invoke_async(&mut self.server.clone()).await.map_err(failed),
        }
    }

    fn tell_time(&self, server_us: u64) {
        self.offset.store(server_us as i64 - steady_us() as i64, Relaxed);
    }

    /// Returns a number that changes when commands may reach another server, or the same one after
    /// a restart.
    fn connection(&self) -> Option<u64> {
        if self.server.is_cluster() {
            Some(self.losses.load(SeqCst))
        } else {
            self.server.generation()
        }
    }

    /// Returns the servers of the current connection, sorted, each with its replication history;
    /// and the shortest uptime, in seconds, of those that `known` does not contain.
    async fn servers(&self, known: &str) -> Result<(Arc<str>, Option<u64>), Error> {
        let mut info = redis::cmd("INFO");
        info.arg("all");
        let answers = match self.server.command_everywhere(info).await.map_err(failed) {
            Ok(answers) => answers,
            // The command is not permitted.
            Err(Error::Refused(error)) => {
                if !self.is_anonymous.swap(true, SeqCst) {
                    tracing::warn!(%error, "Redis refused INFO: losses in \
                        a failover will not be detected");
                }
                return Ok(("unknown".into(), None));
            }
            Err(error) => return Err(error),
        };
        let (mut ids, mut youngest) = (Vec::new(), None);
        for answer in answers {
            let text: String =
                redis::from_redis_value(answer).map_err(|e| Error::store(RedisError::from(e)))?;
            let field = |name: &str| {
                text.lines().find_map(|line| line.trim().strip_prefix(name).map(str::to_owned))
            };
            let id = match (field("run_id:"), field("master_replid:")) {
                // A server that followed another one has a different history.
                (Some(server), Some(history)) => format!("{server}/{history}"),
                // A server without an id always counts as the same.
                _ => "unknown".into(),
            };
            if !known.split(',').any(|known| known == id) {
                let uptime = field("uptime_in_seconds:")
                    .and_then(|seconds| seconds.parse().ok())
                    .unwrap_or_default();
                youngest = Some(youngest.unwrap_or(u64::MAX).min(uptime));
            }
            ids.push(id);
        }
        ids.sort_unstable();
        Ok((ids.join(",").into(), youngest))
    }

    async fn say_mark(&self, examined: &Examined, settles: bool) -> Result<u8, Error> {
        let mut call = self.mark.key(self.keys.plain("whole"));
        call.arg(&*examined.servers).arg(u8::from(settles)).arg(examined.since_us);
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    fn entry(&self, key: &str) -> String {
        self.keys.tagged(key, "e")
    }

    fn lease(&self, key: &str) -> String {
        self.keys.tagged(key, "l")
    }

    fn channel(&self) -> String {
        // Channels belong to the server, keys to one of its databases.
        match redis::aio::ConnectionLike::get_db(&self.server) {
            0 => self.keys.plain("news"),
            database => self.keys.plain(&format!("news:{database}")),
        }
    }

    async fn change(&self, key: &str, bytes: Option<&[u8]>, keep: Duration) -> Result<(), Error> {
        let mut call = self.change.key(self.entry(key));
        let number = self.said.fetch_add(1, Relaxed);
        call.key(self.lease(key))
            .arg(self.channel())
            .arg(format!("{}k{number}:{key}", self.speaker));
        if let Some(bytes) = bytes {
            call.arg(bytes).arg(ttl_millis(keep));
        }
        self.tell(&self.change, &call).await.map(drop)
    }
}

/// Distinguishes an error of one command from a failure of the server or the connection.
fn failed(error: RedisError) -> Error {
    use redis::{ErrorKind, ServerErrorKind};
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::ReadOnly
            | ServerErrorKind::MasterDown
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask,
        ) => Error::store(error),
        ErrorKind::Server(_) | ErrorKind::UnexpectedReturnType | ErrorKind::Extension => {
            Error::refused(error)
        }
        _ => Error::store(error),
    }
}

/// Parses a message, without its sender.
fn read(payload: &[u8]) -> Option<StoreEvent> {
    let (kind, rest) = payload.split_first()?;
    match kind {
        b'k' => Some(StoreEvent::Changed(std::str::from_utf8(number(rest)?.1).ok()?.into())),
        b't' => {
            let (at_us, rest) = number(rest)?;
            let (length, rest) = number(rest)?;
            let (tag, position) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            let position = (!position.is_empty()).then(|| position.into());
            Some(StoreEvent::Invalidated(
                std::str::from_utf8(tag).ok()?.into(),
                Version { at_us, position },
            ))
        }
        _ => None,
    }
}

/// Parses a number that ends with a colon, and returns it with the rest.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let colon = bytes.iter().position(|b| *b == b':')?;
    let text = std::str::from_utf8(&bytes[..colon]).ok()?;
    Some((text.parse().ok()?, &bytes[colon + 1..]))
}

/// Decodes the bytes under a tag's key.
fn version(bytes: &[u8]) -> Result<Version, Error> {
    let unreadable = || Error::store("a tag's version cannot be decoded");
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
            Value::ServerError(error) => Err(failed(error.into())),
            _ => Ok(None),
        }
    }

    async fn begin(&self, key: &str, token: u64, lease: Duration) -> Result<Begun, Error> {
        let mut call = self.begin.key(self.entry(key));
        call.key(self.lease(key)).arg(token).arg(ttl_millis(lease));
        let (won, now_us, entry): (bool, u64, Option<Vec<u8>>) =
            call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        self.tell_time(now_us);
        Ok(Begun { won, entry, now_us })
    }

    async fn renew(&self, key: &str, token: u64, lease: Duration) -> Result<bool, Error> {
        let mut call = self.renew.key(self.lease(key));
        call.arg(token)
            .arg(ttl_millis(lease))
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)
    }

    async fn fill(
        &self,
        key: &str,
        token: u64,
        bytes: &[u8],
        keep: Duration,
    ) -> Result<bool, Error> {
        let mut call = self.fill.key(self.entry(key));
        call.key(self.lease(key)).arg(token).arg(bytes).arg(ttl_millis(keep));
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn release(&self, key: &str, token: u64) -> Result<(), Error> {
        let mut call = self.fill.key(self.entry(key));
        call.key(self.lease(key))
            .arg(token)
            .invoke_async::<bool>(&mut self.server.clone())
            .await
            .map(drop)
            .map_err(failed)
    }

    async fn set(&self, key: &str, bytes: &[u8], keep: Duration) -> Result<(), Error> {
        self.change(key, Some(bytes), keep).await
    }

    async fn touch(&self, key: &str, ends: [u8; 16], keep: Duration) -> Result<bool, Error> {
        let mut call = self.touch.key(self.entry(key));
        call.arg(VERSION).arg(ENDS.start).arg(&ends[..]).arg(ttl_millis(keep));
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        self.change(key, None, Duration::ZERO).await
    }

    async fn version(&self, tag: &str) -> Result<(Version, u64), Error> {
        let mut call = self.version.key(self.keys.plain(&format!("tag:{tag}")));
        let answer = call.arg(ttl_millis(TAG_LIFE)).invoke_async(&mut self.server.clone()).await;
        let (bytes, now_us): (Vec<u8>, u64) = answer.map_err(failed)?;
        if self.has_one_clock() {
            self.tell_time(now_us);
        }
        Ok((version(&bytes)?, now_us))
    }

    async fn invalidate(&self, tag: &str, position: Option<&Position>) -> Result<Version, Error> {
        let mut call = self.invalidate.key(self.keys.plain(&format!("tag:{tag}")));
        call.arg(ttl_millis(TAG_LIFE))
            .arg(self.channel())
            .arg(tag)
            .arg(position.map_or(&[][..], |p| p))
            .arg(&*self.speaker);
        let answer = self.tell(&self.invalidate, &call).await?;
        version(
            &redis::from_redis_value::<Vec<u8>>(answer)
                .map_err(|e| Error::store(RedisError::from(e)))?,
        )
    }

    fn is_whole(&self) -> bool {
        self.connection().is_some_and(|connection| connection == self.whole.load(SeqCst))
    }

    fn incarnation(&self) -> u64 {
        self.connection().unwrap_or_default()
    }

    async fn examine(&self) -> Result<Loss, Error> {
        // All answers are from one server if the connection is the same before and after.
        let (seconds, micros): (u64, u64) =
            redis::cmd("TIME").query_async(&mut self.server.clone()).await.map_err(failed)?;
        let now_us = seconds * 1_000_000 + micros;
        self.tell_time(now_us);
        let incarnation = self.connection();
        let mut get = redis::cmd("GET");
        get.arg(self.keys.plain("whole"));
        let mark: Option<String> =
            get.query_async(&mut self.server.clone()).await.map_err(failed)?;
        let mark = mark.as_deref().and_then(|mark| {
            let mut words = mark.split(' ');
            Some((
                words.next()?,
                words.next()?.parse::<u64>().ok()?,
                words.next()?.parse::<u64>().ok()?,
            ))
        });
        let (servers, youngest) = self.servers(mark.map_or("", |(servers, ..)| servers)).await?;
        let Some(incarnation) = incarnation.filter(|before| self.connection() == Some(*before))
        else {
            return Err(Error::refused("the connection changed during the examination"));
        };
        let own = self.own.lock().clone();
        let is_ours = own.as_ref().is_none_or(|own| *own == servers);
        let (loss, since_us) = match (mark, youngest) {
            (None, _) => (Loss::Everything, now_us),
            (Some(_), None) if is_ours => (Loss::Nothing, 0),
            // Processes that were connected have settled the loss. This process was not connected.
            (Some((_, _, since_us)), None) => (Loss::SettledSince(since_us), since_us),
            (Some(_), Some(youngest)) if self.server.is_cluster() && youngest < RESTARTED => {
                (Loss::Unknown, 0)
            }
            (Some(_), Some(_)) if self.server.is_cluster() => {
                let since_us = now_us.saturating_sub(CLUSTER_LAG_US);
                (Loss::Since(since_us), since_us)
            }
            (Some((_, at, _)), Some(_)) => (Loss::Since(at), at),
        };
        let is_settled = matches!(loss, Loss::Nothing | Loss::SettledSince(_));
        if loss == Loss::Nothing {
            *self.own.lock() = Some(Arc::clone(&servers));
            self.whole.store(incarnation, SeqCst);
        }
        *self.examined.lock() = Some(Examined { incarnation, servers, since_us, is_settled });
        Ok(loss)
    }

    async fn settle(&self) -> Result<(), Error> {
        let Some(examined) = self.examined.lock().clone() else { return Ok(()) };
        if !examined.is_settled && self.say_mark(&examined, true).await? != 1 {
            return Err(Error::refused("another server has replaced the examined one"));
        }
        if self.connection() == Some(examined.incarnation) {
            *self.own.lock() = Some(Arc::clone(&examined.servers));
            self.whole.store(examined.incarnation, SeqCst);
        }
        Ok(())
    }

    async fn mark(&self) {
        let examined = self.examined.lock().clone();
        if let Some(examined) = examined
            && let Ok(2) = self.say_mark(&examined, false).await
        {
            self.whole.store(0, SeqCst);
        }
    }

    fn proves_its_link_within(&self) -> Option<Duration> {
        Some(Subscription::NOTICED_WITHIN)
    }

    fn has_one_clock(&self) -> bool {
        !self.server.is_cluster()
    }

    fn events(&self) -> BoxStream<'static, StoreEvent> {
        let (speaker, losses) = (Arc::clone(&self.speaker), Arc::clone(&self.losses));
        let mut seen = self.server.is_cluster().then(Seen::default);
        let news = self.server.subscribe_everywhere([self.channel()]).filter_map(move |event| {
            std::future::ready(match event {
                Event::Message { payload, .. } => match payload.split_at_checked(speaker.len()) {
                    Some((who, what))
                        if who != speaker.as_bytes()
                            && seen.as_mut().is_none_or(|s| s.is_new(&payload)) =>
                    {
                        read(what)
                    }
                    _ => None,
                },
                Event::Lost => {
                    losses.fetch_add(1, SeqCst);
                    Some(StoreEvent::Lost)
                }
                Event::Restored => Some(StoreEvent::Restored),
                Event::Heard { asked } => Some(StoreEvent::Heard { asked }),
            })
        });
        Box::pin(news)
    }

    fn get_within(&self) -> Option<Duration> {
        self.server.bound()
    }

    fn now_us(&self) -> u64 {
        (steady_us() as i64 + self.offset.load(Relaxed)).max(0) as u64
    }
}

/// Received messages, to detect repetitions from another node of a Cluster.
#[derive(Default)]
struct Seen {
    hashes: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Seen {
    fn is_new(&mut self, payload: &[u8]) -> bool {
        let hash =
            std::hash::BuildHasher::hash_one(&foldhash::quality::FixedState::with_seed(0), payload);
        let is_new = self.hashes.insert(hash);
        if is_new {
            self.order.push_back(hash);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.hashes.remove(&oldest);
            }
        }
        is_new
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
            Some(StoreEvent::Invalidated(
                tag.into(),
                Version { at_us, position: position.map(Into::into) },
            ))
        };
        assert_eq!(read(b"t12:3:a:b"), news("a:b", 12, None));
        assert_eq!(read(b"t12:3:a:b:\xff:1"), news("a:b", 12, Some(b":\xff:1")));
        assert_eq!(read("k7:ключ:1".as_bytes()), Some(StoreEvent::Changed("ключ:1".into())));
        for junk in [&b"t12"[..], b"t12:99:a", b"tx:1:a", b""] {
            assert_eq!(read(junk), None);
        }
        assert_eq!(version(b"7").unwrap(), Version { at_us: 7, position: None });
        assert_eq!(version(b"7:1.0/A:").unwrap().position.as_deref(), Some(&b"1.0/A:"[..]));
    }
}
