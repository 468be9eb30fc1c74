//! Jobs shared by all servers.
//!
//! All keys of a queue share its hash tag, so that one script moves a job between any two states, and queues spread over a Cluster.
//!
//! | key | type | holds |
//! | --- | --- | --- |
//! | `{app}:queue:{<queue>}:waiting` | list | jobs, oldest first |
//! | `{app}:queue:{<queue>}:promoted` | list | jobs that were first in their line, taken before those that wait |
//! | `{app}:queue:{<queue>}:suspects` | list | jobs whose handler had begun when their worker died |
//! | `{app}:queue:{<queue>}:scheduled` | sorted set | jobs by due time, ms |
//! | `{app}:queue:{<queue>}:blocked` | sorted set, by bytes | jobs in lines: the line's name and length, a time, the job |
//! | `{app}:queue:{<queue>}:lines` | sorted set | lines by when their first is to be tried, ms |
//! | `{app}:queue:{<queue>}:paces` | hash | of lines of rates: ms between two jobs |
//! | `{app}:queue:{<queue>}:unhandled` | set | lines of jobs that no worker could handle |
//! | `{app}:queue:{<queue>}:held:<worker>` | hash | jobs by id, leased to that worker |
//! | `{app}:queue:{<queue>}:left:<worker>` | string | the worker has left: nothing is leased to it any more; for 5 minutes |
//! | `{app}:queue:{<queue>}:leases` | sorted set | workers that hold jobs, by the end of their lease, ms |
//! | `{app}:queue:{<queue>}:unbegun` | hash | by worker: ids of jobs whose handler has not begun |
//! | `{app}:queue:{<queue>}:trials` | hash | by worker: the id of the suspect that runs alone |
//! | `{app}:queue:{<queue>}:died`, `…:graves` | sorted set, hash | ids of the dead by time of death, ms; reason and job by id |
//! | `{app}:queue:{<queue>}:sleepers` | sorted set | idle workers, by when they fell asleep |
//! | `{app}:queue:{<queue>}:unique:<key>` | string | the id of the job that holds the key; expires |
//! | `{app}:queue:{<queue>}:once:<key>` | string | the id of the job that was pushed under the key; expires |
//! | `{app}:queue:{<queue>}:cancelled` | sorted set | ids of jobs to be ended by whoever has or takes them, by when that was asked |
//! | `{app}:queue:{<queue>}:totals` | hash | counts since the queue exists |
//! | `{app}:queue:{<queue>}:minute`, `…:hour` | hash | samples of the counts by time; expire |
//! | `{app}:queue:{<queue>}:paused`, `…:timer`, `…:watcher`, `…:large` | string | whether; which sleeper has set an alarm, and which for the leases of others; whether large jobs wait (all expire) |
//! | `{app}:queue:queues` | set | the queues' names |
//! | channel `{app}:queue:wake:<worker>` | | the name of a queue to look at |

mod ledger;
mod limits;

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use parking_lot::RwLock;
use redis::{AsyncCommands, ErrorKind, RedisError, Script, ServerErrorKind, Value};
use scale_redis::{Event, Keys};

use super::{
    Cancellation, Corpse, Destination, Entry, Fetched, History, Listed, ONCE_AFTER, PAGE_BYTES, Reclaimed, Request, Resolution,
    Revival, Sample, Settlement, State, Stats, Store, Trial, Wake, WorkerId,
};
use crate::envelope::pushed_ms;
use crate::error::Error;

/// A script's unit of work, so that none holds the server up.
const BATCH: usize = 1_000;
/// So late a command may arrive that was held up on its way.
const LATE: Duration = Duration::from_mins(5);
/// Jobs from that size on are taken one by one. The same number is in `ack_and_fetch.lua`.
const LARGE: usize = 16 * 1024;
/// Cancellations remembered a queue; the oldest are forgotten, and their jobs run.
const MOST_CANCELLED: isize = 100_000;
/// And for so long after the last one.
const CANCELLED_FOR: Duration = Duration::from_hours(30 * 24);

/// Jobs in Redis: standalone, Sentinel or Cluster.
pub struct RedisStore {
    server: scale_redis::Redis,
    app: String,
    keys: Keys,
    history: History,
    known: RwLock<HashSet<String>>,
    /// Queues that had lines when they were last looked at.
    lined: RwLock<HashSet<String>>,
    /// The server's clock minus ours, ms.
    offset: AtomicI64,
    scripts: Scripts,
    ledger: ledger::Scripts,
    limits: limits::Scripts,
    /// Replicas that must have a push before it is `Ok`.
    replicas: Option<Replicas>,
}

