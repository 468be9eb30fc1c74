//! How a decision is told to the client.
//!
//! Headers by draft-ietf-httpapi-ratelimit-headers (`RateLimit-Policy: "login";q=5;w=60`, `RateLimit: "login";r=3;t=30`) as structured
//! fields (RFC 9651); denials as 429 (RFC 6585) with `Retry-After` and a problem document (RFC 9457).

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use sfv::{Integer, KeyRef, ListSerializer, StringRef};

use crate::decision::Decision;
use crate::guard::bans::Ban;

static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Why a request is refused.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Refusal<'a> {
    /// Over a quota: 429.
    TooMany(&'a Decision),
    /// On the list of those denied: 403.
    Denied,
    /// Banned: 403.
    Banned(&'a Ban),
}

/// Adds the two `RateLimit` headers: on successes too, so that a good client can slow down in time.
pub(super) fn add_headers(decision: &Decision, headers: &mut HeaderMap) {
    let integer = |n: u64| Integer::try_from(n).unwrap_or(Integer::MAX);
    let (mut policies, mut limits) = (ListSerializer::new(), ListSerializer::new());
    for outcome in decision.outcomes() {
        // Who has no limit is told of none.
        if outcome.remaining == u32::MAX {
            continue;
        }
        let Ok(name) = StringRef::from_str(&outcome.policy) else { continue };
        let wait = outcome.retry_after.filter(|w| !w.is_zero()).unwrap_or(outcome.full_after);
        let policy = policies.bare_item(name).parameter(KeyRef::constant("q"), integer(outcome.quota.into()));
        let limit = limits.bare_item(name).parameter(KeyRef::constant("r"), integer(outcome.remaining.into()));
        match outcome.period {
            Some(period) => {
                let _ = policy.parameter(KeyRef::constant("w"), integer(period.as_secs().max(1)));
                let _ = limit.parameter(KeyRef::constant("t"), integer(seconds(wait)));
            }
            None => {
                let _ = policy.parameter(KeyRef::constant("qu"), StringRef::constant("concurrent-requests"));
            }
        }
    }
    for (name, list) in [(&POLICY, policies), (&LIMIT, limits)] {
        if let Some(value) = list.finish().and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.entry(name).or_insert(value);
        }
    }
}

/// The answer to a refused request: the application's own, or a problem document.
pub(super) fn refusal(refusal: &Refusal<'_>, own: Option<Response<Bytes>>, jitter: f64) -> Response<Bytes> {
    let mut response = own.unwrap_or_else(|| problem(refusal));
    let headers = response.headers_mut();
    let wait = match refusal {
        Refusal::TooMany(decision) => {
            add_headers(decision, headers);
            decision.retry_after()
        }
        Refusal::Banned(ban) => Some(ban.left()),
        Refusal::Denied => None,
    };
    if let Some(wait) = wait {
        let wait = seconds(wait.mul_f64(1.0 + fastrand::f64() * jitter)).max(1);
        headers.entry(RETRY_AFTER).or_insert(HeaderValue::from(wait));
    }
    response
}

fn problem(refusal: &Refusal<'_>) -> Response<Bytes> {
    let (status, problem) = match refusal {
        Refusal::TooMany(decision) => {
            let denied: Vec<_> = decision.outcomes().iter().filter(|o| !o.admitted).map(|o| &*o.policy).collect();
            let problem = serde_json::json!({
                "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
                "title": "Too many requests",
                "status": 429,
                "violated-policies": denied,
            });
            (StatusCode::TOO_MANY_REQUESTS, problem)
        }
        // Why somebody is banned is for the operators.
        Refusal::Denied | Refusal::Banned(_) => {
            (StatusCode::FORBIDDEN, serde_json::json!({ "type": "about:blank", "title": "Forbidden", "status": 403 }))
        }
    };
    let mut response = Response::new(Bytes::from(problem.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// Rounded up: a client that waits exactly as told must pass.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
