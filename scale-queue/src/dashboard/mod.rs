//! Dashboard of queues: a web page and its JSON API, as a tower service that any framework can
//! mount.
//!
//! It shows payloads and errors: mount it behind the application's own authentication. It is
//! read-only unless an authorizer is given, and then allows only the changes that the authorizer
//! allows.
//!
//! | request, relative to the mount point | answer |
//! | --- | --- |
//! | `GET /` | the page: no build step, no external resources |
//! | `GET /api/queues` | `{"writable": bool, "queues": [{"name", "waiting", "scheduled", "blocked", "leased", "dead", "pushed_total", "done_total", "failed_total", "lag_ms", "paused"}]}` |
//! | `GET /api/events` | the same as server-sent events, every 2 s, for up to 10 minutes; where that fails, the page polls |
//! | `GET /api/queues/{queue}/waiting?offset=0&search=`, `…/scheduled`, `…/blocked`, `…/leased`, `…/dead` | `{"jobs": [{"id", "name", "payload", "size", "tags", "failed", "failures", "reason", "pushed_ms", "due_ms", "died_ms", "worker", "blocked_by", "progress"}], "next"}`: at most 50, dead jobs newest first; continue at the offset `next`, if it is not null |
//! | `GET /api/queues/{queue}/ended?offset=0&search=` | `{"jobs": [{"id", "name", "payload", "tags", "failed", "failures", "reason", "pushed_ms", "ended_ms", "took_ms", "worker"}], "next"}`: jobs that have ended and are [kept](crate::ended), the newest first; a search is a tag |
//! | `GET /api/jobs/{id}/log?name=` | `{"lines": [{"at_ms", "attempt", "text"}]}`: the [log](crate::log) of the job with that id and [name](crate::Job::NAME) |
//! | `GET /api/history?queue=&by=minute` | `{"step_ms", "queues": [{"name", "samples": [{"at_ms", "pushed_total", "done_total", "failed_total", "waiting", "lag_ms"}]}]}`: of a day by minute, of 90 days by `hour`; without a queue, of the first 50 queues |
//! | `GET /api/workers`, `/api/schedules` | `{"workers": [{"id", "queues", "concurrency", "running", "started_ms", "process", "quiet"}]}`, `{"schedules": [{"name", "rule", "job", "queue", "next_ms", "paused"}]}` |
//! | `GET /api/batches?offset=0` | `{"batches": [{"id", "pushed_ms", "total", "done", "dead", "cancelled"}], "next"}`, the newest first |
//! | `GET /api/batches/{id}` | `{"total", "done", "dead", "cancelled", "nodes": [{"name", "job", "after", "state"}]}`: the nodes of a workflow |
//! | `POST /api/queues/{queue}/pause`, `…/resume` | `{"done": true}` |
//! | `POST /api/workers/{id}/quiet`, `…/resume` | `{"done": true}`; see [`Queue::set_quiet`] |
//! | `POST /api/schedules/{name}/pause`, `…/resume`, `…/run` | `{"done": true}` |
//! | `POST /api/queues/{queue}/drain` | `{"done": true}`: waiting, blocked and scheduled jobs are removed permanently |
//! | `POST /api/queues/{queue}/jobs/{id}/cancel` | `{"done": bool}`: `false` if the job is not there |
//! | `POST /api/batches/{id}/cancel` | `{"done": bool}` |
//! | `POST /api/batches/{id}/nodes/{name}/cancel`, `…/retry` | `{"done": bool}`: see [`Queue::cancel_node`], [`Queue::retry_node`] |
//! | `POST /api/queues/{queue}/dead/{id}/revive` | `{"done": bool}`: `false` if the job is not among the newest 1,000 dead ones; with a body, that is the job's new payload, JSON of up to 1 MiB |
//! | `POST /api/queues/{queue}/dead/{id}/forget` | the same; the job is removed permanently |
//! | `POST /api/queues/{queue}/dead/revive`, `…/forget` | `{"done": true}`: for all jobs that are dead at that time |
//!
//! A `POST` needs the header `x-scale-queue: dashboard`, which a page of another site cannot send
//! without a CORS preflight request, and must not come from another site (`Sec-Fetch-Site`). Errors
//! are `{"error": "…"}` with a fitting status.
//!
//! A search looks for its text in the ids, names, payloads, reasons and workers of 2,000 jobs per
//! request; `next` is where the next request continues. Payloads are cut after 16 KiB. Every
//! request costs a few commands, whatever the number of waiting jobs. A database has to count them,
//! at most once a second for all viewers together.

mod api;
mod page;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::Service;

