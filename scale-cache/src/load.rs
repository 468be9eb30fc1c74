//! What a loader may say of the value it loads.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::stamp::named;
use crate::store::Position;

/// Given to a loader: it may add what only the loaded value tells.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_cache::Error> {
/// use scale_cache::{Cache, Load, Options};
/// use std::time::Duration;
///
/// let cache = Cache::memory();
/// let price = cache.get_or_load("price:7", &Options::default(), |load: Load| async move {
///     load.tag("supplier:3");              // found out while loading
///     load.ttl(Duration::from_secs(30));   // this one changes often
///     Ok::<_, std::io::Error>(4200_u32)
/// }).await?;
/// assert_eq!(*price, 4200);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Load {
    said: Arc<Mutex<Said>>,
    position: Option<Position>,
}

#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) tags: Vec<Arc<str>>,
    pub(crate) ttl: Option<Duration>,
}

impl Load {
    /// One more tag. An invalidation of it since the load began is noticed: the value then goes to those who wait, and is not kept.
    pub fn tag(&self, tag: impl Into<Arc<str>>) {
        self.said.lock().tags.push(named(tag.into()));
    }

    /// Another TTL than the options say, for example a short one for "there is none". Zero: it is not kept.
    pub fn ttl(&self, ttl: Duration) {
        self.said.lock().ttl = Some(ttl);
    }

    /// What a database must have replayed before it may be read for this value: the latest position that came with an invalidation of one
    /// of its tags ([`Cache::invalidate_tags_at`](crate::Cache::invalidate_tags_at)).
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
