//! Counting in windows: fixed, and sliding by tenths.
//!
//! A sliding window is usually approximated by two counters and the assumption that the earlier one
//! filled evenly; requests at its very end then make room for up to twice the quota in one period.
//! Here a period is divided into tenths, and a tenth counts until *all* of it is older than a
//! period. The error is on the strict side only: an admitted request counts for up to a tenth of a
//! period too long.
//!
//! A fixed window is the same with one counter. Windows begin at multiples of their length since
//! the Unix epoch (on Redis since 2025, by its clock).
//!
//! Counters store the length of their slots. When a policy's period changes, their counts move to
//! the new slots, each to the latest time it may represent. If two lengths are in use at once, as
//! during a deployment, each has its own counters, and each unit is counted in both.

use std::time::Duration;

use super::{Bytes, NEVER, Ruling};

/// Number of slots: ten tenths, and one that is partly out of the window.
pub(crate) const SLIDING: usize = 11;
/// Maximum number of slot lengths per key; beyond it the least recently used one is dropped.
const LENGTHS: usize = 4;

/// Window in which requests are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Window {
    /// Length of a slot in nanoseconds.
    pub(crate) slot: u64,
    /// Number of slots that count, of [`SLIDING`].
    pub(crate) kept: usize,
    pub(crate) quota: u32,
}

/// Counters of one key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Length of a slot in nanoseconds; 0: never used.
    slot: u64,
    kept: usize,
    /// Quota at the last charge.
    quota: u32,
    /// Number of the newest slot, counted from the epoch.
    newest: u64,
    /// Counts of the slots, newest first.
    pub(super) counts: [u32; SLIDING],
    /// Counters with slots of another length.
    other: Option<Box<Counts>>,
}

impl Counts {
    pub(super) fn shape(&self) -> u64 {
        super::shape(self.slot, self.quota)
    }

    /// Returns the time at which all counts are out of the window (ns).
    pub(super) fn until(&self) -> u64 {
        let own = match self.counts[..self.kept].iter().position(|count| *count > 0) {
            Some(newest) => self.end(newest),
            None => 0,
        };
        own.max(self.other.as_ref().map_or(0, |other| other.until()))
    }

    /// Returns the time until which a single unit is denied (ns), if it is denied.
    pub(super) fn denies_until(&self, now: u64) -> Option<u64> {
        let window = self.window();
        let until = if self.total() < u64::from(self.quota) {
            0
        } else {
            window.frees(self, self.total(), 1)?
        };
        (until > now).then_some(until)
    }

    /// Returns the used share of the quota, in units of 2^-32.
    pub(super) fn used(&self, now: u64) -> u64 {
        if self.until() <= now { 0 } else { (self.total() << 32) / u64::from(self.quota.max(1)) }
    }

