//! Jobs shared by all servers.
//!
//! All keys of a queue share its hash tag, so that one script moves a job between any two states, and queues spread over a Cluster.
//!
//! | key | type | holds |
//! | --- | --- | --- |
//! | `{app}:queue:{<queue>}:waiting` | list | jobs, oldest first |
//! | `{app}:queue:{<queue>}:scheduled` | sorted set | jobs by due time, ms |
//! | `{app}:queue:{<queue>}:held:<worker>` | hash | jobs by id, leased to that worker |
//! | `{app}:queue:{<queue>}:leases` | sorted set | workers by the end of their lease, ms |
//! | `{app}:queue:{<queue>}:dead` | sorted set | reason and job, by time of death, ms |
//! | `{app}:queue:{<queue>}:sleepers` | sorted set | idle workers, by when they fell asleep |
//! | `{app}:queue:{<queue>}:unique:<key>` | string | the id of the job that holds the key; expires |
//! | `{app}:queue:{<queue>}:once:<key>` | string | the id of the job that was pushed under the key; expires |
//! | `{app}:queue:{<queue>}:cancelled` | sorted set | ids of jobs to be ended by whoever has or takes them, by when that was asked |
//! | `{app}:queue:{<queue>}:totals` | hash | counts since the queue exists |
//! | `{app}:queue:{<queue>}:paused`, `…:timer` | string | whether; which sleeper has set an alarm (expires) |
//! | `{app}:queue:queues` | set | the queues' names |
//! | channel `{app}:queue:wake:<worker>` | | the name of a queue to look at |

mod ledger;

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use parking_lot::RwLock;
use redis::{AsyncCommands, ErrorKind, RedisError, Script, ServerErrorKind, Value};
use scale_redis::{Event, Keys};

use super::{
    Cancellation, Corpse, Destination, Entry, Fetched, History, Listed, Request, Settlement, State, Stats, Store, Wake, WorkerId,
};
use crate::envelope::{Envelope, pushed_ms, tag_of};
use crate::error::Error;

/// A script's unit of work, so that none holds the server up.
const BATCH: usize = 1_000;
/// Cancellations remembered a queue; the oldest are forgotten, and their jobs run.
const MOST_CANCELLED: isize = 100_000;
/// And for so long after the last one.
const CANCELLED_FOR: Duration = Duration::from_hours(30 * 24);

/// Jobs in Redis: standalone, Sentinel or Cluster.
pub struct RedisStore {
    server: scale_redis::Redis,
    keys: Keys,
    history: History,
    known: RwLock<HashSet<String>>,
    /// The server's clock minus ours, ms.
    offset: AtomicI64,
    scripts: Scripts,
    ledger: ledger::Scripts,
}

struct Scripts {
    push: Script,
    fetch: Script,
    settle: Script,
    beat: Script,
    reclaim: Script,
    nudge: Script,
    exhume: Script,
    drain: Script,
    free: Script,
}

impl Scripts {
    fn new() -> Self {
        let shared = |own: &str| Script::new(&format!("{}\n{own}", include_str!("wake.lua")));
        Self {
            push: shared(include_str!("push.lua")),
            fetch: shared(include_str!("fetch.lua")),
            settle: shared(include_str!("settle.lua")),
            beat: shared(include_str!("beat.lua")),
            reclaim: shared(include_str!("reclaim.lua")),
            nudge: shared(include_str!("nudge.lua")),
            exhume: shared(include_str!("exhume.lua")),
            drain: Script::new(include_str!("drain.lua")),
            free: Script::new(include_str!("free.lua")),
        }
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.server).finish()
    }
}

impl RedisStore {
    /// The queues of `app`.
    pub fn new(redis: scale_redis::Redis, app: &str) -> Self {
        Self {
            server: redis,
            keys: Keys::new(app, "queue"),
            history: History::default(),
            known: RwLock::default(),
            offset: AtomicI64::new(0),
            scripts: Scripts::new(),
            ledger: ledger::Scripts::new(),
        }
    }

    /// How many of the dead are kept, and for how long.
    pub fn history(mut self, history: History) -> Self {
        self.history = history;
        self
    }

    fn key(&self, queue: &str, name: &str) -> String {
        self.keys.tagged(queue, name)
    }

    fn held_key(&self, queue: &str, worker: &str) -> String {
        self.keys.tagged(queue, &format!("held:{worker}"))
    }

    fn channel(&self) -> String {
        self.keys.plain("wake:")
    }

