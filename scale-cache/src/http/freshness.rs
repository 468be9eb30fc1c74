//! Freshness of responses: which ones may be stored, and for how long (RFC 9111, sections 3 and
//! 4.2; RFC 5861). Pure: the caller passes the times.

use std::time::{Duration, UNIX_EPOCH};

use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, DATE, EXPIRES, LAST_MODIFIED, PRAGMA,
    SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderName, StatusCode};
use serde::{Deserialize, Serialize};

use super::directives::{Directives, FOREVER, seconds};

static CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// Settings of how strictly an origin's headers are followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// `true` if everything is stored that the standard permits, even if an origin forgot to forbid
    /// it.
    pub(super) as_the_standard_permits: bool,
}

/// Cache directives of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestFacts {
    pub(super) directives: Directives,
    pub(super) authorized: bool,
    pub(super) cookies: bool,
}

impl RequestFacts {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut directives = Directives::of(headers, &CACHE_CONTROL);
        if !headers.contains_key(CACHE_CONTROL) && Directives::of(headers, &PRAGMA).has("no-cache")
        {
            let mut old = HeaderMap::new();
            old.insert(CACHE_CONTROL, http::HeaderValue::from_static("no-cache"));
            directives = Directives::of(&old, &CACHE_CONTROL);
        }
        Self {
            directives,
            authorized: headers.contains_key(AUTHORIZATION),
            cookies: headers.contains_key(COOKIE),
        }
    }
}

/// Lifetime of a stored response, in seconds of age.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Freshness {
    /// Age at which the response becomes stale.
    pub(super) lifetime: u64,
    /// Age at its arrival.
    pub(super) initial_age: u64,
    /// Time of its arrival, in ms since 1970.
    pub(super) received: u64,
    /// Times after the lifetime during which the response is served while a new one is fetched, and
    /// if the origin fails.
    pub(super) while_revalidate: u64,
    pub(super) if_error: u64,
    /// `true` if the response must be validated at each use.
    pub(super) always_validate: bool,
    /// `true` if the response must never be served stale.
    pub(super) must_revalidate: bool,
}

/// Permitted use of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Serve the response.
    Fresh,
    /// Serve the response, and fetch a new one in the background.
    Stale,
    /// Validate the response at the origin first.
    Validate,
}

impl Freshness {
    pub(super) fn age(&self, now: u64) -> u64 {
        self.initial_age.saturating_add(now.saturating_sub(self.received) / 1_000)
    }

    /// Returns the seconds until the response is stale; negative if it is stale.
    pub(super) fn left(&self, now: u64) -> i64 {
        self.lifetime.min(FOREVER) as i64 - self.age(now).min(FOREVER * 2) as i64
    }

    pub(super) fn for_request(&self, facts: &Directives, now: u64) -> Use {
        let (age, left) = (self.age(now), self.left(now));
        if self.always_validate
            || facts.has("no-cache")
            || facts.seconds("max-age").is_some_and(|most| age > most || most == 0)
        {
            return Use::Validate;
        }
        if let Some(least) = facts.seconds("min-fresh")
            && left < least as i64
        {
            return Use::Validate;
        }
        if left > 0 {
            return Use::Fresh;
        }
        if self.must_revalidate {
            return Use::Validate;
        }
        let most = if facts.has_unlimited("max-stale") {
            Some(FOREVER)
        } else {
            facts.seconds("max-stale")
        };
        if most.is_some_and(|most| -left <= most as i64) {
            return Use::Fresh;
        }
        if -left < self.while_revalidate as i64 { Use::Stale } else { Use::Validate }
    }

    /// Returns whether the response may be served because the origin fails.
    pub(super) fn serves_errors(&self, now: u64) -> bool {
        !self.must_revalidate && !self.always_validate && -self.left(now) < self.if_error as i64
    }

    /// Returns how long the response is useful.
    pub(super) fn kept(&self, has_validator: bool) -> Duration {
        let fresh = self.lifetime.saturating_sub(self.initial_age);
        // Kept longer for validation, which is cheaper than a new body.
        let validated = if has_validator { 86_400 } else { 0 };
        let stale = self.while_revalidate.max(self.if_error).max(validated);
        Duration::from_secs(fresh.saturating_add(stale).min(FOREVER)).max(Duration::from_millis(1))
    }
}

