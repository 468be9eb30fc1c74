//! A body in transfer from the origin: passed on to its client, and kept for others.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body::{Body, Frame};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::body::{HttpCacheBody, Part};

/// A body that may be stored, unless it turns out to be too large.
pub(super) struct Filling<B: Body> {
    body: Pin<Box<B>>,
    read: VecDeque<Bytes>,
    length: usize,
    most: usize,
}

/// Result of reading the data that is available at once.
pub(super) enum AtOnce<B: Body> {
    Whole(Bytes),
    /// The body is too large or was interrupted: it is passed on as it is.
    NotToBeStored(HttpCacheBody<B>),
    /// More data is to come.
    More(Filling<B>),
}

/// Result of reading the whole body.
pub(super) enum Filled {
    Whole(Bytes),
    TooLarge,
    Failed,
}

/// One step of reading.
enum Step<E> {
    Data(Bytes),
    Trailers,
    End,
    Error(E),
}

impl<B: Body<Data = Bytes>> Filling<B> {
    /// Reads the data that is available at once. `most`: the maximum number of bytes that may be
    /// stored.
    pub(super) fn begin(body: B, most: usize) -> AtOnce<B> {
        if body.size_hint().lower() > most as u64 {
            return AtOnce::NotToBeStored(HttpCacheBody::stream(body));
        }
        let mut this = Self { body: Box::pin(body), read: VecDeque::new(), length: 0, most };
        loop {
            match this.step().now_or_never() {
                None => return AtOnce::More(this),
                Some(Step::End) => return AtOnce::Whole(this.whole()),
                Some(Step::Error(error)) => {
                    return AtOnce::NotToBeStored(HttpCacheBody::broken(this.read, error));
                }
                Some(Step::Data(_)) if this.length > this.most => {
                    return AtOnce::NotToBeStored(HttpCacheBody::of(this.read, this.body));
                }
                Some(Step::Data(_) | Step::Trailers) => {}
            }
        }
    }

    /// Returns whether the size hint guarantees that the body is not too large.
    pub(super) fn will_fit(&self) -> bool {
        self.body
            .size_hint()
            .upper()
            .is_some_and(|rest| rest.saturating_add(self.length as u64) <= self.most as u64)
    }

    /// Returns a body for the client, and the sender of its parts.
    pub(super) fn passed_on(&self) -> (HttpCacheBody<B>, mpsc::UnboundedSender<Part<B>>) {
        let (parts, coming) = mpsc::unbounded_channel();
        let hint = self.body.size_hint();
        (HttpCacheBody::filling(self.read.clone(), coming, hint), parts)
    }

    /// Reads on, and sends the parts. If the body cannot be stored, or no data arrives within
    /// `stall`, or not all within `longest`, the rest is passed to the client unread.
    pub(super) async fn read_on(
        mut self,
        parts: Option<&mpsc::UnboundedSender<Part<B>>>,
        stall: Duration,
        longest: Duration,
    ) -> Filled {
        let say = |part| parts.is_some_and(|parts| parts.send(part).is_ok());
        let end = Instant::now() + longest;
        loop {
            match timeout_at(end.min(Instant::now() + stall), self.step()).await {
                Ok(Step::End) => return Filled::Whole(self.whole()),
                Ok(Step::Error(error)) => {
                    say(Part::Broken(error));
                    return Filled::Failed;
                }
                Ok(Step::Data(data)) => {
                    say(Part::Data(data));
                    if self.length > self.most {
                        say(Part::Rest(self.body));
                        return Filled::TooLarge;
                    }
                }
                // Trailers are not stored (RFC 9111, 3.1, permits that).
                Ok(Step::Trailers) => {}
                Err(_) => {
                    say(Part::Rest(self.body));
                    return Filled::Failed;
                }
            }
        }
    }

    async fn step(&mut self) -> Step<B::Error> {
        match std::future::poll_fn(|cx| self.body.as_mut().poll_frame(cx))
            .await
            .map(|frame| frame.map(Frame::into_data))
        {
            None => Step::End,
            Some(Err(error)) => Step::Error(error),
            Some(Ok(Err(_))) => Step::Trailers,
            Some(Ok(Ok(data))) => {
                self.length += data.len();
                self.read.push_back(data.clone());
                Step::Data(data)
            }
        }
    }

    /// Copies the body into one buffer of its exact size: a connection's read buffer would stay
    /// allocated for many small parts.
    fn whole(&self) -> Bytes {
        let mut whole = BytesMut::with_capacity(self.length);
        for part in &self.read {
            whole.extend_from_slice(part);
        }
        whole.freeze()
    }
}
