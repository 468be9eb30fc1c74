//! Storage of responses: for whom, for how long, and under which key.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use parking_lot::Mutex;
use scale_cache::Cache;
use scale_cache::http::HttpCacheLayer;
use tower::ServiceExt;

use crate::origin::{Answer, Failed, Origin, get, page, status, text};

/// Two users, who must never see each other's page, even if the application sets no headers.
#[tokio::test]
async fn nobody_gets_somebody_elses_response() -> Result<()> {
    let origin = Origin::default();
    for (fields, credentials) in [
        (&[("cache-control", "max-age=60")][..], "cookie"),
        (&[("cache-control", "max-age=60")], "authorization"),
        (&[("expires", "Fri, 01 Jan 2038 01:01:01 GMT")], "cookie"),
        (&[("expires", "Fri, 01 Jan 2038 01:01:01 GMT")], "authorization"),
        (&[("cache-control", "private, max-age=60")], "cookie"),
        (&[("cache-control", "max-age=60"), ("set-cookie", "session=1")], "x-nothing"),
        (&[("last-modified", "Fri, 01 Jan 2010 01:01:01 GMT")], "cookie"),
        (&[("cache-control", "public, max-age=60"), ("vary", "cookie")], "cookie"),
        (&[], "cookie"),
    ] {
        let fields: Vec<(String, String)> =
            fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let told = fields.clone();
        let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), move |request, number| {
            let who = request.headers().get(credentials).map_or("nobody", |v| v.to_str().unwrap());
            let fields: Vec<(&str, &str)> =
                fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            page(&fields, format!("{who} {number}"))
        });
        let mut seen = Vec::new();
        // In sequence, and concurrently.
        for who in ["ann", "ben", "ann", "cem"] {
            let answer = text(app.clone().oneshot(get("/me", &[(credentials, who)])).await?).await;
            assert!(
                answer.starts_with(if credentials == "x-nothing" { "" } else { who }),
                "{told:?}: {who} got {answer}"
            );
            seen.push(answer);
        }
        if credentials == "x-nothing" {
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 4, "everybody gets a cookie of their own: {seen:?}");
        }
        let at_once = (0..20).map(|n| {
            let app = app.clone();
            tokio::spawn(async move {
                let who = format!("visitor{n}");
                let answer =
                    text(app.oneshot(get("/you", &[(credentials, &who)])).await.unwrap()).await;
                assert!(
                    credentials == "x-nothing" || answer.starts_with(&format!("{who} ")),
                    "{who} got {answer}"
                );
            })
        });
        for task in at_once.collect::<Vec<_>>() {
            task.await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn many_at_once_cause_one_request_whoever_goes_away() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |_, n| {
        page(&[("cache-control", "max-age=60")], format!("page {n}"))
    });
    origin.held.store(1, SeqCst);
    let first = tokio::spawn(app.clone().oneshot(get("/", &[])));
    testkit::eventually("the first to be under way", async || (origin.count() == 1).then_some(()))
        .await?;
    let others: Vec<_> =
        (0..500).map(|_| tokio::spawn(app.clone().oneshot(get("/", &[])))).collect();
    tokio::task::yield_now().await;
    // The client that caused the request disconnects.
    first.abort();
    let _ = first.await;
    origin.held.store(0, SeqCst);
    origin.go.notify_waiters();
    for other in others {
        let answer = other.await??;
        assert!(
            status(&answer).contains("collapsed") || status(&answer).contains("hit"),
            "{}",
            status(&answer)
        );
        assert_eq!(text(answer).await, "page 1");
    }
    assert_eq!(origin.count(), 1);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_stored_is_waited_for_once_and_streams() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |_, n| {
        page(&[("cache-control", "no-store")], format!("page {n}"))
    });
    origin.held.store(1, SeqCst);
    let tasks: Vec<_> = (0..20).map(|_| tokio::spawn(app.clone().oneshot(get("/", &[])))).collect();
    testkit::eventually("one to be under way", async || (origin.count() >= 1).then_some(()))
        .await?;
    origin.held.store(0, SeqCst);
    origin.go.notify_waiters();
    for task in tasks {
        assert!(!status(&task.await??).contains("collapsed"));
    }
    assert_eq!(origin.count(), 20);

    // An endless body is streamed as it is made, and a body that is too large is not stored.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let stream = origin.cached(&HttpCacheLayer::new(&Cache::memory()).largest(10), move |_, _| {
        let mut receiver = receiver.lock().take().ok_or(Failed)?;
        let frames = futures_util::stream::poll_fn(move |cx| {
            receiver.poll_recv(cx).map(|b| b.map(|b| Ok(http_body::Frame::data(b))))
        });
        let response = Response::builder().header("cache-control", "max-age=60");
        Ok(response.body(StreamBody::new(frames).boxed_unsync()).unwrap())
    });
    sender.send(Bytes::from("0123456789")).await?;
    let asked = tokio::spawn(stream.oneshot(get("/stream", &[])));
    sender.send(Bytes::from("more than ten")).await?;
    let answer = asked.await??;
    assert!(!status(&answer).contains("stored"));
    let mut body = answer.into_body();
    let mut read = String::new();
    for _ in 0..2 {
        read += std::str::from_utf8(&body.frame().await.unwrap()?.into_data().unwrap())?;
    }
    assert_eq!(read, "0123456789more than ten");
    sender.send(Bytes::from("!")).await?;
    assert_eq!(body.frame().await.unwrap()?.into_data().unwrap(), "!");
    Ok(())
}

