//! Jobs of one queue: waiting, scheduled, blocked, leased and dead ones.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::groups::Groups;
use crate::format::{group_of, priority_of, pushed_ms, replace_job, tag_of, turn_of};
use crate::limit::line_of;
use crate::store::{
    DeadJob, Debounce, EndingJob, Entry, Fetched, LINE_RETRY, Request, Resolution, Sample, Trial,
    WorkerId,
};

#[derive(Debug, Default)]
pub(super) struct QueueData {
    pub(super) waiting: Waiting,
    /// Jobs that were first in their lines; taken before waiting ones.
    pub(super) promoted: VecDeque<Vec<u8>>,
    pub(super) suspects: VecDeque<Vec<u8>>,
    /// Scheduled jobs by due time, then by order of arrival.
    pub(super) scheduled: BTreeMap<(Instant, u64), Vec<u8>>,
    pub(super) lines: BTreeMap<String, Line>,
    pub(super) groups: Groups,
    pub(super) leases: HashMap<WorkerId, Lease>,
    pub(super) dead: VecDeque<DeadJob>,
    /// Ended jobs that are kept, the newest last: time, job and tags.
    pub(super) kept: VecDeque<(u64, EndingJob)>,
    /// Holder of a key and end of the key's life, by kind (`true` for once keys, which outlive the
    /// job) and key.
    pub(super) unique: HashMap<(bool, String), (Vec<u8>, Instant)>,
    /// Idle workers that wait for a wake-up; the last one added is woken first.
    pub(super) asleep: Vec<WorkerId>,
    /// Scheduled job of each debounce key: its due time and order of arrival.
    pub(super) debounced: HashMap<String, (Instant, u64)>,
    pub(super) arrivals: u64,
    pub(super) paused: bool,
    pub(super) done: u64,
    pub(super) failed: u64,
    /// Number of jobs removed, done or not.
    pub(super) ended: u64,
    pub(super) samples: HashMap<Resolution, BTreeMap<u64, Sample>>,
}

/// Waiting jobs, by priority.
#[derive(Debug, Default)]
pub(super) struct Waiting([VecDeque<Vec<u8>>; 3]);

impl Waiting {
    pub(super) fn push_back(&mut self, job: Vec<u8>) {
        self.0[priority_of(&job) as usize].push_back(job);
    }

    fn pop_front(&mut self) -> Option<Vec<u8>> {
        self.0.iter_mut().find_map(VecDeque::pop_front)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(VecDeque::len).sum()
    }

    /// Returns the jobs in the order in which they are taken.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.0.iter().flatten()
    }

    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.0.iter_mut().flat_map(|jobs| jobs.drain(..))
    }
}

/// Jobs that wait for the same limit or handler.
#[derive(Debug)]
pub(super) struct Line {
    /// Jobs by time of push and id; in a handler line, by time of arrival.
    pub(super) jobs: BTreeMap<(u64, Vec<u8>), Vec<u8>>,
    pub(super) retry_at: Instant,
    pub(super) pace: Option<Duration>,
    /// True if the line's jobs wait for a worker that can handle them.
    pub(super) unhandled: bool,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) until: Instant,
    pub(super) jobs: HashMap<Vec<u8>, Vec<u8>>,
    /// Jobs whose handler has not begun.
    pub(super) unbegun: HashSet<Vec<u8>>,
    /// The suspect that runs alone.
    pub(super) trial: Option<Vec<u8>>,
}

impl std::hash::Hash for Resolution {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl Line {
    pub(super) fn new(retry_at: Instant, unhandled: bool) -> Self {
        Self { jobs: BTreeMap::new(), retry_at, pace: None, unhandled }
    }