    /// Writes the counters of all lengths: their number, then 21 bytes and 4 for each slot.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(0);
        let mut next = Some(self);
        while let Some(counts) = next {
            out.extend_from_slice(&counts.slot.to_le_bytes());
            out.extend_from_slice(&counts.newest.to_le_bytes());
            out.extend_from_slice(&counts.quota.to_le_bytes());
            out.push(counts.kept as u8);
            for count in &counts.counts[..counts.kept] {
                out.extend_from_slice(&count.to_le_bytes());
            }
            out[start] += 1;
            next = counts.other.as_deref();
        }
    }

    /// Reads the output of [`write`](Self::write).
    pub(super) fn read(bytes: &mut Bytes<'_>) -> Option<Self> {
        let number = bytes.take::<1>()?[0];
        let mut all = Vec::with_capacity(LENGTHS);
        for _ in 0..usize::from(number).min(LENGTHS) {
            let (slot, newest) = (bytes.number()?, bytes.number()?);
            let quota = u32::from_le_bytes(bytes.take()?);
            let kept = usize::from(bytes.take::<1>()?[0]);
            let mut counts = Self { slot, kept, quota, newest, ..Self::default() };
            for count in counts.counts.get_mut(..kept)? {
                *count = u32::from_le_bytes(bytes.take()?);
            }
            all.push(counts);
        }
        let chain = |rest, counts| Some(Box::new(Self { other: rest, ..counts }));
        all.into_iter().rev().fold(None, chain).map(|first| *first)
    }

    fn total(&self) -> u64 {
        self.counts[..self.kept].iter().map(|count| u64::from(*count)).sum()
    }

    /// Returns the time at which a slot is out of the window (ns).
    fn end(&self, slot: usize) -> u64 {
        (self.newest.saturating_sub(slot as u64) + self.kept as u64).saturating_mul(self.slot)
    }

    fn window(&self) -> Window {
        Window { slot: self.slot.max(1), kept: self.kept, quota: self.quota }
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
        self.take_length(counts, now);
        let used = counts.total();
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
                retry_after: self
                    .frees(counts, used, cost)
                    .map_or(NEVER, |at| at.saturating_sub(now)),
                full_after: counts.until().saturating_sub(now),
            };
        };
        count(counts, now, granted);
        let full_after = counts.until().saturating_sub(now);
        Ruling { admitted: true, granted, remaining: left - granted, retry_after: 0, full_after }
    }

    pub(crate) fn debit(&self, counts: &mut Counts, now: u64, cost: u32) {
        self.take_length(counts, now);
        count(counts, now, cost);
    }

    pub(crate) fn give_back(&self, counts: &mut Counts, now: u64, cost: u32, age: u64) {
        self.take_length(counts, now);
        let mut next = Some(counts);
        while let Some(this) = next {
            this.window().roll(this, now);
            let then = now.saturating_sub(age) / this.slot.max(1);
            let slot = usize::try_from(this.newest.saturating_sub(then)).unwrap_or(usize::MAX);
            if slot < this.kept {
                this.counts[slot] = this.counts[slot].saturating_sub(cost);
            }
            next = this.other.as_deref_mut();
        }
    }

    /// Returns the time at which `cost` units fit, if nothing else is charged.
    fn frees(&self, counts: &Counts, used: u64, cost: u32) -> Option<u64> {
        let mut used = used;
        for slot in (0..self.kept).rev() {
            used -= u64::from(counts.counts[slot]);
            if used + u64::from(cost) <= u64::from(self.quota) {
                return Some(counts.end(slot));
            }
        }
        None
    }

    /// Moves the slots to `now`. If the clock goes backwards, the newest slot stays, which makes
    /// the limit stricter, never looser.
    fn roll(&self, counts: &mut Counts, now: u64) {
        let newest = (now / self.slot).max(counts.newest);
        let by = usize::try_from(newest - counts.newest).unwrap_or(SLIDING).min(SLIDING);
        if by > 0 {
            counts.counts.copy_within(..SLIDING - by, by);
            counts.counts[..by].fill(0);
            counts.newest = newest;
        }
    }

    /// Moves the counters of this length to the front, and updates them to `now`. New counters
    /// start with the counts of the others.
    pub(super) fn take_length(&self, counts: &mut Counts, now: u64) {
        if (counts.slot, counts.kept) != (self.slot, self.kept) {
            let mut others = Vec::with_capacity(LENGTHS);
            let mut next = Some(std::mem::take(counts)).filter(|counts| counts.slot > 0);
            while let Some(mut of) = next {
                next = of.other.take().map(|other| *other);
                others.push(of);
            }
            let known = others.iter().position(|of| (of.slot, of.kept) == (self.slot, self.kept));
            *counts = match known {
                Some(n) => others.remove(n),
                None => self.adopt(&others, now),
            };
            others.truncate(LENGTHS - 1);
            counts.other = others
                .into_iter()
                .rev()
                .fold(None, |rest, of| Some(Box::new(Counts { other: rest, ..of })));
        }
        counts.quota = self.quota;
        self.roll(counts, now);
    }

    /// Creates counters from those of another length, the ones with the highest total. Each count
    /// moves to the latest time it may represent.
    fn adopt(&self, others: &[Counts], now: u64) -> Counts {
        let mut most = Counts { slot: self.slot, kept: self.kept, ..Counts::default() };
        self.roll(&mut most, now);
        let fresh = most.clone();
        for other in others {
            let mut counts = fresh.clone();
            for (n, count) in other.counts[..other.kept].iter().enumerate() {
                let Some(number) = other.newest.checked_sub(n as u64) else { break };
                let time = (number + 1).saturating_mul(other.slot).min(now);
                let slot = usize::try_from(counts.newest.saturating_sub(time / self.slot))
                    .unwrap_or(usize::MAX);
                if slot < self.kept {
                    counts.counts[slot] = counts.counts[slot].saturating_add(*count);
                }
            }
            if counts.total() > most.total() {
                most = counts;
            }
        }
        most
    }
}

