//! A page to look at queues with, and its JSON API, as a tower service that any framework can mount.
//!
//! It shows payloads and errors: mount it behind the application's own log-in. It changes nothing unless an authorizer is given, and then
//! only what that allows.
//!
//! | request, below where it is mounted | answer |
//! | --- | --- |
//! | `GET /` | the page: no build step, nothing loaded from elsewhere |
//! | `GET /api/queues` | `{"writable": bool, "queues": [{"name", "waiting", "scheduled", "leased", "dead", "done_total", "failed_total", "lag_ms", "paused"}]}` |
//! | `GET /api/events` | the same as server-sent events, every 2 s, for up to 10 minutes; the page asks by itself where that fails |
//! | `GET /api/queues/{queue}/waiting?offset=0`, `…/scheduled`, `…/leased` | `{"jobs": [{"id", "name", "payload", "failed", "last_error", "pushed_ms", "due_ms", "worker", "progress"}]}`, 50 at most |
//! | `GET /api/batches/{id}` | `{"total", "done", "dead", "cancelled"}` |
//! | `GET /api/queues/{queue}/dead?offset=0` | `{"dead": [{"id", "name", "payload", "failed", "reason", "died_ms"}]}`, 50 at most, newest first |
//! | `POST /api/queues/{queue}/pause`, `…/resume` | `{"done": true}` |
//! | `POST /api/queues/{queue}/drain` | `{"done": true}`: nothing waits or is scheduled any more, for good |
//! | `POST /api/queues/{queue}/jobs/{id}/cancel` | `{"done": bool}`: `false` if it is not there |
//! | `POST /api/batches/{id}/cancel` | `{"done": bool}` |
//! | `POST /api/queues/{queue}/dead/{id}/revive` | `{"done": bool}`: `false` if it is not among the newest 1,000 |
//! | `POST /api/queues/{queue}/dead/{id}/forget` | the same, and the job is gone for good |
//! | `POST /api/queues/{queue}/dead/revive`, `…/forget` | `{"done": true}`: all that are dead by now |
//!
//! A `POST` needs the header `x-scale-queue: dashboard`, which no other site's page can send without asking the browser first, and must
//! not come from another site (`Sec-Fetch-Site`). Errors are `{"error": "…"}` with a fitting status.
//!
//! Every request costs a few commands, however many jobs wait.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Full, StreamBody};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tower::Service;

use crate::error::Error;
use crate::queue::{Dead, Queue};
use crate::store::State;

/// The page in one piece, so that it works wherever it is mounted, with a slash at the end or without; and a policy under which no other
/// script or style runs in it.
static PAGE_AND_POLICY: LazyLock<(Bytes, HeaderValue)> = LazyLock::new(|| {
    let (style, script) = (include_str!("style.css"), include_str!("app.js"));
    let page = include_str!("page.html").replace("{style}", style).replace("{script}", script);
    let hash = |text: &str| BASE64.encode(&Sha256::digest(text.as_bytes()));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        hash(script),
        hash(style)
    );
    // Base64 and constants are a header's value.
    let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    (page.into(), policy)
});

/// What an answer is made of: a page, JSON, or events without an end.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Jobs of one answer.
const PAGE: usize = 50;
/// Between two events.
const PAUSE: Duration = Duration::from_secs(2);
/// Of one answer: ten minutes.
const EVENTS: u32 = 300;
/// Among so many of the newest dead a job is looked for.
const REACH: usize = 1_000;

type Authorizer = dyn Fn(&Parts) -> bool + Send + Sync;

/// The service. Cloning costs a few reference counts.
///
/// ```
/// use scale_queue::{Dashboard, Queue};
///
/// let queue = Queue::memory();
/// let dashboard = Dashboard::new(&queue).allow_changes(|request| request.extensions.get::<IsAdmin>().is_some());
/// // axum: Router::new().nest_service("/admin/queues", dashboard)
/// # #[derive(Clone)] struct IsAdmin;
/// ```
#[derive(Clone)]
pub struct Dashboard {
    queue: Queue,
    authorizer: Option<Arc<Authorizer>>,
}

