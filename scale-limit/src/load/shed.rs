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
use crate::head::Head;
use crate::layer::{LimitBody, grpc};

type PriorityOf = dyn Fn(&Head<'_>) -> Priority + Send + Sync;
type ClassOf = dyn Fn(&Head<'_>) -> u64 + Send + Sync;

/// Says, in an answer's extensions, that no work was done for it: its time is no sample. [`LimitLayer`](crate::LimitLayer) says so of what it
/// refuses.
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

/// Works on as many requests at once as the service can, lets the others wait a moment, and turns away the rest: 503 with `Retry-After`.
///
/// All services that one layer makes share its limit. What counts as a request's time ends with the head of its answer. A request is
/// compared with others of its [class](Self::class), by default those of its method and the shape of its path.
///
/// Only work is a sample: health checks ([`Priority::Critical`]), failures (5xx), refusals (429, and all of
/// [`LimitLayer`](crate::LimitLayer)'s) and answers that say so ([`NoWork`]) are none. So the order of the two layers does not matter to what
/// is measured; put this one outside, so that an overloaded service is not asked for its limits first.
///
/// ```
/// use scale_limit::LoadShed;
/// use scale_limit::load::{AdaptiveConcurrency, Priority};
///
/// let shed = LoadShed::new(AdaptiveConcurrency::default()).priority(|request| match request.uri.path() {
///     "/health" => Priority::Critical,
///     path if path.starts_with("/checkout") => Priority::High,
///     _ if request.headers.get("user-agent").is_some_and(|a| a.as_bytes().ends_with(b"bot")) => Priority::Low,
///     _ => Priority::Normal,
/// });
/// ```
#[derive(Clone)]
pub struct LoadShed {
    queue: Arc<Queue>,
    limit: AdaptiveConcurrency,
    longest: usize,
    patience: Duration,
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
    /// All requests alike; 1,000 may wait, for half a second at most.
    pub fn new(limit: AdaptiveConcurrency) -> Self {
        let (longest, patience) = (1_000, Duration::from_millis(500));
        Self {
            queue: Queue::new(limit.clone(), longest, patience),
            limit,
            longest,
            patience,
            retry_after: Duration::from_secs(2),
            priority: Arc::new(|_| Priority::Normal),
            class: Arc::new(shape),
        }
    }

    fn queued(self) -> Self {
        Self { queue: Queue::new(self.limit.clone(), self.longest, self.patience), ..self }
    }

    /// How many may wait, and for how long in a burst. In overload, when somebody has had to wait all through 250 ms, waiting ends after half
    /// the best latency, but not before 1 ms; for [`Priority::High`] after four times the best one, but not before 16 ms.
    pub fn queue(self, longest: usize, patience: Duration) -> Self {
        Self { longest, patience, ..self }.queued()
    }

    /// Who goes first.
    pub fn priority(self, priority: impl Fn(&Head<'_>) -> Priority + Send + Sync + 'static) -> Self {
        Self { priority: Arc::new(priority), ..self }
    }

    /// Sets the class of a request, by a number: those of one class take about as long as each other. Default: those with one method, and paths that differ in their numbers
    /// only (`/orders/17`, `/orders/18`), or after their second segment.
    pub fn class(self, class: impl Fn(&Head<'_>) -> u64 + Send + Sync + 'static) -> Self {
        Self { class: Arc::new(class), ..self }
    }

    /// When those turned away may come back, a day at most; they are told up to twice that, at random. Default: 2 s.
    pub fn retry_after(self, time: Duration) -> Self {
        Self { retry_after: time.min(Duration::from_hours(24)), ..self }
    }

    /// How many requests are worked on, and how many may be at once.
    pub fn now(&self) -> (usize, usize) {
        self.queue.now()
    }

    /// `grpc`: the content type of a request that speaks gRPC.
    fn turn_away<B>(&self, priority: Priority, grpc: Option<&HeaderValue>) -> Response<LimitBody<B>> {
        metrics::counter!("scale_limit_shed_total", "priority" => priority.name()).increment(1);
        let wait = self.retry_after.mul_f64(1.0 + fastrand::f64()).as_secs_f64().ceil().max(1.0) as u64;
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

/// The service of [`LoadShed`].
#[derive(Clone, Debug)]
pub struct Shed<S> {
    layer: LoadShed,
    inner: S,
}

/// The future of [`Shed`].
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
        let head = Head::from(&request);
        let (priority, class, grpc) =
            ((self.layer.priority)(&head), (self.layer.class)(&head), grpc::spoken(head.headers).cloned());
        let entry = self.layer.queue.enter(priority);
        let layer = self.layer.clone();
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let place = match entry {
                Entry::In(place) => place,
                Entry::Waiting(place, patience) => match tokio::time::timeout(patience, place).await {
                    Ok(Ok(place)) => place,
                    _ => return Ok(layer.turn_away(priority, grpc.as_ref())),
                },
                Entry::Full => return Ok(layer.turn_away(priority, grpc.as_ref())),
            };
            layer.report();
            let mut watch = Watch(Some(place), class);
            let answer = inner.call(request).await;
            match (watch.0.take(), &answer) {
                (Some(place), Ok(answer)) if priority != Priority::Critical && is_work(answer) => place.answered(class),
                (place, _) => drop(place),
            }
            Ok(answer?.map(LimitBody::free))
        })
    }
}

/// Tells what a request of a class took that was dropped half way.
struct Watch(Option<Place>, u64);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(place) = self.0.take() {
            place.abandoned(self.1);
        }
    }
}

/// Returns whether an answer's time says something of the load: failures and refusals are fast for reasons of their own.
fn is_work<B>(answer: &Response<B>) -> bool {
    let status = answer.status();
    !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS && answer.extensions().get::<NoWork>().is_none()
}

fn too_busy() -> Response<Bytes> {
    let problem = br#"{"type":"about:blank","title":"Too busy, please come back later","status":503}"#;
    let mut response = Response::new(Bytes::from_static(problem));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// A number for the method and two segments of the path, whatever numbers are in them.
fn shape(head: &Head<'_>) -> u64 {
    /// The longest path looked at, bytes.
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
