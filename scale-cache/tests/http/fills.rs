//! Fetches that other requests wait for, and bodies that are streamed while they are stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use parking_lot::Mutex;
use scale_cache::Cache;
use scale_cache::http::HttpCacheLayer;
use testkit::eventually;
use tokio::sync::mpsc;
use tower::{Layer, ServiceExt, service_fn};

use crate::origin::{Body, Failed, Origin, get, page, status, text};

type Frames = mpsc::UnboundedReceiver<Result<Frame<Bytes>, Failed>>;

/// Returns a response whose body frames are sent by the test.
#[allow(clippy::unnecessary_wraps)]
fn coming(fields: &[(&str, &str)], mut frames: Frames) -> Result<Response<Body>, Failed> {
    let mut response = Response::builder();
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    let frames = futures_util::stream::poll_fn(move |cx| frames.poll_recv(cx));
    Ok(response.body(StreamBody::new(frames).boxed_unsync()).unwrap())
}

#[allow(clippy::unnecessary_wraps)]
fn data(text: &'static str) -> Result<Frame<Bytes>, Failed> {
    Ok(Frame::data(Bytes::from(text)))
}

/// Returns bodies for successive requests, in order; afterwards a complete page.
fn bodies(
    count: usize,
) -> (Vec<mpsc::UnboundedSender<Result<Frame<Bytes>, Failed>>>, impl Fn(usize) -> Option<Frames>) {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..count).map(|_| mpsc::unbounded_channel()).unzip();
    let receivers: Mutex<BTreeMap<usize, Frames>> =
        Mutex::new(receivers.into_iter().enumerate().collect());
    (senders, move |number| receivers.lock().remove(&(number - 1)))
}

const FRESH: (&str, &str) = ("cache-control", "max-age=60");

#[tokio::test]
async fn a_body_is_passed_on_while_it_is_stored() -> Result<()> {
    let (origin, (senders, bodies)) = (Origin::default(), bodies(1));
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), move |_, n| match bodies(n) {
        Some(frames) => coming(&[FRESH], frames),
        None => page(&[FRESH], "another"),
    });
    senders[0].send(data("first "))?;
    let mut first = app.clone().oneshot(get("/", &[])).await?.into_body();
    assert_eq!(first.frame().await.unwrap()?.into_data().unwrap(), "first ");
    let second = tokio::spawn(app.clone().oneshot(get("/", &[])));
    senders[0].send(data("second"))?;
    assert_eq!(first.frame().await.unwrap()?.into_data().unwrap(), "second");
    drop(senders);
    assert!(first.frame().await.is_none());
    // A waiter, and a request that arrives when the first has received the whole body, get the same
    // body.
    assert_eq!(text(second.await??).await, "first second");
    assert_eq!(text(app.oneshot(get("/", &[])).await?).await, "first second");
    assert_eq!(origin.count(), 1);
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_the_page_to_the_others() -> Result<()> {
    let (origin, (senders, bodies)) = (Origin::default(), bodies(1));
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), move |_, n| match bodies(n) {
        Some(frames) => coming(&[FRESH], frames),
        None => page(&[FRESH], "another"),
    });
    senders[0].send(data("first "))?;
    drop(app.clone().oneshot(get("/", &[])).await?);
    let second = tokio::spawn(app.clone().oneshot(get("/", &[])));
    senders[0].send(data("second"))?;
    drop(senders);
    assert_eq!(text(second.await??).await, "first second");
    assert_eq!(origin.count(), 1);
    Ok(())
}