use self::page::PAGE;
use crate::format::MAX_SIZE;
use crate::queue::Queue;

/// Body of an answer: a page, JSON, or a stream of events.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Time between two events.
const PAUSE: Duration = Duration::from_secs(2);
/// Time for which an overview is reused by other requests.
const SHARED: Duration = Duration::from_secs(1);
/// Time in which the body of a request must be sent.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of events in one answer: ten minutes.
const EVENTS: u32 = 300;

type Authorizer = dyn Fn(&Parts) -> bool + Send + Sync;

/// Tower service of the dashboard. Cloning costs a few reference counts.
///
/// ```
/// use scale_queue::{Dashboard, Queue};
///
/// let queue = Queue::memory();
/// let dashboard = Dashboard::new(&queue)
///     .allow_changes(|request| request.extensions.get::<IsAdmin>().is_some());
/// // axum: Router::new().nest_service("/admin/queues", dashboard)
/// # #[derive(Clone)] struct IsAdmin;
/// ```
#[must_use]
#[derive(Clone)]
pub struct Dashboard {
    queue: Queue,
    authorizer: Option<Arc<Authorizer>>,
    /// Rows of the last overview; requests within a second of it get the same rows.
    last: Arc<tokio::sync::Mutex<Option<(Instant, Vec<Value>)>>>,
}

impl fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dashboard").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Dashboard {
    /// Creates a read-only dashboard.
    pub fn new(queue: &Queue) -> Self {
        Self { queue: queue.clone(), authorizer: None, last: Arc::default() }
    }

    /// Allows changes for which `authorizer` returns `true`; it is called for each change.
    pub fn allow_changes(
        mut self,
        authorizer: impl Fn(&Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.authorizer = Some(Arc::new(authorizer));
        self
    }

    fn may_change(&self, request: &Parts) -> bool {
        self.authorizer.as_ref().is_some_and(|allowed| allowed(request))
    }

    /// Answers a request; a `HEAD` is answered as a `GET` without its body.
    async fn answer(self, mut request: Parts, content: Bytes) -> Response<Body> {
        if request.method == Method::HEAD {
            request.method = Method::GET;
            let mut response = Box::pin(self.answer_get(request, content)).await;
            *response.body_mut() = Body::new(Full::default());
            return response;
        }
        self.answer_get(request, content).await
    }

    async fn answer_get(self, request: Parts, content: Bytes) -> Response<Body> {
        let path = request.uri.path();
        if request.method == Method::GET && path.ends_with("/api/events") {
            return self.events(request);
        }
        // The mount point is up to the framework: only the path after `/api/` counts.
        if let Some((_, rest)) = path.split_once("/api/") {
            let segments: Vec<&str> = rest.split('/').collect();
            return match self.api(&request, &segments, &content).await {
                Ok(value) => reply(StatusCode::OK, "application/json", value.to_string()),
                Err((status, error)) => {
                    reply(status, "application/json", json!({ "error": error }).to_string())
                }
            };
        }
        if request.method != Method::GET {
            return reply(
                StatusCode::METHOD_NOT_ALLOWED,
                "text/plain",
                "method not allowed: expected GET or HEAD",
            );
        }
        reply(StatusCode::OK, "text/html; charset=utf-8", PAGE.html.clone())
    }

    /// Streams the overview until the client disconnects or the maximum number of events is sent.
    /// The limit exists because the client's permissions may have ended meanwhile.
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
        // Asks proxies not to buffer the stream.
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        *response.body_mut() = Body::new(StreamBody::new(events.boxed()));
        response
    }
}

/// Reads the body of a request, if it is small and is sent in time.
async fn read<B: HttpBody<Data: Send> + Send>(body: B) -> Option<Bytes> {
    let body = body.map_err(|_| std::io::Error::other("the body ended too early"));
    let read = Limited::new(body, MAX_SIZE).collect();
    Some(tokio::time::timeout(BODY_TIMEOUT, read).await.ok()?.ok()?.to_bytes())
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, PAGE.policy.clone());
    response
}

impl<B> Service<Request<B>> for Dashboard
where
    B: HttpBody + Send + 'static,
    B::Data: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let this = self.clone();
        Box::pin(async move {
            // The body of a client that may change nothing is not read.
            if parts.method != Method::POST || !this.may_change(&parts) {
                return Ok(this.answer(parts, Bytes::new()).await);
            }
            match read(body).await {
                Some(content) => Ok(this.answer(parts, content).await),
                None => Ok(reply(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "application/json",
                    json!({ "error": "expected a body of up to 1 MiB, sent within 10 s" })
                        .to_string(),
                )),
            }
        })
    }
}
