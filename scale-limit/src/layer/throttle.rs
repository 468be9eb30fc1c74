//! Which requests a policy applies to, what they count against, and what they cost.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};

use super::response::Words;
use crate::client::Key;
use crate::head::Head;
use crate::policy::Policy;

type KeyOf = dyn Fn(&Head<'_>) -> Option<Key> + Send + Sync;
type PolicyOf = dyn Fn(&Head<'_>) -> Option<(Policy, Key)> + Send + Sync;
type When = dyn Fn(&Head<'_>) -> bool + Send + Sync;
type Cost = dyn Fn(&Head<'_>) -> u32 + Send + Sync;
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
///     Some((policy.clone(), request.headers.get("authorization")?.to_str().ok()?.into()))
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
    select: Select,
    when: Vec<Arc<When>>,
    methods: Vec<Method>,
    paths: Vec<Box<str>>,
    cost: Option<Arc<Cost>>,
    real_cost: Option<Arc<RealCost>>,
}

#[derive(Clone)]
enum Select {
    /// The policy, and how it is told.
    One(Policy, Option<&'static Words>, Arc<KeyOf>),
    Any(Arc<PolicyOf>),
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle").field("methods", &self.methods).field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// One request's share.
#[derive(Clone)]
pub(super) struct Asked {
    /// The number of its throttle.
    throttle: usize,
    /// The policy, if the throttle has not one for all.
    policy: Option<Policy>,
    key: Key,
    pub(super) cost: u32,
}

/// A throttle with one policy for all, whose requests' answers change nothing.
#[derive(Clone, Copy)]
pub(super) struct Plain<'t> {
    pub(super) policy: &'t Policy,
    /// How it is told.
    pub(super) words: Option<&'static Words>,
    pub(super) key: &'t KeyOf,
}

impl Asked {
    pub(super) fn new(throttle: usize, policy: Option<Policy>, key: Key, cost: u32) -> Self {
        Self { throttle, policy, key, cost }
    }

    pub(super) fn is_of_unknown(&self) -> bool {
        self.key.is_unknown()
    }

    pub(super) fn charge<'a>(&'a self, throttles: &'a [Throttle]) -> (&'a Policy, &'a str, u32) {
        let policy = match (&self.policy, &throttles[self.throttle].select) {
            (Some(policy), _) | (None, Select::One(policy, ..)) => policy,
            (None, Select::Any(_)) => unreachable!("a chosen policy is kept"),
        };
        (policy, &self.key, self.cost)
    }

    /// What it turns out to cost, if that is known.
    pub(super) fn real_cost(&self, throttles: &[Throttle], status: StatusCode, headers: &HeaderMap) -> Option<u32> {
        Some(throttles[self.throttle].real_cost.as_ref()?(status, headers))
    }
}

impl Throttle {
    /// One policy; `key` says what a request counts against, `None` that it does not count.
    pub fn new(policy: Policy, key: impl Fn(&Head<'_>) -> Option<Key> + Send + Sync + 'static) -> Self {
        let words = Words::of(&policy);
        Self::selecting(Select::One(policy, words, Arc::new(key)))
    }

    /// The policy itself depends on the request: its user's plan, its route's class.
    pub fn select(select: impl Fn(&Head<'_>) -> Option<(Policy, Key)> + Send + Sync + 'static) -> Self {
        Self::selecting(Select::Any(Arc::new(select)))
    }

    fn selecting(select: Select) -> Self {
        Self { select, when: Vec::new(), methods: Vec::new(), paths: Vec::new(), cost: None, real_cost: None }
    }

    /// Only for this method; call again for more. `HEAD` counts as `GET`: it does the same work.
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
    pub fn when(mut self, when: impl Fn(&Head<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.when.push(Arc::new(when));
        self
    }

    /// What a request costs. Default: 1.
    pub fn cost(mut self, cost: impl Fn(&Head<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// What it turns out to cost, by its answer: the difference to what was charged before is given back, or charged however little is
    /// left. Nobody waits for that.
    pub fn real_cost(mut self, cost: impl Fn(StatusCode, &HeaderMap) -> u32 + Send + Sync + 'static) -> Self {
        self.real_cost = Some(Arc::new(cost));
        self
    }

    /// What a request is to be charged, if anything; `number` is this throttle's.
    pub(super) fn ask(&self, number: usize, head: &Head<'_>) -> Option<Asked> {
        if !self.applies(head) {
            return None;
        }
        let (policy, key) = match &self.select {
            Select::One(_, _, key) => (None, key(head)?),
            Select::Any(select) => {
                let (policy, key) = select(head)?;
                (Some(policy), key)
            }
        };
        Some(Asked::new(number, policy, key, self.cost_of(head)))
    }

    /// The policy, if it is one for all.
    pub(super) fn policy(&self) -> Option<&Policy> {
        match &self.select {
            Select::One(policy, ..) => Some(policy),
            Select::Any(_) => None,
        }
    }

    pub(super) fn plain(&self) -> Option<Plain<'_>> {
        match &self.select {
            Select::One(policy, words, key) if self.is_settled() => Some(Plain { policy, words: *words, key: &**key }),
            _ => None,
        }
    }

    pub(super) fn applies(&self, head: &Head<'_>) -> bool {
        let is_for = |method: &Method| method == head.method || (method == Method::GET && head.method == Method::HEAD);
        (self.methods.is_empty() || self.methods.iter().any(is_for))
            && (self.paths.is_empty() || self.paths.iter().any(|p| fits(p, head.uri.path())))
            && self.when.iter().all(|when| when(head))
    }

    pub(super) fn cost_of(&self, head: &Head<'_>) -> u32 {
        self.cost.as_ref().map_or(1, |cost| cost(head))
    }

    /// Returns whether the answer changes nothing.
    pub(super) fn is_settled(&self) -> bool {
        self.real_cost.is_none()
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == path, |start| path.starts_with(start))
}