/// A connection of its own: `WAIT` holds up whatever is sent behind it.
struct Replicas {
    server: scale_redis::Redis,
    count: usize,
    timeout: Duration,
}

struct Scripts {
    push: Script,
    ack_and_fetch: Script,
    settle_job: Script,
    renew_lease: Script,
    reclaim_jobs: Script,
    stats: Script,
    wake_workers: Script,
    wake_line: Script,
    take_all: Script,
    take_dead: Script,
    list_page: Script,
    record_sample: Script,
}

impl Scripts {
    fn new() -> Self {
        let shared = |own: &str| Script::new(&format!("{}\n{own}", include_str!("shared.lua")));
        Self {
            push: shared(include_str!("push.lua")),
            ack_and_fetch: shared(include_str!("ack_and_fetch.lua")),
            settle_job: shared(include_str!("settle_job.lua")),
            renew_lease: shared(include_str!("renew_lease.lua")),
            reclaim_jobs: shared(include_str!("reclaim_jobs.lua")),
            stats: Script::new(include_str!("stats.lua")),
            wake_workers: shared(include_str!("wake_workers.lua")),
            wake_line: shared(include_str!("wake_line.lua")),
            take_all: shared(include_str!("take_all.lua")),
            take_dead: shared(include_str!("take_dead.lua")),
            list_page: Script::new(include_str!("list_page.lua")),
            record_sample: Script::new(include_str!("record_sample.lua")),
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
            app: app.to_owned(),
            keys: Keys::new(app, "queue"),
            history: History::default(),
            known: RwLock::default(),
            lined: RwLock::default(),
            offset: AtomicI64::new(0),
            scripts: Scripts::new(),
            ledger: ledger::Scripts::new(),
            limits: limits::Scripts::new(),
            replicas: None,
        }
    }

    /// How many of the dead are kept, and for how long.
    pub fn history(mut self, history: History) -> Self {
        self.history = history;
        self
    }

    /// A push is `Ok` only once so many replicas have it, within the time-out: see
    /// [`QueueBuilder::replicas`](crate::QueueBuilder::replicas). `server`: a connection for pushes alone.
    pub fn replicas(mut self, server: scale_redis::Redis, count: usize, timeout: Duration) -> Self {
        self.replicas = (count > 0).then_some(Replicas { server, count, timeout });
        self
    }

    fn key(&self, queue: &str, name: &str) -> String {
        self.keys.tagged(queue, name)
    }

    fn held_key(&self, queue: &str, worker: &str) -> String {
        self.keys.tagged(queue, &format!("held:{worker}"))
    }

    fn left_key(&self, queue: &str, worker: &str) -> String {
        self.keys.tagged(queue, &format!("left:{worker}"))
    }

    fn channel(&self) -> String {
        self.keys.plain("wake:")
    }

