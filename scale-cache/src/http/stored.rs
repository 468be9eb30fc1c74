//! A stored response, and the answers made from it: the whole body, a part, or a 304.

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AGE, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, EXPIRES, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, LAST_MODIFIED, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::directives::elements;
use super::freshness::{Freshness, date_of, withheld};

/// Fields of a connection, not of a response (RFC 9110, 7.6.1), and fields of proxies.
static OF_THE_CONNECTION: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authentication-info"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes fields that must not be passed on or stored.
pub(super) fn strip_connection(headers: &mut HeaderMap) {
    // With both fields, `Content-Length` is not the length of the body (RFC 9112, 6.3).
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| elements(&String::from_utf8_lossy(line.as_bytes())))
        .map(|name| name.to_ascii_lowercase())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in &OF_THE_CONNECTION {
        headers.remove(name);
    }
}

/// Entry stored under a URL.
#[derive(Debug, Serialize, Deserialize)]
// Always behind a reference, so its size does not matter.
#[allow(clippy::large_enum_variant)]
pub(super) enum Page {
    Response(Stored),
    /// There are variants, distinguished by these fields of the request.
    Varies(Vec<String>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    status: u16,
    #[serde(with = "fields")]
    headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) freshness: Freshness,
    /// Fields that the response varies by, with the values of the request.
    pub(super) vary: Vec<(String, String)>,
}

/// Serializes header fields as pairs of names and values.
mod fields {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderName, HeaderValue};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        headers: &HeaderMap,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(headers.iter().map(|(name, value)| (name.as_str(), Value(value))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<HeaderMap, D::Error> {
        let pairs = Vec::<(String, Bytes)>::deserialize(deserializer)?;
        let pairs = pairs.into_iter();
        Ok(pairs
            .filter_map(|(n, v)| {
                Some((n.parse::<HeaderName>().ok()?, HeaderValue::from_bytes(&v).ok()?))
            })
            .collect())
    }

    struct Value<'v>(&'v HeaderValue);

    impl serde::Serialize for Value<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0.as_bytes())
        }
    }
}

impl Stored {
    /// Creates a response for the client that requested it: with all fields. Other clients get it
    /// [without some](Self::for_all).
    pub(super) fn new(
        status: StatusCode,
        mut headers: HeaderMap,
        body: Bytes,
        freshness: Freshness,
        vary: Vec<(String, String)>,
    ) -> Self {
        strip_connection(&mut headers);
        Self { status: status.as_u16(), headers, body, freshness, vary }
    }

    /// Removes the fields that the response excludes from storage: they are for one client.
    pub(super) fn for_all(mut self) -> Self {
        for name in withheld(&self.headers) {
            self.headers.remove(name);
        }
        self
    }

    /// Returns whether the response excludes fields from storage.
    pub(super) fn withholds(&self) -> bool {
        withheld(&self.headers).iter().any(|name| self.headers.contains_key(name))
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK)
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns whether the response may be used for a request with these fields.
    pub(super) fn answers(&self, request: &HeaderMap) -> bool {
        self.vary.iter().all(|(name, value)| {
            selecting(request, name) == *value
                && (name != "accept-encoding" || accepts_coding(request, &self.headers))
        })
    }

    /// Returns the response with the fields of a 304 that confirms it (RFC 9111, 3.2). The fields
    /// that describe the body stay; the caller must judge its freshness again by the new fields.
    /// `all`: whether to take all fields, or only those about freshness because the others are for
    /// one client.
    pub(super) fn freshened(&self, mut said: HeaderMap, all: bool) -> Self {
        strip_connection(&mut said);
        if !all {
            let times = [AGE, CACHE_CONTROL, DATE, EXPIRES];
            said = said
                .into_iter()
                .filter_map(|(name, value)| {
                    Some((name.filter(|name| times.contains(name))?, value))
                })
                .collect();
        }
        let mut headers = self.headers().clone();
        // The age is that of the new response.
        headers.remove(AGE);
        for name in said.keys() {
            let of_the_body = [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG]
                .contains(name)
                || name == "content-md5";
            if of_the_body {
                continue;
            }
            headers.remove(name);
            for value in said.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        Self::new(
            self.status(),
            headers,
            self.body.clone(),
            Freshness::default(),
            self.vary.clone(),
        )
    }

    /// Adds conditions to a request, to validate the response at the origin.
    pub(super) fn ask(&self, request: &mut HeaderMap) {
        strip_conditions(request);
        for (name, condition) in [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)] {
            if let Some(value) = self.headers().get(name) {
                request.insert(condition, value.clone());
            }
        }
    }

