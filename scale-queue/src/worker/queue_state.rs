//! State of one queue in a worker. Pure: the engine calls the store.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::batch::Member;
use crate::format::Envelope;
use crate::job::JobId;
use crate::store::{End, EndingJob, Entry, Settlement};

/// Polling interval of a queue whose wake-ups are armed, in case a wake-up was lost.
const SAFETY: Duration = Duration::from_secs(30);

/// Interval at which a worker that cannot look at the queue wakes another one.
const STAND_IN: Duration = Duration::from_secs(5);

/// Longest delay before completed jobs are acknowledged together.
const MAX_ACK_DELAY: Duration = Duration::from_millis(10);
/// Number of completed jobs that are acknowledged without delay.
const MANY_DONE: usize = 500;

/// End of a job, and what follows from it. The latter is stored first, so that a crash in between
/// loses nothing.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) settlement: Settlement,
    /// Next job of its chain, and the queue of that job.
    pub(super) next: Option<(String, Entry)>,
    /// Results to be kept: key, value and life.
    pub(super) notes: Vec<(String, Vec<u8>, Duration)>,
    /// Record of its end, if ended jobs are kept.
    pub(super) kept: Option<EndingJob>,
    /// End as counted in its batch.
    pub(super) counts: Option<(Member, End)>,
    /// Key and number of permits of a full limit: a permit may have come free before the job was in
    /// line.
    pub(super) permits: Option<(String, u32)>,
    /// True if another worker should try the job, because this one cannot read it.
    pub(super) for_others: bool,
}

impl From<Settlement> for Ended {
    fn from(settlement: Settlement) -> Self {
        Self {
            settlement,
            next: None,
            notes: Vec::new(),
            kept: None,
            counts: None,
            permits: None,
            for_others: false,
        }
    }
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) name: Arc<str>,
    pub(super) weight: u32,
    /// Slots kept for the queue.
    pub(super) least: usize,
    /// Maximum number of slots of the queue.
    pub(super) most: usize,
    /// Number of jobs to prefetch beyond the slots, because jobs end faster than the store answers.
    pub(super) ahead: usize,
    /// Number of jobs that ended during the current round trip.
    pub(super) ended: usize,
    /// Leased jobs that have not begun.
    ready: VecDeque<(Envelope, Vec<u8>)>,
    /// Ids of the ready jobs, to reject duplicates.
    ready_ids: HashSet<JobId>,
    /// Number of jobs from the front that may begin: the store has recorded that they do.
    pub(super) cleared: usize,
    /// A suspect, to be run alone: its handler had begun when its worker died.
    pub(super) suspect: Option<(Envelope, Vec<u8>)>,
    /// True if the trial's state must be reported to the store.
    pub(super) tell_trial: bool,
    /// Tags of jobs that are leased to this worker and were not received.
    pub(super) missing: Vec<Vec<u8>>,
    /// Lines of jobs that other workers could not handle and this one can.
    pub(super) handler_lines: Vec<String>,
    /// Tags of completed jobs that are not acknowledged yet.
    done: Vec<Vec<u8>>,
    /// Time since which acknowledgements are delayed.
    done_since: Option<Instant>,
    /// Ends other than completion that are not stored yet.
    pub(super) settlements: Vec<Ended>,
    pub(super) running: usize,
    /// True if the queue was empty, and the store will wake this worker.
    armed: bool,
    /// True if a wake-up arrived during the current look, so that its answer may be outdated.
    woken: bool,
    look_at: Instant,
    /// Time at which something becomes due, as reported to this worker by the store; other workers
    /// may not know of it.
    alarm_at: Option<Instant>,
    /// Time at which the first job in a line is to be tried, after a job of this worker went into
    /// the line. A look that began before that time does not cover it.
    line_at: Option<Instant>,
    /// Time before which others should look first: a job was handed back that cannot be read here.
    steps_back_until: Option<Instant>,
    /// Times of the first and the last of the consecutive fetches that found an expired lease.
    pub(super) expired: Option<(Instant, Instant)>,
    /// True if the worker's jobs may differ from the store's record; then it asks before the next
    /// fetch.
    pub(super) unsure: bool,
}

impl QueueState {
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

    /// Returns the number of jobs that use or will use a slot.
    pub(super) fn held(&self) -> usize {
        self.ready.len() + self.running + usize::from(self.suspect.is_some()) + self.missing.len()
    }

    pub(super) fn ready(&self) -> &VecDeque<(Envelope, Vec<u8>)> {
        &self.ready
    }

    /// Returns whether the job is held and has not begun.
    pub(super) fn has(&self, id: &JobId) -> bool {
        self.ready_ids.contains(id)
            || self.suspect.as_ref().is_some_and(|(envelope, _)| envelope.id == *id)
    }

    /// Adds a job behind the others.
    pub(super) fn push(&mut self, envelope: Envelope, bytes: Vec<u8>) {
        if self.ready_ids.insert(envelope.id) {
            self.ready.push_back((envelope, bytes));
        }
    }

    /// Adds a job in front of the others; it may begin.
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

    /// Takes all jobs that have not begun, the suspect last.
    pub(super) fn take_ready(
        &mut self,
    ) -> impl DoubleEndedIterator<Item = (Envelope, Vec<u8>)> + use<> {
        self.cleared = 0;
        self.ready_ids.clear();
        std::mem::take(&mut self.ready).into_iter().chain(self.suspect.take())
    }

