//! Body of a response: stored, or in transfer from the origin.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// Body of a response that went through [`HttpCacheLayer`](super::HttpCacheLayer).
pub struct HttpCacheBody<B: Body> {
    /// Data frames read so far.
    read: VecDeque<Bytes>,
    rest: Rest<B>,
}

enum Rest<B: Body> {
    Nothing,
    Stream(Pin<Box<B>>),
    /// Another task reads the body to store it, and sends its parts. Contains the size hint of the
    /// rest.
    Filling(mpsc::UnboundedReceiver<Part<B>>, SizeHint),
    Broken(Box<B::Error>),
}

/// A part of a body that another task reads.
pub(super) enum Part<B: Body> {
    Data(Bytes),
    /// The rest of the body, for the receiver to read.
    Rest(Pin<Box<B>>),
    Broken(B::Error),
    /// The body panicked while it was read.
    Panicked(Box<dyn Any + Send>),
    End,
}

impl<B: Body> std::fmt::Debug for HttpCacheBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stored = matches!(self.rest, Rest::Nothing);
        f.debug_struct("HttpCacheBody").field("stored", &stored).finish_non_exhaustive()
    }
}

impl<B: Body<Data = Bytes>> HttpCacheBody<B> {
    pub(super) fn whole(bytes: Bytes) -> Self {
        let read = if bytes.is_empty() { VecDeque::new() } else { VecDeque::from([bytes]) };
        Self { read, rest: Rest::Nothing }
    }

    pub(super) fn stream(body: B) -> Self {
        Self::of(VecDeque::new(), Box::pin(body))
    }

    pub(super) fn of(read: VecDeque<Bytes>, rest: Pin<Box<B>>) -> Self {
        Self { read, rest: Rest::Stream(rest) }
    }

    pub(super) fn broken(read: VecDeque<Bytes>, error: B::Error) -> Self {
        Self { read, rest: Rest::Broken(Box::new(error)) }
    }

    /// Creates a body that another task reads. `hint`: the size of the parts that are still to
    /// come.
    pub(super) fn filling(
        read: VecDeque<Bytes>,
        coming: mpsc::UnboundedReceiver<Part<B>>,
        hint: SizeHint,
    ) -> Self {
        Self { read, rest: Rest::Filling(coming, hint) }
    }
}

impl<B: Body<Data = Bytes>> Body for HttpCacheBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(bytes) = this.read.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if let Rest::Filling(coming, hint) = &mut this.rest {
            match std::task::ready!(coming.poll_recv(cx)) {
                Some(Part::Data(data)) => {
                    let less = |bytes: u64| bytes.saturating_sub(data.len() as u64);
                    let (lower, upper) = (less(hint.lower()), hint.upper().map(less));
                    *hint = SizeHint::new();
                    hint.set_lower(lower);
                    if let Some(upper) = upper {
                        hint.set_upper(upper);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Part::Rest(body)) => this.rest = Rest::Stream(body),
                Some(Part::Broken(error)) => this.rest = Rest::Broken(Box::new(error)),
                Some(Part::End) => this.rest = Rest::Nothing,
                Some(Part::Panicked(panic)) => resume_unwind(panic),
                // The reading task has ended with its runtime, so the body is incomplete.
                None => resume_unwind(Box::new("the runtime that read this body has shut down")),
            }
        }
        match &mut this.rest {
            Rest::Nothing | Rest::Filling(..) => Poll::Ready(None),
            Rest::Stream(body) => body.as_mut().poll_frame(cx),
            Rest::Broken(_) => match std::mem::replace(&mut this.rest, Rest::Nothing) {
                Rest::Broken(error) => Poll::Ready(Some(Err(*error))),
                _ => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty()
            && match &self.rest {
                Rest::Nothing => true,
                Rest::Stream(body) => body.is_end_stream(),
                Rest::Filling(..) | Rest::Broken(_) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.read.iter().map(|b| b.len() as u64).sum();
        let mut hint = match &self.rest {
            Rest::Nothing => SizeHint::with_exact(0),
            Rest::Stream(body) => body.size_hint(),
            Rest::Filling(_, hint) => *hint,
            Rest::Broken(_) => SizeHint::new(),
        };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint.set_lower(hint.lower().saturating_add(read));
        hint
    }
}
