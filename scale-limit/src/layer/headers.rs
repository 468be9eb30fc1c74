//! Headers that report a decision to the client.
//!
//! The headers follow draft-ietf-httpapi-ratelimit-headers-10
//! (`RateLimit-Policy: "login";q=5;w=60`, `RateLimit: "login";r=3;t=30`) as structured fields (RFC
//! 9651); denials are a 429 (RFC 6585) with `Retry-After` and a problem document (RFC 9457), or a
//! gRPC status.
//!
//! `q` and `w` state a rate that a client may keep: for a bucket its burst, and the time that an
//! empty bucket takes to fill. `w` is in whole seconds, rounded up, and left out below one second.
//! A dry run is not reported.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use parking_lot::Mutex;
use sfv::{ItemSerializer, StringRef};
use smallvec::SmallVec;

use super::grpc;
use super::refusal::Refusal;
use crate::algorithm::{NEVER, Ruling};
use crate::decision::Outcome;
use crate::load::NoWork;
use crate::policy::Policy;
use crate::request_head::RequestHead;
use crate::store::Charge;

static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Names of the three older headers, as used by GitHub, for clients from before the draft.
static OLD: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

/// Text of a header, on the stack if it is short.
type Text = SmallVec<[u8; 96]>;

/// The two `RateLimit` headers, also on admitted requests, so that a well-behaved client can slow
/// down in time.
#[derive(Default)]
pub(super) enum Headers {
    #[default]
    None,
    One(QuotaState),
    All(Box<All>),
}

/// Headers of several policies, or of one policy in the general form.
#[derive(Default)]
pub(super) struct All {
    values: [Option<HeaderValue>; 2],
    /// Limit, remaining, reset of the older headers.
    old: Option<[u64; 3]>,
}

/// Settings for the reported headers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeaderOptions {
    /// `true` if admitted requests get no `RateLimit` headers.
    pub(super) quiet: bool,
    /// `true` if the older headers are added.
    pub(super) old: bool,
    /// `true` if each policy's partition key is added.
    pub(super) partition_keys: bool,
}

/// Returns a policy's partition key, given the index of its outcome, the number of outcomes, and
/// the policy's name.
pub(super) type KeyOf<'k> = &'k dyn Fn((usize, usize), &str) -> Option<String>;

/// State of the only policy, as reported to a client.
pub(super) struct QuotaState {
    words: &'static Words,
    remaining: u32,
    /// Time to wait, in seconds.
    wait: u64,
}

/// Constant parts of the headers of a single policy.
pub(super) struct Words {
    /// Quota and window (ns).
    told: (u32, u64),
    policy: HeaderValue,
    /// Text `"login";r=`.
    limit: Box<[u8]>,
}

impl Words {
    /// Maximum length of a policy's name in this form.
    const LONGEST: usize = 64;

    /// Returns the constant parts, which are leaked: reference counts of one shared header would
    /// slow down all threads. The number of policies is small, and each is kept once. Returns
    /// `None` if the name cannot be reported or is long, or the policy grants permits, is a dry
    /// run, or has no limit.
    pub(super) fn of(policy: &Policy) -> Option<&'static Self> {
        static KEPT: Mutex<BTreeMap<(&str, u64), &Words>> = Mutex::new(BTreeMap::new());
        let name = StringRef::from_str(policy.name()).ok()?;
        let (quota, window) = policy.told();
        if policy.counts_places()
            || policy.is_dry_run()
            || quota == u32::MAX
            || name.as_str().len() > Self::LONGEST
            || name.as_str().contains(['"', '\\'])
        {
            return None;
        }
        let (mut told, mut limit) = (Text::new(), Text::new());
        quote(&mut told, name);
        policy_parameters(&mut told, quota, Some(Duration::from_nanos(window)));
        quote(&mut limit, name);
        limit.extend_from_slice(b";r=");
        let told = std::str::from_utf8(&told).ok()?;
        let mut kept = KEPT.lock();
        if let Some(words) = kept.get(&(told, window)) {
            return Some(words);
        }
        let told: &str = Box::leak(told.into());
        let words = Self {
            told: (quota, window),
            policy: HeaderValue::from_static(told),
            limit: limit.into_vec().into(),
        };
        let words: &Self = Box::leak(Box::new(words));
        kept.insert((told, window), words);
        Some(words)
    }

    /// Returns `"login";r=3;t=30`.
    fn limit(&self, remaining: u32, wait: u64) -> Option<HeaderValue> {
        let mut text = [0; Self::LONGEST + 48];
        let mut rest = &mut text[..];
        for part in
            [&*self.limit, Number::new().text(remaining.into()), b";t=", Number::new().text(wait)]
        {
            rest.write_all(part).ok()?;
        }
        let left = rest.len();
        HeaderValue::from_bytes(&text[..text.len() - left]).ok()
    }
}

