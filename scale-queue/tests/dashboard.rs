//! The dashboard's API: its contents, and who may change things.
#![cfg(feature = "dashboard")]
#![allow(clippy::unwrap_used)]

mod common;

use anyhow::Result;
use bytes::Bytes;
use common::running;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use scale_queue::outcome::Discard;
use scale_queue::{Dashboard, Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use testkit::eventually;
use tower::ServiceExt;

#[derive(Serialize, Deserialize)]
struct Doomed {
    html: String,
}

impl Job for Doomed {
    const NAME: &'static str = "doomed";
}

async fn call(
    dashboard: &Dashboard,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, Value) {
    send(dashboard, method, path, headers, Bytes::new()).await
}

async fn send(
    dashboard: &Dashboard,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    content: Bytes,
) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response =
        dashboard.clone().oneshot(request.body(Full::<Bytes>::from(content)).unwrap()).await;
    let response = response.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

const OURS: (&str, &str) = ("x-scale-queue", "dashboard");

#[tokio::test]
async fn it_shows_and_changes_what_it_may() -> Result<()> {
    let queue = Queue::memory();
    let worker = Worker::new(&queue)
        .handle(|_: Doomed| async { Err::<(), _>(Discard::because("<b>no</b>")) });
    let workers = running([worker]);
    queue.push(Doomed { html: "<script>alert(1)</script>".into() }).await?;
    eventually("the job to be dead", async || {
        (queue.stats("default").await.ok()?.dead == 1).then_some(())
    })
    .await?;
    workers.stop().await?;

    let reader = Dashboard::new(&queue);
    let writer = Dashboard::new(&queue)
        .allow_changes(|request| request.headers.get("who").is_some_and(|who| who == "admin"));
    let (status, overview) = call(&reader, "GET", "/mounted/here/api/queues", &[]).await;
    assert_eq!(
        (status, &overview["writable"], &overview["queues"][0]["name"]),
        (StatusCode::OK, &json!(false), &json!("default"))
    );
    assert_eq!(overview["queues"][0]["dead"], 1);
    let (_, dead) = call(&reader, "GET", "/api/queues/default/dead", &[]).await;
    assert_eq!(dead["jobs"][0]["reason"], "<b>no</b>");
    let id = dead["jobs"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        call(&reader, "GET", "/api/queues/default/dead?offset=1", &[]).await.1["jobs"],
        json!([])
    );

    let revive = format!("/api/queues/default/dead/{id}/revive");
    let admin = ("who", "admin");
    for (dashboard, headers, expected) in [
        (&reader, vec![OURS, admin], StatusCode::FORBIDDEN),
        (&writer, vec![OURS], StatusCode::FORBIDDEN),
        (&writer, vec![admin], StatusCode::FORBIDDEN),
        (&writer, vec![OURS, admin, ("sec-fetch-site", "cross-site")], StatusCode::FORBIDDEN),
        (&writer, vec![OURS, admin, ("sec-fetch-site", "same-origin")], StatusCode::OK),
    ] {
        assert_eq!(call(dashboard, "POST", &revive, &headers).await.0, expected, "{headers:?}");
    }
    assert_eq!(queue.stats("default").await?.waiting, 1, "it waits again");
    assert_eq!(
        call(&writer, "POST", &revive, &[OURS, admin]).await.1,
        json!({ "done": false }),
        "once"
    );
    let forget = format!("/api/queues/default/dead/{id}/forget");
    assert_eq!(
        call(&writer, "POST", &forget, &[OURS, admin]).await.1,
        json!({ "done": false }),
        "it is not dead"
    );
    for all in ["/api/queues/default/dead/revive", "/api/queues/default/dead/forget"] {
        assert_eq!(call(&reader, "POST", all, &[OURS, admin]).await.0, StatusCode::FORBIDDEN);
        assert_eq!(call(&writer, "POST", all, &[OURS, admin]).await.1, json!({ "done": true }));
    }
    let far = format!("/api/queues/default/dead?offset={}", u64::MAX);
    assert_eq!(call(&reader, "GET", &far, &[]).await.1["jobs"], json!([]));
    call(&writer, "POST", "/api/queues/default/pause", &[OURS, admin]).await;
    assert!(queue.stats("default").await?.paused);

    for (method, path, expected) in [
        ("GET", "/api/nothing", StatusCode::NOT_FOUND),
        ("GET", "/api/queues/no%20name/dead", StatusCode::NOT_FOUND),
        ("DELETE", "/", StatusCode::METHOD_NOT_ALLOWED),
        ("POST", "/api/queues/default/explode", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(
            call(&writer, method, path, &[OURS, admin]).await.0,
            expected,
            "{method} {path}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn jobs_are_listed_cancelled_and_drained() -> Result<()> {
    let queue = Queue::memory();
    let doomed = |html: &str| Doomed { html: html.into() };
    let id = queue.push(doomed("a")).await?.id;
    queue.push(doomed("b")).delay(std::time::Duration::from_hours(1)).await?;
    let reader = Dashboard::new(&queue);
    let writer = Dashboard::new(&queue).allow_changes(|_| true);
    let (_, waiting) = call(&reader, "GET", "/api/queues/default/waiting", &[]).await;
    assert_eq!(
        (&waiting["jobs"][0]["id"], &waiting["jobs"][0]["payload"]),
        (&json!(id.to_string()), &json!(r#"{"html":"a"}"#))
    );
    let (_, scheduled) = call(&reader, "GET", "/api/queues/default/scheduled", &[]).await;
    assert!(scheduled["jobs"][0]["due_ms"].as_u64() > scheduled["jobs"][0]["pushed_ms"].as_u64());
    assert_eq!(call(&reader, "GET", "/api/queues/default/leased", &[]).await.1["jobs"], json!([]));

    let cancel = format!("/api/queues/default/jobs/{id}/cancel");
    let changes = [cancel.as_str(), "/api/queues/default/drain", "/api/batches/x/cancel"];
    for path in changes {
        assert_eq!(call(&reader, "POST", path, &[OURS]).await.0, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(call(&writer, "POST", path, &[]).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(call(&writer, "POST", &cancel, &[OURS]).await.1, json!({ "done": true }));
    assert_eq!(
        call(&writer, "POST", &cancel, &[OURS]).await.1,
        json!({ "done": false }),
        "it is dead by now"
    );
    assert_eq!(
        call(&writer, "POST", "/api/queues/default/jobs/nonsense/cancel", &[OURS]).await.1,
        json!({ "done": false })
    );
    assert_eq!(
        call(&writer, "POST", "/api/queues/default/drain", &[OURS]).await.1,
        json!({ "done": true })
    );
    let stats = queue.stats("default").await?;
    assert_eq!((stats.waiting, stats.scheduled, stats.dead), (0, 0, 1));

    let batch = queue.batch().job(doomed("c")).push().await?;
    let path = format!("/api/batches/{batch}");
    assert_eq!(call(&reader, "GET", &path, &[]).await.1["total"], 1);
    assert_eq!(
        call(&writer, "POST", &format!("{path}/cancel"), &[OURS]).await.1,
        json!({ "done": true })
    );
    assert_eq!(call(&reader, "GET", &path, &[]).await.1["cancelled"], true);
    assert_eq!(call(&reader, "GET", "/api/batches/unknown", &[]).await.0, StatusCode::NOT_FOUND);
    Ok(())
}

#[tokio::test]
async fn jobs_are_searched_in_steps() -> Result<()> {
    let queue = Queue::memory();
    queue.push_many((0..2_500).map(|n| Doomed { html: format!("order {n}.") })).await?;
    let reader = Dashboard::new(&queue);
    let search = async |query: &str| {
        call(&reader, "GET", &format!("/api/queues/default/waiting?{query}"), &[]).await.1
    };
    let page = search("").await;
    assert_eq!((page["jobs"].as_array().unwrap().len(), &page["next"]), (50, &json!(50)));
    // In upper case, encoded, and beyond the jobs that one answer searches.
    let first = search("search=ORDER%202400.").await;
    assert_eq!(first, json!({ "jobs": [], "next": 2_000 }));
    let second = search("search=order+2400.&offset=2000").await;
    assert_eq!(
        (&second["jobs"][0]["payload"], &second["next"]),
        (&json!(r#"{"html":"order 2400."}"#), &Value::Null)
    );
    // More matches than one page: none is skipped between two answers.
    let (mut seen, mut offset) = (0, 0);
    loop {
        let page = search(&format!("search=order%2011&offset={offset}")).await;
        seen += page["jobs"].as_array().unwrap().len();
        let Some(next) = page["next"].as_u64() else { break };
        assert!(next > offset, "{page}");
        offset = next;
    }
    assert_eq!(seen, 111, "order 11, 110 to 119 and 1100 to 1199");
    assert_eq!(
        search("offset=99999999999999999999&search=%ff%00").await,
        json!({ "jobs": [], "next": 2_000 })
    );
    Ok(())
}

#[tokio::test]
async fn who_is_there_is_listed_until_it_goes() -> Result<()> {
    let queue = Queue::memory();
    let reader = Dashboard::new(&queue);
    let get = async |path: &str| call(&reader, "GET", &format!("/api/{path}"), &[]).await.1;
    assert_eq!(get("workers").await, json!({ "workers": [] }));
    let worker = Worker::new(&queue).name("web-1").queues(["high", "low"]).concurrency(3);
    let workers = running([worker.handle(|_: Doomed| async { Ok::<(), std::io::Error>(()) })]);
    let there = eventually("the worker to be there", async || {
        get("workers").await["workers"].get(0).cloned()
    })
    .await?;
    assert!(there["id"].as_str().unwrap().starts_with("web-1-"), "{there}");
    assert_eq!((&there["queues"], &there["concurrency"]), (&json!(["high", "low"]), &json!(3)));
    workers.stop().await?;
    assert_eq!(get("workers").await, json!({ "workers": [] }), "it has said that it goes");

    for name in ["first", "second"] {
        queue.batch().named(name).job(Doomed { html: name.into() }).push().await?;
    }
    let batches = get("batches").await;
    assert_eq!(
        (&batches["batches"][0]["id"], &batches["batches"][1]["total"]),
        (&json!("second"), &json!(1)),
        "{batches}"
    );
    assert_eq!(get("batches?offset=50").await, json!({ "batches": [], "next": null }));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn news_come_as_events_until_the_time_is_over() -> Result<()> {
    let queue = Queue::memory();
    queue.push(Doomed { html: "a".into() }).await?;
    let request = Request::builder().uri("/q/api/events").body(Full::<Bytes>::default())?;
    let response = Dashboard::new(&queue).oneshot(request).await?;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let first = body.frame().await.unwrap()?.into_data().unwrap();
    let event: Value = serde_json::from_slice(first.strip_prefix(b"data: ").unwrap())?;
    assert_eq!(event["queues"][0]["waiting"], 1);
    queue.drain("default").await?;
    let second = body.frame().await.unwrap()?.into_data().unwrap();
    assert!(
        second.ends_with(b"\n\n") && String::from_utf8_lossy(&second).contains(r#""waiting":0"#)
    );
    let mut more = 0;
    while body.frame().await.is_some() {
        more += 1;
    }
    assert_eq!(more, 298, "ten minutes, then the page asks anew");
    Ok(())
}

/// A new payload is read only from a client that may change something, and up to 1 MiB.
#[tokio::test]
async fn a_dead_job_is_edited() -> Result<()> {
    let queue = Queue::memory();
    let worker = || {
        Worker::new(&queue).handle(|job: Doomed| async move {
            if job.html == "good" { Ok(()) } else { Err(Discard::because("no")) }
        })
    };
    let workers = running([worker()]);
    queue.push(Doomed { html: "bad".into() }).await?;
    let dead = async || queue.dead("default", 0, 1).await.ok()?.pop()?.id;
    let id = eventually("the job to be dead", dead).await?;
    let dashboard = Dashboard::new(&queue).allow_changes(|r| !r.headers.contains_key("reader"));
    let path = format!("/api/queues/default/dead/{id}/revive");
    let post = async |more: (&str, &str), content: &'static [u8]| {
        send(&dashboard, "POST", &path, &[OURS, more], content.into()).await
    };
    let (status, _) = post(("reader", "1"), br#"{"html":"good"}"#).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, answer) = post(("writer", "1"), b"{").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer["error"].as_str().unwrap().contains("no JSON"), "{answer}");
    static LARGE: [u8; 1024 * 1024 + 1] = [b' '; 1024 * 1024 + 1];
    let (status, _) = post(("writer", "1"), &LARGE).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(post(("writer", "1"), br#"{"html":"good"}"#).await.1, json!({ "done": true }));
    eventually("the job to be done", async || {
        (queue.stats("default").await.ok()?.done_total == 1).then_some(())
    })
    .await?;
    workers.stop().await
}

#[tokio::test]
async fn a_workflow_is_shown_and_changed() -> Result<()> {
    let queue = Queue::memory();
    let doomed = |html: &str| Doomed { html: html.into() };
    let workflow = queue.workflow().named("w").job("a", doomed("a")).job("b", doomed("b"));
    workflow.after(["a"]).push().await?;
    let dashboard = Dashboard::new(&queue).allow_changes(|_| true);
    let (_, shown) = call(&dashboard, "GET", "/api/batches/w", &[]).await;
    let nodes = json!([
        { "name": "a", "job": "doomed", "after": [], "state": "started" },
        { "name": "b", "job": "doomed", "after": ["a"], "state": "held" },
    ]);
    assert_eq!(
        shown,
        json!({ "total": 2, "done": 0, "dead": 0, "cancelled": false, "nodes": nodes }),
    );
    let post = async |path: &str| call(&dashboard, "POST", path, &[OURS]).await.1;
    assert_eq!(post("/api/batches/w/nodes/b/cancel").await, json!({ "done": true }));
    assert_eq!(post("/api/batches/w/nodes/b/retry").await, json!({ "done": false }), "a waits");
    assert_eq!(post("/api/batches/w/nodes/c/cancel").await, json!({ "done": false }));
    Ok(())
}
