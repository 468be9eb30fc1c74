//! Calls of scripts: names of keys, arguments, time, and answers as Rust values.

use std::time::Duration;

use redis::{AsyncCommands, ErrorKind, RedisError, Script, ServerErrorKind, Value};
use scale_common::clock::millis;

use super::{
    BATCH, Destination, Entry, LARGE, PAGE_BYTES, RedisStore, Replicas, Settlement, WorkerId,
};
use crate::error::Error;
use crate::format::{priority_of, turn_of};
use crate::job::Priority;

impl RedisStore {
    /// Makes a push succeed only when that many replicas have it within the timeout: see
    /// [`QueueBuilder::replicas`](crate::QueueBuilder::replicas). `server` is a connection used
    /// only for pushes.
    pub fn replicas(mut self, server: scale_redis::Redis, count: usize, timeout: Duration) -> Self {
        self.replicas = (count > 0).then_some(Replicas { server, count, timeout });
        self
    }

    pub(super) fn key(&self, queue: &str, name: &str) -> String {
        self.keys.tagged(queue, name)
    }

    pub(super) fn held_key(&self, queue: &str, worker: &str) -> String {
        self.keys.tagged(queue, &format!("held:{worker}"))
    }

    pub(super) fn left_key(&self, queue: &str, worker: &str) -> String {
        self.keys.tagged(queue, &format!("left:{worker}"))
    }

    pub(super) fn channel(&self) -> String {
        self.keys.plain("wake:")
    }

