//! Limits as a tower layer, for any service of `http` requests.

mod body;
mod future;
pub(crate) mod grpc;
mod headers;
mod limits;
mod settle;
mod throttle;

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
pub use self::headers::Refusal;
use self::headers::{Headers, Telling};
pub use self::limits::{Limits, Places};
use self::settle::ResponseActions;
use self::throttle::Plain;
pub use self::throttle::Throttle;
use crate::client::{ClientIp, Key, Networks, Peer, inner, say_what_is_missing};
use crate::decision::Decision;
use crate::guard::bans::BanList;
use crate::key;
use crate::limiter::Limiter;
use crate::policy::Policy;
use crate::request_head::RequestHead;
use crate::store::Charge;

type Respond = dyn Fn(&Refusal<'_>, &RequestHead<'_>) -> Response<Bytes> + Send + Sync;

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
    /// `true` if requests get their [`Limits`] as an extension.
    extension: bool,
    respond: Option<Arc<Respond>>,
}

/// Checks that take precedence over the policies.
#[derive(Clone)]
struct Gate {
    clients: ClientIp,
    allowed: Networks,
    denied: Networks,
    bans: Option<BanList>,
}

impl<W> std::fmt::Debug for LimitLayer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LimitLayer")
            .field("throttles", &self.layer.throttles)
            .finish_non_exhaustive()
    }
}

impl LimitLayer {
    /// Creates a layer without policies, which admits every request.
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
        let policies = self.layer.throttles.iter().filter_map(Throttle::policy);
        let same = throttle.policy().and_then(|new| {
            policies.clone().find(|old| old.name() == new.name() && !old.rules_as(new))
        });
        assert!(
            same.is_none(),
            "two policies are called `{}` and have different numbers \
             or algorithms; give each a name of its own",
            same.map_or("", Policy::name)
        );
        self.with(|layer| layer.throttles.push(throttle))
    }

    /// Admits clients of these networks without counting: for monitoring, or the company's own
    /// networks.
    pub fn allow(self, clients: &ClientIp, networks: Networks) -> Self {
        self.gate(clients, |gate| gate.allowed = networks)
    }

    /// Refuses clients of these networks with 403. [Allowed](Self::allow) clients are still
    /// admitted.
    pub fn deny(self, clients: &ClientIp, networks: Networks) -> Self {
        self.gate(clients, |gate| gate.denied = networks)
    }

    /// Refuses clients with 403 whose address, or a network that contains it, is banned.
    pub fn bans(self, clients: &ClientIp, bans: BanList) -> Self {
        self.gate(clients, |gate| gate.bans = Some(bans))
    }

    /// Sets the maximum share by which `Retry-After` is lengthened at random, so that denied
    /// clients do not all return at the same time. Default: 0.1.
    pub fn jitter(self, share: f64) -> Self {
        self.with(|layer| layer.jitter = if share.is_nan() { 0.0 } else { share.clamp(0.0, 10.0) })
    }

    /// Leaves out the `RateLimit` headers of admitted requests.
    pub fn without_headers(self) -> Self {
        self.with(|layer| layer.telling.quiet = true)
    }

    /// Adds `X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds since 1970), of the policy with
    /// the smallest share left, for clients from before the draft.
    pub fn legacy_headers(self) -> Self {
        self.with(|layer| layer.telling.old = true)
    }

    /// Adds the key that each policy has counted (`pk`, a hash) to the `RateLimit` headers, so that
    /// a client with several keys can distinguish its quotas.
    pub fn partition_keys(self) -> Self {
        self.with(|layer| layer.telling.partition_keys = true)
    }

    /// Puts [`Limits`] into each request's extensions, so that handlers know the remaining units.
    pub fn with_extension(self) -> Self {
        self.with(|layer| layer.extension = true)
    }

    /// Sets the response to refused requests, instead of a problem document or a gRPC status. The
    /// `RateLimit` and `Retry-After` headers are added unless present.
    pub fn respond(
        self,
        respond: impl Fn(&Refusal<'_>, &RequestHead<'_>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|layer| layer.respond = Some(Arc::new(respond)))
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
        LimitLayer { layer: self.layer, bodies: Kept(wrap) }
    }
}

