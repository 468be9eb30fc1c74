//! Handle of Redis: clone it, and pass it to all code that uses Redis.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, Route as NodeRoute, RoutingInfo, SingleNodeRoutingInfo, SlotAddr,
};
use redis::{Cmd, Pipeline, RedisError, RedisFuture, Value};

use crate::address::{Address, Shape};
use crate::config::Config;
use crate::connect::{Connector, resp3};
use crate::error::Error;
use crate::link::Link;
use crate::masters::Masters;
use crate::subscribe::{Source, SourceKind, Subscription};

/// A Redis server, Sentinel group or Cluster. Cloning costs one reference count.
///
/// It implements [`redis::aio::ConnectionLike`], so everything in the `redis` crate works with it:
/// `redis::cmd`, `pipe`, `Script` and the `AsyncCommands` trait.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
    /// Additional time for answers beyond the response timeout.
    allowance: Duration,
}

struct Inner {
    address: Address,
    config: Config,
    route: Route,
    source: Arc<Source>,
}

enum Route {
    Link(Link, Arc<Connector>),
    Cluster(Box<Cluster>),
}

struct Cluster {
    client: redis::cluster::ClusterClient,
    /// The connection, and an anchor that ends with the runtime of its tasks.
    connection: tokio::sync::Mutex<Option<(ClusterConnection, Anchor)>>,
}

/// Shows whether the runtime on which it was created still exists.
struct Anchor(tokio::task::AbortHandle);

impl Anchor {
    fn drop_here() -> Self {
        Self(tokio::spawn(std::future::pending::<()>()).abort_handle())
    }

