//! Tags of a cache: a value that was loaded before an invalidation is never served after it.
//!
//! Two processes share a second level. Each knows the version of one tag from the events it has
//! received, and may hold the value in its first level. Events arrive late, and may be lost with
//! the subscription.

use stateright::{Model, Property};

const PROCESSES: usize = 2;
/// Number of writes to the database.
const WRITES: u8 = 2;

/// The protocol, with its rules.
#[derive(Clone, Debug)]
pub struct Cache {
    /// A load reads the tag's version before it reads the database, not after.
    pub versions_before_load: bool,
    /// An entry is valid only while its version is the known one.
    pub versions_compared: bool,
    /// A process that lost its subscription forgets the versions it knows.
    pub forgets_with_subscription: bool,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            versions_before_load: true,
            versions_compared: true,
            forgets_with_subscription: true,
        }
    }
}

/// Value of the database, and the tag's version under which it was loaded.
type Entry = (u8, u8);

/// State of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    database: u8,
    /// The tag's version in the store.
    version: u8,
    second: Option<Entry>,
    processes: [Process; PROCESSES],
    /// True if a process served a value from before an invalidation whose event it had received.
    broken: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Process {
    /// Version of the tag, if known.
    known: Option<u8>,
    /// Value of the database at the last invalidation whose event was received.
    floor: u8,
    first: Option<Entry>,
    load: Option<Load>,
    /// Events that have not arrived: the version, and the database's value.
    inbox: Vec<(u8, u8)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Load {
    version: u8,
    value: Option<u8>,
}

/// A step of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Writes to the database, then invalidates.
    Invalidate(usize),
    /// Receives an invalidation of the other process.
    Hear(usize),
    /// Loses its subscription, and the events that have not arrived.
    Lose(usize),
    /// Begins to load.
    Begin(usize),
    /// Reads the database.
    Read(usize),
    /// Stores the loaded value in both levels.
    Keep(usize),
    /// Takes the second level's entry.
    Take(usize),
    /// Serves the first level's entry.
    Serve(usize),
}

impl Cache {
    fn accepts(&self, process: &Process, entry: Entry) -> bool {
        !self.versions_compared || process.known == Some(entry.1)
    }
}

impl Model for Cache {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (n, process) in state.processes.iter().enumerate() {
            if state.database < WRITES {
                actions.push(Action::Invalidate(n));
            }
            if !process.inbox.is_empty() {
                actions.extend([Action::Hear(n), Action::Lose(n)]);
            }
            match process.load {
                None => actions.push(Action::Begin(n)),
                Some(Load { value: None, .. }) => actions.push(Action::Read(n)),
                Some(_) => actions.push(Action::Keep(n)),
            }
            if state.second.is_some() {
                actions.push(Action::Take(n));
            }
            if process.first.is_some() {
                actions.push(Action::Serve(n));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let (version, database) = (state.version, state.database);
        match action {
            Action::Invalidate(n) => {
                state.database += 1;
                state.version += 1;
                let event = (state.version, state.database);
                for (other, process) in state.processes.iter_mut().enumerate() {
                    if other == n {
                        (process.known, process.floor) = (Some(event.0), event.1);
                    } else {
                        process.inbox.push(event);
                    }
                }
            }
            Action::Hear(n) => {
                let process = &mut state.processes[n];
                let (version, value) = process.inbox.remove(0);
                process.known = process.known.max(Some(version));
                process.floor = process.floor.max(value);
            }
            Action::Lose(n) => {
                let process = &mut state.processes[n];
                let lost = process.inbox.drain(..).map(|(_, value)| value).max();
                // Whoever believes nothing unchecked has heard of all of it.
                process.floor = process.floor.max(lost.unwrap_or_default());
                if self.forgets_with_subscription {
                    process.known = None;
                }
            }
            Action::Begin(n) => {
                let process = &mut state.processes[n];
                let known = *process.known.get_or_insert(version);
                process.load = Some(Load { version: known, value: None });
            }
            Action::Read(n) => {
                state.processes[n].load.as_mut()?.value = Some(database);
            }
            Action::Keep(n) => {
                let process = &mut state.processes[n];
                let load = process.load.take()?;
                let known = *process.known.get_or_insert(version);
                let version = if self.versions_before_load { load.version } else { known };
                let entry = (load.value?, version);
                (process.first, state.second) = (Some(entry), Some(entry));
            }
            Action::Take(n) => {
                let entry = state.second?;
                let process = &mut state.processes[n];
                process.known.get_or_insert(version);
                if !self.accepts(process, entry) {
                    return None;
                }
                process.first = Some(entry);
            }
            Action::Serve(n) => {
                let process = &mut state.processes[n];
                let entry = process.first?;
                process.known.get_or_insert(version);
                if !self.accepts(process, entry) {
                    process.first = None;
                } else if entry.0 < process.floor {
                    state.broken = true;
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("no invalidated value is served", |_, state: &State| !state.broken)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore;

    #[test]
    fn holds() {
        assert!(explore(Cache::default()).unwrap() > 1_000);
    }

    #[test]
    fn each_rule_is_needed() {
        let all = Cache::default;
        explore(Cache { versions_before_load: false, ..all() }).unwrap_err();
        explore(Cache { versions_compared: false, ..all() }).unwrap_err();
        explore(Cache { forgets_with_subscription: false, ..all() }).unwrap_err();
    }
}
