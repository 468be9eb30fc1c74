//! Limits as a tower layer, for any service of `http` requests.

mod body;
mod future;
pub(crate) mod grpc;
mod limits;
mod response;
mod throttle;
mod told;

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use self::body::Bodies;
pub use self::body::{Kept, LimitBody, Wrapped};
use self::future::End;
pub use self::future::ResponseFuture;
pub use self::limits::{Limits, Places};
pub use self::response::Refusal;
use self::response::{Headers, Telling};
use self::throttle::Plain;
pub use self::throttle::Throttle;
use self::told::Told;
use crate::client::{ClientIp, Key, Networks, Peer, inner, say_what_is_missing};
use crate::decision::Decision;
use crate::guard::bans::BanList;
use crate::head::Head;
use crate::key;
use crate::limiter::Limiter;
use crate::policy::Policy;
use crate::store::Charge;

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
///
/// Answers' bodies become [`LimitBody`], or [stay what they are](Self::keep_body).
#[derive(Clone)]
pub struct LimitLayer<W = Wrapped> {
    layer: Arc<Inner>,
    bodies: W,
}

#[derive(Clone)]
struct Inner {
    limiter: Limiter,
    throttles: Vec<Throttle>,
    gate: Option<Gate>,
    jitter: f64,
    telling: Telling,
    /// Handlers are told where their requests stand.
    extension: bool,
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

impl<W> std::fmt::Debug for LimitLayer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LimitLayer").field("throttles", &self.layer.throttles).finish_non_exhaustive()
    }
}

impl LimitLayer {
    /// A layer without policies: it lets all pass.
    pub fn new(limiter: Limiter) -> Self {
        let layer = Inner {
            limiter,
            throttles: Vec::new(),
            gate: None,
            jitter: 0.1,
            telling: Telling::default(),
            extension: false,
            respond: None,
        };
        Self { layer: Arc::new(layer), bodies: Wrapped }
    }
}

impl<W> LimitLayer<W> {
    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.layer));
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
    ///
    /// # Panics
    /// If a policy of the same name is there that rules otherwise: by one name the two would be one in headers, metrics and stores.
    pub fn throttle(self, throttle: Throttle) -> Self {
        let policies = self.layer.throttles.iter().filter_map(Throttle::policy);
        let same = throttle.policy().and_then(|new| policies.clone().find(|old| old.name() == new.name() && !old.rules_as(new)));
        assert!(
            same.is_none(),
            "two policies are called `{}` and have different numbers or algorithms; give each a name of its own",
            same.map_or("", Policy::name)
        );
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

    /// Clients whose address is banned, or a network that it is in, are refused with 403.
    pub fn bans(self, clients: &ClientIp, bans: BanList) -> Self {
        self.gate(clients, |gate| gate.bans = Some(bans))
    }

    /// `Retry-After` is up to that share longer than it need be, at random, so that all who were denied do not come back at once. Default:
    /// 0.1.
    pub fn jitter(self, share: f64) -> Self {
        self.with(|layer| layer.jitter = if share.is_nan() { 0.0 } else { share.clamp(0.0, 10.0) })
    }

    /// No `RateLimit` headers on what is admitted.
    pub fn quiet(self) -> Self {
        self.with(|layer| layer.telling.quiet = true)
    }

    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds since 1970) as well, of the policy with the least left, for clients from
    /// before the draft.
    pub fn legacy_headers(self) -> Self {
        self.with(|layer| layer.telling.old = true)
    }

    /// Says in the `RateLimit` headers which key each policy has counted (`pk`, a hash): so a client with several keys can tell its quotas
    /// apart.
    pub fn partition_keys(self) -> Self {
        self.with(|layer| layer.telling.partition_keys = true)
    }

    /// Puts [`Limits`] into each request's extensions, so that handlers know what is left.
    pub fn with_extension(self) -> Self {
        self.with(|layer| layer.extension = true)
    }

    /// What is answered in place of a problem document, or of a gRPC status; the `RateLimit` and `Retry-After` headers are added unless they are there.
    pub fn respond(self, respond: impl Fn(&Refusal<'_>, &Head<'_>) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.with(|layer| layer.respond = Some(Arc::new(respond)))
    }

    /// Answers keep their body's type: `wrap` makes one of a refusal, or of an answer that holds a place, and all others pass as they
    /// are. For frameworks whose answers have one body type, as axum's have, and which would otherwise box each body anew.
    ///
    /// ```
    /// use axum::{Router, body::Body, routing::get};
    /// use scale_limit::{LimitLayer, Limiter, Policy};
    ///
    /// let limits = LimitLayer::new(Limiter::memory()).policy(Policy::per_second("site", 50), |_| Some("all".into()));
    /// let app: Router = Router::new().route("/", get(|| async { "hello" })).layer(limits.keep_body(Body::new));
    /// ```
    pub fn keep_body<B>(self, wrap: fn(LimitBody<B>) -> B) -> LimitLayer<Kept<B>> {
        LimitLayer { layer: self.layer, bodies: Kept(wrap) }
    }
}

