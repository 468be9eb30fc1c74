//! The generic cell rate algorithm (GCRA), as a pure calculation.
//!
//! The state of a key is one number, the *theoretical arrival time* (TAT): the time when the key's
//! bucket will be full again. Each unit of cost moves the TAT forward by the emission interval
//! `period / quota`. A request is admitted if the TAT stays within the burst's worth of time from
//! now. (ITU-T I.371, annex A, in the "virtual scheduling" form; the names follow Brandur Leach's
//! description.)
//!
//! All times are whole nanoseconds. The interval is rounded up, so the rate is the quota or
//! slightly less: 5 % less at 70,000,000 units a second, less than 0.1 % at a million.
//!
//! A bucket also stores its *shape*, the interval and the burst. When a policy's numbers change,
//! used units stay used, and are restored at the new rate. If two shapes are in use at once, as
//! during a deployment, each has its own bucket, and each unit is charged to both.

use std::time::Duration;

use super::{Bytes, NEVER, Ruling};

/// Rate of a policy, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// Nanoseconds per unit of cost.
    pub(crate) interval: u64,
    /// Units per nanosecond: a multiplication with this is faster than a division, which would be
    /// the slowest step of a ruling.
    units: f64,
    /// Maximum number of units at once.
    pub(crate) burst: u32,
    /// Nanoseconds of the whole burst.
    capacity: u64,
    /// Maximum debt of a key (ns): twice the period, or twice the burst's worth, whichever is
    /// longer.
    pub(crate) debt: u64,
}

/// The bucket of a key, for one shape of its policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bucket {
    /// Theoretical arrival time (ns).
    tat: u64,
    interval: u64,
    burst: u32,
    /// Bucket of another shape.
    other: Option<Box<Bucket>>,
}

/// Maximum number of shapes per key; beyond it the least recently used one is dropped.
const SHAPES: usize = 4;

