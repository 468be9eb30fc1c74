//! Load shedding as a tower layer.

use std::future::Future;
use std::hash::{BuildHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use super::adaptive::AdaptiveConcurrency;
use super::queue::{Entry, Place, Priority, Queue};
use crate::layer::{LimitBody, grpc};
use crate::request_head::RequestHead;

type PriorityOf = dyn Fn(&RequestHead<'_>) -> Priority + Send + Sync;
type ClassOf = dyn Fn(&RequestHead<'_>) -> u64 + Send + Sync;

/// Marks a response, in its extensions, as made without work: its time is not a sample.
/// [`LimitLayer`](crate::LimitLayer) marks its refusals.
///
/// ```
/// use http::Response;
/// use scale_limit::load::NoWork;
///
/// let mut answer = Response::new("from the cache");
/// answer.extensions_mut().insert(NoWork);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct NoWork;

/// Processes as many requests at once as the service can, lets others wait for a moment, and
/// refuses the rest: 503 with `Retry-After`.
///
/// All services made by one layer share its limit. The time of a request ends with the head of its
/// response. A request is compared with others of its [class](Self::class), by default those with
/// the same method and the same shape of path.
///
/// Only work is a sample: health checks ([`Priority::Critical`]), failures (5xx), refusals (429,
/// and all refusals of [`LimitLayer`](crate::LimitLayer)) and responses marked with [`NoWork`] are
/// not. So the order of the two layers does not affect the measurement. Put this layer outside, so
/// that an overloaded service does not check its limits first.
///
/// ```
/// use scale_limit::LoadShed;
/// use scale_limit::load::{AdaptiveConcurrency, Priority};
///
/// let shed = LoadShed::new(AdaptiveConcurrency::default());
/// let shed = shed.priority(|request| match request.uri.path() {
///     "/health" => Priority::Critical,
///     path if path.starts_with("/checkout") => Priority::High,
///     _ if request.headers.get("user-agent")
///         .is_some_and(|a| a.as_bytes().ends_with(b"bot")) => Priority::Low,
///     _ => Priority::Normal,
/// });
/// ```
#[derive(Clone)]
pub struct LoadShed {
    queue: Arc<Queue>,
    limit: AdaptiveConcurrency,
    longest: usize,
    longest_wait: Duration,
    retry_after: Duration,
    priority: Arc<PriorityOf>,
    class: Arc<ClassOf>,
}

impl std::fmt::Debug for LoadShed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadShed").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl LoadShed {
    /// Treats all requests alike; 1,000 may wait, for half a second at most.
    pub fn new(limit: AdaptiveConcurrency) -> Self {
        let (longest, longest_wait) = (1_000, Duration::from_millis(500));
        Self {
            queue: Queue::new(limit.clone(), longest, longest_wait),
            limit,
            longest,
            longest_wait,
            retry_after: Duration::from_secs(2),
            priority: Arc::new(|_| Priority::Normal),
            class: Arc::new(shape),
        }
    }

    fn queued(self) -> Self {
        Self { queue: Queue::new(self.limit.clone(), self.longest, self.longest_wait), ..self }
    }

    /// Sets how many requests may wait, and for how long in a burst. Under overload, when requests
    /// have had to wait throughout 250 ms, waiting ends after half the normal latency, but not
    /// before 1 ms; for [`Priority::High`] after four times the normal latency, but not before 16
    /// ms.
    pub fn queue(self, longest: usize, longest_wait: Duration) -> Self {
        Self { longest, longest_wait, ..self }.queued()
    }

    /// Sets the priority of a request.
    pub fn priority(
        self,
        priority: impl Fn(&RequestHead<'_>) -> Priority + Send + Sync + 'static,
    ) -> Self {
        Self { priority: Arc::new(priority), ..self }
    }

    /// Sets the class of a request, a number: requests of one class take about the same time.
    /// Default: requests with the same method, and with paths that differ only in numbers
    /// (`/orders/17`, `/orders/18`) or after the second segment.
    pub fn class(self, class: impl Fn(&RequestHead<'_>) -> u64 + Send + Sync + 'static) -> Self {
        Self { class: Arc::new(class), ..self }
    }

    /// Sets when refused clients may return, at most a day; `Retry-After` is up to twice that, at
    /// random. Default: 2 s.
    pub fn retry_after(self, time: Duration) -> Self {
        Self { retry_after: time.min(Duration::from_hours(24)), ..self }
    }

    /// Returns how many requests are being processed, and the limit.
    pub fn now(&self) -> (usize, usize) {
        self.queue.now()
    }

    /// Refuses a request. `grpc`: the content type of a gRPC request.
    fn turn_away<B>(
        &self,
        priority: Priority,
        grpc: Option<&HeaderValue>,
    ) -> Response<LimitBody<B>> {
        metrics::counter!("scale_limit_shed_total", "priority" => priority.name()).increment(1);
        let wait =
            self.retry_after.mul_f64(1.0 + fastrand::f64()).as_secs_f64().ceil().max(1.0) as u64;
        let mut response = grpc.map_or_else(too_busy, |kind| grpc::too_busy(kind, wait));
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait));
        response.extensions_mut().insert(NoWork);
        response.map(LimitBody::whole)
    }

    fn report(&self) {
        let (at_once, limit) = self.now();
        metrics::gauge!("scale_limit_at_once").set(at_once as f64);
        metrics::gauge!("scale_limit_at_once_limit").set(limit as f64);
    }
}

impl<S> Layer<S> for LoadShed {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed { layer: self.clone(), inner }
    }
}

/// Service of [`LoadShed`].
#[derive(Clone, Debug)]
pub struct Shed<S> {
    layer: LoadShed,
    inner: S,
}

/// Future of [`Shed`].
pub type ShedFuture<B, E> = Pin<Box<dyn Future<Output = Result<Response<LimitBody<B>>, E>> + Send>>;

impl<S, Req, Res> Service<Request<Req>> for Shed<S>
where
    S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
    S::Future: Send,
    Req: Send + 'static,
    Res: Send + 'static,
{
    type Response = Response<LimitBody<Res>>;
    type Error = S::Error;
    type Future = ShedFuture<Res, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let head = RequestHead::from(&request);
        let (priority, class, grpc) = (
            (self.layer.priority)(&head),
            (self.layer.class)(&head),
            grpc::spoken(head.headers).cloned(),
        );
        let entry = self.layer.queue.enter(priority);
        let layer = self.layer.clone();
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let place = match entry {
                Entry::In(place) => place,
                Entry::Waiting(place, longest_wait) => {
                    match tokio::time::timeout(longest_wait, place).await {
                        Ok(Ok(place)) => place,
                        _ => return Ok(layer.turn_away(priority, grpc.as_ref())),
                    }
                }
                Entry::Full => return Ok(layer.turn_away(priority, grpc.as_ref())),
            };
            layer.report();
            let mut watch = Watch(Some(place), class);
            let answer = inner.call(request).await;
            match (watch.0.take(), &answer) {
                (Some(place), Ok(answer)) if priority != Priority::Critical && is_work(answer) => {
                    place.answered(class);
                }
                (place, _) => drop(place),
            }
            Ok(answer?.map(LimitBody::free))
        })
    }
}

