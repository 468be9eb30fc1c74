//! Limits as a tower layer, for any service of `http` requests.

mod body;
mod future;
mod response;
mod throttle;

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

pub use self::body::LimitBody;
pub use self::future::ResponseFuture;
pub use self::response::Refusal;
pub use self::throttle::Throttle;
use crate::client::{ClientIp, Networks, Peer, prefix};
use crate::decision::Decision;
use crate::guard::bans::BanList;
use crate::limiter::Limiter;
use crate::policy::Policy;
use crate::task::go_on;

type Respond = dyn Fn(&Refusal<'_>, &Parts) -> Response<Bytes> + Send + Sync;

/// Denies requests over their policies' quotas with 429, and tells all clients where they stand.
///
/// ```
/// use scale_limit::client::ClientIp;
/// use scale_limit::layer::Throttle;
/// use scale_limit::{LimitLayer, Limiter, Policy};
///
/// let clients = ClientIp::direct();
/// let layer = LimitLayer::new(Limiter::memory())
///     .policy(Policy::per_second("site", 50), move |request| clients.key(request))
///     .throttle(Throttle::new(Policy::per_minute("login", 5), |_| Some("all".into())).method(http::Method::POST).path("/login"));
/// ```
///
/// A place of a policy that limits [how many at once](Policy::at_once) is held until the answer's body has been sent or dropped.
#[derive(Clone)]
pub struct LimitLayer(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    limiter: Limiter,
    throttles: Vec<Throttle>,
    gate: Option<Gate>,
    jitter: f64,
    respond: Option<Arc<Respond>>,
}

/// Who passes, or does not, whatever the policies say.
#[derive(Clone)]
struct Gate {
    clients: ClientIp,
    allowed: Networks,
    denied: Networks,
    bans: Option<BanList>,
}

impl std::fmt::Debug for LimitLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LimitLayer").field("throttles", &self.0.throttles).finish_non_exhaustive()
    }
}

