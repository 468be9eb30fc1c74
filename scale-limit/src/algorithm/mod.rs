//! The rate-limiting algorithms, as pure calculations without clock and store.
//!
//! | algorithm | state of a key | maximum in any window of one period | units are restored |
//! | --- | --- | --- | --- |
//! | GCRA | one time | burst + quota | continuously |
//! | sliding window | 11 counters | quota | a tenth of a period at a time, up to a tenth late |
//! | fixed window | one counter | 2 × quota (quota in each aligned window) | all at once, when the next window begins |
//! | concurrency | the permits in use | – (quota at any moment) | when a permit is released |

mod gcra;
mod window;

pub(crate) use self::gcra::{Bucket, Rate};
pub(crate) use self::window::{Counts, Window};

/// Numbers of a policy, as its algorithm needs them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    Gcra(Rate),
    Window(Window),
    /// Maximum number of concurrent requests.
    Concurrency(u32),
    /// No limit.
    Free,
}

/// State of a key.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Bucket(Bucket),
    Counts(Box<Counts>),
    /// Number of permits in use.
    Held(u32),
}

/// A time that is never reached, or is unknown.
pub(crate) const NEVER: u64 = u64::MAX;

/// Ruling of an algorithm on one request. Times are nanoseconds from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    pub(crate) admitted: bool,
    /// Number of units charged: the cost, or less if the caller accepts less; 0 if denied.
    pub(crate) granted: u32,
    /// Number of units left.
    pub(crate) remaining: u32,
    /// Time until the same request would be admitted; zero if it was admitted, [`NEVER`] if never
    /// or unknown.
    pub(crate) retry_after: u64,
    /// Time until everything is available again.
    pub(crate) full_after: u64,
}

impl Ruling {
    pub(crate) const FREE: Self =
        Self { admitted: true, granted: 0, remaining: u32::MAX, retry_after: 0, full_after: 0 };
}

/// Version of the bytes of a state.
const FORMAT: u8 = 1;

/// Bytes that are read from the front.
pub(crate) struct Bytes<'b>(pub(crate) &'b [u8]);

impl Bytes<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*front)
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take()?))
    }
}

/// Effect of a charge on a state, to be undone.
#[derive(Clone, Debug)]
pub(crate) enum Undo {
    Nothing,
    State(State),
    Units(u32),
}

impl Rule {
    /// Returns a number that differs when the numbers of the rule differ.
    pub(crate) fn shape(&self) -> u64 {
        match self {
            Self::Gcra(rate) => shape(rate.interval, rate.burst),
            Self::Window(window) => shape(window.slot, window.quota),
            Self::Concurrency(_) | Self::Free => 0,
        }
    }

    /// Returns the state of a key without any charge.
    pub(crate) fn fresh(&self) -> State {
        match self {
            Self::Gcra(rate) => State::Bucket(Bucket::fresh(rate)),
            Self::Free => State::Bucket(Bucket::default()),
            Self::Window(_) => State::Counts(Box::default()),
            Self::Concurrency(_) => State::Held(0),
        }
    }

    /// Charges `cost` units at `now` (ns), or, if those are too many, as many as are available, but
    /// at least `least`.
    pub(crate) fn charge(&self, state: &mut State, now: u64, cost: u32, least: u32) -> Ruling {
        match (self, &mut *state) {
            (Self::Free, _) => Ruling::FREE,
            (Self::Gcra(rate), State::Bucket(bucket)) => bucket.charge(rate, now, cost, least),
            (Self::Window(window), State::Counts(counts)) => {
                window.charge(counts, now, cost, least)
            }
            (Self::Concurrency(places), State::Held(held)) => {
                let free = places.saturating_sub(*held);
                let admitted = cost <= free;
                let granted = if admitted { cost } else { 0 };
                *held += granted;
                let retry_after = if admitted { 0 } else { NEVER };
                Ruling { admitted, granted, remaining: free - granted, retry_after, full_after: 0 }
            }
            // A state of another algorithm does not occur, because the key includes the algorithm;
            // see `Identity`.
            _ => {
                *state = self.fresh();
                self.charge(state, now, cost, least)
            }
        }
    }