    fn holds(&self) -> bool {
        !self.0.is_finished()
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Config {
    /// Connects, and waits for one answer. Its timeout is the connect timeout, if that is longer
    /// than the response timeout.
    pub async fn connect(self) -> Result<Redis, Error> {
        let deadline = Instant::now() + self.connect_timeout;
        let redis = self.connect_lazy()?;
        loop {
            match redis.ping().await {
                Err(Error::Redis { source, .. })
                    if source.is_timeout() && Instant::now() < deadline => {}
                answer => return answer.map(|()| redis),
            }
        }
    }

    /// Returns a handle that connects in the background: only an invalid address is an error. Must
    /// be called inside a tokio runtime.
    pub fn connect_lazy(self) -> Result<Redis, Error> {
        Redis::from_config(self)
    }
}

impl Redis {
    /// Connects with the default settings, and waits for one answer.
    ///
    /// # Errors
    /// [`Error::Address`] for an invalid address; [`Error::Redis`] if no server answers.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Config::new(url).connect().await
    }

    pub(crate) fn from_config(config: Config) -> Result<Self, Error> {
        let address: Address = config.url.parse()?;
        let wrong = |source: RedisError| Error::Redis { address: address.to_string(), source };
        #[cfg(feature = "tls")]
        if address.tls {
            // The application may have installed a provider already; that one is used then.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let (route, kind) = match (Connector::new(&address).map_err(wrong)?, &address.shape) {
            (Some(connector), _) => {
                let connector = Arc::new(connector);
                (
                    Route::Link(
                        Link::new(Arc::clone(&connector), config.clone()),
                        Arc::clone(&connector),
                    ),
                    SourceKind::Link(connector),
                )
            }
            (None, Shape::Cluster(nodes)) => {
                let seeds = nodes
                    .iter()
                    .map(|n| redis::Client::open(resp3(n.clone())))
                    .collect::<Result<_, _>>()
                    .map_err(wrong)?;
                let client = cluster(nodes, &config).build().map_err(wrong)?;
                (
                    Route::Cluster(Box::new(Cluster {
                        client,
                        connection: tokio::sync::Mutex::default(),
                    })),
                    SourceKind::Seeds(seeds),
                )
            }
            (None, _) => return Err(Error::Address("no server and no Cluster".into())),
        };
        let source = Arc::new(Source { config: config.clone(), kind });
        Ok(Self {
            inner: Arc::new(Inner { address, config, route, source }),
            allowance: Duration::ZERO,
        })
    }

    /// Checks whether the server answers; in a Cluster, whether any node does.
    pub async fn ping(&self) -> Result<(), Error> {
        let answer = redis::cmd("PING").query_async::<()>(&mut self.clone()).await;
        answer.map_err(|source| Error::Redis { address: self.inner.address.to_string(), source })
    }

    /// Logs a warning if the server evicts keys when its memory is full, instead of refusing new
    /// ones, so that `what` may be lost. The server is asked once per call. If it does not report
    /// its policy (`INFO` may be forbidden), nothing is logged. Returns whether it evicts keys.
    pub async fn warn_of_eviction(&self, what: &str) -> bool {
        let mut info = redis::cmd("INFO");
        info.arg("memory");
        let Ok(answer) = self.command_near(info, "eviction").await else { return false };
        let text: String = redis::from_redis_value(answer).unwrap_or_default();
        let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name));
        let policy = field("maxmemory_policy:").unwrap_or("noeviction");
        let evicts =
            policy != "noeviction" && field("maxmemory:").is_some_and(|bytes| bytes != "0");
        if evicts {
            tracing::warn!(address = %self.inner.address, policy, "this Redis evicts keys \
                when its memory is full, and {what} with them: set maxmemory-policy noeviction");
        }
        evicts
    }

    /// Returns whether this is a Cluster: a script's keys must then share a hash tag.
    pub fn is_cluster(&self) -> bool {
        matches!(self.inner.route, Route::Cluster(_))
    }

    /// Returns a separate connection without a response timeout, for commands that block (`BLPOP`,
    /// `XREAD BLOCK`).
    ///
    /// It does not reconnect: after an error, request another one.
    pub async fn dedicated(&self) -> Result<Dedicated, Error> {
        let made = match &self.inner.route {
            Route::Link(_, connector) => {
                connector.connect(&self.inner.config, None).await.map(Dedicated::Single)
            }
            Route::Cluster(_) => match &self.inner.address.shape {
                Shape::Cluster(nodes) => {
                    let forever = Duration::from_hours(365 * 24);
                    let builder = cluster(nodes, &self.inner.config)
                        .response_timeout(forever)
                        .overall_response_timeout(None);
                    match builder.build() {
                        Ok(client) => client
                            .get_async_connection()
                            .await
                            .map(|c| Dedicated::Cluster(Box::new(c))),
                        Err(error) => Err(error),
                    }
                }
                _ => unreachable!("a Cluster route has a Cluster address"),
            },
        };
        made.map_err(|source| Error::Redis { address: self.inner.address.to_string(), source })
    }

    /// Subscribes to channels; see [`Subscription`]. In a Cluster any node is used, because
    /// messages reach all nodes.
    pub fn subscribe<C: Into<String>>(
        &self,
        channels: impl IntoIterator<Item = C>,
    ) -> Subscription {
        Subscription::new(
            Arc::clone(&self.inner.source),
            channels.into_iter().map(Into::into).collect(),
        )
    }

    /// Subscribes to channels at every master of a Cluster separately. A message published at a
    /// reachable node is received, or [`Event::Lost`](crate::Event::Lost) is yielded, even if the
    /// Cluster's bus is cut. The same message may arrive once from each master. Without a Cluster
    /// this is [`subscribe`](Self::subscribe).
    pub fn subscribe_everywhere<C: Into<String>>(
        &self,
        channels: impl IntoIterator<Item = C>,
    ) -> Subscription {
        let channels = channels.into_iter().map(Into::into).collect();
        match &self.inner.address.shape {
            Shape::Cluster(seeds) => Subscription::of_masters(
                Masters { seeds: seeds.clone(), config: self.inner.config.clone() },
                channels,
            ),
            _ => Subscription::new(Arc::clone(&self.inner.source), channels),
        }
    }

    /// Returns the number of connections made so far. If it changes, commands may reach another
    /// server, or the same one after a restart. Returns `None` in a Cluster, and while there is no
    /// connection.
    pub fn generation(&self) -> Option<u64> {
        match &self.inner.route {
            Route::Link(link, _) => link.generation(),
            Route::Cluster(_) => None,
        }
    }

    /// Sends a command to all masters of a Cluster, or to the one server; the answers have no
    /// order.
    pub async fn command_everywhere(&self, cmd: Cmd) -> Result<Vec<Value>, RedisError> {
        match &self.inner.route {
            Route::Link(link, _) => Ok(vec![link.command(&cmd, self.allowance).await?]),
            Route::Cluster(cluster) => {
                let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                match cluster.connection().await?.route_command(cmd, all).await? {
                    Value::Map(answers) => {
                        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
                    }
                    Value::Array(answers) => Ok(answers),
                    answer => Ok(vec![answer]),
                }
            }
        }
    }

    /// Returns the maximum time of an answer; twice that time while connecting. Returns `None` in a
    /// Cluster, where a command may be repeated.
    pub fn bound(&self) -> Option<Duration> {
        matches!(self.inner.route, Route::Link(..)).then_some(self.inner.config.response_timeout)
    }

    /// Returns the same connection with more time for answers than the response timeout, for
    /// commands that transfer megabytes. It has no effect in a Cluster, where the response timeout
    /// detects dead nodes.
    ///
    /// ```no_run
    /// # async fn example(redis: scale_redis::Redis) -> redis::RedisResult<()> {
    /// use std::time::{Duration, Instant};
    /// let page: Vec<Vec<u8>> =
    ///     redis::cmd("LRANGE")
    ///         .arg("big")
    ///         .arg(0)
    ///         .arg(99)
    ///         .query_async(&mut redis.allowing(Duration::from_secs(4))).await?;
    /// # Ok(()) }
    /// ```
    pub fn allowing(&self, longer: Duration) -> Self {
        Self { inner: Arc::clone(&self.inner), allowance: longer }
    }

    /// Sends a command, without the boxed futures that the traits of the `redis` crate require.
    pub async fn command(&self, cmd: &Cmd) -> Result<Value, RedisError> {
        match &self.inner.route {
            Route::Link(link, _) => link.command(cmd, self.allowance).await,
            Route::Cluster(cluster) => cluster.connection().await?.req_packed_command(cmd).await,
        }
    }

    /// Sends a command without a key to the server that has this key: in a Cluster, `SCAN` sees
    /// only one node's keys.
    pub async fn command_near(&self, cmd: Cmd, key: &str) -> Result<Value, RedisError> {
        match &self.inner.route {
            Route::Link(link, _) => link.command(&cmd, self.allowance).await,
            Route::Cluster(cluster) => {
                let node = SingleNodeRoutingInfo::SpecificNode(NodeRoute::with_key(
                    key.as_bytes(),
                    SlotAddr::Master,
                ));
                cluster.connection().await?.route_command(cmd, RoutingInfo::SingleNode(node)).await
            }
        }
    }

    async fn pipeline(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> Result<Vec<Value>, RedisError> {
        match &self.inner.route {
            Route::Link(link, _) => link.pipeline(pipeline, offset, count, self.allowance).await,
            Route::Cluster(cluster) => {
                cluster.connection().await?.req_packed_commands(pipeline, offset, count).await
            }
        }
    }
}

