//! The layers over plain services.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use scale_limit::client::{ClientIp, Header, Key, Networks, Peer};
use scale_limit::guard::scraping::Scraping;
use scale_limit::layer::{LimitBody, Limits, Refusal, Throttle};
use scale_limit::overrides::{Overrides, Quota};
use scale_limit::policy::Algorithm;
use scale_limit::{BanList, LimitLayer, Limiter, Policy};
use tower::{Layer, Service, ServiceExt, service_fn};

type Body = Full<Bytes>;
type Answer = Response<LimitBody<Body>>;

async fn hello(request: Request<()>) -> Result<Response<Body>, Infallible> {
    let status = if request.uri().path().starts_with("/wrong") {
        StatusCode::UNAUTHORIZED
    } else {
        StatusCode::OK
    };
    Ok(Response::builder().status(status).body(Body::from("hello")).unwrap())
}

fn app(
    layer: &LimitLayer,
) -> impl Service<Request<()>, Response = Answer, Error = Infallible> + Clone + use<> {
    layer.layer(service_fn(hello))
}

fn request(path: &str, peer: &str) -> Request<()> {
    Request::builder().uri(path).extension(Peer(peer.parse().unwrap())).body(()).unwrap()
}

async fn get(layer: &LimitLayer, path: &str) -> Answer {
    app(layer).oneshot(request(path, "1.2.3.4:5")).await.unwrap()
}

fn header(response: &Answer, name: &str) -> String {
    response.headers().get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[allow(clippy::unnecessary_wraps)]
fn everybody(_: &scale_limit::RequestHead<'_>) -> Option<Key> {
    Some("everybody".into())
}

fn site_and_login() -> LimitLayer {
    let clients = ClientIp::direct();
    LimitLayer::new(Limiter::memory())
        .policy(Policy::per_minute("site", 10), move |request| clients.key(request))
        .throttle(Throttle::new(Policy::per_minute("login", 2), everybody).path("/login"))
}

#[tokio::test]
async fn denials_are_problems_with_a_time_to_come_back() {
    let layer = site_and_login().jitter(0.0);
    for _ in 0..2 {
        let response = get(&layer, "/login").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(header(&response, "ratelimit").contains("\"login\";r="));
    }
    let response = get(&layer, "/login").await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&response, "ratelimit-policy"), "\"site\";q=10;w=60, \"login\";q=2;w=60");
    assert_eq!(header(&response, "ratelimit"), "\"site\";r=8;t=12, \"login\";r=0;t=30");
    assert_eq!(header(&response, "retry-after"), "30");
    assert_eq!(header(&response, "content-type"), "application/problem+json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains(r#""violated-policies":["login"]"#));

    let jittered = site_and_login().jitter(1.0);
    let mut waits = std::collections::HashSet::new();
    for _ in 0..50 {
        let wait = header(&get(&jittered, "/login").await, "retry-after");
        waits.extend(wait.parse::<u32>().ok());
    }
    assert!(waits.len() > 5 && waits.iter().all(|w| (30..=60).contains(w)), "{waits:?}");
}

