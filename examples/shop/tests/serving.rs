//! The web process among slow clients, failing servers and stops.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::{Shop, Visitor, start};
use testkit::{Postgres, Redis, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NO_LIMIT: &str = "[limit]\nsite = { name = \"site\", quota = 1000000, per = \"1s\" }\n";

async fn on_sqlite(folder: &Path, tables: &str) -> Result<Shop> {
    let url = format!("sqlite://{}?mode=rwc", folder.join("shop.db").display());
    let config = folder.join("shop.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\noperations = \"127.0.0.1:0\"\nplain_http = true\n\
         [database]\nurl = {url:?}\n[queue]\nurl = {url:?}\n[session]\nurl = {url:?}\n\
         {NO_LIMIT}{tables}"
    );
    std::fs::write(&config, text)?;
    Shop::open(folder, &["--config", &config.display().to_string()]).await
}

/// Sends a part of a request, and nothing more.
async fn part(shop: &Shop, text: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(shop.base.trim_start_matches("http://")).await?;
    stream.write_all(text.as_bytes()).await?;
    Ok(stream)
}

/// Waits for the end of a connection; returns what it answered.
async fn end(mut stream: TcpStream) -> Result<String> {
    let mut answer = Vec::new();
    // A connection that is cut may be reset.
    let _ = tokio::time::timeout(testkit::DEADLINE, stream.read_to_end(&mut answer))
        .await
        .context("the connection is still open")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_cut_off() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let timeouts = "[timeouts]\nhead = \"500ms\"\nbody_part = \"500ms\"\n";
    let shop = on_sqlite(folder.path(), timeouts).await?;
    let mut slow = Vec::new();
    for _ in 0..200 {
        slow.push(part(&shop, "GET / HTTP/1.1\r\nhost: sh").await?);
    }
    // Nothing at all, and the beginnings of other protocols.
    for silent in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "\x16\x03\x01"] {
        slow.push(part(&shop, silent).await?);
    }
    let form = "POST /cart HTTP/1.1\r\nhost: shop\r\ncontent-length: 20\r\n\
                content-type: application/x-www-form-urlencoded\r\n\r\nproduct=1";
    let body = part(&shop, form).await?;
    let page = Visitor::new().get(&shop.base, "/").await?;
    assert_eq!(page.status, 200, "beside them, pages are served");
    for stream in slow {
        let answer = end(stream).await?;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    assert!(!end(body).await?.contains(" 303 "), "a form that never ends changes nothing");
    shop.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_whatever_clients_do() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = on_sqlite(folder.path(), "[stop]\ndrain = \"1s\"\n").await?;
    let form = "POST /cart HTTP/1.1\r\nhost: shop\r\ncontent-length: 20\r\n\
                content-type: application/x-www-form-urlencoded\r\n\r\nproduct=1";
    let (head, body) = (part(&shop, "GET / HTTP/1.1\r\n").await?, part(&shop, form).await?);
    let idle = part(&shop, "").await?;
    // The server has read what they sent once it has answered another client.
    assert_eq!(Visitor::new().get(&shop.base, "/").await?.status, 200);
    shop.process.terminate()?;
    eventually("the end", async || (!shop.process.is_running()).then_some(())).await?;
    for stream in [head, body, idle] {
        end(stream).await?;
    }
    assert!(shop.log().contains("cutting connections"), "{}", shop.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_leaves_says_so_and_still_serves() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = on_sqlite(folder.path(), "[stop]\nlameduck = \"2s\"\n").await?;
    let mut probe = Visitor::new();
    assert_eq!(probe.get(&shop.base, "/health/ready").await?.status, 200);
    let asked = Instant::now();
    shop.process.terminate()?;
    eventually("the news", async || {
        let ready = Visitor::new().get(&shop.base, "/health/ready").await.ok()?;
        (ready.status == 503).then_some(())
    })
    .await?;
    assert_eq!(probe.get(&shop.base, "/health/live").await?.status, 200);
    assert_eq!(Visitor::new().get(&shop.base, "/products/1").await?.status, 200);
    let operations = shop.operations.clone().context("an address for operators")?;
    assert_eq!(Visitor::new().get(&operations, "/metrics").await?.status, 200);
    eventually("the end", async || (!shop.process.is_running()).then_some(())).await?;
    assert!(asked.elapsed() > Duration::from_secs(2), "it left early");
    Ok(())
}

/// Without Redis the catalogue is served, to visitors with a session too, and the process stays in
/// the balancer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_browse_without_redis() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (postgres, redis) = tokio::try_join!(Postgres::start(0), Redis::start())?;
    let config = folder.path().join("shop.toml");
    let (database, shared) = (postgres.node(0).url(), redis.url());
    let text = format!(
        "listen = \"127.0.0.1:0\"\nplain_http = true\n[database]\nurl = {database:?}\n[cache]\n\
         url = {shared:?}\n[queue]\nurl = {shared:?}\n[session]\nurl = {shared:?}\n\
         {NO_LIMIT}url = {shared:?}\n"
    );
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
    eventually("the products", async || (!seed.is_running()).then_some(())).await?;
    let shop = Shop::open(folder.path(), &["--config", &config, "serve"]).await?;
    let (mut known, mut guest) = (Visitor::new(), Visitor::new());
    let add = [("product", "1"), ("add", "1")];
    assert_eq!(known.post(&shop.base, "/cart", &add).await?.status, 200);

    redis.kill()?;
    let away = Instant::now();
    let mut pages = 0;
    while away.elapsed() < Duration::from_secs(3) {
        for path in ["/", "/?category=Desk", "/products/1", "/products/7"] {
            for visitor in [&mut known, &mut guest] {
                let page = visitor.get(&shop.base, path).await?;
                assert_eq!(page.status, 200, "{path} without Redis: {}", page.body);
                pages += 1;
            }
        }
        assert_eq!(guest.get(&shop.base, "/health/ready").await?.status, 200);
    }
    assert!(pages >= 8, "{pages} pages");
    assert_eq!(known.get(&shop.base, "/cart").await?.status, 503, "what needs the session says so");

    redis.restart().await?;
    let cart = eventually("the cart", async || {
        let page = known.clone().get(&shop.base, "/cart").await.ok()?;
        (page.status == 200).then_some(page.body)
    });
    assert!(cart.await?.contains("Classic oak bowl"), "nothing is lost");
    shop.close().await
}

/// A job that was stored with an order finds it, although no replica has it yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_does_not_wait_for_replicas() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let postgres = Postgres::start(1).await?;
    let (url, replica) = (postgres.node(0).url(), postgres.node(1).url());
    let config = folder.path().join("shop.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nplain_http = true\n[database]\nurl = {url:?}\n\
         replicas = [{replica:?}]\nmax_replica_lag = \"1h\"\n[queue]\nurl = {url:?}\n\
         [session]\nurl = {url:?}\n{NO_LIMIT}"
    );
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let (seed, _) = start(folder.path(), &["--config", &config, "seed"])?;
    eventually("the products", async || (!seed.is_running()).then_some(())).await?;
    postgres.caught_up().await?;
    let shop = Shop::open(folder.path(), &["--config", &config]).await?;
    postgres.node(1).pause_replay().await?;
    let mut visitor = Visitor::new();
    common::journey(&mut visitor, &[&shop.base], 7).await?;
    let attempt = eventually("the receipt", async || {
        let attempt = postgres.node(0).sql("select attempt from receipts").await.ok()?;
        (!attempt.trim().is_empty()).then(|| attempt.trim().to_owned())
    });
    assert_eq!(attempt.await?, "1", "{}", shop.log());
    shop.close().await
}