    /// A call with these keys of the queue, and the three arguments every waking script begins with.
    fn call<'s>(&self, script: &'s Script, queue: &str, names: &[&str]) -> redis::ScriptInvocation<'s> {
        let mut call = self.keyed(script, queue, names);
        call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster()));
        call
    }

    fn keyed<'s>(&self, script: &'s Script, queue: &str, names: &[&str]) -> redis::ScriptInvocation<'s> {
        let mut call = script.prepare_invoke();
        for name in names {
            call.key(self.key(queue, name));
        }
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
        let mut call = self.call(&self.scripts.push, queue, &["waiting", "scheduled", "sleepers", "paused", "large"]);
        call.arg(u8::from(entries.iter().any(|entry| entry.bytes.len() > LARGE)));
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
        let allowance = allowance(entries.iter().map(|entry| entry.bytes.len()).sum());
        let mut reply: Vec<Value> = match &self.replicas {
            None => call.invoke_async(&mut self.server.allowing(allowance)).await.map_err(failed)?,
            Some(replicas) => replicas.acknowledged(&self.scripts.push, &call, allowance).await?,
        };
        self.tell_time(number(reply.first()));
        let mut others = reply.drain(..).skip(1);
        let answers = entries
            .iter()
            .map(|entry| if is_plain(&entry) { None } else { others.next().and_then(bytes).filter(|h| !h.is_empty()) });
        Ok(answers.collect())
    }

    async fn settle_one(&self, queue: &str, worker: &WorkerId, settlement: &Settlement) -> Result<bool, Error> {
        let mut call = self.keyed(&self.scripts.settle_job, queue, &["promoted", "scheduled", "sleepers", "paused", "leases"]);
        call.key(self.held_key(queue, worker));
        for name in ["totals", "died", "graves"] {
            call.key(self.key(queue, name));
        }
        let unique = settlement.unique.as_ref().map_or("waiting".to_owned(), |key| format!("unique:{key}"));
        call.key(self.key(queue, &unique));
        for name in ["cancelled", "blocked", "lines", "paces", "unhandled", "unbegun", "trials", "suspects"] {
            call.key(self.key(queue, name));
        }
        call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster()));
        call.arg(&**worker).arg(&settlement.tag);
        let nothing = Vec::new();
        let (to, bytes, delay) = match &settlement.to {
            Destination::Done => ("done", &nothing, 0),
            Destination::Removed => ("removed", &nothing, 0),
            Destination::Retry(bytes, delay) => ("retry", bytes, millis(*delay)),
            Destination::Deferred(bytes, delay) => ("deferred", bytes.as_ref().unwrap_or(&nothing), millis(*delay)),
            Destination::Dead { bytes, has_failed, .. } => (if *has_failed { "dead" } else { "given_up" }, bytes, 0),
            Destination::Waiting => ("waiting", &nothing, 0),
            Destination::Suspect => ("suspect", &nothing, 0),
            Destination::Blocked { retry_in, .. } => ("blocked", &nothing, millis(*retry_in)),
            Destination::Unhandled(_) => ("unhandled", &nothing, 0),
        };
        call.arg(to).arg(u8::from(settlement.unique.is_some())).arg(bytes).arg(delay);
        match &settlement.to {
            Destination::Dead { reason, .. } => call.arg(reason).arg(self.history.dead).arg(millis(self.history.age)),
            Destination::Blocked { line, pace, .. } => {
                self.note_lines(queue, true);
                call.arg(line).arg(pace.map_or(0.0, |pace| pace.as_secs_f64() * 1e3)).arg(0)
            }
            Destination::Unhandled(line) => call.arg(line).arg(0).arg(0),
            _ => call.arg("").arg(0).arg(0),
        };
        call.invoke_async(&mut self.server.allowing(allowance(bytes.len()))).await.map_err(failed)
    }

    /// A page of a list or sorted set, by its key's name.
    async fn page<T: redis::FromRedisValue>(
        &self,
        queue: &str,
        name: &str,
        command: &str,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<T>, Error> {
        let mut call = self.scripts.list_page.key(self.key(queue, name));
        call.arg(command).arg(offset).arg(limit.clamp(1, BATCH)).arg(PAGE_BYTES);
        call.invoke_async(&mut self.server.allowing(allowance(PAGE_BYTES))).await.map_err(failed)
    }

    /// Values of a hash by their fields: as many as have up to so many bytes, at least one that is there.
    async fn values(&self, key: &str, fields: &[Vec<u8>], max_bytes: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Error> {
        if fields.is_empty() {
            return Ok(Vec::new());
        }
        let mut sizes = redis::pipe();
        for field in fields {
            sizes.cmd("HSTRLEN").arg(key).arg(field);
        }
        let sizes: Vec<usize> = sizes.query_async(&mut self.server.clone()).await.map_err(failed)?;
        let mut sum = 0;
        let there = fields.iter().zip(sizes).filter(|(_, size)| *size > 0);
        let chosen: Vec<_> = there
            .take_while(|(_, size)| {
                let fits = sum < max_bytes;
                sum += size;
                fits
            })
            .map(|(field, _)| field)
            .collect();
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let mut get = redis::cmd("HMGET");
        get.arg(key);
        for field in &chosen {
            get.arg(field);
        }
        let values: Vec<Option<Vec<u8>>> = get.query_async(&mut self.server.allowing(allowance(sum))).await.map_err(failed)?;
        Ok(chosen.into_iter().zip(values).filter_map(|(field, value)| Some((field.clone(), value?))).collect())
    }

    async fn holders(&self, queue: &str) -> Result<Vec<String>, Error> {
        self.server.clone().zrange(self.key(queue, "leases"), 0, BATCH as isize).await.map_err(failed)
    }

    fn note_lines(&self, queue: &str, has_lines: bool) {
        if self.has_lines(queue) != has_lines {
            let mut lined = self.lined.write();
            if has_lines {
                lined.insert(queue.to_owned())
            } else {
                lined.remove(queue)
            };
        }
    }

    /// Returns whether jobs may be blocked in that queue, as far as is known.
    fn has_lines(&self, queue: &str) -> bool {
        self.lined.read().contains(queue)
    }

    /// Moves the first in line to where it is taken next. `false`: there is no such line.
    async fn wake_line(&self, queue: &str, line: &str) -> Result<LineWake, Error> {
        let names = ["promoted", "sleepers", "paused", "blocked", "lines", "paces", "cancelled"];
        let mut call = self.call(&self.scripts.wake_line, queue, &names);
        let woken: u8 = call.arg(line).invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        Ok(match woken {
            0 => LineWake::NoLine,
            1 => LineWake::Woken,
            _ => LineWake::Paused,
        })
    }
}

/// The answer of a line whose first job was to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineWake {
    Woken,
    NoLine,
    /// The queue is paused: its line waits for the end of the pause.
    Paused,
}

