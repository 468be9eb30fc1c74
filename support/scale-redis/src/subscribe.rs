//! Subscriptions to channels, which report when messages may be missing.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use redis::RedisResult;
use tokio::sync::mpsc;

use crate::clock::since_boot;
use crate::config::Config;
use crate::connect::too_late;
use crate::masters::Masters;

/// Interval at which an idle subscription checks its server.
pub(crate) const CHECK: Duration = Duration::from_millis(1_100);
pub(crate) const FIRST_DELAY: Duration = Duration::from_millis(10);
/// Maximum number of unread messages; with more, the connection is closed and reported as lost.
pub(crate) const BACKLOG: usize = 4_096;
/// Time without an answer to a check after which the connection is lost.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// Event of a [`Subscription`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message was published.
    Message {
        /// Name of the channel.
        channel: String,
        /// Published bytes.
        payload: Vec<u8>,
    },
    /// The connection is lost, or the reader too slow: from here on messages may be missed.
    Lost,
    /// Subscribed, at the start and after each [`Lost`](Event::Lost): from here on no message is
    /// missed.
    Restored,
    /// All messages published before `asked` have been yielded. Follows each check of the
    /// connection, every 1.1 s.
    Heard {
        /// Time at which the check began, by [`since_boot`].
        asked: Duration,
    },
}

impl Event {
    pub(crate) fn message(message: &redis::Msg) -> Self {
        Self::Message {
            channel: message.get_channel_name().to_owned(),
            payload: message.get_payload_bytes().to_vec(),
        }
    }
}

/// Stream of [`Event`]s that re-subscribes by itself and never ends; dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    events: mpsc::Receiver<Event>,
    task: tokio::task::JoinHandle<()>,
}

impl Subscription {
    /// Longest time from the loss of a connection to its [`Event::Lost`].
    pub const NOTICED_WITHIN: Duration = Duration::from_millis(1_500);

    pub(crate) fn new(source: Arc<Source>, channels: Vec<String>) -> Self {
        let (sender, events) = mpsc::channel(BACKLOG);
        let task = tokio::spawn(async move { source.keep(&channels, &sender).await });
        Self { events, task }
    }

    pub(crate) fn of_masters(masters: Masters, channels: Vec<String>) -> Self {
        let (sender, events) = mpsc::channel(BACKLOG);
        let task = tokio::spawn(async move { masters.keep(&channels, &sender).await });
        Self { events, task }
    }

    /// Returns the next event; `None` only if the runtime shuts down. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Stream for Subscription {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Servers for subscriptions: the one server, or any node of a Cluster.
pub(crate) struct Source {
    pub(crate) config: Config,
    pub(crate) kind: SourceKind,
}

pub(crate) enum SourceKind {
    Link(Arc<crate::connect::Connector>),
    Seeds(Vec<redis::Client>),
}

impl Source {
    async fn client(&self, attempt: usize) -> RedisResult<redis::Client> {
        match &self.kind {
            SourceKind::Link(connector) => connector.client().await,
            SourceKind::Seeds(seeds) => Ok(seeds[attempt % seeds.len()].clone()),
        }
    }

    async fn open(&self, channels: &[String], attempt: usize) -> RedisResult<redis::aio::PubSub> {
        let open = async {
            let mut pubsub = self.client(attempt).await?.get_async_pubsub().await?;
            pubsub.subscribe(channels).await?;
            Ok(pubsub)
        };
        tokio::time::timeout(self.config.connect_timeout, open)
            .await
            .unwrap_or_else(|_| Err(too_late("subscribing took too long")))
    }

    async fn keep(&self, channels: &[String], events: &mpsc::Sender<Event>) {
        let mut delay = FIRST_DELAY;
        for attempt in 0.. {
            match self.open(channels, attempt).await {
                Ok(pubsub) => {
                    delay = FIRST_DELAY;
                    if events.send(Event::Restored).await.is_err() {
                        return;
                    }
                    self.listen(pubsub, events).await;
                    if events.send(Event::Lost).await.is_err() {
                        return;
                    }
                    metrics::counter!("scale_redis_subscriptions_lost_total").increment(1);
                }
                Err(error) => {
                    tracing::warn!(%error, "could not subscribe to Redis; trying again");
                    tokio::time::sleep(delay.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    delay = (delay * 2).min(self.config.max_reconnect_delay);
                }
            }
        }
    }

    /// Returns when the connection is lost or silent, or read too slowly.
    async fn listen(&self, pubsub: redis::aio::PubSub, events: &mpsc::Sender<Event>) {
        let (mut sink, mut stream) = pubsub.split();
        let mut check = tokio::time::interval(CHECK);
        let mut pending: VecDeque<Event> = VecDeque::new();
        loop {
            tokio::select! {
                biased;
                message = stream.next() => match message {
                    Some(message) => pending.push_back(Event::message(&message)),
                    None => return,
                },
                room = events.reserve(), if !pending.is_empty() => match (
                    room, pending.pop_front(),
                ) {
                    (Ok(room), Some(event)) => room.send(event),
                    _ => return,
                },
                _ = check.tick() => {
                    let asked = since_boot();
                    let alive = tokio::time::timeout(SILENCE, sink.ping::<redis::Value>()).await;
                    if !matches!(alive, Ok(Ok(_))) {
                        return;
                    }
                    // Messages received before the answer are yielded before it.
                    while let Some(Some(message)) = stream.next().now_or_never() {
                        pending.push_back(Event::message(&message));
                    }
                    pending.push_back(Event::Heard { asked });
                }
            }
            if pending.len() > BACKLOG {
                return;
            }
        }
    }
}
