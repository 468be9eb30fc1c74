//! Jobs of one process, gone with it.

mod ledger;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::ledger::Shared;
use super::{
    CANCELLED, Cancellation, Corpse, Destination, Entry, Fetched, History, Listed, Request, Settlement, State, Stats, Store,
    Wake, WorkerId,
};
use crate::envelope::{Envelope, count_failure, pushed_ms, tag_of};
use crate::error::Error;

/// For one process: development, tests, small sites that can do without their jobs after a crash.
#[derive(Debug, Default)]
pub struct MemoryStore {
    queues: Mutex<BTreeMap<String, Lane>>,
    sleepers: Mutex<HashMap<WorkerId, mpsc::UnboundedSender<Wake>>>,
    history: History,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Vec<u8>>,
    /// By due time, then by order of arrival.
    scheduled: BTreeMap<(Instant, u64), Vec<u8>>,
    leases: HashMap<WorkerId, Lease>,
    dead: VecDeque<Corpse>,
    /// By kind (whether it outlives the job) and key: who holds it, until when.
    unique: HashMap<(bool, String), (Vec<u8>, Instant)>,
    /// Workers that wait to be woken; the last to fall asleep is woken first.
    asleep: Vec<WorkerId>,
    arrivals: u64,
    paused: bool,
    done: u64,
    failed: u64,
}

#[derive(Debug)]
struct Lease {
    until: Instant,
    jobs: HashMap<Vec<u8>, Vec<u8>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, queue: &str, work: impl FnOnce(&mut Lane) -> T) -> T {
        let mut queues = self.queues.lock();
        if let Some(lane) = queues.get_mut(queue) {
            return work(lane);
        }
        work(queues.entry(queue.to_owned()).or_default())
    }

    /// Wakes up to `count` workers that sleep.
    fn wake(&self, queue: &str, lane: &mut Lane, mut count: usize) {
        let mut sleepers = self.sleepers.lock();
        while count > 0
            && !lane.paused
            && let Some(worker) = lane.asleep.pop()
        {
            let heard = sleepers.get(&worker).is_some_and(|s| s.send(Wake::Queue(queue.to_owned())).is_ok());
            if heard {
                count -= 1;
            } else {
                sleepers.remove(&worker);
            }
        }
    }

    fn bury(&self, lane: &mut Lane, bytes: Vec<u8>, reason: String) {
        let died_ms = self.now_ms();
        lane.dead.push_front(Corpse { bytes, reason, died_ms });
        lane.dead.truncate(self.history.dead);
        let oldest = died_ms.saturating_sub(self.history.age.as_millis() as u64);
        while lane.dead.back().is_some_and(|c| c.died_ms < oldest) {
            lane.dead.pop_back();
        }
    }
}

impl Lane {
    fn schedule(&mut self, due: Instant, bytes: Vec<u8>) {
        self.arrivals += 1;
        self.scheduled.insert((due, self.arrivals), bytes);
    }

    /// Lets what is due wait; returns how many.
    fn promote(&mut self, now: Instant) -> usize {
        let mut count = 0;
        while let Some(first) = self.scheduled.first_entry().filter(|e| e.key().0 <= now) {
            self.waiting.push_back(first.remove());
            count += 1;
        }
        count
    }

    fn free(&mut self, unique: Option<&String>, tag: &[u8]) {
        if let Some(key) = unique
            && let key = (false, key.clone())
            && self.unique.get(&key).is_some_and(|(holder, _)| holder == tag)
        {
            self.unique.remove(&key);
        }
    }