#[tokio::test]
async fn keys_do_not_touch_each_other_and_none_means_free() {
    let app = app(&site_and_login());
    for _ in 0..10 {
        assert_eq!(
            app.clone().oneshot(request("/", "1.2.3.4:5")).await.unwrap().status(),
            StatusCode::OK
        );
    }
    assert_eq!(
        app.clone().oneshot(request("/", "1.2.3.4:6")).await.unwrap().status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(
        app.clone().oneshot(request("/", "5.6.7.8:9")).await.unwrap().status(),
        StatusCode::OK
    );
    // A request whose key is `None` is not limited; a request without a client address has a key,
    // and is refused.
    let free = self::app(
        &LimitLayer::new(Limiter::memory()).policy(Policy::per_minute("none", 1), |_| None),
    );
    for _ in 0..20 {
        let unknown = || Request::builder().uri("/").body(()).unwrap();
        assert_eq!(free.clone().oneshot(unknown()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(
            app.clone().oneshot(unknown()).await.unwrap().status(),
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }
}

#[tokio::test]
async fn a_throttle_applies_where_it_says_and_costs_what_it_says() {
    let layer = LimitLayer::new(Limiter::memory())
        .throttle(
            Throttle::new(Policy::per_hour("posts", 1), everybody)
                .method(Method::POST)
                .method(Method::PUT),
        )
        .throttle(
            Throttle::new(Policy::per_hour("api", 10), everybody)
                .path("/api/*")
                .cost(|r| if r.uri.query().is_some() { 6 } else { 1 }),
        )
        .throttle(
            Throttle::new(Policy::per_hour("when", 1), everybody)
                .when(|r| r.headers.contains_key("x-robot")),
        );
    assert_eq!(header(&get(&layer, "/").await, "ratelimit"), "", "none applies");
    assert_eq!(header(&get(&layer, "/apis").await, "ratelimit"), "");
    assert!(header(&get(&layer, "/api/a").await, "ratelimit").starts_with("\"api\";r=9"));
    assert!(header(&get(&layer, "/api/a?all").await, "ratelimit").starts_with("\"api\";r=3"));
    assert_eq!(get(&layer, "/api/a?all").await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(get(&layer, "/api/b").await.status(), StatusCode::OK);
    for (method, status) in [(Method::POST, 200), (Method::PUT, 429), (Method::DELETE, 200)] {
        let request = Request::builder().method(&method).uri("/").body(()).unwrap();
        assert_eq!(
            app(&layer).oneshot(request).await.unwrap().status().as_u16(),
            status,
            "{method}"
        );
    }
}

#[tokio::test]
async fn failures_alone_count_and_a_dear_answer_is_owed() {
    let failures = Throttle::new(Policy::per_hour("failures", 3), everybody)
        .path("/wrong*")
        .path("/right")
        .real_cost(|status, _| u32::from(status == StatusCode::UNAUTHORIZED));
    let bytes =
        Throttle::new(Policy::per_hour("bytes", 20), everybody).path("/bytes").real_cost(|_, _| 50);
    let layer = LimitLayer::new(Limiter::memory()).throttle(failures).throttle(bytes);
    for _ in 0..20 {
        assert_eq!(get(&layer, "/right").await.status(), StatusCode::OK);
    }
    for status in [401, 401, 401, 429, 429] {
        assert_eq!(get(&layer, "/wrong").await.status().as_u16(), status);
    }
    assert_eq!(get(&layer, "/bytes").await.status(), StatusCode::OK);
    let owed: u32 = header(&get(&layer, "/bytes").await, "retry-after").parse().unwrap();
    assert!(owed > 3_600, "{owed}");
}

#[tokio::test]
async fn a_place_is_held_until_the_body_is_gone() {
    let layer =
        LimitLayer::new(Limiter::memory()).policy(Policy::concurrency("reports", 1), everybody);
    let first = get(&layer, "/").await;
    assert_eq!(header(&first, "ratelimit-policy"), "\"reports\";q=1;qu=\"concurrent-requests\"");
    assert_eq!(get(&layer, "/").await.status(), StatusCode::TOO_MANY_REQUESTS);
    drop(first);
    let second = get(&layer, "/").await;
    assert_eq!(second.status(), StatusCode::OK);
    let mut body = second.into_body();
    while body.frame().await.is_some() {}
    assert_eq!(get(&layer, "/").await.status(), StatusCode::OK, "sent, though not dropped");
}

#[tokio::test]
async fn a_kept_body_holds_its_place_too_and_refusals_have_one() {
    let layer = LimitLayer::new(Limiter::memory())
        .policy(Policy::concurrency("reports", 1), everybody)
        .preserve_body(axum::body::Body::new);
    let app = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(axum::body::Body::from("hello")))
    }));
    let get = || app.clone().oneshot(request("/", "1.2.3.4:5"));
    let first = get().await.unwrap();
    let refused = get().await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let text = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("violated-policies"));
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), "hello");
    assert_eq!(get().await.unwrap().status(), StatusCode::OK, "sent");
}

