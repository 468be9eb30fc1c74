//! A key of a cache is removed while the second level is read: the old value does not return to the
//! first level.
//!
//! One process removes a key, in steps, while it reads the key, in steps. The last step of the
//! removal is that of the second level.

use stateright::{Model, Property};

/// The protocol, with its rules.
#[derive(Clone, Debug)]
pub struct Cache {
    /// A removal is recorded as pending before it moves the fence, not after.
    pub pending_before_fence: bool,
    /// A value is kept only if the fence has not moved since the read began.
    pub fence_checked: bool,
    /// A read ignores the second level's values of keys with a pending removal.
    pub pending_checked: bool,
}

impl Default for Cache {
    fn default() -> Self {
        Self { pending_before_fence: true, fence_checked: true, pending_checked: true }
    }
}

/// State of the model.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The second level has the old value.
    second: bool,
    first: bool,
    fence: u8,
    pending: bool,
    /// Number of completed steps of the removal: pending or fence, the other one, the store.
    removed: u8,
    read: Option<Read>,
    /// True if a removal was undone after it had returned.
    broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Read {
    fence: u8,
    is_pending: Option<bool>,
    found: Option<bool>,
}

/// A step of the removal or of the read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// The next step of the removal.
    Remove,
    /// Begins to read: reads the fence.
    Begin,
    /// Reads whether a removal is pending.
    LookAtPending,
    /// Reads the second level.
    Ask,
    /// Stores the value that was found.
    Keep,
}

impl Model for Cache {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            second: true,
            first: true,
            fence: 0,
            pending: false,
            removed: 0,
            read: None,
            broken: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.removed < 3 {
            actions.push(Action::Remove);
        }
        actions.push(match state.read {
            None => Action::Begin,
            Some(Read { is_pending: None, .. }) => Action::LookAtPending,
            Some(Read { found: None, .. }) => Action::Ask,
            Some(_) => Action::Keep,
        });
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Remove => {
                match (state.removed, self.pending_before_fence) {
                    (0, true) | (1, false) => state.pending = true,
                    (0, false) | (1, true) => (state.fence, state.first) = (state.fence + 1, false),
                    _ => (state.second, state.pending) = (false, false),
                }
                state.removed += 1;
            }
            Action::Begin => {
                state.read = Some(Read { fence: state.fence, is_pending: None, found: None });
            }
            Action::LookAtPending => state.read.as_mut()?.is_pending = Some(state.pending),
            Action::Ask => state.read.as_mut()?.found = Some(state.second),
            Action::Keep => {
                let Read { fence, is_pending, found } = state.read.take()?;
                let is_believed = !self.pending_checked || is_pending == Some(false);
                let stands = !self.fence_checked || fence == state.fence;
                if found == Some(true) && is_believed && stands {
                    state.first = true;
                }
            }
        }
        state.broken |= state.removed >= 2 && state.first;
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("a removed value does not come back", |_, state: &State| {
            !state.broken
        })]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore;

    #[test]
    fn holds() {
        assert!(explore(Cache::default()).unwrap() > 20);
    }

    #[test]
    fn each_rule_is_needed() {
        let all = Cache::default;
        explore(Cache { pending_before_fence: false, ..all() }).unwrap_err();
        explore(Cache { fence_checked: false, ..all() }).unwrap_err();
        explore(Cache { pending_checked: false, ..all() }).unwrap_err();
    }
}
