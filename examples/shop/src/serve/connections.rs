//! Connections of the web process: slow clients are cut off, and a stop has an end.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Connections at a time; further ones wait to be accepted. Each has a file: permit the process
/// more (`LimitNOFILE`).
const MOST: usize = 4_000;

/// Serves HTTP/1 until `stop` completes; a balancer in front speaks other versions with clients.
/// Then requests in progress get the time `drain`, after which their connections are cut. A client
/// has the time `head` to send the head of a request.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    head: Duration,
    stop: impl Future<Output = ()>,
    drain: Duration,
) {
    let mut server = Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(head);
    let places = Arc::new(Semaphore::new(MOST));
    let (cut, is_cut) = tokio::sync::watch::channel(());
    let (graceful, mut stop) = (GracefulShutdown::new(), pin!(stop));
    let mut has_failed = false;
    loop {
        let accept = async {
            // Never closed.
            let place = places.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = &mut stop => break,
            accepted = accept => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files: the next connections wait until some are closed.
                if !std::mem::replace(&mut has_failed, true) {
                    tracing::warn!(%error, "could not accept connections; trying again");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        has_failed = false;
        let service = service(app.clone(), peer);
        let connection = server.serve_connection(TokioIo::new(stream), service);
        let (connection, mut is_cut) = (graceful.watch(connection), is_cut.clone());
        tokio::spawn(async move {
            let _place = place;
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
