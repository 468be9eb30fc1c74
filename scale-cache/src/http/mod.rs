//! HTTP response cache: a tower layer for any service of `http` requests.
//!
//! It is a shared cache by RFC 9111, with `stale-while-revalidate` and `stale-if-error` (RFC 5861),
//! `CDN-Cache-Control` (RFC 9213) and `Cache-Status` (RFC 9211). It stores into a
//! [`Cache`](crate::Cache): in process, on Redis, or both, and shares its invalidations: a response
//! with `Surrogate-Key: product:7` or `Cache-Tag: product:7` is invalidated by
//! [`Cache::invalidate_tags`](crate::Cache::invalidate_tags)`(["product:7"])`, together with the
//! objects that have the tag.
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
//!     let page = Response::builder()
//!         .header("cache-control", "max-age=60")
//!         .header("surrogate-key", "product:7");
//!     Ok::<_, std::io::Error>(page.body(Full::from("a blue mug")).unwrap())
//! });
//! let app = HttpCacheLayer::new(&cache).layer(app);
//! let ask = || app.clone()
//!     .oneshot(Request::get("https://shop.example/products/7").body(Full::default()).unwrap());
//!
//! assert_eq!(
//!     ask().await.unwrap().headers()["cache-status"],
//!     "scale; fwd=uri-miss; fwd-status=200; stored",
//! );
//! assert!(ask().await.unwrap().headers()["cache-status"].as_bytes().starts_with(b"scale; hit"));
//! cache.invalidate_tags(["product:7"]).await;
//! assert_eq!(
//!     ask().await.unwrap().headers()["cache-status"],
//!     "scale; fwd=uri-miss; fwd-status=200; stored",
//! );
//! # }
//! ```
//!
//! # Guarantees
//!
//! | when | then |
//! | --- | --- |
//! | a response says `private` or `no-store`, or answers a request with `Authorization` without a statement that it is for all | it is not stored |
//! | a request has cookies, or the response sets some | it is stored only if it says `public` or `s-maxage` ([`HttpCacheLayer::as_the_standard_permits`] also accepts `max-age`) |
//! | many requests for the same page arrive at once | one request goes to the origin for each layer value and its clones; the others get its response, if it may be stored; if not, each is sent to the origin, and for ten seconds no request waits for another one |
//! | a request has cookies or credentials with which the response may not be stored | its client gets its own response; other requests still share one |
//! | a client goes away | the fetch continues, for the other requests and for the cache |
//! | a body is in transfer | its client gets it as it arrives; the other requests get it when it is complete. If no data arrives for [`stall_timeout`](HttpCacheLayer::stall_timeout) (6 s), they are sent to the origin |
//! | a body is larger than [`HttpCacheLayer::largest`], is interrupted, or does not have the stated length | its client gets it as it arrives, and it is not stored |
//! | a request has `Upgrade` (a websocket) | it is passed through, and its response keeps its fields |
//! | the clock of this machine is changed | pages age as before |
//! | a tag or URL is invalidated during a fetch | the response is not kept; requests from before the invalidation get it, requests from after it share the next fetch |
//! | an unsafe request succeeds (`POST`, `PUT`, `DELETE` and others) | its URL, and those in `Location` and `Content-Location` on the same host, are invalidated, with all their variants |
//! | an unsafe request for another URL succeeds | a page stays valid, except for one in 65,536: URLs share that many tags, which bounds the number of tags |
//! | the origin fails, or answers 500, 502, 503 or 504 | a stored page is served for as long as its `stale-if-error` permits, unless it says `must-revalidate` |
//! | a `GET` has a body, or may have one | it is passed through: a body is not part of a page's key |
//! | a request has two `Host` headers, an invalid one, or another host in its address | it is passed through: the application may read the host differently |
//! | two layers store into one cache, or a router has removed the beginning of an address | give each a [`namespace`](HttpCacheLayer::namespace), or the [`original_uri`](HttpCacheLayer::original_uri); the feature `axum` does the latter for axum's `nest` |
//! | an application's responses depend on another header than `Host`, such as `X-Forwarded-Proto` | name it: [`HttpCacheLayer::keyed_by`]. Headers that are neither in `Vary` nor named do not distinguish pages |
//! | a client has the page already (`If-None-Match`, `If-Modified-Since`) | 304, from the cache |
//! | a client requests a part (`Range`) | 206, from the cache; if the whole page is not stored, the request goes to the origin |
//! | Redis is slow or down | as for all entries: the first level, and the origin |
//! | a response has more than 60 tags, or a tag that is not UTF-8 | it is not stored, because it could not be invalidated by all of its tags |
//! | a tag is used for the first time, on Redis | the first response with it is not stored, the next one is: the time of the tag's last invalidation is unknown before |
//!
//! Variants (`Vary`) are distinguished by the canonical form of the request's fields; for
//! `Accept-Language` and `Accept-Encoding` neither order nor case counts.
//!
//! # Results of the public test suite
//!
//! `cargo run --release -p scale-cache --features http --example caching_proxy` is a reverse proxy
//! made of this layer. The suite with public results for nginx, Varnish and others (npm
//! `http-cache-tests` 0.4.5) runs against it in `tests/http_suite.rs`. That file contains the
//! results, and the reason for each miss. Of the newest version of the suite (commit b55b8bd of
//! 2026-07-20, in no registry) it passes 158 of 160 required and 93 of 105 optimal tests. It misses
//! the tests that require shared cookies, forwarded interim responses (which hyper's server cannot
//! send), stored `POST` responses, language selection, and separately stored parts.

mod address;
mod body;
mod directives;
mod fetch;
mod fill;
mod flight;
mod freshness;
mod layer;
mod references;
mod request_head;
mod service;
mod state;
mod status;
mod stored;

pub use self::body::HttpCacheBody;
#[cfg(any(test, fuzzing))]
pub(crate) use self::freshness::judge_any;
pub use self::layer::HttpCacheLayer;
pub use self::service::{HttpCache, HttpCacheFuture};