#[tokio::test]
async fn who_waited_for_a_fetch_that_fails_does_not_wait_for_another() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |_, _| Err(Failed));
    origin.held.store(1, SeqCst);
    let tasks: Vec<_> = (0..20).map(|_| tokio::spawn(app.clone().oneshot(get("/", &[])))).collect();
    testkit::eventually("the first to be under way", async || (origin.count() == 1).then_some(()))
        .await?;
    origin.go.notify_waiters();
    // All others are sent concurrently, not in sequence.
    testkit::eventually("the others to be under way", async || {
        (origin.count() == 20).then_some(())
    })
    .await?;
    origin.held.store(0, SeqCst);
    origin.go.notify_waiters();
    for task in tasks {
        assert_eq!(task.await?.unwrap_err(), Failed);
    }
    Ok(())
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_kept() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |_, n| {
        let frames = futures_util::stream::iter(if n == 1 {
            VecDeque::from([Ok(http_body::Frame::data(Bytes::from("half"))), Err(Failed)])
        } else {
            VecDeque::from([Ok(http_body::Frame::data(Bytes::from("whole")))])
        });
        Ok(Response::builder()
            .header("cache-control", "max-age=60")
            .body(StreamBody::new(frames).boxed_unsync())
            .unwrap())
    });
    let mut broken = app.clone().oneshot(get("/", &[])).await?.into_body();
    assert_eq!(broken.frame().await.unwrap()?.into_data().unwrap(), "half");
    assert_eq!(broken.frame().await.unwrap().unwrap_err(), Failed);
    assert_eq!(text(app.oneshot(get("/", &[])).await?).await, "whole");
    Ok(())
}

#[tokio::test]
async fn what_is_invalidated_while_it_is_fetched_is_not_kept() -> Result<()> {
    let origin = Origin::default();
    let cache = Cache::memory();
    let app = origin.cached(&HttpCacheLayer::new(&cache), |_, n| {
        page(
            &[
                ("cache-control", "max-age=60"),
                ("surrogate-key", "shelf product:7"),
                ("cache-tag", "a, b"),
            ],
            format!("page {n}"),
        )
    });
    let mut expected = 0;
    for tag in ["product:7", "shelf", "a", "b", "url"] {
        let invalidate = async || match tag {
            "url" => {
                let post = Request::post("/p")
                    .header("host", "shop.example")
                    .body(Full::default())
                    .unwrap();
                app.clone().oneshot(post).await.unwrap();
            }
            tag => drop(cache.invalidate_tags([tag]).await),
        };
        origin.held.store(1, SeqCst);
        let asked = tokio::spawn(app.clone().oneshot(get("/p", &[])));
        testkit::eventually("it to be under way", async || {
            (origin.count() > expected).then_some(())
        })
        .await?;
        origin.held.store(0, SeqCst);
        invalidate().await;
        origin.go.notify_waiters();
        let answer = asked.await??;
        assert!(!status(&answer).ends_with("stored"), "{tag}: {}", status(&answer));
        expected = origin.count();
        let again = app.clone().oneshot(get("/p", &[])).await?;
        assert!(status(&again).contains("uri-miss"), "{tag}: {}", status(&again));
        assert!(status(&app.clone().oneshot(get("/p", &[])).await?).contains("hit"));
        invalidate().await;
        expected = origin.count().max(expected);
        assert_eq!(
            text(app.clone().oneshot(get("/p", &[])).await?).await,
            format!("page {}", expected + 1),
            "{tag}"
        );
        invalidate().await;
        expected = origin.count();
    }
    Ok(())
}

