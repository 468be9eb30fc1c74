//! Fetches in progress, which other requests can wait for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::stored::Page;
use crate::policy::versions::{Agreement, Stamps};

/// Result of a fetch for the requests that waited for it.
#[derive(Clone)]
pub(super) enum FlightResult {
    /// A page for all clients, and the versions of its tags if it was stored: if not, one of its
    /// tags was invalidated during the fetch.
    Page(Arc<Page>, Option<Stamps>),
    /// A response that is for the requesting client only.
    Personal,
    /// A response of no use for other requests with this `Accept-Encoding`.
    Odd(Arc<str>),
    /// Nothing that others can use.
    Nothing,
}

impl FlightResult {
    /// Returns whether no tag of the page was invalidated since its fetch began.
    pub(super) fn is_current(&self) -> bool {
        matches!(self, Self::Page(_, Some(stamps)) if stamps.agree() == Agreement::Same)
    }
}

/// All flights, by the name of the page.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Arc<str>, Waiting>>);

/// A fetch that another request has started.
#[derive(Clone)]
pub(super) struct Waiting {
    landed: watch::Receiver<Option<FlightResult>>,
    /// Number of the last invalidation when the fetch began.
    pub(super) began: u64,
    pub(super) at: Instant,
}

impl Waiting {
    /// Waits for the result.
    pub(super) async fn landed(mut self) -> FlightResult {
        // A fetch that ends without a result leaves nothing.
        let landed = self.landed.wait_for(Option::is_some).await;
        landed.ok().and_then(|landed| landed.clone()).unwrap_or(FlightResult::Nothing)
    }
}

impl Flights {
    /// Starts a flight, or returns the one in progress. `now`: the number of the last invalidation.
    pub(super) fn join(self: &Arc<Self>, name: &Arc<str>, now: u64) -> Result<Flight, Waiting> {
        match self.0.lock().entry(Arc::clone(name)) {
            Entry::Occupied(under_way) => Err(under_way.get().clone()),
            Entry::Vacant(free) => {
                let (announce, landed) = watch::channel(None);
                free.insert(Waiting { landed, began: now, at: Instant::now() });
                Ok(Flight {
                    flights: Arc::clone(self),
                    name: Arc::clone(name),
                    announce,
                    is_over: false,
                })
            }
        }
    }
}

/// A fetch that others may wait for; its drop ends their wait in any case.
pub(super) struct Flight {
    flights: Arc<Flights>,
    name: Arc<str>,
    announce: watch::Sender<Option<FlightResult>>,
    is_over: bool,
}

impl Flight {
    /// Sends the result to the waiting requests; later requests start a new fetch.
    pub(super) fn land(mut self, landed: FlightResult) {
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