impl All {
    fn of(outcomes: &[Outcome], header_options: HeaderOptions, key: KeyOf<'_>) -> Self {
        let values = told(outcomes, if header_options.partition_keys { key } else { &|_, _| None });
        Self { values, old: old(outcomes).filter(|_| header_options.old) }
    }
}

impl Headers {
    /// Returns the headers of the only policy; `words` are its constant parts, if known.
    #[inline]
    pub(super) fn one(words: Option<&'static Words>, charge: &Charge<'_>, ruling: &Ruling) -> Self {
        match words {
            // Not if an override gives this key another quota.
            Some(words) if words.told == charge.terms.told() => {
                let wait = if matches!(ruling.retry_after, 0 | NEVER) {
                    ruling.full_after
                } else {
                    ruling.retry_after
                };
                Self::One(QuotaState {
                    words,
                    remaining: ruling.remaining,
                    wait: wait.div_ceil(1_000_000_000),
                })
            }
            _ => Self::all(&[Outcome::new(charge, ruling)], HeaderOptions::default(), &|_, _| None),
        }
    }

    pub(super) fn all(outcomes: &[Outcome], header_options: HeaderOptions, key: KeyOf<'_>) -> Self {
        Self::All(Box::new(All::of(outcomes, header_options, key)))
    }

    /// Adds the headers to those of inner limits: both headers are lists.
    #[inline]
    pub(super) fn add(self, headers: &mut HeaderMap) {
        match self {
            Self::None => {}
            Self::One(QuotaState { words, remaining, wait }) => {
                headers.append(&POLICY, words.policy.clone());
                if let Some(limit) = words.limit(remaining, wait) {
                    headers.append(&LIMIT, limit);
                }
            }
            Self::All(all) => {
                for (name, value) in [&POLICY, &LIMIT].into_iter().zip(all.values) {
                    if let Some(value) = value {
                        headers.append(name, value);
                    }
                }
                // The older headers are not lists: the value of an inner limit stays.
                if let Some(old) = all.old.filter(|_| !headers.contains_key(&OLD[0])) {
                    for (name, value) in OLD.iter().zip(old) {
                        headers.insert(name, HeaderValue::from(value));
                    }
                }
            }
        }
    }
}

/// Returns the headers of all policies.
fn told(outcomes: &[Outcome], key: KeyOf<'_>) -> [Option<HeaderValue>; 2] {
    let (mut policies, mut limits) = (Text::new(), Text::new());
    // A policy without a limit is not reported.
    for (number, outcome) in outcomes.iter().enumerate() {
        let Some((quota, window)) = outcome.told() else { continue };
        let Ok(name) = StringRef::from_str(outcome.policy()) else { continue };
        for list in [&mut policies, &mut limits] {
            if !list.is_empty() {
                list.extend_from_slice(b", ");
            }
            quote(list, name);
        }
        policy_parameters(&mut policies, quota, outcome.period().map(|_| window));
        limits.extend_from_slice(b";r=");
        integer(&mut limits, outcome.remaining().into());
        wait(&mut limits, outcome);
        if let Some(key) = key((number, outcomes.len()), outcome.policy()) {
            for list in [&mut policies, &mut limits] {
                list.extend_from_slice(b";pk=:");
                list.extend_from_slice(key.as_bytes());
                list.push(b':');
            }
        }
    }
    [value(&policies), value(&limits)]
}

