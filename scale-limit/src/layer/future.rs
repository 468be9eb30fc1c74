//! Future of the response. A request that does not wait for the store needs no allocation.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;

use super::body::{Bodies, LimitBody};
use super::settle::ResponseActions;

pin_project_lite::pin_project! {
    /// Future of [`Limit`](super::Limit).
    pub struct ResponseFuture<F, B, E, W: Bodies<B>> {
        // Next to `end`, not inside of it: the inner future is large, and would be copied once
        // more.
        #[pin]
        inner: Option<F>,
        end: End<B, W::Body, E>,
        bodies: W,
    }
}

/// End of the future: with the inner service's response, a refusal, or a wait for the store.
pub(super) enum End<B, O, E> {
    Passed(ResponseActions),
    Refused(Option<Box<Response<LimitBody<B>>>>),
    Waiting(Pin<Box<dyn Future<Output = Result<Response<O>, E>> + Send>>),
}

impl<B, O, E> End<B, O, E> {
    pub(super) fn refused(answer: Response<Bytes>) -> Self {
        Self::Refused(Some(Box::new(answer.map(LimitBody::whole))))
    }
}

#[allow(
    clippy::inline_always,
    reason = "the inner future is large; inlining avoids a copy to its final place"
)]
impl<F, B, E, W: Bodies<B>> ResponseFuture<F, B, E, W> {
    #[inline(always)]
    pub(super) fn pass(inner: F, told: ResponseActions, bodies: W) -> Self {
        Self { inner: Some(inner), end: End::Passed(told), bodies }
    }

    /// Creates a future that does not call the inner service, or not yet.
    #[inline(always)]
    pub(super) fn without(end: End<B, W::Body, E>, bodies: W) -> Self {
        Self { inner: None, end, bodies }
    }
}

impl<F, B, E, W> Future for ResponseFuture<F, B, E, W>
where
    F: Future<Output = Result<Response<B>, E>>,
    W: Bodies<B>,
{
    type Output = Result<Response<W::Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(inner) = this.inner.as_pin_mut() {
            let answer = ready!(inner.poll(cx))?;
            let End::Passed(told) = this.end else { return Poll::Pending };
            return Poll::Ready(Ok(std::mem::take(told).finish(answer, this.bodies)));
        }
        match this.end {
            End::Waiting(boxed) => boxed.as_mut().poll(cx),
            End::Refused(answer) => match answer.take() {
                Some(answer) => Poll::Ready(Ok(answer.map(|body| this.bodies.wrap(body)))),
                None => Poll::Pending,
            },
            End::Passed(_) => Poll::Pending,
        }
    }
}

impl<F, B, E, W: Bodies<B>> std::fmt::Debug for ResponseFuture<F, B, E, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseFuture")
    }
}