    /// Takes the jobs of the line that are due.
    fn due(
        &mut self,
        now: Instant,
        now_ms: u64,
        unhandled_for: Duration,
        max: usize,
    ) -> Vec<Vec<u8>> {
        let mut count = 1;
        if self.unhandled && self.retry_at > now {
            return Vec::new();
        } else if self.unhandled {
            let oldest = now_ms.saturating_sub(unhandled_for.as_millis() as u64);
            count = self.jobs.keys().take_while(|(since, _)| *since <= oldest).count();
        } else if self.retry_at > now {
            return Vec::new();
        } else if let Some(pace) = self.pace.filter(|pace| !pace.is_zero()) {
            count =
                1 + (((now - self.retry_at).as_secs_f64() / pace.as_secs_f64()) as usize).min(100);
        }
        let taken: Vec<_> = std::iter::from_fn(|| self.jobs.pop_first())
            .take(count.min(max))
            .map(|(_, job)| job)
            .collect();
        self.retry_at = match self.pace {
            _ if self.unhandled => now + unhandled_for.min(Duration::from_mins(1)),
            Some(pace) => self.retry_at + pace.saturating_mul(taken.len() as u32),
            None => now + LINE_RETRY,
        };
        taken
    }
}

impl QueueData {
    pub(super) fn schedule(&mut self, due: Instant, bytes: Vec<u8>) {
        self.arrivals += 1;
        self.scheduled.insert((due, self.arrivals), bytes);
    }

    /// Schedules a job under a debounce key. Returns the id of the job that it replaces, if that is
    /// still scheduled.
    pub(super) fn debounce(
        &mut self,
        now: Instant,
        now_ms: u64,
        entry: &Entry,
        debounce: &Debounce,
    ) -> Option<Vec<u8>> {
        if fastrand::u8(..64) == 0 {
            let scheduled = &self.scheduled;
            self.debounced.retain(|_, place| scheduled.contains_key(place));
        }
        let place = self.debounced.get(&debounce.key).filter(|(due, _)| *due > now);
        let replaced = place.and_then(|place| self.scheduled.remove(place));
        let mut bytes = entry.bytes.clone();
        let mut due = now + entry.delay;
        if let Some(replaced) = &replaced {
            replace_job(&mut bytes, replaced);
            let age = Duration::from_millis(now_ms.saturating_sub(pushed_ms(&bytes).unwrap_or(0)));
            due = due.min(now + debounce.at_most.saturating_sub(age));
        }
        self.schedule(due, bytes);
        self.debounced.insert(debounce.key.clone(), (due, self.arrivals));
        replaced.map(|replaced| tag_of(&replaced).to_vec())
    }

    /// Lets jobs that come back be taken next, or wait in the line of their group.
    pub(super) fn come_back(&mut self, jobs: Vec<Vec<u8>>) {
        let groups: Vec<_> = jobs.iter().filter_map(|job| turn_of(job)).collect();
        for job in jobs {
            if let Some(job) = self.groups.rejoin(job) {
                self.promoted.push_front(job);
            }
        }
        for group in groups {
            for job in self.groups.give_turns(&group) {
                self.waiting.push_back(job);
            }
        }
    }

    /// Ends the turn of a job in its group, and lets the next ones wait. Returns their number.
    pub(super) fn end_turn(&mut self, tag: &[u8]) -> usize {
        let next = self.groups.end_turn(tag);
        let count = next.len();
        for job in next {
            self.waiting.push_back(job);
        }
        count
    }

    /// Moves due jobs to the waiting ones; returns their number.
    pub(super) fn promote(&mut self, now: Instant) -> usize {
        let mut count = 0;
        while let Some(first) = self.scheduled.first_entry().filter(|e| e.key().0 <= now) {
            self.waiting.push_back(first.remove());
            count += 1;
        }
        count
    }

    pub(super) fn free(&mut self, unique: Option<&String>, tag: &[u8]) {
        if let Some(key) = unique
            && let key = (false, key.clone())
            && self.unique.get(&key).is_some_and(|(holder, _)| holder == tag)
        {
            self.unique.remove(&key);
        }
    }

