//! What an admitted request's answer is told, and what is put right once it is known.

use std::cmp::Ordering;
use std::sync::Arc;

use http::{Extensions, HeaderMap, Response, StatusCode};

use super::body::{Bodies, LimitBody};
use super::limits::{Limits, Places};
use super::response::{Headers, unheld};
use super::{Asked, Inner};
use crate::decision::Decision;
use crate::permit::Permits;
use crate::task::go_on;

/// Small, because answers to come are moved about.
#[derive(Default)]
pub(super) struct Told {
    headers: Headers,
    rest: Option<Box<Rest>>,
}

/// What few answers have.
struct Rest {
    places: Option<Arc<Permits>>,
    /// For the request's handler.
    decision: Option<Decision>,
    settling: Option<Settling>,
}

impl Told {
    pub(super) fn headers(headers: Headers) -> Self {
        Self { headers, rest: None }
    }

    pub(super) fn new(layer: &Arc<Inner>, mut decision: Decision, asked: &[super::throttle::Asked]) -> Self {
        let headers = if layer.telling.quiet {
            Headers::None
        } else {
            Headers::all(decision.outcomes(), layer.telling, &|number, policy| layer.partition_key(asked, number, policy))
        };
        let places = decision.take_places();
        let shown = layer.extension.then(|| decision.clone());
        let settling = (!layer.is_settled()).then(|| Settling { layer: Arc::clone(layer), decision, asked: asked.into() });
        let rest = (places.is_some() || settling.is_some() || shown.is_some())
            .then(|| Box::new(Rest { places, decision: shown, settling }));
        Self { headers, rest }
    }

    /// Tells the request's handler what it may know.
    #[inline]
    pub(super) fn show(&mut self, extensions: &mut Extensions) {
        if let Some(rest) = &mut self.rest {
            rest.show(extensions);
        }
    }

    /// The answer with what it is to be told.
    #[inline]
    pub(super) fn finish<B, W: Bodies<B>>(self, mut answer: Response<B>, bodies: &W) -> Response<W::Body> {
        self.headers.add(answer.headers_mut());
        let places = self.rest.and_then(|rest| rest.settle(&answer));
        match places {
            None => answer.map(|body| bodies.keep(body)),
            // The connection goes on, and nobody would hold its place.
            Some(places) if answer.status() == StatusCode::SWITCHING_PROTOCOLS && Arc::strong_count(&places) == 1 => {
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

    /// The places are left.
    fn settle<B>(self, answer: &Response<B>) -> Option<Arc<Permits>> {
        if let Some(settling) = self.settling {
            settling.settle(answer.status(), answer.headers());
        }
        self.places
    }
}

struct Settling {
    layer: Arc<Inner>,
    decision: Decision,
    asked: Asked,
}

impl Settling {
    /// What was charged becomes what it cost: less is given back, more is owed.
    fn settle(self, status: StatusCode, headers: &HeaderMap) {
        let Self { layer, decision, asked } = self;
        let (mut back, mut owed) = (Asked::new(), Asked::new());
        for mut asked in asked {
            let Some(real) = asked.real_cost(&layer.throttles, status, headers) else { continue };
            let charged = asked.cost;
            asked.cost = real.abs_diff(charged);
            match real.cmp(&charged) {
                Ordering::Less => back.push(asked),
                Ordering::Equal => {}
                Ordering::Greater => owed.push(asked),
            }
        }
        if back.is_empty() && owed.is_empty() {
            return;
        }
        go_on(async move {
            if !back.is_empty() {
                layer.limiter.refund(&decision, &layer.charges(&back)).await;
            }
            if !owed.is_empty() {
                layer.limiter.debit(&layer.charges(&owed)).await;
            }
        });
    }
}
