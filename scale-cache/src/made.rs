//! A value just made, on its way into the levels.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::codec::{Head, MAX_TAGS, fingerprint, packed};
use crate::entry::{Entry, weight};
use crate::error::Error;
use crate::options::Options;
use crate::stamp::{Fence, Stamps};

/// A value larger than that is not kept in the second level.
pub(crate) const MAX_SHARED: usize = 8 << 20;

/// A value and what is known of it, before it is put anywhere.
pub(crate) struct Made {
    pub(crate) entry: Entry,
    bytes: Vec<u8>,
    fingerprint: u64,
    ttl: Duration,
    kept: Duration,
}

impl Made {
    pub(crate) fn new<V>(value: V, stamps: Stamps, options: &Options, ttl: Duration, cost: Duration) -> Result<Self, Error>
    where
        V: Serialize + Send + Sync + 'static,
    {
        Self::of(Arc::new(value), stamps, options, ttl, cost)
    }

    pub(crate) fn of<V>(value: Arc<V>, stamps: Stamps, options: &Options, ttl: Duration, cost: Duration) -> Result<Self, Error>
    where
        V: Serialize + Send + Sync + 'static,
    {
        let bytes = rmp_serde::to_vec_named(&*value).map_err(|e| Error::Encode(Arc::new(e)))?;
        let now = Instant::now();
        let ttl = options.jittered(ttl, fastrand::f64());
        let kept = options.kept(ttl);
        let entry = Entry {
            value,
            stamps,
            fence: Fence::default(),
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

    /// The value as another process would have it: made of its bytes.
    pub(crate) fn as_elsewhere<V: DeserializeOwned + Send + Sync + 'static>(&mut self) -> Result<(), Error> {
        let value: V = rmp_serde::from_slice(&self.bytes).map_err(|e| Error::Decode(Arc::new(e)))?;
        self.entry.value = Arc::new(value);
        Ok(())
    }

    /// As it goes into the second level, and for how long; `None` if it may not.
    pub(crate) fn shared(&self, now_us: u64, compress_over: usize) -> Option<(Vec<u8>, Duration)> {
        let tags = self.entry.stamps.shareable()?;
        if self.bytes.len() > MAX_SHARED || tags.len() > MAX_TAGS || tags.iter().any(|(tag, _)| tag.len() > usize::from(u16::MAX))
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
