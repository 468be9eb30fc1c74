//! A connection to the shop, opened again when it is gone.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest time for a response.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    address: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// Sends a request, and returns the whole response. A read whose connection the server has
    /// closed is sent again, as browsers do.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let is_read = request.method().is_safe();
        let was_open = self.connection.is_some();
        let again = request.clone();
        let answer = match self.once(request).await {
            Err(_) if is_read && was_open => self.once(again).await,
            answer => answer,
        };
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    async fn once(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let exchange = async {
            let connection = self.connect().await?;
            let response = connection.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Answer { status: head.status, headers: head.headers, body })
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await;
        let answer = answer.context("no answer within 30 s").flatten();
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    async fn connect(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        if let Some(connection) = &mut self.connection
            && connection.ready().await.is_err()
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            let stream = TcpStream::connect(self.address).await.context("connecting")?;
            stream.set_nodelay(true)?;
            let (connection, driver) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            self.connection = Some(connection);
        }
        self.connection.as_mut().context("a connection")
    }
}