#[tokio::test]
async fn who_asks_after_an_invalidation_is_not_given_what_was_fetched_before() -> Result<()> {
    let origin = Origin::default();
    let cache = Cache::memory();
    let app = origin.cached(&HttpCacheLayer::new(&cache), |_, n| {
        page(
            &[("cache-control", "max-age=60"), ("surrogate-key", "product:7")],
            format!("page {n}"),
        )
    });
    origin.held.store(1, SeqCst);
    let before = tokio::spawn(app.clone().oneshot(get("/p", &[])));
    testkit::eventually("it to be under way", async || (origin.count() == 1).then_some(())).await?;
    cache.invalidate_tags(["product:7"]).await;
    let after: Vec<_> =
        (0..50).map(|_| tokio::spawn(app.clone().oneshot(get("/p", &[])))).collect();
    tokio::task::yield_now().await;
    origin.held.store(0, SeqCst);
    origin.go.notify_waiters();
    assert_eq!(text(before.await??).await, "page 1", "an earlier request may get it");
    for answer in after {
        assert_eq!(text(answer.await??).await, "page 2");
    }
    assert_eq!(origin.count(), 2, "and still one request for all of them");
    Ok(())
}

#[tokio::test]
async fn a_change_invalidates_its_url_with_all_variants_and_what_it_names() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |request, n| {
        if request.method() == Method::GET {
            return page(
                &[("cache-control", "max-age=60"), ("vary", "accept-language")],
                format!("page {n}"),
            );
        }
        let wrong = request.uri().path() == "/wrong";
        let mut answer = page(
            &[("location", "/list"), ("content-location", "http://other.example/foreign")],
            "",
        )?;
        *answer.status_mut() =
            if wrong { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::CREATED };
        Ok(answer)
    });
    let ask = async |path: &str, language: &str| {
        status(&app.clone().oneshot(get(path, &[("accept-language", language)])).await.unwrap())
    };
    for path in ["/item", "/list", "/foreign"] {
        for language in ["de, en", "fr"] {
            assert!(ask(path, language).await.contains("stored"));
        }
    }
    assert!(ask("/item", "EN,de").await.contains("hit"), "neither order nor case nor spaces count");
    for path in ["/item", "/wrong"] {
        let change =
            Request::put(path).header("host", "shop.example").body(Full::default()).unwrap();
        app.clone().oneshot(change).await?;
    }
    for (path, kept) in [("/item", false), ("/list", false), ("/foreign", true)] {
        for language in ["de, en", "fr"] {
            assert_eq!(ask(path, language).await.contains("hit"), kept, "{path} {language}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn stale_pages_are_served_as_far_as_their_origin_says() -> Result<()> {
    let origin = Origin::default();
    let down = Arc::new(AtomicUsize::new(0));
    let (failing, told) = (Arc::clone(&down), "max-age=0, stale-if-error=60");
    let app =
        origin.cached(&HttpCacheLayer::new(&Cache::memory()), move |request, n| {
            match failing.load(SeqCst) {
                0 if request.headers().contains_key("if-none-match") => {
                    let mut answer =
                        page(&[("etag", "\"a\""), ("cache-control", told), ("x-new", "1")], "")?;
                    *answer.status_mut() = StatusCode::NOT_MODIFIED;
                    Ok(answer)
                }
                0 => page(&[("etag", "\"a\""), ("cache-control", told)], format!("page {n}")),
                1 => Err(Failed),
                _ => {
                    let mut answer = page(&[], "broken")?;
                    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    Ok(answer)
                }
            }
        });
    let ask = async || app.clone().oneshot(get("/", &[])).await;
    assert_eq!(text(ask().await?).await, "page 1");
    let validated = ask().await?;
    assert_eq!(origin.last("if-none-match").as_deref(), Some("\"a\""));
    assert!(
        status(&validated).contains("fwd=stale; fwd-status=304; stored"),
        "{}",
        status(&validated)
    );
    assert_eq!((validated.status().as_u16(), validated.headers()["x-new"].to_str()?), (200, "1"));
    assert_eq!(text(validated).await, "page 1");
    for failure in [1, 2] {
        down.store(failure, SeqCst);
        let answer = ask().await?;
        assert!(status(&answer).contains("origin-failed"), "{}", status(&answer));
        assert_eq!(text(answer).await, "page 1");
    }
    // Without a stored page there is no fallback.
    down.store(1, SeqCst);
    assert_eq!(app.clone().oneshot(get("/other", &[])).await.unwrap_err(), Failed);
    let only = app.oneshot(get("/other", &[("cache-control", "only-if-cached")])).await?;
    assert_eq!(only.status(), StatusCode::GATEWAY_TIMEOUT);
    Ok(())
}

#[tokio::test]
async fn a_stale_page_is_served_while_a_new_one_is_fetched() -> Result<()> {
    let origin = Origin::default();
    let told = "max-age=0, stale-while-revalidate=60";
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), move |_, n| {
        page(&[("cache-control", told)], format!("page {n}"))
    });
    let ask = async || text(app.clone().oneshot(get("/", &[])).await.unwrap()).await;
    assert_eq!(ask().await, "page 1");
    assert_eq!(ask().await, "page 1", "at once");
    testkit::eventually("the new one", async || (ask().await != "page 1").then_some(())).await?;
    // However many clients ask meanwhile, one request is under way at a time.
    origin.held.store(1, SeqCst);
    let before = origin.count();
    for _ in 0..100 {
        ask().await;
        tokio::task::yield_now().await;
    }
    assert!(origin.count() <= before + 1, "{} requests", origin.count() - before);
    origin.held.store(0, SeqCst);
    origin.go.notify_waiters();
    Ok(())
}

