//! Who is worked on, and who waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::adaptive::AdaptiveConcurrency;

/// Who goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Priority {
    /// Crawlers, exports: what can come back later.
    Low,
    /// Most of it.
    #[default]
    Normal,
    /// What the business lives on: checkout, log-in.
    High,
    /// Never waits and is never turned away: health checks.
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

/// Waiting is normal in a burst; when somebody has had to wait all through that time, it is overload, and until nobody has for as long.
const BURST: Duration = Duration::from_millis(250);
/// In overload everybody may wait that long: since the newest goes first, few do.
const LEAST_PATIENCE: Duration = Duration::from_millis(1);
const CLASSES: usize = 3;

type Waiting = VecDeque<oneshot::Sender<Place>>;

struct State {
    limit: AdaptiveConcurrency,
    at_once: usize,
    /// By priority, the oldest in front.
    waiting: [Waiting; CLASSES],
    /// Requests have had to wait from then on, and at last then.
    busy: Option<(Instant, Instant)>,
}

pub(super) struct Queue {
    state: Mutex<State>,
    start: Instant,
    longest: usize,
    /// The longest wait outside of overload.
    patience: Duration,
}

/// A place among those worked on; whoever drops it lets the next one in.
pub(super) struct Place {
    queue: Arc<Queue>,
    since: Instant,
    at_once: usize,
}

impl Queue {
    pub(super) fn new(limit: AdaptiveConcurrency, longest: usize, patience: Duration) -> Arc<Self> {
        let state = State { limit, at_once: 0, waiting: Default::default(), busy: None };
        Arc::new(Self { state: Mutex::new(state), start: Instant::now(), longest, patience })
    }

    /// A place at once, or a place in line, or neither.
    pub(super) fn enter(self: &Arc<Self>, priority: Priority) -> Entry {
        let mut state = self.state.lock();
        let Some(class) = class(priority).filter(|_| state.at_once >= state.limit.limit()) else {
            return Entry::In(self.place(&mut state));
        };
        let now = Instant::now();
        state.busy = Some((state.busy.filter(|(_, last)| now - *last <= BURST).map_or(now, |(since, _)| since), now));
        if state.waiting.iter().map(VecDeque::len).sum::<usize>() >= self.longest {
            state.forget_the_gone();
        }
        if state.waiting.iter().map(VecDeque::len).sum::<usize>() >= self.longest {
            // The least important and oldest gives way, if it is less important.
            let Some(lower) = state.waiting[..class].iter_mut().find(|w| !w.is_empty()) else { return Entry::Full };
            lower.pop_front();
        }
        let overload = state.overload(now);
        let patience = match state.limit.best() {
            // What goes first is never far from its turn.
            Some(best) if overload && priority == Priority::High => (best * 4).max(LEAST_PATIENCE * 16).min(self.patience),
            Some(best) if overload => (best / 2).max(LEAST_PATIENCE).min(self.patience),
            _ => self.patience,
        };
        let (sender, receiver) = oneshot::channel();
        state.waiting[class].push_back(sender);
        Entry::Waiting(receiver, patience)
    }

    fn place(self: &Arc<Self>, state: &mut State) -> Place {
        state.at_once += 1;
        Place { queue: Arc::clone(self), since: Instant::now(), at_once: state.at_once }
    }

    /// How many are worked on, and how many may be.
    pub(super) fn now(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.at_once, state.limit.limit())
    }

    /// Lets in who is next, while there is room.
    fn next(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            if state.at_once >= state.limit.limit() {
                return;
            }
            let overload = state.overload(Instant::now());
            // In a burst the oldest first, as is fair; in overload the newest, who will still be there to hear the answer.
            let next = state.waiting.iter_mut().rev().find_map(|w| if overload { w.pop_back() } else { w.pop_front() });
            let Some(sender) = next else { return };
            if sender.is_closed() {
                continue;
            }
            let place = self.place(&mut state);
            drop(state);
            // Should it have gone away just now, the place comes back by its drop, and the next one is let in there.
            let _ = sender.send(place);
        }
    }
}

impl State {
    fn overload(&self, now: Instant) -> bool {
        self.limit.is_saturated() && self.busy.is_some_and(|(since, last)| now - last <= BURST && last - since > BURST)
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
    /// A request of this class has been answered, and its latency says something of the load.
    pub(super) fn answered(self, class: u64) {
        let took = self.since.elapsed();
        let now = self.queue.start.elapsed();
        self.queue.state.lock().limit.answered_in(class, now, took, self.at_once);
    }

    /// The request was dropped half way: it has taken at least that long. Says something only if that is long.
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
