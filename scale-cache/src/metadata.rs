//! Metadata returned with a value.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::policy::entry::Entry;

/// Level in which a value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// The first level, in this process.
    First,
    /// The second level, shared by all processes.
    Second,
}

/// A value and its metadata.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Hit<V> {
    /// The value.
    pub value: Arc<V>,
    /// Level in which the value was found.
    pub level: Level,
    /// Time since the value was loaded, in any process.
    pub age: Duration,
    /// Time until the value expires; zero for a stale value.
    pub left: Duration,
    /// `true` if the value has expired, and is kept in case a reload fails.
    pub is_stale: bool,
}

impl<V: Send + Sync + 'static> Hit<V> {
    pub(crate) fn of(entry: &Entry, level: Level) -> Option<Self> {
        let now = Instant::now();
        Some(Self {
            value: Arc::clone(&entry.value).downcast().ok()?,
            level,
            age: now.saturating_duration_since(entry.made),
            left: entry.fresh_until.saturating_duration_since(now),
            is_stale: now >= entry.fresh_until,
        })
    }
}
