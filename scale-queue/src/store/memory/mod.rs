//! Jobs in the memory of one process, lost when it ends.

mod clock;
mod ended;
mod groups;
mod limits;
mod queue_data;
mod shared_state;
#[cfg(feature = "testing")]
pub(crate) mod testing;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::clock::Clock;
use self::limits::Limits;
use self::queue_data::{Lease, Line, QueueData};
use self::shared_state::Shared;
use super::{
    AfterDeath, CANCELLED, Cancellation, DeadJob, Destination, Entry, Fetched, History, Listed,
    ONCE_AFTER, PAGE_BYTES, Reclaimed, Request, Resolution, Sample, Settlement, State, Stats,
    Store, Trial, WakeUp, WorkerId, within,
};
use crate::error::Error;
use crate::format::{Envelope, count_failure, pushed_ms, tag_of, without_failures};
use crate::limit::LONGEST;

/// Replaces the tag of the suspect that runs alone if that suspect is of another queue.
const ELSEWHERE: &[u8] = b"!";

/// Store for one process: for development, tests, and small sites that can lose their jobs in a
/// crash.
#[derive(Debug, Default)]
pub struct MemoryStore {
    queues: Mutex<BTreeMap<String, QueueData>>,
    sleepers: Mutex<HashMap<WorkerId, mpsc::UnboundedSender<WakeUp>>>,
    history: History,
    shared: Mutex<Shared>,
    limits: Mutex<Limits>,
    clock: Clock,
    #[cfg(feature = "testing")]
    testing: testing::Testing,
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, queue: &str, work: impl FnOnce(&mut QueueData) -> T) -> T {
        let mut queues = self.queues.lock();
        if let Some(lane) = queues.get_mut(queue) {
            return work(lane);
        }
        work(queues.entry(queue.to_owned()).or_default())
    }

    /// Wakes up to `count` idle workers.
    fn wake(&self, queue: &str, lane: &mut QueueData, mut count: usize) {
        let mut sleepers = self.sleepers.lock();
        while count > 0
            && !lane.paused
            && let Some(worker) = lane.asleep.pop()
        {
            let heard = sleepers
                .get(&worker)
                .is_some_and(|s| s.send(WakeUp::Queue(queue.to_owned())).is_ok());
            if heard {
                count -= 1;
            } else {
                sleepers.remove(&worker);
            }
        }
    }

    /// Moves the first job in line to the promoted jobs. Returns `false` if there is no such line.
    fn wake_line(&self, queue: &str, line: &str) -> bool {
        self.with(queue, |lane| {
            let Some(first) = lane.lines.get_mut(line).and_then(|line| line.jobs.pop_first())
            else {
                return false;
            };
            lane.promoted.push_back(first.1);
            lane.drop_empty(line);
            self.wake(queue, lane, 1);
            true
        })
    }

    /// Returns the queues that have jobs in that line and are not paused.
    fn queues_of(&self, line: &str) -> Vec<String> {
        let queues = self.queues.lock();
        queues
            .iter()
            .filter(|(_, lane)| !lane.paused && lane.lines.contains_key(line))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Returns whether the first job in that line is to be tried within that time.
    fn is_due(&self, queue: &str, line: &str, within: Duration) -> bool {
        let queues = self.queues.lock();
        let line =
            queues.get(queue).filter(|lane| !lane.paused).and_then(|lane| lane.lines.get(line));
        line.is_some_and(|line| line.retry_at <= self.clock.now() + within)
    }

    fn keep_dead(&self, lane: &mut QueueData, bytes: Vec<u8>, reason: String) {
        let died_ms = self.now_ms();
        lane.dead.push_front(DeadJob { bytes, reason, died_ms });
        lane.dead.truncate(self.history.dead);
        let oldest = died_ms.saturating_sub(self.history.age.as_millis() as u64);
        while lane.dead.back().is_some_and(|c| c.died_ms < oldest) {
            lane.dead.pop_back();
        }
    }

    fn settle_one(
        &self,
        queue: &str,
        lane: &mut QueueData,
        worker: &WorkerId,
        settlement: &Settlement,
    ) -> bool {
        let now = self.clock.now();
        let Some(lease) = lane.leases.get_mut(worker) else { return false };
        let Some(stored) = lease.jobs.remove(&settlement.tag) else { return false };
        if lease.jobs.is_empty() {
            lane.leases.remove(worker);
        }
        match &settlement.to {
            Destination::Done => {
                lane.done += 1;
                lane.ended += 1;
            }
            Destination::Removed => lane.ended += 1,
            Destination::Retry(bytes, delay) => {
                lane.failed += 1;
                lane.schedule(now + *delay, bytes.clone());
            }
            Destination::Deferred(bytes, delay) => {
                lane.schedule(now + *delay, bytes.clone().unwrap_or(stored));
            }
            Destination::Dead { bytes, reason, has_failed } => {
                lane.failed += u64::from(*has_failed);
                lane.ended += 1;
                self.keep_dead(lane, bytes.clone(), reason.clone());
            }
            // Not behind its line: the job may have been the first in it, and then no other would
            // be tried.
            Destination::Waiting => lane.come_back(vec![stored]),
            Destination::Suspect => lane.suspects.push_back(stored),
            Destination::Blocked { line, retry_in, pace } => {
                let order = pushed_ms(&stored).unwrap_or(0);
                let retry_at = now + *retry_in;
                let known =
                    lane.lines.entry(line.clone()).or_insert_with(|| Line::new(retry_at, false));
                (known.retry_at, known.pace) = (retry_at, *pace);
                known.jobs.insert((order, tag_of(&stored).to_vec()), stored);
            }
            Destination::Unhandled(line) => {
                let is_new = !lane.lines.contains_key(line);
                let known = lane
                    .lines
                    .entry(line.clone())
                    .or_insert_with(|| Line::new(now + Duration::from_secs(1), true));
                known.jobs.insert((self.now_ms(), tag_of(&stored).to_vec()), stored);
                if is_new {
                    self.wake(queue, lane, usize::MAX);
                }
            }
        }
        match settlement.to {
            Destination::Done | Destination::Removed | Destination::Dead { .. } => {
                lane.free(settlement.unique.as_ref(), &settlement.tag);
                let joined = lane.end_turn(&settlement.tag);
                self.wake(queue, lane, joined);
            }
            Destination::Unhandled(_) => {}
            _ => self.wake(queue, lane, 1),
        }
        true
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn push(&self, queue: &str, entries: &[Entry]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let (now, now_ms) = (self.clock.now(), self.now_ms());
        let answers = self.with(queue, |lane| {
            let mut ready = 0;
            let mut earlier = false;
            let answers: Vec<_> = entries
                .iter()
                .map(|entry| {
                    let keys = [(&entry.once, true), (&entry.unique, false)];
                    let keys = keys.into_iter().filter_map(|(key, once)| {
                        key.as_ref().map(|(key, life)| ((once, key.clone()), *life))
                    });
                    let keys: Vec<_> = keys.collect();
                    let held = keys
                        .iter()
                        .filter_map(|(key, _)| lane.unique.get(key))
                        .find(|(_, until)| *until > now);
                    if let Some((holder, _)) = held {
                        return Some(holder.clone());
                    }
                    let tag = tag_of(&entry.bytes).to_vec();
                    if !keys.is_empty() && fastrand::u8(..64) == 0 {
                        lane.unique.retain(|_, (_, until)| *until > now);
                    }
                    lane.unique.extend(
                        keys.into_iter()
                            .map(|(key, life)| (key, (tag.clone(), now + life.min(LONGEST)))),
                    );
                    if let Some(debounce) = &entry.debounce {
                        earlier = true;
                        return lane.debounce(now, now_ms, entry, debounce);
                    }
                    // A job that waits in line is stored too: the answer is the same.
                    let job = lane.groups.join(entry.bytes.clone())?;
                    if entry.delay.is_zero() {
                        lane.waiting.push_back(job);
                        ready += 1;
                    } else {
                        let due = now + entry.delay.min(LONGEST);
                        earlier |=
                            lane.scheduled.keys().next().is_none_or(|(first, _)| due < *first);
                        lane.schedule(due, job);
                    }
                    None
                })
                .collect();
            self.wake(queue, lane, ready.max(usize::from(earlier)));
            answers
        });
        #[cfg(feature = "testing")]
        self.pushed(queue, entries, &answers);
        Ok(answers)
    }

    async fn fetch(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: Request<'_>,
    ) -> Result<Fetched, Error> {
        let (now, now_ms) = (self.clock.now(), self.now_ms());
        #[cfg(feature = "testing")]
        let _changed = self.testing.changed_later();
        Ok(self.with(queue, |lane| {
            let mut fetched = Fetched::default();
            if let Some(lease) = lane.leases.get_mut(worker) {
                fetched.acknowledged =
                    request.done.iter().filter(|tag| lease.jobs.remove(*tag).is_some()).count();
                lease.unbegun.clear();
                match request.trial {
                    Trial::Running(tag) => lease.trial = Some(tag.to_vec()),
                    Trial::Elsewhere => lease.trial = Some(ELSEWHERE.to_vec()),
                    Trial::Waiting(tag) => {
                        lease.trial = None;
                        lease.unbegun.insert(tag.to_vec());
                    }
                    Trial::None | Trial::Next => lease.trial = None,
                }
                if lease.jobs.is_empty() {
                    lane.leases.remove(worker);
                }
                lane.done += fetched.acknowledged as u64;
                lane.ended += fetched.acknowledged as u64;
            }
            if request.max == 0 {
                return fetched;
            }
            let promoted = lane.promote(now);
            if !lane.paused {
                lane.take(now, now_ms, &request, &mut fetched);
            }
            if !fetched.jobs.is_empty() {
                let fresh = || Lease {
                    until: now,
                    jobs: HashMap::new(),
                    unbegun: HashSet::new(),
                    trial: None,
                };
                let lease = lane.leases.entry(worker.clone()).or_insert_with(fresh);
                let tag = |bytes: &Vec<u8>| tag_of(bytes).to_vec();
                lease.jobs.extend(fetched.jobs.iter().map(|bytes| (tag(bytes), bytes.clone())));
                if fetched.suspect {
                    lease.trial = None;
                    lease.unbegun.extend(fetched.jobs.first().map(tag));
                } else {
                    lease.unbegun.extend(fetched.jobs.iter().skip(request.begins).map(tag));
                }
            }
            if let Some(lease) = lane.leases.get_mut(worker) {
                lease.until = now + request.lease;
            }
            let others = lane.leases.iter().filter(|(w, l)| *w != worker && l.until <= now);
            fetched.expired = others.min_by_key(|(_, l)| l.until).map(|(w, _)| w.clone());
            fetched.lines = lane
                .lines
                .iter()
                .filter(|(_, line)| line.unhandled && !lane.paused)
                .map(|(name, _)| name.clone())
                .collect();
            lane.asleep.retain(|w| w != worker);
            let is_full = fetched.jobs.len() == request.max;
            let left = lane.waiting.len() + lane.promoted.len();
            if !is_full && !fetched.suspect && (left == 0 || lane.paused) {
                lane.asleep.push(worker.clone());
                fetched.armed = true;
                fetched.look_again = lane.look_again(now);
            } else if promoted > 0 {
                // Another worker watches for what becomes due next.
                self.wake(
                    queue,
                    lane,
                    left.min(promoted) + usize::from(!lane.scheduled.is_empty()),
                );
            }
            fetched
        }))
    }

    async fn settle(
        &self,
        queue: &str,
        worker: &WorkerId,
        settlements: &[&Settlement],
    ) -> Vec<Result<bool, Error>> {
        let answers = self.with(queue, |lane| {
            settlements.iter().map(|one| Ok(self.settle_one(queue, lane, worker, one))).collect()
        });
        #[cfg(feature = "testing")]
        self.testing.changed.notify_waiters();
        answers
    }

    async fn checkpoint(
        &self,
        queue: &str,
        worker: &WorkerId,
        tag: &[u8],
        bytes: &[u8],
    ) -> Result<bool, Error> {
        Ok(self.with(queue, |lane| {
            let held = lane.leases.get_mut(worker).and_then(|lease| lease.jobs.get_mut(tag));
            held.map(|job| *job = bytes.to_vec()).is_some()
        }))
    }

    async fn held(&self, queue: &str, worker: &WorkerId) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.with(queue, |lane| {
            lane.leases.get(worker).map(|l| l.jobs.keys().cloned().collect()).unwrap_or_default()
        }))
    }

    async fn held_jobs(
        &self,
        queue: &str,
        worker: &WorkerId,
        tags: &[Vec<u8>],
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let jobs = self.with(queue, |lane| {
            let lease = lane.leases.get(worker);
            lease
                .map(|lease| tags.iter().filter_map(|tag| lease.jobs.get(tag).cloned()).collect())
                .unwrap_or_default()
        });
        Ok(within(jobs, max_bytes, Vec::len))
    }

    async fn heartbeat(
        &self,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<bool, Error> {
        let now = self.clock.now();
        Ok(self.with(queue, |lane| match lane.leases.get_mut(worker) {
            Some(held) => {
                held.until = now + lease;
                true
            }
            None => false,
        }))
    }

    async fn reclaim(&self, queue: &str, expired: &WorkerId) -> Result<Reclaimed, Error> {
        let now = self.clock.now();
        Ok(self.with(queue, |lane| {
            if lane.leases.get(expired).is_none_or(|l| l.until > now) {
                return Reclaimed::default();
            }
            let Some(lease) = lane.leases.remove(expired) else { return Reclaimed::default() };
            let jobs = lease.jobs.len();
            let trial = lease.trial.filter(|tag| lease.jobs.contains_key(tag) || *tag == ELSEWHERE);
            let mut back = Vec::new();
            for (tag, mut bytes) in lease.jobs {
                let is_suspect = match &trial {
                    Some(suspect) => *suspect == tag,
                    None => !lease.unbegun.contains(&tag),
                };
                if is_suspect {
                    lane.failed += 1;
                    count_failure(&mut bytes);
                    lane.suspects.push_back(bytes);
                } else {
                    back.push(bytes);
                }
            }
            lane.come_back(back);
            self.wake(queue, lane, jobs);
            Reclaimed { jobs, left: 0 }
        }))
    }

    async fn orphans(&self, _: &str) -> Result<Vec<WorkerId>, Error> {
        // Each lease contains its jobs, so none is without one.
        Ok(Vec::new())
    }

    fn wake_ups(&self, worker: &WorkerId) -> BoxStream<'static, WakeUp> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.sleepers.lock().insert(worker.clone(), sender);
        stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|wake| (wake, receiver))
        })
        .boxed()
    }

    async fn pass_on(&self, queue: &str, leaves: Option<&WorkerId>) -> Result<(), Error> {
        self.with(queue, |lane| {
            lane.asleep.retain(|worker| Some(worker) != leaves);
            self.wake(queue, lane, 1);
        });
        Ok(())
    }

    async fn leave(&self, queue: &str, worker: &WorkerId) -> Result<(), Error> {
        self.with(queue, |lane| lane.asleep.retain(|w| w != worker));
        self.sleepers.lock().remove(worker);
        Ok(())
    }

    async fn pause(&self, queue: &str, paused: bool) -> Result<(), Error> {
        self.with(queue, |lane| {
            lane.paused = paused;
            let now = self.clock.now();
            // Wake-ups during the pause were not sent.
            lane.lines
                .values_mut()
                .filter(|line| !paused && line.retry_at > now)
                .for_each(|line| line.retry_at = now);
            self.wake(queue, lane, usize::MAX);
        });
        Ok(())
    }

    async fn stats(&self, queue: &str) -> Result<Stats, Error> {
        let now = self.now_ms();
        Ok(self.with(queue, |lane| {
            let waiting = (lane.waiting.len() + lane.promoted.len() + lane.suspects.len()) as u64;
            let (scheduled, blocked) = (
                lane.scheduled.len() as u64,
                lane.lines.values().map(|l| l.jobs.len() as u64).sum::<u64>()
                    + lane.groups.waiting() as u64,
            );
            let leased = lane.leases.values().map(|l| l.jobs.len() as u64).sum();
            Stats {
                waiting,
                scheduled,
                blocked,
                leased,
                dead: lane.dead.len() as u64,
                pushed_total: waiting + scheduled + blocked + leased + lane.ended,
                done_total: lane.done,
                failed_total: lane.failed,
                lag_ms: lane
                    .oldest()
                    .and_then(|b| pushed_ms(b))
                    .map_or(0, |then| now.saturating_sub(then)),
                paused: lane.paused,
            }
        }))
    }

    async fn record(
        &self,
        queue: &str,
        resolution: Resolution,
        sample: &Sample,
    ) -> Result<(), Error> {
        self.with(queue, |lane| {
            let samples = lane.samples.entry(resolution).or_default();
            samples.entry(sample.at_ms).or_insert(*sample);
            while samples.len() as u64 > resolution.most() {
                samples.pop_first();
            }
        });
        Ok(())
    }

    async fn history_of(
        &self,
        queue: &str,
        resolution: Resolution,
        since_ms: u64,
    ) -> Result<Vec<Sample>, Error> {
        Ok(self.with(queue, |lane| {
            let samples = lane.samples.get(&resolution);
            samples
                .map(|samples| samples.range(since_ms..).map(|(_, sample)| *sample).collect())
                .unwrap_or_default()
        }))
    }

    async fn dead(&self, queue: &str, offset: usize, limit: usize) -> Result<Vec<DeadJob>, Error> {
        let dead =
            self.with(queue, |lane| lane.dead.iter().skip(offset).take(limit).cloned().collect());
        Ok(within(dead, PAGE_BYTES, |dead_job: &DeadJob| dead_job.bytes.len()))
    }

    async fn take_dead(
        &self,
        queue: &str,
        tag: &[u8],
        died_ms: u64,
        then: &AfterDeath,
    ) -> Result<bool, Error> {
        let now = self.clock.now();
        Ok(self.with(queue, |lane| {
            let Some(place) =
                lane.dead.iter().position(|c| c.died_ms == died_ms && tag_of(&c.bytes) == tag)
            else {
                return false;
            };
            if let Some((key, life)) = then.unique() {
                let key = (false, key.clone());
                if lane
                    .unique
                    .get(&key)
                    .is_some_and(|(holder, until)| *until > now && holder != tag)
                {
                    return false;
                }
                lane.unique.insert(key, (tag.to_vec(), now + *life));
            }
            if let Some(dead_job) = lane.dead.remove(place)
                && *then != AfterDeath::Delete
            {
                let again = then.content().map(<[u8]>::to_vec);
                let job = again.unwrap_or_else(|| without_failures(&dead_job.bytes));
                if let Some(job) = lane.groups.join(job) {
                    lane.waiting.push_back(job);
                }
                lane.ended -= 1;
                self.wake(queue, lane, 1);
            }
            true
        }))
    }

    async fn cancel(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error> {
        Ok(self.with(queue, |lane| {
            if let Some(bytes) = lane.remove(tag) {
                let unique =
                    Envelope::decode(&bytes).ok().and_then(|envelope| envelope.body.unique);
                lane.free(unique.as_ref(), tag);
                let joined = lane.end_turn(tag);
                self.wake(queue, lane, joined);
                lane.ended += 1;
                self.keep_dead(lane, bytes.clone(), CANCELLED.into());
                return Cancellation::Cancelled(bytes);
            }
            let Some((worker, _)) =
                lane.leases.iter().find(|(_, lease)| lease.jobs.contains_key(tag))
            else {
                return Cancellation::Unknown;
            };
            if let Some(ear) = self.sleepers.lock().get(worker) {
                let _ = ear.send(WakeUp::Cancel(tag.to_vec()));
            }
            Cancellation::Asked
        }))
    }

    async fn list(
        &self,
        queue: &str,
        state: State,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<Listed>, Error> {
        let (now, now_ms) = (self.clock.now(), self.now_ms());
        let listed = |bytes: &Vec<u8>| Listed {
            bytes: bytes.clone(),
            due_ms: None,
            worker: None,
            line: None,
        };
        let jobs: Vec<Listed> = self.with(queue, |lane| match state {
            State::Waiting => {
                let jobs = lane.promoted.iter().chain(&lane.suspects).chain(lane.waiting.iter());
                jobs.skip(offset).take(limit).map(listed).collect()
            }
            State::Scheduled => {
                let due_ms =
                    |due: &Instant| now_ms + due.saturating_duration_since(now).as_millis() as u64;
                let scheduled = lane.scheduled.iter().skip(offset).take(limit);
                scheduled
                    .map(|((due, _), bytes)| Listed { due_ms: Some(due_ms(due)), ..listed(bytes) })
                    .collect()
            }
            State::Blocked => {
                let jobs = lane.lines.iter().flat_map(|(name, line)| {
                    line.jobs.values().map(move |bytes| (name.clone(), bytes))
                });
                let jobs = jobs.chain(lane.groups.iter()).skip(offset).take(limit);
                jobs.map(|(name, bytes)| Listed { line: Some(name), ..listed(bytes) }).collect()
            }
            State::Leased => {
                let jobs = lane.leases.iter().flat_map(|(worker, lease)| {
                    lease.jobs.values().map(move |bytes| (worker, bytes))
                });
                let jobs = jobs.skip(offset).take(limit);
                jobs.map(|(worker, bytes)| Listed {
                    worker: Some(worker.to_string()),
                    ..listed(bytes)
                })
                .collect()
            }
        });
        Ok(within(jobs, PAGE_BYTES, |listed| listed.bytes.len()))
    }

    async fn take_all(
        &self,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let until = self.clock.now() + lease;
        Ok(self.with(queue, |lane| {
            let mut jobs: Vec<_> = lane
                .promoted
                .drain(..)
                .chain(lane.suspects.drain(..))
                .chain(lane.waiting.take_all())
                .collect();
            jobs.extend(std::mem::take(&mut lane.scheduled).into_values());
            jobs.extend(
                std::mem::take(&mut lane.lines)
                    .into_values()
                    .flat_map(|line| line.jobs.into_values()),
            );
            jobs.extend(lane.groups.take_all());
            if jobs.is_empty() {
                return jobs;
            }
            let held: HashMap<_, _> =
                jobs.iter().map(|bytes| (tag_of(bytes).to_vec(), bytes.clone())).collect();
            let unbegun = held.keys().cloned().collect();
            lane.leases.insert(worker.clone(), Lease { until, jobs: held, unbegun, trial: None });
            jobs
        }))
    }

    async fn release_unique(&self, queue: &str, key: &str, tag: &[u8]) -> Result<(), Error> {
        self.with(queue, |lane| lane.free(Some(&key.to_owned()), tag));
        Ok(())
    }

    async fn expire_once(&self, queue: &str, keys: &[String]) -> Result<(), Error> {
        let end = self.clock.now() + ONCE_AFTER;
        self.with(queue, |lane| {
            for key in keys {
                if let Some((_, until)) = lane.unique.get_mut(&(true, key.clone())) {
                    *until = end.min(*until);
                }
            }
        });
        Ok(())
    }

    async fn queues(&self) -> Result<Vec<String>, Error> {
        Ok(self.queues.lock().keys().cloned().collect())
    }

    fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    // No other application reaches these jobs.
    #[expect(clippy::unnecessary_literal_bound, reason = "the trait's")]
    fn app(&self) -> &str {
        "memory"
    }
}

/// Removes expired entries, in one of 64 calls on average.
fn sweep<K: Eq + Hash, V>(map: &mut HashMap<K, V>, now: Instant, until: impl Fn(&V) -> Instant) {
    if fastrand::u8(..64) == 0 {
        map.retain(|_, value| until(value) > now);
    }
}