    /// A call with these keys of the queue, and the three arguments every waking script begins with.
    fn call<'s>(&self, script: &'s Script, queue: &str, names: &[&str]) -> redis::ScriptInvocation<'s> {
        let mut call = script.prepare_invoke();
        for name in names {
            call.key(self.key(queue, name));
        }
        call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster()));
        call
    }

    /// Learns the server's clock.
    pub(crate) async fn synchronise(&self) -> Result<(), Error> {
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut self.server.clone()).await.map_err(failed)?;
        self.tell_time(seconds * 1_000 + micros / 1_000);
        Ok(())
    }

    fn tell_time(&self, server_ms: i64) {
        self.offset.store(server_ms - local_ms(), Relaxed);
    }

    /// A queue's name is written down before its first job.
    async fn know(&self, queue: &str) -> Result<(), Error> {
        if !self.known.read().contains(queue) {
            self.server.clone().sadd::<_, _, ()>(self.keys.plain("queues"), queue).await.map_err(failed)?;
            self.known.write().insert(queue.to_owned());
        }
        Ok(())
    }

    async fn push_batch(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let is_plain = |e: &&Entry| e.delay.is_zero() && e.unique.is_none() && e.once.is_none();
        let mut call = self.call(&self.scripts.push, queue, &["waiting", "scheduled", "sleepers", "paused"]);
        call.arg(entries.iter().filter(is_plain).count());
        for entry in entries.iter().filter(is_plain) {
            call.arg(&entry.bytes);
        }
        for entry in entries.iter().filter(|e| !is_plain(e)) {
            call.arg(&entry.bytes).arg(millis(entry.delay));
            for (kind, key) in [("once", &entry.once), ("unique", &entry.unique)] {
                let life = key.as_ref().map_or(0, |(key, life)| {
                    call.key(self.key(queue, &format!("{kind}:{key}")));
                    millis(*life).max(1)
                });
                call.arg(life);
            }
        }
        let mut reply: Vec<Value> = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        self.tell_time(number(reply.first()));
        let mut others = reply.drain(..).skip(1);
        let answers = entries
            .iter()
            .map(|entry| if is_plain(&entry) { None } else { others.next().and_then(bytes).filter(|h| !h.is_empty()) });
        Ok(answers.collect())
    }
}

fn local_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

fn millis(time: Duration) -> u64 {
    // A delay of less than a millisecond is one, not none.
    time.as_micros().div_ceil(1_000).min(u128::from(u32::MAX) * 1_000) as u64
}

fn number(value: Option<&Value>) -> i64 {
    match value {
        Some(Value::Int(n)) => *n,
        _ => 0,
    }
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

fn failed(error: RedisError) -> Error {
    let full = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ResponseError)) && error.to_string().contains("OOM")
        || error.code() == Some("OOM");
    if full { Error::Full } else { Error::store(error) }
}

#[async_trait]
impl Store for RedisStore {
    async fn push(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        self.know(queue).await?;
        if entries.len() <= BATCH {
            return self.push_batch(queue, entries).await;
        }
        let mut answers = Vec::with_capacity(entries.len());
        for batch in entries.chunks(BATCH) {
            answers.extend(self.push_batch(queue, batch).await?);
        }
        Ok(answers)
    }

    async fn fetch(&self, queue: &str, worker: &WorkerId, request: Request<'_>) -> Result<Fetched, Error> {
        let names = ["waiting", "scheduled", "sleepers", "paused", "leases"];
        let mut call = self.call(&self.scripts.fetch, queue, &names);
        call.key(self.held_key(queue, worker)).key(self.key(queue, "totals")).key(self.key(queue, "timer"));
        call.key(self.key(queue, "cancelled"))
            .arg(&**worker)
            .arg(request.max.min(BATCH))
            .arg(millis(request.lease))
            .arg(u8::from(request.holding));
        for tag in request.done {
            call.arg(tag);
        }
        let reply: Vec<Value> = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        let mut reply = reply.into_iter();
        self.tell_time(number(reply.next().as_ref()));
        let acknowledged = number(reply.next().as_ref()) as usize;
        let armed = number(reply.next().as_ref()) == 1;
        let wait = number(reply.next().as_ref());
        let expired = reply.next().and_then(bytes).filter(|w| !w.is_empty());
        let cancelled = reply.next().and_then(bytes).unwrap_or_default();
        Ok(Fetched {
            acknowledged,
            armed,
            look_again: u64::try_from(wait).ok().map(Duration::from_millis),
            expired: expired.map(|w| String::from_utf8_lossy(&w).into()),
            cancelled: cancelled.chunks(16).map(<[u8]>::to_vec).collect(),
            jobs: reply.filter_map(bytes).collect(),
        })
    }

