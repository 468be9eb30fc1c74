//! Durations as the integers that statements take.

use std::time::Duration;

use scale_common::clock;

/// Returns a duration in milliseconds, rounded up, at most 100 years.
pub fn millis(span: Duration) -> i64 {
    clock::millis(span) as i64
}

/// Returns a time to live in milliseconds: [`millis`], and at least 1.
pub fn ttl_millis(ttl: Duration) -> i64 {
    clock::ttl_millis(ttl) as i64
}