impl Cluster {
    async fn connection(&self) -> Result<ClusterConnection, RedisError> {
        let mut made = self.connection.lock().await;
        if let Some((connection, _)) = made.as_ref().filter(|(_, anchor)| anchor.holds()) {
            return Ok(connection.clone());
        }
        let connection = self.client.get_async_connection().await?;
        *made = Some((connection.clone(), Anchor::drop_here()));
        Ok(connection)
    }
}

fn cluster(nodes: &[redis::ConnectionInfo], config: &Config) -> ClusterClientBuilder {
    ClusterClientBuilder::new(nodes.to_vec())
        .use_protocol(redis::ProtocolVersion::RESP3)
        .connection_timeout(config.connect_timeout)
        .response_timeout(config.response_timeout)
        .retries(config.cluster_retries)
        .max_retry_wait(100)
}

impl ConnectionLike for Redis {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.command(cmd))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.pipeline(pipeline, offset, count))
    }

    fn get_db(&self) -> i64 {
        match &self.inner.address.shape {
            Shape::Single(info) | Shape::Sentinel { master: info, .. } => {
                info.redis_settings().db()
            }
            Shape::Cluster(_) => 0,
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redis").field(&self.inner.address).finish()
    }
}

/// Separate connection from [`Redis::dedicated`].
#[derive(Clone)]
pub enum Dedicated {
    /// To a server.
    Single(MultiplexedConnection),
    /// To a Cluster.
    Cluster(Box<ClusterConnection>),
}

impl fmt::Debug for Dedicated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dedicated")
    }
}

impl ConnectionLike for Dedicated {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
