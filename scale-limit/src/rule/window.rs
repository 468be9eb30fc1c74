//! Counting in windows: fixed, and sliding by tenths.
//!
//! A sliding window is usually approximated by two counters and the assumption that the earlier one filled evenly; what arrived at its very
//! end then makes room for up to twice the quota in one period. Here a period is cut into tenths, and a tenth counts until *all* of it is
//! older than a period. The error is on the strict side only: what was admitted counts for up to a tenth of a period too long.
//!
//! A fixed window is the same thing with one counter. Windows begin at multiples of their length since the Unix epoch (on Redis since
//! 2025, by its clock).

use std::time::Duration;

use super::{NEVER, Ruling};

/// Tenths, and the one that is partly out of the window.
pub(crate) const SLIDING: usize = 11;

/// How it is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Window {
    /// Nanoseconds of one counter.
    pub(crate) slot: u64,
    /// Counters that count, of [`SLIDING`].
    pub(crate) kept: usize,
    pub(crate) quota: u32,
}

/// The counters of one key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// The number of the newest slot since time began.
    newest: u64,
    /// Newest first.
    pub(super) counts: [u32; SLIDING],
    /// When all are out of the window.
    until: u64,
}

impl Counts {
    pub(super) fn until(&self) -> u64 {
        self.until
    }
}

impl Window {
    pub(crate) fn fixed(quota: u32, period: Duration) -> Self {
        Self { slot: nanos(period), kept: 1, quota }
    }

    pub(crate) fn sliding(quota: u32, period: Duration) -> Self {
        // Rounded up: ten slots are never shorter than the period.
        Self { slot: nanos(period).div_ceil(SLIDING as u64 - 1), kept: SLIDING, quota }
    }

    pub(crate) fn charge(&self, counts: &mut Counts, now: u64, cost: u32, least: u32) -> Ruling {
        self.roll(counts, now);
        let used: u64 = counts.counts[..self.kept].iter().map(|c| u64::from(*c)).sum();
        let left = u64::from(self.quota).saturating_sub(used) as u32;
        let granted = if cost <= left {
            cost
        } else if left > 0 && left >= least && least < cost {
            left
        } else {
            return Ruling {
                admitted: false,
                granted: 0,
                remaining: left,
                retry_after: self.frees(counts, used, cost).map_or(NEVER, |at| at.saturating_sub(now)),
                full_after: counts.until.saturating_sub(now),
            };
        };
        self.debit(counts, now, granted);
        Ruling {
            admitted: true,
            granted,
            remaining: left - granted,
            retry_after: 0,
            full_after: counts.until.saturating_sub(now),
        }
    }

    pub(crate) fn debit(&self, counts: &mut Counts, now: u64, cost: u32) {
        self.roll(counts, now);
        counts.counts[0] = counts.counts[0].saturating_add(cost);
        counts.until = (counts.newest + self.kept as u64).saturating_mul(self.slot);
    }

    pub(crate) fn give_back(&self, counts: &mut Counts, now: u64, cost: u32, age: u64) {
        self.roll(counts, now);
        let then = now.saturating_sub(age) / self.slot;
        let slot = usize::try_from(counts.newest.saturating_sub(then)).unwrap_or(usize::MAX);
        if slot < self.kept {
            counts.counts[slot] = counts.counts[slot].saturating_sub(cost);
        }
    }

    /// When `cost` units fit, if nothing else comes.
    fn frees(&self, counts: &Counts, used: u64, cost: u32) -> Option<u64> {
        let mut used = used;
        for slot in (0..self.kept).rev() {
            used -= u64::from(counts.counts[slot]);
            if used + u64::from(cost) <= u64::from(self.quota) {
                return Some((counts.newest - slot as u64 + self.kept as u64).saturating_mul(self.slot));
            }
        }
        None
    }