#[tokio::test]
async fn limits_within_limits_are_told_as_one_list() {
    let limits = |name, quota| {
        LimitLayer::new(Limiter::memory())
            .policy(Policy::per_minute(name, quota), everybody)
            .jitter(0.0)
    };
    let app = limits("site", 10).layer(limits("login", 1).layer(service_fn(hello)));
    for status in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let answer = app.clone().oneshot(request("/", "1.2.3.4:5")).await.unwrap();
        assert_eq!(answer.status(), status);
        let told = |name| {
            answer
                .headers()
                .get_all(name)
                .iter()
                .map(|v| v.to_str().unwrap())
                .collect::<Vec<_>>()
                .join(", ")
        };
        assert_eq!(told("ratelimit-policy"), "\"login\";q=1;w=60, \"site\";q=10;w=60");
        assert!(
            told("ratelimit").contains("\"login\";r=0;t=60, \"site\";r="),
            "{}",
            told("ratelimit")
        );
    }
}

#[tokio::test]
async fn a_key_is_told_of_its_own_quota() {
    let tenants = Overrides::default();
    let api = Policy::per_minute("api", 10).overrides(&tenants);
    let layer =
        LimitLayer::new(Limiter::memory()).policy(api, |request| Some(request.uri.path().into()));
    let quotas = [
        ("/more", Quota::new(20, Duration::from_mins(1))),
        ("/longer", Quota::new(10, Duration::from_hours(1))),
    ];
    tenants.replace(
        quotas
            .map(|(key, quota)| (key.to_owned(), quota))
            .into_iter()
            .chain([("/free".into(), Quota::unlimited())]),
    );
    for (path, told, left) in [
        ("/", "\"api\";q=10;w=60", "\"api\";r=9;t=6"),
        ("/more", "\"api\";q=20;w=60", "\"api\";r=19;t=3"),
        ("/longer", "\"api\";q=10;w=3600", "\"api\";r=9;t=360"),
        ("/free", "", ""),
    ] {
        let answer = get(&layer, path).await;
        assert_eq!(
            (header(&answer, "ratelimit-policy").as_str(), header(&answer, "ratelimit").as_str()),
            (told, left),
            "{path}"
        );
    }
}

#[tokio::test]
async fn lists_and_bans_come_before_the_policies() {
    let (clients, bans) = (
        ClientIp::behind(["10.0.0.0/8".parse().unwrap()], Header::XForwardedFor),
        BanList::memory(),
    );
    let denied = Networks::new(["203.0.113.0/24".parse().unwrap()]);
    let layer = LimitLayer::new(Limiter::memory())
        .policy(Policy::per_hour("all", 1), everybody)
        .allow(
            &clients,
            Networks::new(["192.0.2.0/24".parse().unwrap(), "203.0.113.9/32".parse().unwrap()]),
        )
        .deny(&clients, denied.clone())
        .bans(&clients, bans.clone());
    let from = |peer: &str| app(&layer).oneshot(request("/", peer));
    for _ in 0..5 {
        assert_eq!(from("192.0.2.1:1").await.unwrap().status(), StatusCode::OK);
        assert_eq!(
            from("203.0.113.9:1").await.unwrap().status(),
            StatusCode::OK,
            "allowed, though in a denied network"
        );
        assert_eq!(from("203.0.113.1:1").await.unwrap().status(), StatusCode::FORBIDDEN);
    }
    denied.replace([]);
    bans.ban("198.51.100.7", Duration::from_secs(100), "secret reason").await.unwrap();
    let banned = from("198.51.100.7:1").await.unwrap();
    assert_eq!(banned.status(), StatusCode::FORBIDDEN);
    let wait: u32 = header(&banned, "retry-after").parse().unwrap();
    assert!((99..=111).contains(&wait), "{wait}");
    let body = banned.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&body).contains("secret"));
    // An allowed address in a forged header is ignored; behind the trusted proxy the correct
    // address counts.
    let mut spoofed = request("/", "198.51.100.7:1");
    spoofed.headers_mut().insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
    assert_eq!(app(&layer).oneshot(spoofed).await.unwrap().status(), StatusCode::FORBIDDEN);
    let mut proxied = request("/", "10.0.0.1:1");
    proxied.headers_mut().insert("x-forwarded-for", "192.0.2.1, 198.51.100.7".parse().unwrap());
    assert_eq!(app(&layer).oneshot(proxied).await.unwrap().status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn lists_add_up_each_with_its_own_clients() {
    let behind = ClientIp::behind(["10.0.0.0/8".parse().unwrap()], Header::XForwardedFor);
    let networks = |network: &str| Networks::new([network.parse().unwrap()]);
    let (one, two) = (BanList::memory(), BanList::memory());
    let layer = LimitLayer::new(Limiter::memory())
        .deny(&ClientIp::direct(), networks("203.0.113.0/24"))
        .deny(&behind, networks("198.51.100.0/24"))
        .allow(&behind, networks("203.0.113.1/32"))
        .allow(&behind, networks("203.0.113.2/32"))
        .bans(&behind, one.clone())
        .bans(&behind, two.clone());
    one.ban("192.0.2.1", Duration::from_secs(100), "one").await.unwrap();
    two.ban("192.0.2.2", Duration::from_secs(100), "two").await.unwrap();
    for (peer, forwarded, status) in [
        ("203.0.113.7:1", None, StatusCode::FORBIDDEN),
        ("198.51.100.7:1", None, StatusCode::FORBIDDEN),
        ("10.0.0.1:1", Some("198.51.100.7"), StatusCode::FORBIDDEN),
        ("10.0.0.1:1", Some("203.0.113.7"), StatusCode::OK),
        ("203.0.113.1:1", None, StatusCode::OK),
        ("203.0.113.2:1", None, StatusCode::OK),
        ("192.0.2.1:1", None, StatusCode::FORBIDDEN),
        ("192.0.2.2:1", None, StatusCode::FORBIDDEN),
        ("192.0.2.3:1", None, StatusCode::OK),
    ] {
        let mut request = request("/", peer);
        if let Some(forwarded) = forwarded {
            request.headers_mut().insert("x-forwarded-for", forwarded.parse().unwrap());
        }
        let answer = app(&layer).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), status, "{peer} {forwarded:?}");
    }
}