    /// Returns the answer to a request. `age`: in seconds, if the response comes from the cache.
    pub(super) fn answer(
        &self,
        request: &HeaderMap,
        head: bool,
        age: Option<u64>,
    ) -> Response<Bytes> {
        let mut headers = self.headers().clone();
        if let Some(age) = age {
            headers.insert(AGE, HeaderValue::from(age));
        }
        let (mut status, mut body) = (self.status(), self.body.clone());
        spare_body(request, &mut status, &mut headers);
        if status == StatusCode::NOT_MODIFIED {
            body = Bytes::new();
        } else if status == StatusCode::OK && !head && may_be_a_part(request, &headers) {
            match part(request, body.len()) {
                Part::Whole => {}
                Part::Of(range) => {
                    let written = format!("bytes {}-{}/{}", range.start, range.end - 1, body.len());
                    headers.extend(
                        HeaderValue::try_from(written).ok().map(|value| (CONTENT_RANGE, value)),
                    );
                    body = body.slice(range);
                    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
                    status = StatusCode::PARTIAL_CONTENT;
                }
                Part::OutOfReach => {
                    headers.extend(
                        HeaderValue::try_from(format!("bytes */{}", body.len()))
                            .ok()
                            .map(|value| (CONTENT_RANGE, value)),
                    );
                    headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
                    (status, body) = (StatusCode::RANGE_NOT_SATISFIABLE, Bytes::new());
                }
            }
        }
        let mut response = Response::new(if head { Bytes::new() } else { body });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// Makes a 304 of a response, if the client has it already.
pub(super) fn spare_body(request: &HeaderMap, status: &mut StatusCode, headers: &mut HeaderMap) {
    if *status == StatusCode::OK && not_modified(request, headers) {
        *status = StatusCode::NOT_MODIFIED;
        // Without the fields of the body (RFC 9110, 15.4.5).
        for name in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING] {
            headers.remove(name);
        }
    }
}

/// Removes a client's own conditions that ask for a part, or for another status than 304.
pub(super) fn strip_preconditions(request: &mut HeaderMap) {
    for name in [IF_RANGE, http::header::IF_MATCH, http::header::IF_UNMODIFIED_SINCE] {
        request.remove(name);
    }
}

/// Removes a client's own conditions: the fetched page is for all clients.
pub(super) fn strip_conditions(request: &mut HeaderMap) {
    strip_preconditions(request);
    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE] {
        request.remove(name);
    }
}

/// Returns the fields that a response varies by.
pub(super) fn varies_by(response: &HeaderMap) -> Vec<String> {
    let lines = response
        .get_all(VARY)
        .iter()
        .flat_map(|line| elements(&String::from_utf8_lossy(line.as_bytes())));
    let mut names: Vec<String> = lines.map(|name| name.to_ascii_lowercase()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Normalises a request's field for the selection of a variant: several lines form one list, spaces
/// do not count, and for languages and encodings neither case nor order counts.
pub(super) fn selecting(request: &HeaderMap, name: &str) -> String {
    // One character for each byte, so that different lines stay different.
    let letters = |line: &http::HeaderValue| {
        line.as_bytes().iter().map(|byte| char::from(*byte)).collect::<String>()
    };
    let lines = request.get_all(name).iter().flat_map(|line| elements(&letters(line)));
    let mut all: Vec<String> = lines.collect();
    if matches!(name, "accept-language" | "accept-encoding") {
        for element in &mut all {
            *element = element.to_ascii_lowercase().replace(char::is_whitespace, "");
        }
        // Without a wildcard, a refused element is the same as an absent one. `identity` is
        // acceptable by default.
        let has_wildcard = all.iter().any(|element| element.starts_with('*'));
        let is_default = |element: &str| name == "accept-encoding" && element == "identity";
        all.retain(|element| has_wildcard || !(is_refused(element) || is_default(element)));
        all.sort_unstable();
        all.dedup();
    }
    // An absent field differs from an empty one.
    if request.contains_key(name) { format!("={}", all.join(",")) } else { String::new() }
}

/// Returns whether an element of a list has the weight `q=0`.
fn is_refused(element: &str) -> bool {
    let weight =
        element.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("q="));
    weight.is_some_and(|weight| weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0))
}