    /// Time going backwards stays in the newest slot: stricter, never looser.
    fn roll(&self, counts: &mut Counts, now: u64) {
        let newest = (now / self.slot).max(counts.newest);
        let by = usize::try_from(newest - counts.newest).unwrap_or(SLIDING).min(SLIDING);
        if by > 0 {
            counts.counts.copy_within(..SLIDING - by, by);
            counts.counts[..by].fill(0);
            // `frees` looks that many slots back.
            counts.newest = newest.max(SLIDING as u64);
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4).clamp(1, u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 1_000 * SECOND;

    /// The most that stand in any window of `length` of the log.
    fn most(log: &[(u64, u32)], length: u64) -> u64 {
        let within =
            |start: u64| log.iter().filter(|(at, _)| *at >= start && *at - start < length).map(|(_, c)| u64::from(*c)).sum();
        log.iter().map(|(start, _)| within(*start)).max().unwrap_or(0)
    }

    proptest! {
        /// The oracle is a log of all events that stand.
        #[test]
        fn no_window_admits_more_than_stated(
            quota in 1_u32..30, steps in prop::collection::vec((0_u64..300_000_000, 1_u32..4, 0_u8..4), 1..200)
        ) {
            for (window, bound) in [
                (Window::sliding(quota, Duration::from_secs(1)), u64::from(quota)),
                (Window::fixed(quota, Duration::from_secs(1)), 2 * u64::from(quota)),
            ] {
                let (mut counts, mut now, mut log) = (Counts::default(), START, Vec::new());
                for (wait, cost, kind) in &steps {
                    now += wait;
                    if *kind == 0 && !log.is_empty() {
                        let (at, cost): (u64, u32) = log.remove(now as usize % log.len());
                        window.give_back(&mut counts, now, cost, now - at);
                        continue;
                    }
                    let ruling = window.charge(&mut counts, now, *cost, if *kind == 1 { 1 } else { *cost });
                    if ruling.admitted {
                        log.push((now, ruling.granted));
                    }
                }
                let most = most(&log, SECOND);
                prop_assert!(most <= bound, "{most} of {bound}");
            }
        }

        /// A sliding window is strict, but no stricter than stated: what a window of 1.1 periods has room for is admitted.
        #[test]
        fn what_fits_into_eleven_tenths_is_admitted(
            quota in 1_u32..30, steps in prop::collection::vec(0_u64..300_000_000, 1..200)
        ) {
            let window = Window::sliding(quota, Duration::from_secs(1));
            let (mut counts, mut now, mut log) = (Counts::default(), START, Vec::<u64>::new());
            for wait in steps {
                now += wait;
                let recent = log.iter().filter(|at| now - **at <= SECOND / 10 * 11).count();
                let ruling = window.charge(&mut counts, now, 1, 1);
                prop_assert!(ruling.admitted || recent >= quota as usize);
                if ruling.admitted { log.push(now) }
            }
        }

        /// What it says of the future holds: exactly then, and not a nanosecond earlier.
        #[test]
        fn retry_after_is_exact(quota in 1_u32..30, waits in prop::collection::vec(0_u64..200_000_000, 1..60), cost in 1_u32..30) {
            for window in [Window::sliding(quota, Duration::from_secs(1)), Window::fixed(quota, Duration::from_secs(1))] {
                let (mut counts, mut now) = (Counts::default(), START);
                for wait in &waits {
                    now += wait;
                    window.charge(&mut counts, now, 1, 1);
                }
                let ruling = window.charge(&mut counts.clone(), now, cost, cost);
                match ruling.retry_after {
                    wait if !ruling.admitted && wait < NEVER => {
                        let then = now + wait;
                        prop_assert!(window.charge(&mut counts.clone(), then, cost, cost).admitted);
                        prop_assert!(!window.charge(&mut counts.clone(), then - 1, cost, cost).admitted);
                    }
                    NEVER => prop_assert!(cost > quota),
                    _ => prop_assert!(ruling.admitted),
                }
                let full = now + ruling.full_after;
                prop_assert!(window.charge(&mut counts.clone(), full, quota, quota).admitted || ruling.admitted);
            }
        }
    }

    #[test]
    fn time_going_backwards_gives_nothing_away() {
        for window in [Window::sliding(2, Duration::from_secs(1)), Window::fixed(2, Duration::from_secs(1))] {
            let mut counts = Counts::default();
            assert!(window.charge(&mut counts, START, 2, 2).admitted);
            for back in [1, SECOND / 10, SECOND, 100 * SECOND] {
                assert!(!window.charge(&mut counts, START - back, 1, 1).admitted);
            }
        }
    }

    #[test]
    fn the_edge_of_two_fixed_windows_lets_two_quotas_pass_and_a_sliding_one_does_not() {
        let admitted = |window: Window| {
            let mut counts = Counts::default();
            let before = (0..10).filter(|_| window.charge(&mut counts, START - 1, 1, 1).admitted).count();
            let after = (0..10).filter(|_| window.charge(&mut counts, START, 1, 1).admitted).count();
            before + after
        };
        assert_eq!(admitted(Window::fixed(5, Duration::from_secs(1))), 10);
        assert_eq!(admitted(Window::sliding(5, Duration::from_secs(1))), 5);
    }
}
