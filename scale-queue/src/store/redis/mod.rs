//! Jobs in Redis, shared by all processes.
//!
//! All keys of a queue share its hash tag, so that one script can move a job between any two
//! states, and the queues spread over a Cluster.
//!
//! | key | type | holds |
//! | --- | --- | --- |
//! | `{app}:queue:{<queue>}:waiting` | list | jobs of normal priority, oldest first |
//! | `{app}:queue:{<queue>}:high`, `…:low` | list | jobs of the other priorities, oldest first |
//! | `{app}:queue:{<queue>}:promoted` | list | jobs that were first in their line, taken before waiting ones |
//! | `{app}:queue:{<queue>}:suspects` | list | jobs whose handler had begun when their worker died |
//! | `{app}:queue:{<queue>}:scheduled` | sorted set | jobs by due time, ms |
//! | `{app}:queue:{<queue>}:blocked` | sorted set, by bytes | jobs in lines: the line's name and its length, a time (for a group a number), the job |
//! | `{app}:queue:{<queue>}:lines` | sorted set | lines by the time at which their first job is to be tried, ms |
//! | `{app}:queue:{<queue>}:paces` | hash | for lines of rates: ms between two jobs |
//! | `{app}:queue:{<queue>}:unhandled` | set | lines of jobs that no worker could handle |
//! | `{app}:queue:{<queue>}:turns`, `…:taken` | hash | jobs that have a turn: the key of their group by id; by group, the number of turns taken (`c`) and of all turns (`n`) |
//! | `{app}:queue:{<queue>}:drained`, `…:returning` | hash, set | jobs that a drain has taken from the line of their group: their place by id; groups to which jobs of a drain that died come back |
//! | `{app}:queue:{<queue>}:held:<worker>` | hash | jobs by id, leased to that worker |
//! | `{app}:queue:{<queue>}:left:<worker>` | string | mark that the worker has ended: nothing is leased to it any more; kept for 5 minutes |
//! | `{app}:queue:{<queue>}:leases` | sorted set | workers that hold jobs, by the end of their lease, ms |
//! | `{app}:queue:{<queue>}:unbegun` | hash | by worker: ids of jobs whose handler has not begun |
//! | `{app}:queue:{<queue>}:trials` | hash | by worker: the id of the suspect that runs alone |
//! | `{app}:queue:{<queue>}:died`, `…:graves` | sorted set, hash | ids of dead jobs by time of death, ms; reason and job by id |
//! | `{app}:queue:{<queue>}:ended`, `…:records`, `…:tagged:<tag>` | sorted set, hash, sorted sets | ids of ended jobs that are kept, by the time of the end, ms; tags and record by id; ids by tag |
//! | `{app}:queue:{<queue>}:sleepers` | sorted set | idle workers, by the time since which they are idle |
//! | `{app}:queue:{<queue>}:unique:<key>` | string | the id of the job that holds the key; expires |
//! | `{app}:queue:{<queue>}:debounce:<key>` | string | due time and content of the scheduled job that a push under the key replaces; expires |
//! | `{app}:queue:{<queue>}:once:<key>` | string | the id of the job that was pushed under the key; expires |
//! | `{app}:queue:{<queue>}:cancelled` | sorted set | ids of jobs to be ended by the worker that holds or takes them, by time of the request |
//! | `{app}:queue:{<queue>}:totals` | hash | counts since the queue was created |
//! | `{app}:queue:{<queue>}:minute`, `…:hour` | hash | samples of the counts by time; expire |
//! | `{app}:queue:{<queue>}:paused`, `…:timer`, `…:watcher`, `…:large` | string | whether the queue is paused; the idle worker that has set an alarm, and the one that watches the leases of others; whether large jobs wait (all expire) |
//! | `{app}:queue:queues` | set | names of the queues |
//! | channel `{app}:queue:wake:<worker>` | | the name of a queue to look at |

mod ended;
mod limits;
mod shared_state;