    pub(super) fn drop_empty(&mut self, line: &str) {
        if self.lines.get(line).is_some_and(|line| line.jobs.is_empty()) {
            self.lines.remove(line);
        }
    }

    pub(super) fn look_again(&self, now: Instant) -> Option<Duration> {
        let due = self.scheduled.keys().next().map(|(due, _)| *due);
        let lease = self.leases.values().map(|l| l.until).filter(|until| *until > now).min();
        let lines = self.lines.values().filter(|_| !self.paused).map(|line| line.retry_at);
        due.into_iter().chain(lease).chain(lines).min().map(|at| at.saturating_duration_since(now))
    }

    /// Takes the jobs for a request, in the order in which they are to be tried.
    pub(super) fn take(
        &mut self,
        now: Instant,
        now_ms: u64,
        request: &Request<'_>,
        fetched: &mut Fetched,
    ) {
        if request.trial == Trial::Next
            && let Some(suspect) = self.suspects.pop_front()
        {
            fetched.suspect = true;
            fetched.jobs.push(suspect);
            return;
        }
        let names: Vec<_> = self.lines.keys().cloned().collect();
        for name in names {
            let Some(line) = self.lines.get_mut(&name) else { continue };
            let room = request.max - fetched.jobs.len();
            if room == 0 {
                break;
            }
            let handled = line.unhandled && request.lines.contains(&name);
            if handled {
                let jobs =
                    std::iter::from_fn(|| line.jobs.pop_first()).take(room).map(|(_, job)| job);
                fetched.jobs.extend(jobs);
            } else {
                let due = line.due(now, now_ms, request.unhandled_for, room);
                if line.unhandled {
                    fetched.overdue.extend(due.iter().map(|bytes| tag_of(bytes).to_vec()));
                }
                fetched.jobs.extend(due);
            }
            self.drop_empty(&name);
        }
        let mut bytes: usize = fetched.jobs.iter().map(Vec::len).sum();
        while fetched.jobs.len() < request.max
            && (bytes < request.max_bytes || fetched.jobs.is_empty())
        {
            let Some(job) = self.promoted.pop_front() else { break };
            bytes += job.len();
            fetched.jobs.push(job);
        }
        while fetched.jobs.len() < request.max
            && (bytes < request.max_bytes || fetched.jobs.is_empty())
        {
            let Some(job) = self.waiting.pop_front() else { break };
            let line = group_of(&job).map(line_of).and_then(|line| self.lines.get_mut(&line));
            if let Some(line) = line {
                line.jobs.insert((pushed_ms(&job).unwrap_or(0), tag_of(&job).to_vec()), job);
            } else {
                bytes += job.len();
                fetched.jobs.push(job);
            }
        }
    }

    pub(super) fn oldest(&self) -> Option<&Vec<u8>> {
        let firsts = [self.promoted.front(), self.suspects.front()];
        firsts
            .into_iter()
            .chain(self.waiting.0.iter().map(VecDeque::front))
            .flatten()
            .min_by_key(|b| pushed_ms(b))
    }

    /// Removes a job that no worker holds.
    pub(super) fn remove(&mut self, tag: &[u8]) -> Option<Vec<u8>> {
        let lists = [&mut self.promoted, &mut self.suspects];
        for jobs in lists.into_iter().chain(&mut self.waiting.0) {
            if let Some(place) = jobs.iter().position(|bytes| tag_of(bytes) == tag) {
                return jobs.remove(place);
            }
        }
        if let Some(key) =
            self.scheduled.iter().find(|(_, bytes)| tag_of(bytes) == tag).map(|(key, _)| *key)
        {
            return self.scheduled.remove(&key);
        }
        for (name, line) in &mut self.lines {
            if let Some(key) = line.jobs.keys().find(|(_, known)| known == tag).cloned() {
                let (name, job) = (name.clone(), line.jobs.remove(&key));
                self.drop_empty(&name);
                return job;
            }
        }
        self.groups.remove(tag)
    }
}