impl Rate {
    pub(crate) fn new(quota: u32, period: Duration, burst: u32) -> Self {
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX / 4);
        Self::paced(period.div_ceil(u64::from(quota.max(1))).max(1), burst, period)
    }

    /// Creates a rate that restores a unit every `interval` nanoseconds.
    fn paced(interval: u64, burst: u32, period: u64) -> Self {
        // The limit is far above what a checked quota can reach.
        let capacity = u64::from(burst).saturating_mul(interval).min(u64::MAX / 4);
        let debt = capacity.max(period).min(u64::MAX / 4) * 2;
        Self { interval, units: (interval as f64).recip(), burst, capacity, debt }
    }

    /// Returns the time that an empty bucket takes to fill (ns).
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Returns a share (greater than 0, at most 1) of this rate.
    pub(crate) fn share(&self, share: f64) -> Self {
        let burst = (f64::from(self.burst) * share).floor().max(1.0) as u32;
        Self::paced((self.interval as f64 / share).ceil() as u64, burst, self.debt / 2)
    }

    /// Rules on `cost` units at `now` (ns) with the stored `tat` (ns), or on as many units as are
    /// available, if those are at least `least`. Returns the TAT to store if admitted.
    #[inline]
    fn rule(&self, tat: u64, now: u64, cost: u32, least: u32) -> (Ruling, u64) {
        // A clock that goes backwards leaves a TAT in the future, which makes the limit stricter,
        // never looser.
        let start = tat.max(now);
        self.admit(start, now, cost).unwrap_or_else(|| self.deny(start, now, cost, least))
    }

    /// Admits `cost` units. Returns `None` if they are too many.
    #[inline]
    fn admit(&self, start: u64, now: u64, cost: u32) -> Option<(Ruling, u64)> {
        let next = start.saturating_add(self.rank(cost));
        let full_after = next - now;
        let left = self.capacity.checked_sub(full_after)?;
        Some((
            Ruling {
                admitted: true,
                granted: cost,
                remaining: self.units(left),
                retry_after: 0,
                full_after,
            },
            next,
        ))
    }

    fn deny(&self, start: u64, now: u64, cost: u32, least: u32) -> (Ruling, u64) {
        let full_after = start - now;
        let remaining = self.units(self.capacity.saturating_sub(full_after));
        if cost == 0 {
            // A cost of zero is always admitted, also in debt.
            return (
                Ruling { admitted: true, granted: 0, remaining, retry_after: 0, full_after },
                start,
            );
        }
        if least < cost
            && remaining > 0
            && remaining >= least
            && let Some(part) = self.admit(start, now, remaining)
        {
            return part;
        }
        let too_far = start.saturating_add(self.rank(cost)) - now;
        let retry_after = if cost <= self.burst { too_far - self.capacity } else { NEVER };
        (Ruling { admitted: false, granted: 0, remaining, retry_after, full_after }, start)
    }

    /// Returns the TAT after a refund of `cost` units that were charged `age` ns ago: without the
    /// part that was restored since, and at most a full bucket.
    ///
    /// Without the age, a refund after the bucket has refilled would restore units twice.
    fn give_back(&self, tat: u64, now: u64, cost: u32, age: u64) -> u64 {
        tat.saturating_sub(self.rank(cost).saturating_sub(age)).max(now)
    }

    /// Returns the TAT after `cost` units were spent without a check.
    fn debit(&self, tat: u64, now: u64, cost: u32) -> u64 {
        let start = tat.max(now);
        start.saturating_add(self.rank(cost)).min(now.saturating_add(self.debt)).max(start)
    }

    pub(super) fn rank(&self, units: u32) -> u64 {
        u64::from(units).saturating_mul(self.interval)
    }

    fn units(&self, nanos: u64) -> u32 {
        // Rounding errors exceed a nanosecond in long periods; they must neither lose nor add a
        // unit.
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
    /// Creates a full bucket.
    pub(crate) fn fresh(rate: &Rate) -> Self {
        Self { tat: 0, interval: rate.interval, burst: rate.burst, other: None }
    }

    #[inline]
    fn is_of(&self, rate: &Rate) -> bool {
        (self.interval, self.burst) == (rate.interval, rate.burst)
    }

    /// Charges `cost` units, or, if those are too many, as many as are available, but at least
    /// `least`.
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

    /// Charges units that were already spent, down to the maximum debt of a key.
    pub(crate) fn debit(&mut self, rate: &Rate, now: u64, cost: u32) {
        self.take_shape(rate, now);
        self.tat = rate.debit(self.tat, now, cost);
        self.charge_others(now, cost);
    }

    /// Refunds units that were charged `age` ns ago.
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

    /// Returns the time at which the buckets of all shapes are full (ns).
    pub(crate) fn until(&self) -> u64 {
        self.tat.max(self.other.as_ref().map_or(0, |other| other.until()))
    }

    /// Returns the time until which a single unit is denied (ns), if it is denied.
    pub(crate) fn denies_until(&self, now: u64) -> Option<u64> {
        let until = self
            .tat
            .saturating_sub(u64::from(self.burst.saturating_sub(1)).saturating_mul(self.interval));
        (until > now).then_some(until)
    }

    /// Returns the used share of the burst, in units of 2^-32.
    pub(crate) fn used(&self, now: u64) -> u64 {
        let capacity = u64::from(self.burst).saturating_mul(self.interval).max(1);
        (self.until().saturating_sub(now) as f64 / capacity as f64 * (1_u64 << 32) as f64) as u64
    }

    /// Writes the buckets of all shapes: their number, then 20 bytes each.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(0);
        let mut next = Some(self);
        while let Some(bucket) = next {
            out.extend_from_slice(&bucket.tat.to_le_bytes());
            out.extend_from_slice(&bucket.interval.to_le_bytes());
            out.extend_from_slice(&bucket.burst.to_le_bytes());
            out[start] += 1;
            next = bucket.other.as_deref();
        }
    }

    /// Reads the output of [`write`](Self::write).
    pub(super) fn read(bytes: &mut Bytes<'_>) -> Option<Self> {
        let count = bytes.take::<1>()?[0];
        let mut buckets = Vec::with_capacity(SHAPES);
        for _ in 0..usize::from(count).min(SHAPES) {
            let (tat, interval) = (bytes.number()?, bytes.number()?.max(1));
            let burst = u32::from_le_bytes(bytes.take()?);
            buckets.push(Self { tat, interval, burst, other: None });
        }
        let chain = |rest, bucket| Some(Box::new(Self { other: rest, ..bucket }));
        buckets.into_iter().rev().fold(None, chain).map(|first| *first)
    }

    fn rate(&self) -> Rate {
        Rate::paced(self.interval, self.burst, 0)
    }

    /// Moves the bucket of this shape to the front. A new bucket starts with the use of the others.
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
        front.other = others
            .into_iter()
            .rev()
            .fold(None, |rest, bucket| Some(Box::new(Self { other: rest, ..bucket })));
        *self = front;
    }

    /// Creates a bucket with the units used in other shapes: the highest number, down to an empty
    /// bucket.
    fn adopt(rate: &Rate, others: &[Self], now: u64) -> Self {
        // Converts the time to what the same units take at this rate.
        let ahead = |other: &Self| {
            let used = u128::from(other.tat.saturating_sub(now)) * u128::from(rate.interval);
            u64::try_from(used / u128::from(other.interval.max(1))).unwrap_or(u64::MAX)
        };
        let ahead = others.iter().map(ahead).max().unwrap_or(0).min(rate.capacity);
        Self { tat: now + ahead, ..Self::fresh(rate) }
    }

    /// Charges the buckets of other shapes, down to an empty bucket.
    fn charge_others(&mut self, now: u64, cost: u32) {
        let mut bucket = self.other.as_deref_mut();
        while let Some(this) = bucket {
            let rate = this.rate();
            let start = this.tat.max(now);
            this.tat = start
                .saturating_add(rate.rank(cost))
                .min(now.saturating_add(rate.capacity))
                .max(start);
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
        /// The oracle is a log of all events: no window may contain more than the documented
        /// maximum, even when charges are refunded, late or early.
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

        /// Retry times are exact to the nanosecond.
        #[test]
        fn retry_after_is_exact(
            quota in 1_u32..1_000,
            burst in 1_u32..20,
            cost in 1_u32..20,
            spent in 0_u32..40,
        ) {
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

        /// The decisions equal those of governor, request by request.
        #[test]
        fn agrees_with_governor(
            quota in 1_u32..20,
            burst in 1_u32..20,
            waits in prop::collection::vec(0_u64..300, 1..200),
        ) {
            let clock = FakeRelativeClock::default();
            let nonzero = |n| std::num::NonZeroU32::new(n).unwrap();
            // Whole milliseconds, because governor counts whole nanoseconds.
            let interval = Duration::from_millis(u64::from(quota) * 10);
            let theirs = RateLimiter::direct_with_clock(
                Quota::with_period(interval).unwrap().allow_burst(nonzero(burst)), clock.clone(),
            );
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

    /// A tenant changes from 1,000 a day, all used, to 10,000 an hour.
    #[test]
    fn what_was_used_stays_used_whatever_the_shape_and_flows_back_at_the_new_pace() {
        let (small, large) = (
            Rate::new(1_000, Duration::from_hours(24), 1_000),
            Rate::new(10_000, Duration::from_hours(1), 10_000),
        );
        let mut bucket = Bucket::fresh(&small);
        assert!(bucket.charge(&small, 1, 1_000, 1_000).admitted);
        let ruling = bucket.charge(&large, 2, 1, 1);
        assert!(ruling.admitted && ruling.remaining == 8_999, "{ruling:?}");
        // A smaller quota leaves the bucket empty at most, and for no longer than a refill takes.
        let mut bucket = Bucket::fresh(&large);
        assert!(bucket.charge(&large, 1, 5_000, 5_000).admitted);
        let ruling = bucket.charge(&small, 2, 1, 1);
        assert!(!ruling.admitted && ruling.retry_after <= small.interval, "{ruling:?}");
    }

    /// Two versions with different numbers in turns, as during a deployment: each admits no more
    /// than it would alone.
    #[test]
    fn two_shapes_in_turns_are_no_way_around_either() {
        let (old, new) = (
            Rate::new(10, Duration::from_mins(1), 10),
            Rate::new(100, Duration::from_hours(1), 100),
        );
        let (mut bucket, mut by_old, mut all) = (Bucket::fresh(&old), 0_u64, 0_u64);
        for step in 0..36_000 {
            let now = SECOND + step * SECOND / 10;
            let first = bucket.charge(&old, now, 1, 1).admitted;
            by_old += u64::from(first);
            all += u64::from(first) + u64::from(bucket.charge(&new, now, 1, 1).admitted);
        }
        // In an hour, the bound of the old version is 10 and 600; that of the new one is its burst
        // and what is restored.
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
