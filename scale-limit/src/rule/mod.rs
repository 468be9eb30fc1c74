//! The algorithms, alone and pure: no clock, no store.
//!
//! | algorithm | keeps for a key | in any window of one period, at most | comes back |
//! | --- | --- | --- | --- |
//! | GCRA | one time | burst + quota | bit by bit |
//! | sliding window | 11 counters | quota | a tenth of a period at a time, up to a tenth late |
//! | fixed window | one counter | 2 × quota (quota in each aligned window) | all at once, when the next window begins |
//! | concurrency | who holds a place | – (quota at any moment) | when it is released |

mod gcra;
mod window;

pub(crate) use self::gcra::Rate;
pub(crate) use self::window::{Counts, Window};

/// A policy's numbers, as its algorithm wants them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    Gcra(Rate),
    Window(Window),
    /// That many at once.
    Places(u32),
    /// No limit.
    Free,
}

/// What is kept for a key.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// The theoretical arrival time, ns.
    Tat(u64),
    Counts(Box<Counts>),
    /// Places taken.
    Held(u32),
}

/// A time that never comes, or that nobody can know.
pub(crate) const NEVER: u64 = u64::MAX;

/// What an algorithm says of one request; times are nanoseconds from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    pub(crate) admitted: bool,
    /// Units charged: the cost, or less where less is welcome; 0 if denied.
    pub(crate) granted: u32,
    /// Units left now.
    pub(crate) remaining: u32,
    /// When the same request would be admitted; zero if it was. [`NEVER`], too, if nobody can know.
    pub(crate) retry_after: u64,
    /// When everything is there again.
    pub(crate) full_after: u64,
}

impl Ruling {
    pub(crate) const FREE: Self = Self { admitted: true, granted: 0, remaining: u32::MAX, retry_after: 0, full_after: 0 };
}

/// What a charge did to a state, so that it can be undone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Undo {
    Nothing,
    Tat(u64),
    Units(u32),
}

impl Rule {
    /// A key never seen.
    pub(crate) fn fresh(&self) -> State {
        match self {
            Self::Gcra(_) | Self::Free => State::Tat(0),
            Self::Window(_) => State::Counts(Box::default()),
            Self::Places(_) => State::Held(0),
        }
    }

    /// Charges `cost` units at `now` (ns), or, if that is too much, as many as there are, but not fewer than `least`.
    pub(crate) fn charge(&self, state: &mut State, now: u64, cost: u32, least: u32) -> (Ruling, Undo) {
        match (self, &mut *state) {
            (Self::Free, _) => (Ruling::FREE, Undo::Nothing),
            (Self::Gcra(rate), State::Tat(tat)) => {
                let before = *tat;
                let (ruling, next) = rate.rule(before, now, cost, least);
                if ruling.admitted {
                    *tat = next;
                    (ruling, Undo::Tat(before))
                } else {
                    (ruling, Undo::Nothing)
                }
            }
            (Self::Window(window), State::Counts(counts)) => {
                let ruling = window.charge(counts, now, cost, least);
                (ruling, if ruling.admitted { Undo::Units(ruling.granted) } else { Undo::Nothing })
            }
            (Self::Places(places), State::Held(held)) => {
                let free = places.saturating_sub(*held);
                let admitted = cost <= free;
                if admitted {
                    *held += cost;
                }
                let granted = if admitted { cost } else { 0 };
                let ruling = Ruling {
                    admitted,
                    granted,
                    remaining: free - granted,
                    retry_after: if admitted { 0 } else { NEVER },
                    full_after: 0,
                };
                (ruling, if admitted { Undo::Units(cost) } else { Undo::Nothing })
            }
            // The policy's algorithm is another one than when the key was last seen.
            _ => {
                *state = self.fresh();
                self.charge(state, now, cost, least)
            }
        }
    }

    /// Gives back what was charged `age` ns ago. What has flowed back by itself since is not given twice.
    pub(crate) fn give_back(&self, state: &mut State, now: u64, cost: u32, age: u64) {
        match (self, state) {
            (Self::Gcra(rate), State::Tat(tat)) => *tat = rate.give_back(*tat, now, cost, age),
            (Self::Window(window), State::Counts(counts)) => window.give_back(counts, now, cost, age),
            (Self::Places(_), State::Held(held)) => *held = held.saturating_sub(cost),
            _ => {}
        }
    }

    /// Charges what has been spent already, however little is left.
    pub(crate) fn debit(&self, state: &mut State, now: u64, cost: u32) {
        match (self, &mut *state) {
            (Self::Gcra(rate), State::Tat(tat)) => *tat = rate.debit(*tat, now, cost),
            (Self::Window(window), State::Counts(counts)) => window.debit(counts, now, cost),
            (Self::Places(_) | Self::Free, _) => {}
            _ => {
                *state = self.fresh();
                self.debit(state, now, cost);
            }
        }
    }

    /// What holds if an admitted request is not charged after all.
    pub(crate) fn uncharged(&self, ruling: Ruling, cost: u32) -> Ruling {
        let most = match self {
            Self::Gcra(rate) => rate.burst,
            Self::Window(window) => window.quota,
            Self::Places(places) => *places,
            Self::Free => return ruling,
        };
        let back = match self {
            Self::Gcra(rate) => rate.worth(cost),
            _ => 0,
        };
        let remaining = ruling.remaining.saturating_add(cost).min(most);
        Ruling { remaining, granted: 0, full_after: ruling.full_after.saturating_sub(back), ..ruling }
    }
}

impl State {
    /// As if a charge of a moment ago had not been.
    pub(crate) fn undo(&mut self, undo: Undo) {
        match (self, undo) {
            (Self::Tat(tat), Undo::Tat(before)) => *tat = before,
            (Self::Counts(counts), Undo::Units(units)) => counts.counts[0] = counts.counts[0].saturating_sub(units),
            (Self::Held(held), Undo::Units(units)) => *held = held.saturating_sub(units),
            _ => {}
        }
    }

    /// When it is no different from a key never seen (ns).
    pub(crate) fn until(&self) -> u64 {
        match self {
            Self::Tat(tat) => *tat,
            Self::Counts(counts) => counts.until(),
            Self::Held(0) => 0,
            Self::Held(_) => u64::MAX,
        }
    }
}
