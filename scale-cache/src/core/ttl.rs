//! Restarts the TTL of an entry.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Core;
use crate::format::ends;
use crate::options::Options;
use crate::policy::entry::{Entry, Validity};

impl Core {
    /// Restarts the TTL of a fresh entry in both levels. Returns `false` if neither level has one.
    pub(crate) async fn touch(&self, key: &str, options: &Options) -> bool {
        let here = self.get_local(key).filter(|entry| self.validity(entry) == Validity::Fresh);
        if let Some(entry) = &here {
            self.prolong(key, entry, options);
        }
        match &self.l2 {
            None => here.is_some(),
            Some(store) => {
                let ttl = options.jittered(options.ttl, fastrand::f64());
                let now = store.now_us();
                let until = |time: Duration| now.saturating_add(time.as_micros() as u64);
                let ends = ends(until(ttl), until(options.kept(ttl)));
                // If the store does not answer, the restart in the first level counts.
                self.ask(store.touch(key, ends, options.kept(ttl))).await.unwrap_or(here.is_some())
            }
        }
    }

    fn prolong(&self, key: &str, old: &Arc<Entry>, options: &Options) {
        let (now, ttl) = (Instant::now(), options.jittered(options.ttl, fastrand::f64()));
        let entry = Entry {
            fresh_until: now + ttl,
            kept_until: now + options.kept(ttl),
            ..(**old).clone()
        };
        // If its tags were invalidated since the read, its tag versions still show that.
        self.replace(key, old, Arc::new(entry));
    }

    /// Returns whether the TTL of a value that was just read should restart.
    pub(crate) fn slides(&self, key: &str, options: &Options) -> bool {
        let is_due = |entry: &Arc<Entry>| {
            entry.fresh_until.saturating_duration_since(Instant::now()) < options.ttl / 2
        };
        options.sliding && self.get_local(key).as_ref().is_none_or(is_due)
    }
}