/// The body stalls half way: its own client continues to wait, the other clients do not.
#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_holds_nobody_up() -> Result<()> {
    let (origin, (senders, bodies)) = (Origin::default(), bodies(1));
    let app = origin.cached(
        &HttpCacheLayer::new(&Cache::memory()).stall_timeout(Duration::from_secs(3)),
        move |_, n| match bodies(n) {
            Some(frames) => coming(&[FRESH], frames),
            None => page(&[FRESH], "well again"),
        },
    );
    senders[0].send(data("first "))?;
    let mut first = app.clone().oneshot(get("/", &[])).await?.into_body();
    assert_eq!(first.frame().await.unwrap()?.into_data().unwrap(), "first ");
    let began = tokio::time::Instant::now();
    assert_eq!(text(app.clone().oneshot(get("/", &[])).await?).await, "well again");
    assert!(began.elapsed() < Duration::from_secs(4));
    assert_eq!(text(app.oneshot(get("/", &[])).await?).await, "well again");
    assert_eq!(origin.count(), 2);
    senders[0].send(data("after all"))?;
    assert_eq!(first.frame().await.unwrap()?.into_data().unwrap(), "after all");
    Ok(())
}

/// A body that is shorter or longer than its Content-Length, or breaks off, is not stored; its
/// client sees the same as without a cache.
#[tokio::test]
async fn a_body_that_is_not_whole_is_not_stored() -> Result<()> {
    for (length, broken) in [(Some("100"), false), (None, true)] {
        let (origin, (senders, bodies)) = (Origin::default(), bodies(1));
        let app =
            origin.cached(&HttpCacheLayer::new(&Cache::memory()), move |_, n| match bodies(n) {
                Some(frames) => {
                    let length = length.map(|length| ("content-length", length));
                    coming(&[FRESH].into_iter().chain(length).collect::<Vec<_>>(), frames)
                }
                None => page(&[FRESH], "whole"),
            });
        senders[0].send(data("a part"))?;
        let answer = app.clone().oneshot(get("/", &[])).await?;
        if broken {
            senders[0].send(Err(Failed))?;
        }
        drop(senders);
        let read = answer.into_body().collect().await;
        assert_eq!(read.is_err(), broken);
        assert_eq!(text(app.oneshot(get("/", &[])).await?).await, "whole");
        assert_eq!(origin.count(), 2);
    }
    Ok(())
}

#[tokio::test]
async fn a_length_beside_an_encoding_of_the_transfer_counts_for_nothing() -> Result<()> {
    let origin = Origin::default();
    let fields = [FRESH, ("transfer-encoding", "chunked"), ("content-length", "3")];
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), move |_, _| {
        page(&fields, "more than three")
    });
    for _ in 0..2 {
        let answer = app.clone().oneshot(get("/", &[])).await?;
        assert!(
            !answer.headers().contains_key("content-length")
                && !answer.headers().contains_key("transfer-encoding")
        );
        assert_eq!(text(answer).await, "more than three");
    }
    assert_eq!(origin.count(), 1);
    Ok(())
}

/// While a page is invalidated repeatedly, its waiters share the next fetch, and none waits for
/// more than two.
#[tokio::test]
async fn who_waits_for_a_page_that_is_invalidated_shares_the_next_one() -> Result<()> {
    let (origin, cache) = (Origin::default(), Cache::memory());
    let app = origin.cached(&HttpCacheLayer::new(&cache), |_, n| {
        page(&[FRESH, ("surrogate-key", "t")], n.to_string())
    });
    origin.held.store(1, SeqCst);
    let early: Vec<_> = (0..50).map(|_| tokio::spawn(app.clone().oneshot(get("/", &[])))).collect();
    eventually("the first fetch", async || (origin.count() == 1).then_some(())).await?;
    cache.invalidate_tags(["t"]).await;
    let late: Vec<_> = (0..50).map(|_| tokio::spawn(app.clone().oneshot(get("/", &[])))).collect();
    tokio::task::yield_now().await;
    origin.go.notify_waiters();
    eventually("the second fetch", async || (origin.count() == 2).then_some(())).await?;
    cache.invalidate_tags(["t"]).await;
    tokio::task::yield_now().await;
    origin.go.notify_waiters();
    for answer in join_all(early).await {
        assert_eq!(text(answer??).await, "1", "requests before the invalidation");
    }
    for answer in join_all(late).await {
        assert_eq!(text(answer??).await, "2", "one fetch for all requests in between");
    }
    assert_eq!(origin.count(), 2);
    Ok(())
}