/// Outcome for a request.
enum Verdict {
    /// The request passes; its response gets these actions.
    Pass(ResponseActions),
    Refuse(Box<Response<Bytes>>),
    /// The store must be asked.
    Ask(PlannedCharge),
}

impl Inner {
    fn judge(self: &Arc<Self>, head: &RequestHead<'_>) -> Verdict {
        if let Some(verdict) = self.at_the_gate(head) {
            return verdict;
        }
        match &self.throttles[..] {
            [throttle] => match throttle.plain() {
                Some(plain)
                    if !self.extension && !self.telling.old && !self.telling.partition_keys =>
                {
                    self.judge_one(throttle, plain, head)
                }
                _ => self.judge_all(throttle.ask(0, head).into_iter().collect(), head),
            },
            all => self.judge_all(
                all.iter().enumerate().filter_map(|(n, throttle)| throttle.ask(n, head)).collect(),
                head,
            ),
        }
    }

    /// The fast path: most layers have one policy, and most requests need no decision beyond the
    /// two headers.
    fn judge_one(
        self: &Arc<Self>,
        throttle: &Throttle,
        plain: Plain<'_>,
        head: &RequestHead<'_>,
    ) -> Verdict {
        let Plain { policy, words, key } = plain;
        // The key is not moved out of its place, because that copy would stall the processor.
        let mut found = if throttle.applies(head) { key(head) } else { None };
        let Some(key) = &found else { return Verdict::Pass(ResponseActions::default()) };
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
                let headers = if self.telling.quiet {
                    Headers::None
                } else {
                    Headers::one(words, &charge, &ruling)
                };
                Verdict::Pass(ResponseActions::headers(headers))
            }
            Some((now, ruling)) => {
                self.too_many(&Decision::one(now, &charge, &ruling, None), &[], head)
            }
            None => {
                let (cost, takes_place) = (charge.cost, charge.takes_place());
                let planned = found
                    .take()
                    .map(|key| throttle::PlannedCharge::new(0, None, key, cost))
                    .into_iter()
                    .collect();
                if takes_place { self.judge_all(planned, head) } else { Verdict::Ask(planned) }
            }
        }
    }

    fn judge_all(self: &Arc<Self>, planned: PlannedCharge, head: &RequestHead<'_>) -> Verdict {
        if planned.is_empty() {
            return Verdict::Pass(ResponseActions::default());
        }
        if planned.iter().any(throttle::PlannedCharge::is_of_unknown) {
            return self.unknown(head);
        }
        let decision = self.limiter.check_now(&self.charges(&planned));
        match decision {
            Some(decision) if decision.admitted => {
                Verdict::Pass(ResponseActions::new(self, decision, &planned))
            }
            Some(decision) => self.too_many(&decision, &planned, head),
            None => Verdict::Ask(planned),
        }
    }

    fn too_many(
        &self,
        decision: &Decision,
        planned: &[throttle::PlannedCharge],
        head: &RequestHead<'_>,
    ) -> Verdict {
        Verdict::Refuse(Box::new(self.refuse(&Refusal::TooMany(decision), planned, head)))
    }

    /// Refuses a request whose client is unknown.
    #[cold]
    fn unknown(&self, head: &RequestHead<'_>) -> Verdict {
        Verdict::Refuse(Box::new(self.refuse(&Refusal::UnknownClient, &[], head)))
    }

    /// Returns the verdict of the checks that take precedence over the policies, if there is one.
    fn at_the_gate(&self, head: &RequestHead<'_>) -> Option<Verdict> {
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
            return Some(Verdict::Pass(ResponseActions::default()));
        }
        // A denied client is refused in every form of its address; an IPv6 address that claims to
        // embed an allowed IPv4 address is not admitted for that.
        let within = inner(ip);
        if gate.denied.contains(ip) || (within != ip && gate.denied.contains(within)) {
            return refuse(Refusal::Denied);
        }
        let bans = gate.bans.as_ref()?;
        let ban =
            bans.find_address(ip).or_else(|| bans.find_address(within).filter(|_| within != ip))?;
        refuse(Refusal::Banned(&ban))
    }

    fn charges<'a>(
        &'a self,
        planned: &'a [throttle::PlannedCharge],
    ) -> SmallVec<[(&'a Policy, &'a str, u32); 2]> {
        planned.iter().map(|planned| planned.charge(&self.throttles)).collect()
    }

    /// Returns whether responses do not change the charges.
    fn is_settled(&self) -> bool {
        self.throttles.iter().all(Throttle::is_settled)
    }

    /// Returns the key that a policy has counted, as reported to clients: eight bytes of a hash.
    /// `number`: the index of the outcome, and the number of outcomes. A remembered denial has only
    /// the outcomes of the policies that deny.
    fn partition_key(
        &self,
        planned: &[throttle::PlannedCharge],
        number: (usize, usize),
        policy: &str,
    ) -> Option<String> {
        let mut charges = planned.iter().map(|planned| planned.charge(&self.throttles));
        let charge = if planned.len() == number.1 {
            charges.nth(number.0)
        } else {
            charges.find(|(of, ..)| of.name() == policy)
        };
        charge.map(|(_, key, _)| self.limiter.tag(key))
    }

    fn refuse(
        &self,
        refusal: &Refusal<'_>,
        planned: &[throttle::PlannedCharge],
        head: &RequestHead<'_>,
    ) -> Response<Bytes> {
        let own = self.respond.as_ref().map(|respond| respond(refusal, head));
        let key = |number, policy: &str| self.partition_key(planned, number, policy);
        headers::refusal(refusal, own, head, self.jitter, self.telling, &key)
    }
}

