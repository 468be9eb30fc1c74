//! Adds rate-limit headers to the response of an admitted request, and settles its real cost.

use std::cmp::Ordering;
use std::sync::Arc;

use http::{Extensions, HeaderMap, Response, StatusCode};

use super::body::{Bodies, LimitBody};
use super::gate::Gate;
use super::headers::{Headers, unheld};
use super::limits::{Limits, Places};
use super::throttle::{PlannedCharge, PlannedCharges};
use crate::decision::Decision;
use crate::permit::Permits;
use crate::poll_then_spawn::poll_then_spawn;

/// Actions on the response. Small, because futures of responses are moved.
#[derive(Default)]
pub(super) struct ResponseActions {
    headers: Headers,
    rest: Option<Box<Rest>>,
}

/// Actions that few responses need.
struct Rest {
    places: Option<Arc<Permits>>,
    /// Decision for the request's handler.
    decision: Option<Decision>,
    settling: Option<Settling>,
}

impl ResponseActions {
    pub(super) fn headers(headers: Headers) -> Self {
        Self { headers, rest: None }
    }

    pub(super) fn new(gate: &Arc<Gate>, mut decision: Decision, planned: &[PlannedCharge]) -> Self {
        let headers = if gate.header_options.quiet {
            Headers::None
        } else {
            Headers::all(decision.outcomes(), gate.header_options, &|number, policy| {
                gate.partition_key(planned, number, policy)
            })
        };
        let places = decision.take_places();
        let shown = gate.extension.then(|| decision.clone());
        let settling = (!gate.is_settled()).then(|| Settling {
            gate: Arc::clone(gate),
            decision,
            planned: planned.into(),
        });
        let rest = (places.is_some() || settling.is_some() || shown.is_some())
            .then(|| Box::new(Rest { places, decision: shown, settling }));
        Self { headers, rest }
    }

    /// Adds extensions for the request's handler.
    #[inline]
    pub(super) fn show(&mut self, extensions: &mut Extensions) {
        if let Some(rest) = &mut self.rest {
            rest.show(extensions);
        }
    }

    /// Applies the actions to the response.
    #[inline]
    pub(super) fn finish<B, W: Bodies<B>>(
        self,
        mut answer: Response<B>,
        bodies: &W,
    ) -> Response<W::Body> {
        self.headers.add(answer.headers_mut());
        let places = self.rest.and_then(|rest| rest.settle(&answer));
        match places {
            None => answer.map(|body| bodies.keep(body)),
            // The upgraded connection lives on, and nothing would hold its permit.
            Some(places)
                if answer.status() == StatusCode::SWITCHING_PROTOCOLS
                    && Arc::strong_count(&places) == 1 =>
            {
                unheld().map(|text| bodies.wrap(LimitBody::whole(text)))
            }
            Some(places) => answer.map(|body| bodies.wrap(LimitBody::holding(body, places))),
        }
    }
}

impl Rest {
    #[cold]
    fn show(&mut self, extensions: &mut Extensions) {
        if let Some(decision) = self.decision.take() {
            let limits = Limits::new(&decision, extensions.get());
            extensions.insert(limits);
        }
        if let Some(places) = &self.places {
            let outer = extensions.remove();
            extensions.insert(Places::new(places, outer));
        }
    }

    /// Settles the cost, and returns the permits.
    fn settle<B>(self, answer: &Response<B>) -> Option<Arc<Permits>> {
        if let Some(settling) = self.settling {
            settling.settle(answer.status(), answer.headers());
        }
        self.places
    }
}

struct Settling {
    gate: Arc<Gate>,
    decision: Decision,
    planned: PlannedCharges,
}

impl Settling {
    /// Settles the real cost: refunds the surplus, or charges the rest.
    fn settle(self, status: StatusCode, headers: &HeaderMap) {
        let Self { gate, decision, planned } = self;
        let (mut back, mut owed) = (PlannedCharges::new(), PlannedCharges::new());
        for mut planned in planned {
            let Some(real) = planned.real_cost(&gate.throttles, status, headers) else { continue };
            let charged = planned.cost;
            planned.cost = real.abs_diff(charged);
            match real.cmp(&charged) {
                Ordering::Less => back.push(planned),
                Ordering::Equal => {}
                Ordering::Greater => owed.push(planned),
            }
        }
        if back.is_empty() && owed.is_empty() {
            return;
        }
        poll_then_spawn(async move {
            if !back.is_empty() {
                gate.limiter.refund(&decision, &gate.charges(&back)).await;
            }
            if !owed.is_empty() {
                gate.limiter.debit(&gate.charges(&owed)).await;
            }
        });
    }
}