/// A stale page that its origin confirms: one request asks for all, with or without cookies.
#[tokio::test]
async fn a_stale_page_is_validated_once_for_all() -> Result<()> {
    for cookies in [false, true] {
        let origin = Origin::default();
        let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |request, _| {
            let is_known = request.headers().contains_key("if-none-match");
            let mut answer = page(
                &[("cache-control", "max-age=1"), ("etag", "\"a\"")],
                if is_known { "" } else { "page" },
            )?;
            if is_known {
                *answer.status_mut() = StatusCode::NOT_MODIFIED;
            }
            Ok(answer)
        });
        app.clone().oneshot(get("/", &[])).await?;
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        origin.held.store(1, SeqCst);
        let fields: &[(&str, &str)] = if cookies { &[("cookie", "ga=1")] } else { &[] };
        let all: Vec<_> =
            (0..50).map(|_| tokio::spawn(app.clone().oneshot(get("/", fields)))).collect();
        eventually("the validation", async || (origin.count() == 2).then_some(())).await?;
        tokio::task::yield_now().await;
        origin.held.store(0, SeqCst);
        origin.go.notify_waiters();
        for answer in join_all(all).await {
            assert_eq!(text(answer??).await, "page");
        }
        assert_eq!(origin.count(), 2, "cookies: {cookies}");
    }
    Ok(())
}

/// A request whose response may not be stored does not make the other requests fetch separately.
#[tokio::test]
async fn one_with_credentials_does_not_part_the_others() -> Result<()> {
    for field in [
        ("cookie", "a=b"),
        ("authorization", "x"),
        ("cache-control", "no-store"),
        ("accept-encoding", "br;q=0"),
    ] {
        let origin = Origin::default();
        let fields = [FRESH, ("vary", "accept-encoding"), ("content-encoding", "br")];
        let app = origin
            .cached(&HttpCacheLayer::new(&Cache::memory()), move |_, _| page(&fields, "page"));
        app.clone().oneshot(get("/", &[field])).await?;
        let before = origin.count();
        origin.held.store(1, SeqCst);
        let all: Vec<_> =
            (0..50).map(|_| tokio::spawn(app.clone().oneshot(get("/", &[])))).collect();
        eventually("a fetch", async || (origin.count() > before).then_some(())).await?;
        tokio::task::yield_now().await;
        origin.held.store(0, SeqCst);
        origin.go.notify_waiters();
        for answer in join_all(all).await {
            assert_eq!(text(answer??).await, "page");
        }
        assert_eq!(origin.count(), before + 1, "{field:?}");
    }
    Ok(())
}

/// A framework that creates a service for each connection still shares fetches.
#[tokio::test]
async fn services_of_one_layer_share_their_fetches() -> Result<()> {
    let (layer, origin) = (HttpCacheLayer::new(&Cache::memory()), Origin::default());
    let services: Vec<_> =
        (0..20).map(|_| origin.cached(&layer.clone(), |_, _| page(&[FRESH], "page"))).collect();
    origin.held.store(1, SeqCst);
    let all: Vec<_> =
        services.into_iter().map(|service| tokio::spawn(service.oneshot(get("/", &[])))).collect();
    eventually("a fetch", async || (origin.count() == 1).then_some(())).await?;
    tokio::task::yield_now().await;
    origin.held.store(0, SeqCst);
    origin.go.notify_waiters();
    for answer in join_all(all).await {
        assert_eq!(text(answer??).await, "page");
    }
    assert_eq!(origin.count(), 1);
    Ok(())
}

/// A request that upgrades to another protocol is neither looked up nor stored, and keeps its
/// headers.
#[tokio::test]
async fn a_websocket_is_let_through() -> Result<()> {
    let layer = HttpCacheLayer::new(&Cache::memory());
    let app = layer.layer(service_fn(async |_: Request<Full<Bytes>>| {
        let response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
        Ok::<_, Failed>(response.body(Full::<Bytes>::default()).unwrap())
    }));
    let answer =
        app.oneshot(get("/ws", &[("connection", "upgrade"), ("upgrade", "websocket")])).await?;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["connection"], &answer.headers()["upgrade"]),
        (101, &HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
    );
    Ok(())
}

