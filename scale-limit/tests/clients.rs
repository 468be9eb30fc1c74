//! Clients as servers and proxies report them: the first example of the README as a user runs it,
//! and real proxies in front.
#![cfg(feature = "axum")]
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};
use axum::routing::get;
use axum::{Router, body::Body};
use scale_limit::client::{ClientIp, Header, Peer};
use scale_limit::{LimitLayer, Limiter, Policy};
use testkit::{Process, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn listens(port: u16) -> Result<()> {
    eventually("a server to listen", async || {
        TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
    })
    .await
}

/// Sends a request; returns the status of the response, and its body.
async fn ask(port: u16, method: &str, path: &str, fields: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\nContent-Length: 0\r\n\
         {fields}\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| answer.to_string())?;
    Ok((status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())))
}

async fn statuses(port: u16, method: &str, path: &str, count: usize) -> Result<Vec<u16>> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(ask(port, method, path, "").await?.0);
    }
    Ok(all)
}

#[tokio::test]
async fn the_first_example_limits() -> Result<()> {
    let (readme, example) =
        (include_str!("../README.md"), include_str!("../examples/axum_limits.rs"));
    let block =
        readme.split("```rust,no_run\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let (_, shown) = example.split_once("\n\n").unwrap();
    assert_eq!(block, shown, "the README shows what is run here");

    let (folder, port) = (tempfile::tempdir()?, free_port()?);
    let path = std::env::current_exe()?
        .parent()
        .and_then(|deps| deps.parent())
        .context("target")?
        .join("examples/axum_limits");
    let mut command = Command::new(path);
    command.arg(format!("127.0.0.1:{port}"));
    let server = Process::spawn(&command, None, &folder.path().join("log"))?;
    listens(port).await.with_context(|| server.log_tail())?;
    assert_eq!(statuses(port, "POST", "/login", 7).await?, [200, 200, 200, 200, 200, 429, 429]);
    assert_eq!(statuses(port, "GET", "/", 3).await?, [200, 200, 200]);
    Ok(())
}

/// Starts an application that permits two requests a minute per client.
async fn app(clients: ClientIp, with_peer: bool) -> Result<u16> {
    let limits = {
        let clients = clients.clone();
        LimitLayer::new(Limiter::memory())
            .policy(Policy::per_minute("site", 2), move |request| clients.key(request))
    };
    let who = move |request: axum::extract::Request| {
        let key = clients.key(&request);
        async move { key.map_or_else(|| "nobody".to_owned(), |key| key.to_string()) }
    };
    let app = Router::new().route("/", get(who)).layer(limits.preserve_body(Body::new));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        if with_peer {
            axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
        } else {
            axum::serve(listener, app).await
        }
    });
    Ok(port)
}

/// A server that does not report the client's address: the request is refused with an error, or
/// admitted by an option with a clear name.
#[tokio::test]
async fn an_unknown_client_is_refused() -> Result<()> {
    let port = app(ClientIp::direct(), false).await?;
    assert_eq!(statuses(port, "GET", "/", 3).await?, [500, 500, 500]);
    let port = app(ClientIp::direct().lenient(), false).await?;
    assert_eq!(statuses(port, "GET", "/", 3).await?, [200, 200, 200]);
    let port = app(ClientIp::direct(), true).await?;
    assert_eq!(statuses(port, "GET", "/", 3).await?, [200, 200, 429]);
    Ok(())
}

/// The gate, too: a denied network is not admitted because the client is unknown.
#[tokio::test]
async fn the_gate_refuses_who_is_unknown() -> Result<()> {
    use scale_limit::client::Networks;
    use tower::{Layer, ServiceExt, service_fn};
    let denied = Networks::new(["192.0.2.0/24".parse()?]);
    for (clients, status) in [(ClientIp::direct(), 500), (ClientIp::direct().lenient(), 200)] {
        let layer = LimitLayer::new(Limiter::memory()).deny(&clients, denied.clone());
        let service = layer.layer(service_fn(async |_: http::Request<()>| {
            Ok::<_, std::io::Error>(http::Response::new(Body::empty()))
        }));
        assert_eq!(
            service.clone().oneshot(http::Request::new(())).await?.status().as_u16(),
            status
        );
        let mut request = http::Request::new(());
        request.extensions_mut().insert(Peer("192.0.2.7:1".parse()?));
        assert_eq!(service.oneshot(request).await?.status().as_u16(), 403);
    }
    Ok(())
}

/// Headers that a client may forge, as far as the proxy does not write them.
const LIES: &str = "Forwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\n\
    X-Forwarded-For: 1.1.1.1, \"open\r\nCF-Connecting-IP: 1.1.1.1\r\n";

/// Checks that the proxy's client is used, whatever the client has written itself, and that its
/// limit holds.
async fn holds(front: u16, client: &str) -> Result<()> {
    assert_eq!(ask(front, "GET", "/", LIES).await?, (200, client.to_owned()));
    let other = LIES.replace("1.1.1.1", "1.1.1.2");
    assert_eq!(ask(front, "GET", "/", &other).await?.0, 200);
    assert_eq!(
        ask(front, "GET", "/", &LIES.replace("1.1.1.1", "1.1.1.3")).await?.0,
        429,
        "another lie is no other client"
    );
    Ok(())
}

