//! The generic cell rate algorithm, alone and pure.
//!
//! A key has one number, the *theoretical arrival time* (TAT): when the key's bucket will be full again. Each unit of cost moves it on by
//! the emission interval `period / quota`; a request is admitted if it would not move further than the burst's worth into the future.
//! (ITU-T I.371, annex A, in the "virtual scheduling" form; the names follow Brandur Leach's description of it.)
//!
//! All is counted in whole nanoseconds. The interval is rounded up, so that the pace is the quota or a little less: by 5 % at 70,000,000
//! units a second, by less than 0.1 % at a million.
//!
//! A bucket also keeps its *shape*, the interval and the burst. When a policy's numbers change, the units that have been used stay used,
//! and flow back at the new pace. Where two shapes are in use at once, as during a deploy, each has a bucket of its own, and each unit is
//! charged to both.

use std::time::Duration;

use super::{NEVER, Ruling};

/// A policy in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// Nanoseconds per unit of cost.
    pub(crate) interval: u64,
    /// Units per nanosecond: a division takes longer than all else of a ruling.
    units: f64,
    /// Units that may come at once.
    pub(crate) burst: u32,
    /// Nanoseconds of the whole burst.
    capacity: u64,
    /// The most that a key may owe (ns): twice the period, or twice the burst's worth, if that is longer.
    pub(crate) debt: u64,
}

/// The bucket of a key, for one shape of its policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bucket {
    /// The theoretical arrival time, ns.
    tat: u64,
    interval: u64,
    burst: u32,
    /// The bucket of another shape.
    other: Option<Box<Bucket>>,
}

/// Shapes of one key at most; the one longest out of use goes.
const SHAPES: usize = 4;

impl Rate {
    pub(crate) fn new(quota: u32, period: Duration, burst: u32) -> Self {
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX / 4);
        Self::paced(period.div_ceil(u64::from(quota.max(1))).max(1), burst, period)
    }

    /// So many nanoseconds per unit.
    fn paced(interval: u64, burst: u32, period: u64) -> Self {
        // Far beyond what a checked quota has.
        let capacity = u64::from(burst).saturating_mul(interval).min(u64::MAX / 4);
        let debt = capacity.max(period).min(u64::MAX / 4) * 2;
        Self { interval, units: (interval as f64).recip(), burst, capacity, debt }
    }

    /// Returns the time that an empty bucket takes to fill (ns).
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// A share of it (over 0, at most 1).
    pub(crate) fn share(&self, share: f64) -> Self {
        let burst = (f64::from(self.burst) * share).floor().max(1.0) as u32;
        Self::paced((self.interval as f64 / share).ceil() as u64, burst, self.debt / 2)
    }

    /// Rules on `cost` units at `now` (ns) with the stored `tat` (ns), or on as many as there are if those are at least `least`; returns
    /// the TAT to store if admitted.
    #[inline]
    fn rule(&self, tat: u64, now: u64, cost: u32, least: u32) -> (Ruling, u64) {
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
        if cost == 0 {
            // Nothing is always there, in debt as well.
            return (Ruling { admitted: true, granted: 0, remaining, retry_after: 0, full_after }, start);
        }
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
    fn give_back(&self, tat: u64, now: u64, cost: u32, age: u64) -> u64 {
        tat.saturating_sub(self.worth(cost).saturating_sub(age)).max(now)
    }

    /// The TAT after `cost` units were spent without asking.
    fn debit(&self, tat: u64, now: u64, cost: u32) -> u64 {
        let start = tat.max(now);
        start.saturating_add(self.worth(cost)).min(now.saturating_add(self.debt)).max(start)
    }

    pub(super) fn worth(&self, units: u32) -> u64 {
        u64::from(units).saturating_mul(self.interval)
    }

    fn units(&self, nanos: u64) -> u32 {
        // Rounding, which is more than a nanosecond in long periods, must neither eat a unit nor make one.
        let near = (nanos as f64 * self.units) as u64;
        let exact = if near * self.interval > nanos {
            near - 1
        } else if (near + 1) * self.interval <= nanos {
            near + 1
        } else {
            near
        };
        exact as u32
    }
}

impl Bucket {
    /// A full one.
    pub(crate) fn fresh(rate: &Rate) -> Self {
        Self { tat: 0, interval: rate.interval, burst: rate.burst, other: None }
    }

    #[inline]
    fn is_of(&self, rate: &Rate) -> bool {
        (self.interval, self.burst) == (rate.interval, rate.burst)
    }

    /// Charges `cost` units, or, if that is too much, as many as there are, but not fewer than `least`.
    #[inline]
    pub(crate) fn charge(&mut self, rate: &Rate, now: u64, cost: u32, least: u32) -> Ruling {
        if !self.is_of(rate) {
            self.take_shape(rate, now);
        }
        let (ruling, next) = rate.rule(self.tat, now, cost, least);
        if ruling.admitted {
            self.tat = next;
            if self.other.is_some() {
                self.charge_others(now, ruling.granted);
            }
        }
        ruling
    }

    /// Charges what has been spent already, down to the most that a key may owe.
    pub(crate) fn debit(&mut self, rate: &Rate, now: u64, cost: u32) {
        self.take_shape(rate, now);
        self.tat = rate.debit(self.tat, now, cost);
        self.charge_others(now, cost);
    }

