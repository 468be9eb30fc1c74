//! The body of an answer: stored, or on its way from the origin.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// The body of an answer that went through [`HttpCacheLayer`](super::HttpCacheLayer).
pub struct HttpCacheBody<B: Body> {
    /// What was read of it already.
    read: VecDeque<Bytes>,
    rest: Rest<B>,
}

enum Rest<B: Body> {
    Nothing,
    Stream(Pin<Box<B>>),
    Broken(Box<B::Error>),
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
        Self { read: VecDeque::new(), rest: Rest::Stream(Box::pin(body)) }
    }
}

impl<B: Body<Data = Bytes>> Body for HttpCacheBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(bytes) = this.read.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match &mut this.rest {
            Rest::Nothing => Poll::Ready(None),
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
                Rest::Broken(_) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.read.iter().map(|b| b.len() as u64).sum();
        let mut hint = match &self.rest {
            Rest::Nothing => SizeHint::with_exact(0),
            Rest::Stream(body) => body.size_hint(),
            Rest::Broken(_) => SizeHint::new(),
        };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint.set_lower(hint.lower().saturating_add(read));
        hint
    }
}

/// What came of reading a body to be stored.
pub(super) enum Read<B: Body> {
    Whole(Bytes),
    /// Too large, or broken off: it goes on as it is.
    NotToBeStored(HttpCacheBody<B>),
}

/// Reads a body, up to so many bytes.
pub(super) async fn read<B: Body<Data = Bytes>>(body: B, most: usize) -> Read<B> {
    if body.size_hint().lower() > most as u64 {
        return Read::NotToBeStored(HttpCacheBody::stream(body));
    }
    let mut body = Box::pin(body);
    let (mut read, mut length) = (VecDeque::new(), 0);
    loop {
        match std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            None => {
                let whole = match read.len() {
                    1 => read.pop_front().unwrap_or_default(),
                    _ => read.into_iter().flatten().collect(),
                };
                return Read::Whole(whole);
            }
            // Trailers are not stored (RFC 9111, 3.1, permits that).
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    length += data.len();
                    read.push_back(data);
                }
                if length > most {
                    return Read::NotToBeStored(HttpCacheBody { read, rest: Rest::Stream(body) });
                }
            }
            Some(Err(error)) => return Read::NotToBeStored(HttpCacheBody { read, rest: Rest::Broken(Box::new(error)) }),
        }
    }
}
