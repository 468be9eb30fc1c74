//! How a decision is told to the client.
//!
//! Headers by draft-ietf-httpapi-ratelimit-headers (`RateLimit-Policy: "login";q=5;w=60`, `RateLimit: "login";r=3;t=30`) as structured
//! fields (RFC 9651); denials as 429 (RFC 6585) with `Retry-After` and a problem document (RFC 9457).

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use parking_lot::Mutex;
use sfv::{ItemSerializer, StringRef};
use smallvec::SmallVec;

use crate::decision::{Decision, Outcome};
use crate::guard::bans::Ban;
use crate::policy::Policy;
use crate::rule::{NEVER, Ruling};
use crate::store::Charge;

static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// A header as it is written, on the stack if it is short.
type Text = SmallVec<[u8; 96]>;

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
    /// Limited by its address, which nobody knows: 500. See [`ClientIp::key`](crate::client::ClientIp::key).
    UnknownClient,
}

/// The two `RateLimit` headers, on successes too, so that a good client can slow down in time.
#[derive(Default)]
pub(super) enum Headers {
    #[default]
    None,
    One(Standing),
    All(Box<[Option<HeaderValue>; 2]>),
}

/// Where a client stands with the only policy.
pub(super) struct Standing {
    words: &'static Words,
    remaining: u32,
    /// Seconds.
    wait: u64,
}

/// What is always the same of a policy that is told alone.
pub(super) struct Words {
    quota: u32,
    /// Nanoseconds.
    period: u64,
    policy: HeaderValue,
    /// `"login";r=`
    limit: Box<[u8]>,
}

impl Words {
    /// The longest name that is told in these words.
    const LONGEST: usize = 64;

    /// Kept for good: threads that all count references to one header would wait for each other. Few policies are told, and each is kept
    /// once. `None`: its name cannot be told or is long, it counts places, or is no limit.
    pub(super) fn of(policy: &Policy) -> Option<&'static Self> {
        static KEPT: Mutex<BTreeMap<(&str, u64), &Words>> = Mutex::new(BTreeMap::new());
        let name = StringRef::from_str(policy.name()).ok()?;
        let (quota, period) = (policy.quota(), u64::try_from(policy.period().as_nanos()).unwrap_or(u64::MAX));
        if policy.counts_places()
            || quota == u32::MAX
            || name.as_str().len() > Self::LONGEST
            || name.as_str().contains(['"', '\\'])
        {
            return None;
        }
        let (mut told, mut limit) = (Text::new(), Text::new());
        quote(&mut told, name);
        policy_parameters(&mut told, quota, Some(policy.period()));
        quote(&mut limit, name);
        limit.extend_from_slice(b";r=");
        let told = std::str::from_utf8(&told).ok()?;
        let mut kept = KEPT.lock();
        if let Some(words) = kept.get(&(told, period)) {
            return Some(words);
        }
        let told: &str = Box::leak(told.into());
        let words = Self { quota, period, policy: HeaderValue::from_static(told), limit: limit.into_vec().into() };
        let words: &Self = Box::leak(Box::new(words));
        kept.insert((told, period), words);
        Some(words)
    }

    /// `"login";r=3;t=30`
    fn limit(&self, remaining: u32, wait: u64) -> Option<HeaderValue> {
        let mut text = [0; Self::LONGEST + 48];
        let mut rest = &mut text[..];
        for part in [&*self.limit, Number::new().text(remaining.into()), b";t=", Number::new().text(wait)] {
            rest.write_all(part).ok()?;
        }
        let left = rest.len();
        HeaderValue::from_bytes(&text[..text.len() - left]).ok()
    }
}

impl Headers {
    /// Those of the only policy; `words` if they are known.
    #[inline]
    pub(super) fn one(words: Option<&'static Words>, charge: &Charge<'_>, ruling: &Ruling) -> Self {
        match words {
            // Not if the quota is another one for this key.
            Some(words) if (words.quota, words.period) == (charge.terms.quota, charge.terms.period) => {
                let wait = if matches!(ruling.retry_after, 0 | NEVER) { ruling.full_after } else { ruling.retry_after };
                Self::One(Standing { words, remaining: ruling.remaining, wait: wait.div_ceil(1_000_000_000) })
            }
            _ => Self::All(Box::new(told(&[Outcome::new(charge, ruling)]))),
        }
    }

    pub(super) fn all(decision: &Decision) -> Self {
        Self::All(Box::new(told(decision.outcomes())))
    }

    /// Adds them to those of limits further in: both headers are lists.
    #[inline]
    pub(super) fn add(self, headers: &mut HeaderMap) {
        match self {
            Self::None => {}
            Self::One(Standing { words, remaining, wait }) => {
                headers.append(&POLICY, words.policy.clone());
                if let Some(limit) = words.limit(remaining, wait) {
                    headers.append(&LIMIT, limit);
                }
            }
            Self::All(values) => {
                for (name, value) in [&POLICY, &LIMIT].into_iter().zip(*values) {
                    if let Some(value) = value {
                        headers.append(name, value);
                    }
                }
            }
        }
    }
}