    fn look_again(&self, now: Instant) -> Option<Duration> {
        let due = self.scheduled.keys().next().map(|(due, _)| *due);
        let lease = self.leases.values().map(|l| l.until).min();
        due.into_iter().chain(lease).min().map(|at| at.saturating_duration_since(now))
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn push(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let now = Instant::now();
        Ok(self.with(queue, |lane| {
            let mut ready = 0;
            let mut earlier = false;
            let answers = entries
                .iter()
                .map(|entry| {
                    let keys = [(&entry.once, true), (&entry.unique, false)];
                    let keys =
                        keys.into_iter().filter_map(|(key, once)| key.as_ref().map(|(key, life)| ((once, key.clone()), *life)));
                    let keys: Vec<_> = keys.collect();
                    let held = keys.iter().filter_map(|(key, _)| lane.unique.get(key)).find(|(_, until)| *until > now);
                    if let Some((holder, _)) = held {
                        return Some(holder.clone());
                    }
                    let tag = tag_of(&entry.bytes).to_vec();
                    if !keys.is_empty() && fastrand::u8(..64) == 0 {
                        lane.unique.retain(|_, (_, until)| *until > now);
                    }
                    lane.unique.extend(keys.into_iter().map(|(key, life)| (key, (tag.clone(), now + life))));
                    if entry.delay.is_zero() {
                        lane.waiting.push_back(entry.bytes.clone());
                        ready += 1;
                    } else {
                        let due = now + entry.delay;
                        earlier |= lane.scheduled.keys().next().is_none_or(|(first, _)| due < *first);
                        lane.schedule(due, entry.bytes.clone());
                    }
                    None
                })
                .collect();
            self.wake(queue, lane, ready.max(usize::from(earlier)));
            answers
        }))
    }

    async fn fetch(&self, queue: &str, worker: &WorkerId, request: Request<'_>) -> Result<Fetched, Error> {
        let now = Instant::now();
        Ok(self.with(queue, |lane| {
            let mut fetched = Fetched::default();
            let lease = lane.leases.entry(worker.clone()).or_insert_with(|| Lease { until: now, jobs: HashMap::new() });
            fetched.acknowledged = request.done.iter().filter(|tag| lease.jobs.remove(*tag).is_some()).count();
            lane.done += fetched.acknowledged as u64;
            if request.max == 0 {
                return fetched;
            }
            let promoted = lane.promote(now);
            let count = if lane.paused { 0 } else { request.max.min(lane.waiting.len()) };
            fetched.jobs = lane.waiting.drain(..count).collect();
            if let Some(lease) = lane.leases.get_mut(worker) {
                lease.until = now + request.lease;
                lease.jobs.extend(fetched.jobs.iter().map(|bytes| (tag_of(bytes).to_vec(), bytes.clone())));
                if lease.jobs.is_empty() {
                    lane.leases.remove(worker);
                }
            }
            fetched.expired = lane.leases.iter().find(|(_, l)| l.until <= now).map(|(w, _)| w.clone());
            lane.asleep.retain(|w| w != worker);
            if count < request.max {
                lane.asleep.push(worker.clone());
                fetched.armed = true;
                fetched.look_again = lane.look_again(now);
            } else if promoted > 0 {
                self.wake(queue, lane, lane.waiting.len().min(promoted));
            }
            fetched
        }))
    }

    async fn settle(&self, queue: &str, worker: &WorkerId, settlement: &Settlement) -> Result<bool, Error> {
        let now = Instant::now();
        Ok(self.with(queue, |lane| {
            let Some(lease) = lane.leases.get_mut(worker) else { return false };
            if lease.jobs.remove(&settlement.tag).is_none() {
                return false;
            }
            if lease.jobs.is_empty() {
                lane.leases.remove(worker);
            }
            match &settlement.to {
                Destination::Done => lane.done += 1,
                Destination::Scheduled(bytes, delay) => {
                    lane.failed += 1;
                    lane.schedule(now + *delay, bytes.clone());
                    self.wake(queue, lane, 1);
                    return true;
                }
                Destination::Dead(bytes, reason) => {
                    lane.failed += 1;
                    self.bury(lane, bytes.clone(), reason.clone());
                }
                Destination::Waiting(bytes) => {
                    lane.waiting.push_front(bytes.clone());
                    self.wake(queue, lane, 1);
                    return true;
                }
            }
            lane.free(settlement.unique.as_ref(), &settlement.tag);
            true
        }))
    }

    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.with(queue, |lane| lane.leases.get(worker).map(|l| l.jobs.values().cloned().collect()).unwrap_or_default()))
    }

    async fn beat(&self, queue: &str, worker: &WorkerId, lease: Duration) -> Result<bool, Error> {
        let now = Instant::now();
        Ok(self.with(queue, |lane| match lane.leases.get_mut(worker) {
            Some(held) => {
                held.until = now + lease;
                true
            }
            None => false,
        }))
    }

    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<usize, Error> {
        let now = Instant::now();
        Ok(self.with(queue, |lane| {
            if lane.leases.get(expired).is_none_or(|l| l.until > now) {
                return 0;
            }
            let jobs = lane.leases.remove(expired).map(|l| l.jobs).unwrap_or_default();
            let count = jobs.len();
            for (_, mut bytes) in jobs {
                lane.failed += 1;
                count_failure(&mut bytes);
                lane.waiting.push_front(bytes);
            }
            self.wake(queue, lane, count);
            count
        }))
    }

    fn wakes(&self, worker: &WorkerId) -> BoxStream<'static, Wake> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.sleepers.lock().insert(worker.clone(), sender);
        stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|wake| (wake, receiver)) }).boxed()
    }

    async fn pass_on(&self, queue: &str, worker: &WorkerId) -> Result<(), Error> {
        self.with(queue, |lane| {
            lane.asleep.retain(|w| w != worker);
            self.wake(queue, lane, 1);
        });
        Ok(())
    }

    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error> {
        self.with(queue, |lane| {
            lane.paused = paused;
            self.wake(queue, lane, usize::MAX);
        });
        Ok(())
    }

    async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        let now = self.now_ms();
        Ok(self.with(queue, |lane| Stats {
            waiting: lane.waiting.len() as u64,
            scheduled: lane.scheduled.len() as u64,
            leased: lane.leases.values().map(|l| l.jobs.len() as u64).sum(),
            dead: lane.dead.len() as u64,
            done_total: lane.done,
            failed_total: lane.failed,
            lag_ms: lane.waiting.front().and_then(|b| pushed_ms(b)).map_or(0, |then| now.saturating_sub(then)),
            paused: lane.paused,
        }))
    }

    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<Corpse>, Error> {
        Ok(self.with(queue, |lane| lane.dead.iter().skip(offset).take(limit).cloned().collect()))
    }

    async fn exhume(&self, queue: &str, corpse: &Corpse, again: Option<&[u8]>) -> Result<bool, Error> {
        Ok(self.with(queue, |lane| {
            let Some(place) = lane.dead.iter().position(|c| c == corpse) else { return false };
            lane.dead.remove(place);
            if let Some(bytes) = again {
                lane.waiting.push_back(bytes.to_vec());
                self.wake(queue, lane, 1);
            }
            true
        }))
    }

    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error> {
        Ok(self.with(queue, |lane| {
            let waiting = lane.waiting.iter().position(|bytes| tag_of(bytes) == tag);
            let scheduled = lane.scheduled.iter().find(|(_, bytes)| tag_of(bytes) == tag).map(|(key, _)| *key);
            let found = waiting.and_then(|n| lane.waiting.remove(n));
            if let Some(bytes) = found.or_else(|| lane.scheduled.remove(&scheduled?)) {
                let unique = Envelope::decode(&bytes).ok().and_then(|envelope| envelope.body.unique);
                lane.free(unique.as_ref(), tag);
                self.bury(lane, bytes.clone(), CANCELLED.into());
                return Cancellation::Buried(bytes);
            }
            let Some((worker, _)) = lane.leases.iter().find(|(_, lease)| lease.jobs.contains_key(tag)) else {
                return Cancellation::Unknown;
            };
            if let Some(ear) = self.sleepers.lock().get(worker) {
                let _ = ear.send(Wake::Cancel(tag.to_vec()));
            }
            Cancellation::Asked
        }))
    }

    async fn list(&self, queue: &str, state: State, offset: usize, limit: usize) -> Result<Vec<Listed>, Error> {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        Ok(self.with(queue, |lane| match state {
            State::Waiting => {
                let waiting = lane.waiting.iter().skip(offset).take(limit);
                waiting.map(|bytes| Listed { bytes: bytes.clone(), due_ms: None, worker: None }).collect()
            }
            State::Scheduled => {
                let due_ms = |due: &Instant| now_ms + due.saturating_duration_since(now).as_millis() as u64;
                let scheduled = lane.scheduled.iter().skip(offset).take(limit);
                scheduled
                    .map(|((due, _), bytes)| Listed { bytes: bytes.clone(), due_ms: Some(due_ms(due)), worker: None })
                    .collect()
            }
            State::Leased => {
                let jobs = lane.leases.iter().flat_map(|(worker, lease)| lease.jobs.values().map(move |bytes| (worker, bytes)));
                let listed = |(worker, bytes): (&WorkerId, &Vec<u8>)| Listed {
                    bytes: bytes.clone(),
                    due_ms: None,
                    worker: Some(worker.to_string()),
                };
                jobs.skip(offset).take(limit).map(listed).collect()
            }
        }))
    }

    async fn drain(&self, queue: &str) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.with(queue, |lane| {
            let mut jobs: Vec<_> = lane.waiting.drain(..).collect();
            jobs.extend(std::mem::take(&mut lane.scheduled).into_values());
            for bytes in &jobs {
                let unique = Envelope::decode(bytes).ok().and_then(|envelope| envelope.body.unique);
                lane.free(unique.as_ref(), tag_of(bytes));
            }
            jobs
        }))
    }

    async fn queues(&self) -> Result<Vec<String>, Error> {
        Ok(self.queues.lock().keys().cloned().collect())
    }

    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
    }
}
