//! One queue as a worker sees it. Pure: the engine does the talking.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::envelope::{Envelope, Place};
use crate::job::JobId;
use crate::store::{End, Entry, Settlement};

/// Looks at an armed queue once in a while all the same, in case a wake was lost.
const SAFETY: Duration = Duration::from_secs(30);

/// How often a worker that cannot look lets another one.
const STAND_IN: Duration = Duration::from_secs(5);

/// So long what is done may be kept back, to be told together.
const PATIENCE: Duration = Duration::from_millis(10);
/// So many are not kept back any longer.
const MANY_DONE: usize = 500;

/// How a job ended, and what its end brings about: pushed first, so that a death in between loses nothing.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) settlement: Settlement,
    /// The next job of its chain, and that one's queue.
    pub(super) next: Option<(String, Entry)>,
    /// What its batch is to count.
    pub(super) counts: Option<(Place, End)>,
    /// A key, and how many permits it has: one may have come free before the job was in line.
    pub(super) permits: Option<(String, u32)>,
    /// Another worker is to try it: this one cannot read it.
    pub(super) for_others: bool,
}

impl From<Settlement> for Ended {
    fn from(settlement: Settlement) -> Self {
        Self { settlement, next: None, counts: None, permits: None, for_others: false }
    }
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: Arc<str>,
    pub(super) weight: u32,
    /// Places kept for it.
    pub(super) least: usize,
    /// Places it may have.
    pub(super) most: usize,
    /// Jobs to be leased beyond those places: they end faster than the store answers.
    pub(super) ahead: usize,
    /// Jobs that have ended during the exchange.
    pub(super) ended: usize,
    /// Leased, not begun.
    ready: VecDeque<(Envelope, Vec<u8>)>,
    /// Their ids: none is there twice.
    ready_ids: HashSet<JobId>,
    /// So many of them, from the front on, may begin: the store knows that they do.
    pub(super) cleared: usize,
    /// A job whose handler had begun when its worker died: it is to run alone.
    pub(super) suspect: Option<(Envelope, Vec<u8>)>,
    /// What the store knows of a suspect that runs alone is not so any more, or not yet.
    pub(super) tell_trial: bool,
    /// Tags of jobs that the store says are ours, and that we have not got.
    pub(super) missing: Vec<Vec<u8>>,
    /// Lines of jobs that other workers could not handle, and this one can.
    pub(super) handler_lines: Vec<String>,
    /// Tags of what is done, to be told.
    done: Vec<Vec<u8>>,
    /// Since when they are kept back.
    done_since: Option<Instant>,
    /// What ended otherwise, to be told.
    pub(super) settlements: Vec<Ended>,
    pub(super) running: usize,
    /// The queue was empty, and the store will wake us.
    armed: bool,
    /// Woken since the last look began: what that look says of emptiness is old news.
    woken: bool,
    look_at: Instant,
    /// When something becomes due that the store has told this worker of, and perhaps nobody else.
    alarm_at: Option<Instant>,
    /// When the first in a line is to be tried into which a job of ours went; a look that began before that does not know of it.
    line_at: Option<Instant>,
    /// Others are to look first: a job was handed back that cannot be read here.
    steps_back_until: Option<Instant>,
    /// Since when, and when last, each fetch has found a lease that has run out.
    pub(super) expired: Option<(Instant, Instant)>,
    /// What we hold may differ from what the store thinks: ask before the next fetch.
    pub(super) unsure: bool,
}

impl Lane {
    pub(super) fn new(name: &str, weight: u32, now: Instant) -> Self {
        Self {
            name: name.into(),
            weight,
            least: 0,
            most: usize::MAX,
            ahead: 0,
            ended: 0,
            ready: VecDeque::new(),
            ready_ids: HashSet::new(),
            cleared: 0,
            suspect: None,
            tell_trial: false,
            missing: Vec::new(),
            handler_lines: Vec::new(),
            done: Vec::new(),
            done_since: None,
            settlements: Vec::new(),
            running: 0,
            armed: false,
            woken: false,
            look_at: now,
            alarm_at: None,
            line_at: None,
            steps_back_until: None,
            expired: None,
            unsure: false,
        }
    }

