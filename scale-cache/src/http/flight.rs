//! Fetches under way: who wants what is being fetched waits for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::stored::Page;
use crate::stamp::Stamps;

/// What a fetch left for those who waited for it.
#[derive(Clone)]
pub(super) enum Landed {
    /// Good as long as what it depends on is unchanged: who asks after an invalidation is not given what was fetched before it.
    Page(Arc<Page>, Stamps),
    /// It was not kept: something was invalidated meanwhile.
    Invalidated,
    /// Of no use to others.
    Nothing,
}

/// All flights, by what they fetch.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Arc<str>, watch::Receiver<Option<Landed>>>>);

impl Flights {
    /// A flight of one's own; or, if one is under way, what it left in the end.
    pub(super) async fn join(self: &Arc<Self>, name: &Arc<str>) -> Result<Flight, Landed> {
        let mut under_way = match self.0.lock().entry(Arc::clone(name)) {
            Entry::Occupied(under_way) => under_way.get().clone(),
            Entry::Vacant(free) => {
                let (announce, landed) = watch::channel(None);
                free.insert(landed);
                return Ok(Flight { flights: Arc::clone(self), name: Arc::clone(name), announce });
            }
        };
        // One that ends without a word leaves nothing.
        let landed = under_way.wait_for(Option::is_some).await;
        Err(landed.ok().and_then(|landed| landed.clone()).unwrap_or(Landed::Nothing))
    }
}

/// A fetch that others may wait for; however it ends, nobody waits any longer.
pub(super) struct Flight {
    flights: Arc<Flights>,
    name: Arc<str>,
    announce: watch::Sender<Option<Landed>>,
}

impl Flight {
    pub(super) fn land(&self, landed: Landed) {
        self.announce.send_replace(Some(landed));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.name);
    }
}
