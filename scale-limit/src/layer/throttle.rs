//! Requests that a policy applies to, with their keys and costs.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};
use smallvec::SmallVec;

use super::headers::Words;
use crate::client::Key;
use crate::policy::Policy;
use crate::request_head::RequestHead;

type KeyOf = dyn Fn(&RequestHead<'_>) -> Option<Key> + Send + Sync;
type PolicyOf = dyn Fn(&RequestHead<'_>) -> Option<(Policy, Key)> + Send + Sync;
type When = dyn Fn(&RequestHead<'_>) -> bool + Send + Sync;
type Cost = dyn Fn(&RequestHead<'_>) -> u32 + Send + Sync;
type RealCost = dyn Fn(StatusCode, &HeaderMap) -> u32 + Send + Sync;

/// A policy and the requests that it applies to.
///
/// ```
/// use http::{Method, StatusCode};
/// use scale_limit::layer::Throttle;
/// use scale_limit::Policy;
///
/// // By class of user, as an outer layer has found it.
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
#[must_use]
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
    /// One policy for all requests, the constant parts of its headers, and the key.
    One(Policy, Option<&'static Words>, Arc<KeyOf>),
    Any(Arc<PolicyOf>),
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle")
            .field("methods", &self.methods)
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

/// Charge of one throttle for a request.
#[derive(Clone)]
pub(super) struct PlannedCharge {
    /// Index of the throttle.
    throttle: usize,
    /// Policy, if the throttle selects it per request.
    policy: Option<Policy>,
    key: Key,
    pub(super) cost: u32,
}

/// Charges planned for a request.
pub(super) type PlannedCharges = SmallVec<[PlannedCharge; 2]>;

/// A throttle with one policy, whose charges do not depend on responses.
#[derive(Clone, Copy)]
pub(super) struct Plain<'t> {
    pub(super) policy: &'t Policy,
    /// Constant parts of the headers.
    pub(super) words: Option<&'static Words>,
    pub(super) key: &'t KeyOf,
}

impl PlannedCharge {
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

    /// Returns the real cost, if there is a function for it.
    pub(super) fn real_cost(
        &self,
        throttles: &[Throttle],
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Option<u32> {
        Some(throttles[self.throttle].real_cost.as_ref()?(status, headers))
    }
}

impl Throttle {
    /// Applies one policy. `key` returns the key that a request is counted by, or `None` if the
    /// request does not count.
    pub fn new(
        policy: Policy,
        key: impl Fn(&RequestHead<'_>) -> Option<Key> + Send + Sync + 'static,
    ) -> Self {
        let words = Words::of(&policy);
        Self::selecting(Select::One(policy, words, Arc::new(key)))
    }

    /// Selects the policy by the request: the user's plan, the class of the route.
    pub fn select(
        select: impl Fn(&RequestHead<'_>) -> Option<(Policy, Key)> + Send + Sync + 'static,
    ) -> Self {
        Self::selecting(Select::Any(Arc::new(select)))
    }

    fn selecting(select: Select) -> Self {
        Self {
            select,
            when: Vec::new(),
            methods: Vec::new(),
            paths: Vec::new(),
            cost: None,
            real_cost: None,
        }
    }

    /// Restricts the policy to this method; call again for more methods. `HEAD` counts as `GET`,
    /// because it does the same work.
    pub fn method(mut self, method: Method) -> Self {
        self.methods.push(method);
        self
    }

    /// Restricts the policy to this path, or to paths with this prefix if it ends in `*`; call
    /// again for more paths. A path is compared as it is and as servers may read it: `//login`,
    /// `/login/`, `/./login` and `/%6cogin` are `/login`.
    pub fn path(mut self, path: &str) -> Self {
        self.paths.push(path.into());
        self
    }

    /// Restricts the policy to requests for which `when` returns `true`; with several conditions,
    /// all must.
    pub fn when(mut self, when: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.when.push(Arc::new(when));
        self
    }

    /// Sets the cost of a request. Default: 1.
    pub fn cost(mut self, cost: impl Fn(&RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// Sets the real cost, computed from the response: the difference to the earlier charge is
    /// refunded, or charged even if too few units are left. Responses do not wait for that.
    pub fn real_cost(
        mut self,
        cost: impl Fn(StatusCode, &HeaderMap) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.real_cost = Some(Arc::new(cost));
        self
    }

    /// Returns the charge for a request, if the policy applies; `number` is the index of this
    /// throttle.
    pub(super) fn ask(&self, number: usize, head: &RequestHead<'_>) -> Option<PlannedCharge> {
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
        Some(PlannedCharge::new(number, policy, key, self.cost_of(head)))
    }

    /// Returns the policy, if it is the same for all requests.
    pub(super) fn policy(&self) -> Option<&Policy> {
        match &self.select {
            Select::One(policy, ..) => Some(policy),
            Select::Any(_) => None,
        }
    }

    pub(super) fn plain(&self) -> Option<Plain<'_>> {
        match &self.select {
            Select::One(policy, words, key) if self.is_settled() => {
                Some(Plain { policy, words: *words, key: &**key })
            }
            _ => None,
        }
    }

    pub(super) fn applies(&self, head: &RequestHead<'_>) -> bool {
        let is_for = |method: &Method| {
            method == head.method || (method == Method::GET && head.method == Method::HEAD)
        };
        (self.methods.is_empty() || self.methods.iter().any(is_for))
            && (self.paths.is_empty() || self.paths.iter().any(|p| fits(p, head.uri.path())))
            && self.when.iter().all(|when| when(head))
    }

    pub(super) fn cost_of(&self, head: &RequestHead<'_>) -> u32 {
        self.cost.as_ref().map_or(1, |cost| cost(head))
    }

    /// Returns whether the response does not change the charge.
    pub(super) fn is_settled(&self) -> bool {
        self.real_cost.is_none()
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    let fits = |pattern: &str, path: &str| {
        pattern.strip_suffix('*').map_or(pattern == path, |start| path.starts_with(start))
    };
    fits(pattern, path) || !is_plain(path) && fits_plain(pattern, plain(path))
}

/// Returns whether a plain path fits a pattern, however that is written.
fn fits_plain(pattern: &str, mut path: String) -> bool {
    let Some(start) = pattern.strip_suffix('*') else { return plain(pattern) == path };
    let mut start_plain = plain(start);
    if start.ends_with('/') && start_plain != "/" {
        // `/api/*` is for `/api/` as well, which is `/api` in its plain form.
        start_plain.push('/');
        path.push('/');
    }
    path.starts_with(&start_plain)
}

/// Returns whether all servers read the path in the same way.
fn is_plain(path: &str) -> bool {
    let ends_open = path.len() > 1 && path.ends_with('/');
    !(ends_open || path.contains('%') || path.contains("//") || path.contains("/."))
}

/// Returns the path with its percent-encoded bytes decoded.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = |at: usize| Some((*after.get(at)? as char).to_digit(16)? as u8);
        let encoded = (*first == b'%').then(|| Some(hex(0)? << 4 | hex(1)?)).flatten();
        bytes.push(encoded.unwrap_or(*first));
        rest = if encoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the path without encoded characters, empty and dotted segments.
fn plain(path: &str) -> String {
    let decoded = decoded(path);
    let mut segments: SmallVec<[&str; 8]> = SmallVec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_fits_however_it_is_written() {
        for path in
            ["/login", "//login", "/login/", "/./login", "/a/../login", "/%6cogin", "/%2Flogin"]
        {
            assert!(fits("/login", path) && fits("/login/", path) != (path == "/login"), "{path}");
            assert!(fits("/log*", path), "{path}");
        }
        for path in ["/", "/logins", "/login/x", "/%", "/%6", "/%zz", "/login%00"] {
            assert!(!fits("/login", path), "{path}");
        }
        assert!(fits("/", "/") && fits("/", "//") && fits("/é", "/%C3%A9"));
        assert!(fits("/a/*", "//a/b") && !fits("/a/*", "/b/a/"));
        for path in ["/api/", "//api/", "/%61pi/", "/./api/", "/x/../api/", "//api/x", "/api//"] {
            assert!(fits("/api/*", path), "{path}");
        }
        assert!(!fits("/api/*", "//apis/") && !fits("/api/*", "//ap/"));
        assert!(fits("/a%20b", "//a%20b") && fits("/a%20b", "/a%20b/") && fits("/é/*", "/%c3%a9/"));
        assert!(fits("/*", "//") && fits("/*", "/%61"));
    }
}
