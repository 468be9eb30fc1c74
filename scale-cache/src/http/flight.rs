//! Fetches under way: who wants what is being fetched waits for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::stored::Page;
use crate::stamp::{Agreement, Stamps};

/// What a fetch left for those who waited for it.
#[derive(Clone)]
pub(super) enum Landed {
    /// A page for all. What it depends on, if it was kept: if not, something was invalidated meanwhile.
    Page(Arc<Page>, Option<Stamps>),
    /// An answer of no use to others, because of who asked for it.
    Personal,
    /// An answer of no use to others who ask for the same codings as this.
    Odd(Arc<str>),
    /// Of no use to others.
    Nothing,
}

impl Landed {
    /// Returns whether nothing that a page depends on was invalidated since its fetch began.
    pub(super) fn is_current(&self) -> bool {
        matches!(self, Self::Page(_, Some(stamps)) if stamps.agree() == Agreement::Same)
    }
}

/// All flights, by what they fetch.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Arc<str>, Waiting>>);

/// A fetch that somebody else has begun.
#[derive(Clone)]
pub(super) struct Waiting {
    landed: watch::Receiver<Option<Landed>>,
    /// The number of the last invalidation when it began.
    pub(super) began: u64,
    pub(super) at: Instant,
}

impl Waiting {
    /// Returns what it left in the end.
    pub(super) async fn landed(mut self) -> Landed {
        // One that ends without a word leaves nothing.
        let landed = self.landed.wait_for(Option::is_some).await;
        landed.ok().and_then(|landed| landed.clone()).unwrap_or(Landed::Nothing)
    }
}

impl Flights {
    /// A flight of one's own, or the one that is under way. `now`: the number of the last invalidation.
    pub(super) fn join(self: &Arc<Self>, name: &Arc<str>, now: u64) -> Result<Flight, Waiting> {
        match self.0.lock().entry(Arc::clone(name)) {
            Entry::Occupied(under_way) => Err(under_way.get().clone()),
            Entry::Vacant(free) => {
                let (announce, landed) = watch::channel(None);
                free.insert(Waiting { landed, began: now, at: Instant::now() });
                Ok(Flight { flights: Arc::clone(self), name: Arc::clone(name), announce, is_over: false })
            }
        }
    }
}

/// A fetch that others may wait for; however it ends, nobody waits any longer.
pub(super) struct Flight {
    flights: Arc<Flights>,
    name: Arc<str>,
    announce: watch::Sender<Option<Landed>>,
    is_over: bool,
}

impl Flight {
    /// Lets those who waited go on; who comes from now on begins anew.
    pub(super) fn land(mut self, landed: Landed) {
        self.leave();
        self.announce.send_replace(Some(landed));
    }

    fn leave(&mut self) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.flights.0.lock().remove(&self.name);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.leave();
    }
}