    /// Jobs that take or will take a place.
    pub(super) fn held(&self) -> usize {
        self.ready.len() + self.running + usize::from(self.suspect.is_some()) + self.missing.len()
    }

    pub(super) fn ready(&self) -> &VecDeque<(Envelope, Vec<u8>)> {
        &self.ready
    }

    /// Whether the job is here, and has not begun.
    pub(super) fn has(&self, id: &JobId) -> bool {
        self.ready_ids.contains(id) || self.suspect.as_ref().is_some_and(|(envelope, _)| envelope.id == *id)
    }

    /// Takes in a job, behind the others.
    pub(super) fn push(&mut self, envelope: Envelope, bytes: Vec<u8>) {
        if self.ready_ids.insert(envelope.id) {
            self.ready.push_back((envelope, bytes));
        }
    }

    /// Takes in a job that may begin, before the others.
    pub(super) fn push_first(&mut self, envelope: Envelope, bytes: Vec<u8>) {
        if self.ready_ids.insert(envelope.id) {
            self.ready.push_front((envelope, bytes));
            self.cleared += 1;
        }
    }

    /// Takes the next job that may begin.
    pub(super) fn next(&mut self) -> Option<(Envelope, Vec<u8>)> {
        self.cleared = self.cleared.checked_sub(1)?;
        let next = self.ready.pop_front()?;
        self.ready_ids.remove(&next.0.id);
        Some(next)
    }

    /// Takes all that have not begun, the suspect last.
    pub(super) fn take_ready(&mut self) -> impl DoubleEndedIterator<Item = (Envelope, Vec<u8>)> + use<> {
        self.cleared = 0;
        self.ready_ids.clear();
        std::mem::take(&mut self.ready).into_iter().chain(self.suspect.take())
    }

