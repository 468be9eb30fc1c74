//! Connections that continue after their response, as WebSockets do, and the permits they hold.
#![cfg(feature = "axum")]
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router, routing::get};
use scale_limit::layer::Places;
use scale_limit::{LimitLayer, Limiter, Policy};
use testkit::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn switching() -> Response {
    let mut answer = StatusCode::SWITCHING_PROTOCOLS.into_response();
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("echo"));
    answer
}

async fn echo(mut request: Request) {
    let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
    let mut stream = hyper_util::rt::TokioIo::new(upgraded);
    let mut bytes = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
        stream.write_all(&bytes[..length]).await.unwrap();
    }
}

/// Holds its permit in its task.
async fn holding(Extension(places): Extension<Places>, request: Request) -> Response {
    tokio::spawn(async move {
        echo(request).await;
        drop(places);
    });
    switching()
}

/// Keeps only the connection of its request.
async fn forgetful(mut request: Request) -> Response {
    request.extensions_mut().remove::<Places>();
    tokio::spawn(echo(request));
    switching()
}

async fn upgrade(address: std::net::SocketAddr, path: &str) -> Result<(String, TcpStream)> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await?);
    }
    Ok((String::from_utf8_lossy(&answer[9..12]).into_owned(), stream))
}

#[tokio::test]
async fn a_place_is_held_until_the_connection_ends_or_the_upgrade_is_refused() -> Result<()> {
    let (limiters, _server) = limiters().await?;
    for limiter in limiters {
        let limits =
            LimitLayer::new(limiter).policy(Policy::concurrency("chat", 2), |_| Some("all".into()));
        let app = Router::new()
            .route("/chat", get(holding))
            .route("/forgets", get(forgetful))
            .layer(limits.preserve_body(Body::new));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, app).await });
        let (status, first) = upgrade(address, "/chat").await?;
        assert_eq!(status, "101");
        let (status, mut second) = upgrade(address, "/chat").await?;
        assert_eq!(status, "101");
        for _ in 0..3 {
            second.write_all(b"hello").await?;
            let mut bytes = [0; 5];
            second.read_exact(&mut bytes).await?;
            assert_eq!((&bytes, upgrade(address, "/chat").await?.0), (b"hello", "429".to_owned()));
        }
        drop(first);
        let third = eventually("a place to be free", async || {
            upgrade(address, "/chat").await.ok().filter(|(status, _)| status == "101")
        })
        .await?;
        drop((second, third));
        eventually("both to be free", async || {
            let both =
                (upgrade(address, "/chat").await.ok()?, upgrade(address, "/chat").await.ok()?);
            (both.0.0 == "101" && both.1.0 == "101").then_some(())
        })
        .await?;
        eventually("nobody to hold a place", async || {
            upgrade(address, "/forgets").await.ok().filter(|(status, _)| status == "500")
        })
        .await?;
    }
    Ok(())
}

#[cfg(not(feature = "redis"))]
async fn limiters() -> Result<(Vec<Limiter>, ())> {
    Ok((vec![Limiter::memory()], ()))
}

#[cfg(feature = "redis")]
async fn limiters() -> Result<(Vec<Limiter>, testkit::Redis)> {
    let server = testkit::Redis::start().await?;
    let shared = Limiter::connect(&server.url(), "test")
        .await?
        .store_timeout(std::time::Duration::from_secs(5));
    Ok((vec![Limiter::memory(), shared], server))
}