mod calls;
mod scripts;

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use parking_lot::RwLock;
use redis::{AsyncCommands, Script, Value};
use scale_common::clock::{ServerClock, millis};
use scale_redis::{Event, Keys};

use self::calls::{allowance, bytes, escaped, failed, number, strings, tags};
use self::scripts::Scripts;
use super::{
    AfterDeath, Cancellation, DeadJob, Destination, Entry, Fetched, History, Listed, ONCE_AFTER,
    PAGE_BYTES, Reclaimed, Request, Resolution, Sample, Settlement, State, Stats, Store, Trial,
    WakeUp, WorkerId,
};
use crate::error::Error;
use crate::format::{pushed_ms, turn_of};

/// Maximum number of jobs per script call, so that no script blocks the server.
const BATCH: usize = 1_000;
/// Longest time by which a command may be delayed on its way.
const LATE: Duration = Duration::from_mins(5);
/// Bytes from which on jobs are taken one by one. The same number is in `ack_and_fetch.lua`.
const LARGE: usize = 16 * 1024;
/// Maximum number of cancellations remembered per queue; the oldest are forgotten, and their jobs
/// run.
const MOST_CANCELLED: isize = 100_000;
/// Time for which cancellations are remembered after the last one.
const CANCELLED_FOR: Duration = Duration::from_hours(30 * 24);

/// Jobs in Redis: standalone, Sentinel or Cluster.
pub struct RedisStore {
    server: scale_redis::Redis,
    app: String,
    keys: Keys,
    history: History,
    known: RwLock<HashSet<String>>,
    /// Queues that had lines at their last fetch.
    lined: RwLock<HashSet<String>>,
    /// Server clock minus local clock, ms.
    clock: ServerClock,
    scripts: Scripts,
    shared_state: shared_state::Scripts,
    limits: limits::Scripts,
    /// Replicas that must have a push before it succeeds.
    replicas: Option<Replicas>,
}

/// Separate connection for pushes, because `WAIT` delays the commands that follow it on its
/// connection.
struct Replicas {
    server: scale_redis::Redis,
    count: usize,
    timeout: Duration,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisStore").field(&self.server).finish()
    }
}

impl RedisStore {
    /// Creates a store of the queues of `app`.
    pub fn new(redis: scale_redis::Redis, app: &str) -> Self {
        Self {
            server: redis,
            app: app.to_owned(),
            keys: Keys::new(app, "queue"),
            history: History::default(),
            known: RwLock::default(),
            lined: RwLock::default(),
            clock: ServerClock::default(),
            scripts: Scripts::new(),
            shared_state: shared_state::Scripts::new(),
            limits: limits::Scripts::new(),
            replicas: None,
        }
    }

    /// Sets how many dead jobs are kept, and for how long.
    pub fn history(mut self, history: History) -> Self {
        self.history = history;
        self
    }
}

impl Replicas {
    /// Runs the script, and returns its answer once enough replicas have what it wrote.
    async fn acknowledged(
        &self,
        script: &Script,
        call: &redis::ScriptInvocation<'_>,
        allowance: Duration,
    ) -> Result<Vec<Value>, Error> {
        let mut pipe = redis::pipe();
        pipe.load_script(script).ignore().invoke_script(call);
        // On the same connection: `WAIT` waits for what this connection has written.
        pipe.cmd("WAIT").arg(self.count).arg(millis(self.timeout));
        let answer = pipe.query_async(&mut self.server.allowing(allowance + self.timeout)).await;
        let (reply, reached): (Vec<Value>, usize) = answer.map_err(failed)?;
        if reached < self.count {
            return Err(Error::Unacknowledged { reached, wanted: self.count });
        }
        Ok(reply)
    }
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

