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
        #[pin]
        state: State<F, B, E>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProjection]
    enum State<F, B, E> {
        Refused { answer: Option<Response<Bytes>> },
        Passed { #[pin] inner: F },
        Admitted { #[pin] inner: F, told: Option<Told> },
        Waiting { boxed: Pin<Box<dyn Future<Output = Answer<B, E>> + Send>> },
    }
}

impl<F, B, E> ResponseFuture<F, B, E> {
    pub(super) fn refused(answer: Response<Bytes>) -> Self {
        Self { state: State::Refused { answer: Some(answer) } }
    }

    pub(super) fn pass(inner: F) -> Self {
        Self { state: State::Passed { inner } }
    }

    pub(super) fn admitted(inner: F, told: Told) -> Self {
        Self { state: State::Admitted { inner, told: Some(told) } }
    }

    pub(super) fn waiting(future: impl Future<Output = Answer<B, E>> + Send + 'static) -> Self {
        Self { state: State::Waiting { boxed: Box::pin(future) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Answer<B, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Refused { answer } => match answer.take() {
                Some(answer) => Poll::Ready(Ok(answer.map(LimitBody::whole))),
                None => Poll::Pending,
            },
            StateProjection::Passed { inner } => Poll::Ready(Ok(ready!(inner.poll(cx))?.map(LimitBody::free))),
            StateProjection::Admitted { inner, told } => {
                let answer = ready!(inner.poll(cx))?;
                Poll::Ready(Ok(match told.take() {
                    Some(told) => told.finish(answer),
                    None => answer.map(LimitBody::free),
                }))
            }
            StateProjection::Waiting { boxed } => boxed.as_mut().poll(cx),
        }
    }
}

impl<F, B, E> std::fmt::Debug for ResponseFuture<F, B, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseFuture")
    }
}