    /// Gives back what was charged `age` ns ago.
    pub(crate) fn give_back(&mut self, rate: &Rate, now: u64, cost: u32, age: u64) {
        self.take_shape(rate, now);
        let mut bucket = Some(self);
        while let Some(this) = bucket {
            let rate = this.rate();
            this.tat = rate.give_back(this.tat, now, cost, age);
            bucket = this.other.as_deref_mut();
        }
    }

    pub(super) fn shape(&self) -> u64 {
        super::shape(self.interval, self.burst)
    }

    /// Returns the time at which it is full, whatever the shape (ns).
    pub(crate) fn until(&self) -> u64 {
        self.tat.max(self.other.as_ref().map_or(0, |other| other.until()))
    }

    /// Until when a single unit is denied (ns), if it is.
    pub(crate) fn denies_until(&self, now: u64) -> Option<u64> {
        let until = self.tat.saturating_sub(u64::from(self.burst.saturating_sub(1)).saturating_mul(self.interval));
        (until > now).then_some(until)
    }

    /// The share of its burst that is used, of 2^32.
    pub(crate) fn used(&self, now: u64) -> u64 {
        let capacity = u64::from(self.burst).saturating_mul(self.interval).max(1);
        (self.until().saturating_sub(now) as f64 / capacity as f64 * (1_u64 << 32) as f64) as u64
    }

    fn rate(&self) -> Rate {
        Rate::paced(self.interval, self.burst, 0)
    }

    /// Brings the bucket of this shape to the front; one that is new begins with what the others have used.
    pub(super) fn take_shape(&mut self, rate: &Rate, now: u64) {
        if self.is_of(rate) {
            return;
        }
        let mut others = Vec::with_capacity(SHAPES);
        let mut next = Some(std::mem::take(self));
        while let Some(mut bucket) = next {
            next = bucket.other.take().map(|other| *other);
            others.push(bucket);
        }
        let known = others.iter().position(|bucket| bucket.is_of(rate));
        let mut front = match known {
            Some(n) => others.remove(n),
            None => Self::adopt(rate, &others, now),
        };
        others.truncate(SHAPES - 1);
        front.other = others.into_iter().rev().fold(None, |rest, bucket| Some(Box::new(Self { other: rest, ..bucket })));
        *self = front;
    }

    /// Takes over the units used of other shapes, of whichever most, down to an empty bucket.
    fn adopt(rate: &Rate, others: &[Self], now: u64) -> Self {
        // As long as the same units take here.
        let ahead = |other: &Self| {
            let used = u128::from(other.tat.saturating_sub(now)) * u128::from(rate.interval);
            u64::try_from(used / u128::from(other.interval.max(1))).unwrap_or(u64::MAX)
        };
        let ahead = others.iter().map(ahead).max().unwrap_or(0).min(rate.capacity);
        Self { tat: now + ahead, ..Self::fresh(rate) }
    }

    /// Charges the other shapes, down to an empty bucket.
    fn charge_others(&mut self, now: u64, cost: u32) {
        let mut bucket = self.other.as_deref_mut();
        while let Some(this) = bucket {
            let rate = this.rate();
            let start = this.tat.max(now);
            this.tat = start.saturating_add(rate.worth(cost)).min(now.saturating_add(rate.capacity)).max(start);
            bucket = this.other.as_deref_mut();
        }
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

    const SECOND: u64 = 1_000_000_000;

    /// A tenant pays for more: 1,000 a day used up, then 10,000 an hour.
    #[test]
    fn what_was_used_stays_used_whatever_the_shape_and_flows_back_at_the_new_pace() {
        let (small, large) =
            (Rate::new(1_000, Duration::from_hours(24), 1_000), Rate::new(10_000, Duration::from_hours(1), 10_000));
        let mut bucket = Bucket::fresh(&small);
        assert!(bucket.charge(&small, 1, 1_000, 1_000).admitted);
        let ruling = bucket.charge(&large, 2, 1, 1);
        assert!(ruling.admitted && ruling.remaining == 8_999, "{ruling:?}");
        // For less: at most empty, and never for longer than the bucket takes to fill.
        let mut bucket = Bucket::fresh(&large);
        assert!(bucket.charge(&large, 1, 5_000, 5_000).admitted);
        let ruling = bucket.charge(&small, 2, 1, 1);
        assert!(!ruling.admitted && ruling.retry_after <= small.interval, "{ruling:?}");
    }

    /// A deploy: of two versions with different numbers, by turns, each admits no more than it would alone.
    #[test]
    fn two_shapes_in_turns_are_no_way_around_either() {
        let (old, new) = (Rate::new(10, Duration::from_mins(1), 10), Rate::new(100, Duration::from_hours(1), 100));
        let (mut bucket, mut by_old, mut all) = (Bucket::fresh(&old), 0_u64, 0_u64);
        for step in 0..36_000 {
            let now = SECOND + step * SECOND / 10;
            let first = bucket.charge(&old, now, 1, 1).admitted;
            by_old += u64::from(first);
            all += u64::from(first) + u64::from(bucket.charge(&new, now, 1, 1).admitted);
        }
        // In an hour: the old one's own bound is 10 and 600, the new one's what it has at once, and then what flows back.
        assert!(by_old <= 610 && all - by_old <= 100, "{by_old} and {all}");
    }

    #[test]
    fn debts_have_an_end() {
        let rate = Rate::new(5, Duration::from_mins(1), 5);
        let mut bucket = Bucket::fresh(&rate);
        for _ in 0..100 {
            bucket.debit(&rate, SECOND, u32::MAX);
        }
        assert!(bucket.until() <= SECOND + 120 * SECOND, "{}", bucket.until());
    }
}
