//! The example `axum_pages` as its users run it: alone, and behind a real nginx.
#![cfg(feature = "axum")]
#![allow(clippy::unwrap_used)]

use std::process::Command;

use anyhow::{Context, Result};
use testkit::{Process, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn listens(port: u16) -> Result<()> {
    eventually("a server to listen", async || {
        TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
    })
    .await
}

fn example(port: u16, more: &[&str], folder: &std::path::Path) -> Result<Process> {
    let example = std::env::current_exe()?
        .parent()
        .and_then(|deps| deps.parent())
        .context("target")?
        .join("examples/axum_pages");
    let mut command = Command::new(example);
    command.args(["--listen", &format!("127.0.0.1:{port}")]).args(more);
    Process::spawn(&command, None, &folder.join(format!("{port}.log")))
}

/// Returns the `Cache-Status` of a response, and its body.
async fn ask(port: u16, method: &str, path: &str, body: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    // A GET request has no Content-Length.
    let head = if method == "GET" { head.replace("Content-Length: 0\r\n", "") } else { head };
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    let status = head.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("cache-status: ").map(str::to_owned)
    });
    Ok((status.unwrap_or_default(), body.to_owned()))
}

async fn pages_are_cached_until_what_they_show_changes(port: u16) -> Result<()> {
    assert_eq!(ask(port, "GET", "/products/7", "").await?.1.trim(), "mug 7: 700 cents");
    let (status, body) = ask(port, "GET", "/products/7", "").await?;
    assert!(status.starts_with("scale; hit"), "{status}");
    assert_eq!(body.trim(), "mug 7: 700 cents");
    ask(port, "GET", "/products", "").await?;
    assert!(ask(port, "GET", "/products", "").await?.0.starts_with("scale; hit"));
    ask(port, "PUT", "/products/7", "450").await?;
    assert_eq!(ask(port, "GET", "/products/7", "").await?.1.trim(), "mug 7: 450 cents");
    assert!(ask(port, "GET", "/products", "").await?.1.contains("mug 7: 450 cents"));
    Ok(())
}

#[tokio::test]
async fn an_axum_app_has_its_pages_cached() -> Result<()> {
    let (folder, port) = (tempfile::tempdir()?, free_port()?);
    let _app = example(port, &[], folder.path())?;
    listens(port).await?;
    pages_are_cached_until_what_they_show_changes(port).await
}

#[tokio::test]
async fn behind_nginx_too() -> Result<()> {
    let (folder, port, front) = (tempfile::tempdir()?, free_port()?, free_port()?);
    let app = example(port, &["--behind-proxy"], folder.path())?;
    let written = include_str!("../examples/nginx.conf");
    let config =
        written.replace(":8002", &format!(":{port}")).replace(":8003", &format!(":{front}"));
    assert_ne!(config, written);
    std::fs::write(folder.path().join("nginx.conf"), config)?;
    let nginx = ["/usr/sbin/nginx", "nginx"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .unwrap_or("nginx");
    let mut command = Command::new(nginx);
    command.arg("-p").arg(folder.path()).args(["-c", "nginx.conf"]);
    let proxy = Process::spawn(&command, None, &folder.path().join("nginx.log"))?;
    listens(port).await.with_context(|| app.log_tail())?;
    listens(front).await.with_context(|| proxy.log_tail())?;
    pages_are_cached_until_what_they_show_changes(front).await
}

/// Two nested routers answer the same remaining path.
#[tokio::test]
async fn nested_routers_do_not_share_pages() -> Result<()> {
    use axum::{Router, routing::get};
    let cache = scale_cache::Cache::memory();
    let list = |whose: &'static str| {
        let page = get(async move || ([("cache-control", "max-age=600")], whose));
        Router::new().route("/list", page).layer(scale_cache::http::HttpCacheLayer::new(&cache))
    };
    let app = Router::new().nest("/shop", list("the shop's")).nest("/admin", list("the admin's"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    for _ in 0..2 {
        assert_eq!(ask(port, "GET", "/admin/list", "").await?.1, "the admin's");
        assert_eq!(ask(port, "GET", "/shop/list", "").await?.1, "the shop's");
    }
    Ok(())
}
