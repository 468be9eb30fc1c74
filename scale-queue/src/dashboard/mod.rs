//! A page to look at queues with, and its JSON API, as a tower service that any framework can mount.
//!
//! It shows payloads and errors: mount it behind the application's own log-in. It changes nothing unless an authorizer is given, and then
//! only what that allows.
//!
//! | request, below where it is mounted | answer |
//! | --- | --- |
//! | `GET /` | the page: no build step, nothing loaded from elsewhere |
//! | `GET /api/queues` | `{"writable": bool, "queues": [{"name", "waiting", "scheduled", "blocked", "leased", "dead", "pushed_total", "done_total", "failed_total", "lag_ms", "paused"}]}` |
//! | `GET /api/events` | the same as server-sent events, every 2 s, for up to 10 minutes; the page asks by itself where that fails |
//! | `GET /api/queues/{queue}/waiting?offset=0&search=`, `…/scheduled`, `…/blocked`, `…/leased`, `…/dead` | `{"jobs": [{"id", "name", "payload", "size", "failed", "failures", "reason", "pushed_ms", "due_ms", "died_ms", "worker", "blocked_by", "progress"}], "next"}`: 50 at most, the dead newest first; go on at the offset `next`, if it is not null |
//! | `GET /api/history?queue=&by=minute` | `{"step_ms", "queues": [{"name", "samples": [{"at_ms", "pushed_total", "done_total", "failed_total", "waiting", "lag_ms"}]}]}`: of a day by minute, of 90 days by `hour`; without a queue, of the first 50 |
//! | `GET /api/workers`, `/api/schedules` | `{"workers": [{"id", "queues", "concurrency", "running", "started_ms", "process"}]}`, `{"schedules": [{"name", "rule", "job", "queue", "next_ms"}]}` |
//! | `GET /api/batches?offset=0` | `{"batches": [{"id", "pushed_ms", "total", "done", "dead", "cancelled"}], "next"}`, the newest first |
//! | `GET /api/batches/{id}` | `{"total", "done", "dead", "cancelled"}` |
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
//! A search looks for its text in ids, names, payloads, reasons and workers of 2,000 jobs at a time, and `next` goes on; payloads are cut
//! after 16 KiB. Every request costs a few commands, however many jobs wait; in a database it counts them, once a second for all who look.

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
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Full, StreamBody};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::Service;

use self::page::PAGE;
use crate::queue::Queue;

/// What an answer is made of: a page, JSON, or events without an end.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Between two events.
const PAUSE: Duration = Duration::from_secs(2);
/// The time for which an overview is good for whoever asks next.
const SHARED: Duration = Duration::from_secs(1);
/// Of one answer: ten minutes.
const EVENTS: u32 = 300;

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
    /// The rows of the last overview: whoever looks within a second of it sees the same.
    last: Arc<tokio::sync::Mutex<Option<(Instant, Vec<Value>)>>>,
}

impl fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dashboard").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Dashboard {
    /// To look at only.
    pub fn new(queue: &Queue) -> Self {
        Self { queue: queue.clone(), authorizer: None, last: Arc::default() }
    }

    /// Lets those change things whom `authorizer` allows: asked for each change.
    pub fn allow_changes(mut self, authorizer: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.authorizer = Some(Arc::new(authorizer));
        self
    }

    fn may_change(&self, request: &Parts) -> bool {
        self.authorizer.as_ref().is_some_and(|allowed| allowed(request))
    }

    /// A `HEAD` is a `GET` whose body is not sent.
    async fn answer(self, mut request: Parts) -> Response<Body> {
        if request.method == Method::HEAD {
            request.method = Method::GET;
            let mut response = Box::pin(self.answer_get(request)).await;
            *response.body_mut() = Body::new(Full::default());
            return response;
        }
        self.answer_get(request).await
    }

    async fn answer_get(self, request: Parts) -> Response<Body> {
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
            return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD here");
        }
        reply(StatusCode::OK, "text/html; charset=utf-8", PAGE.html.clone())
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