/// Counts units in the newest slot of every length.
fn count(counts: &mut Counts, now: u64, units: u32) {
    let mut next = Some(counts);
    while let Some(this) = next {
        this.window().roll(this, now);
        this.counts[0] = this.counts[0].saturating_add(units);
        next = this.other.as_deref_mut();
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

    /// Returns the maximum in any window of `length` of the log.
    fn most(log: &[(u64, u32)], length: u64) -> u64 {
        let within = |start: u64| {
            log.iter()
                .filter(|(at, _)| *at >= start && *at - start < length)
                .map(|(_, c)| u64::from(*c))
                .sum()
        };
        log.iter().map(|(start, _)| within(*start)).max().unwrap_or(0)
    }

    proptest! {
        /// The oracle is a log of all admitted events.
        #[test]
        fn no_window_admits_more_than_stated(
            quota in 1_u32..30, steps in prop::collection::vec(
                (0_u64..300_000_000, 1_u32..4, 0_u8..4), 1..200,
            )
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
                    let ruling = window.charge(
                        &mut counts, now, *cost, if *kind == 1 { 1 } else { *cost },
                    );
                    if ruling.admitted {
                        log.push((now, ruling.granted));
                    }
                }
                let most = most(&log, SECOND);
                prop_assert!(most <= bound, "{most} of {bound}");
            }
        }

        /// A sliding window is strict, but not stricter than documented: everything that fits into
        /// a window of 1.1 periods is admitted.
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

        /// Versions with different numbers, in any order: each admits within its own quota,
        /// including what the others admit, once it has been in use for a period. Before that, it
        /// knows the counts of the others' periods.
        #[test]
        fn versions_side_by_side_keep_each_its_own_quota(
            versions in prop::collection::vec((1_u32..30, 300_u64..3_000), 2..5),
            steps in prop::collection::vec((0_u64..100_000_000, 0_usize..4, 1_u32..4), 1..300)
        ) {
            let windows: Vec<Window> =
                versions.iter()
                    .map(|(quota, millis)| Window::sliding(*quota, Duration::from_millis(*millis)))
                    .collect();
            let (mut counts, mut now, mut log) = (
                Counts::default(), START, Vec::<(u64, u32)>::new(),
            );
            let mut since = vec![None; windows.len()];
            for (wait, version, cost) in steps {
                now += wait;
                let n = version % windows.len();
                let since = *since[n].get_or_insert(now);
                if windows[n].charge(&mut counts, now, cost, cost).admitted {
                    log.push((now, cost));
                    let period = versions[n].1 * 1_000_000;
                    let used: u32 = log.iter()
                        .filter(|(at, _)| *at + period > now)
                        .map(|(_, cost)| cost)
                        .sum();
                    prop_assert!(
                        used <= versions[n].0 || now < since + period, "{used} of {:?}", versions[n]
                    );
                }
            }
        }

        /// Retry times are exact to the nanosecond.
        #[test]
        fn retry_after_is_exact(
            quota in 1_u32..30,
            waits in prop::collection::vec(0_u64..200_000_000, 1..60),
            cost in 1_u32..30,
        ) {
            for window in [
                Window::sliding(quota, Duration::from_secs(1)),
                Window::fixed(quota, Duration::from_secs(1)),
            ] {
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
                        prop_assert!(
                            !window.charge(&mut counts.clone(), then - 1, cost, cost).admitted
                        );
                    }
                    NEVER => prop_assert!(cost > quota),
                    _ => prop_assert!(ruling.admitted),
                }
                let full = now + ruling.full_after;
                prop_assert!(
                    window.charge(
                        &mut counts.clone(), full, quota, quota,
                    ).admitted || ruling.admitted,
                );
            }
        }
    }

    #[test]
    fn time_going_backwards_gives_nothing_away() {
        for window in
            [Window::sliding(2, Duration::from_secs(1)), Window::fixed(2, Duration::from_secs(1))]
        {
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
            let before =
                (0..10).filter(|_| window.charge(&mut counts, START - 1, 1, 1).admitted).count();
            let after =
                (0..10).filter(|_| window.charge(&mut counts, START, 1, 1).admitted).count();
            before + after
        };
        assert_eq!(admitted(Window::fixed(5, Duration::from_secs(1))), 10);
        assert_eq!(admitted(Window::sliding(5, Duration::from_secs(1))), 5);
    }

    /// A deployment with a longer period, and one with a shorter period.
    #[test]
    fn another_period_locks_nobody_out_and_lets_nobody_through() {
        for make in [Window::sliding, Window::fixed] {
            let (short, long) =
                (make(10, Duration::from_mins(1)), make(100, Duration::from_hours(1)));
            let mut counts = Counts::default();
            assert!(short.charge(&mut counts, START, 10, 10).admitted);
            let admitted =
                (0..200).filter(|_| long.charge(&mut counts, START, 1, 1).admitted).count();
            assert_eq!(admitted, 90, "used units stay used");
            let denied = long.charge(&mut counts, START, 1, 1);
            assert!(denied.retry_after <= 4_000 * SECOND, "{denied:?}");
            // Back to the old period, as after a rollback: there is room after one period at the
            // latest.
            let denied = short.charge(&mut counts, START, 1, 1);
            assert!(!denied.admitted && denied.retry_after <= 66 * SECOND, "{denied:?}");
            assert!(short.charge(&mut counts, START + denied.retry_after, 1, 1).admitted);
        }
    }

    #[test]
    fn two_lengths_in_turns_count_in_both() {
        let (short, long) = (
            Window::sliding(10, Duration::from_mins(1)),
            Window::sliding(100, Duration::from_hours(1)),
        );
        let (mut counts, mut by_short, mut all) = (Counts::default(), 0, 0);
        for step in 0..3_600 {
            let now = START + step * SECOND;
            let first = short.charge(&mut counts, now, 1, 1).admitted;
            by_short += u32::from(first);
            all += u32::from(first) + u32::from(long.charge(&mut counts, now, 1, 1).admitted);
        }
        assert!(by_short <= 610 && all - by_short <= 100, "{by_short} and {all}");
    }
}
