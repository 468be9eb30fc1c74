//! Limits as a tower layer, for any service of `http` requests.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::limiter::Limiter;
use crate::policy::Policy;
use crate::response;

type KeyOf = dyn Fn(&Parts) -> Option<String> + Send + Sync;

#[derive(Clone)]
struct Rule {
    policy: Policy,
    key: Arc<KeyOf>,
}

/// Denies requests over their policies' quotas with 429, and tells all clients where they stand.
///
/// ```
/// use http::{Request, Response};
/// use scale_limit::client::ClientIp;
/// use scale_limit::{LimitLayer, Limiter, Policy};
///
/// let clients = ClientIp::direct();
/// let layer = LimitLayer::new(Limiter::memory())
///     .policy(Policy::per_second("site", 50), move |request| clients.key(request))
///     .policy(Policy::per_minute("login", 5), |request| (request.uri.path() == "/login").then(|| "all".into()));
/// ```
#[derive(Clone)]
pub struct LimitLayer {
    limiter: Limiter,
    rules: Arc<[Rule]>,
}

impl std::fmt::Debug for LimitLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.rules.iter().map(|r| r.policy.name()).collect();
        f.debug_struct("LimitLayer").field("policies", &names).finish_non_exhaustive()
    }
}

impl LimitLayer {
    /// A layer without policies: it lets all pass.
    pub fn new(limiter: Limiter) -> Self {
        Self { limiter, rules: Arc::new([]) }
    }

    /// Adds a policy; `key` says what a request counts against, `None` that it does not count.
    pub fn policy(mut self, policy: Policy, key: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        let rule = Rule { policy, key: Arc::new(key) };
        self.rules = self.rules.iter().cloned().chain([rule]).collect();
        self
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit { layer: self.clone(), inner }
    }
}

/// The service of [`LimitLayer`].
#[derive(Clone, Debug)]
pub struct Limit<S> {
    layer: LimitLayer,
    inner: S,
}

impl<S, Req, Res> Service<Request<Req>> for Limit<S>
where
    S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
    S::Future: Send,
    Req: Send + 'static,
    Res: From<Bytes>,
{
    type Response = Response<Res>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let rules = Arc::clone(&self.layer.rules);
        let keyed: Vec<(usize, String)> = rules.iter().enumerate().filter_map(|(n, r)| Some((n, (r.key)(&parts)?))).collect();
        let request = Request::from_parts(parts, body);
        if keyed.is_empty() {
            return Box::pin(self.inner.call(request));
        }
        let limiter = self.layer.limiter.clone();
        // The ready service is the one called; its clone waits for the next request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let charges: Vec<_> = keyed.iter().map(|(n, key)| (&rules[*n].policy, key.as_str(), 1)).collect();
            let decision = limiter.check_all(&charges).await;
            if !decision.admitted {
                return Ok(response::denial(&decision));
            }
            let mut answer = inner.call(request).await?;
            response::add_headers(&decision, answer.headers_mut());
            Ok(answer)
        })
    }
}