#[tokio::test]
async fn heads_and_parts_come_from_what_is_stored() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |_, _| {
        page(
            &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-length", "10")],
            "0123456789",
        )
    });
    // A range of a page that is not stored is left to the origin, and conditions are not passed on
    // when the whole page is fetched.
    app.clone().oneshot(get("/", &[("range", "bytes=0-1")])).await?;
    assert_eq!(origin.last("range").as_deref(), Some("bytes=0-1"));
    let answer = app.clone().oneshot(get("/", &[("if-none-match", "\"a\"")])).await?;
    assert_eq!((answer.status().as_u16(), origin.last("if-none-match")), (304, None));
    let count = origin.count();
    let head = Request::head("/").header("host", "shop.example").body(Full::default()).unwrap();
    let head = app.clone().oneshot(head).await?;
    assert_eq!((head.status().as_u16(), head.headers()["content-length"].to_str()?), (200, "10"));
    assert_eq!(text(head).await, "");
    let part = app.clone().oneshot(get("/", &[("range", "bytes=-3")])).await?;
    assert_eq!((part.status().as_u16(), text(part).await.as_str()), (206, "789"));
    assert_eq!(origin.count(), count);
    // A response to a request with a body is not shared.
    let with_body = Request::get("/")
        .header("host", "shop.example")
        .header("content-length", "1")
        .body(Full::from("x"))?;
    app.clone().oneshot(with_body).await?;
    assert_eq!(origin.count(), count + 1);
    let count = count + 1;
    // Different hosts or queries do not share a page, and long URLs are passed through.
    for (path, host) in [
        ("/?a", "shop.example"),
        ("/", "other.example"),
        (&format!("/{}", "x".repeat(5_000)), "shop.example"),
    ] {
        for _ in 0..2 {
            let request = Request::get(path).header("host", host).body(Full::default()).unwrap();
            app.clone().oneshot(request).await?;
        }
    }
    assert_eq!(origin.count(), count + 4);
    Ok(())
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_servers_share_pages_and_invalidations() -> Result<()> {
    let server = testkit::Redis::start().await?;
    let origin = Origin::default();
    let (here, there) = (
        Cache::connect(&server.url(), "test").await?,
        Cache::connect(&server.url(), "test").await?,
    );
    for cache in [&here, &there] {
        testkit::eventually("the link", async || cache.is_healthy().then_some(())).await?;
    }
    let tagged = |_: &Request<Full<Bytes>>, n: usize| {
        page(
            &[
                ("cache-control", "max-age=600"),
                ("surrogate-key", "product:7"),
                ("vary", "accept-encoding"),
            ],
            format!("page {n}"),
        )
    };
    let (a, b) = (
        origin.cached(&HttpCacheLayer::new(&here), tagged),
        origin.cached(&HttpCacheLayer::new(&there), tagged),
    );
    // The tag is new to the store: a page generated just now may be older than the tag's
    // invalidation.
    testkit::eventually("a page to be stored", async || {
        status(&a.clone().oneshot(get("/p", &[])).await.ok()?).contains("hit").then_some(())
    })
    .await?;
    let page_here = text(a.clone().oneshot(get("/p", &[])).await?).await;
    let count = origin.count();
    let shared = b.clone().oneshot(get("/p", &[])).await?;
    assert!(status(&shared).contains("hit"), "{}", status(&shared));
    assert_eq!((text(shared).await, origin.count()), (page_here.clone(), count));
    there.invalidate_tags(["product:7"]).await;
    assert_ne!(
        text(b.clone().oneshot(get("/p", &[])).await?).await,
        page_here,
        "at once where it was invalidated"
    );
    testkit::eventually("the other server to hear of it", async || {
        (text(a.clone().oneshot(get("/p", &[])).await.ok()?).await != page_here).then_some(())
    })
    .await?;
    // Without Redis pages are still served.
    server.kill()?;
    for n in 0..3 {
        assert_eq!(a.clone().oneshot(get(&format!("/without/{n}"), &[])).await?.status(), 200);
    }
    tokio::time::timeout(Duration::from_secs(5), a.clone().oneshot(get("/p", &[]))).await??;
    Ok(())
}

