//! Rules of schedules. Pure: no store, no clock.

use std::fmt;
use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use crate::limit::LONGEST;

/// Reason why a schedule is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The cron expression is invalid.
    #[error(
        "invalid cron expression `{expression}`: {reason}; expected `minute hour day month \
         weekday` (0-59, 0-23, 1-31, 1-12, 0-7), with seconds before them if wanted"
    )]
    Cron {
        /// Expression as given.
        expression: String,
        /// Error of the parser.
        reason: String,
    },
    /// The period is too short or too long.
    #[error("the period of {0}: expected a millisecond to ten years")]
    Period(String),
    /// The time zone is unknown.
    #[error("unknown time zone `{0}`: expected an IANA name like `Europe/Zurich` or `UTC`")]
    Zone(String),
}

/// Rule for the times at which a job is due: a cron expression in a time zone, or a period.
#[derive(Clone)]
pub struct Rule {
    when: When,
    /// Readable form of the rule.
    words: String,
}

// Pure: the current time is a parameter.
#[derive(Clone)]
enum When {
    Cron {
        cron: Box<Cron>,
        zone: TimeZone,
        expression: String,
        zone_name: String,
    },
    /// Whole multiples of the period since 1970, so that all processes agree.
    Every(Duration),
}

/// A rule as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum StoredRule {
    Cron(String, String),
    EveryMs(u64),
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rule").field(&self.words).finish()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl Rule {
    /// Creates a rule from a cron expression of five fields (six with seconds), in a time zone
    /// given by its IANA name.
    ///
    /// # Errors
    /// [`ScheduleError::Cron`] for an expression that is invalid or never fires,
    /// [`ScheduleError::Zone`] for an unknown zone.
    pub fn cron(expression: &str, zone_name: &str) -> Result<Self, ScheduleError> {
        let wrong = |reason: String| ScheduleError::Cron { expression: expression.into(), reason };
        let cron: Cron = croner::parser::CronParser::builder()
            .seconds(croner::parser::Seconds::Optional)
            .year(croner::parser::Year::Disallowed)
            .build()
            .parse(expression)
            .map_err(|e| wrong(e.to_string()))?;
        let zone =
            TimeZone::get(zone_name).map_err(|_| ScheduleError::Zone(zone_name.to_owned()))?;
        let when = When::Cron {
            cron: Box::new(cron),
            zone,
            expression: expression.to_owned(),
            zone_name: zone_name.to_owned(),
        };
        let rule = Self { when, words: format!("{expression} ({zone_name})") };
        if rule.after(Timestamp::now()).is_none() {
            return Err(wrong("the expression never fires".into()));
        }
        Ok(rule)
    }

    /// Creates a rule with a fixed period of at least a millisecond. It fires at whole multiples of
    /// the period since 1970 (UTC).
    ///
    /// # Errors
    /// [`ScheduleError::Period`] for a shorter period, and for one of more than ten years.
    pub fn every(period: Duration) -> Result<Self, ScheduleError> {
        if period < Duration::from_millis(1) || period > LONGEST {
            return Err(ScheduleError::Period("a schedule".into()));
        }
        Ok(Self { when: When::Every(period), words: format!("every {period:?}") })
    }

    pub(super) fn stored(&self) -> StoredRule {
        match &self.when {
            When::Cron { expression, zone_name, .. } => {
                StoredRule::Cron(expression.clone(), zone_name.clone())
            }
            When::Every(period) => {
                StoredRule::EveryMs(u64::try_from(period.as_millis()).unwrap_or(u64::MAX))
            }
        }
    }

    pub(super) fn of(stored: &StoredRule) -> Result<Self, ScheduleError> {
        match stored {
            StoredRule::Cron(expression, zone) => Self::cron(expression, zone),
            StoredRule::EveryMs(period) => Self::every(Duration::from_millis(*period)),
        }
    }

    /// Returns the first run after `moment`.
    pub(super) fn after(&self, moment: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Cron { cron, zone, .. } => cron
                .find_next_occurrence(&Zoned::new(moment, zone.clone()), false)
                .ok()
                .map(|z| z.timestamp()),
            When::Every(period) => {
                let period = i64::try_from(period.as_millis()).ok()?.max(1);
                Timestamp::from_millisecond(
                    (moment.as_millisecond().div_euclid(period) + 1).checked_mul(period)?,
                )
                .ok()
            }
        }
    }

    /// Returns the last run in `(from, until]`.
    pub(super) fn last(&self, from: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let mut last = None;
        let mut at = from;
        // Enough for a rule that fires every second over a day.
        for _ in 0..100_000 {
            match self.after(at) {
                Some(next) if next <= until => {
                    last = Some(next);
                    at = next;
                }
                _ => break,
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(expression: &str, zone: &str) -> Rule {
        Rule::cron(expression, zone).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn moments_are_those_of_the_time_zone() {
        let nine = cron("0 9 * * *", "Europe/Zurich");
        assert_eq!(
            nine.after(at("2026-01-15T00:00:00Z")),
            Some(at("2026-01-15T08:00:00Z")),
            "winter"
        );
        assert_eq!(
            nine.after(at("2026-07-15T00:00:00Z")),
            Some(at("2026-07-15T07:00:00Z")),
            "summer"
        );
    }

    #[test]
    fn daylight_saving_neither_skips_nor_doubles_a_day() {
        let half_past_two = cron("30 2 * * *", "Europe/Zurich");
        // The night of 29 March 2026 has no half past two; that of 25 October has two.
        for (from, to, days) in [
            ("2026-03-27T12:00:00Z", "2026-03-31T12:00:00Z", 4),
            ("2026-10-23T12:00:00Z", "2026-10-27T12:00:00Z", 4),
        ] {
            let (mut moment, end, mut count) = (at(from), at(to), 0);
            while let Some(next) = half_past_two.after(moment).filter(|next| *next <= end) {
                (moment, count) = (next, count + 1);
            }
            assert_eq!(count, days, "from {from}");
        }
    }

    #[test]
    fn periods_are_multiples_that_all_agree_on() {
        let rule = Rule::every(Duration::from_mins(5)).unwrap();
        assert_eq!(rule.after(at("2026-01-01T10:04:59.999Z")), Some(at("2026-01-01T10:05:00Z")));
        assert_eq!(rule.after(at("2026-01-01T10:05:00Z")), Some(at("2026-01-01T10:10:00Z")));
        assert_eq!(
            rule.last(at("2026-01-01T10:00:00Z"), at("2026-01-01T10:17:00Z")),
            Some(at("2026-01-01T10:15:00Z"))
        );
        assert_eq!(rule.last(at("2026-01-01T10:15:00Z"), at("2026-01-01T10:17:00Z")), None);
    }
}
