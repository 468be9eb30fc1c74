//! Context passed to a loader: extra tags, TTL, and the position that its reads must have reached.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::policy::versions::named;
use crate::store::Position;

/// Context of a load: the loader may add tags and a TTL that are known only with the value.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_cache::Error> {
/// use scale_cache::{Cache, LoadContext, Options};
/// use std::time::Duration;
///
/// let cache = Cache::memory();
/// let price = cache.get_or_load("price:7", &Options::default(), |load: LoadContext| async move {
///     load.tag("supplier:3");              // known only after loading
///     load.ttl(Duration::from_secs(30));   // this value changes often
///     Ok::<_, std::io::Error>(4200_u32)
/// }).await?;
/// assert_eq!(*price, 4200);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct LoadContext {
    said: Arc<Mutex<Said>>,
    position: Option<Position>,
}

#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) tags: Vec<Arc<str>>,
    pub(crate) ttl: Option<Duration>,
}

impl LoadContext {
    /// Adds a tag. If the tag was invalidated since the load began, the waiting callers get the
    /// value, and it is not kept.
    ///
    /// [`position`](Self::position) does not cover it: if the value comes from a replica that may
    /// lag, name the tag in the options, or a coarser one with which it is invalidated together.
    pub fn tag(&self, tag: impl Into<Arc<str>>) {
        self.said.lock().tags.push(named(tag.into()));
    }

    /// Sets another TTL than that of the options, for example a short one for a missing row. Zero:
    /// the value is not kept.
    pub fn ttl(&self, ttl: Duration) {
        self.said.lock().ttl = Some(ttl);
    }

    /// Returns the position that a database must have replayed before this load reads it: the
    /// latest position that came with an invalidation of one of the tags of its options
    /// ([`Cache::invalidate_tags_at`](crate::Cache::invalidate_tags_at)).
    pub fn position(&self) -> Option<&[u8]> {
        self.position.as_deref()
    }

    pub(crate) fn new(position: Option<Position>) -> Self {
        Self { said: Arc::default(), position }
    }

    pub(crate) fn said(self) -> Said {
        std::mem::take(&mut self.said.lock())
    }
}
