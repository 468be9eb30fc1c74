//! How a decision is told to the client.
//!
//! Headers by draft-ietf-httpapi-ratelimit-headers (`RateLimit-Policy: "login";q=5;w=60`, `RateLimit: "login";r=3;t=30`) as structured
//! fields (RFC 9651); denials as 429 (RFC 6585) with `Retry-After` and a problem document (RFC 9457).

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use sfv::{Integer, KeyRef, ListSerializer, StringRef};

use crate::decision::Decision;

static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Adds the two `RateLimit` headers: on successes too, so that a good client can slow down in time.
pub(crate) fn add_headers(decision: &Decision, headers: &mut HeaderMap) {
    let integer = |n: u64| Integer::try_from(n).unwrap_or(Integer::MAX);
    let (mut policies, mut limits) = (ListSerializer::new(), ListSerializer::new());
    for outcome in decision.outcomes() {
        let Ok(name) = StringRef::from_str(&outcome.policy) else { continue };
        let wait = outcome.retry_after.filter(|w| !w.is_zero()).unwrap_or(outcome.full_after);
        policies
            .bare_item(name)
            .parameter(KeyRef::constant("q"), integer(outcome.quota.into()))
            .parameter(KeyRef::constant("w"), integer(outcome.period.as_secs().max(1)));
        limits
            .bare_item(name)
            .parameter(KeyRef::constant("r"), integer(outcome.remaining.into()))
            .parameter(KeyRef::constant("t"), integer(seconds(wait)));
    }
    for (name, list) in [(&POLICY, policies), (&LIMIT, limits)] {
        if let Some(value) = list.finish().and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(name, value);
        }
    }
}

/// The answer to a denied request.
pub(crate) fn denial<B: From<Bytes>>(decision: &Decision) -> Response<B> {
    let wait = decision.retry_after();
    let denied: Vec<_> = decision.outcomes().iter().filter(|o| !o.admitted).map(|o| &*o.policy).collect();
    let problem = serde_json::json!({
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Too many requests",
        "status": 429,
        "violated-policies": denied,
    });
    let mut response = Response::new(B::from(Bytes::from(problem.to_string())));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(wait) = wait {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait).max(1)));
    }
    add_headers(decision, headers);
    response
}

/// Rounded up: a client that waits exactly as told must pass.
fn seconds(time: std::time::Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
