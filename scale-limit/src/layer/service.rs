//! The service: admits, refuses, or asks the store first.

use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::LimitLayer;
use super::body::{Bodies, LimitBody, Wrapped};
use super::future::{End, ResponseFuture};
use super::gate::Verdict;
use super::refusal::Refusal;
use super::settle::ResponseActions;
use super::throttle::PlannedCharges;
use crate::request_head::RequestHead;

/// Service of [`LimitLayer`].
#[derive(Clone, Debug)]
pub struct Limit<S, W = Wrapped> {
    pub(super) layer: LimitLayer<W>,
    pub(super) inner: S,
}

impl<S, W, Req, Res> Service<Request<Req>> for Limit<S, W>
where
    S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
    S::Future: Send,
    W: Bodies<Res> + Clone + Send + 'static,
    Req: Send + 'static,
{
    type Response = Response<W::Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, Res, S::Error, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[allow(
        clippy::inline_always,
        reason = "the inner future is large; inlining avoids a copy to its final place"
    )]
    #[inline(always)]
    fn call(&mut self, mut request: Request<Req>) -> Self::Future {
        let LimitLayer { gate, bodies } = &self.layer;
        let bodies = bodies.clone();
        let end = match gate.judge(&RequestHead::from(&request)) {
            Verdict::Pass(mut told) => {
                told.show(request.extensions_mut());
                return ResponseFuture::pass(self.inner.call(request), told, bodies);
            }
            Verdict::Refuse(answer) => End::refused(*answer),
            Verdict::Ask(planned) => self.ask(request, planned),
        };
        ResponseFuture::without(end, bodies)
    }
}

impl<S, W> Limit<S, W> {
    /// Continues the request once the store has answered.
    fn ask<Req, Res>(
        &mut self,
        mut request: Request<Req>,
        planned: PlannedCharges,
    ) -> End<Res, W::Body, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
        S::Future: Send,
        W: Bodies<Res> + Clone + Send + 'static,
        Req: Send + 'static,
    {
        // The service that is ready handles this request; the clone handles the next one.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let LimitLayer { gate, bodies } = self.layer.clone();
        End::Waiting(Box::pin(async move {
            let decision = gate.limiter.check_all(&gate.charges(&planned)).await;
            if !decision.admitted {
                let answer = gate.refuse(
                    &Refusal::TooMany(&decision),
                    &planned,
                    &RequestHead::from(&request),
                );
                return Ok(answer.map(|text| bodies.wrap(LimitBody::whole(text))));
            }
            let mut told = ResponseActions::new(&gate, decision, &planned);
            told.show(request.extensions_mut());
            Ok(told.finish(inner.call(request).await?, &bodies))
        }))
    }
}