#[tokio::test]
async fn behind_a_real_nginx() -> Result<()> {
    // By the header that the proxy writes. The client has another address of the loopback network.
    for (header, writes, name) in [
        (
            Header::XForwardedFor,
            "X-Forwarded-For $proxy_add_x_forwarded_for",
            "appends to X-Forwarded-For",
        ),
        (
            Header::Forwarded,
            "Forwarded '$http_forwarded, for=\"$remote_addr\";proto=http'",
            "appends to Forwarded",
        ),
        (Header::XRealIp, "X-Real-IP $remote_addr", "writes X-Real-IP"),
    ] {
        let (folder, front) = (tempfile::tempdir()?, free_port()?);
        let back = app(ClientIp::behind(["127.0.0.1/32".parse()?], header), true).await?;
        // The proxy's own connections come from 127.0.0.1; the proxy treats its client as
        // 203.0.113.7.
        let config = format!(
            "daemon off; worker_processes 1; pid nginx.pid; error_log stderr; events {{ \
             worker_connections 64; }}\n\
             http {{ access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path \
             f; uwsgi_temp_path u; \
             scgi_temp_path s;\nserver {{ listen 127.0.0.1:{front}; set_real_ip_from 127.0.0.1; \
             real_ip_header X-Test-Client;\n\
             location / {{ proxy_pass http://127.0.0.1:{back}; proxy_set_header {writes}; }} }} }}"
        );
        std::fs::write(folder.path().join("nginx.conf"), config)?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(folder.path()).args(["-c", "nginx.conf"]);
        let proxy = Process::spawn(&command, None, &folder.path().join("log"))?;
        listens(front).await.with_context(|| proxy.log_tail())?;
        let (status, client) =
            ask(front, "GET", "/", &format!("{LIES}X-Test-Client: 203.0.113.7\r\n")).await?;
        assert_eq!((status, client.as_str()), (200, "203.0.113.7"), "nginx {name}");
        assert_eq!(
            ask(front, "GET", "/", "X-Test-Client: 203.0.113.7\r\nForwarded: for=9.9.9.9\r\n")
                .await?
                .0,
            200
        );
        assert_eq!(
            ask(front, "GET", "/", "X-Test-Client: 203.0.113.7\r\nX-Forwarded-For: 9.9.9.9\r\n")
                .await?
                .0,
            429,
            "nginx {name}"
        );
        assert_eq!(
            ask(front, "GET", "/", "X-Test-Client: 203.0.113.8\r\n").await?,
            (200, "203.0.113.8".into()),
            "nginx {name}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn behind_a_real_haproxy() -> Result<()> {
    let (folder, front) = (tempfile::tempdir()?, free_port()?);
    let back =
        app(ClientIp::behind(["127.0.0.1/32".parse()?], Header::XForwardedFor), true).await?;
    let config = format!(
        "defaults\n  mode http\n  timeout connect 2s\n  timeout client 5s\n  timeout server 5s\n\
         frontend f\n  bind 127.0.0.1:{front}\n  option forwardfor\n  default_backend b\n\
         backend b\n  server s 127.0.0.1:{back}\n"
    );
    std::fs::write(folder.path().join("haproxy.cfg"), config)?;
    let mut command = Command::new("/usr/sbin/haproxy");
    command.args(["-db", "-f"]).arg(folder.path().join("haproxy.cfg"));
    let proxy = Process::spawn(&command, None, &folder.path().join("log"))?;
    listens(front).await.with_context(|| proxy.log_tail())?;
    holds(front, "127.0.0.1").await
}

#[tokio::test]
async fn by_the_proxy_protocol() -> Result<()> {
    let (folder, front, back) = (tempfile::tempdir()?, free_port()?, free_port()?);
    let path = std::env::current_exe()?
        .parent()
        .and_then(|deps| deps.parent())
        .context("target")?
        .join("examples/proxy_protocol");
    let mut command = Command::new(path);
    command.arg(format!("127.0.0.1:{back}"));
    let server = Process::spawn(&command, None, &folder.path().join("server.log"))?;
    listens(back).await.with_context(|| server.log_tail())?;
    let config = format!(
        "defaults\n  mode http\n  timeout connect 2s\n  timeout client 5s\n  timeout server 5s\n\
         frontend f\n  bind 127.0.0.1:{front}\n  http-request \
         set-src req.hdr(x-test-client)\n  default_backend b\n\
         backend b\n  http-reuse never\n  server s 127.0.0.1:{back} send-proxy-v2\n"
    );
    std::fs::write(folder.path().join("haproxy.cfg"), config)?;
    let mut command = Command::new("/usr/sbin/haproxy");
    command.args(["-db", "-f"]).arg(folder.path().join("haproxy.cfg"));
    let proxy = Process::spawn(&command, None, &folder.path().join("log"))?;
    listens(front).await.with_context(|| proxy.log_tail())?;
    for (client, key) in [("203.0.113.7", "203.0.113.7"), ("2001:db8::7", "2001:db8::7")] {
        for n in 0..7 {
            let lies = format!("{LIES}X-Test-Client: {client}\r\n");
            let (status, body) = ask(front, "GET", "/", &lies).await?;
            assert_eq!(status, if n < 5 { 200 } else { 429 }, "{body}");
            assert!(n >= 5 || body == format!("hello, {key}\n"), "{body}");
        }
    }
    // A connection without a PROXY header, or not from the proxy, is closed without a response.
    let mut stream = TcpStream::connect(("127.0.0.1", back)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    Ok(())
}