/// What becomes of a request.
enum Verdict {
    /// It passes, and its answer is told that.
    Pass(Told),
    Refuse(Box<Response<Bytes>>),
    /// The store has to be asked.
    Ask(Asked),
}

impl Inner {
    fn judge(self: &Arc<Self>, head: &Head<'_>) -> Verdict {
        if let Some(verdict) = self.at_the_gate(head) {
            return verdict;
        }
        match &self.throttles[..] {
            [throttle] => match throttle.plain() {
                Some(plain) if !self.extension && !self.telling.old && !self.telling.partition_keys => {
                    self.judge_one(throttle, plain, head)
                }
                _ => self.judge_all(throttle.ask(0, head).into_iter().collect(), head),
            },
            all => self.judge_all(all.iter().enumerate().filter_map(|(n, throttle)| throttle.ask(n, head)).collect(), head),
        }
    }

    /// Most layers have one policy, and most requests end here, without a decision that tells more than two headers do.
    fn judge_one(self: &Arc<Self>, throttle: &Throttle, plain: Plain<'_>, head: &Head<'_>) -> Verdict {
        let Plain { policy, words, key } = plain;
        // The key is not moved from where it was written: the processor would wait for it.
        let mut found = if throttle.applies(head) { key(head) } else { None };
        let Some(key) = &found else { return Verdict::Pass(Told::default()) };
        if key.is_unknown() {
            return self.unknown(head);
        }
        let hashed;
        let name = if key::is_kept(key) {
            key
        } else {
            hashed = self.limiter.name(key);
            &*hashed
        };
        let charge = Charge::stored(policy, key, name, throttle.cost_of(head));
        match self.limiter.rule_at_once(&charge) {
            Some((_, ruling)) if charge.admits(&ruling) => {
                let headers = if self.telling.quiet { Headers::None } else { Headers::one(words, &charge, &ruling) };
                Verdict::Pass(Told::headers(headers))
            }
            Some((now, ruling)) => self.too_many(&Decision::one(now, &charge, &ruling, None), &[], head),
            None => {
                let (cost, takes_place) = (charge.cost, charge.takes_place());
                let asked = found.take().map(|key| throttle::Asked::new(0, None, key, cost)).into_iter().collect();
                if takes_place { self.judge_all(asked, head) } else { Verdict::Ask(asked) }
            }
        }
    }

    fn judge_all(self: &Arc<Self>, asked: Asked, head: &Head<'_>) -> Verdict {
        if asked.is_empty() {
            return Verdict::Pass(Told::default());
        }
        if asked.iter().any(throttle::Asked::is_of_unknown) {
            return self.unknown(head);
        }
        let decision = self.limiter.check_now(&self.charges(&asked));
        match decision {
            Some(decision) if decision.admitted => Verdict::Pass(Told::new(self, decision, &asked)),
            Some(decision) => self.too_many(&decision, &asked, head),
            None => Verdict::Ask(asked),
        }
    }

    fn too_many(&self, decision: &Decision, asked: &[throttle::Asked], head: &Head<'_>) -> Verdict {
        Verdict::Refuse(Box::new(self.refuse(&Refusal::TooMany(decision), asked, head)))
    }

    /// Nobody knows who asks.
    #[cold]
    fn unknown(&self, head: &Head<'_>) -> Verdict {
        Verdict::Refuse(Box::new(self.refuse(&Refusal::UnknownClient, &[], head)))
    }

