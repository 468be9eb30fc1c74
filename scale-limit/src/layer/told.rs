//! What an admitted request's answer is told, and what is put right once it is known.

use std::cmp::Ordering;
use std::sync::Arc;

use http::{HeaderMap, Response, StatusCode};

use super::body::{Bodies, LimitBody};
use super::response::Headers;
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
    settling: Option<Settling>,
}

impl Told {
    pub(super) fn headers(headers: Headers) -> Self {
        Self { headers, rest: None }
    }

    pub(super) fn new(layer: &Arc<Inner>, mut decision: Decision, asked: &[super::throttle::Asked]) -> Self {
        let headers = if layer.quiet { Headers::None } else { Headers::all(&decision) };
        let places = decision.take_places();
        let settling = (!layer.is_settled()).then(|| Settling { layer: Arc::clone(layer), decision, asked: asked.into() });
        let rest = (places.is_some() || settling.is_some()).then(|| Box::new(Rest { places, settling }));
        Self { headers, rest }
    }

    /// The answer with what it is to be told.
    #[inline]
    pub(super) fn finish<B, W: Bodies<B>>(self, mut answer: Response<B>, bodies: &W) -> Response<W::Body> {
        self.headers.add(answer.headers_mut());
        let places = self.rest.and_then(|rest| rest.settle(&answer));
        answer.map(|body| match places {
            None => bodies.keep(body),
            Some(places) => bodies.wrap(LimitBody::holding(body, places)),
        })
    }
}

impl Rest {
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
