//! This process' own table: exact, and bounded.
//!
//! Not governor's keyed store: it cannot look before it charges (several policies, all or none), and grows with every key it ever
//! saw. The decisions are the same; a property test holds them against governor's.

use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::MutexGuard;
use quanta::Clock;
use smallvec::SmallVec;

use super::table::{Shard, Table, Worth};
use super::{Charge, Settle};
use crate::rule::{Rule, Ruling, State, Undo};

/// 64 shards of 14,336: as many as fit into their tables before these double. About 150 MB.
const KEYS: usize = 917_504;

impl Worth for State {
    fn until(&self) -> u64 {
        State::until(self)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Memory {
    table: Table<State>,
    time: Time,
}

/// Nanoseconds since the Unix epoch, going on steadily from where they were when the process began.
#[derive(Debug)]
struct Time {
    /// The processor's counter where it can be trusted: half the price of asking the kernel.
    clock: Clock,
    start: u64,
    offset: u64,
}

impl Default for Time {
    fn default() -> Self {
        let clock = Clock::new();
        let offset = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        Self { start: clock.raw(), clock, offset }
    }
}

impl Time {
    fn now(&self) -> u64 {
        self.offset + self.clock.delta_as_nanos(self.start, self.clock.raw())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { table: Table::new(KEYS), time: Time::default() }
    }
}

impl Memory {
    /// Nanoseconds since the Unix epoch.
    pub(crate) fn now(&self) -> u64 {
        self.time.now()
    }

    /// The common case, without an allocation once the key is known.
    pub(crate) fn charge_one(&self, now: u64, charge: &Charge<'_>) -> Ruling {
        let (rule, policy, key) = (&charge.terms.rule, charge.policy, charge.key);
        let rule_on = |state: &mut State| match (rule, state) {
            (Rule::Gcra(rate), State::Tat(tat)) => {
                let (ruling, next) = rate.rule(*tat, now, charge.cost, charge.least);
                if ruling.admitted {
                    *tat = next;
                }
                ruling
            }
            (rule, state) => rule.charge(state, now, charge.cost, charge.least).0,
        };
        let place = self.table.place(policy, key);
        let mut shard = self.table.lock(place.shard());
        if let Some(state) = Table::find(&mut shard, place, policy, key) {
            return rule_on(state);
        }
        rule_on(self.table.entry(&mut shard, place, (policy, key), || rule.fresh()))
    }

    /// Corrects what was charged.
    pub(crate) fn settle(&self, now: u64, charges: &[Charge<'_>], how: Settle) {
        for charge in charges {
            let place = self.table.place(charge.policy, charge.key);
            let mut shard = self.table.lock(place.shard());
            let rule = charge.terms.rule;
            match how {
                Settle::GiveBack(age) => {
                    if let Some(state) = Table::find(&mut shard, place, charge.policy, charge.key) {
                        rule.give_back(state, now, charge.cost, age.as_nanos() as u64);
                    }
                }
                Settle::Debit => {
                    let state = self.table.entry(&mut shard, place, (charge.policy, charge.key), || rule.fresh());
                    rule.debit(state, now, charge.cost);
                }
            }
        }
    }

    /// In the order asked, so that a key that comes twice is charged twice; undone in the other order if somebody denies.
    pub(crate) fn charge(&self, now: u64, charges: &[Charge<'_>]) -> Vec<Ruling> {
        let places: SmallVec<[_; 8]> = charges.iter().map(|c| self.table.place(c.policy, c.key)).collect();
        // Locked in one order by everybody, so that nobody waits in a circle.
        let mut order: SmallVec<[usize; 8]> = places.iter().map(|p| p.shard()).collect();
        order.sort_unstable();
        order.dedup();
        let mut locked: SmallVec<[(usize, MutexGuard<'_, Shard<State>>); 8]> =
            order.into_iter().map(|n| (n, self.table.lock(n))).collect();
        let mut rulings = Vec::with_capacity(charges.len());
        let mut undos: SmallVec<[Undo; 8]> = SmallVec::new();
        let mut everybody = true;
        for (charge, place) in charges.iter().zip(&places) {
            let Some((_, shard)) = locked.iter_mut().find(|(n, _)| *n == place.shard()) else { continue };
            let rule = charge.terms.rule;
            let state = self.table.entry(shard, *place, (charge.policy, charge.key), || rule.fresh());
            let (ruling, undo) = rule.charge(state, now, charge.cost, charge.least);
            everybody &= ruling.admitted || charge.policy.is_dry_run();
            rulings.push(ruling);
            undos.push(undo);
        }
        if !everybody {
            for ((charge, place), undo) in charges.iter().zip(&places).zip(undos).rev() {
                if let Some((_, shard)) = locked.iter_mut().find(|(n, _)| *n == place.shard())
                    && let Some(state) = Table::find(shard, *place, charge.policy, charge.key)
                {
                    state.undo(undo);
                }
            }
        }
        rulings
    }
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
        for algorithm in [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow, Algorithm::Concurrency] {
            let (tight, wide) =
                (Policy::per_minute("tight", 1).algorithm(algorithm), Policy::per_minute("wide", 10).algorithm(algorithm));
            let memory = Memory::default();
            assert!(memory.charge(START, &[charge(&wide, "a"), charge(&tight, "a")]).iter().all(|r| r.admitted));
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
        assert_eq!(memory.charge(START, &[charge(&policy, "a")])[0].remaining, 0, "the pair took nothing");
    }

    #[test]
    fn another_algorithm_under_the_same_name_starts_anew() {
        let memory = Memory::default();
        for algorithm in [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::Concurrency, Algorithm::FixedWindow] {
            let policy = Policy::per_minute("p", 1).algorithm(algorithm);
            assert!(memory.charge(START, &[charge(&policy, "a")])[0].admitted, "{algorithm:?}");
        }
    }

    /// Ten times as many keys as there is room for, from somebody who wants the others forgotten.
    #[test]
    fn a_flood_of_keys_is_bounded_and_who_has_spent_most_is_remembered() {
        let limit = 64 * 100;
        let memory = Memory { table: Table::new(limit), time: Time::default() };
        let policy = Policy::per_minute("p", 10);
        let spent: Vec<String> = (0..50).map(|n| format!("spent:{n}")).collect();
        for key in &spent {
            memory.charge(START, &[Charge::new(&policy, key, 10)]);
        }
        for n in 0..limit * 10 {
            memory.charge(START + n as u64, &[charge(&policy, &n.to_string())]);
        }
        assert!(memory.table.len() <= limit, "{}", memory.table.len());
        let remembered = spent.iter().filter(|key| !memory.charge(START, &[charge(&policy, key)])[0].admitted).count();
        assert!(remembered >= 45, "{remembered} of 50");
    }
}