/// A coding with weight zero is refused: it forms no variant of its own, and no client receives a
/// coding that it refuses.
#[tokio::test]
async fn a_refused_coding_is_as_good_as_not_named() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |request, _| {
        if request.headers().get("accept-encoding").is_some_and(|value| value == "gzip") {
            page(&[FRESH, ("vary", "accept-encoding"), ("content-encoding", "gzip")], "packed")
        } else {
            page(&[FRESH, ("vary", "accept-encoding")], "plain")
        }
    });
    for (accepted, expected, count) in [
        ("gzip", "packed", 1),
        ("gzip;q=0", "plain", 2),
        ("identity", "plain", 2),
        ("br;q=0.0, gzip;q=0", "plain", 2),
        ("GZIP", "packed", 2),
        ("gzip;q=0, br;q=0, identity", "plain", 2),
    ] {
        let answer = app.clone().oneshot(get("/", &[("accept-encoding", accepted)])).await?;
        assert_eq!((text(answer).await.as_str(), origin.count()), (expected, count), "{accepted}");
    }
    Ok(())
}

/// A range of a page that is fetched again is cut out of the whole page if that is available at
/// once; otherwise the whole page is a valid response.
#[tokio::test]
async fn a_part_of_a_stale_page_is_a_part_of_the_new_one() -> Result<()> {
    for at_once in [true, false] {
        let (origin, (senders, bodies)) = (Origin::default(), bodies(1));
        let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), move |_, n| match n {
            1 => page(&[("cache-control", "max-age=1"), ("etag", "\"a\"")], "old"),
            n => coming(&[FRESH], bodies(n - 1).ok_or(Failed)?),
        });
        app.clone().oneshot(get("/", &[])).await?;
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        senders[0].send(data("0123"))?;
        let part = if at_once {
            senders[0].send(data("4567"))?;
            drop(senders);
            app.oneshot(get("/", &[("range", "bytes=4-5")])).await?
        } else {
            let part = app.oneshot(get("/", &[("range", "bytes=4-5")])).await?;
            senders[0].send(data("4567"))?;
            drop(senders);
            part
        };
        assert_eq!(
            part.status(),
            if at_once { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK }
        );
        assert!(!status(&part).is_empty());
        assert_eq!(text(part).await, if at_once { "45" } else { "01234567" });
    }
    Ok(())
}

/// Headers that an origin sends to one client with a 304 are for that client alone.
#[tokio::test]
async fn a_validation_with_cookies_tells_nobody_else_what_it_told() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |request, _| {
        let is_known = request.headers().contains_key("if-none-match");
        let token = request.headers().get("cookie").map_or("of-nobody", |_| "of-ann");
        let fields = [("cache-control", "max-age=1"), ("etag", "\"a\""), ("x-csrf-token", token)];
        let mut answer = page(&fields, if is_known { "" } else { "page" })?;
        if is_known {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
        }
        Ok(answer)
    });
    app.clone().oneshot(get("/", &[])).await?;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let ann = app.clone().oneshot(get("/", &[("cookie", "sid=ann")])).await?;
    assert_eq!(ann.headers()["x-csrf-token"], "of-ann");
    for fields in [&[][..], &[("cookie", "sid=bob")]] {
        let other = app.clone().oneshot(get("/", fields)).await?;
        assert!(status(&other).contains("hit"));
        assert_eq!(other.headers()["x-csrf-token"], "of-nobody");
    }
    Ok(())
}

