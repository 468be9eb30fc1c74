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

pub(crate) use self::gcra::{Bucket, Rate};
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
    Bucket(Bucket),
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
#[derive(Clone, Debug)]
pub(crate) enum Undo {
    Nothing,
    State(State),
    Units(u32),
}

impl Rule {
    /// A number that differs as the numbers of the rule do.
    pub(crate) fn shape(&self) -> u64 {
        match self {
            Self::Gcra(rate) => shape(rate.interval, rate.burst),
            Self::Window(window) => shape(window.slot, window.quota),
            Self::Places(_) | Self::Free => 0,
        }
    }

    /// A key never seen.
    pub(crate) fn fresh(&self) -> State {
        match self {
            Self::Gcra(rate) => State::Bucket(Bucket::fresh(rate)),
            Self::Free => State::Bucket(Bucket::default()),
            Self::Window(_) => State::Counts(Box::default()),
            Self::Places(_) => State::Held(0),
        }
    }

    /// Charges `cost` units at `now` (ns), or, if that is too much, as many as there are, but not fewer than `least`.
    pub(crate) fn charge(&self, state: &mut State, now: u64, cost: u32, least: u32) -> Ruling {
        match (self, &mut *state) {
            (Self::Free, _) => Ruling::FREE,
            (Self::Gcra(rate), State::Bucket(bucket)) => bucket.charge(rate, now, cost, least),
            (Self::Window(window), State::Counts(counts)) => window.charge(counts, now, cost, least),
            (Self::Places(places), State::Held(held)) => {
                let free = places.saturating_sub(*held);
                let admitted = cost <= free;
                let granted = if admitted { cost } else { 0 };
                *held += granted;
                let retry_after = if admitted { 0 } else { NEVER };
                Ruling { admitted, granted, remaining: free - granted, retry_after, full_after: 0 }
            }
            // Algorithms have states of their own; see `Identity`.
            _ => {
                *state = self.fresh();
                self.charge(state, now, cost, least)
            }
        }
    }

    /// The same, and how to undo it. A shape that the state takes for it stays: later there might be less to learn from the others.
    pub(crate) fn charge_undoable(&self, state: &mut State, now: u64, cost: u32, least: u32) -> (Ruling, Undo) {
        match (self, &mut *state) {
            (Self::Gcra(rate), State::Bucket(bucket)) => bucket.take_shape(rate, now),
            (Self::Window(window), State::Counts(counts)) => window.take_length(counts, now),
            _ => {}
        }
        let before = if matches!(state, State::Held(_)) { None } else { Some(state.clone()) };
        let ruling = self.charge(state, now, cost, least);
        let undo = match before {
            _ if !ruling.admitted => Undo::Nothing,
            Some(before) => Undo::State(before),
            None => Undo::Units(ruling.granted),
        };
        (ruling, undo)
    }

    /// Gives back what was charged `age` ns ago. What has flowed back by itself since is not given twice.
    pub(crate) fn give_back(&self, state: &mut State, now: u64, cost: u32, age: u64) {
        match (self, state) {
            (Self::Gcra(rate), State::Bucket(bucket)) => bucket.give_back(rate, now, cost, age),
            (Self::Window(window), State::Counts(counts)) => window.give_back(counts, now, cost, age),
            (Self::Places(_), State::Held(held)) => *held = held.saturating_sub(cost),
            _ => {}
        }
    }

    /// Charges what has been spent already, however little is left.
    pub(crate) fn debit(&self, state: &mut State, now: u64, cost: u32) {
        match (self, &mut *state) {
            (Self::Gcra(rate), State::Bucket(bucket)) => bucket.debit(rate, now, cost),
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

/// Spreads them over all bits.
fn shape(length: u64, units: u32) -> u64 {
    (length ^ u64::from(units).rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl State {
    /// The [shape](Rule::shape) of the rule that was asked last.
    pub(crate) fn shape(&self) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.shape(),
            Self::Counts(counts) => counts.shape(),
            Self::Held(_) => 0,
        }
    }

    /// As if a charge of a moment ago had not been.
    pub(crate) fn undo(&mut self, undo: Undo) {
        match (self, undo) {
            (state, Undo::State(before)) => *state = before,
            (Self::Held(held), Undo::Units(units)) => *held = held.saturating_sub(units),
            _ => {}
        }
    }

    /// Until when it denies a single unit (ns), if it does, and that is known.
    pub(crate) fn denies_until(&self, now: u64) -> Option<u64> {
        match self {
            Self::Bucket(bucket) => bucket.denies_until(now),
            Self::Counts(counts) => counts.denies_until(now),
            Self::Held(_) => None,
        }
    }

    /// The share of it that is used, of 2^32; places held are worth more than all else.
    pub(crate) fn used(&self, now: u64) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.used(now),
            Self::Counts(counts) => counts.used(now),
            Self::Held(0) => 0,
            Self::Held(_) => u64::MAX,
        }
    }
}
