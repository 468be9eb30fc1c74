//! The client: a second level of scale-cache.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use scale_cache::Error;
use scale_cache::store::{Begun, Position, Store, StoreEvent, Version};
use tokio::net::TcpStream;

use crate::protocol::{Answer, Call, Event, Outcome, TagVersion, receive, send};

/// Delay before a lost subscription is renewed.
const RECONNECT: Duration = Duration::from_millis(200);

/// Entries on a server of this crate. Clones share their connections.
#[derive(Clone, Debug)]
pub struct TcpStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server: SocketAddr,
    /// Connections without a call in progress.
    idle: Mutex<Vec<TcpStream>>,
    /// Time of the server in the last answer, and time of the answer here.
    clock: Mutex<(u64, Instant)>,
}

impl TcpStore {
    /// Creates a store on the server at this address.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn connect(server: SocketAddr) -> Result<Self, Error> {
        let idle = Mutex::default();
        let clock = Mutex::new((0, Instant::now()));
        let store = Self(Arc::new(Inner { server, idle, clock }));
        // The first answer sets the clock.
        store.get("").await?;
        Ok(store)
    }

    async fn call(&self, call: &Call) -> Result<(Outcome, u64), Error> {
        let idle = || self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = idle().pop();
        let mut connection = match connection {
            Some(connection) => connection,
            None => connect(self.0.server).await.map_err(Error::store)?,
        };
        send(&mut connection, call).await.map_err(Error::store)?;
        let Answer { now_us, result } = receive(&mut connection).await.map_err(Error::store)?;
        *self.0.clock.lock().unwrap_or_else(PoisonError::into_inner) = (now_us, Instant::now());
        // A call that is dropped on the way drops its connection: no other call reads its answer.
        idle().push(connection);
        Ok((result, now_us))
    }

    async fn done(&self, call: &Call) -> Result<bool, Error> {
        match self.call(call).await?.0 {
            Outcome::Done(done) => Ok(done),
            other => Err(unexpected(&other)),
        }
    }
}

async fn connect(server: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn unexpected(outcome: &Outcome) -> Error {
    Error::store(format!("unexpected answer of the server: {outcome:?}"))
}

fn version(version: TagVersion) -> Version {
    Version { at_us: version.at_us, position: version.position.map(Position::from) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[async_trait]
impl Store for TcpStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.call(&Call::Get { key: key.into() }).await?.0 {
            Outcome::Entry(entry) => Ok(entry),
            other => Err(unexpected(&other)),
        }
    }

    async fn begin(&self, key: &str, token: u64, lease: Duration) -> Result<Begun, Error> {
        let call = Call::Begin { key: key.into(), token, lease_ms: millis(lease) };
        match self.call(&call).await? {
            (Outcome::Begun { won, entry }, now_us) => Ok(Begun { won, entry, now_us }),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn renew(&self, key: &str, token: u64, lease: Duration) -> Result<bool, Error> {
        self.done(&Call::Renew { key: key.into(), token, lease_ms: millis(lease) }).await
    }

    async fn fill(
        &self,
        key: &str,
        token: u64,
        bytes: &[u8],
        keep: Duration,
    ) -> Result<bool, Error> {
        let (key, bytes, keep_ms) = (key.into(), bytes.into(), millis(keep));
        self.done(&Call::Fill { key, token, bytes, keep_ms }).await
    }

    async fn release(&self, key: &str, token: u64) -> Result<(), Error> {
        self.done(&Call::Release { key: key.into(), token }).await.map(drop)
    }

    async fn set(&self, key: &str, bytes: &[u8], keep: Duration) -> Result<(), Error> {
        let (key, bytes, keep_ms) = (key.into(), bytes.into(), millis(keep));
        self.done(&Call::Set { key, bytes, keep_ms }).await.map(drop)
    }

    async fn touch(&self, key: &str, ends: [u8; 16], keep: Duration) -> Result<bool, Error> {
        self.done(&Call::Touch { key: key.into(), ends, keep_ms: millis(keep) }).await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        self.done(&Call::Remove { key: key.into() }).await.map(drop)
    }

    async fn version(&self, tag: &str) -> Result<(Version, u64), Error> {
        match self.call(&Call::Version { tag: tag.into() }).await? {
            (Outcome::Version(known), now_us) => Ok((version(known), now_us)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn invalidate(&self, tag: &str, position: Option<&Position>) -> Result<Version, Error> {
        let position = position.map(|position| position.to_vec());
        match self.call(&Call::Invalidate { tag: tag.into(), position }).await?.0 {
            Outcome::Version(new) => Ok(version(new)),
            other => Err(unexpected(&other)),
        }
    }

    fn events(&self) -> BoxStream<'static, StoreEvent> {
        let server = self.0.server;
        stream::unfold(None::<TcpStream>, move |subscription| async move {
            let Some(mut connection) = subscription else {
                return Some((StoreEvent::Restored, Some(subscribed(server).await)));
            };
            match receive(&mut connection).await {
                Ok(Event::Changed { key }) => {
                    Some((StoreEvent::Changed(key.into()), Some(connection)))
                }
                Ok(Event::Invalidated { tag, version: new }) => {
                    Some((StoreEvent::Invalidated(tag.into(), version(new)), Some(connection)))
                }
                Ok(Event::Subscribed) | Err(_) => Some((StoreEvent::Lost, None)),
            }
        })
        .boxed()
    }

    fn now_us(&self) -> u64 {
        let (server_us, at) = *self.0.clock.lock().unwrap_or_else(PoisonError::into_inner);
        server_us + at.elapsed().as_micros() as u64
    }
}

/// Returns a connection that carries events, as soon as the server grants one.
async fn subscribed(server: SocketAddr) -> TcpStream {
    let subscribe = async || {
        let mut connection = connect(server).await?;
        send(&mut connection, &Call::Subscribe).await?;
        match receive(&mut connection).await? {
            Event::Subscribed => Ok::<_, std::io::Error>(connection),
            _ => Err(std::io::ErrorKind::InvalidData.into()),
        }
    };
    loop {
        match subscribe().await {
            Ok(connection) => return connection,
            Err(_) => tokio::time::sleep(RECONNECT).await,
        }
    }
}
