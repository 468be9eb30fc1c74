//! Queue of waiting requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::adaptive::AdaptiveConcurrency;

/// Priority of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Priority {
    /// Requests that can be repeated later: crawlers, exports.
    Low,
    /// Most requests.
    #[default]
    Normal,
    /// Requests that matter most to the business: checkout, log-in.
    High,
    /// Requests that never wait and are never refused: health checks.
    Critical,
}

impl Priority {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// Time that separates a burst from overload. Waiting is normal in a burst; overload begins when
/// requests have had to wait throughout this time, and ends when none has waited for as long.
const BURST: Duration = Duration::from_millis(250);
/// Minimum time-out in the queue under overload. The newest request goes first, so few wait that
/// long.
const LEAST_PATIENCE: Duration = Duration::from_millis(1);
const CLASSES: usize = 3;

type Waiting = VecDeque<oneshot::Sender<Place>>;

struct State {
    limit: AdaptiveConcurrency,
    at_once: usize,
    /// Waiting requests by priority, the oldest first.
    waiting: [Waiting; CLASSES],
    /// Times of the first and the last request that had to wait, in the current busy period.
    busy: Option<(Instant, Instant)>,
}

pub(super) struct Queue {
    state: Mutex<State>,
    start: Instant,
    longest: usize,
    /// Maximum wait outside of overload.
    longest_wait: Duration,
}

/// Place of a request that is being processed; its drop admits the next request.
pub(super) struct Place {
    queue: Arc<Queue>,
    since: Instant,
    at_once: usize,
}

impl Queue {
    pub(super) fn new(
        limit: AdaptiveConcurrency,
        longest: usize,
        longest_wait: Duration,
    ) -> Arc<Self> {
        let state = State { limit, at_once: 0, waiting: Default::default(), busy: None };
        Arc::new(Self { state: Mutex::new(state), start: Instant::now(), longest, longest_wait })
    }

    /// Returns a place, a position in the queue, or neither.
    pub(super) fn enter(self: &Arc<Self>, priority: Priority) -> Entry {
        let mut state = self.state.lock();
        let Some(class) = class(priority).filter(|_| state.at_once >= state.limit.limit()) else {
            return Entry::In(self.place(&mut state));
        };
        let now = Instant::now();
        state.busy = Some((
            state.busy.filter(|(_, last)| now - *last <= BURST).map_or(now, |(since, _)| since),
            now,
        ));
        if state.waiting.iter().map(VecDeque::len).sum::<usize>() >= self.longest {
            state.forget_the_gone();
        }
        if state.waiting.iter().map(VecDeque::len).sum::<usize>() >= self.longest {
            // The oldest of the least important requests is dropped, if it is less important.
            let Some(lower) = state.waiting[..class].iter_mut().find(|w| !w.is_empty()) else {
                return Entry::Full;
            };
            lower.pop_front();
        }
        let overload = state.overload(now);
        let longest_wait = match state.limit.best() {
            // High priority goes first, so its wait is short in any case.
            Some(best) if overload && priority == Priority::High => {
                (best * 4).max(LEAST_PATIENCE * 16).min(self.longest_wait)
            }
            Some(best) if overload => (best / 2).max(LEAST_PATIENCE).min(self.longest_wait),
            _ => self.longest_wait,
        };
        let (sender, receiver) = oneshot::channel();
        state.waiting[class].push_back(sender);
        Entry::Waiting(receiver, longest_wait)
    }

    fn place(self: &Arc<Self>, state: &mut State) -> Place {
        state.at_once += 1;
        Place { queue: Arc::clone(self), since: Instant::now(), at_once: state.at_once }
    }

    /// Returns how many requests are being processed, and the limit.
    pub(super) fn now(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.at_once, state.limit.limit())
    }

    /// Admits waiting requests, while there is room.
    fn next(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            if state.at_once >= state.limit.limit() {
                return;
            }
            let overload = state.overload(Instant::now());
            // In a burst the oldest request goes first, which is fair; under overload the newest
            // one, whose client is still waiting.
            let next = state
                .waiting
                .iter_mut()
                .rev()
                .find_map(|w| if overload { w.pop_back() } else { w.pop_front() });
            let Some(sender) = next else { return };
            if sender.is_closed() {
                continue;
            }
            let place = self.place(&mut state);
            drop(state);
            // If the receiver was dropped just now, the place is dropped with it, and its drop
            // admits the next request.
            let _ = sender.send(place);
        }
    }
}

impl State {
    fn overload(&self, now: Instant) -> bool {
        self.limit.is_saturated()
            && self.busy.is_some_and(|(since, last)| now - last <= BURST && last - since > BURST)
    }

    fn forget_the_gone(&mut self) {
        for waiting in &mut self.waiting {
            waiting.retain(|sender| !sender.is_closed());
        }
    }
}

fn class(priority: Priority) -> Option<usize> {
    match priority {
        Priority::Low => Some(0),
        Priority::Normal => Some(1),
        Priority::High => Some(2),
        Priority::Critical => None,
    }
}

pub(super) enum Entry {
    In(Place),
    Waiting(oneshot::Receiver<Place>, Duration),
    Full,
}

impl Place {
    /// Records that a request of this class was answered, with a latency that depends on the load.
    pub(super) fn answered(self, class: u64) {
        let took = self.since.elapsed();
        let now = self.queue.start.elapsed();
        self.queue.state.lock().limit.answered_in(class, now, took, self.at_once);
    }

    /// Records that a request was dropped half way: it took at least that long. Counts only if that
    /// is longer than the normal latency.
    pub(super) fn abandoned(self, class: u64) {
        let best = self.queue.state.lock().limit.best();
        if best.is_some_and(|best| self.since.elapsed() > best) {
            self.answered(class);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.state.lock().at_once -= 1;
        self.queue.next();
    }
}
