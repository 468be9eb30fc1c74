//! A small shop on axum whose pages are cached, and invalidated by what they show.
//!
//! `cargo run -p scale-cache --features axum --example axum_pages`, then
//! `curl -i http://127.0.0.1:8002/products/7` twice: the second answer says `Cache-Status: scale; hit`. After
//! `curl -X PUT -d 450 http://127.0.0.1:8002/products/7` it is made anew, and so is the list.
//!
//! Behind a proxy that ends TLS (`nginx.conf` beside this file): `--behind-proxy`. What the application answers may depend on
//! `X-Forwarded-Proto` then, so pages are kept apart by it.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Router, serve};
use clap::Parser;
use parking_lot::Mutex;
use scale_cache::Cache;
use scale_cache::http::HttpCacheLayer;

#[derive(Parser)]
struct Arguments {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:8002")]
    listen: SocketAddr,
    /// The place where pages are kept: `memory:` or, with the feature `redis`, a Redis address.
    #[arg(long, default_value = "memory:")]
    cache: String,
    /// A proxy of your own says in `X-Forwarded-Proto` how it was asked.
    #[arg(long)]
    behind_proxy: bool,
}

#[derive(Clone)]
struct Shop {
    /// Prices in cents, by number: the database, say.
    prices: Arc<Mutex<BTreeMap<u32, u32>>>,
    cache: Cache,
}

/// For a minute, for everybody, and until the tag is invalidated.
fn cached(tags: &str, body: String) -> impl IntoResponse + use<> {
    ([("cache-control", "public, max-age=60".to_owned()), ("surrogate-key", tags.to_owned())], body)
}

async fn product(State(shop): State<Shop>, Path(number): Path<u32>) -> impl IntoResponse {
    let price = shop.prices.lock().get(&number).copied();
    match price {
        Some(cents) => cached(&format!("product:{number}"), format!("mug {number}: {cents} cents\n")).into_response(),
        None => (StatusCode::NOT_FOUND, "there is no such product\n").into_response(),
    }
}

async fn products(State(shop): State<Shop>) -> impl IntoResponse {
    let (mut tags, mut list) = (String::from("products"), String::new());
    for (number, cents) in &*shop.prices.lock() {
        let _ = write!(tags, " product:{number}");
        let _ = writeln!(list, "mug {number}: {cents} cents");
    }
    cached(&tags, list)
}

async fn set_price(State(shop): State<Shop>, Path(number): Path<u32>, cents: String) -> StatusCode {
    let Ok(cents) = cents.trim().parse() else { return StatusCode::UNPROCESSABLE_ENTITY };
    let is_new = shop.prices.lock().insert(number, cents).is_none();
    // After the write: what is made from here on has it.
    let list = is_new.then(|| "products".to_owned());
    shop.cache.invalidate_tags(list.into_iter().chain([format!("product:{number}")])).await;
    StatusCode::NO_CONTENT
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let cache = Cache::connect(&arguments.cache, "shop").await?;
    let shop = Shop { prices: Arc::new(Mutex::new((1..=9).map(|number| (number, number * 100)).collect())), cache };
    let mut pages = HttpCacheLayer::new(&shop.cache);
    if arguments.behind_proxy {
        pages = pages.keyed_by([HeaderName::from_static("x-forwarded-proto")]);
    }
    // In a nested router, too, pages are kept by the whole address that was asked for.
    let catalogue =
        Router::new().route("/", get(products)).route("/{number}", get(product).put(set_price)).layer(pages).with_state(shop);
    let app = Router::new().nest("/products", catalogue);
    println!("http://{}/products/7", arguments.listen);
    serve(tokio::net::TcpListener::bind(arguments.listen).await?, app).await?;
    Ok(())
}