impl fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dashboard").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Dashboard {
    /// To look at only.
    pub fn new(queue: &Queue) -> Self {
        Self { queue: queue.clone(), authorizer: None }
    }

    /// Lets those change things whom `authorizer` allows: asked for each change.
    pub fn allow_changes(mut self, authorizer: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.authorizer = Some(Arc::new(authorizer));
        self
    }

    fn may_change(&self, request: &Parts) -> bool {
        self.authorizer.as_ref().is_some_and(|allowed| allowed(request))
    }

    async fn answer(self, request: Parts) -> Response<Body> {
        let path = request.uri.path();
        if request.method == Method::GET && path.ends_with("/api/events") {
            return self.events(request);
        }
        // Where it is mounted is the framework's business: what counts is what comes after `/api/`.
        if let Some((_, rest)) = path.split_once("/api/") {
            let segments: Vec<&str> = rest.split('/').collect();
            return match self.api(&request, &segments).await {
                Ok(value) => reply(StatusCode::OK, "application/json", value.to_string()),
                Err((status, error)) => reply(status, "application/json", json!({ "error": error }).to_string()),
            };
        }
        if request.method != Method::GET {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET here");
        }
        reply(StatusCode::OK, "text/html; charset=utf-8", PAGE_AND_POLICY.0.clone())
    }

    async fn api(&self, request: &Parts, segments: &[&str]) -> Result<Value, (StatusCode, String)> {
        match (&request.method, segments) {
            (&Method::GET, ["queues"]) => self.overview(request).await,
            (&Method::GET, ["queues", queue, "dead"]) => {
                let dead = self.queue.dead(queue, offset(request), PAGE).await.map_err(told)?;
                Ok(json!({ "dead": dead.iter().map(shown).collect::<Vec<_>>() }))
            }
            (&Method::GET, ["queues", queue, "waiting"]) => self.listed(request, queue, State::Waiting).await,
            (&Method::GET, ["queues", queue, "scheduled"]) => self.listed(request, queue, State::Scheduled).await,
            (&Method::GET, ["queues", queue, "leased"]) => self.listed(request, queue, State::Leased).await,
            (&Method::GET, ["batches", id]) => match self.queue.batch_status(id).await.map_err(told)? {
                Some(status) => Ok(json!(status)),
                None => Err((StatusCode::NOT_FOUND, "there is no such batch".into())),
            },
            (&Method::POST, ["batches", id, "cancel"]) => {
                self.check(request)?;
                Ok(json!({ "done": self.queue.cancel_batch(id).await.map_err(told)? }))
            }
            (&Method::POST, ["queues", queue, rest @ ..]) => {
                self.check(request)?;
                let done = match rest {
                    ["pause"] => self.queue.pause(queue).await.map(|()| true),
                    ["resume"] => self.queue.resume(queue).await.map(|()| true),
                    ["drain"] => self.queue.drain(queue).await.map(|_| true),
                    ["jobs", id, "cancel"] => match id.parse() {
                        Ok(id) => self.queue.cancel(queue, id).await,
                        Err(_) => Ok(false),
                    },
                    ["dead", "revive"] => self.queue.revive_all(queue).await.map(|_| true),
                    ["dead", "forget"] => self.queue.forget_all(queue).await.map(|_| true),
                    ["dead", id, fate @ ("revive" | "forget")] => self.exhume(queue, id, fate).await,
                    _ => return Err((StatusCode::NOT_FOUND, "there is no such thing to do".into())),
                };
                Ok(json!({ "done": done.map_err(told)? }))
            }
            _ => Err((StatusCode::NOT_FOUND, "there is no such thing".into())),
        }
    }

    /// The overview again and again, until the reader goes away or has had its time: whose rights may have ended meanwhile.
    fn events(self, request: Parts) -> Response<Body> {
        let events = stream::unfold((self, request, 0), |(this, request, count)| async move {
            if count == EVENTS {
                return None;
            }
            if count > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let event = match this.overview(&request).await {
                Ok(overview) => format!("data: {overview}\n\n"),
                Err((_, error)) => format!("event: failed\ndata: {error}\n\n"),
            };
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), (this, request, count + 1)))
        });
        let mut response = reply(StatusCode::OK, "text/event-stream", Bytes::new());
        // What a proxy holds back is not live.
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        *response.body_mut() = Body::new(StreamBody::new(events.boxed()));
        response
    }

    async fn listed(&self, request: &Parts, queue: &str, state: State) -> Result<Value, (StatusCode, String)> {
        let jobs = self.queue.jobs(queue, state, offset(request), PAGE).await.map_err(told)?;
        let shown = jobs.into_iter().map(async |job| {
            let progress = match job.id.filter(|_| state == State::Leased) {
                Some(id) => self.queue.progress(id).await?,
                None => None,
            };
            let mut shown = json!(job);
            shown["id"] = json!(job.id.map(|id| id.to_string()));
            shown["progress"] = json!(progress);
            Ok::<_, Error>(shown)
        });
        Ok(json!({ "jobs": try_join_all(shown).await.map_err(told)? }))
    }

    async fn overview(&self, request: &Parts) -> Result<Value, (StatusCode, String)> {
        let names = self.queue.queues().await.map_err(told)?;
        let stats = try_join_all(names.iter().map(|name| self.queue.stats(name))).await.map_err(told)?;
        let queues: Vec<Value> = names
            .iter()
            .zip(stats)
            .map(|(name, stats)| {
                let mut row = serde_json::to_value(stats).unwrap_or_default();
                row["name"] = json!(name);
                row
            })
            .collect();
        Ok(json!({ "writable": self.may_change(request), "queues": queues }))
    }

    async fn exhume(&self, queue: &str, id: &str, fate: &str) -> Result<bool, Error> {
        let dead = self.queue.dead(queue, 0, REACH).await?;
        match dead.iter().find(|dead| dead.id.is_some_and(|known| known.to_string() == id)) {
            Some(dead) if fate == "forget" => self.queue.forget(queue, dead).await,
            Some(dead) => self.queue.revive(queue, dead).await,
            None => Ok(false),
        }
    }

    /// Whether a change may be made: by this person, from our own page.
    fn check(&self, request: &Parts) -> Result<(), (StatusCode, String)> {
        let header = |name: &str| request.headers.get(name).map(HeaderValue::as_bytes);
        let ours = header("x-scale-queue") == Some(b"dashboard");
        let same_site = header("sec-fetch-site").is_none_or(|site| site == b"same-origin" || site == b"none");
        match self.may_change(request) {
            true if ours && same_site => Ok(()),
            true => Err((StatusCode::FORBIDDEN, "not sent by the dashboard's own page".into())),
            false => Err((StatusCode::FORBIDDEN, "only to look at".into())),
        }
    }
}

fn offset(request: &Parts) -> usize {
    let query = request.uri.query().unwrap_or_default();
    let value = query.split('&').find_map(|pair| pair.strip_prefix("offset="));
    value.and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn shown(dead: &Dead) -> Value {
    json!({
        "id": dead.id.map(|id| id.to_string()),
        "name": dead.name,
        "payload": dead.payload,
        "failed": dead.failed,
        "reason": dead.reason,
        "died_ms": dead.died_ms,
    })
}

/// What is told of an error: nothing of the store's inside.
fn told(error: Error) -> (StatusCode, String) {
    match error {
        Error::Name(_) => (StatusCode::NOT_FOUND, error.to_string()),
        other => {
            tracing::warn!(error = %other, "the dashboard's store failed");
            (StatusCode::SERVICE_UNAVAILABLE, "the queue's store does not answer".into())
        }
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, PAGE_AND_POLICY.1.clone());
    response
}

impl<B> Service<Request<B>> for Dashboard {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // No request of ours has a body that is read.
        let (parts, _) = request.into_parts();
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(parts).await) })
    }
}
