//! Body of the response: the service's, or the layer's own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::permit::Permits;

pin_project_lite::pin_project! {
    /// Body of a response that went through [`LimitLayer`](crate::LimitLayer).
    #[derive(Debug)]
    pub struct LimitBody<B> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project_lite::pin_project! {
    #[project = InnerProjection]
    #[derive(Debug)]
    enum Inner<B> {
        /// Body of the service, and permits that are released with it.
        Service { #[pin] body: B, places: Option<Arc<Permits>> },
        Own { text: Option<Bytes> },
    }
}

impl<B> LimitBody<B> {
    /// Creates a body that holds permits until it has been sent or dropped.
    pub(super) fn holding(body: B, places: Arc<Permits>) -> Self {
        Self { inner: Inner::Service { body, places: Some(places) } }
    }

    pub(crate) fn free(body: B) -> Self {
        Self { inner: Inner::Service { body, places: None } }
    }

    pub(crate) fn whole(text: Bytes) -> Self {
        Self { inner: Inner::Own { text: Some(text).filter(|t| !t.is_empty()) } }
    }
}

impl<B: Body<Data = Bytes>> Body for LimitBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            InnerProjection::Service { body, places } => {
                let frame = body.poll_frame(cx);
                if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
                    *places = None;
                }
                frame
            }
            InnerProjection::Own { text } => {
                Poll::Ready(text.take().map(|text| Ok(Frame::data(text))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Service { body, .. } => body.is_end_stream(),
            Inner::Own { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Service { body, .. } => body.size_hint(),
            Inner::Own { text } => {
                SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64))
            }
        }
    }
}

/// Conversion of the service's response bodies.
pub trait Bodies<B> {
    /// Type of all response bodies.
    type Body;

    /// Converts a body of the service.
    fn keep(&self, body: B) -> Self::Body;

    /// Converts a body that holds permits, or the layer's own body.
    fn wrap(&self, body: LimitBody<B>) -> Self::Body;
}

/// Converts every body to [`LimitBody`].
#[derive(Clone, Copy, Debug)]
pub struct Wrapped;

impl<B> Bodies<B> for Wrapped {
    type Body = LimitBody<B>;

    #[inline]
    fn keep(&self, body: B) -> LimitBody<B> {
        LimitBody::free(body)
    }

    #[inline]
    fn wrap(&self, body: LimitBody<B>) -> LimitBody<B> {
        body
    }
}

/// Keeps every body as `B`; see [`LimitLayer::preserve_body`](crate::LimitLayer::preserve_body).
#[derive(Debug)]
pub struct Kept<B>(pub(super) fn(LimitBody<B>) -> B);

impl<B> Clone for Kept<B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Kept<B> {}

impl<B> Bodies<B> for Kept<B> {
    type Body = B;

    #[inline]
    fn keep(&self, body: B) -> B {
        body
    }

    #[inline]
    fn wrap(&self, body: LimitBody<B>) -> B {
        self.0(body)
    }
}
