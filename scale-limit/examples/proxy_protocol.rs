//! hyper behind a proxy that speaks the PROXY protocol, as HAProxy's `send-proxy-v2` does:
//! `proxy_protocol 127.0.0.1:3000`.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use proxy_header::io::ProxiedStream;
use scale_limit::client::{ClientIp, Peer};
use scale_limit::{LimitLayer, Limiter, Policy};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

async fn hello(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let peer = request
        .extensions()
        .get::<Peer>()
        .map_or_else(String::new, |Peer(address)| address.ip().to_string());
    Ok(Response::new(Full::from(format!("hello, {peer}\n"))))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let clients = ClientIp::direct();
    let limits = LimitLayer::new(Limiter::memory())
        .policy(Policy::per_minute("site", 5), move |request| clients.key(request));
    let listener =
        TcpListener::bind(std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into()))
            .await?;
    loop {
        let (stream, from) = listener.accept().await?;
        // Only the proxy may connect: another client could claim any address.
        if from.ip() != IpAddr::V4(Ipv4Addr::LOCALHOST) {
            continue;
        }
        let limits = limits.clone();
        tokio::spawn(async move {
            let header =
                ProxiedStream::create_from_tokio(stream, proxy_header::ParseConfig::default());
            let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(2), header).await else {
                return;
            };
            // Health checks of the proxy have no address.
            let peer =
                Peer(stream.proxy_header().proxied_address().map_or(from, |told| told.source));
            let service = ServiceBuilder::new()
                .map_request(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(peer);
                    request
                })
                .layer(limits)
                .service_fn(hello);
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .await;
        });
    }
}