impl<S, W: Clone> Layer<S> for LimitLayer<W> {
    type Service = Limit<S, W>;

    fn layer(&self, inner: S) -> Limit<S, W> {
        Limit { layer: self.clone(), inner }
    }
}

/// Service of [`LimitLayer`].
#[derive(Clone, Debug)]
pub struct Limit<S, W = Wrapped> {
    layer: LimitLayer<W>,
    inner: S,
}

/// Charges planned for a request.
type PlannedCharge = SmallVec<[throttle::PlannedCharge; 2]>;

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

    #[allow(
        clippy::inline_always,
        reason = "the inner future is large; inlining avoids a copy to its final place"
    )]
    #[inline(always)]
    fn call(&mut self, mut request: Request<Req>) -> Self::Future {
        let LimitLayer { layer, bodies } = &self.layer;
        let bodies = bodies.clone();
        let end = match layer.judge(&RequestHead::from(&request)) {
            Verdict::Pass(mut told) => {
                told.show(request.extensions_mut());
                return ResponseFuture::pass(self.inner.call(request), told, bodies);
            }
            Verdict::Refuse(answer) => End::refused(*answer),
            Verdict::Ask(planned) => self.ask(request, planned),
        };
        ResponseFuture::without(end, bodies)
    }
}

impl<S, W> Limit<S, W> {
    /// Continues the request once the store has answered.
    fn ask<Req, Res>(
        &mut self,
        mut request: Request<Req>,
        planned: PlannedCharge,
    ) -> End<Res, W::Body, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
        S::Future: Send,
        W: Bodies<Res> + Clone + Send + 'static,
        Req: Send + 'static,
    {
        // The service that is ready handles this request; the clone handles the next one.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let LimitLayer { layer, bodies } = self.layer.clone();
        End::Waiting(Box::pin(async move {
            let decision = layer.limiter.check_all(&layer.charges(&planned)).await;
            if !decision.admitted {
                let answer = layer.refuse(
                    &Refusal::TooMany(&decision),
                    &planned,
                    &RequestHead::from(&request),
                );
                return Ok(answer.map(|text| bodies.wrap(LimitBody::whole(text))));
            }
            let mut told = ResponseActions::new(&layer, decision, &planned);
            told.show(request.extensions_mut());
            Ok(told.finish(inner.call(request).await?, &bodies))
        }))
    }
}
