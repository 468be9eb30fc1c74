//! A small shop on axum whose pages are cached, and invalidated by the data they show.
//!
//! Run `cargo run -p scale-cache --features axum --example axum_pages`, then
//! `curl -i http://127.0.0.1:8002/products/7` twice: the second response has
//! `Cache-Status: scale; hit`. After `curl -X PUT -d 450 http://127.0.0.1:8002/products/7` the page
//! and the list are generated again.
//!
//! Behind a proxy that terminates TLS (`nginx.conf` in this directory): `--behind-proxy`. The
//! application's responses may then depend on `X-Forwarded-Proto`, so pages are stored separately
//! by its value.

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
    /// Store of the pages: `memory:` or, with the feature `redis`, a Redis address.
    #[arg(long, default_value = "memory:")]
    cache: String,
    /// Trust `X-Forwarded-Proto`, which a proxy of your own sets to the scheme of the request
    #[arg(long)]
    behind_proxy: bool,
}

#[derive(Clone)]
struct Shop {
    /// Prices in cents, by product number; stands for the database.
    prices: Arc<Mutex<BTreeMap<u32, u32>>>,
    cache: Cache,
}

/// Makes a response that is cached for a minute, for all users, until a tag is invalidated.
fn cached(tags: &str, body: String) -> impl IntoResponse + use<> {
    ([("cache-control", "public, max-age=60".to_owned()), ("surrogate-key", tags.to_owned())], body)
}

async fn product(State(shop): State<Shop>, Path(number): Path<u32>) -> impl IntoResponse {
    let price = shop.prices.lock().get(&number).copied();
    match price {
        Some(cents) => {
            cached(&format!("product:{number}"), format!("mug {number}: {cents} cents\n"))
                .into_response()
        }
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
    // After the write: pages generated from now on contain it.
    let list = is_new.then(|| "products".to_owned());
    shop.cache.invalidate_tags(list.into_iter().chain([format!("product:{number}")])).await;
    StatusCode::NO_CONTENT
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let cache = Cache::connect(&arguments.cache, "shop").await?;
    let shop = Shop {
        prices: Arc::new(Mutex::new((1..=9).map(|number| (number, number * 100)).collect())),
        cache,
    };
    let mut pages = HttpCacheLayer::new(&shop.cache);
    if arguments.behind_proxy {
        pages = pages.keyed_by([HeaderName::from_static("x-forwarded-proto")]);
    }
    // In a nested router, too, pages are stored under the whole address of the request.
    let catalogue = Router::new()
        .route("/", get(products))
        .route("/{number}", get(product).put(set_price))
        .layer(pages)
        .with_state(shop);
    let app = Router::new().nest("/products", catalogue);
    println!("http://{}/products/7", arguments.listen);
    serve(tokio::net::TcpListener::bind(arguments.listen).await?, app).await?;
    Ok(())
}
