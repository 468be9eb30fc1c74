//! Limits as a tower layer, for any service of `http` requests.

mod body;
mod future;
mod gate;
pub(crate) mod grpc;
mod headers;
mod limits;
mod refusal;
mod service;
mod settle;
mod throttle;

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use tower_layer::Layer;

pub use self::body::{Kept, LimitBody, Wrapped};
pub use self::future::ResponseFuture;
use self::gate::{AccessLists, Gate};
use self::headers::HeaderOptions;
pub use self::limits::{Limits, Places};
pub use self::refusal::Refusal;
pub use self::service::Limit;
pub use self::throttle::Throttle;
use crate::client::{ClientIp, Key, Networks};
use crate::guard::bans::BanList;
use crate::limiter::Limiter;
use crate::policy::Policy;
use crate::request_head::RequestHead;

/// Denies requests over their policies' quotas with 429, and reports the state of the limits to all
/// clients.
///
/// ```
/// use scale_limit::client::ClientIp;
/// use scale_limit::layer::Throttle;
/// use scale_limit::{LimitLayer, Limiter, Policy};
///
/// let clients = ClientIp::direct();
/// let layer = LimitLayer::new(Limiter::memory())
///     .policy(Policy::per_second("site", 50), move |request| clients.key(request))
///     .throttle(
///         Throttle::new(Policy::per_minute("login", 5), |_| Some("all".into()))
///             .method(http::Method::POST)
///             .path("/login"),
///     );
/// ```
///
/// A permit of a [concurrency policy](Policy::concurrency) is held until the response body has been
/// sent or dropped.
///
/// Response bodies become [`LimitBody`], or [keep their type](Self::preserve_body).
#[derive(Clone)]
pub struct LimitLayer<W = Wrapped> {
    gate: Arc<Gate>,
    bodies: W,
}

impl<W> std::fmt::Debug for LimitLayer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LimitLayer")
            .field("throttles", &self.gate.throttles)
            .finish_non_exhaustive()
    }
}

impl LimitLayer {
    /// Creates a layer without policies, which admits every request.
    pub fn new(limiter: Limiter) -> Self {
        let gate = Gate {
            limiter,
            throttles: Vec::new(),
            lists: AccessLists::default(),
            jitter: 0.1,
            header_options: HeaderOptions::default(),
            extension: false,
            respond: None,
        };
        Self { gate: Arc::new(gate), bodies: Wrapped }
    }
}

impl<W> LimitLayer<W> {
    fn with(mut self, change: impl FnOnce(&mut Gate)) -> Self {
        change(Arc::make_mut(&mut self.gate));
        self
    }

    /// Adds a policy for all requests. `key` returns the key that a request is counted by, or
    /// `None` if the request does not count.
    pub fn policy(
        self,
        policy: Policy,
        key: impl Fn(&RequestHead<'_>) -> Option<Key> + Send + Sync + 'static,
    ) -> Self {
        self.throttle(Throttle::new(policy, key))
    }

    /// Adds a policy for some requests, or with its own costs. All policies that apply to a request
    /// are charged at once: all admit, or none is charged.
    ///
    /// # Panics
    /// If there is a policy with the same name and different rules: the two would be one policy in
    /// headers, metrics and stores.
    pub fn throttle(self, throttle: Throttle) -> Self {
        let policies = self.gate.throttles.iter().filter_map(Throttle::policy);
        let same = throttle.policy().and_then(|new| {
            policies.clone().find(|old| old.name() == new.name() && !old.rules_as(new))
        });
        assert!(
            same.is_none(),
            "two policies are called `{}` and have different numbers \
             or algorithms; give each a name of its own",
            same.map_or("", Policy::name)
        );
        self.with(|gate| gate.throttles.push(throttle))
    }

    /// Admits clients of these networks without counting: for monitoring, or the company's own
    /// networks. Called again, adds more.
    pub fn allow(self, clients: &ClientIp, networks: Networks) -> Self {
        self.with(|gate| gate.lists.allowed.push((clients.clone(), networks)))
    }

    /// Refuses clients of these networks with 403. [Allowed](Self::allow) clients are still
    /// admitted. Called again, adds more.
    pub fn deny(self, clients: &ClientIp, networks: Networks) -> Self {
        self.with(|gate| gate.lists.denied.push((clients.clone(), networks)))
    }

    /// Refuses clients with 403 whose address, or a network that contains it, is banned. Called
    /// again, adds another list.
    pub fn bans(self, clients: &ClientIp, bans: BanList) -> Self {
        self.with(|gate| gate.lists.bans.push((clients.clone(), bans)))
    }

    /// Sets the maximum share by which `Retry-After` is lengthened at random, so that denied
    /// clients do not all return at the same time. Default: 0.1.
    pub fn jitter(self, share: f64) -> Self {
        self.with(|gate| gate.jitter = if share.is_nan() { 0.0 } else { share.clamp(0.0, 10.0) })
    }

    /// Leaves out the `RateLimit` headers of admitted requests.
    pub fn without_headers(self) -> Self {
        self.with(|gate| gate.header_options.quiet = true)
    }

    /// Adds `X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds since 1970), of the policy with
    /// the smallest share left, for clients from before the draft.
    pub fn legacy_headers(self) -> Self {
        self.with(|gate| gate.header_options.old = true)
    }

    /// Adds the key that each policy has counted (`pk`, a hash) to the `RateLimit` headers, so that
    /// a client with several keys can distinguish its quotas.
    pub fn partition_keys(self) -> Self {
        self.with(|gate| gate.header_options.partition_keys = true)
    }

    /// Puts [`Limits`] into each request's extensions, so that handlers know the remaining units.
    pub fn with_extension(self) -> Self {
        self.with(|gate| gate.extension = true)
    }

    /// Sets the response to refused requests, instead of a problem document or a gRPC status. The
    /// `RateLimit` and `Retry-After` headers are added unless present.
    pub fn respond(
        self,
        respond: impl Fn(&Refusal<'_>, &RequestHead<'_>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|gate| gate.respond = Some(Arc::new(respond)))
    }

    /// Keeps the type of response bodies: `wrap` converts the body of a refusal, or of a response
    /// that holds a permit; all other bodies pass unchanged. For frameworks with a single body
    /// type, such as axum, which would otherwise box each body again.
    ///
    /// ```
    /// use axum::{Router, body::Body, routing::get};
    /// use scale_limit::{LimitLayer, Limiter, Policy};
    ///
    /// let limits = LimitLayer::new(Limiter::memory())
    ///     .policy(Policy::per_second("site", 50), |_| Some("all".into()));
    /// let app: Router = Router::new()
    ///     .route("/", get(|| async { "hello" }))
    ///     .layer(limits.preserve_body(Body::new));
    /// ```
    pub fn preserve_body<B>(self, wrap: fn(LimitBody<B>) -> B) -> LimitLayer<Kept<B>> {
        LimitLayer { gate: self.gate, bodies: Kept(wrap) }
    }
}

impl<S, W: Clone> Layer<S> for LimitLayer<W> {
    type Service = Limit<S, W>;

    fn layer(&self, inner: S) -> Limit<S, W> {
        Limit { layer: self.clone(), inner }
    }
}