/// Requests that a cache and an application may interpret differently, or as equal although they
/// are not.
#[tokio::test]
async fn a_page_is_kept_under_what_was_asked_for() -> Result<()> {
    let origin = Origin::default();
    let keeps = |request: &Request<Full<Bytes>>, _| {
        let (uri, headers) = (request.uri().to_string(), request.headers());
        let host = headers.get("host").map_or("", |host| host.to_str().unwrap());
        let proto = headers.get("x-forwarded-proto").map_or("", |proto| proto.to_str().unwrap());
        page(&[("cache-control", "max-age=60")], format!("{uri} at {host} by {proto}"))
    };
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), keeps);
    let ask = |uri: &str, hosts: &[&str]| {
        let request =
            hosts.iter().fold(Request::get(uri), |request, host| request.header("host", *host));
        app.clone().oneshot(request.body(Full::default()).unwrap())
    };
    let is_hit = |answer: &Answer| status(answer).contains("hit");
    // Similar requests are different.
    for (uri, host) in [
        ("/a/b", "shop"),
        ("/b", "shop.a"),
        ("/A/b", "shop"),
        ("/a/b?", "shop"),
        ("/a/b", "shop:8080"),
    ] {
        let answer = ask(uri, &[host]).await.unwrap();
        assert!(!is_hit(&answer), "{uri} at {host}");
        assert_eq!(text(answer).await, format!("{uri} at {host} by "));
        assert!(is_hit(&ask(uri, &[&host.to_uppercase()]).await.unwrap()), "{uri} at {host}");
    }
    for scheme in ["http", "https"] {
        assert!(!is_hit(&ask(&format!("{scheme}://shop/a/b"), &[]).await.unwrap()), "{scheme}");
        assert!(
            is_hit(&ask(&format!("{scheme}://shop/a/b"), &["SHOP"]).await.unwrap()),
            "{scheme}"
        );
    }
    // An ambiguous request is passed through.
    for (uri, hosts) in [
        ("/b", &["shop/a"][..]),
        ("/a/b", &["shop", "other"]),
        ("http://shop/a/b", &["other"]),
        ("/a/b", &["me@shop"]),
    ] {
        for _ in 0..2 {
            let answer = ask(uri, hosts).await.unwrap();
            assert!(status(&answer).contains("fwd="), "{uri} {hosts:?}: {}", status(&answer));
        }
    }
    Ok(())
}