/// Final statuses that this cache understands, as `must-understand` requires.
const UNDERSTOOD: [u16; 24] = [
    200, 203, 204, 206, 300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 410, 414, 429,
    500, 501, 502, 503, 504,
];
/// Statuses that are cacheable by default (RFC 9110, 15.1).
const HEURISTIC: [u16; 10] = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414];

/// Judges a response with these bytes in its cache headers, for a fuzz target: a response that the
/// origin forbids to store is not stored, and times never overflow.
#[cfg(any(test, fuzzing))]
pub(crate) fn judge_any(bytes: &[u8]) {
    let Ok(value) = http::HeaderValue::from_bytes(bytes) else { return };
    let now = 1_790_000_000_000;
    for name in [CACHE_CONTROL, CDN_CACHE_CONTROL.clone(), EXPIRES, PRAGMA, DATE, AGE] {
        let headers: HeaderMap = [(name.clone(), value.clone())].into_iter().collect();
        let facts = RequestFacts::of(&headers);
        for as_the_standard_permits in [false, true] {
            let rules = Rules { as_the_standard_permits };
            let judged = judge(rules, &RequestFacts::default(), StatusCode::OK, &headers, now, now);
            if let Some(freshness) = judged {
                let forbidden = bytes.eq_ignore_ascii_case(b"no-store");
                assert!(!forbidden || name != CACHE_CONTROL, "stored in spite of no-store");
                freshness.for_request(&facts.directives, now + 1_000);
                freshness.serves_errors(now + 1_000);
                freshness.left(now);
                freshness.kept(true);
            }
        }
    }
}

/// Decides whether a response may be stored, and how long it is fresh. `asked` and `received` are
/// in ms since 1970.
pub(super) fn judge(
    rules: Rules,
    facts: &RequestFacts,
    status: StatusCode,
    headers: &HeaderMap,
    asked: u64,
    received: u64,
) -> Option<Freshness> {
    let targeted = Directives::targeted(headers, &CDN_CACHE_CONTROL);
    let is_targeted = targeted.is_some();
    let said = targeted.unwrap_or_else(|| Directives::of(headers, &CACHE_CONTROL));
    let understood = UNDERSTOOD.contains(&status.as_u16());
    let must_understand = said.has("must-understand");
    if status.is_informational()
        || (must_understand && !understood)
        || (said.has("no-store") && !must_understand)
        || said.has("private")
        || facts.directives.has("no-store")
        || status == StatusCode::PARTIAL_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || varies_without_bound(headers)
        || headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"))
    {
        return None;
    }
    let shared = said.has("public") || said.has("s-maxage");
    if facts.authorized && !shared && !said.has("must-revalidate") {
        return None;
    }
    // A cookie is for one client, whatever else the response says.
    if headers.contains_key(SET_COOKIE) {
        return None;
    }
    // A response that may depend on the client's cookies is for all clients only if the origin says
    // so.
    if !rules.as_the_standard_permits && facts.cookies && !shared {
        return None;
    }
    let date = date_of(headers, &DATE).unwrap_or(received);
    let expires = if is_targeted { None } else { headers.get(EXPIRES) };
    let lifetime = match (said.seconds("s-maxage"), said.seconds("max-age"), expires) {
        (Some(seconds), _, _) | (None, Some(seconds), _) => seconds,
        // An invalid date is in the past (RFC 9111, 5.3).
        (None, None, Some(_)) => {
            date_of(headers, &EXPIRES).map_or(0, |expires| expires.saturating_sub(date) / 1_000)
        }
        (None, None, None) => {
            let cacheable = HEURISTIC.contains(&status.as_u16())
                || status == StatusCode::NOT_IMPLEMENTED
                || said.has("public");
            if !cacheable {
                return None;
            }
            let modified =
                date_of(headers, &LAST_MODIFIED).filter(|_| rules.as_the_standard_permits);
            match modified {
                // A tenth of the time since the last change, at most a day (RFC 9111, 4.2.2).
                Some(modified) => (date.saturating_sub(modified) / 10_000).min(86_400),
                // Useful only with a validator.
                None if has_validator(headers) => 0,
                None => return None,
            }
        }
    };
    let age = age_of(headers);
    let delay = received.saturating_sub(asked) / 1_000;
    let apparent = received.saturating_sub(date) / 1_000;
    let proxied = said.has("proxy-revalidate") || said.has("s-maxage");
    let always_validate = said.has_unlimited("no-cache");
    Some(Freshness {
        lifetime,
        initial_age: apparent.max(age.saturating_add(delay)),
        received,
        while_revalidate: said.seconds("stale-while-revalidate").unwrap_or(0),
        if_error: said.seconds("stale-if-error").unwrap_or(0),
        always_validate,
        must_revalidate: said.has("must-revalidate") || proxied,
    })
}