/// Records the time of a request that is dropped half way.
struct Watch(Option<Place>, u64);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(place) = self.0.take() {
            place.abandoned(self.1);
        }
    }
}

/// Returns whether the time of a response depends on the load: failures and refusals are fast for
/// other reasons.
fn is_work<B>(answer: &Response<B>) -> bool {
    let status = answer.status();
    !status.is_server_error()
        && status != StatusCode::TOO_MANY_REQUESTS
        && answer.extensions().get::<NoWork>().is_none()
}

fn too_busy() -> Response<Bytes> {
    let problem =
        br#"{"type":"about:blank","title":"Too busy, please come back later","status":503}"#;
    let mut response = Response::new(Bytes::from_static(problem));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// Returns a number for the method and two segments of the path, regardless of the numbers in them.
fn shape(head: &RequestHead<'_>) -> u64 {
    /// Maximum length of a path that is considered, in bytes.
    const LONGEST: usize = 64;
    let mut hash = foldhash::fast::FixedState::default().build_hasher();
    head.method.hash(&mut hash);
    let (mut segments, mut in_number) = (0, false);
    for byte in head.uri.path().bytes().take(LONGEST) {
        segments += u32::from(byte == b'/');
        if segments > 2 {
            break;
        }
        if byte.is_ascii_digit() && in_number {
            continue;
        }
        in_number = byte.is_ascii_digit();
        hash.write_u8(if in_number { b'0' } else { byte });
    }
    hash.finish()
}
