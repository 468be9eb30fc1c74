//! Limits as a tower layer, for any service of `http` requests.

mod body;
mod future;
mod response;
mod throttle;

use std::cmp::Ordering;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

pub use self::body::LimitBody;
pub use self::future::ResponseFuture;
use self::response::Headers;
pub use self::response::Refusal;
pub use self::throttle::Throttle;
use crate::client::{ClientIp, Key, Networks, Peer, prefix};
use crate::decision::Decision;
use crate::guard::bans::BanList;
use crate::head::Head;
use crate::limiter::Limiter;
use crate::permit::Permits;
use crate::policy::Policy;
use crate::task::go_on;

type Respond = dyn Fn(&Refusal<'_>, &Head<'_>) -> Response<Bytes> + Send + Sync;

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
    quiet: bool,
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
        Self(Arc::new(Inner { limiter, throttles: Vec::new(), gate: None, jitter: 0.1, quiet: false, respond: None }))
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
    pub fn policy(self, policy: Policy, key: impl Fn(&Head<'_>) -> Option<Key> + Send + Sync + 'static) -> Self {
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

    /// No `RateLimit` headers on what is admitted.
    pub fn quiet(self) -> Self {
        self.with(|layer| layer.quiet = true)
    }

    /// What is answered in place of a problem document; the `RateLimit` and `Retry-After` headers are added unless they are there.
    pub fn respond(self, respond: impl Fn(&Refusal<'_>, &Head<'_>) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.with(|layer| layer.respond = Some(Arc::new(respond)))
    }
}

/// What becomes of a request.
enum Verdict {
    /// It passes, and its answer is told that.
    Pass(Option<Box<Told>>),
    Refuse(Box<Response<Bytes>>),
    /// The store has to be asked.
    Ask(Asked),
}

impl Inner {
    fn judge(self: &Arc<Self>, head: &Head<'_>) -> Verdict {
        if let Some(verdict) = self.at_the_gate(head) {
            return verdict;
        }
        // Most layers have one policy, and no list of them is made.
        let (mut one, mut several) = (None, Asked::new());
        match &self.throttles[..] {
            [throttle] => one = throttle.ask(0, head),
            throttles => several.extend(throttles.iter().enumerate().filter_map(|(n, throttle)| throttle.ask(n, head))),
        }
        let asked = one.as_ref().map_or(&several[..], std::slice::from_ref);
        let decision = match asked {
            [] => return Verdict::Pass(None),
            [one] => self.limiter.check_now(&[one.charge(&self.throttles)]),
            several => self.limiter.check_now(&self.charges(several)),
        };
        match decision {
            Some(mut decision) if decision.admitted => Verdict::Pass(Told::new(self, &mut decision, asked)),
            Some(decision) => Verdict::Refuse(Box::new(self.refuse(&Refusal::TooMany(&decision), head))),
            None => {
                several.extend(one);
                Verdict::Ask(several)
            }
        }
    }

    /// What holds whatever the policies say.
    fn at_the_gate(&self, head: &Head<'_>) -> Option<Verdict> {
        let gate = self.gate.as_ref()?;
        let ip = head.extensions.get::<Peer>().map(|peer| gate.clients.find(peer.0.ip(), head.headers))?;
        let refuse = |refusal| Some(Verdict::Refuse(Box::new(self.refuse(&refusal, head))));
        if gate.allowed.contains(ip) {
            return Some(Verdict::Pass(None));
        }
        if gate.denied.contains(ip) {
            return refuse(Refusal::Denied);
        }
        let ban = gate.bans.as_ref().and_then(|bans| bans.find(&prefix(ip)))?;
        refuse(Refusal::Banned(&ban))
    }

    fn charges<'a>(&'a self, asked: &'a [throttle::Asked]) -> SmallVec<[(&'a Policy, &'a str, u32); 2]> {
        asked.iter().map(|asked| asked.charge(&self.throttles)).collect()
    }

    fn refuse(&self, refusal: &Refusal<'_>, head: &Head<'_>) -> Response<Bytes> {
        let own = self.respond.as_ref().map(|respond| respond(refusal, head));
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
        match layer.judge(&Head::from(&request)) {
            Verdict::Pass(told) => ResponseFuture::pass(self.inner.call(request), told),
            Verdict::Refuse(answer) => ResponseFuture::refused(answer),
            Verdict::Ask(asked) => {
                // The ready service is the one called; its clone waits for the next request.
                let clone = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, clone);
                let layer = Arc::clone(layer);
                ResponseFuture::waiting(async move {
                    let mut decision = layer.limiter.check_all(&layer.charges(&asked)).await;
                    if !decision.admitted {
                        return Ok(layer.refuse(&Refusal::TooMany(&decision), &Head::from(&request)).map(LimitBody::whole));
                    }
                    let told = Told::new(&layer, &mut decision, &asked);
                    Ok(Told::finish(told, inner.call(request).await?))
                })
            }
        }
    }
}

/// What an admitted request's answer is told, and what is to be corrected once it is known.
struct Told {
    headers: Headers,
    places: Option<Arc<Permits>>,
    settling: Option<Box<Settling>>,
}

impl Told {
    /// `None`: there is nothing to be told. In a box, because answers to come are moved about.
    fn new(layer: &Arc<Inner>, decision: &mut Decision, asked: &[throttle::Asked]) -> Option<Box<Self>> {
        let settled = layer.throttles.iter().all(Throttle::is_settled);
        let places = decision.take_places();
        if layer.quiet && settled && places.is_none() {
            return None;
        }
        let known = asked.first().and_then(|asked| asked.words(&layer.throttles));
        let headers = if layer.quiet { Headers::default() } else { Headers::new(decision, known) };
        let settling = || Box::new(Settling { layer: Arc::clone(layer), decision: decision.clone(), asked: asked.into() });
        Some(Box::new(Self { headers, places, settling: (!settled).then(settling) }))
    }

    /// The answer with what it is to be told.
    #[inline]
    fn finish<B>(told: Option<Box<Self>>, mut answer: Response<B>) -> Response<LimitBody<B>> {
        let places = told.and_then(|told| {
            let Self { headers, places, settling } = *told;
            headers.add(answer.headers_mut());
            if let Some(settling) = settling {
                settling.settle(answer.status(), answer.headers());
            }
            places
        });
        answer.map(|body| LimitBody::new(body, places))
    }
}

struct Settling {
    layer: Arc<Inner>,
    decision: Decision,
    asked: Asked,
}

impl Settling {
    /// What was charged becomes what it cost: less is given back, more is owed.
    fn settle(self: Box<Self>, status: StatusCode, headers: &HeaderMap) {
        let Self { layer, decision, asked } = *self;
        let (mut back, mut owed) = (Asked::new(), Asked::new());
        for mut asked in asked {
            let Some(real) = asked.real_cost(&layer.throttles, status, headers) else { continue };
            let charged = asked.cost;
            asked.cost = real.abs_diff(charged);
            match real.cmp(&charged) {
                Ordering::Less => back.push(asked),
                Ordering::Equal => {}
                Ordering::Greater => owed.push(asked),
            }
        }
        if back.is_empty() && owed.is_empty() {
            return;
        }
        go_on(async move {
            if !back.is_empty() {
                layer.limiter.refund(&decision, &layer.charges(&back)).await;
            }
            if !owed.is_empty() {
                layer.limiter.debit(&layer.charges(&owed)).await;
            }
        });
    }
}