    async fn settle(&self, queue: &str, worker: &WorkerId, settlement: &Settlement) -> Result<bool, Error> {
        let mut call = self.call(&self.scripts.settle, queue, &["waiting", "scheduled", "sleepers", "paused"]);
        call.key(self.held_key(queue, worker)).key(self.key(queue, "totals")).key(self.key(queue, "dead"));
        call.key(self.key(queue, &settlement.unique.as_ref().map_or_else(|| "waiting".into(), |key| format!("unique:{key}"))));
        call.key(self.key(queue, "cancelled"));
        let nothing = Vec::new();
        let (to, job, delay, reason) = match &settlement.to {
            Destination::Done => ("done", &nothing, Duration::ZERO, ""),
            Destination::Scheduled(job, delay) => ("scheduled", job, *delay, ""),
            Destination::Dead(job, reason) => ("dead", job, Duration::ZERO, reason.as_str()),
            Destination::Waiting(job) => ("waiting", job, Duration::ZERO, ""),
        };
        call.arg(&settlement.tag).arg(to).arg(u8::from(settlement.unique.is_some()));
        call.arg(job).arg(millis(delay)).arg(reason).arg(self.history.dead).arg(millis(self.history.age));
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error> {
        self.server.clone().hvals(self.held_key(queue, worker)).await.map_err(failed)
    }

    async fn beat(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<bool, Error> {
        let mut call = self.scripts.beat.key(self.key(queue, "leases"));
        call.arg(&**worker).arg(millis(lease)).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<usize, Error> {
        let mut sum = 0;
        loop {
            let mut call = self.call(&self.scripts.reclaim, queue, &["waiting", "sleepers", "paused", "leases"]);
            call.key(self.held_key(queue, expired)).key(self.key(queue, "totals")).arg(&**expired);
            let step: usize = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
            if step == 0 {
                return Ok(sum);
            }
            sum += step;
        }
    }

    fn wakes(&self, worker: &WorkerId) -> BoxStream<'static, Wake> {
        let subscription = self.server.subscribe([format!("{}{worker}", self.channel())]);
        let wakes = subscription.filter_map(async |event| match event {
            // No queue's name begins so.
            Event::Message { payload, .. } => Some(match payload.split_first() {
                Some((b'!', tag)) => Wake::Cancel(tag.to_vec()),
                _ => Wake::Queue(String::from_utf8_lossy(&payload).into_owned()),
            }),
            Event::Restored => Some(Wake::Unsure),
            Event::Lost => None,
        });
        Box::pin(wakes)
    }

    async fn pass_on(&self, queue: &str, worker: &WorkerId) -> Result<(), Error> {
        let mut call = self.call(&self.scripts.nudge, queue, &["sleepers", "paused"]);
        call.arg(1).arg(&**worker).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error> {
        let (mut server, key) = (self.server.clone(), self.key(queue, "paused"));
        if paused {
            return server.set(key, 1).await.map_err(failed);
        }
        server.del::<_, ()>(key).await.map_err(failed)?;
        let mut call = self.call(&self.scripts.nudge, queue, &["sleepers", "paused"]);
        call.arg(BATCH).invoke_async(&mut server).await.map_err(failed)
    }

    async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        let mut server = self.server.clone();
        let workers: Vec<String> = server.zrange(self.key(queue, "leases"), 0, BATCH as isize).await.map_err(failed)?;
        let mut pipe = redis::pipe();
        pipe.llen(self.key(queue, "waiting")).zcard(self.key(queue, "scheduled")).zcard(self.key(queue, "dead"));
        pipe.exists(self.key(queue, "paused")).lindex(self.key(queue, "waiting"), 0);
        pipe.hget(self.key(queue, "totals"), "done").hget(self.key(queue, "totals"), "failed");
        for worker in &workers {
            pipe.hlen(self.held_key(queue, worker));
        }
        let replies: Vec<Value> = pipe.query_async(&mut server).await.map_err(failed)?;
        let count =
            |n: usize| replies.get(n).map_or(0, |v| redis::from_redis_value_ref::<Option<u64>>(v).ok().flatten().unwrap_or(0));
        let oldest = replies.get(4).cloned().and_then(bytes);
        Ok(Stats {
            waiting: count(0),
            scheduled: count(1),
            dead: count(2),
            paused: count(3) == 1,
            lag_ms: oldest.and_then(|b| pushed_ms(&b)).map_or(0, |then| self.now_ms().saturating_sub(then)),
            done_total: count(5),
            failed_total: count(6),
            leased: (7..replies.len()).map(count).sum(),
        })
    }

    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<Corpse>, Error> {
        let (first, last) = (offset as isize, (offset + limit.clamp(1, BATCH) - 1) as isize);
        let rows: Vec<(Vec<u8>, f64)> =
            self.server.clone().zrevrange_withscores(self.key(queue, "dead"), first, last).await.map_err(failed)?;
        let corpse = |(row, died_ms): (Vec<u8>, f64)| {
            let (length, rest) = row.split_first_chunk::<2>()?;
            let (reason, job) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            Some(Corpse { bytes: job.to_vec(), reason: String::from_utf8_lossy(reason).into_owned(), died_ms: died_ms as u64 })
        };
        Ok(rows.into_iter().filter_map(corpse).collect())
    }

    async fn exhume(&self, queue: &str, corpse: &Corpse, again: Option<&[u8]>) -> Result<bool, Error> {
        let mut call = self.call(&self.scripts.exhume, queue, &["waiting", "sleepers", "paused", "dead", "cancelled"]);
        call.arg(&corpse.reason).arg(&corpse.bytes).arg(again.unwrap_or_default());
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error> {
        let (mut server, key) = (self.server.clone(), self.key(queue, "cancelled"));
        // A list cannot be searched at a fair price: whoever takes the job next ends it.
        let mut pipe = redis::pipe();
        pipe.zadd(&key, tag, self.now_ms()).ignore().zremrangebyrank(&key, 0, -MOST_CANCELLED - 1).ignore();
        pipe.pexpire(&key, millis(CANCELLED_FOR) as i64).ignore();
        pipe.zrange(self.key(queue, "leases"), 0, BATCH as isize);
        let (workers,): (Vec<String>,) = pipe.query_async(&mut server).await.map_err(failed)?;
        let mut pipe = redis::pipe();
        for worker in &workers {
            pipe.hexists(self.held_key(queue, worker), tag);
        }
        let holds: Vec<bool> =
            if workers.is_empty() { Vec::new() } else { pipe.query_async(&mut server).await.map_err(failed)? };
        for (worker, _) in workers.iter().zip(holds).filter(|(_, holds)| *holds) {
            let message = [b"!", tag].concat();
            server.publish::<_, _, ()>(format!("{}{worker}", self.channel()), message).await.map_err(failed)?;
        }
        Ok(Cancellation::Asked)
    }

    async fn list(&self, queue: &str, state: State, offset: usize, limit: usize) -> Result<Vec<Listed>, Error> {
        let mut server = self.server.clone();
        let (first, last) = (offset as isize, (offset + limit.clamp(1, BATCH) - 1) as isize);
        match state {
            State::Waiting => {
                let jobs: Vec<Vec<u8>> = server.lrange(self.key(queue, "waiting"), first, last).await.map_err(failed)?;
                Ok(jobs.into_iter().map(|bytes| Listed { bytes, due_ms: None, worker: None }).collect())
            }
            State::Scheduled => {
                let key = self.key(queue, "scheduled");
                let jobs: Vec<(Vec<u8>, f64)> = server.zrange_withscores(key, first, last).await.map_err(failed)?;
                Ok(jobs.into_iter().map(|(bytes, due)| Listed { bytes, due_ms: Some(due as u64), worker: None }).collect())
            }
            State::Leased => {
                let workers: Vec<String> = server.zrange(self.key(queue, "leases"), 0, BATCH as isize).await.map_err(failed)?;
                let (mut listed, mut skip) = (Vec::new(), offset);
                for worker in workers {
                    if listed.len() >= limit {
                        break;
                    }
                    let jobs: Vec<Vec<u8>> = server.hvals(self.held_key(queue, &worker)).await.map_err(failed)?;
                    let skipped = skip.min(jobs.len());
                    skip -= skipped;
                    let theirs = jobs.into_iter().skip(skipped).take(limit - listed.len());
                    listed.extend(theirs.map(|bytes| Listed { bytes, due_ms: None, worker: Some(worker.clone()) }));
                }
                Ok(listed)
            }
        }
    }

    async fn drain(&self, queue: &str) -> Result<Vec<Vec<u8>>, Error> {
        let mut call = self.scripts.drain.key(self.key(queue, "waiting"));
        call.key(self.key(queue, "scheduled")).arg(BATCH);
        let jobs: Vec<Vec<u8>> = call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        let unique = |bytes: &Vec<u8>| Some((Envelope::decode(bytes).ok()?.body.unique?, tag_of(bytes).to_vec()));
        for (unique, tag) in jobs.iter().filter_map(unique) {
            self.scripts
                .free
                .key(self.key(queue, &format!("unique:{unique}")))
                .arg(tag)
                .invoke_async::<()>(&mut self.server.clone())
                .await
                .map_err(failed)?;
        }
        Ok(jobs)
    }

    async fn queues(&self) -> Result<Vec<String>, Error> {
        let mut names: Vec<String> = self.server.clone().smembers(self.keys.plain("queues")).await.map_err(failed)?;
        names.sort_unstable();
        Ok(names)
    }

    fn now_ms(&self) -> u64 {
        (local_ms() + self.offset.load(Relaxed)).max(0) as u64
    }
}