    /// What holds whatever the policies say.
    fn at_the_gate(&self, head: &Head<'_>) -> Option<Verdict> {
        let gate = self.gate.as_ref()?;
        let Some(peer) = Peer::of(head.extensions) else {
            if gate.clients.is_lenient() {
                return None;
            }
            say_what_is_missing();
            return Some(self.unknown(head));
        };
        let ip = gate.clients.find(peer, head.headers);
        let refuse = |refusal| Some(Verdict::Refuse(Box::new(self.refuse(&refusal, &[], head))));
        if gate.allowed.contains(ip) {
            return Some(Verdict::Pass(Told::default()));
        }
        // Who is kept out comes in no other way; whoever says to be an allowed IPv4 address in IPv6 is not let in for it.
        let within = inner(ip);
        if gate.denied.contains(ip) || (within != ip && gate.denied.contains(within)) {
            return refuse(Refusal::Denied);
        }
        let bans = gate.bans.as_ref()?;
        let ban = bans.find_address(ip).or_else(|| bans.find_address(within).filter(|_| within != ip))?;
        refuse(Refusal::Banned(&ban))
    }

    fn charges<'a>(&'a self, asked: &'a [throttle::Asked]) -> SmallVec<[(&'a Policy, &'a str, u32); 2]> {
        asked.iter().map(|asked| asked.charge(&self.throttles)).collect()
    }

    /// Returns whether answers change nothing.
    fn is_settled(&self) -> bool {
        self.throttles.iter().all(Throttle::is_settled)
    }

    /// The key that a policy has counted, as clients are told it: eight bytes of a hash.
    /// `number`: the outcome's, and how many there are. A denial that is remembered tells only of the policies that deny.
    fn partition_key(&self, asked: &[throttle::Asked], number: (usize, usize), policy: &str) -> Option<String> {
        let mut charges = asked.iter().map(|asked| asked.charge(&self.throttles));
        let charge = if asked.len() == number.1 { charges.nth(number.0) } else { charges.find(|(of, ..)| of.name() == policy) };
        charge.map(|(_, key, _)| self.limiter.tag(key))
    }

    fn refuse(&self, refusal: &Refusal<'_>, asked: &[throttle::Asked], head: &Head<'_>) -> Response<Bytes> {
        let own = self.respond.as_ref().map(|respond| respond(refusal, head));
        let key = |number, policy: &str| self.partition_key(asked, number, policy);
        response::refusal(refusal, own, head, self.jitter, self.telling, &key)
    }
}

impl<S, W: Clone> Layer<S> for LimitLayer<W> {
    type Service = Limit<S, W>;

    fn layer(&self, inner: S) -> Limit<S, W> {
        Limit { layer: self.clone(), inner }
    }
}

/// The service of [`LimitLayer`].
#[derive(Clone, Debug)]
pub struct Limit<S, W = Wrapped> {
    layer: LimitLayer<W>,
    inner: S,
}

/// What a request is charged.
type Asked = SmallVec<[throttle::Asked; 2]>;

impl<S, W, Req, Res> Service<Request<Req>> for Limit<S, W>
where
    S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
    S::Future: Send,
    W: Bodies<Res> + Clone + Send + 'static,
    Req: Send + 'static,
{
    type Response = Response<W::Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, Res, S::Error, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[allow(clippy::inline_always, reason = "the inner future is large, and would be copied on its way to where it stays")]
    #[inline(always)]
    fn call(&mut self, mut request: Request<Req>) -> Self::Future {
        let LimitLayer { layer, bodies } = &self.layer;
        let bodies = bodies.clone();
        let end = match layer.judge(&Head::from(&request)) {
            Verdict::Pass(mut told) => {
                told.show(request.extensions_mut());
                return ResponseFuture::pass(self.inner.call(request), told, bodies);
            }
            Verdict::Refuse(answer) => End::refused(*answer),
            Verdict::Ask(asked) => self.ask(request, asked),
        };
        ResponseFuture::without(end, bodies)
    }
}

impl<S, W> Limit<S, W> {
    /// Goes on once the store has answered.
    fn ask<Req, Res>(&mut self, mut request: Request<Req>, asked: Asked) -> End<Res, W::Body, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
        S::Future: Send,
        W: Bodies<Res> + Clone + Send + 'static,
        Req: Send + 'static,
    {
        // The ready service is the one called; its clone waits for the next request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let LimitLayer { layer, bodies } = self.layer.clone();
        End::Waiting(Box::pin(async move {
            let decision = layer.limiter.check_all(&layer.charges(&asked)).await;
            if !decision.admitted {
                let answer = layer.refuse(&Refusal::TooMany(&decision), &asked, &Head::from(&request));
                return Ok(answer.map(|text| bodies.wrap(LimitBody::whole(text))));
            }
            let mut told = Told::new(&layer, decision, &asked);
            told.show(request.extensions_mut());
            Ok(told.finish(inner.call(request).await?, &bodies))
        }))
    }
}
