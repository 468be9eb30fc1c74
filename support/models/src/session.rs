//! Sessions: an ended session does not come back, whatever happens to it at the same time.
//!
//! One user with one session, which may be rotated or replaced by one at a second place; one slow
//! request that has loaded the session and writes later; one client that keeps an old proof.

use stateright::{Model, Property};

const PLACES: usize = 2;

/// The protocol, with its rules.
#[expect(clippy::struct_excessive_bools, reason = "each rule is switched off alone")]
#[derive(Clone, Debug)]
pub struct Sessions {
    /// A write changes only an existing session, and creates none.
    pub writes_conditionally: bool,
    /// Revoking a user's sessions is one step: it raises a number with which each session is
    /// compared. Without this rule the sessions are listed, and then removed.
    pub revokes_by_number: bool,
    /// A proof from before the last rotation is valid for a limited time only.
    pub proofs_end: bool,
    /// A write compares the number, as a load does.
    pub writes_compare: bool,
    /// A replaced session can be read and not written.
    pub replaced_is_frozen: bool,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            writes_conditionally: true,
            revokes_by_number: true,
            proofs_end: true,
            writes_compare: true,
            replaced_is_frozen: true,
        }
    }
}

/// State of the model.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Sessions by place, each with its number among the sessions of its owner.
    sessions: [Option<Session>; PLACES],
    /// Numbers up to this one are revoked.
    revoked: u8,
    /// Places of sessions that are listed for removal.
    listed: Option<Vec<usize>>,
    /// True if all sessions of the user were ended, and the call has returned.
    has_ended: bool,
    /// Place of the session that the slow request has loaded.
    loaded: Option<usize>,
    has_rotated: bool,
    grace_over: bool,
    /// True if a request was accepted that had to be rejected.
    broken: bool,
    /// True if a write was stored in a session that was ended or replaced: it is lost.
    lost: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Session {
    number: u8,
    /// True if the proof from before the last rotation is accepted.
    takes_old: bool,
    /// True if another session continues this one.
    is_replaced: bool,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// A request loads the session at a place, and continues slowly.
    Load(usize),
    /// The slow request writes.
    Write,
    /// The session is rotated or replaced, and continues at the other place.
    Rotate,
    /// The session is continued by one at the other place, as at a sign-in.
    Replace,
    /// The old proof is no longer accepted.
    EndGrace,
    /// A request with the old proof.
    LoadWithOld(usize),
    /// All sessions of the user are ended: in one step, or the first of two.
    Revoke,
    /// The second step.
    RemoveListed,
    /// The record of a revoked session is removed.
    Sweep(usize),
}

impl Sessions {
    fn stands(&self, state: &State, place: usize) -> Option<Session> {
        state.sessions[place]
            .filter(|session| !self.revokes_by_number || session.number > state.revoked)
    }
}

impl Model for Sessions {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            sessions: [Some(Session { number: 1, takes_old: false, is_replaced: false }), None],
            revoked: 0,
            listed: None,
            has_ended: false,
            loaded: None,
            has_rotated: false,
            grace_over: false,
            broken: false,
            lost: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for place in 0..PLACES {
            actions.push(Action::Load(place));
            actions.push(Action::LoadWithOld(place));
            if state.sessions[place].is_some_and(|session| session.number <= state.revoked) {
                actions.push(Action::Sweep(place));
            }
        }
        if state.loaded.is_some() {
            actions.push(Action::Write);
        }
        if !state.has_rotated && state.sessions[0].is_some() {
            actions.push(Action::Rotate);
            actions.push(Action::Replace);
        }
        if state.has_rotated && !state.grace_over {
            actions.push(Action::EndGrace);
        }
        if state.listed.is_some() {
            actions.push(Action::RemoveListed);
        } else if !state.has_ended {
            actions.push(Action::Revoke);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Load(place) => {
                self.stands(&state, place)?;
                state.broken |= state.has_ended;
                state.loaded = Some(place);
            }
            Action::LoadWithOld(place) => {
                self.stands(&state, place).filter(|session| session.takes_old)?;
                state.broken |= state.has_ended || state.grace_over;
            }
            Action::Write => {
                let place = state.loaded.take()?;
                match state.sessions[place] {
                    Some(session) => {
                        let is_over = session.number <= state.revoked;
                        let is_refused = (is_over && self.writes_compare)
                            || (session.is_replaced && self.replaced_is_frozen);
                        state.lost |= !is_refused && (is_over || session.is_replaced);
                    }
                    None if !self.writes_conditionally => {
                        let number = state.revoked + 1;
                        let new = Session { number, takes_old: false, is_replaced: false };
                        state.sessions[place] = Some(new);
                    }
                    None => {}
                }
            }
            Action::Rotate => {
                let session = self.stands(&state, 0)?;
                state.sessions = [None, Some(Session { takes_old: true, ..session })];
                state.has_rotated = true;
            }
            Action::Replace => {
                let session = self.stands(&state, 0)?;
                let old = Session { is_replaced: true, ..session };
                state.sessions = [Some(old), Some(session)];
                state.has_rotated = true;
            }
            Action::EndGrace => {
                state.grace_over = true;
                if self.proofs_end
                    && let Some(session) = &mut state.sessions[1]
                {
                    session.takes_old = false;
                }
            }
            Action::Revoke if self.revokes_by_number => {
                (state.revoked, state.has_ended) = (1, true);
            }
            Action::Revoke => {
                let places = (0..PLACES).filter(|place| state.sessions[*place].is_some());
                state.listed = Some(places.collect());
            }
            Action::Sweep(place) => state.sessions[place] = None,
            Action::RemoveListed => {
                for place in state.listed.take()? {
                    state.sessions[place] = None;
                }
                state.has_ended = true;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nobody gets in by an ended session or proof", |_, state: &State| {
                !state.broken
            }),
            Property::always("no write is lost without an error", |_, state: &State| !state.lost),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore;

    #[test]
    fn holds() {
        assert!(explore(Sessions::default()).unwrap() > 20);
    }

    #[test]
    fn each_rule_is_needed() {
        let all = Sessions::default;
        explore(Sessions { writes_conditionally: false, ..all() }).unwrap_err();
        explore(Sessions { revokes_by_number: false, ..all() }).unwrap_err();
        explore(Sessions { proofs_end: false, ..all() }).unwrap_err();
        explore(Sessions { writes_compare: false, ..all() }).unwrap_err();
        explore(Sessions { replaced_is_frozen: false, ..all() }).unwrap_err();
    }
}