/// Returns whether a request accepts the coding of a response, if it states which codings it
/// accepts (RFC 9110, 12.5.3).
pub(super) fn accepts_coding(request: &HeaderMap, response: &HeaderMap) -> bool {
    let (Some(coding), true) =
        (response.get(CONTENT_ENCODING), request.contains_key(ACCEPT_ENCODING))
    else {
        return true;
    };
    let Ok(coding) = coding.to_str() else { return true };
    let said = |wanted: &str| -> Option<bool> {
        let lines = request.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
        let mut elements =
            lines.flat_map(|line| line.split(',')).map(|e| e.trim().to_ascii_lowercase());
        elements
            .find(|e| e.split(';').next().is_some_and(|name| name.trim() == wanted))
            .map(|e| !is_refused(&e))
    };
    coding.split(',').map(|one| one.trim().to_ascii_lowercase()).all(|one| {
        one == "identity"
            || said(&one)
                .or_else(|| said(&format!("x-{one}")))
                .or_else(|| said("*"))
                .unwrap_or(false)
    })
}

/// Returns whether the client has the response already (RFC 9110, 13.2.2: `If-None-Match` takes
/// precedence over `If-Modified-Since`).
fn not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let Some(tag) = stored.get(ETAG).map(|t| weak(t.as_bytes())) else { return false };
        return request.get_all(IF_NONE_MATCH).iter().any(|line| {
            let line = line.as_bytes();
            weak(line) == tag || tags(line).any(|t| t == b"*" || weak(t) == tag)
        });
    }
    let since = date_of(request, &IF_MODIFIED_SINCE);
    let changed = date_of(stored, &LAST_MODIFIED).or_else(|| date_of(stored, &DATE));
    matches!((since, changed), (Some(since), Some(changed)) if changed <= since)
}

/// Returns the entity tags of a list. A comma inside of a tag is rare, and then only costs a body.
fn tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

