//! What is known of a value beside itself, and how its time starts anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::Inner;
use crate::codec::ends;
use crate::entry::{Entry, Worth};
use crate::options::Options;

/// Where a value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// In this process.
    First,
    /// In the store shared by all.
    Second,
}

/// A value, and what is known of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Hit<V> {
    /// The value.
    pub value: Arc<V>,
    /// Where it was found.
    pub level: Level,
    /// How long ago it was made, wherever that was.
    pub age: Duration,
    /// How long it is fresh still; zero for a stale one.
    pub left: Duration,
    /// It has expired, and is kept in case it cannot be loaded anew.
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

impl Inner {
    /// Starts the TTL of a fresh entry anew, here and in the second level. `false`: there is none in either.
    pub(crate) async fn touch(&self, key: &str, options: &Options) -> bool {
        let here = self.here(key).filter(|entry| self.worth(entry) == Worth::Fresh);
        if let Some(entry) = &here {
            self.prolong(key, entry, options);
        }
        match &self.shared {
            None => here.is_some(),
            Some(store) => {
                let ttl = options.jittered(options.ttl, fastrand::f64());
                let now = store.now_us();
                let until = |time: Duration| now.saturating_add(time.as_micros() as u64);
                let ends = ends(until(ttl), until(options.kept(ttl)));
                // Should it be unreachable, what is here has its time.
                self.ask(store.touch(key, ends, options.kept(ttl))).await.unwrap_or(here.is_some())
            }
        }
    }

    fn prolong(&self, key: &str, old: &Arc<Entry>, options: &Options) {
        let (now, ttl) = (Instant::now(), options.jittered(options.ttl, fastrand::f64()));
        let entry = Entry { fresh_until: now + ttl, kept_until: now + options.kept(ttl), ..(**old).clone() };
        // Were its tags invalidated between the look and this, its stamps say so all the same.
        self.replace(key, old, Arc::new(entry));
    }

    /// Returns whether a value just read is due for its time to start anew.
    pub(crate) fn slides(&self, key: &str, options: &Options) -> bool {
        let is_due = |entry: &Arc<Entry>| entry.fresh_until.saturating_duration_since(Instant::now()) < options.ttl / 2;
        options.sliding && self.here(key).as_ref().is_none_or(is_due)
    }
}
