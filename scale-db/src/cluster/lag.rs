//! Replication lag as a duration. Computed from positions only, so that no server's clock has to be
//! right.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::log::Log;

/// Number of samples within the maximum lag: the measured lag is accurate to a hundredth of it.
const STEPS: u32 = 100;

/// History of the primary's positions, and when each was first seen. Covers twice the maximum lag
/// of a replica.
#[derive(Debug)]
pub(crate) struct History {
    samples: VecDeque<(Log, Instant)>,
    limit: Duration,
    /// True if samples were dropped because the history is full.
    full: bool,
}

impl History {
    /// Creates an empty history that distinguishes a lag of up to `limit` from a longer one.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { samples: VecDeque::new(), limit, full: false }
    }

    /// Records the primary's current position.
    pub(crate) fn record(&mut self, log: &Log, now: Instant) {
        if let Some((last, at)) = self.samples.back() {
            match (log.has_all_of(last), last.has_all_of(log)) {
                // Idle.
                (Some(true), Some(true)) => return,
                (Some(true), _) if now.saturating_duration_since(*at) < self.limit / STEPS => {
                    return;
                }
                (Some(true), _) => {}
                // A new primary may start behind the last position of the lost one.
                _ => (self.samples.clear(), self.full = false).0,
            }
        }
        let old = |sample: Option<&(Log, Instant)>| {
            sample.is_some_and(|(_, at)| now.saturating_duration_since(*at) > self.limit * 2)
        };
        while old(self.samples.get(1)) {
            self.samples.pop_front();
            self.full = true;
        }
        self.samples.push_back((log.clone(), now));
    }

    /// Returns the time since the primary first showed a position that the replica has not reached:
    /// zero if it has reached all that were seen; `None` if it has not even reached the oldest
    /// sample, so that the lag is unknown.
    pub(crate) fn lag(&self, replayed: &Log, now: Instant) -> Option<Duration> {
        // The samples that the replica has reached come first.
        let mut unknown = false;
        let missing = self.samples.partition_point(|(log, _)| {
            let has = replayed.has_all_of(log);
            unknown |= has.is_none();
            has == Some(true)
        });
        if unknown {
            return None;
        }
        let Some((_, since)) = self.samples.get(missing) else { return Some(Duration::ZERO) };
        (missing > 0 || self.full).then(|| now.saturating_duration_since(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(lsn: u64) -> Log {
        Log::Wal { timeline: 1, lsn }
    }

    #[test]
    fn lag_is_the_age_of_the_first_missing_sample() {
        let (mut history, start) = (History::new(10 * SECOND), Instant::now());
        let after = |s| start + s * SECOND;
        history.record(&at(10), after(0));
        history.record(&at(20), after(1));
        history.record(&at(20), after(5)); // an idle primary does not make anybody late
        assert_eq!(history.lag(&at(20), after(9)), Some(Duration::ZERO));
        assert_eq!(history.lag(&at(10), after(9)), Some(8 * SECOND));
        assert_eq!(history.lag(&at(5), after(9)), None, "late already when the history began");
        history.record(&Log::Wal { timeline: 2, lsn: 15 }, after(10));
        assert_eq!(
            history.lag(&Log::Wal { timeline: 2, lsn: 15 }, after(11)),
            Some(Duration::ZERO)
        );
        assert_eq!(
            history.lag(&at(20), after(11)),
            Some(SECOND),
            "it has not seen the new timeline"
        );
        assert_eq!(history.lag(&Log::Unknown, after(11)), None);
    }

    #[test]
    fn the_longest_lag_allowed_is_told_from_a_longer_one_however_often_is_looked() {
        for (limit, every) in [(120, 50), (1, 10), (600, 1_000), (5, 5_000)] {
            let (limit, every) = (limit * SECOND, Duration::from_millis(every));
            let (mut history, start) = (History::new(limit), Instant::now());
            let mut now = start;
            let mut written = 0;
            while now < start + limit * 4 {
                written += 1;
                history.record(&at(written), now);
                // Replay stood still at the third look.
                let lag = history.lag(&at(3), now);
                let real = (now - start).saturating_sub(every * 3);
                if written > 3 && real < limit * 2 {
                    let error = every + limit / STEPS;
                    assert!(
                        lag.is_some_and(|lag| lag + error >= real && lag <= real + error),
                        "{lag:?} is not {real:?}"
                    );
                } else if written > 3 {
                    assert!(lag.is_none_or(|lag| lag > limit), "{lag:?}");
                }
                now += every;
            }
            assert!(history.samples.len() <= 2 * STEPS as usize + 3, "{}", history.samples.len());
        }
    }
}
