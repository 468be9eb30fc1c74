//! Connections of the web process: slow clients are cut off, and a stop has an end.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tower::ServiceExt;

/// Serves until `stop` completes. Then requests in progress get the time `drain`, after which their
/// connections are cut. A client has the time `head` to send the head of a request.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    head: Duration,
    stop: impl Future<Output = ()>,
    drain: Duration,
) {
    let mut server = Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(head);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(head).keep_alive_timeout(head);
    let (cut, is_cut) = tokio::sync::watch::channel(());
    let (graceful, mut stop) = (GracefulShutdown::new(), pin!(stop));
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files: the next connections wait until some are closed.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let service = service(app.clone(), peer);
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let (connection, mut is_cut) = (graceful.watch(connection.into_owned()), is_cut.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = is_cut.changed() => {}
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a connection has failed");
                }
            }
        });
    }
    drop(listener);
    let ended = tokio::time::timeout(drain, graceful.shutdown()).await;
    if ended.is_err() {
        tracing::warn!("cutting connections whose requests took longer than {drain:?}");
    }
    drop(cut);
}

/// Returns the service of a connection, which tells the layers who the peer is.
fn service(
    app: Router,
    peer: SocketAddr,
) -> impl hyper::service::Service<
    hyper::Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send + 'static,
> + Send
+ 'static {
    hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        app.clone().oneshot(request)
    })
}