    /// Removes jobs that have not begun.
    pub(super) fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let (mut removed, mut cleared) = (Vec::new(), 0);
        for (n, (envelope, bytes)) in std::mem::take(&mut self.ready).into_iter().enumerate() {
            if keep(&bytes) {
                cleared += usize::from(n < self.cleared);
                self.ready.push_back((envelope, bytes));
            } else {
                self.ready_ids.remove(&envelope.id);
                removed.push(bytes);
            }
        }
        self.cleared = cleared;
        removed
    }

    /// Jobs are at hand, and none may begin before the store has been told so.
    pub(super) fn is_held_up(&self) -> bool {
        self.cleared == 0 && !self.ready.is_empty()
    }

    /// Leased jobs the store will still hear of.
    pub(super) fn holds(&self) -> usize {
        self.held() + self.settlements.len()
    }

    /// Something is done; the store hears of it with the next exchange, [`PATIENCE`] later at the latest.
    pub(super) fn keep_done(&mut self, tags: impl IntoIterator<Item = Vec<u8>>, now: Instant) {
        self.done.extend(tags);
        if !self.done.is_empty() {
            self.done_since.get_or_insert(now);
        }
    }

    pub(super) fn take_done(&mut self) -> Vec<Vec<u8>> {
        self.done_since = None;
        std::mem::take(&mut self.done)
    }

    pub(super) fn done(&self) -> &[Vec<u8>] {
        &self.done
    }

    /// What the store should hear of now, whatever else there is to do.
    pub(super) fn is_urgent(&self, now: Instant) -> bool {
        !self.settlements.is_empty()
            || self.unsure
            || !self.missing.is_empty()
            || self.tell_trial
            || self.done.len() >= MANY_DONE
            || self.done_since.is_some_and(|since| now >= since + PATIENCE)
    }

    pub(super) fn has_news(&self) -> bool {
        !self.done.is_empty() || !self.settlements.is_empty()
    }

    pub(super) fn disarm(&mut self) {
        self.armed = false;
    }

    pub(super) fn wake(&mut self) {
        self.armed = false;
        self.woken = true;
    }

    /// What is due by now is looked at with this look, and with no other.
    pub(super) fn begin_look(&mut self, now: Instant) {
        self.woken = false;
        self.line_at = self.line_at.filter(|at| *at > now);
        self.alarm_at = self.alarm_at.filter(|at| *at > now);
    }

    /// `dice` between 0 and 1 keeps workers from looking all at once.
    pub(super) fn arm(&mut self, look_again: Option<Duration>, now: Instant, dice: f64) {
        self.armed = !self.woken;
        let safety = SAFETY.mul_f64(1.0 + dice / 4.0);
        self.alarm_at = look_again.and_then(|wait| now.checked_add(wait));
        self.look_at = now + look_again.map_or(safety, |wait| wait.mul_f64(1.0 + dice / 16.0).min(safety));
        self.look_at = self.line_at.map_or(self.look_at, |at| self.look_at.min(at));
        self.steps_back_until = self.steps_back_until.filter(|until| *until > now);
        self.look_at = self.steps_back_until.map_or(self.look_at, |until| self.look_at.max(until));
    }

    /// Lets others look first at what is due then.
    pub(super) fn step_back(&mut self, until: Instant) {
        self.steps_back_until = Some(self.steps_back_until.map_or(until, |known| known.max(until)));
        self.look_at = self.look_at.max(until);
    }

    /// There is something in a line at that time.
    pub(super) fn look_by(&mut self, at: Instant) {
        self.line_at = Some(self.line_at.map_or(at, |known| known.min(at)));
        self.look_at = self.look_at.min(at);
    }

    pub(super) fn wants_look(&self, now: Instant) -> bool {
        !self.armed || now >= self.look_at
    }

    /// Says that a worker that cannot look now should let another one: when what it knows of becomes due, and every few seconds, since there
    /// may be more than it was told of.
    pub(super) fn rings(&mut self, now: Instant) -> bool {
        let is_time = *self.alarm_at.get_or_insert(now + STAND_IN) <= now;
        if is_time {
            self.alarm_at = Some(now + STAND_IN);
        }
        is_time
    }

    /// When it becomes urgent, or wants a look, by itself.
    pub(super) fn alarm(&self, may_fetch: bool) -> Option<Instant> {
        let look = if may_fetch { self.armed.then_some(self.look_at) } else { self.alarm_at };
        look.into_iter().chain(self.done_since.map(|since| since + PATIENCE)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wake_that_overtakes_the_answer_of_a_look_is_not_lost() {
        let now = Instant::now();
        let mut lane = Lane::new("notes", 1, now);
        lane.begin_look(now);
        lane.wake();
        lane.arm(None, now, 0.0);
        assert!(lane.wants_look(now));
        lane.begin_look(now);
        lane.arm(None, now, 0.0);
        assert!(!lane.wants_look(now));
        assert!(lane.wants_look(now + SAFETY), "a lost wake costs that long");
    }

    #[tokio::test]
    async fn a_line_that_opens_during_a_look_is_not_slept_through() {
        let (now, soon) = (Instant::now(), Duration::from_millis(50));
        let mut lane = Lane::new("notes", 1, now);
        lane.begin_look(now);
        lane.look_by(now + soon);
        lane.arm(None, now, 0.0);
        assert!(!lane.wants_look(now) && lane.wants_look(now + soon));
        lane.begin_look(now + soon);
        lane.arm(None, now + soon * 2, 0.0);
        assert!(!lane.wants_look(now + soon * 2), "once");
    }

    #[tokio::test]
    async fn a_look_asked_for_during_another_is_not_slept_through() {
        let (now, soon) = (Instant::now(), Duration::from_millis(50));
        let mut lane = Lane::new("notes", 1, now);
        for round in 0..3 {
            // Each look finds that one more is needed.
            let now = now + soon * round;
            lane.begin_look(now);
            lane.look_by(now + soon);
            lane.arm(None, now, 0.0);
            assert!(!lane.wants_look(now) && lane.wants_look(now + soon), "round {round}");
        }
        lane.begin_look(now + soon * 3);
        lane.look_by(now + soon * 4);
        lane.arm(None, now + soon * 5, 0.0);
        assert!(lane.wants_look(now + soon * 5), "the answer came later than that");
    }
}