/// Returns limit, remaining, and the time when all is restored (seconds since the epoch), of the
/// policy with the smallest share left.
fn old(outcomes: &[Outcome]) -> Option<[u64; 3]> {
    let left = |outcome: &Outcome| {
        outcome.told().map(|(quota, _)| f64::from(outcome.remaining()) / f64::from(quota.max(1)))
    };
    let told = outcomes.iter().filter_map(|outcome| Some((left(outcome)?, outcome)));
    let (_, tightest) = told.min_by(|a, b| a.0.total_cmp(&b.0))?;
    let (quota, _) = tightest.told()?;
    let wait =
        tightest.retry_after().filter(|wait| !wait.is_zero()).unwrap_or(tightest.full_after());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Some([quota.into(), tightest.remaining().into(), now.as_secs().saturating_add(seconds(wait))])
}

/// Writes the time until the next request is admitted, or until everything is available again.
fn wait(list: &mut Text, outcome: &Outcome) {
    if outcome.period().is_some() {
        let wait = outcome.retry_after().filter(|w| !w.is_zero()).unwrap_or(outcome.full_after());
        list.extend_from_slice(b";t=");
        integer(list, seconds(wait));
    }
}

fn policy_parameters(list: &mut Text, quota: u32, window: Option<Duration>) {
    list.extend_from_slice(b";q=");
    integer(list, quota.into());
    match window {
        // The header cannot express less than a second.
        Some(window) if window < Duration::from_secs(1) => {}
        Some(window) => {
            list.extend_from_slice(b";w=");
            integer(list, seconds(window));
        }
        None => list.extend_from_slice(b";qu=\"concurrent-requests\""),
    }
}

fn value(text: &[u8]) -> Option<HeaderValue> {
    if text.is_empty() { None } else { HeaderValue::from_bytes(text).ok() }
}

/// Writes a string of a structured field.
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

/// Formats an integer of a structured field.
struct Number(itoa::Buffer);

impl Number {
    /// Largest integer (RFC 9651, 3.3.1).
    const LARGEST: u64 = 999_999_999_999_999;

    fn new() -> Self {
        Self(itoa::Buffer::new())
    }

    fn text(&mut self, value: u64) -> &[u8] {
        self.0.format(value.min(Self::LARGEST)).as_bytes()
    }
}

/// Returns the response to a refused request: the application's own, or a gRPC status if the
/// request is gRPC, or a problem document.
pub(super) fn refusal(
    refusal: &Refusal<'_>,
    own: Option<Response<Bytes>>,
    head: &RequestHead<'_>,
    jitter: f64,
    header_options: HeaderOptions,
    key: KeyOf<'_>,
) -> Response<Bytes> {
    let wait = match refusal {
        Refusal::TooMany(decision) => decision.retry_after(),
        Refusal::Banned(ban) => Some(ban.left()),
        Refusal::Denied | Refusal::UnknownClient => None,
    };
    let wait = wait.map(|wait| seconds(wait.mul_f64(1.0 + fastrand::f64() * jitter)).max(1));
    let mut response = own
        .or_else(|| grpc::refusal(refusal, head.headers, wait))
        .unwrap_or_else(|| problem(refusal));
    let headers = response.headers_mut();
    if let Refusal::TooMany(decision) = refusal {
        let all = All::of(decision.outcomes(), header_options, key);
        for (name, value) in [&POLICY, &LIMIT].into_iter().zip(all.values) {
            if let Some(value) = value {
                headers.entry(name).or_insert(value);
            }
        }
        for (name, value) in OLD.iter().zip(all.old.into_iter().flatten()) {
            headers.entry(name).or_insert(HeaderValue::from(value));
        }
    }
    if let Some(wait) = wait {
        headers.entry(RETRY_AFTER).or_insert(HeaderValue::from(wait));
    }
    response.extensions_mut().insert(NoWork);
    response
}