/// The headers of all policies asked.
fn told(outcomes: &[Outcome]) -> [Option<HeaderValue>; 2] {
    let (mut policies, mut limits) = (Text::new(), Text::new());
    // Who has no limit is told of none.
    for outcome in outcomes.iter().filter(|o| o.remaining() != u32::MAX) {
        let Ok(name) = StringRef::from_str(outcome.policy()) else { continue };
        for list in [&mut policies, &mut limits] {
            if !list.is_empty() {
                list.extend_from_slice(b", ");
            }
            quote(list, name);
        }
        policy_parameters(&mut policies, outcome.quota(), outcome.period());
        limits.extend_from_slice(b";r=");
        integer(&mut limits, outcome.remaining().into());
        wait(&mut limits, outcome);
    }
    [value(&policies), value(&limits)]
}

/// When to come back, or when everything is there again.
fn wait(list: &mut Text, outcome: &Outcome) {
    if outcome.period().is_some() {
        let wait = outcome.retry_after().filter(|w| !w.is_zero()).unwrap_or(outcome.full_after());
        list.extend_from_slice(b";t=");
        integer(list, seconds(wait));
    }
}

fn policy_parameters(list: &mut Text, quota: u32, period: Option<Duration>) {
    list.extend_from_slice(b";q=");
    integer(list, quota.into());
    match period {
        Some(period) => {
            list.extend_from_slice(b";w=");
            integer(list, period.as_secs().max(1));
        }
        None => list.extend_from_slice(b";qu=\"concurrent-requests\""),
    }
}

fn value(text: &[u8]) -> Option<HeaderValue> {
    if text.is_empty() { None } else { HeaderValue::from_bytes(text).ok() }
}

/// A string of a structured field.
fn quote(list: &mut Text, name: &StringRef) {
    if name.as_str().contains(['"', '\\']) {
        list.extend_from_slice(ItemSerializer::new().bare_item(name).finish().as_bytes());
    } else {
        list.push(b'"');
        list.extend_from_slice(name.as_str().as_bytes());
        list.push(b'"');
    }
}

fn integer(list: &mut Text, value: u64) {
    list.extend_from_slice(Number::new().text(value));
}

/// An integer of a structured field.
struct Number(itoa::Buffer);

impl Number {
    /// The largest (RFC 9651, 3.3.1).
    const LARGEST: u64 = 999_999_999_999_999;

    fn new() -> Self {
        Self(itoa::Buffer::new())
    }

    fn text(&mut self, value: u64) -> &[u8] {
        self.0.format(value.min(Self::LARGEST)).as_bytes()
    }
}

/// The answer to a refused request: the application's own, or a problem document.
pub(super) fn refusal(refusal: &Refusal<'_>, own: Option<Response<Bytes>>, jitter: f64) -> Response<Bytes> {
    let mut response = own.unwrap_or_else(|| problem(refusal));
    let headers = response.headers_mut();
    let wait = match refusal {
        Refusal::TooMany(decision) => {
            for (name, value) in [&POLICY, &LIMIT].into_iter().zip(told(decision.outcomes())) {
                if let Some(value) = value {
                    headers.entry(name).or_insert(value);
                }
            }
            decision.retry_after()
        }
        Refusal::Banned(ban) => Some(ban.left()),
        Refusal::Denied | Refusal::UnknownClient => None,
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
            let denied: Vec<_> =
                decision.outcomes().iter().filter(|o| !o.admitted()).map(crate::decision::Outcome::policy).collect();
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
        // What is missing is for the operators, too.
        Refusal::UnknownClient => {
            let problem = serde_json::json!({ "type": "about:blank", "title": "Internal server error", "status": 500 });
            (StatusCode::INTERNAL_SERVER_ERROR, problem)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limiter;
    use sfv::{List, Parser};

    #[tokio::test]
    async fn any_policy_makes_headers_that_parse() {
        let limiter = Limiter::memory();
        for name in ["login", "a \"quoted\" \\name", "", "nicht für Kopfzeilen", "new\nline"] {
            let policies =
                [Policy::per_hour(name, u32::MAX - 1), Policy::at_once("places", 3), Policy::new("age", 1, Duration::MAX)];
            let charges: Vec<_> = policies.iter().map(|p| (p, "k", 1)).collect();
            let decision = limiter.check_all(&charges).await;
            let mut headers = HeaderMap::new();
            Headers::all(&decision).add(&mut headers);
            for header in [&POLICY, &LIMIT] {
                let list: List = Parser::new(headers[header].as_bytes()).parse().unwrap();
                let fits = name.bytes().all(|b| (0x20..0x7f).contains(&b));
                assert_eq!(list.len(), if fits { 3 } else { 2 }, "{name}: {list:?}");
            }
        }
    }
}