impl LimitLayer {
    /// A layer without policies: it lets all pass.
    pub fn new(limiter: Limiter) -> Self {
        Self(Arc::new(Inner { limiter, throttles: Vec::new(), gate: None, jitter: 0.1, respond: None }))
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    fn gate(self, clients: &ClientIp, change: impl FnOnce(&mut Gate)) -> Self {
        self.with(|layer| {
            let gate = layer.gate.get_or_insert_with(|| Gate {
                clients: ClientIp::direct(),
                allowed: Networks::default(),
                denied: Networks::default(),
                bans: None,
            });
            gate.clients = clients.clone();
            change(gate);
        })
    }

    /// Adds a policy for all requests; `key` says what a request counts against, `None` that it does not count.
    pub fn policy(self, policy: Policy, key: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.throttle(Throttle::new(policy, key))
    }

    /// Adds a policy for some requests, or with costs of its own. All that apply to a request are asked at once: all admit, or none is
    /// charged.
    pub fn throttle(self, throttle: Throttle) -> Self {
        self.with(|layer| layer.throttles.push(throttle))
    }

    /// Clients of these networks pass without being counted: monitors, one's own offices.
    pub fn allow(self, clients: &ClientIp, networks: Networks) -> Self {
        self.gate(clients, |gate| gate.allowed = networks)
    }

    /// Clients of these networks are refused with 403. [Allowed](Self::allow) ones pass all the same.
    pub fn deny(self, clients: &ClientIp, networks: Networks) -> Self {
        self.gate(clients, |gate| gate.denied = networks)
    }

    /// Clients whose [key](ClientIp::key) is banned are refused with 403.
    pub fn bans(self, clients: &ClientIp, bans: BanList) -> Self {
        self.gate(clients, |gate| gate.bans = Some(bans))
    }

    /// `Retry-After` is up to that share longer than it need be, at random, so that all who were denied do not come back at once. Default:
    /// 0.1.
    pub fn jitter(self, share: f64) -> Self {
        self.with(|layer| layer.jitter = share.clamp(0.0, 10.0))
    }

    /// What is answered in place of a problem document; the `RateLimit` and `Retry-After` headers are added unless they are there.
    pub fn respond(self, respond: impl Fn(&Refusal<'_>, &Parts) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.with(|layer| layer.respond = Some(Arc::new(respond)))
    }
}

/// What the gate says.
enum Pass {
    Counted,
    Uncounted,
    Refused(Response<Bytes>),
}

impl Inner {
    fn at_the_gate(&self, parts: &Parts) -> Pass {
        let Some(gate) = &self.gate else { return Pass::Counted };
        let Some(ip) = parts.extensions.get::<Peer>().map(|peer| gate.clients.find(peer.0.ip(), &parts.headers)) else {
            return Pass::Counted;
        };
        if gate.allowed.contains(ip) {
            return Pass::Uncounted;
        }
        if gate.denied.contains(ip) {
            return Pass::Refused(self.refuse(&Refusal::Denied, parts));
        }
        match gate.bans.as_ref().and_then(|bans| bans.find(&prefix(ip))) {
            Some(ban) => Pass::Refused(self.refuse(&Refusal::Banned(&ban), parts)),
            None => Pass::Counted,
        }
    }

    fn refuse(&self, refusal: &Refusal<'_>, parts: &Parts) -> Response<Bytes> {
        let own = self.respond.as_ref().map(|respond| respond(refusal, parts));
        response::refusal(refusal, own, self.jitter)
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

/// What a request is charged.
type Asked = SmallVec<[throttle::Asked; 2]>;

impl<S, Req, Res> Service<Request<Req>> for Limit<S>
where
    S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
    S::Future: Send,
    Req: Send + 'static,
{
    type Response = Response<LimitBody<Res>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, Res, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let layer = &self.layer.0;
        let (parts, body) = request.into_parts();
        match layer.at_the_gate(&parts) {
            Pass::Refused(refused) => return ResponseFuture::refused(refused),
            Pass::Uncounted => return ResponseFuture::pass(self.inner.call(Request::from_parts(parts, body))),
            Pass::Counted => {}
        }
        let asked: Asked = layer.throttles.iter().filter_map(|throttle| throttle.ask(&parts)).collect();
        if asked.is_empty() {
            return ResponseFuture::pass(self.inner.call(Request::from_parts(parts, body)));
        }
        let decision = {
            let charges: SmallVec<[_; 2]> = asked.iter().map(throttle::Asked::charge).collect();
            layer.limiter.check_now(&charges)
        };
        match decision {
            Some(decision) if decision.admitted => {
                let settle = Settling::new(layer, asked);
                ResponseFuture::admitted(self.inner.call(Request::from_parts(parts, body)), decision, settle)
            }
            Some(decision) => ResponseFuture::refused(layer.refuse(&Refusal::TooMany(&decision), &parts)),
            None => {
                // The ready service is the one called; its clone waits for the next request.
                let clone = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, clone);
                let layer = Arc::clone(layer);
                ResponseFuture::waiting(async move {
                    let decision = {
                        let charges: SmallVec<[_; 2]> = asked.iter().map(throttle::Asked::charge).collect();
                        layer.limiter.check_all(&charges).await
                    };
                    if !decision.admitted {
                        return Ok(layer.refuse(&Refusal::TooMany(&decision), &parts).map(LimitBody::whole));
                    }
                    let settle = Settling::new(&layer, asked);
                    let answer = inner.call(Request::from_parts(parts, body)).await?;
                    Ok(finish(answer, decision, settle))
                })
            }
        }
    }
}

/// What is to be corrected once the answer is known.
struct Settling {
    limiter: Limiter,
    throttles: Vec<Throttle>,
    asked: Asked,
}

impl Settling {
    /// `None`: nothing to correct, whatever the answer.
    fn new(layer: &Inner, asked: Asked) -> Option<Self> {
        if layer.throttles.iter().all(Throttle::is_settled) {
            return None;
        }
        Some(Self { limiter: layer.limiter.clone(), throttles: layer.throttles.clone(), asked })
    }

    fn settle<B>(self, decision: &Decision, answer: &Response<B>) {
        let (mut back, mut more) = (Vec::new(), Vec::new());
        for asked in self.asked {
            let Some(real) = self.throttles.iter().find_map(|t| t.real_cost_of(&asked, answer.status(), answer.headers())) else {
                continue;
            };
            let (policy, key, cost) = asked.into_parts();
            if real < cost {
                back.push((policy, key, cost - real));
            } else if real > cost {
                more.push((policy, key, real - cost));
            }
        }
        if back.is_empty() && more.is_empty() {
            return;
        }
        // Places stay held by the decision that came with them.
        let decision = decision.without_places();
        let limiter = self.limiter;
        go_on(async move {
            let refund: Vec<_> = back.iter().map(|(p, k, c)| (p, k.as_str(), *c)).collect();
            if !refund.is_empty() {
                limiter.refund(&decision, &refund).await;
            }
            let debit: Vec<_> = more.iter().map(|(p, k, c)| (p, k.as_str(), *c)).collect();
            if !debit.is_empty() {
                limiter.debit(&debit).await;
            }
        });
    }
}

fn finish<B>(mut answer: Response<B>, decision: Decision, settle: Option<Settling>) -> Response<LimitBody<B>> {
    response::add_headers(&decision, answer.headers_mut());
    if let Some(settle) = settle {
        settle.settle(&decision, &answer);
    }
    answer.map(|body| LimitBody::new(body, decision))
}