    /// Does the same, and returns how to undo the charge. A shape that is added to the state stays,
    /// because the other shapes may later have less use to take over.
    pub(crate) fn charge_undoable(
        &self,
        state: &mut State,
        now: u64,
        cost: u32,
        least: u32,
    ) -> (Ruling, Undo) {
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

    /// Refunds units that were charged `age` ns ago. Units that were restored since are not
    /// refunded again.
    pub(crate) fn give_back(&self, state: &mut State, now: u64, cost: u32, age: u64) {
        match (self, state) {
            (Self::Gcra(rate), State::Bucket(bucket)) => bucket.give_back(rate, now, cost, age),
            (Self::Window(window), State::Counts(counts)) => {
                window.give_back(counts, now, cost, age);
            }
            (Self::Concurrency(_), State::Held(held)) => *held = held.saturating_sub(cost),
            _ => {}
        }
    }

    /// Charges units that were already spent, even if too few are left.
    pub(crate) fn debit(&self, state: &mut State, now: u64, cost: u32) {
        match (self, &mut *state) {
            (Self::Gcra(rate), State::Bucket(bucket)) => bucket.debit(rate, now, cost),
            (Self::Window(window), State::Counts(counts)) => window.debit(counts, now, cost),
            (Self::Concurrency(_) | Self::Free, _) => {}
            _ => {
                *state = self.fresh();
                self.debit(state, now, cost);
            }
        }
    }

    /// Returns the ruling that applies if an admitted request is not charged after all.
    pub(crate) fn uncharged(&self, ruling: Ruling, cost: u32) -> Ruling {
        let most = match self {
            Self::Gcra(rate) => rate.burst,
            Self::Window(window) => window.quota,
            Self::Concurrency(places) => *places,
            Self::Free => return ruling,
        };
        let back = match self {
            Self::Gcra(rate) => rate.rank(cost),
            _ => 0,
        };
        let remaining = ruling.remaining.saturating_add(cost).min(most);
        Ruling {
            remaining,
            granted: 0,
            full_after: ruling.full_after.saturating_sub(back),
            ..ruling
        }
    }
}

/// Mixes both numbers over all bits.
fn shape(length: u64, units: u32) -> u64 {
    (length ^ u64::from(units).rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl State {
    /// Returns the [shape](Rule::shape) of the last rule that charged this state.
    pub(crate) fn shape(&self) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.shape(),
            Self::Counts(counts) => counts.shape(),
            Self::Held(_) => 0,
        }
    }

    /// Returns the state as bytes. Permits in use have holders and no bytes of their own.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        match self {
            Self::Bucket(bucket) => bucket.write(&mut out),
            Self::Counts(counts) => counts.write(&mut out),
            Self::Held(_) => {}
        }
        out
    }

    /// Returns the state that [`write`](Self::write) wrote under the same rule; `None` for other
    /// bytes.
    pub(crate) fn read(rule: &Rule, bytes: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        if bytes.take::<1>()?[0] != FORMAT {
            return None;
        }
        match rule {
            Rule::Gcra(_) => Some(Self::Bucket(Bucket::read(&mut bytes)?)),
            Rule::Window(_) => Some(Self::Counts(Box::new(Counts::read(&mut bytes)?))),
            Rule::Concurrency(_) | Rule::Free => None,
        }
    }

    /// Returns the time from which the state is that of a key without any charge (ns).
    pub(crate) fn until(&self) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.until(),
            Self::Counts(counts) => counts.until(),
            Self::Held(_) => 0,
        }
    }

    /// Undoes the last charge.
    pub(crate) fn undo(&mut self, undo: Undo) {
        match (self, undo) {
            (state, Undo::State(before)) => *state = before,
            (Self::Held(held), Undo::Units(units)) => *held = held.saturating_sub(units),
            _ => {}
        }
    }

    /// Returns the time until which a single unit is denied (ns), if it is denied and the time is
    /// known.
    pub(crate) fn denies_until(&self, now: u64) -> Option<u64> {
        match self {
            Self::Bucket(bucket) => bucket.denies_until(now),
            Self::Counts(counts) => counts.denies_until(now),
            Self::Held(_) => None,
        }
    }

    /// Returns the used share, in units of 2^-32. Permits in use rank above everything else.
    pub(crate) fn used(&self, now: u64) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.used(now),
            Self::Counts(counts) => counts.used(now),
            Self::Held(0) => 0,
            Self::Held(_) => u64::MAX,
        }
    }
}