    async fn fetch(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: Request<'_>,
    ) -> Result<Fetched, Error> {
        let names = ["waiting", "scheduled", "sleepers", "paused", "leases"];
        let mut call = self.keyed(&self.scripts.ack_and_fetch, queue, &names);
        call.key(self.held_key(queue, worker));
        let names = [
            "totals", "timer", "cancelled", "promoted", "suspects", "blocked", "lines", "paces",
            "unhandled", "unbegun", "trials", "large",
        ];
        for name in names {
            call.key(self.key(queue, name));
        }
        call.key(self.left_key(queue, worker)).key(self.key(queue, "watcher"));
        call.key(self.key(queue, "high")).key(self.key(queue, "low"));
        call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster()));
        let trial = match request.trial {
            Trial::Running(tag) => [&b"running:"[..], &tag].concat(),
            Trial::Elsewhere => b"elsewhere".to_vec(),
            Trial::Waiting(tag) => [&b"waiting:"[..], &tag].concat(),
            Trial::None => b"none".to_vec(),
            Trial::Next => b"next".to_vec(),
        };
        call.arg(&**worker)
            .arg(request.max.min(BATCH))
            .arg(millis(request.lease))
            .arg(request.max_bytes);
        call.arg(request.begins)
            .arg(trial)
            .arg(millis(request.unhandled_for))
            .arg(request.lines.len());
        for line in request.lines {
            call.arg(line);
        }
        for tag in request.done {
            call.arg(tag);
        }
        let wanted = if request.max > 0 { request.max_bytes } else { 0 };
        let reply: Vec<Value> = call
            .invoke_async(&mut self.server.allowing(allowance(wanted)))
            .await
            .map_err(failed)?;
        let mut reply = reply.into_iter();
        self.tell_time(number(reply.next().as_ref()));
        let acknowledged = number(reply.next().as_ref()) as usize;
        let armed = number(reply.next().as_ref()) == 1;
        let wait = number(reply.next().as_ref());
        let expired = reply.next().and_then(bytes).filter(|worker| !worker.is_empty());
        let (cancelled, overdue) = (tags(reply.next()), tags(reply.next()));
        let suspect = number(reply.next().as_ref()) == 1;
        let lines = strings(reply.next())
            .iter()
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect();
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

    async fn settle(
        &self,
        queue: &str,
        worker: &WorkerId,
        settlements: &[&Settlement],
    ) -> Vec<Result<bool, Error>> {
        // Pipelined on one connection.
        join_all(settlements.iter().map(|settlement| self.settle_one(queue, worker, settlement)))
            .await
    }

    async fn checkpoint(
        &self,
        queue: &str,
        worker: &WorkerId,
        tag: &[u8],
        bytes: &[u8],
    ) -> Result<bool, Error> {
        let mut call = self.scripts.checkpoint.key(self.held_key(queue, worker));
        call.arg(tag).arg(bytes);
        call.invoke_async(&mut self.server.allowing(allowance(bytes.len()))).await.map_err(failed)
    }

    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error> {
        self.server.clone().hkeys(self.held_key(queue, worker)).await.map_err(failed)
    }

    async fn held_jobs(
        &self,
        queue: &str,
        worker: &WorkerId,
        tags: &[Vec<u8>],
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let jobs = self.values(&self.held_key(queue, worker), tags, max_bytes).await?;
        Ok(jobs.into_iter().map(|(_, job)| job).collect())
    }

    async fn heartbeat(
        &self,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<bool, Error> {
        let mut call = self.scripts.renew_lease.key(self.key(queue, "leases"));
        call.arg(&**worker)
            .arg(millis(lease))
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)
    }

    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<Reclaimed, Error> {
        let (mut jobs, mut cursor) = (0, "0".to_owned());
        loop {
            let mut call = self.keyed(
                &self.scripts.reclaim_jobs,
                queue,
                &["promoted", "sleepers", "paused", "leases"],
            );
            call.key(self.held_key(queue, expired));
            for name in [
                "totals", "suspects", "unbegun", "trials", "blocked", "turns", "taken", "drained",
                "waiting", "high", "low", "returning",
            ] {
                call.key(self.key(queue, name));
            }
            call.arg(self.channel())
                .arg(queue)
                .arg(u8::from(self.server.is_cluster()))
                .arg(&**expired)
                .arg(&cursor);
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
            scan.arg(cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(BATCH)
                .arg("TYPE")
                .arg("hash");
            let step = self.server.command_near(scan, &leases).await.map_err(failed)?;
            let (next, keys): (u64, Vec<String>) =
                redis::from_redis_value(step).map_err(|e| failed(e.into()))?;
            for key in keys {
                let Some(worker) = key.strip_prefix(&prefix) else { continue };
                let lease: Option<f64> =
                    self.server.clone().zscore(&leases, worker).await.map_err(failed)?;
                if lease.is_none() {
                    orphans.push(worker.into());
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(orphans);
            }
            // The keyspace may be large, so other tasks run in between.
            tokio::task::yield_now().await;
        }
    }

    fn wake_ups(&self, worker: &WorkerId) -> BoxStream<'static, WakeUp> {
        let subscription = self.server.subscribe([format!("{}{worker}", self.channel())]);
        let wakes = subscription.filter_map(async |event| match event {
            // No queue name begins with `!`.
            Event::Message { payload, .. } => Some(match payload.split_first() {
                Some((b'!', tag)) => WakeUp::Cancel(tag.to_vec()),
                _ => WakeUp::Queue(String::from_utf8_lossy(&payload).into_owned()),
            }),
            Event::Restored => Some(WakeUp::Resync),
            Event::Lost | Event::Heard { .. } => None,
        });
        Box::pin(wakes)
    }

    async fn pass_on(&self, queue: &str, leaves: Option<&WorkerId>) -> Result<(), Error> {
        let mut call = self.call(&self.scripts.wake_workers, queue, &["sleepers", "paused"]);
        call.arg(1)
            .arg(leaves.map_or("", |worker| worker))
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)
    }

    async fn leave(&self, queue: &str, worker: &WorkerId) -> Result<(), Error> {
        // The lease ends with the worker's last job.
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
        let mut call =
            self.call(&self.scripts.wake_workers, queue, &["sleepers", "paused", "lines"]);
        call.arg(BATCH).invoke_async(&mut server).await.map_err(failed)
    }

    async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        let mut call = self.scripts.stats.prepare_invoke();
        for name in [
            "waiting", "promoted", "suspects", "scheduled", "blocked", "died", "paused", "totals",
            "leases", "high", "low",
        ] {
            call.key(self.key(queue, name));
        }
        let replies: Vec<Value> = call
            .arg(self.held_key(queue, ""))
            .invoke_async(&mut self.server.clone())
            .await
            .map_err(failed)?;
        let count = |n: usize| number(replies.get(n)).max(0) as u64;
        let oldest =
            replies.iter().skip(12).filter_map(|head| pushed_ms(&bytes(head.clone())?)).min();
        let (waiting, scheduled, blocked, leased) =
            (count(0) + count(1) + count(2), count(3), count(4), count(11));
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

    async fn record(
        &self,
        queue: &str,
        resolution: Resolution,
        sample: &Sample,
    ) -> Result<(), Error> {
        let mut call = self.scripts.record_sample.key(self.key(queue, resolution.name()));
        let bytes = rmp_serde::to_vec(sample).map_err(Error::store)?;
        call.arg(sample.at_ms).arg(bytes).arg(resolution.step_ms()).arg(resolution.most());
        call.invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn history_of(
        &self,
        queue: &str,
        resolution: Resolution,
        since_ms: u64,
    ) -> Result<Vec<Sample>, Error> {
        let samples: Vec<Vec<u8>> =
            self.server.clone().hvals(self.key(queue, resolution.name())).await.map_err(failed)?;
        let mut samples: Vec<Sample> =
            samples.iter().filter_map(|bytes| rmp_serde::from_slice(bytes).ok()).collect();
        samples.retain(|sample| sample.at_ms >= since_ms);
        samples.sort_unstable_by_key(|sample| sample.at_ms);
        Ok(samples)
    }

    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<DeadJob>, Error> {
        let (mut first, last) = (offset, offset + limit.clamp(1, BATCH) - 1);
        loop {
            let died = self.key(queue, "died");
            let rows: Vec<(Vec<u8>, f64)> = self
                .server
                .clone()
                .zrevrange_withscores(died, first as isize, last as isize)
                .await
                .map_err(failed)?;
            if rows.is_empty() {
                return Ok(Vec::new());
            }
            let tags: Vec<_> = rows.iter().map(|(tag, _)| tag.clone()).collect();
            let graves = self.values(&self.key(queue, "graves"), &tags, PAGE_BYTES).await?;
            let dead_job = |(tag, grave): (Vec<u8>, Vec<u8>)| {
                let (length, rest) = grave.split_first_chunk::<2>()?;
                let (reason, job) =
                    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
                let died_ms = rows
                    .iter()
                    .find(|(known, _)| *known == tag)
                    .map_or(0, |(_, died)| *died as u64);
                Some(DeadJob {
                    bytes: job.to_vec(),
                    reason: String::from_utf8_lossy(reason).into_owned(),
                    died_ms,
                })
            };
            let corpses: Vec<_> = graves.into_iter().filter_map(dead_job).collect();
            // All jobs of a page may have been taken out between the two reads; the next page may
            // have some.
            if !corpses.is_empty() || rows.len() < limit {
                return Ok(corpses);
            }
            first += rows.len();
            if first > last {
                return Ok(corpses);
            }
        }
    }

    async fn take_dead(
        &self,
        queue: &str,
        tag: &[u8],
        died_ms: u64,
        then: &AfterDeath,
    ) -> Result<bool, Error> {
        let names = ["waiting", "sleepers", "paused", "died", "graves", "cancelled", "totals"];
        let mut call = self.keyed(&self.scripts.take_dead, queue, &names);
        let unique = then.unique();
        call.key(
            self.key(
                queue,
                &unique.map_or("waiting".to_owned(), |(key, _)| format!("unique:{key}")),
            ),
        );
        for name in ["high", "low", "blocked", "turns", "taken"] {
            call.key(self.key(queue, name));
        }
        call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster()));
        call.arg(tag).arg(died_ms).arg(u8::from(*then != AfterDeath::Delete));
        call.arg(unique.map_or(0, |(_, life)| millis(*life).max(1)));
        let content = then.content().unwrap_or_default();
        call.arg(content);
        // A job of a group is revived with its content: see `Queue::revive`.
        let group = turn_of(content);
        call.arg(group.as_ref().map_or(0, |group| group.at_once));
        call.arg(group.map_or_else(String::new, |group| group.key));
        let allowance = allowance(content.len());
        call.invoke_async(&mut self.server.allowing(allowance)).await.map_err(failed)
    }

    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error> {
        let (mut server, key) = (self.server.clone(), self.key(queue, "cancelled"));
        // A list cannot be searched cheaply: the worker that takes the job next ends it.
        let mut pipe = redis::pipe();
        pipe.zadd(&key, tag, self.now_ms())
            .ignore()
            .zremrangebyrank(&key, 0, -MOST_CANCELLED - 1)
            .ignore();
        pipe.pexpire(&key, millis(CANCELLED_FOR) as i64).ignore();
        pipe.zrange(self.key(queue, "leases"), 0, BATCH as isize);
        let (workers,): (Vec<String>,) = pipe.query_async(&mut server).await.map_err(failed)?;
        let mut pipe = redis::pipe();
        for worker in &workers {
            pipe.hexists(self.held_key(queue, worker), tag);
        }
        let holds: Vec<bool> = if workers.is_empty() {
            Vec::new()
        } else {
            pipe.query_async(&mut server).await.map_err(failed)?
        };
        for (worker, _) in workers.iter().zip(holds).filter(|(_, holds)| *holds) {
            let message = [b"!", tag].concat();
            server
                .publish::<_, _, ()>(format!("{}{worker}", self.channel()), message)
                .await
                .map_err(failed)?;
        }
        Ok(Cancellation::Asked)
    }

    async fn list(
        &self,
        queue: &str,
        state: State,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<Listed>, Error> {
        let listed = |bytes: Vec<u8>| Listed { bytes, due_ms: None, worker: None, line: None };
        match state {
            State::Waiting => {
                let mut skip = offset;
                for name in ["promoted", "suspects", "high", "waiting", "low"] {
                    let length: usize =
                        self.server.clone().llen(self.key(queue, name)).await.map_err(failed)?;
                    if skip < length {
                        let jobs: Vec<Vec<u8>> =
                            self.page(queue, name, "LRANGE", skip, limit).await?;
                        return Ok(jobs.into_iter().map(listed).collect());
                    }
                    skip -= length;
                }
                Ok(Vec::new())
            }
            State::Scheduled => {
                let jobs: Vec<(Vec<u8>, f64)> =
                    self.page(queue, "scheduled", "ZRANGE", offset, limit).await?;
                Ok(jobs
                    .into_iter()
                    .map(|(bytes, due)| Listed { due_ms: Some(due as u64), ..listed(bytes) })
                    .collect())
            }
            State::Blocked => {
                let members: Vec<(Vec<u8>, f64)> =
                    self.page(queue, "blocked", "ZRANGE", offset, limit).await?;
                let blocked = |(member, _): (Vec<u8>, f64)| {
                    let (length, rest) = member.split_first_chunk::<2>()?;
                    let (line, rest) =
                        rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
                    let line = Some(String::from_utf8_lossy(line).into_owned());
                    Some(Listed { line, ..listed(rest.get(6..)?.to_vec()) })
                };
                Ok(members.into_iter().filter_map(blocked).collect())
            }
            State::Leased => {
                let mut skip = offset;
                for worker in self.holders(queue).await? {
                    let key = self.held_key(queue, &worker);
                    let mut tags: Vec<Vec<u8>> =
                        self.server.clone().hkeys(&key).await.map_err(failed)?;
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

    async fn take_all(
        &self,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let names = [
            "waiting", "promoted", "suspects", "blocked", "lines", "paces", "unhandled",
            "scheduled", "leases",
        ];
        let mut call = self.keyed(&self.scripts.take_all, queue, &names);
        call.key(self.held_key(queue, worker)).key(self.key(queue, "unbegun"));
        for name in ["high", "low", "taken", "drained"] {
            call.key(self.key(queue, name));
        }
        call.arg(&**worker).arg(millis(lease)).arg(BATCH).arg(PAGE_BYTES);
        call.invoke_async(&mut self.server.allowing(allowance(PAGE_BYTES))).await.map_err(failed)
    }

    async fn release_unique(&self, queue: &str, key: &str, tag: &[u8]) -> Result<(), Error> {
        let mut call = self.scripts.release_unique.key(self.key(queue, &format!("unique:{key}")));
        call.arg(tag).invoke_async(&mut self.server.clone()).await.map_err(failed)
    }

    async fn expire_once(&self, queue: &str, keys: &[String]) -> Result<(), Error> {
        for keys in keys.chunks(BATCH) {
            let mut pipe = redis::pipe();
            for key in keys {
                pipe.pexpire(self.key(queue, &format!("once:{key}")), millis(ONCE_AFTER) as i64)
                    .ignore();
            }
            pipe.query_async::<()>(&mut self.server.clone()).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn queues(&self) -> Result<Vec<String>, Error> {
        let mut names: Vec<String> =
            self.server.clone().smembers(self.keys.plain("queues")).await.map_err(failed)?;
        names.sort_unstable();
        Ok(names)
    }

    fn now_ms(&self) -> u64 {
        self.clock.now_ms() as u64
    }

    fn app(&self) -> &str {
        &self.app
    }
}