/// A body that panics half way does not end as if it were complete.
#[tokio::test]
async fn a_body_that_panics_is_not_taken_for_whole() -> Result<()> {
    let (sender, mut frames) = mpsc::unbounded_channel();
    let layer = HttpCacheLayer::new(&Cache::memory());
    let body = Arc::new(Mutex::new(Some(futures_util::stream::poll_fn(move |cx| {
        frames.poll_recv(cx).map(|frame: Option<Bytes>| match frame {
            Some(frame) if frame.is_empty() => std::panic::resume_unwind(Box::new("boom")),
            frame => frame.map(|frame| Ok::<_, Failed>(Frame::data(frame))),
        })
    }))));
    let app = layer.layer(service_fn(move |_: Request<Full<Bytes>>| {
        let body = body.lock().take();
        async move {
            Ok::<_, Failed>(
                Response::builder()
                    .header("cache-control", "max-age=60")
                    .body(StreamBody::new(body.unwrap()))
                    .unwrap(),
            )
        }
    }));
    sender.send(Bytes::from("a part"))?;
    let mut answer = app.oneshot(get("/", &[])).await?.into_body();
    assert_eq!(answer.frame().await.unwrap()?.into_data().unwrap(), "a part");
    sender.send(Bytes::new())?;
    assert!(
        tokio::spawn(async move { answer.frame().await.is_some() }).await.unwrap_err().is_panic()
    );
    Ok(())
}

/// A stale page that is served during revalidation is fetched once, and at most once a second if
/// that fails.
#[tokio::test]
async fn a_stale_page_causes_one_fetch_however_many_ask() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |_, n| match n {
        1 => page(&[("cache-control", "max-age=1, stale-while-revalidate=60")], "page"),
        _ => Err(Failed),
    });
    app.clone().oneshot(get("/", &[])).await?;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    origin.held.store(1, SeqCst);
    for _ in 0..100 {
        assert_eq!(text(app.clone().oneshot(get("/", &[])).await?).await, "page");
    }
    eventually("the fetch", async || (origin.count() == 2).then_some(())).await?;
    origin.held.store(0, SeqCst);
    origin.go.notify_waiters();
    for _ in 0..100 {
        assert_eq!(text(app.clone().oneshot(get("/", &[])).await?).await, "page");
        tokio::task::yield_now().await;
    }
    assert!(origin.count() <= 4, "{}", origin.count());
    Ok(())
}

/// Requests for the same variant share its fetch, although they arrived while another variant was
/// being fetched.
#[tokio::test]
async fn each_variant_is_fetched_once() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |request, _| {
        let language = request
            .headers()
            .get("accept-language")
            .and_then(|l| l.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        page(&[FRESH, ("vary", "accept-language")], language)
    });
    origin.held.store(1, SeqCst);
    let all: Vec<_> = (0..60)
        .map(|n| {
            let language = ["de", "en", "fr"][n % 3];
            let answer =
                tokio::spawn(app.clone().oneshot(get("/", &[("accept-language", language)])));
            async move { (language, answer.await) }
        })
        .collect();
    eventually("the first fetch", async || (origin.count() == 1).then_some(())).await?;
    tokio::task::yield_now().await;
    origin.held.store(0, SeqCst);
    origin.go.notify_waiters();
    for (language, answer) in join_all(all).await {
        assert_eq!(text(answer??).await, language);
    }
    assert_eq!(origin.count(), 3);
    Ok(())
}

/// A change invalidates a page in every form of its address: with or without a scheme, and under an
/// equivalent name.
#[tokio::test]
async fn a_change_is_one_of_all_names_of_a_page() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |request, n| {
        let location = request
            .headers()
            .get("x-location")
            .and_then(|l| l.to_str().ok())
            .unwrap_or("/nowhere")
            .to_owned();
        page(&[FRESH, ("location", &location)], n.to_string())
    });
    for location in [
        "/a/list", "../a/list", "/b/../a/list", "//shop.example/a/list",
        "http://shop.example:80/a/list",
    ] {
        for path in ["/a/list", "https://shop.example/a/list"] {
            app.clone().oneshot(get(path, &[])).await?;
            assert!(status(&app.clone().oneshot(get(path, &[])).await?).contains("hit"));
        }
        let mut change = get("/a/new", &[("x-location", location)]);
        *change.method_mut() = http::Method::POST;
        app.clone().oneshot(change).await?;
        for path in ["/a/list", "https://shop.example/a/list"] {
            assert!(
                !status(&app.clone().oneshot(get(path, &[])).await?).contains("hit"),
                "{location}: {path}"
            );
        }
    }
    Ok(())
}
