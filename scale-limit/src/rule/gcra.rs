//! The generic cell rate algorithm, alone and pure.
//!
//! One number per key: the *theoretical arrival time* (TAT), when the key's bucket will be full again. Each unit of cost moves it on by
//! the emission interval `period / quota`; a request is admitted if it would not move further than the burst's worth into the future.
//! (ITU-T I.371, annex A, in the "virtual scheduling" form; the names follow Brandur Leach's description of it.)

use std::time::Duration;

use super::{NEVER, Ruling};

/// A policy in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// Nanoseconds per unit of cost.
    pub(crate) interval: f64,
    /// The other way round: a division takes longer than all else of a ruling.
    units: f64,
    /// Units that may come at once.
    pub(crate) burst: u32,
    /// Nanoseconds of the whole burst.
    capacity: u64,
}

impl Rate {
    pub(crate) fn new(quota: u32, period: Duration, burst: u32) -> Self {
        Self::paced(period.as_nanos() as f64 / f64::from(quota), burst)
    }

    /// So many nanoseconds per unit.
    pub(crate) fn paced(interval: f64, burst: u32) -> Self {
        Self { interval, units: interval.recip(), burst, capacity: (f64::from(burst) * interval) as u64 }
    }

    /// Rules on `cost` units at `now` (ns) with the stored `tat` (ns), or on as many as there are if those are at least `least`; returns
    /// the TAT to store if admitted.
    #[inline]
    pub(crate) fn rule(&self, tat: u64, now: u64, cost: u32, least: u32) -> (Ruling, u64) {
        // Time going backwards leaves a TAT in the future: stricter, never looser.
        let start = tat.max(now);
        self.admit(start, now, cost).unwrap_or_else(|| self.deny(start, now, cost, least))
    }

    /// `None`: they are too many.
    #[inline]
    fn admit(&self, start: u64, now: u64, cost: u32) -> Option<(Ruling, u64)> {
        let next = start.saturating_add(self.worth(cost));
        let full_after = next - now;
        let left = self.capacity.checked_sub(full_after)?;
        Some((Ruling { admitted: true, granted: cost, remaining: self.units(left), retry_after: 0, full_after }, next))
    }

    fn deny(&self, start: u64, now: u64, cost: u32, least: u32) -> (Ruling, u64) {
        let full_after = start - now;
        let remaining = self.units(self.capacity.saturating_sub(full_after));
        if least < cost
            && remaining > 0
            && remaining >= least
            && let Some(part) = self.admit(start, now, remaining)
        {
            return part;
        }
        let too_far = start.saturating_add(self.worth(cost)) - now;
        let retry_after = if cost <= self.burst { too_far - self.capacity } else { NEVER };
        (Ruling { admitted: false, granted: 0, remaining, retry_after, full_after }, start)
    }

    /// The TAT after `cost` units charged `age` ns ago are given back: less what has flowed back since, and never fuller than full.
    ///
    /// Without the age, a charge given back after its bucket has refilled would come back twice.
    pub(crate) fn give_back(&self, tat: u64, now: u64, cost: u32, age: u64) -> u64 {
        tat.saturating_sub(self.worth(cost).saturating_sub(age)).max(now)
    }

    /// The TAT after `cost` units were spent without asking.
    pub(crate) fn debit(&self, tat: u64, now: u64, cost: u32) -> u64 {
        tat.max(now).saturating_add(self.worth(cost))
    }

    pub(super) fn worth(&self, units: u32) -> u64 {
        (f64::from(units) * self.interval) as u64
    }

    fn units(&self, nanos: u64) -> u32 {
        // Half a nanosecond of rounding must not eat a unit.
        ((nanos as f64 + 0.5) * self.units) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;
    use governor::{Quota, RateLimiter};
    use proptest::prelude::*;

    proptest! {
        /// The oracle is a log of all events: in no window may more stand than stated, even when charges are given back, late or early.
        #[test]
        fn no_window_admits_more_than_stated(
            quota in 1_u32..50, burst in 1_u32..20,
            steps in prop::collection::vec((0_u64..400_000_000, 1_u32..4, 0_u8..4), 1..200)
        ) {
            let rate = Rate::new(quota, Duration::from_secs(1), burst);
            let (mut tat, mut now, mut log) = (0, 0_u64, Vec::new());
            for (wait, cost, kind) in steps {
                now += wait;
                if kind == 0 && !log.is_empty() {
                    let (at, cost) = log.remove(now as usize % log.len());
                    tat = rate.give_back(tat, now, cost, now - at);
                    continue;
                }
                let (ruling, next) = rate.rule(tat, now, cost, if kind == 1 { 1 } else { cost });
                if ruling.admitted {
                    tat = next;
                    log.push((now, ruling.granted));
                }
            }
            for (i, (start, _)) in log.iter().enumerate() {
                let mut sum = 0_u64;
                for (at, cost) in &log[i..] {
                    sum += u64::from(*cost);
                    let window = (at - start) as f64 / 1e9;
                    let allowed = f64::from(burst) + f64::from(quota) * window + 1e-6;
                    prop_assert!(sum as f64 <= allowed, "{sum} in {window} s, allowed {allowed}");
                }
            }
        }

        /// What it says of the future holds: exactly then, and not a nanosecond earlier.
        #[test]
        fn retry_after_is_exact(quota in 1_u32..1_000, burst in 1_u32..20, cost in 1_u32..20, spent in 0_u32..40) {
            let rate = Rate::new(quota, Duration::from_secs(1), burst);
            let (mut tat, now) = (0, 7);
            for _ in 0..spent {
                let (ruling, next) = rate.rule(tat, now, 1, 1);
                if ruling.admitted { tat = next }
            }
            let (ruling, _) = rate.rule(tat, now, cost, cost);
            match ruling.retry_after {
                wait if !ruling.admitted && wait < NEVER => {
                    let then = now + wait;
                    prop_assert!(rate.rule(tat, then, cost, cost).0.admitted);
                    prop_assert!(!rate.rule(tat, then - 1, cost, cost).0.admitted);
                }
                NEVER => prop_assert!(cost > burst),
                _ => prop_assert!(ruling.admitted),
            }
        }

        /// The same decisions as governor's, request by request.
        #[test]
        fn agrees_with_governor(quota in 1_u32..20, burst in 1_u32..20, waits in prop::collection::vec(0_u64..300, 1..200)) {
            let clock = FakeRelativeClock::default();
            let nonzero = |n| std::num::NonZeroU32::new(n).unwrap();
            // Intervals of whole milliseconds, as governor counts whole nanoseconds.
            let interval = Duration::from_millis(u64::from(quota) * 10);
            let theirs = RateLimiter::direct_with_clock(Quota::with_period(interval).unwrap().allow_burst(nonzero(burst)), clock.clone());
            let ours = Rate::new(1, interval, burst);
            let (mut tat, mut now) = (0, 1_u64);
            for wait in waits {
                clock.advance(Duration::from_millis(wait));
                now += wait * 1_000_000;
                let (ruling, next) = ours.rule(tat, now, 1, 1);
                prop_assert_eq!(ruling.admitted, theirs.check().is_ok());
                if ruling.admitted { tat = next }
            }
        }
    }

    #[test]
    fn time_going_backwards_gives_nothing_away() {
        let rate = Rate::new(1, Duration::from_secs(1), 1);
        let (_, tat) = rate.rule(0, 5_000_000_000, 1, 1);
        assert!(!rate.rule(tat, 1_000_000_000, 1, 1).0.admitted);
    }
}
