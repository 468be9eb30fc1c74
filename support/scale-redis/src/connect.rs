//! Creation of connections to the server that an address currently denotes.

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ProtocolVersion, PushInfo, RedisError,
    RedisResult,
};
use tokio::sync::{Mutex, mpsc};

use crate::address::{Address, Shape};
use crate::config::Config;

/// Source of the server's address: fixed, or asked from the Sentinels each time.
pub(crate) enum Connector {
    Single(Box<Client>),
    Sentinel(Box<Mutex<SentinelClient>>),
}

impl Connector {
    /// Creates a connector; `None` for a Cluster, which finds its servers itself.
    pub(crate) fn new(address: &Address) -> RedisResult<Option<Self>> {
        Ok(match &address.shape {
            Shape::Single(info) => Some(Self::Single(Box::new(Client::open(resp3(info.clone()))?))),
            Shape::Sentinel { sentinels, name, master } => {
                let hosts = sentinels.iter().map(|info| info.addr().clone());
                let mut builder =
                    SentinelClientBuilder::new(hosts, name, SentinelServerType::Master)?
                        .set_client_to_redis_db(master.redis_settings().db())
                        .set_client_to_redis_protocol(ProtocolVersion::RESP3);
                if address.tls {
                    builder = builder.set_client_to_redis_tls_mode(redis::TlsMode::Secure);
                }
                if let Some(user) = master.redis_settings().username() {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = master.redis_settings().password() {
                    builder = builder.set_client_to_redis_password(password);
                }
                Some(Self::Sentinel(Box::new(Mutex::new(builder.build()?))))
            }
            Shape::Cluster(_) => None,
        })
    }

    /// Opens a new connection, within the connect timeout. `pushes` is notified when it is lost.
    /// The connection has no response timeout: the caller sets one.
    pub(crate) async fn connect(
        &self,
        config: &Config,
        pushes: Option<mpsc::UnboundedSender<PushInfo>>,
    ) -> RedisResult<MultiplexedConnection> {
        let mut settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(None);
        if let Some(pushes) = pushes {
            settings = settings.set_push_sender(pushes);
        }
        let attempt = async {
            self.client().await?.get_multiplexed_async_connection_with_config(&settings).await
        };
        // The client's own limit does not include the Sentinels, so one limit covers everything.
        tokio::time::timeout(config.connect_timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(too_late("connecting took too long")))
    }

    /// Returns the client of the current server.
    pub(crate) async fn client(&self) -> RedisResult<Client> {
        match self {
            Self::Single(client) => Ok((**client).clone()),
            Self::Sentinel(sentinel) => sentinel.lock().await.async_get_client().await,
        }
    }
}

/// Sets the protocol to RESP3, with which a lost connection is reported at once, not by the next
/// command.
pub(crate) fn resp3(info: ConnectionInfo) -> ConnectionInfo {
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    info.set_redis_settings(settings)
}

pub(crate) fn too_late(what: &'static str) -> RedisError {
    RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}