    /// Removes the jobs that have not begun and for which `keep` returns `false`.
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

    /// Returns whether there are jobs, and none may begin before the next round trip.
    pub(super) fn is_held_up(&self) -> bool {
        self.cleared == 0 && !self.ready.is_empty()
    }

    /// Returns the number of leased jobs, including those whose end is not stored yet.
    pub(super) fn holds(&self) -> usize {
        self.held() + self.settlements.len()
    }

    /// Adds completed jobs. They are acknowledged in the next round trip, after [`MAX_ACK_DELAY`]
    /// at the latest.
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

    /// Returns whether a round trip is due now, even if there is nothing to fetch.
    pub(super) fn is_urgent(&self, now: Instant) -> bool {
        !self.settlements.is_empty()
            || self.unsure
            || !self.missing.is_empty()
            || self.tell_trial
            || self.done.len() >= MANY_DONE
            || self.done_since.is_some_and(|since| now >= since + MAX_ACK_DELAY)
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

    /// Returns whether a wake-up arrived during the look that has ended, and resets the flag.
    pub(super) fn take_wake(&mut self) -> bool {
        std::mem::take(&mut self.woken)
    }

    /// Begins a look, which covers everything due by now.
    pub(super) fn begin_look(&mut self, now: Instant) {
        self.woken = false;
        self.line_at = self.line_at.filter(|at| *at > now);
        self.alarm_at = self.alarm_at.filter(|at| *at > now);
    }

    /// Arms the queue for wake-ups, and sets the time of the next look. `dice`, between 0 and 1,
    /// keeps workers from looking at the same time.
    pub(super) fn arm(&mut self, look_again: Option<Duration>, now: Instant, dice: f64) {
        self.armed = !self.woken;
        let safety = SAFETY.mul_f64(1.0 + dice / 4.0);
        self.alarm_at = look_again.and_then(|wait| now.checked_add(wait));
        self.look_at =
            now + look_again.map_or(safety, |wait| wait.mul_f64(1.0 + dice / 16.0).min(safety));
        self.look_at = self.line_at.map_or(self.look_at, |at| self.look_at.min(at));
        self.steps_back_until = self.steps_back_until.filter(|until| *until > now);
        self.look_at = self.steps_back_until.map_or(self.look_at, |until| self.look_at.max(until));
    }

    /// Delays the next look until `until`, so that others look first.
    pub(super) fn step_back(&mut self, until: Instant) {
        self.steps_back_until = Some(self.steps_back_until.map_or(until, |known| known.max(until)));
        self.look_at = self.look_at.max(until);
    }

    /// Sets a time by which to look, because a job in a line is to be tried then.
    pub(super) fn look_by(&mut self, at: Instant) {
        self.line_at = Some(self.line_at.map_or(at, |known| known.min(at)));
        self.look_at = self.look_at.min(at);
    }

    pub(super) fn wants_look(&self, now: Instant) -> bool {
        !self.armed || now >= self.look_at
    }

    /// Returns whether a worker that cannot look should wake another one now: when the known alarm
    /// is due, and every few seconds, because there may be jobs it does not know of.
    pub(super) fn rings(&mut self, now: Instant) -> bool {
        let latest = now + STAND_IN;
        let at = self.alarm_at.map_or(latest, |at| at.min(latest));
        let is_time = at <= now;
        self.alarm_at = Some(if is_time { latest } else { at });
        is_time
    }

    /// Returns when a round trip or a look becomes due without an event.
    pub(super) fn alarm(&self, may_fetch: bool) -> Option<Instant> {
        let look = if may_fetch { self.armed.then_some(self.look_at) } else { self.alarm_at };
        look.into_iter().chain(self.done_since.map(|since| since + MAX_ACK_DELAY)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wake_that_overtakes_the_answer_of_a_look_is_not_lost() {
        let now = Instant::now();
        let mut lane = QueueState::new("notes", 1, now);
        lane.begin_look(now);
        lane.wake();
        lane.arm(None, now, 0.0);
        assert!(lane.wants_look(now));
        lane.begin_look(now);
        lane.arm(None, now, 0.0);
        assert!(!lane.wants_look(now));
        assert!(lane.wants_look(now + SAFETY), "the longest delay after a lost wake-up");
    }

    #[tokio::test]
    async fn a_busy_worker_lets_others_look_every_few_seconds() {
        let now = Instant::now();
        let mut lane = QueueState::new("notes", 1, now);
        lane.arm(Some(SAFETY), now, 0.0);
        assert!(!lane.rings(now));
        assert!(lane.rings(now + STAND_IN), "its alarm is far away");
        assert!(!lane.rings(now + STAND_IN * 3 / 2));
        assert!(lane.rings(now + STAND_IN * 2));
        lane.arm(Some(STAND_IN / 5), now, 0.0);
        assert!(lane.rings(now + STAND_IN / 5), "its alarm is due");
    }

    #[tokio::test]
    async fn a_line_that_opens_during_a_look_is_not_slept_through() {
        let (now, soon) = (Instant::now(), Duration::from_millis(50));
        let mut lane = QueueState::new("notes", 1, now);
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
        let mut lane = QueueState::new("notes", 1, now);
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
