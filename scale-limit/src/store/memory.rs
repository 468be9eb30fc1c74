//! The table of this process: exact, and bounded.
//!
//! It does not use governor's keyed store, which cannot check before it charges (several policies,
//! all or none), and which grows with every key. The decisions are the same; a property test
//! compares them with governor's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::MutexGuard;
use quanta::Clock;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::evicted::Evicted;
use super::{Charge, Settle};
use crate::algorithm::{Rule, Ruling, State, Undo};
use crate::bounded_map::{BoundedMap, EvictionRank, Place, Shard};

/// Maximum number of keys: 64 shards of 14,336, the most that fit before the hash tables double.
/// About 90 MB with short keys, 200 MB with the longest.
const KEYS: usize = 917_504;

impl EvictionRank for State {
    /// Ranks denied keys above others, and others by what they have used.
    fn rank(&self, now: u64) -> u64 {
        match self.denies_until(now) {
            Some(_) => u64::MAX - 1,
            None => self.used(now),
        }
    }
}

/// Memory store; see the module.
#[derive(Debug)]
pub(crate) struct Memory {
    table: BoundedMap<State>,
    evicted: Evicted,
    time: Time,
}

/// Nanoseconds since the Unix epoch, monotonic from the start of the clock.
#[derive(Clone, Debug)]
pub(crate) struct Time {
    source: Source,
    offset: u64,
}

#[derive(Clone, Debug)]
enum Source {
    /// The processor's counter where it is reliable: half the cost of a call to the kernel.
    Counter(Clock, u64),
    /// Tokio's clock, which tests can pause and advance.
    Tokio(Instant),
}

impl Time {
    fn of(source: Source) -> Self {
        let offset =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        Self { source, offset }
    }

    pub(crate) fn tokio() -> Self {
        Self::of(Source::Tokio(Instant::now()))
    }

    #[inline]
    fn now(&self) -> u64 {
        match &self.source {
            Source::Counter(clock, start) => {
                self.offset + clock.delta_as_nanos(*start, clock.raw())
            }
            Source::Tokio(start) => self.offset + start.elapsed().as_nanos() as u64,
        }
    }
}

impl Default for Time {
    fn default() -> Self {
        let clock = Clock::new();
        let start = clock.raw();
        Self::of(Source::Counter(clock, start))
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(Time::default())
    }
}

type Locked<'a> = MutexGuard<'a, Shard<State>>;

impl Memory {
    pub(crate) fn new(time: Time) -> Self {
        Self { table: BoundedMap::new(KEYS), evicted: Evicted::default(), time }
    }

    /// Returns the time in nanoseconds since the Unix epoch.
    pub(crate) fn now(&self) -> u64 {
        self.time.now()
    }

    /// Charges one policy: the common case, without an allocation if the key is known.
    pub(crate) fn charge_one(&self, now: u64, charge: &Charge<'_>) -> Ruling {
        let (rule, policy, key) = (&charge.terms.rule, charge.policy, charge.key);
        let rule_on = |state: &mut State| match (rule, state) {
            (Rule::Gcra(rate), State::Bucket(bucket)) => {
                bucket.charge(rate, now, charge.cost, charge.least)
            }
            (rule, state) => rule.charge(state, now, charge.cost, charge.least),
        };
        let place = self.table.place(policy, key);
        let mut shard = self.table.lock(place.shard());
        if let Some(state) = BoundedMap::find(&mut shard, place, policy, key) {
            return rule_on(state);
        }
        if let Some(denial) = self.denied_before(place, rule, now) {
            return denial;
        }
        rule_on(self.state(&mut shard, place, charge, now))
    }

