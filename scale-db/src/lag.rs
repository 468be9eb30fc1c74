//! How many seconds is a replica behind? Derived from positions alone, so that no clock of any server is trusted.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::position::Position;

/// Samples kept; at one a second, two minutes of the primary's past.
const KEPT: usize = 120;

/// When the primary was first seen at which position.
#[derive(Debug, Default)]
pub(crate) struct History(VecDeque<(Position, Instant)>);

impl History {
    /// The primary says it is there now.
    pub(crate) fn record(&mut self, position: Position, now: Instant) {
        match self.0.back() {
            Some((last, _)) if *last == position => return,
            // A new primary may start behind what the lost one had reached.
            Some((last, _)) if *last > position => self.0.clear(),
            _ => {}
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((position, now));
    }

    /// Time since the primary first showed something the replica does not have yet; zero when it has all that was seen.
    pub(crate) fn lag(&self, replayed: Position, now: Instant) -> Duration {
        let missing = self.0.iter().find(|(position, _)| *position > replayed);
        missing.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_of_the_first_missing_sample() {
        let (mut history, start) = (History::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        history.record(Position(10), at(0));
        history.record(Position(20), at(1));
        history.record(Position(20), at(5)); // an idle primary does not make anybody late
        assert_eq!(history.lag(Position(20), at(9)), Duration::ZERO);
        assert_eq!(history.lag(Position(10), at(9)), Duration::from_secs(8));
        history.record(Position(15), at(10)); // failed over
        assert_eq!(history.lag(Position(15), at(11)), Duration::ZERO);
    }
}
