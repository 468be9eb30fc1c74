//! Encodes a loaded value into an L1 entry and L2 bytes.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::digest::digest;
use crate::error::Error;
use crate::format::{Head, MAX_SHARED, MAX_TAGS, decoded, encoded, fingerprint, packed};
use crate::options::Options;
use crate::policy::entry::{Entry, weight};
use crate::policy::versions::Stamps;

/// Maximum size of values that debug builds check; larger ones are checked by strict caches only,
/// because that would take seconds in a debug build.
const CHECKED: usize = 1 << 20;

/// A value with its metadata, before it is stored.
pub(crate) struct NewEntry {
    pub(crate) entry: Entry,
    bytes: Vec<u8>,
    fingerprint: u64,
    ttl: Duration,
    kept: Duration,
}

impl NewEntry {
    pub(crate) fn new<V>(
        value: V,
        stamps: Stamps,
        options: &Options,
        ttl: Duration,
        cost: Duration,
    ) -> Result<Self, Error>
    where
        V: Serialize + Send + Sync + 'static,
    {
        Self::of(Arc::new(value), stamps, options, ttl, cost)
    }

    pub(crate) fn of<V>(
        value: Arc<V>,
        stamps: Stamps,
        options: &Options,
        ttl: Duration,
        cost: Duration,
    ) -> Result<Self, Error>
    where
        V: Serialize + Send + Sync + 'static,
    {
        let bytes = encoded(&*value).map_err(|e| Error::Encode(Arc::new(e)))?;
        let now = Instant::now();
        let ttl = options.jittered(ttl, fastrand::f64());
        let kept = options.kept(ttl);
        let entry = Entry {
            value,
            stamps,
            era: 0,
            made: now,
            since: now,
            fresh_until: now + ttl,
            kept_until: now + kept,
            cost: if options.refresh_ahead { cost } else { Duration::ZERO },
            weight: weight(bytes.len()),
        };
        Ok(Self { entry, bytes, fingerprint: fingerprint::<V>(), ttl, kept })
    }

    /// Checks that the value is unchanged after encoding and decoding. A strict cache returns an
    /// error if not, and otherwise keeps the decoded value, as another process would have it. Other
    /// caches log an error in debug builds.
    pub(crate) fn check<V>(&mut self, strict: bool) -> Result<(), Error>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let is_checked = strict || (cfg!(debug_assertions) && self.bytes.len() <= CHECKED);
        if !is_checked {
            return Ok(());
        }
        let checked =
            decoded::<V>(&self.bytes).map_err(|e| Error::Decode(Arc::new(e))).and_then(|value| {
                let original = self.entry.value.downcast_ref::<V>();
                if original.is_none_or(|original| digest(original) == digest(&value)) {
                    Ok(value)
                } else {
                    Err(Error::Altered(std::any::type_name::<V>()))
                }
            });
        match checked {
            Ok(value) if strict => self.entry.value = Arc::new(value),
            Err(error) if strict => return Err(error),
            Err(error) => tracing::error!(%error, "other processes would get another value"),
            Ok(_) => {}
        }
        Ok(())
    }

    /// Returns the bytes for the second level and how long they are kept; `None` if the value must
    /// not be stored there.
    pub(crate) fn shared(&self, now_us: u64, compress_over: usize) -> Option<(Vec<u8>, Duration)> {
        let tags = self.entry.stamps.shareable()?;
        if self.bytes.len() > MAX_SHARED
            || tags.len() > MAX_TAGS
            || tags.iter().any(|(tag, _)| tag.len() > usize::from(u16::MAX))
        {
            return None;
        }
        let (compressed, bytes) = packed(&self.bytes, compress_over);
        let head = Head {
            compressed,
            fingerprint: self.fingerprint,
            fresh_until_us: now_us + self.ttl.as_micros() as u64,
            kept_until_us: now_us + self.kept.as_micros() as u64,
            made_us: now_us.saturating_sub(self.entry.made.elapsed().as_micros() as u64),
            cost: self.entry.cost,
            tags,
        };
        Some((head.write(&bytes), self.kept))
    }
}
