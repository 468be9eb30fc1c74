//! Which requests a policy applies to, what they count against, and what they cost.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};

use crate::policy::Policy;

type Select = dyn Fn(&Parts) -> Option<(Policy, String)> + Send + Sync;
type When = dyn Fn(&Parts) -> bool + Send + Sync;
type Cost = dyn Fn(&Parts) -> u32 + Send + Sync;
type RealCost = dyn Fn(StatusCode, &HeaderMap) -> u32 + Send + Sync;

/// A policy with the requests it applies to.
///
/// ```
/// use http::{Method, StatusCode};
/// use scale_limit::layer::Throttle;
/// use scale_limit::Policy;
///
/// // By class of user, as somebody further out has found it.
/// #[derive(Clone)]
/// struct Plan(&'static str);
/// let (free, paid) = (Policy::per_minute("api-free", 60), Policy::per_minute("api-paid", 6_000));
/// let api = Throttle::select(move |request| {
///     let Plan(plan) = request.extensions.get::<Plan>()?;
///     let policy = if *plan == "paid" { &paid } else { &free };
///     Some((policy.clone(), request.headers.get("authorization")?.to_str().ok()?.to_owned()))
/// })
/// .path("/api/*");
///
/// // Only failures count.
/// let failures = Throttle::new(Policy::per_minute("failures", 10), |_| Some("everybody".into()))
///     .method(Method::POST)
///     .real_cost(|status, _| u32::from(status == StatusCode::UNAUTHORIZED));
/// ```
#[derive(Clone)]
pub struct Throttle {
    select: Arc<Select>,
    when: Vec<Arc<When>>,
    methods: Vec<Method>,
    paths: Vec<Box<str>>,
    cost: Option<Arc<Cost>>,
    real_cost: Option<Arc<RealCost>>,
    /// Finds a request's throttle again when it has been answered.
    id: u64,
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle").field("methods", &self.methods).field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// One request's share.
pub(super) struct Asked {
    policy: Policy,
    key: String,
    cost: u32,
    throttle: u64,
}

impl Asked {
    pub(super) fn charge(&self) -> (&Policy, &str, u32) {
        (&self.policy, &self.key, self.cost)
    }

    pub(super) fn into_parts(self) -> (Policy, String, u32) {
        (self.policy, self.key, self.cost)
    }
}

impl Throttle {
    /// One policy; `key` says what a request counts against, `None` that it does not count.
    pub fn new(policy: Policy, key: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::select(move |parts| Some((policy.clone(), key(parts)?)))
    }

    /// The policy itself depends on the request: its user's plan, its route's class.
    pub fn select(select: impl Fn(&Parts) -> Option<(Policy, String)> + Send + Sync + 'static) -> Self {
        Self {
            select: Arc::new(select),
            when: Vec::new(),
            methods: Vec::new(),
            paths: Vec::new(),
            cost: None,
            real_cost: None,
            id: fastrand::u64(..),
        }
    }

    /// Only for this method; call again for more.
    pub fn method(mut self, method: Method) -> Self {
        self.methods.push(method);
        self
    }

    /// Only for this path, or, ending in `*`, those that begin so; call again for more.
    pub fn path(mut self, path: &str) -> Self {
        self.paths.push(path.into());
        self
    }

    /// Only if `when` says so; of several, all must.
    pub fn when(mut self, when: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.when.push(Arc::new(when));
        self
    }

    /// What a request costs. Default: 1.
    pub fn cost(mut self, cost: impl Fn(&Parts) -> u32 + Send + Sync + 'static) -> Self {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// What it turns out to cost, by its answer: the difference to what was charged before is given back, or charged however little is
    /// left. Nobody waits for that.
    pub fn real_cost(mut self, cost: impl Fn(StatusCode, &HeaderMap) -> u32 + Send + Sync + 'static) -> Self {
        self.real_cost = Some(Arc::new(cost));
        self
    }

    pub(super) fn ask(&self, parts: &Parts) -> Option<Asked> {
        let method = self.methods.is_empty() || self.methods.contains(&parts.method);
        let path = self.paths.is_empty() || self.paths.iter().any(|p| fits(p, parts.uri.path()));
        if !method || !path || !self.when.iter().all(|when| when(parts)) {
            return None;
        }
        let (policy, key) = (self.select)(parts)?;
        Some(Asked { policy, key, cost: self.cost.as_ref().map_or(1, |cost| cost(parts)), throttle: self.id })
    }

    /// Whether the answer changes nothing.
    pub(super) fn is_settled(&self) -> bool {
        self.real_cost.is_none()
    }

    pub(super) fn real_cost_of(&self, asked: &Asked, status: StatusCode, headers: &HeaderMap) -> Option<u32> {
        if asked.throttle == self.id { Some(self.real_cost.as_ref()?(status, headers)) } else { None }
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == path, |start| path.starts_with(start))
}