fn problem(refusal: &Refusal<'_>) -> Response<Bytes> {
    let (status, problem) = match refusal {
        Refusal::TooMany(decision) => {
            let denied: Vec<_> = decision
                .outcomes()
                .iter()
                .filter(|o| !o.admitted())
                .map(crate::decision::Outcome::policy)
                .collect();
            let problem = serde_json::json!({
                "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
                "title": "Too many requests",
                "status": 429,
                "violated-policies": denied,
            });
            (StatusCode::TOO_MANY_REQUESTS, problem)
        }
        // The reason for a ban is for the operators only.
        Refusal::Denied | Refusal::Banned(_) => (
            StatusCode::FORBIDDEN,
            serde_json::json!({ "type": "about:blank", "title": "Forbidden", "status": 403 }),
        ),
        // The missing setup is for the operators only as well.
        Refusal::UnknownClient => {
            let problem = serde_json::json!({
                "type": "about:blank", "title": "Internal server error", "status": 500
            });
            (StatusCode::INTERNAL_SERVER_ERROR, problem)
        }
    };
    let mut response = Response::new(Bytes::from(problem.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// Returns the response that replaces an upgrade whose permits are not held.
#[cold]
pub(super) fn unheld() -> Response<Bytes> {
    tracing::error!(
        "refused an upgrade that would release its permit at once: move \
         `scale_limit::layer::Places`, from the request's \
         extensions, into the task that serves the connection"
    );
    problem(&Refusal::UnknownClient)
}

/// Rounds up: a client that waits exactly as long as reported must be admitted.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limiter;
    use crate::decision::Decision;
    use sfv::{List, Parser};

    #[tokio::test]
    async fn any_policy_makes_headers_that_parse() {
        let limiter = Limiter::memory();
        for name in ["login", "a \"quoted\" \\name", "", "nicht für Kopfzeilen", "new\nline"] {
            let policies = [
                Policy::per_hour(name, u32::MAX - 1),
                Policy::concurrency("places", 3),
                Policy::new("age", 1, Duration::MAX),
            ];
            let charges: Vec<_> = policies.iter().map(|p| (p, "k", 1)).collect();
            let decision = limiter.check_all(&charges).await;
            let mut headers = HeaderMap::new();
            Headers::all(decision.outcomes(), HeaderOptions::default(), &|_, _| None)
                .add(&mut headers);
            for header in [&POLICY, &LIMIT] {
                let list: List = Parser::new(headers[header].as_bytes()).parse().unwrap();
                let fits = name.bytes().all(|b| (0x20..0x7f).contains(&b));
                assert_eq!(list.len(), if fits { 3 } else { 2 }, "{name}: {list:?}");
            }
        }
    }

    /// The values satisfy the draft for any numbers: integers, remaining not above the quota, and a
    /// rate that a client can keep.
    #[tokio::test]
    async fn what_is_told_can_be_kept() {
        let numbers = [
            (5, 60_000, None, "\"p\";q=5;w=60"),
            (5, 60_000, Some(2), "\"p\";q=2;w=24"),
            (50, 1_000, Some(200), "\"p\";q=200;w=4"),
            // Ten in a tenth of a second are not ten in a second.
            (10, 100, None, "\"p\";q=10"),
            (10, 1_500, None, "\"p\";q=10;w=2"),
            (1, 1, None, "\"p\";q=1"),
            (100, 1_000, Some(1), "\"p\";q=1"),
        ];
        for (quota, millis, burst, told) in numbers {
            let policy = Policy::new("p", quota, Duration::from_millis(millis));
            let policy = burst.map_or(policy.clone(), |burst| policy.burst(burst));
            let charge = Charge::new(&policy, "k", 1);
            let limiter = Limiter::memory();
            let (_, ruling) = limiter.rule_at_once(&charge).unwrap();
            let decision = Decision::one(0, &charge, &ruling, None);
            for headers in [
                Headers::one(Words::of(&policy), &charge, &ruling),
                Headers::all(decision.outcomes(), HeaderOptions::default(), &|_, _| None),
            ] {
                let mut map = HeaderMap::new();
                headers.add(&mut map);
                assert_eq!(map[&POLICY], told);
                let left: List = Parser::new(map[&LIMIT].as_bytes()).parse().unwrap();
                assert_eq!(left.len(), 1);
                assert!(
                    decision.outcomes()[0].remaining() <= decision.outcomes()[0].told().unwrap().0
                );
            }
        }
        for algorithm in
            [crate::policy::Algorithm::SlidingWindow, crate::policy::Algorithm::FixedWindow]
        {
            let policy = Policy::new("p", 10, Duration::from_secs(90)).algorithm(algorithm);
            assert_eq!(Words::of(&policy).unwrap().policy, "\"p\";q=10;w=90");
        }
        assert!(Words::of(&Policy::per_second("p", 1).dry_run()).is_none());
    }
}
