//! Leases of a limit: a fleet admits no more than its processes have taken, and no unit is spent
//! after its lease.
//!
//! Two processes take several units of one bucket at once, and spend them without further requests.
//! One answer may be lost.

use stateright::{Model, Property};

const PROCESSES: usize = 2;
/// Units in the bucket.
const QUOTA: u8 = 3;
/// Units of one lease.
const LOT: u8 = 2;
/// Duration of a lease, in ticks.
const LEASE: u8 = 1;
/// Numbers of leases are counted up to this one, and then again.
const LEASES: u8 = 4;
/// Number of ticks that are explored.
const TIME: u8 = 3;

/// The protocol, with its rules.
#[expect(clippy::struct_excessive_bools, reason = "each rule is switched off alone")]
#[derive(Clone, Debug)]
pub struct Leases {
    /// Units leave the bucket before they are lent, not when they are spent.
    pub taken_first: bool,
    /// A process whose answer was lost gets no units.
    pub lost_is_lost: bool,
    /// Units are not spent once their lease is over.
    pub leases_end: bool,
    /// A unit that was spent for a request which another policy denies returns to its own lease
    /// alone.
    pub returns_to_its_lease: bool,
}

impl Default for Leases {
    fn default() -> Self {
        Self { taken_first: true, lost_is_lost: true, leases_end: true, returns_to_its_lease: true }
    }
}

/// State of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    bucket: u8,
    now: u8,
    processes: [Process; PROCESSES],
    spent: u8,
    losses: u8,
    /// True if a unit was spent after its lease.
    late: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Process {
    /// Answer that has not arrived: its units, and the time at which they were taken.
    answer: Option<(u8, u8)>,
    units: u8,
    until: u8,
    /// Number of the lease.
    lease: u8,
    /// Lease of the unit of a request that waits for another policy.
    waiting: Option<u8>,
    /// Units in hand that are of an earlier lease.
    foreign: u8,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Requests units; the store decides.
    Ask(usize),
    /// The answer arrives.
    Receive(usize),
    /// The answer is lost.
    Lose(usize),
    /// Admits a request with a unit in hand.
    Spend(usize),
    /// Spends a unit for a request that waits for another policy.
    Wait(usize),
    /// The other policy denies: the unit is returned.
    Return(usize),
    /// Advances the time.
    Tick,
}

impl Model for Leases {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let processes = [Process::default(); PROCESSES];
        vec![State { bucket: QUOTA, now: 0, processes, spent: 0, losses: 0, late: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.now < TIME {
            actions.push(Action::Tick);
        }
        for (n, process) in state.processes.iter().enumerate() {
            if process.answer.is_some() {
                actions.push(Action::Receive(n));
                if state.losses == 0 {
                    actions.push(Action::Lose(n));
                }
            } else if process.units == 0 && state.bucket > 0 {
                actions.push(Action::Ask(n));
            }
            if process.units > 0 {
                actions.push(Action::Spend(n));
                if process.waiting.is_none() {
                    actions.push(Action::Wait(n));
                }
            }
            if process.waiting.is_some() {
                actions.push(Action::Return(n));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let now = state.now;
        match action {
            Action::Tick => state.now += 1,
            Action::Ask(n) => {
                let units = state.bucket.min(LOT);
                state.processes[n].answer = Some((units, now));
                if self.taken_first {
                    state.bucket -= units;
                }
            }
            Action::Receive(n) => {
                let process = &mut state.processes[n];
                let (units, taken) = process.answer.take()?;
                // The lease begins when the units were taken, however late the answer is.
                (process.units, process.until) = (units, taken + LEASE);
                process.lease = (process.lease + 1) % LEASES;
                process.foreign = 0;
            }
            Action::Wait(n) => {
                let process = &mut state.processes[n];
                if now > process.until {
                    return None;
                }
                process.units -= 1;
                process.waiting = Some(process.lease);
            }
            Action::Return(n) => {
                let process = &mut state.processes[n];
                let lease = process.waiting.take()?;
                if lease == process.lease {
                    process.units += 1;
                } else if !self.returns_to_its_lease {
                    process.units += 1;
                    process.foreign += 1;
                }
            }
            Action::Lose(n) => {
                state.losses += 1;
                let process = &mut state.processes[n];
                process.answer = None;
                if !self.lost_is_lost {
                    (process.units, process.until) = (LOT, now + LEASE);
                }
            }
            Action::Spend(n) => {
                let process = &mut state.processes[n];
                let is_over = now > process.until;
                if is_over && self.leases_end {
                    process.units = 0;
                    return Some(state);
                }
                process.units -= 1;
                state.spent += 1;
                state.late |= is_over || process.foreign > process.units;
                if !self.taken_first {
                    state.bucket = state.bucket.saturating_sub(1);
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no more is spent than was there", |_, state: &State| {
                state.spent <= QUOTA
            }),
            Property::always("nothing is spent after its lease", |_, state: &State| !state.late),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore;

    #[test]
    fn holds() {
        assert!(explore(Leases::default()).unwrap() > 100);
    }

    #[test]
    fn each_rule_is_needed() {
        let all = Leases::default;
        explore(Leases { taken_first: false, ..all() }).unwrap_err();
        explore(Leases { lost_is_lost: false, ..all() }).unwrap_err();
        explore(Leases { leases_end: false, ..all() }).unwrap_err();
        explore(Leases { returns_to_its_lease: false, ..all() }).unwrap_err();
    }
}