    /// Returns the state of a key, which has no evicted denial.
    fn state<'s>(
        &self,
        shard: &'s mut Locked<'_>,
        place: Place,
        charge: &Charge<'_>,
        now: u64,
    ) -> &'s mut State {
        if BoundedMap::find(shard, place, charge.policy, charge.key).is_none()
            && let Some((place, state)) = self.table.make_room(shard, now)
            && let Some(until) = state.denies_until(now)
        {
            let since = |time: u64| time.saturating_sub(self.time.offset);
            self.evicted.remember(place.hash() ^ state.shape(), since(until), since(now));
        }
        self.table
            .entry(shard, place, (charge.policy, charge.key), now, || charge.terms.rule.fresh())
    }

    /// Returns the denial of an evicted key, if it was by the same numbers.
    fn denied_before(&self, place: Place, rule: &Rule, now: u64) -> Option<Ruling> {
        let since = now.saturating_sub(self.time.offset);
        let wait = self.evicted.find(place.hash() ^ rule.shape(), since)?.saturating_sub(since);
        Some(Ruling {
            admitted: false,
            granted: 0,
            remaining: 0,
            retry_after: wait,
            full_after: wait,
        })
    }

    /// Settles earlier charges.
    pub(crate) fn settle(&self, now: u64, charges: &[Charge<'_>], how: Settle) {
        for charge in charges {
            let place = self.table.place(charge.policy, charge.key);
            let mut shard = self.table.lock(place.shard());
            let rule = charge.terms.rule;
            match how {
                Settle::GiveBack(age) => {
                    if let Some(state) =
                        BoundedMap::find(&mut shard, place, charge.policy, charge.key)
                    {
                        rule.give_back(state, now, charge.cost, nanos(age));
                    }
                }
                Settle::Debit => {
                    rule.debit(self.state(&mut shard, place, charge, now), now, charge.cost);
                }
            }
        }
    }

    /// Removes the state of a key.
    pub(crate) fn clear(&self, charge: &Charge<'_>) {
        self.table.remove(charge.policy, charge.key);
        self.evicted
            .forget(self.table.place(charge.policy, charge.key).hash() ^ charge.terms.rule.shape());
    }

    /// Charges in the given order, so that a key that occurs twice is charged twice. If a policy
    /// denies, all charges are undone in reverse order.
    pub(crate) fn charge(&self, now: u64, charges: &[Charge<'_>]) -> Vec<Ruling> {
        let places: SmallVec<[_; 8]> =
            charges.iter().map(|c| self.table.place(c.policy, c.key)).collect();
        // All callers lock in the same order, which prevents deadlocks.
        let mut order: SmallVec<[usize; 8]> = places.iter().map(|p| p.shard()).collect();
        order.sort_unstable();
        order.dedup();
        let mut locked: SmallVec<[(usize, Locked<'_>); 8]> =
            order.into_iter().map(|n| (n, self.table.lock(n))).collect();
        let mut rulings = Vec::with_capacity(charges.len());
        let mut undos: SmallVec<[Undo; 8]> = SmallVec::new();
        let mut everybody = true;
        for (charge, place) in charges.iter().zip(&places) {
            let Some((_, shard)) = locked.iter_mut().find(|(n, _)| *n == place.shard()) else {
                continue;
            };
            let known = BoundedMap::find(shard, *place, charge.policy, charge.key).is_some();
            let denied =
                if known { None } else { self.denied_before(*place, &charge.terms.rule, now) };
            let (ruling, undo) = if let Some(denial) = denied {
                (denial, Undo::Nothing)
            } else {
                let state = self.state(shard, *place, charge, now);
                charge.terms.rule.charge_undoable(state, now, charge.cost, charge.least)
            };
            everybody &= charge.admits(&ruling);
            rulings.push(ruling);
            undos.push(undo);
        }
        if !everybody {
            for ((charge, place), undo) in charges.iter().zip(&places).zip(undos).rev() {
                if let Some((_, shard)) = locked.iter_mut().find(|(n, _)| *n == place.shard())
                    && let Some(state) = BoundedMap::find(shard, *place, charge.policy, charge.key)
                {
                    state.undo(undo);
                }
            }
        }
        rulings
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Algorithm, Policy};

    const START: u64 = 1_000_000_000_000;

    fn charge<'a>(policy: &'a Policy, key: &'a str) -> Charge<'a> {
        Charge::new(policy, key, 1)
    }

    #[test]
    fn all_admit_or_none_is_charged_whatever_the_algorithms() {
        for algorithm in [
            Algorithm::Gcra,
            Algorithm::SlidingWindow,
            Algorithm::FixedWindow,
            Algorithm::Concurrency,
        ] {
            let (tight, wide) = (
                Policy::per_minute("tight", 1).algorithm(algorithm),
                Policy::per_minute("wide", 10).algorithm(algorithm),
            );
            let memory = Memory::default();
            assert!(
                memory
                    .charge(START, &[charge(&wide, "a"), charge(&tight, "a")])
                    .iter()
                    .all(|r| r.admitted)
            );
            for _ in 0..50 {
                let rulings = memory.charge(START, &[charge(&wide, "a"), charge(&tight, "a")]);
                assert_eq!((rulings[0].admitted, rulings[1].admitted), (true, false));
            }
            let left = memory.charge(START, &[charge(&wide, "a")])[0].remaining;
            assert_eq!(left, 8, "{algorithm:?}: the denied ones took nothing");
        }
    }

    #[test]
    fn one_charge_is_ruled_like_several() {
        let policy = Policy::per_hour("p", 3);
        let (one, several) = (Memory::default(), Memory::default());
        for _ in 0..5 {
            let ruling = one.charge_one(START, &charge(&policy, "a"));
            let other = several.charge(START, &[charge(&policy, "a")])[0];
            assert_eq!((ruling.admitted, ruling.remaining), (other.admitted, other.remaining));
        }
    }

    #[test]
    fn the_same_key_twice_in_one_call_is_charged_twice() {
        let policy = Policy::per_minute("p", 3);
        let memory = Memory::default();
        let rulings = memory.charge(START, &[charge(&policy, "a"), charge(&policy, "a")]);
        assert_eq!((rulings[0].remaining, rulings[1].remaining), (2, 1));
        let rulings = memory.charge(START, &[charge(&policy, "a"), charge(&policy, "a")]);
        assert_eq!((rulings[0].admitted, rulings[1].admitted), (true, false));
        assert_eq!(
            memory.charge(START, &[charge(&policy, "a")])[0].remaining,
            0,
            "the pair took nothing"
        );
    }

    #[test]
    fn another_algorithm_under_the_same_name_counts_by_itself() {
        let memory = Memory::default();
        for turn in 0..3 {
            for algorithm in [
                Algorithm::Gcra,
                Algorithm::SlidingWindow,
                Algorithm::Concurrency,
                Algorithm::FixedWindow,
            ] {
                let policy = Policy::per_minute("p", 1).algorithm(algorithm);
                // Tested once, because they share no state.
                assert_eq!(
                    memory.charge(START, &[charge(&policy, "a")])[0].admitted,
                    turn == 0,
                    "{algorithm:?}"
                );
            }
        }
    }

    fn small(limit: usize) -> Memory {
        Memory {
            table: BoundedMap::new(limit),
            evicted: Evicted::default(),
            time: Time { offset: 0, ..Time::default() },
        }
    }

    /// Inserts ten times as many keys as there is room for, as an attacker would to get denials
    /// forgotten: by the same policy or by another one whose counters last longer, with keys that
    /// are used up or not.
    #[test]
    fn a_flood_of_keys_is_bounded_and_washes_no_denial_away() {
        let limit = 64 * 100;
        for algorithm in [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow] {
            for (quota, junk) in [
                (5, Policy::per_hour("p", 5).algorithm(algorithm)),
                (5, Policy::new("daily", 1_000, Duration::from_hours(24))),
                (5, Policy::new("used up at once", 1, Duration::from_hours(24))),
                (1, Policy::per_hour("p", 1).algorithm(algorithm)),
            ] {
                let policy = Policy::per_hour("p", quota).algorithm(algorithm);
                let memory = small(limit);
                let keys: Vec<String> = (0..64).map(|n| format!("attacker:{n}")).collect();
                for key in &keys {
                    memory.charge_one(START, &Charge::new(&policy, key, quota));
                }
                for n in 0..limit * 10 {
                    memory.charge_one(START + n as u64, &charge(&junk, &n.to_string()));
                }
                assert!(memory.table.len() <= limit, "{}", memory.table.len());
                let later = START + 1_000_000_000;
                let admitted = |key: &&String| {
                    let one = memory.charge_one(later, &charge(&policy, key)).admitted;
                    one || memory.charge(later, &[charge(&policy, key)])[0].admitted
                };
                let again = keys.iter().filter(admitted).count();
                assert_eq!(again, 0, "{algorithm:?} {quota} beside {junk:?}");
                memory.clear(&charge(&policy, &keys[0]));
                assert!(memory.charge_one(later, &charge(&policy, &keys[0])).admitted);
            }
        }
    }
}