/// A body that no header announces, as in HTTP/2.
#[tokio::test]
async fn a_get_with_a_body_is_neither_looked_up_nor_kept() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |_, n| {
        page(&[("cache-control", "max-age=60")], format!("page {n}"))
    });
    let ask = |body: &'static str| {
        let request =
            Request::get("/search").header("host", "shop.example").body(Full::from(body)).unwrap();
        app.clone().oneshot(request)
    };
    assert_eq!(text(ask("mugs").await.unwrap()).await, "page 1");
    assert_eq!(text(ask("").await.unwrap()).await, "page 2");
    assert_eq!(text(ask("cups").await.unwrap()).await, "page 3");
    assert_eq!(text(ask("").await.unwrap()).await, "page 2");
    Ok(())
}

/// Parts of an application whose addresses look equal to the layer, and headers that the response
/// depends on.
#[tokio::test]
async fn layers_of_one_cache_are_kept_apart() -> Result<()> {
    #[derive(Clone)]
    struct Original(http::Uri);

    let (cache, origin) = (Cache::memory(), Origin::default());
    let number =
        |_: &Request<Full<Bytes>>, n| page(&[("cache-control", "max-age=60")], format!("page {n}"));
    let one = origin.cached(&HttpCacheLayer::new(&cache).namespace("one"), number);
    let two = origin.cached(&HttpCacheLayer::new(&cache).namespace("two"), number);
    let plain = origin.cached(&HttpCacheLayer::new(&cache), number);
    for _ in 0..2 {
        assert_eq!(text(one.clone().oneshot(get("/a", &[])).await.unwrap()).await, "page 1");
        assert_eq!(text(two.clone().oneshot(get("/a", &[])).await.unwrap()).await, "page 2");
        assert_eq!(text(plain.clone().oneshot(get("/a", &[])).await.unwrap()).await, "page 3");
    }
    // Nested: the router has removed the prefix of the address.
    let layer = HttpCacheLayer::new(&cache)
        .original_uri(|extensions| Some(extensions.get::<Original>()?.0.clone()));
    let nested = origin.cached(&layer, number);
    let ask = |original: &'static str| {
        let mut request = get("/a", &[]);
        request.extensions_mut().insert(Original(original.parse().unwrap()));
        nested.clone().oneshot(request)
    };
    for _ in 0..2 {
        assert_eq!(text(ask("/shop/a").await.unwrap()).await, "page 4");
        assert_eq!(text(ask("/blog/a").await.unwrap()).await, "page 5");
    }
    let keyed = origin.cached(
        &HttpCacheLayer::new(&cache).namespace("keyed").keyed_by(["x-forwarded-proto".parse()?]),
        number,
    );
    for (proto, expected) in
        [("http", "page 6"), ("https", "page 7"), ("http", "page 6"), ("https", "page 7")]
    {
        assert_eq!(
            text(keyed.clone().oneshot(get("/a", &[("x-forwarded-proto", proto)])).await.unwrap())
                .await,
            expected
        );
    }
    // A change there is invalidated there.
    let post = Request::post("/a")
        .header("host", "shop.example")
        .header("x-forwarded-proto", "http")
        .body(Full::default())?;
    keyed.clone().oneshot(post).await.unwrap();
    assert_eq!(
        text(keyed.clone().oneshot(get("/a", &[("x-forwarded-proto", "http")])).await.unwrap())
            .await,
        "page 9"
    );
    assert_eq!(text(one.clone().oneshot(get("/a", &[])).await.unwrap()).await, "page 1");
    Ok(())
}

/// Headers that `Vary` names are compared byte by byte.
#[tokio::test]
async fn names_that_differ_in_one_byte_are_two() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |_, n| {
        page(&[("cache-control", "public, max-age=60"), ("vary", "x-user")], format!("page {n}"))
    });
    let ask = |user: &[u8]| {
        let mut request = get("/", &[]);
        request.headers_mut().insert("x-user", http::HeaderValue::from_bytes(user).unwrap());
        app.clone().oneshot(request)
    };
    for _ in 0..2 {
        for (user, expected) in [
            (&b"M\xfcller"[..], "page 1"),
            (b"M\xf6ller", "page 2"),
            ("Müller".as_bytes(), "page 3"),
        ] {
            assert_eq!(text(ask(user).await.unwrap()).await, expected, "{user:?}");
        }
    }
    Ok(())
}

