//! Leases of a queue: a job is done at least once, and the worker that holds it reports its end.
//!
//! Two workers and one job. A worker may crash, or be cut off so that its lease expires while it
//! continues.

use stateright::{Model, Property};

const WORKERS: usize = 2;

/// The protocol, with its rules.
#[derive(Clone, Debug)]
pub struct Queue {
    /// An acknowledgement counts only if the job is leased to the worker.
    pub fenced: bool,
    /// Jobs of an expired lease are reclaimed.
    pub reclaims: bool,
    /// A fetched job stays in the store until it is acknowledged.
    pub kept_while_leased: bool,
}

impl Default for Queue {
    fn default() -> Self {
        Self { fenced: true, reclaims: true, kept_while_leased: true }
    }
}

/// State of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    job: Job,
    workers: [Worker; WORKERS],
    crashes: u8,
    /// True if the handler has run to its end.
    was_run: bool,
    /// True if an acknowledgement removed the job while another worker held its lease.
    stolen: bool,
}

/// The job in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Job {
    #[default]
    Waiting,
    Leased(usize),
    Gone,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Worker {
    #[default]
    Idle,
    Running,
    Finished,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Leases the job.
    Fetch(usize),
    /// Runs its handler to the end.
    Run(usize),
    /// Acknowledges the job.
    Acknowledge(usize),
    /// Crashes the worker.
    Crash(usize),
    /// The worker's lease expires: it is dead, or cut off.
    Expire(usize),
}

impl Model for Queue {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (n, worker) in state.workers.iter().enumerate() {
            match worker {
                Worker::Idle if state.job == Job::Waiting => actions.push(Action::Fetch(n)),
                Worker::Idle => {}
                Worker::Running => actions.push(Action::Run(n)),
                Worker::Finished => actions.push(Action::Acknowledge(n)),
            }
            if *worker != Worker::Idle && state.crashes == 0 {
                actions.push(Action::Crash(n));
            }
            if self.reclaims && state.job == Job::Leased(n) {
                actions.push(Action::Expire(n));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Fetch(n) => {
                state.job = if self.kept_while_leased { Job::Leased(n) } else { Job::Gone };
                state.workers[n] = Worker::Running;
            }
            Action::Run(n) => {
                state.workers[n] = Worker::Finished;
                state.was_run = true;
            }
            Action::Acknowledge(n) => {
                state.workers[n] = Worker::Idle;
                let is_ours = state.job == Job::Leased(n);
                if is_ours || !self.fenced {
                    state.stolen |= !is_ours && matches!(state.job, Job::Leased(_));
                    state.job = Job::Gone;
                }
            }
            Action::Crash(n) => {
                state.workers[n] = Worker::Idle;
                state.crashes += 1;
            }
            Action::Expire(_) => state.job = Job::Waiting,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a job is done, under way or in the store", |_, state: &State| {
                let is_under_way = state.workers.iter().any(|worker| *worker != Worker::Idle);
                state.was_run || state.job != Job::Gone || is_under_way
            }),
            Property::always("nobody ends a job that another one holds", |_, state: &State| {
                !state.stolen
            }),
            Property::always("no job in the store is stuck", |model: &Self, state: &State| {
                let mut actions = Vec::new();
                model.actions(state, &mut actions);
                state.job == Job::Gone || !actions.is_empty()
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore;

    #[test]
    fn holds() {
        assert!(explore(Queue::default()).unwrap() > 20);
    }

    #[test]
    fn each_rule_is_needed() {
        let all = Queue::default;
        explore(Queue { fenced: false, ..all() }).unwrap_err();
        explore(Queue { reclaims: false, ..all() }).unwrap_err();
        explore(Queue { kept_while_leased: false, ..all() }).unwrap_err();
    }
}
