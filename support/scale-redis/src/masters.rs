//! Subscriptions at every master of a Cluster.
//!
//! A message published at one node reaches the others over the Cluster's bus, and losses on the bus
//! are not reported. So each master has a subscription of its own: a script publishes at the node
//! that has its keys, and there no message is lost unnoticed. A message arrives once from its own
//! node, and normally once more from each other node.

use std::collections::{BTreeSet, VecDeque};

use futures_util::future::{join_all, try_join_all};
use futures_util::stream::SelectAll;
use futures_util::{FutureExt, StreamExt};
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::{ConnectionAddr, ConnectionInfo, RedisError, RedisResult, Value};
use tokio::sync::mpsc;

use crate::clock::since_boot;
use crate::config::Config;
use crate::connect::{resp3, too_late};
use crate::subscribe::{BACKLOG, CHECK, Event, FIRST_DELAY, SILENCE};

/// A node, as named by the Cluster.
type Node = (String, u16);

/// Source of the masters' addresses.
pub(crate) struct Masters {
    pub(crate) seeds: Vec<ConnectionInfo>,
    pub(crate) config: Config,
}

/// Subscription at one master.
struct Member {
    sink: PubSubSink,
    /// Connection for asking which masters this node knows; the subscription's connection accepts
    /// no other commands.
    questions: MultiplexedConnection,
    /// Host name by which the node is known, for a node that does not know its own.
    host: String,
}

impl Masters {
    pub(crate) async fn keep(&self, channels: &[String], events: &mpsc::Sender<Event>) {
        let mut delay = FIRST_DELAY;
        loop {
            let opened =
                tokio::time::timeout(self.config.connect_timeout, self.open(channels)).await;
            match opened
                .unwrap_or_else(|_| Err(too_late("subscribing to all masters took too long")))
            {
                Ok((known, members, streams)) => {
                    delay = FIRST_DELAY;
                    if events.send(Event::Restored).await.is_err() {
                        return;
                    }
                    listen(&known, members, streams, events).await;
                    if events.send(Event::Lost).await.is_err() {
                        return;
                    }
                    metrics::counter!("scale_redis_subscriptions_lost_total").increment(1);
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "could not subscribe to all masters of the Redis Cluster; trying again",
                    );
                    tokio::time::sleep(delay.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    delay = (delay * 2).min(self.config.max_reconnect_delay);
                }
            }
        }
    }

    /// Subscribes at every master that any of the masters knows.
    async fn open(
        &self,
        channels: &[String],
    ) -> RedisResult<(BTreeSet<Node>, Vec<Member>, SelectAll<PubSubStream>)> {
        let mut known = self.discover().await?;
        loop {
            let members = try_join_all(known.iter().map(|node| self.join(node, channels))).await?;
            let (mut members, streams): (Vec<_>, Vec<_>) = members.into_iter().unzip();
            // A master may know others that the seed does not know.
            let all = masters_of(&mut members).await?;
            if all.is_subset(&known) {
                return Ok((known, members, streams.into_iter().collect()));
            }
            known.extend(all);
        }
    }

    /// Returns the masters known to the first seed that answers.
    async fn discover(&self) -> RedisResult<BTreeSet<Node>> {
        let mut last = RedisError::from(std::io::Error::other("the address has no seeds"));
        for seed in &self.seeds {
            let asked = async {
                let client = redis::Client::open(resp3(seed.clone()))?;
                let mut connection = client.get_multiplexed_async_connection().await?;
                slots(&mut connection, &host_of(seed)).await
            };
            match tokio::time::timeout(SILENCE, asked).await {
                Ok(Ok(nodes)) if !nodes.is_empty() => return Ok(nodes),
                Ok(Ok(_)) => last = std::io::Error::other("the Cluster has no masters yet").into(),
                Ok(Err(error)) => last = error,
                Err(_) => last = too_late("a node of the Cluster did not answer in time"),
            }
        }
        Err(last)
    }

    async fn join(
        &self,
        (host, port): &Node,
        channels: &[String],
    ) -> RedisResult<(Member, PubSubStream)> {
        let seed = &self.seeds[0];
        let address = match seed.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                host: host.clone(),
                port: *port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host.clone(), *port),
        };
        let client = redis::Client::open(resp3(seed.clone().set_addr(address)))?;
        let mut pubsub = client.get_async_pubsub().await?;
        pubsub.subscribe(channels).await?;
        let (sink, stream) = pubsub.split();
        let questions = client.get_multiplexed_async_connection().await?;
        Ok((Member { sink, questions, host: host.clone() }, stream))
    }
}

/// Listens until a connection is lost or silent, the reader is too slow, or there is a master
/// without a subscription.
async fn listen(
    known: &BTreeSet<Node>,
    mut members: Vec<Member>,
    mut streams: SelectAll<PubSubStream>,
    events: &mpsc::Sender<Event>,
) {
    let count = streams.len();
    let mut check = tokio::time::interval(CHECK);
    let mut pending: VecDeque<Event> = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            message = streams.next() => match message {
                Some(message) => pending.push_back(Event::message(&message)),
                None => return,
            },
            room = events.reserve(), if !pending.is_empty() => match (room, pending.pop_front()) {
                (Ok(room), Some(event)) => room.send(event),
                _ => return,
            },
            _ = check.tick() => {
                let asked = since_boot();
                let pings = async {
                    let sinks = members.iter_mut().map(|member| member.sink.ping::<Value>());
                    let alive = join_all(sinks).await.into_iter().all(|answer| answer.is_ok());
                    alive && masters_of(&mut members).await.is_ok_and(|all| all.is_subset(known))
                };
                if !matches!(tokio::time::timeout(SILENCE, pings).await, Ok(true)) {
                    return;
                }
                while let Some(Some(message)) = streams.next().now_or_never() {
                    pending.push_back(Event::message(&message));
                }
                pending.push_back(Event::Heard { asked });
            }
        }
        // `SelectAll` removes an ended stream without a notice.
        if streams.len() < count || pending.len() > BACKLOG {
            return;
        }
    }
}

/// Returns the masters that any of these nodes knows.
async fn masters_of(members: &mut [Member]) -> RedisResult<BTreeSet<Node>> {
    let asked = members.iter_mut().map(|Member { questions, host, .. }| slots(questions, host));
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}

/// Returns the masters with slots, as seen by one node.
async fn slots(connection: &mut MultiplexedConnection, host: &str) -> RedisResult<BTreeSet<Node>> {
    let Value::Array(ranges) = redis::cmd("CLUSTER").arg("SLOTS").query_async(connection).await?
    else {
        return Err(std::io::Error::other("CLUSTER SLOTS returned no list").into());
    };
    Ok(ranges.iter().filter_map(|range| master_of(range, host)).collect())
}

/// Returns the master of a range of slots: `[from, to, [host, port, …], replicas…]`. A node that
/// does not know its own host gives none.
fn master_of(range: &Value, host: &str) -> Option<Node> {
    let Value::Array(range) = range else { return None };
    let Value::Array(node) = range.get(2)? else { return None };
    let named = match node.first()? {
        Value::BulkString(name) => std::str::from_utf8(name).ok()?,
        Value::SimpleString(name) => name,
        _ => "",
    };
    let Value::Int(port) = node.get(1)? else { return None };
    let named = if named.is_empty() || named == "?" { host } else { named };
    Some((named.to_owned(), u16::try_from(*port).ok()?))
}

fn host_of(seed: &ConnectionInfo) -> String {
    match seed.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => String::new(),
    }
}