/// Returns the fields that `no-cache` and `private` exclude from storage.
pub(super) fn withheld(headers: &HeaderMap) -> Vec<String> {
    let said = Directives::of(headers, &CACHE_CONTROL);
    said.fields("no-cache").into_iter().chain(said.fields("private")).collect()
}

pub(super) fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(http::header::ETAG) || headers.contains_key(LAST_MODIFIED)
}

fn varies_without_bound(headers: &HeaderMap) -> bool {
    headers
        .get_all(VARY)
        .iter()
        .any(|line| line.as_bytes().split(|b| *b == b',').any(|e| e.trim_ascii() == b"*"))
}

/// Returns the `Age` in seconds. Of several values the first one counts, and an invalid number is
/// ignored (RFC 9111, 5.1).
fn age_of(headers: &HeaderMap) -> u64 {
    let first = headers
        .get(AGE)
        .and_then(|line| line.to_str().ok())
        .and_then(|line| line.split(',').next());
    first.and_then(|age| seconds(age.trim())).unwrap_or(0)
}

/// Returns a date, in ms since 1970.
pub(super) fn date_of(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut lines = headers.get_all(name).iter();
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let line = line.to_str().ok()?.trim();
    let time = httpdate::parse_http_date(line).ok().or_else(|| leniently(line))?;
    time.duration_since(UNIX_EPOCH).ok().map(|t| t.as_millis() as u64)
}

