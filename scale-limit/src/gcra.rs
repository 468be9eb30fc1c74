//! The generic cell rate algorithm, alone and pure.
//!
//! One number per key: the *theoretical arrival time* (TAT), when the key's bucket will be full again. Each unit of cost moves it on by
//! the emission interval `period / quota`; a request is admitted if it would not move further than the burst's worth into the future.
//! (ITU-T I.371, annex A, in the "virtual scheduling" form; the names follow Brandur Leach's description of it.)

use std::time::Duration;

/// A policy in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// Nanoseconds per unit of cost.
    pub(crate) interval: f64,
    /// Units that may come at once.
    pub(crate) burst: u32,
}

/// What the algorithm says of one request; times are from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    pub(crate) admitted: bool,
    /// Units left now.
    pub(crate) remaining: u32,
    /// When the same request would be admitted; zero if it was. `None`: never, its cost is over the burst.
    pub(crate) retry_after: Option<Duration>,
    /// When the whole burst is there again.
    pub(crate) full_after: Duration,
}

impl Rate {
    pub(crate) fn new(quota: u32, period: Duration, burst: u32) -> Self {
        Self { interval: period.as_nanos() as f64 / f64::from(quota), burst }
    }

    /// Rules on `cost` units at `now` (ns) with the stored `tat` (ns); returns the TAT to store if admitted.
    pub(crate) fn rule(&self, tat: Option<u64>, now: u64, cost: u32) -> (Ruling, u64) {
        // Time going backwards leaves a TAT in the future: stricter, never looser.
        let start = tat.unwrap_or(now).max(now);
        let next = start + (f64::from(cost) * self.interval) as u64;
        let capacity = (f64::from(self.burst) * self.interval) as u64;
        let ahead = next - now;
        if ahead <= capacity {
            (
                Ruling {
                    admitted: true,
                    remaining: self.units(capacity - ahead),
                    retry_after: Some(Duration::ZERO),
                    full_after: nanos(ahead),
                },
                next,
            )
        } else {
            let held = start - now;
            let ruling = Ruling {
                admitted: false,
                remaining: self.units(capacity.saturating_sub(held)),
                retry_after: (cost <= self.burst).then(|| nanos(ahead - capacity)),
                full_after: nanos(held),
            };
            (ruling, start)
        }
    }

    /// The TAT after `cost` units are given back; a bucket is never fuller than full.
    pub(crate) fn give_back(&self, tat: u64, now: u64, cost: u32) -> u64 {
        tat.saturating_sub((f64::from(cost) * self.interval) as u64).max(now)
    }

    /// What holds if an admitted request is not charged after all.
    pub(crate) fn uncharged(&self, ruling: Ruling, cost: u32) -> Ruling {
        let back = Duration::from_nanos((f64::from(cost) * self.interval) as u64);
        let remaining = ruling.remaining.saturating_add(cost).min(self.burst);
        Ruling { remaining, full_after: ruling.full_after.saturating_sub(back), ..ruling }
    }

    fn units(&self, nanos: u64) -> u32 {
        // Half a nanosecond of rounding must not eat a unit.
        ((nanos as f64 + 0.5) / self.interval) as u32
    }
}

fn nanos(n: u64) -> Duration {
    Duration::from_nanos(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;
    use governor::{Quota, RateLimiter};
    use proptest::prelude::*;

    proptest! {
        /// The oracle is a log of all events: in no window may more be admitted than stated.
        #[test]
        fn no_window_admits_more_than_stated(
            quota in 1_u32..50, burst in 1_u32..20, steps in prop::collection::vec((0_u64..400_000_000, 1_u32..4), 1..200)
        ) {
            let rate = Rate::new(quota, Duration::from_secs(1), burst);
            let (mut tat, mut now, mut log) = (None, 0_u64, Vec::new());
            for (wait, cost) in steps {
                now += wait;
                let (ruling, next) = rate.rule(tat, now, cost);
                if ruling.admitted {
                    tat = Some(next);
                    log.push((now, cost));
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
            let (mut tat, now) = (None, 7);
            for _ in 0..spent {
                let (ruling, next) = rate.rule(tat, now, 1);
                if ruling.admitted { tat = Some(next) }
            }
            let (ruling, _) = rate.rule(tat, now, cost);
            match ruling.retry_after {
                Some(wait) if !ruling.admitted => {
                    let then = now + wait.as_nanos() as u64;
                    prop_assert!(rate.rule(tat, then, cost).0.admitted);
                    prop_assert!(!rate.rule(tat, then - 1, cost).0.admitted);
                }
                Some(_) => prop_assert!(ruling.admitted),
                None => prop_assert!(cost > burst),
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
            let (mut tat, mut now) = (None, 1_u64);
            for wait in waits {
                clock.advance(Duration::from_millis(wait));
                now += wait * 1_000_000;
                let (ruling, next) = ours.rule(tat, now, 1);
                prop_assert_eq!(ruling.admitted, theirs.check().is_ok());
                if ruling.admitted { tat = Some(next) }
            }
        }
    }

    #[test]
    fn time_going_backwards_gives_nothing_away() {
        let rate = Rate::new(1, Duration::from_secs(1), 1);
        let (_, tat) = rate.rule(None, 5_000_000_000, 1);
        assert!(!rate.rule(Some(tat), 1_000_000_000, 1).0.admitted);
    }
}
