//! HTTP responses, cached: a tower layer for any service of `http` requests.
//!
//! A shared cache by RFC 9111, with `stale-while-revalidate` and `stale-if-error` (RFC 5861), `CDN-Cache-Control` (RFC 9213) and
//! `Cache-Status` (RFC 9211). It stores into a [`Cache`](crate::Cache): in process, on Redis, or both, and what is invalidated there is
//! invalidated here: a response that carries `Surrogate-Key: product:7` or `Cache-Tag: product:7` goes with
//! [`Cache::invalidate_tags`](crate::Cache::invalidate_tags)`(["product:7"])`, together with the objects that carry the tag.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use scale_cache::Cache;
//! use scale_cache::http::HttpCacheLayer;
//! use tower::{Layer, ServiceExt};
//!
//! let cache = Cache::memory();
//! let app = tower::service_fn(async |_: Request<Full<Bytes>>| {
//!     let page = Response::builder().header("cache-control", "max-age=60").header("surrogate-key", "product:7");
//!     Ok::<_, std::io::Error>(page.body(Full::from("a blue mug")).unwrap())
//! });
//! let app = HttpCacheLayer::new(&cache).layer(app);
//! let ask = || app.clone().oneshot(Request::get("https://shop.example/products/7").body(Full::default()).unwrap());
//!
//! assert_eq!(ask().await.unwrap().headers()["cache-status"], "scale; fwd=uri-miss; fwd-status=200; stored");
//! assert!(ask().await.unwrap().headers()["cache-status"].as_bytes().starts_with(b"scale; hit"));
//! cache.invalidate_tags(["product:7"]).await;
//! assert_eq!(ask().await.unwrap().headers()["cache-status"], "scale; fwd=uri-miss; fwd-status=200; stored");
//! # }
//! ```
//!
//! # What is promised
//!
//! | when | then |
//! | --- | --- |
//! | a response says `private` or `no-store`, or answers a request with `Authorization` and does not say that it is for all | it is not stored |
//! | a request carries cookies, or the answer sets some | it is stored only if it says `public` or `s-maxage` ([`HttpCacheLayer::as_the_standard_permits`] takes `max-age` for enough) |
//! | many ask for the same at once | one request goes to the origin for each layer value and its clones; the others get its answer, if it may be stored; if not, each asks, and for ten seconds nobody waits for the first |
//! | one who asks has cookies or credentials with which the answer may not be stored | that client's answer is its own; the others share one as before |
//! | a client goes away | the fetch goes on, for the others and for the cache |
//! | a body is on its way | it goes to the client as it comes; the others have it when it is whole. If nothing comes for [`stall_timeout`](HttpCacheLayer::stall_timeout) (6 s), they ask for themselves |
//! | a body is larger than [`HttpCacheLayer::largest`], breaks off, or is not as long as its head says | it goes to the client as it comes, and is not stored |
//! | a request has `Upgrade` (a websocket) | it is passed through, and its answer keeps its fields |
//! | the clock of this machine is set | pages age as before |
//! | something is invalidated while it is fetched | what comes is not kept; those who asked before the invalidation get it, those who asked after it share the next fetch |
//! | a request that changes something succeeds (`POST`, `PUT`, `DELETE` and all that are not safe) | its URL, and those in `Location` and `Content-Location` on the same host, are invalidated, with all their variants |
//! | the same, of another URL | it stays, but for one in 65,536: URLs share that many tags, so that their number is bounded |
//! | the origin fails, or answers 500, 502, 503 or 504 | what is stored is served as long as its `stale-if-error` says, unless it says `must-revalidate` |
//! | a `GET` has a body, or may have one | it is passed through: what it says is no part of what pages are kept under |
//! | a request has two `Host` headers, one that is none, or another host in its address | it is passed through: the application may take it for something else |
//! | two layers keep into one cache, or a router has taken off what an address began with | give each a [`namespace`](HttpCacheLayer::namespace), or the [`original_uri`](HttpCacheLayer::original_uri); the feature `axum` does the latter for axum's `nest` |
//! | an application answers by another header than `Host`, as `X-Forwarded-Proto` | name it: [`HttpCacheLayer::keyed_by`]. Those that are neither in `Vary` nor named tell no pages apart |
//! | a client has it already (`If-None-Match`, `If-Modified-Since`) | 304, from the store |
//! | a client wants a part (`Range`) | 206, from the store; what is not stored whole is asked of the origin |
//! | Redis is slow or down | as for all that is cached: the first level, and the origin |
//! | a response has more than 60 tags, or one that is no UTF-8 | it is not stored: nobody could invalidate it by all of them |
//! | a tag is seen for the first time, on Redis | the first response that carries it is not stored, the next is: nobody can know yet what was invalidated when |
//!
//! Variants (`Vary`) are told apart by what the request says in one form for all ways to write it; for `Accept-Language` and
//! `Accept-Encoding` neither order nor case counts.
//!
//! # Against the public test suite
//!
//! `cargo run --release -p scale-cache --features http --example caching_proxy` is a reverse proxy made of this layer. The suite whose
//! results for nginx, Varnish and others are public (npm `http-cache-tests` 0.4.5) runs against it in `tests/http_suite.rs`.
//! See that file for the marks, and why each miss is one. Of the suite's newest state (commit b55b8bd of 2026-07-20, in no registry) it
//! passes 158 of 160 required and 93 of 105 optimal tests. It misses those that want cookies shared, interim responses passed on (which
//! hyper's server cannot send), `POST` responses stored, a language chosen, and parts stored by themselves.

mod address;
mod asked;
mod body;
mod directives;
mod fetch;
mod fill;
mod flight;
mod freshness;
mod layer;
mod references;
mod service;
mod status;
mod stored;

pub use self::body::HttpCacheBody;
pub use self::layer::{HttpCache, HttpCacheFuture, HttpCacheLayer};
