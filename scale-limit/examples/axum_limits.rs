//! The first example of the README:
//! `cargo run -p scale-limit --features axum --example axum_limits`.

use std::net::SocketAddr;

use axum::routing::{get, post};
use axum::{Router, body::Body, serve};
use http::Method;
use scale_limit::client::ClientIp;
use scale_limit::layer::Throttle;
use scale_limit::{LimitLayer, Limiter, Policy};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let limiter = Limiter::connect("memory:", "shop").await?; // or "redis://…"
    // Behind a proxy: ClientIp::behind(["10.0.0.0/8".parse()?], Header::XForwardedFor)
    let clients = ClientIp::direct();
    let (everybody, guests) = (clients.clone(), clients);
    let login = Policy::per_minute("login", 5);
    let login = Throttle::new(login, move |request| guests.key(request));
    let limits = LimitLayer::new(limiter)
        .policy(Policy::per_second("site", 50).burst(200), move |head| everybody.key(head))
        .throttle(login.method(Method::POST).path("/login"));

    let app = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/login", post(|| async { "welcome" }))
        .layer(limits.preserve_body(Body::new));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into());
    let listener = tokio::net::TcpListener::bind(address).await?;
    // Passes the peer's address to the limits, with the feature `axum` of scale-limit.
    serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