impl Replicas {
    /// The answer of the script, once enough replicas have what it wrote.
    async fn acknowledged(
        &self,
        script: &Script,
        call: &redis::ScriptInvocation<'_>,
        allowance: Duration,
    ) -> Result<Vec<Value>, Error> {
        let mut pipe = redis::pipe();
        pipe.load_script(script).ignore().invoke_script(call);
        // On the same connection: it waits for what this one has written.
        pipe.cmd("WAIT").arg(self.count).arg(millis(self.timeout));
        let answer = pipe.query_async(&mut self.server.allowing(allowance + self.timeout)).await;
        let (reply, reached): (Vec<Value>, usize) = answer.map_err(failed)?;
        if reached < self.count {
            return Err(Error::Unacknowledged { reached, wanted: self.count });
        }
        Ok(reply)
    }
}

fn local_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

fn millis(time: Duration) -> u64 {
    // A delay of less than a millisecond is one, not none.
    time.as_micros().div_ceil(1_000).min(u128::from(u32::MAX) * 1_000) as u64
}

/// How much longer an answer or a request of that size may take: a megabyte a second is the slowest link.
fn allowance(bytes: usize) -> Duration {
    Duration::from_micros(bytes as u64)
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

fn tags(value: Option<Value>) -> Vec<Vec<u8>> {
    value.and_then(bytes).map(|ids| ids.chunks(16).map(<[u8]>::to_vec).collect()).unwrap_or_default()
}

fn strings(value: Option<Value>) -> Vec<Vec<u8>> {
    match value {
        Some(Value::Array(values) | Value::Set(values)) => values.into_iter().filter_map(bytes).collect(),
        _ => Vec::new(),
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
        let mut answers = Vec::with_capacity(entries.len());
        for portion in super::portions(entries) {
            answers.extend(self.push_batch(queue, portion).await?);
        }
        Ok(answers)
    }

    async fn fetch(&self, queue: &str, worker: &WorkerId, request: Request<'_>) -> Result<Fetched, Error> {
        let names = ["waiting", "scheduled", "sleepers", "paused", "leases"];
        let mut call = self.keyed(&self.scripts.ack_and_fetch, queue, &names);
        call.key(self.held_key(queue, worker));
        let names = [
            "totals", "timer", "cancelled", "promoted", "suspects", "blocked", "lines", "paces", "unhandled", "unbegun",
            "trials", "large",
        ];
        for name in names {
            call.key(self.key(queue, name));
        }
        call.key(self.left_key(queue, worker)).key(self.key(queue, "watcher"));
        call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster()));
        let trial = match request.trial {
            Trial::Running(tag) => [&b"running:"[..], &tag].concat(),
            Trial::Elsewhere => b"elsewhere".to_vec(),
            Trial::Waiting(tag) => [&b"waiting:"[..], &tag].concat(),
            Trial::None => b"none".to_vec(),
            Trial::Next => b"next".to_vec(),
        };
        call.arg(&**worker).arg(request.max.min(BATCH)).arg(millis(request.lease)).arg(request.max_bytes);
        call.arg(request.begins).arg(trial).arg(millis(request.unhandled_for)).arg(request.lines.len());
        for line in request.lines {
            call.arg(line);
        }
        for tag in request.done {
            call.arg(tag);
        }
        let wanted = if request.max > 0 { request.max_bytes } else { 0 };
        let reply: Vec<Value> = call.invoke_async(&mut self.server.allowing(allowance(wanted))).await.map_err(failed)?;
        let mut reply = reply.into_iter();
        self.tell_time(number(reply.next().as_ref()));
        let acknowledged = number(reply.next().as_ref()) as usize;
        let armed = number(reply.next().as_ref()) == 1;
        let wait = number(reply.next().as_ref());
        let expired = reply.next().and_then(bytes).filter(|worker| !worker.is_empty());
        let (cancelled, overdue) = (tags(reply.next()), tags(reply.next()));
        let suspect = number(reply.next().as_ref()) == 1;
        let lines = strings(reply.next()).iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        self.note_lines(queue, number(reply.next().as_ref()) == 1);
        Ok(Fetched {
            jobs: strings(reply.next()),
            acknowledged,
            armed,
            look_again: u64::try_from(wait).ok().map(Duration::from_millis),
            expired: expired.map(|worker| String::from_utf8_lossy(&worker).into()),
            cancelled,
            overdue,
            suspect,
            lines,
        })
    }

    async fn settle(&self, queue: &str, worker: &WorkerId, settlements: &[&Settlement]) -> Vec<Result<bool, Error>> {
        // Pipelined over one connection.
        join_all(settlements.iter().map(|settlement| self.settle_one(queue, worker, settlement))).await
    }

    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error> {
        self.server.clone().hkeys(self.held_key(queue, worker)).await.map_err(failed)
    }

    async fn held_jobs(&self, queue: &str, worker: &WorkerId, tags: &[Vec<u8>], max_bytes: usize) -> Result<Vec<Vec<u8>>, Error> {
        let jobs = self.values(&self.held_key(queue, worker), tags, max_bytes).await?;
        Ok(jobs.into_iter().map(|(_, job)| job).collect())
    }

    async fn beat(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<bool, Error> {
        let mut call = self.scripts.renew_lease.key(self.key(queue, "leases"));
        call.arg(&**worker).arg(millis(lease)).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<Reclaimed, Error> {
        let (mut jobs, mut cursor) = (0, "0".to_owned());
        loop {
            let mut call = self.keyed(&self.scripts.reclaim_jobs, queue, &["promoted", "sleepers", "paused", "leases"]);
            call.key(self.held_key(queue, expired));
            for name in ["totals", "suspects", "unbegun", "trials"] {
                call.key(self.key(queue, name));
            }
            call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster())).arg(&**expired).arg(&cursor);
            let (moved, next, left): (usize, String, usize) =
                call.invoke_async(&mut self.server.clone()).await.map_err(failed)?;
            jobs += moved;
            if left == 0 || jobs >= 100 {
                return Ok(Reclaimed { jobs, left });
            }
            cursor = next;
        }
    }

    async fn orphans(&self, queue: &str) -> Result<Vec<WorkerId>, Error> {
        let (prefix, leases) = (self.held_key(queue, ""), self.key(queue, "leases"));
        let pattern = format!("{}*", escaped(&prefix));
        let (mut cursor, mut orphans) = (0_u64, Vec::new());
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH).arg("TYPE").arg("hash");
            let step = self.server.command_near(scan, &leases).await.map_err(failed)?;
            let (next, keys): (u64, Vec<String>) = redis::from_redis_value(step).map_err(|e| failed(e.into()))?;
            for key in keys {
                let Some(worker) = key.strip_prefix(&prefix) else { continue };
                let lease: Option<f64> = self.server.clone().zscore(&leases, worker).await.map_err(failed)?;
                if lease.is_none() {
                    orphans.push(worker.into());
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(orphans);
            }
            // The keyspace may be large: others go first.
            tokio::task::yield_now().await;
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
            Event::Lost | Event::Heard { .. } => None,
        });
        Box::pin(wakes)
    }

    async fn pass_on(&self, queue: &str, leaves: Option<&WorkerId>) -> Result<(), Error> {
        let mut call = self.call(&self.scripts.wake_workers, queue, &["sleepers", "paused"]);
        call.arg(1).arg(leaves.map_or("", |worker| worker)).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn leave(&self, queue: &str, worker: &WorkerId) -> Result<(), Error> {
        // Its lease ends with its last job.
        let mut pipe = redis::pipe();
        pipe.zrem(self.key(queue, "sleepers"), &**worker).ignore();
        pipe.pset_ex(self.left_key(queue, worker), 1, millis(LATE)).ignore();
        pipe.query_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error> {
        let (mut server, key) = (self.server.clone(), self.key(queue, "paused"));
        if paused {
            return server.set(key, 1).await.map_err(failed);
        }
        server.del::<_, ()>(key).await.map_err(failed)?;
        let mut call = self.call(&self.scripts.wake_workers, queue, &["sleepers", "paused", "lines"]);
        call.arg(BATCH).invoke_async(&mut server).await.map_err(failed)
    }

    async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        let mut call = self.scripts.stats.prepare_invoke();
        for name in ["waiting", "promoted", "suspects", "scheduled", "blocked", "died", "paused", "totals", "leases"] {
            call.key(self.key(queue, name));
        }
        let replies: Vec<Value> =
            call.arg(self.held_key(queue, "")).invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        let count = |n: usize| number(replies.get(n)).max(0) as u64;
        let oldest = replies.iter().skip(12).filter_map(|head| pushed_ms(&bytes(head.clone())?)).min();
        let (waiting, scheduled, blocked, leased) = (count(0) + count(1) + count(2), count(3), count(4), count(11));
        Ok(Stats {
            waiting,
            scheduled,
            blocked,
            leased,
            dead: count(5),
            pushed_total: waiting + scheduled + blocked + leased + count(7) + count(9) + count(10),
            paused: count(6) == 1,
            lag_ms: oldest.map_or(0, |then| self.now_ms().saturating_sub(then)),
            done_total: count(7),
            failed_total: count(8),
        })
    }

    async fn record(&self, queue: &str, resolution: Resolution, sample: &Sample) -> Result<(), Error> {
        let mut call = self.scripts.record_sample.key(self.key(queue, resolution.name()));
        let bytes = rmp_serde::to_vec(sample).map_err(Error::store)?;
        call.arg(sample.at_ms).arg(bytes).arg(resolution.step_ms()).arg(resolution.most());
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn history_of(&self, queue: &str, resolution: Resolution, since_ms: u64) -> Result<Vec<Sample>, Error> {
        let samples: Vec<Vec<u8>> = self.server.clone().hvals(self.key(queue, resolution.name())).await.map_err(failed)?;
        let mut samples: Vec<Sample> = samples.iter().filter_map(|bytes| rmp_serde::from_slice(bytes).ok()).collect();
        samples.retain(|sample| sample.at_ms >= since_ms);
        samples.sort_unstable_by_key(|sample| sample.at_ms);
        Ok(samples)
    }

    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<Corpse>, Error> {
        let (mut first, last) = (offset, offset + limit.clamp(1, BATCH) - 1);
        loop {
            let died = self.key(queue, "died");
            let rows: Vec<(Vec<u8>, f64)> =
                self.server.clone().zrevrange_withscores(died, first as isize, last as isize).await.map_err(failed)?;
            if rows.is_empty() {
                return Ok(Vec::new());
            }
            let tags: Vec<_> = rows.iter().map(|(tag, _)| tag.clone()).collect();
            let graves = self.values(&self.key(queue, "graves"), &tags, PAGE_BYTES).await?;
            let corpse = |(tag, grave): (Vec<u8>, Vec<u8>)| {
                let (length, rest) = grave.split_first_chunk::<2>()?;
                let (reason, job) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
                let died_ms = rows.iter().find(|(known, _)| *known == tag).map_or(0, |(_, died)| *died as u64);
                Some(Corpse { bytes: job.to_vec(), reason: String::from_utf8_lossy(reason).into_owned(), died_ms })
            };
            let corpses: Vec<_> = graves.into_iter().filter_map(corpse).collect();
            // All of a page taken out between the two looks: the next one may have some.
            if !corpses.is_empty() || rows.len() < limit {
                return Ok(corpses);
            }
            first += rows.len();
            if first > last {
                return Ok(corpses);
            }
        }
    }

    async fn take_dead(&self, queue: &str, tag: &[u8], died_ms: u64, revival: &Revival) -> Result<bool, Error> {
        let names = ["waiting", "sleepers", "paused", "died", "graves", "cancelled", "totals"];
        let mut call = self.keyed(&self.scripts.take_dead, queue, &names);
        let unique = match revival {
            Revival::Again(unique) => unique.as_ref(),
            Revival::Gone => None,
        };
        call.key(self.key(queue, &unique.map_or("waiting".to_owned(), |(key, _)| format!("unique:{key}"))));
        call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster()));
        call.arg(tag).arg(died_ms).arg(u8::from(*revival != Revival::Gone));
        call.arg(unique.map_or(0, |(_, life)| millis(*life).max(1)));
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
        let listed = |bytes: Vec<u8>| Listed { bytes, due_ms: None, worker: None, line: None };
        match state {
            State::Waiting => {
                let mut skip = offset;
                for name in ["promoted", "suspects", "waiting"] {
                    let length: usize = self.server.clone().llen(self.key(queue, name)).await.map_err(failed)?;
                    if skip < length {
                        let jobs: Vec<Vec<u8>> = self.page(queue, name, "LRANGE", skip, limit).await?;
                        return Ok(jobs.into_iter().map(listed).collect());
                    }
                    skip -= length;
                }
                Ok(Vec::new())
            }
            State::Scheduled => {
                let jobs: Vec<(Vec<u8>, f64)> = self.page(queue, "scheduled", "ZRANGE", offset, limit).await?;
                Ok(jobs.into_iter().map(|(bytes, due)| Listed { due_ms: Some(due as u64), ..listed(bytes) }).collect())
            }
            State::Blocked => {
                let members: Vec<(Vec<u8>, f64)> = self.page(queue, "blocked", "ZRANGE", offset, limit).await?;
                let blocked = |(member, _): (Vec<u8>, f64)| {
                    let (length, rest) = member.split_first_chunk::<2>()?;
                    let (line, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
                    let line = Some(String::from_utf8_lossy(line).into_owned());
                    Some(Listed { line, ..listed(rest.get(6..)?.to_vec()) })
                };
                Ok(members.into_iter().filter_map(blocked).collect())
            }
            State::Leased => {
                let mut skip = offset;
                for worker in self.holders(queue).await? {
                    let key = self.held_key(queue, &worker);
                    let mut tags: Vec<Vec<u8>> = self.server.clone().hkeys(&key).await.map_err(failed)?;
                    if skip >= tags.len() {
                        skip -= tags.len();
                        continue;
                    }
                    tags.sort_unstable();
                    let wanted: Vec<_> = tags.into_iter().skip(skip).take(limit).collect();
                    skip = 0;
                    let jobs = self.values(&key, &wanted, PAGE_BYTES).await?;
                    if !jobs.is_empty() {
                        return Ok(jobs
                            .into_iter()
                            .map(|(_, job)| Listed { worker: Some(worker.clone()), ..listed(job) })
                            .collect());
                    }
                }
                Ok(Vec::new())
            }
        }
    }

    async fn take_all(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<Vec<Vec<u8>>, Error> {
        let names = ["waiting", "promoted", "suspects", "blocked", "lines", "paces", "unhandled", "scheduled", "leases"];
        let mut call = self.keyed(&self.scripts.take_all, queue, &names);
        call.key(self.held_key(queue, worker)).key(self.key(queue, "unbegun"));
        call.arg(&**worker).arg(millis(lease)).arg(BATCH).arg(PAGE_BYTES);
        call.invoke_async(&mut self.server.allowing(allowance(PAGE_BYTES))).await.map_err(failed)
    }

    async fn expire_once(&self, queue: &str, keys: &[String]) -> Result<(), Error> {
        for keys in keys.chunks(BATCH) {
            let mut pipe = redis::pipe();
            for key in keys {
                pipe.pexpire(self.key(queue, &format!("once:{key}")), millis(ONCE_AFTER) as i64).ignore();
            }
            pipe.query_async::<()>(&mut self.server.clone()).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn queues(&self) -> Result<Vec<String>, Error> {
        let mut names: Vec<String> = self.server.clone().smembers(self.keys.plain("queues")).await.map_err(failed)?;
        names.sort_unstable();
        Ok(names)
    }

    fn now_ms(&self) -> u64 {
        (local_ms() + self.offset.load(Relaxed)).max(0) as u64
    }

    fn app(&self) -> &str {
        &self.app
    }
}

/// As a pattern that matches only itself.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut pattern, character| {
        if "*?[]\\".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
        pattern
    })
}
