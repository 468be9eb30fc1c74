//! The answer to come. A request that needs no waiting for the store needs no box either.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;

use super::{LimitBody, Told};

type Answer<B, E> = Result<Response<LimitBody<B>>, E>;

pin_project_lite::pin_project! {
    /// The future of [`Limit`](super::Limit).
    pub struct ResponseFuture<F, B, E> {
        // Beside what is to be told and not inside of it: it is large, and would be copied once more.
        #[pin]
        inner: Option<F>,
        end: End<B, E>,
    }
}

/// What comes of the inner service's answer, or instead of one.
enum End<B, E> {
    Passed(Option<Box<Told>>),
    Refused(Option<Box<Response<Bytes>>>),
    Waiting(Pin<Box<dyn Future<Output = Answer<B, E>> + Send>>),
}

impl<F, B, E> ResponseFuture<F, B, E> {
    #[inline]
    pub(super) fn refused(answer: Box<Response<Bytes>>) -> Self {
        Self { inner: None, end: End::Refused(Some(answer)) }
    }

    #[inline]
    pub(super) fn pass(inner: F, told: Option<Box<Told>>) -> Self {
        Self { inner: Some(inner), end: End::Passed(told) }
    }

    #[inline]
    pub(super) fn waiting(future: impl Future<Output = Answer<B, E>> + Send + 'static) -> Self {
        Self { inner: None, end: End::Waiting(Box::pin(future)) }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Answer<B, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(inner) = this.inner.as_pin_mut() {
            let answer = ready!(inner.poll(cx))?;
            let told = if let End::Passed(told) = this.end { told.take() } else { None };
            return Poll::Ready(Ok(Told::finish(told, answer)));
        }
        match this.end {
            End::Waiting(boxed) => boxed.as_mut().poll(cx),
            End::Refused(answer) => match answer.take() {
                Some(answer) => Poll::Ready(Ok(answer.map(LimitBody::whole))),
                None => Poll::Pending,
            },
            End::Passed(_) => Poll::Pending,
        }
    }
}

impl<F, B, E> std::fmt::Debug for ResponseFuture<F, B, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseFuture")
    }
}