/// Returns a tag for the weak comparison (RFC 9110, 8.8.3.2).
fn weak(tag: &[u8]) -> &[u8] {
    let tag = tag.trim_ascii();
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Returns whether `If-Range` permits a part of this response (RFC 9110, 13.1.5).
fn may_be_a_part(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    let strong = |tag: &HeaderValue| !tag.as_bytes().starts_with(b"W/");
    if condition.as_bytes().contains(&b'"') {
        return strong(condition) && stored.get(ETAG) == Some(condition);
    }
    stored.get(LAST_MODIFIED) == Some(condition)
}

enum Part {
    Whole,
    Of(std::ops::Range<usize>),
    OutOfReach,
}

/// Returns the requested byte range; for several ranges, the whole body is a valid answer.
fn part(request: &HeaderMap, length: usize) -> Part {
    let Some(spec) = request
        .get(RANGE)
        .and_then(|r| r.to_str().ok())
        .and_then(|r| r.trim().strip_prefix("bytes="))
    else {
        return Part::Whole;
    };
    let Some((first, last)) = spec.split_once('-').filter(|_| !spec.contains(',')) else {
        return Part::Whole;
    };
    let number = |text: &str| {
        let text = text.trim();
        if text.is_empty() { Ok(None) } else { text.parse::<usize>().map(Some) }
    };
    match (number(first), number(last)) {
        (Ok(Some(first)), Ok(_)) if first >= length => Part::OutOfReach,
        (Ok(Some(first)), Ok(None)) => Part::Of(first..length),
        (Ok(Some(first)), Ok(Some(last))) if last >= first => {
            Part::Of(first..last.saturating_add(1).min(length))
        }
        (Ok(None), Ok(Some(0))) => Part::OutOfReach,
        (Ok(None), Ok(Some(_))) if length == 0 => Part::OutOfReach,
        (Ok(None), Ok(Some(suffix))) => Part::Of(length.saturating_sub(suffix)..length),
        _ => Part::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn stored(fields: &[(&str, &str)]) -> Stored {
        Stored::new(
            StatusCode::OK,
            map(fields),
            Bytes::from("0123456789"),
            Freshness::default(),
            Vec::new(),
        )
    }

    #[test]
    fn a_table_of_parts() {
        let page = stored(&[("etag", "\"a\""), ("content-length", "10")]);
        for (range, status, body) in [
            ("bytes=0-1", 206, "01"),
            ("bytes=8-", 206, "89"),
            ("bytes=8-99", 206, "89"),
            ("bytes=-3", 206, "789"),
            ("bytes=-99", 206, "0123456789"),
            ("bytes=10-", 416, ""),
            ("bytes=-0", 416, ""),
            ("bytes=2-1", 200, "0123456789"),
            ("bytes=0-1,3-4", 200, "0123456789"),
            ("lines=0-1", 200, "0123456789"),
            ("bytes=a-b", 200, "0123456789"),
            ("bytes=99999999999999999999999-", 200, "0123456789"),
        ] {
            let answer = page.answer(&map(&[("range", range)]), false, None);
            assert_eq!(
                (answer.status().as_u16(), &answer.body()[..]),
                (status, body.as_bytes()),
                "{range}"
            );
        }
        for (condition, status) in [("\"a\"", 206), ("\"b\"", 200), ("W/\"a\"", 200)] {
            let answer =
                page.answer(&map(&[("range", "bytes=0-1"), ("if-range", condition)]), false, None);
            assert_eq!(answer.status().as_u16(), status, "{condition}");
        }
    }

    #[test]
    fn a_table_of_conditions() {
        let page =
            stored(&[("etag", "W/\"a\""), ("last-modified", "Fri, 01 Jan 2010 01:01:01 GMT")]);
        for (condition, status) in [
            (("if-none-match", "\"a\""), 304),
            (("if-none-match", "W/\"a\""), 304),
            (("if-none-match", "\"b\", \"a\""), 304),
            (("if-none-match", "*"), 304),
            (("if-none-match", "\"b\""), 200),
            (("if-modified-since", "Fri, 01 Jan 2010 01:01:01 GMT"), 304),
            (("if-modified-since", "Friday, 01-Jan-10 01:01:01 GMT"), 304),
            (("if-modified-since", "Fri, 01 Jan 2010 01:01:00 GMT"), 200),
            (("if-modified-since", "nonsense"), 200),
        ] {
            let answer = page.answer(&map(&[condition]), false, Some(3));
            assert_eq!(answer.status().as_u16(), status, "{condition:?}");
            assert!(answer.headers().contains_key(ETAG) && answer.headers()[AGE] == "3");
        }
    }

    #[test]
    fn fields_of_a_connection_are_nobody_elses() {
        let page = stored(&[
            ("connection", "a, keep-alive"),
            ("a", "1"),
            ("keep-alive", "x"),
            ("b", "2"),
            ("te", "x"),
        ]);
        assert_eq!(page.headers().keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["b"]);
        let page =
            stored(&[("cache-control", "no-cache=\"a\", private=b"), ("a", "1"), ("b", "2")]);
        assert!(page.withholds());
        let page = page.for_all();
        assert!(!page.headers().contains_key("a") && !page.headers().contains_key("b"));
    }

    proptest! {
        #[test]
        fn it_comes_back_as_it_was(body: Vec<u8>, value in "[ -~]{0,40}") {
            let page = Page::Response(Stored::new(
                StatusCode::NOT_FOUND,
                map(&[("x", &value), ("x", "2")]),
                body.into(),
                Freshness::default(),
                vec![("a".into(), "b".into())],
            ));
            let bytes = rmp_serde::to_vec_named(&page).unwrap();
            let Page::Response(read) = rmp_serde::from_slice(&bytes).unwrap() else { panic!() };
            let Page::Response(page) = page else { panic!() };
            prop_assert_eq!(
                (read.status(), read.headers(), &read.body),
                (page.status(), page.headers(), &page.body),
            );
        }

        #[test]
        fn any_range_is_survived(range in "[ -~]{0,40}", length in 0_usize..20) {
            let page = Stored::new(
                StatusCode::OK,
                HeaderMap::new(),
                vec![0; length].into(),
                Freshness::default(),
                Vec::new(),
            );
            page.answer(&map(&[("range", &range)]), false, None);
            page.answer(&map(&[("range", &format!("bytes={range}"))]), false, None);
        }
    }
}