    /// Prepares a call with these keys of the queue, and with the three arguments with which every
    /// waking script begins.
    pub(super) fn call<'s>(
        &self,
        script: &'s Script,
        queue: &str,
        names: &[&str],
    ) -> redis::ScriptInvocation<'s> {
        let mut call = self.keyed(script, queue, names);
        call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster()));
        call
    }

    pub(super) fn keyed<'s>(
        &self,
        script: &'s Script,
        queue: &str,
        names: &[&str],
    ) -> redis::ScriptInvocation<'s> {
        let mut call = script.prepare_invoke();
        for name in names {
            call.key(self.key(queue, name));
        }
        call
    }

    /// Reads the server's clock.
    pub(crate) async fn synchronise(&self) -> Result<(), Error> {
        let (seconds, micros): (i64, i64) =
            redis::cmd("TIME").query_async(&mut self.server.clone()).await.map_err(failed)?;
        self.tell_time(seconds * 1_000 + micros / 1_000);
        Ok(())
    }

    pub(super) fn tell_time(&self, server_ms: i64) {
        self.clock.set(server_ms);
    }

    /// Registers the queue's name before its first job.
    pub(super) async fn know(&self, queue: &str) -> Result<(), Error> {
        if !self.known.read().contains(queue) {
            self.server
                .clone()
                .sadd::<_, _, ()>(self.keys.plain("queues"), queue)
                .await
                .map_err(failed)?;
            self.known.write().insert(queue.to_owned());
        }
        Ok(())
    }

    pub(super) async fn push_batch(
        &self,
        queue: &str,
        entries: &[Entry],
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let has_key = |e: &Entry| e.unique.is_some() || e.once.is_some();
        let joins_the_line = |e: &Entry| {
            e.delay.is_zero()
                && e.debounce.is_none()
                && priority_of(&e.bytes) == Priority::Normal
                && turn_of(&e.bytes).is_none()
        };
        // Plain jobs are stored first, together: only those before the first job with a key, so
        // that all are in the order of the push.
        let keyed = entries.iter().position(|entry| has_key(entry) && joins_the_line(entry));
        let (before, after) = entries.split_at(keyed.unwrap_or(entries.len()));
        let is_plain = |e: &&Entry| joins_the_line(e) && !has_key(e);
        let mut call = self.call(
            &self.scripts.push,
            queue,
            &[
                "waiting", "scheduled", "sleepers", "paused", "large", "high", "low", "cancelled",
                "blocked", "turns", "taken", "totals",
            ],
        );
        call.arg(u8::from(entries.iter().any(|entry| entry.bytes.len() > LARGE)));
        call.arg(before.iter().filter(is_plain).count());
        for entry in before.iter().filter(is_plain) {
            call.arg(&entry.bytes);
        }
        for entry in before.iter().filter(|e| !is_plain(e)).chain(after) {
            call.arg(&entry.bytes).arg(millis(entry.delay));
            for (kind, key) in [("once", &entry.once), ("unique", &entry.unique)] {
                let life = key.as_ref().map_or(0, |(key, life)| {
                    call.key(self.key(queue, &format!("{kind}:{key}")));
                    millis(*life).max(1)
                });
                call.arg(life);
            }
            let at_most = entry.debounce.as_ref().map_or(0, |debounce| {
                call.key(self.key(queue, &format!("debounce:{}", debounce.key)));
                millis(debounce.at_most).max(1)
            });
            call.arg(at_most);
            let group = turn_of(&entry.bytes);
            call.arg(group.as_ref().map_or(0, |group| group.at_once));
            call.arg(group.map_or_else(String::new, |group| group.key));
        }
        let allowance = allowance(entries.iter().map(|entry| entry.bytes.len()).sum());
        let mut reply: Vec<Value> = match &self.replicas {
            None => {
                call.invoke_async(&mut self.server.allowing(allowance)).await.map_err(failed)?
            }
            Some(replicas) => replicas.acknowledged(&self.scripts.push, &call, allowance).await?,
        };
        self.tell_time(number(reply.first()));
        let mut others = reply.drain(..).skip(1);
        let mut holder = || others.next().and_then(bytes).filter(|holder| !holder.is_empty());
        let mut answers: Vec<_> =
            before.iter().map(|entry| if is_plain(&entry) { None } else { holder() }).collect();
        answers.extend(after.iter().map(|_| holder()));
        Ok(answers)
    }

    pub(super) async fn settle_one(
        &self,
        queue: &str,
        worker: &WorkerId,
        settlement: &Settlement,
    ) -> Result<bool, Error> {
        let mut call = self.keyed(
            &self.scripts.settle_job,
            queue,
            &["promoted", "scheduled", "sleepers", "paused", "leases"],
        );
        call.key(self.held_key(queue, worker));
        for name in ["totals", "died", "graves"] {
            call.key(self.key(queue, name));
        }
        let unique =
            settlement.unique.as_ref().map_or("waiting".to_owned(), |key| format!("unique:{key}"));
        call.key(self.key(queue, &unique));
        for name in [
            "cancelled", "blocked", "lines", "paces", "unhandled", "unbegun", "trials", "suspects",
            "turns", "taken", "waiting", "high", "low", "drained",
        ] {
            call.key(self.key(queue, name));
        }
        call.arg(self.channel()).arg(queue).arg(u8::from(self.server.is_cluster()));
        call.arg(&**worker).arg(&settlement.tag);
        let nothing = Vec::new();
        let (to, bytes, delay) = match &settlement.to {
            Destination::Done => ("done", &nothing, 0),
            Destination::Removed => ("removed", &nothing, 0),
            Destination::Retry(bytes, delay) => ("retry", bytes, millis(*delay)),
            Destination::Deferred(bytes, delay) => {
                ("deferred", bytes.as_ref().unwrap_or(&nothing), millis(*delay))
            }
            Destination::Dead { bytes, has_failed, .. } => {
                (if *has_failed { "dead" } else { "given_up" }, bytes, 0)
            }
            Destination::Waiting => ("waiting", &nothing, 0),
            Destination::Suspect => ("suspect", &nothing, 0),
            Destination::Blocked { retry_in, .. } => ("blocked", &nothing, millis(*retry_in)),
            Destination::Unhandled(_) => ("unhandled", &nothing, 0),
        };
        call.arg(to).arg(u8::from(settlement.unique.is_some())).arg(bytes).arg(delay);
        match &settlement.to {
            Destination::Dead { reason, .. } => {
                call.arg(reason).arg(self.history.dead).arg(millis(self.history.age))
            }
            Destination::Blocked { line, pace, .. } => {
                self.note_lines(queue, true);
                call.arg(line).arg(pace.map_or(0.0, |pace| pace.as_secs_f64() * 1e3)).arg(0)
            }
            Destination::Unhandled(line) => call.arg(line).arg(0).arg(0),
            _ => call.arg("").arg(0).arg(0),
        };
        call.invoke_async(&mut self.server.allowing(allowance(bytes.len()))).await.map_err(failed)
    }

    /// Returns a page of a list or sorted set, by the name of its key.
    pub(super) async fn page<T: redis::FromRedisValue>(
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

    /// Returns the values of a hash by their fields: as many as fit into `max_bytes`, and at least
    /// one if any exists.
    pub(super) async fn values(
        &self,
        key: &str,
        fields: &[Vec<u8>],
        max_bytes: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Error> {
        if fields.is_empty() {
            return Ok(Vec::new());
        }
        let mut sizes = redis::pipe();
        for field in fields {
            sizes.cmd("HSTRLEN").arg(key).arg(field);
        }
        let sizes: Vec<usize> =
            sizes.query_async(&mut self.server.clone()).await.map_err(failed)?;
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
        let values: Vec<Option<Vec<u8>>> =
            get.query_async(&mut self.server.allowing(allowance(sum))).await.map_err(failed)?;
        Ok(chosen
            .into_iter()
            .zip(values)
            .filter_map(|(field, value)| Some((field.clone(), value?)))
            .collect())
    }

    pub(super) async fn holders(&self, queue: &str) -> Result<Vec<String>, Error> {
        self.server
            .clone()
            .zrange(self.key(queue, "leases"), 0, BATCH as isize)
            .await
            .map_err(failed)
    }

    pub(super) fn note_lines(&self, queue: &str, has_lines: bool) {
        if self.has_lines(queue) != has_lines {
            let mut lined = self.lined.write();
            if has_lines {
                lined.insert(queue.to_owned())
            } else {
                lined.remove(queue)
            };
        }
    }

    /// Returns whether the queue is known to have lines.
    pub(super) fn has_lines(&self, queue: &str) -> bool {
        self.lined.read().contains(queue)
    }

    /// Moves the first job in line to the promoted jobs.
    pub(super) async fn wake_line(&self, queue: &str, line: &str) -> Result<LineWake, Error> {
        let names = ["promoted", "sleepers", "paused", "blocked", "lines", "paces", "cancelled"];
        let mut call = self.call(&self.scripts.wake_line, queue, &names);
        let woken: u8 =
            call.arg(line).invoke_async(&mut self.server.clone()).await.map_err(failed)?;
        Ok(match woken {
            0 => LineWake::NoLine,
            1 => LineWake::Woken,
            _ => LineWake::Paused,
        })
    }
}

/// Result of waking the first job in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineWake {
    Woken,
    NoLine,
    /// The queue is paused, so the line waits until it is resumed.
    Paused,
}

/// Returns the additional time for an answer or a request of that size, at a megabyte per second.
pub(super) fn allowance(bytes: usize) -> Duration {
    Duration::from_micros(bytes as u64)
}

pub(super) fn number(value: Option<&Value>) -> i64 {
    match value {
        Some(Value::Int(n)) => *n,
        _ => 0,
    }
}

pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

pub(super) fn tags(value: Option<Value>) -> Vec<Vec<u8>> {
    value
        .and_then(bytes)
        .map(|ids| ids.chunks(16).map(<[u8]>::to_vec).collect())
        .unwrap_or_default()
}

pub(super) fn strings(value: Option<Value>) -> Vec<Vec<u8>> {
    match value {
        Some(Value::Array(values) | Value::Set(values)) => {
            values.into_iter().filter_map(bytes).collect()
        }
        _ => Vec::new(),
    }
}

pub(super) fn failed(error: RedisError) -> Error {
    let full = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ResponseError))
        && error.to_string().contains("OOM")
        || error.code() == Some("OOM");
    if full { Error::Full } else { Error::store(error) }
}

/// Escapes a text, so that as a pattern it matches only itself.
pub(super) fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut pattern, character| {
        if "*?[]\\".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
        pattern
    })
}