/// Parses a date in another case, or with a wrong day of the week.
fn leniently(date: &str) -> Option<std::time::SystemTime> {
    let date = in_case(date);
    let (day, rest) = date.split_at_checked(3).filter(|_| date.len() >= 24)?;
    let days = [day, "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    days.into_iter().find_map(|day| httpdate::parse_http_date(&format!("{day}{rest}")).ok())
}

/// Returns a date in the standard's case: names of days and months are capitalised, and zones are
/// in upper case. Spaces stay as they are: single, except before a one-digit day in the oldest
/// form.
fn in_case(date: &str) -> String {
    let mut text = String::with_capacity(date.len());
    let mut inside = false;
    for letter in date.chars() {
        text.push(if inside { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() });
        inside = letter.is_ascii_alphabetic();
    }
    match text.strip_suffix("Gmt") {
        Some(start) => format!("{start}GMT"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn judged(
        request: &[(&str, &str)],
        status: u16,
        response: &[(&str, &str)],
        permits: bool,
    ) -> Option<Freshness> {
        let map = |fields: &[(&str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            headers
        };
        let (facts, headers) = (RequestFacts::of(&map(request)), map(response));
        let status = StatusCode::from_u16(status).unwrap();
        judge(Rules { as_the_standard_permits: permits }, &facts, status, &headers, NOW, NOW)
    }

    #[test]
    fn nobody_gets_what_was_made_for_somebody_else() {
        let fresh = ("cache-control", "max-age=60");
        let public = ("cache-control", "max-age=60, public");
        for (request, response, permits, stored) in [
            (vec![], vec![fresh], false, true),
            // Cookies in the request or in the response.
            (vec![("cookie", "a=b")], vec![fresh], false, false),
            (vec![("cookie", "a=b")], vec![public], false, true),
            (vec![("cookie", "a=b")], vec![("cache-control", "s-maxage=60")], false, true),
            (vec![], vec![fresh, ("set-cookie", "a=b")], false, false),
            (vec![], vec![public, ("set-cookie", "a=b")], false, false),
            (vec![], vec![fresh, ("set-cookie", "a=b")], true, false),
            (vec![], vec![("cache-control", "s-maxage=60"), ("set-cookie", "a=b")], true, false),
            // Credentials, with both settings.
            (vec![("authorization", "x")], vec![fresh], true, false),
            (
                vec![("authorization", "x")],
                vec![("expires", "Fri, 01 Jan 2038 01:01:01 GMT")],
                true,
                false,
            ),
            (vec![("authorization", "x")], vec![public], false, true),
            (
                vec![("authorization", "x")],
                vec![("cache-control", "max-age=60, must-revalidate")],
                true,
                true,
            ),
            // Private responses stay private, in every form of the directive.
            (vec![], vec![("cache-control", "private, max-age=60")], true, false),
            (vec![], vec![("cache-control", "max-age=60, private=\"x\"")], true, false),
            (vec![], vec![("cache-control", "s-maxage=60, PRIVATE")], true, false),
            (vec![], vec![public, ("cache-control", "no-store")], true, false),
            (vec![], vec![fresh, ("vary", "*")], true, false),
            (vec![], vec![fresh, ("vary", "accept, *")], true, false),
            (vec![("cache-control", "no-store")], vec![public], true, false),
            (vec![], vec![public, ("content-type", "text/event-stream")], true, false),
            // Directives for this kind of cache only.
            (vec![], vec![("cdn-cache-control", "private"), public], true, false),
            (
                vec![],
                vec![("cdn-cache-control", "max-age=60"), ("cache-control", "private")],
                true,
                true,
            ),
        ] {
            assert_eq!(
                judged(&request, 200, &response, permits).is_some(),
                stored,
                "{request:?} {response:?} {permits}"
            );
        }
    }

    #[test]
    fn a_table_of_ages() {
        for (lines, expected) in [
            (&["5"][..], 5),
            (&["0,7200"], 0),
            (&["7200,0"], 7_200),
            (&["0, 0"], 0),
            (&["0", "7200"], 0),
            (&["7200", "0"], 7_200),
            (&["-5"], 0),
            (&["5.0"], 0),
            (&["abc"], 0),
            (&["5;a=b"], 0),
            (&["99999999999999999999"], FOREVER),
            (&[""], 0),
            (&[], 0),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(AGE, line.parse().unwrap());
            }
            assert_eq!(age_of(&headers), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_table_of_dates() {
        let read = |date: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(EXPIRES, date.parse().unwrap());
            date_of(&headers, &EXPIRES)
        };
        for date in [
            "Thu, 18 Aug 2050 02:01:18 GMT", "THU, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 AUG 2050 02:01:18 gMT", "Thu Aug 18 02:01:18 2050",
            "Thursday, 18-Aug-50 02:01:18 GMT",
        ] {
            assert_eq!(read(date), Some(2_544_400_878_000), "{date}");
        }
        for date in
            ["0", "Thu, 18 Aug 2050 02:01:18 UTC", "Thu, 99 Aug 2050 02:01:18 GMT", "2050-08-18"]
        {
            assert_eq!(read(date), None, "{date}");
        }
    }

    #[test]
    fn nothing_is_guessed_unless_that_is_asked_for() {
        let old = [("last-modified", "Fri, 01 Jan 2010 01:01:01 GMT")];
        assert_eq!(judged(&[], 200, &old, false).unwrap().lifetime, 0);
        assert_eq!(judged(&[], 200, &old, true).unwrap().lifetime, 86_400);
        assert_eq!(judged(&[], 502, &old, true), None);
        assert_eq!(judged(&[], 200, &[], true), None);
    }

    #[test]
    fn what_a_request_may_wish() {
        let freshness = Freshness {
            lifetime: 100,
            received: NOW,
            while_revalidate: 50,
            if_error: 80,
            ..Freshness::default()
        };
        let at = |seconds: u64, wish: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, wish.parse().unwrap());
            freshness.for_request(&RequestFacts::of(&headers).directives, NOW + seconds * 1_000)
        };
        for (seconds, wish, expected) in [
            (10, "", Use::Fresh),
            (10, "no-cache", Use::Validate),
            (10, "max-age=0", Use::Validate),
            (10, "max-age=5", Use::Validate),
            (10, "max-age=50", Use::Fresh),
            (10, "min-fresh=95", Use::Validate),
            (110, "", Use::Stale),
            (110, "max-stale", Use::Fresh),
            (110, "max-stale=5", Use::Stale),
            (151, "", Use::Validate),
            (151, "max-stale=60", Use::Fresh),
        ] {
            assert_eq!(at(seconds, wish), expected, "{seconds} {wish}");
        }
        assert!(freshness.serves_errors(NOW + 179_000) && !freshness.serves_errors(NOW + 181_000));
        let strict = Freshness { must_revalidate: true, ..freshness };
        assert!(!strict.serves_errors(NOW + 101_000));
        assert_eq!(strict.for_request(&Directives::default(), NOW + 101_000), Use::Validate);
    }
}