/// A response that could not be invalidated by all of its tags is not stored.
#[tokio::test]
async fn a_response_is_stored_with_all_its_tags_or_not_at_all() -> Result<()> {
    let (cache, origin) = (Cache::memory(), Origin::default());
    let app = origin.cached(&HttpCacheLayer::new(&cache), |request, n| {
        let tags: Vec<u8> = match request.uri().path() {
            "/many" => (0..61).map(|n| format!("t{n}")).collect::<Vec<_>>().join(" ").into_bytes(),
            "/odd" => b"product:7 gr\xf6\xdfe".to_vec(),
            _ => "product:7 größe".into(),
        };
        let mut response = page(&[("cache-control", "max-age=60")], format!("page {n}"))?;
        response
            .headers_mut()
            .insert("surrogate-key", http::HeaderValue::from_bytes(&tags).unwrap());
        Ok(response)
    });
    for path in ["/many", "/odd"] {
        for _ in 0..2 {
            assert!(
                !status(&app.clone().oneshot(get(path, &[])).await.unwrap()).contains("hit"),
                "{path}"
            );
        }
    }
    app.clone().oneshot(get("/fine", &[])).await.unwrap();
    assert!(status(&app.clone().oneshot(get("/fine", &[])).await.unwrap()).contains("hit"));
    cache.invalidate_tags(["größe"]).await;
    assert!(!status(&app.clone().oneshot(get("/fine", &[])).await.unwrap()).contains("hit"));
    Ok(())
}

/// A client that has a page already gets a 304, also of pages that are not stored.
#[tokio::test]
async fn a_page_for_one_client_is_not_sent_twice() -> Result<()> {
    for (directive, credentials) in [
        ("private", ("x-nothing", "1")),
        ("no-store", ("x-nothing", "1")),
        ("max-age=60", ("authorization", "Bearer 1")),
        ("max-age=60", ("cookie", "session=1")),
    ] {
        let origin = Origin::default();
        let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), move |_, _| {
            page(&[("cache-control", directive), ("etag", "\"1\"")], "mine")
        });
        for has in [None, Some("\"1\""), Some("\"1\""), Some("\"2\"")] {
            let condition = has.map(|tag| ("if-none-match", tag));
            let fields: Vec<_> = [credentials].into_iter().chain(condition).collect();
            let answer = app.clone().oneshot(get("/me", &fields)).await?;
            let expected =
                if has == Some("\"1\"") { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
            assert_eq!(answer.status(), expected, "{directive} {has:?}");
            assert_eq!(text(answer).await, if expected == StatusCode::OK { "mine" } else { "" });
        }
    }
    Ok(())
}

/// Fields that a response excludes from storage reach the client that caused it.
#[tokio::test]
async fn a_field_for_one_client_reaches_that_client() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |_, _| {
        page(&[("cache-control", "max-age=60, no-cache=\"x-token\""), ("x-token", "t")], "p")
    });
    let first = app.clone().oneshot(get("/p", &[])).await?;
    assert_eq!(first.headers().get("x-token").map(http::HeaderValue::as_bytes), Some(&b"t"[..]));
    let second = app.oneshot(get("/p", &[])).await?;
    assert!(!second.headers().contains_key("x-token"));
    Ok(())
}

/// Beside a wildcard, a refused language is not the same as an absent one.
#[tokio::test]
async fn who_refuses_a_language_does_not_get_it() -> Result<()> {
    let origin = Origin::default();
    let app = origin.cached(&HttpCacheLayer::new(&Cache::memory()), |request, _| {
        let refuses = request.headers().get("accept-language").is_some_and(|v| v == "de;q=0, *");
        let fields = [("cache-control", "max-age=60"), ("vary", "accept-language")];
        page(&fields, if refuses { "english" } else { "deutsch" })
    });
    for (accepts, expected) in [("*", "deutsch"), ("de;q=0, *", "english"), ("*", "deutsch")] {
        let answer = app.clone().oneshot(get("/p", &[("accept-language", accepts)])).await?;
        assert_eq!(text(answer).await, expected, "{accepts}");
    }
    Ok(())
}
