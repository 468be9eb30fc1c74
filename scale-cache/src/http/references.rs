//! References in a response: its tags, and other URLs.

use std::sync::Arc;

use http::HeaderMap;
use http::header::HeaderName;

use super::address::normal;
use super::directives::elements;
use crate::policy::versions::named;

/// Maximum number of tags of a response.
const MAX_TAGS: usize = 60;

static SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
static CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");

/// Returns the tags of a response: `Surrogate-Key`, separated by spaces, and `Cache-Tag`, separated
/// by commas. Returns `None` if not all of them can be kept, because there are too many or one is
/// not UTF-8: then the response could not be invalidated by all of its tags.
pub(super) fn tags_of(headers: &HeaderMap) -> Option<Vec<Arc<str>>> {
    let lines = |name: &HeaderName| -> Option<Vec<&str>> {
        headers.get_all(name).iter().map(|line| std::str::from_utf8(line.as_bytes()).ok()).collect()
    };
    let mut all: Vec<Arc<str>> = Vec::new();
    for line in lines(&SURROGATE_KEY)? {
        all.extend(line.split_whitespace().map(Arc::from));
    }
    for line in lines(&CACHE_TAG)? {
        all.extend(elements(line).into_iter().map(Arc::from));
    }
    (all.len() <= MAX_TAGS).then(|| all.into_iter().map(named).collect())
}

/// Returns the path and query of a reference on the same host (RFC 3986, 5.2). `scheme`: that of
/// the request, empty if unknown.
pub(super) fn resolved(target: &str, scheme: &str, host: &str, base: &str) -> Option<String> {
    let target = target.split('#').next().unwrap_or_default();
    let named = match target.split_once("://") {
        Some((named, rest)) => Some((named.to_ascii_lowercase(), rest)),
        None => target.strip_prefix("//").map(|rest| (scheme.to_owned(), rest)),
    };
    if let Some((named, rest)) = named {
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        // If the scheme is unknown, either default port is accepted.
        let hosts =
            [normal(authority, &named), normal(authority, "http"), normal(authority, "https")];
        let same = hosts.into_iter().flatten().any(|authority| authority == host);
        return same.then(|| {
            without_dots(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
        });
    }
    if target.starts_with('/') {
        return Some(without_dots(target.to_owned()));
    }
    if target.is_empty() || target.starts_with('?') {
        return Some(format!("{base}{target}"));
    }
    let folder = &base[..=base.rfind('/').unwrap_or(0)];
    Some(without_dots(format!("{folder}{target}")))
}

/// Removes `.` and `..` segments from a path (RFC 3986, 5.2.4); the query stays.
fn without_dots(path: String) -> String {
    let (before, query) =
        path.split_once('?').map_or((path.as_str(), None), |(before, query)| (before, Some(query)));
    if !before.contains("/.") {
        return path;
    }
    let mut all: Vec<&str> = Vec::new();
    let mut segments = before.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." if is_last => all.push(""),
            "." => {}
            ".." => {
                all.pop();
                if is_last {
                    all.push("");
                }
            }
            segment => all.push(segment),
        }
    }
    let path = format!("/{}", all.join("/"));
    query.map_or(path.clone(), |query| format!("{path}?{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tags_are_kept_or_none() {
        let of = |lines: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(&SURROGATE_KEY, http::HeaderValue::from_bytes(line).unwrap());
            }
            tags_of(&headers).map(|tags| tags.len())
        };
        let many = |count: usize| (0..count).map(|n| format!("t{n}")).collect::<Vec<_>>().join(" ");
        assert_eq!(of(&[b"a b", b"c"]), Some(3));
        assert_eq!(of(&["größe".as_bytes()]), Some(1));
        assert_eq!(of(&[b"a", b"gr\xf6\xdfe"]), None);
        assert_eq!((of(&[many(60).as_bytes()]), of(&[many(61).as_bytes()])), (Some(60), None));
    }

    #[test]
    fn a_table_of_references() {
        for (target, expected) in [
            ("/a?b", Some("/a?b")),
            ("x", Some("/dir/x")),
            ("?q", Some("/dir/page?q")),
            ("", Some("/dir/page")),
            ("http://shop.example/a#f", Some("/a")),
            ("https://SHOP.example", Some("/")),
            ("http://other.example/a", None),
            ("//other.example/a", None),
            ("//shop.example/a", Some("/a")),
            ("http://shop.example:80/a", Some("/a")),
            ("https://shop.example:443?q", Some("/?q")),
            ("http://shop.example:81/a", None),
            ("../list", Some("/list")),
            ("./x", Some("/dir/x")),
            ("/a/../list?b=/../c", Some("/list?b=/../c")),
            ("/../../x", Some("/x")),
            ("/a/b/..", Some("/a/")),
            ("/a/.", Some("/a/")),
        ] {
            assert_eq!(
                resolved(target, "", "shop.example", "/dir/page").as_deref(),
                expected,
                "{target}"
            );
        }
    }
}
