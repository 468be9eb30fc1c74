//! The layer over a plain service.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use scale_limit::client::{ClientIp, Peer};
use scale_limit::{LimitLayer, Limiter, Policy};
use tower::{Layer, Service, ServiceExt, service_fn};

type Body = Full<Bytes>;

fn app() -> impl Service<Request<()>, Response = Response<Body>, Error = Infallible> + Clone {
    let clients = ClientIp::direct();
    let layer = LimitLayer::new(Limiter::memory())
        .policy(Policy::per_minute("site", 10), move |request| clients.key(request))
        .policy(Policy::per_minute("login", 2), |request| (request.uri.path() == "/login").then(|| "everybody".into()));
    layer.layer(service_fn(async |_| Ok::<_, Infallible>(Response::new(Body::from("hello")))))
}

fn request(path: &str, peer: &str) -> Request<()> {
    Request::builder().uri(path).extension(Peer(peer.parse().unwrap())).body(()).unwrap()
}

#[tokio::test]
async fn denials_are_problems_with_a_time_to_come_back() {
    let app = app();
    for _ in 0..2 {
        let response = app.clone().oneshot(request("/login", "1.2.3.4:5")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.headers()["ratelimit"].to_str().unwrap().contains("\"login\";r="));
    }
    let response = app.clone().oneshot(request("/login", "1.2.3.4:5")).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("ratelimit-policy"), "\"site\";q=10;w=60, \"login\";q=2;w=60");
    assert_eq!(header("ratelimit"), "\"site\";r=8;t=12, \"login\";r=0;t=30");
    assert_eq!(header("retry-after"), "30");
    assert_eq!(header("content-type"), "application/problem+json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains(r#""violated-policies":["login"]"#));
}

#[tokio::test]
async fn keys_do_not_touch_each_other_and_none_means_free() {
    let app = app();
    for _ in 0..10 {
        assert_eq!(app.clone().oneshot(request("/", "1.2.3.4:5")).await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(app.clone().oneshot(request("/", "1.2.3.4:6")).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(app.clone().oneshot(request("/", "5.6.7.8:9")).await.unwrap().status(), StatusCode::OK);
    for _ in 0..20 {
        let unknown = Request::builder().uri("/").body(()).unwrap();
        assert_eq!(app.clone().oneshot(unknown).await.unwrap().status(), StatusCode::OK, "no peer, no key");
    }
}