#[tokio::test]
async fn an_application_answers_in_its_own_words() {
    let layer = LimitLayer::new(Limiter::memory())
        .policy(Policy::per_hour("all", 1), everybody)
        .respond(|refusal, request| {
            assert!(
                matches!(refusal, Refusal::TooMany(decision) if decision.outcomes().len() == 1)
            );
            let page = format!("<p>Too many at {}", request.uri.path());
            Response::builder().status(503).header("retry-after", "7").body(page.into()).unwrap()
        });
    get(&layer, "/page").await;
    let denied = get(&layer, "/page").await;
    assert_eq!((denied.status().as_u16(), header(&denied, "retry-after").as_str()), (503, "7"));
    assert!(header(&denied, "ratelimit").starts_with("\"all\";r=0"));
    assert_eq!(denied.into_body().collect().await.unwrap().to_bytes(), "<p>Too many at /page");
}

#[tokio::test]
async fn scrapers_and_scanners_are_banned_and_readers_are_not() {
    let (limiter, bans, clients) = (Limiter::memory(), BanList::memory(), ClientIp::direct());
    let scraping = Scraping::new(&limiter, &bans)
        .distinct(Policy::per_hour("distinct", 100))
        .missing(Policy::per_hour("missing", 5));
    let shop = scraping.layer(&clients).layer(service_fn(async |request: Request<()>| {
        let status = if request.uri().path().starts_with("/item/") {
            StatusCode::OK
        } else {
            StatusCode::NOT_FOUND
        };
        Ok::<_, Infallible>(Response::builder().status(status).body(Body::default()).unwrap())
    }));
    let open = |path: String, peer: &'static str| shop.clone().oneshot(request(&path, peer));
    for n in 0..95 {
        open(format!("/item/{n}"), "1.1.1.1:1").await.unwrap();
    }
    for n in 0..5_000 {
        open(format!("/item/{}", n % 50), "2.2.2.2:1").await.unwrap();
    }
    assert!(bans.list().is_empty(), "{:?}", bans.list());
    for n in 0..20 {
        open(format!("/item/more/{n}"), "1.1.1.1:1").await.unwrap();
    }
    for n in 0..6 {
        open(format!("/wp-admin/{n}"), "3.3.3.3:1").await.unwrap();
    }
    let mut banned: Vec<_> = bans
        .list()
        .into_iter()
        .map(|ban| (ban.subject.to_string(), ban.reason.to_string()))
        .collect();
    banned.sort();
    let expected = [
        ("1.1.1.1", "too many distinct resources"),
        ("3.3.3.3", "too many resources that do not exist"),
    ];
    assert_eq!(banned, expected.map(|(s, r)| (s.to_owned(), r.to_owned())));
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn on_redis_one_call_serves_all_policies_and_answers_are_settled() -> anyhow::Result<()> {
    let server = testkit::Redis::start().await?;
    let limiter =
        Limiter::connect(&server.url(), "test").await?.store_timeout(Duration::from_secs(5));
    let layer = LimitLayer::new(limiter.clone())
        .policy(Policy::per_hour("a", 100), everybody)
        .policy(Policy::per_hour("b", 100), everybody)
        .policy(Policy::concurrency("c", 2), everybody)
        .throttle(
            Throttle::new(Policy::per_hour("d", 3), everybody)
                .real_cost(|status, _| u32::from(status != StatusCode::OK)),
        );
    get(&layer, "/").await;
    server.command(&["CONFIG", "RESETSTAT"]).await?;
    let held = [get(&layer, "/").await, get(&layer, "/").await];
    let denied = get(&layer, "/").await;
    assert_eq!(
        (held[0].status().as_u16(), held[1].status().as_u16(), denied.status().as_u16()),
        (200, 200, 429)
    );
    drop(held);
    for _ in 0..20 {
        // The refund for the earlier success may still be under way.
        testkit::eventually("a success to be free", async || {
            (get(&layer, "/").await.status() == StatusCode::OK).then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn head_counts_as_get() {
    let throttle = Throttle::new(Policy::per_hour("pages", 2), everybody).method(Method::GET);
    let layer = LimitLayer::new(Limiter::memory()).throttle(throttle);
    let ask = async |method: Method| {
        let mut request = request("/", "1.2.3.4:5");
        *request.method_mut() = method;
        app(&layer).oneshot(request).await.unwrap().status()
    };
    assert_eq!(ask(Method::POST).await, StatusCode::OK);
    for status in [StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        assert_eq!(ask(Method::HEAD).await, status);
    }
    assert_eq!(ask(Method::GET).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ask(Method::POST).await, StatusCode::OK);
}

#[tokio::test]
async fn a_dry_run_tells_nothing() {
    let dry =
        LimitLayer::new(Limiter::memory()).policy(Policy::per_hour("dry", 1).dry_run(), everybody);
    for _ in 0..3 {
        let response = get(&dry, "/").await;
        assert_eq!(
            (response.status(), header(&response, "ratelimit")),
            (StatusCode::OK, String::new())
        );
    }
    let both = dry.policy(Policy::per_hour("real", 2), everybody);
    let response = get(&both, "/").await;
    assert_eq!(header(&response, "ratelimit-policy"), "\"real\";q=2;w=3600");
    get(&both, "/").await;
    let denied = get(&both, "/").await;
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(header(&denied, "ratelimit").starts_with("\"real\";r=0;t="), "{denied:?}");
}

#[tokio::test]
async fn old_clients_and_those_with_several_keys_are_told() {
    let layer = LimitLayer::new(Limiter::memory())
        .policy(Policy::per_hour("site", 100), everybody)
        .policy(Policy::per_hour("api", 3), |request| Some(request.uri.path().into()))
        .legacy_headers()
        .partition_keys();
    let now =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let first = get(&layer, "/a").await;
    assert_eq!(
        (header(&first, "x-ratelimit-limit"), header(&first, "x-ratelimit-remaining")),
        ("3".into(), "2".into())
    );
    let reset: u64 = header(&first, "x-ratelimit-reset").parse().unwrap();
    assert!(
        reset >= now() + 1_100 && reset <= now() + 1_300,
        "a third of an hour: {}",
        reset - now()
    );
    // Each key has a partition key that does not reveal it, in both headers.
    let keys = |response: &Answer| {
        let of = |name| {
            let text = header(response, name);
            text.split("pk=:")
                .skip(1)
                .map(|rest| rest.split(':').next().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(of("ratelimit"), of("ratelimit-policy"));
        of("ratelimit")
    };
    let other = get(&layer, "/b").await;
    let (a, b) = (keys(&first), keys(&other));
    assert_eq!((a.len(), &a[0]), (2, &b[0]));
    assert_ne!(a[1], b[1]);
    assert_eq!(keys(&get(&layer, "/a").await), a);
    for _ in 0..2 {
        get(&layer, "/a").await;
    }
    let denied = get(&layer, "/a").await;
    assert_eq!(
        (denied.status(), header(&denied, "x-ratelimit-remaining")),
        (StatusCode::TOO_MANY_REQUESTS, "0".into())
    );
    assert!(keys(&denied).contains(&a[1]), "{denied:?}");
}

#[tokio::test]
async fn handlers_are_told_what_is_left() {
    async fn told(request: Request<()>) -> Result<Response<Body>, Infallible> {
        let limits = request.extensions().get::<Limits>().cloned().unwrap();
        let text = format!(
            "{:?} {:?} {:?}",
            limits.remaining("outer"),
            limits.remaining("inner"),
            limits.remaining("none")
        );
        Ok(Response::new(Body::from(text)))
    }
    let layer = |name| {
        LimitLayer::new(Limiter::memory())
            .policy(Policy::per_hour(name, 9), everybody)
            .with_extension()
    };
    let app = layer("outer").layer(layer("inner").layer(service_fn(told)));
    for left in [8, 7] {
        let answer = app.clone().oneshot(request("/", "1.2.3.4:5")).await.unwrap();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(text, format!("Some({left}) Some({left}) None").as_bytes());
    }
}

#[test]
fn one_name_for_two_rules_is_refused() {
    let one = || LimitLayer::new(Limiter::memory()).policy(Policy::per_hour("api", 9), everybody);
    one().policy(Policy::per_hour("api", 9), |_| Some("other".into()));
    for other in
        [Policy::per_hour("api", 8), Policy::per_hour("api", 9).algorithm(Algorithm::FixedWindow)]
    {
        let built = std::panic::catch_unwind(|| one().policy(other, everybody));
        let message = *built.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("two policies are called `api`"), "{message}");
    }
}

fn grpc(path: &str, peer: &str) -> Request<()> {
    let mut request = request(path, peer);
    request.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
    request
}

#[tokio::test]
async fn grpc_is_answered_in_its_own_words() {
    let bans = BanList::memory();
    let clients = ClientIp::direct();
    let layer = LimitLayer::new(Limiter::memory())
        .policy(Policy::per_hour("calls", 1), everybody)
        .bans(&clients, bans.clone());
    bans.ban("9.9.9.9", Duration::from_mins(1), "x").await.unwrap();
    app(&layer).oneshot(grpc("/", "1.2.3.4:5")).await.unwrap();
    for (peer, code, message) in
        [("1.2.3.4:5", "8", "too many requests"), ("9.9.9.9:5", "7", "forbidden")]
    {
        let denied = app(&layer).oneshot(grpc("/", peer)).await.unwrap();
        assert_eq!(
            (denied.status(), header(&denied, "grpc-status"), header(&denied, "grpc-message")),
            (StatusCode::OK, code.into(), message.into())
        );
        assert_eq!(header(&denied, "content-type"), "application/grpc+proto");
        assert!(
            !header(&denied, "retry-after").is_empty()
                && !header(&denied, "grpc-status-details-bin").is_empty()
        );
        assert!(denied.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
    let mut unknown = grpc("/", "1.2.3.4:5");
    unknown.extensions_mut().clear();
    assert_eq!(header(&app(&layer).oneshot(unknown).await.unwrap(), "grpc-status"), "13");
    // A content type with the same beginning is a different type.
    let mut other = grpc("/", "1.2.3.4:5");
    other.headers_mut().insert("content-type", "application/grpcish".parse().unwrap());
    assert_eq!(app(&layer).oneshot(other).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
}
