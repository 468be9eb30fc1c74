//! Wake-ups of a queue: no job waits while an idle worker will not be woken.
//!
//! Two workers, each with a slot for one job, and three jobs, pushed while workers look. A look has
//! two steps: the worker is listed as idle, and the store answers. A push wakes one of the listed.

use stateright::{Model, Property};

const WORKERS: usize = 2;
const JOBS: u8 = 3;

/// The protocol, with its rules.
#[derive(Clone, Debug)]
pub struct Queue {
    /// A worker is listed as idle before it looks, not after.
    pub listed_before_look: bool,
    /// A worker that is woken during a look which fills it wakes another one.
    pub passes_on: bool,
    /// A worker that removes itself from the list looks once more afterwards.
    pub looks_after_leaving: bool,
}

impl Default for Queue {
    fn default() -> Self {
        Self { listed_before_look: true, passes_on: true, looks_after_leaving: true }
    }
}

/// State of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pushed: u8,
    waiting: u8,
    /// Workers listed as idle, in the order in which they were added.
    idle: Vec<usize>,
    workers: [Worker; WORKERS],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Worker {
    phase: Phase,
    /// True if a wake-up has arrived that no look has covered.
    woken: bool,
    /// True if a separate task is removing the worker from the list.
    leaving: bool,
    /// True if the worker has once let another one look.
    has_left: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Phase {
    /// About to look.
    #[default]
    Awake,
    /// Between the two steps of a look.
    Looking,
    Asleep,
    /// Runs a job.
    Busy,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// A job is pushed, and an idle worker is woken.
    Push,
    /// The first step of a look.
    Begin(usize),
    /// The second step of a look.
    Answer(usize),
    /// A job ends.
    End(usize),
    /// A busy worker lets another one look: it begins to remove itself from the list.
    Leave(usize),
    /// The worker has been removed from the list, and another one is woken.
    Left(usize),
}

impl State {
    fn wake(&mut self) {
        if let Some(worker) = self.idle.pop() {
            let worker = &mut self.workers[worker];
            worker.woken = true;
            if worker.phase == Phase::Asleep {
                worker.phase = Phase::Awake;
            }
        }
    }

    /// Answers a worker's look; `otherwise` is the worker's next phase if no job waits.
    fn look(&mut self, worker: usize, passes_on: bool, otherwise: Phase) {
        if self.waiting == 0 {
            let known = &mut self.workers[worker];
            known.phase = if known.woken { Phase::Awake } else { otherwise };
            return;
        }
        self.waiting -= 1;
        self.workers[worker].phase = Phase::Busy;
        self.idle.retain(|known| *known != worker);
        if std::mem::take(&mut self.workers[worker].woken) && passes_on {
            self.wake();
        }
    }

    fn list(&mut self, worker: usize) {
        self.idle.retain(|known| *known != worker);
        self.idle.push(worker);
    }
}

impl Model for Queue {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.pushed < JOBS {
            actions.push(Action::Push);
        }
        for (n, worker) in state.workers.iter().enumerate() {
            match worker.phase {
                Phase::Awake => actions.push(Action::Begin(n)),
                Phase::Looking => actions.push(Action::Answer(n)),
                Phase::Asleep => {}
                Phase::Busy => {
                    actions.push(Action::End(n));
                    if !worker.has_left {
                        actions.push(Action::Leave(n));
                    }
                }
            }
            if worker.leaving {
                actions.push(Action::Left(n));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Push => {
                state.pushed += 1;
                state.waiting += 1;
                state.wake();
            }
            Action::Begin(n) if self.listed_before_look => {
                (state.workers[n].phase, state.workers[n].woken) = (Phase::Looking, false);
                state.list(n);
            }
            Action::Begin(n) => state.look(n, self.passes_on, Phase::Looking),
            Action::Answer(n) if self.listed_before_look => {
                state.look(n, self.passes_on, Phase::Asleep);
            }
            Action::Answer(n) => {
                state.list(n);
                state.workers[n].phase = Phase::Asleep;
            }
            Action::End(n) => state.workers[n].phase = Phase::Awake,
            Action::Leave(n) => {
                (state.workers[n].leaving, state.workers[n].has_left) = (true, true);
            }
            Action::Left(n) => {
                state.workers[n].leaving = false;
                state.idle.retain(|known| *known != n);
                state.wake();
                if self.looks_after_leaving {
                    state.workers[n].woken = true;
                    if state.workers[n].phase == Phase::Asleep {
                        state.workers[n].phase = Phase::Awake;
                    }
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("no job waits beside a worker that sleeps", |_, state: &State| {
            let sleeps = state.workers.iter().any(|worker| worker.phase == Phase::Asleep);
            let acts = |worker: &Worker| {
                matches!(worker.phase, Phase::Awake | Phase::Looking) || worker.leaving
            };
            state.waiting == 0 || !sleeps || state.workers.iter().any(acts)
        })]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore;

    #[test]
    fn holds() {
        assert!(explore(Queue::default()).unwrap() > 100);
    }

    #[test]
    fn each_rule_is_needed() {
        let all = Queue::default;
        explore(Queue { listed_before_look: false, ..all() }).unwrap_err();
        explore(Queue { passes_on: false, ..all() }).unwrap_err();
        explore(Queue { looks_after_leaving: false, ..all() }).unwrap_err();
    }
}
