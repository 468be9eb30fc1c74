//! What a response refers to: the tags it carries, and other URLs.

use std::sync::Arc;

use http::HeaderMap;
use http::header::HeaderName;

use super::directives::elements;
use crate::stamp::named;

/// Tags of one response at most; longer ones are cut off.
const MAX_TAGS: usize = 60;

static SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
static CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");

/// The tags a response carries: `Surrogate-Key`, separated by spaces, and `Cache-Tag`, by commas.
pub(super) fn tags_of(headers: &HeaderMap) -> Vec<Arc<str>> {
    let lines = |name: &HeaderName| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|line| line.to_str().ok().map(str::to_owned)).collect()
    };
    let keys =
        lines(&SURROGATE_KEY).into_iter().flat_map(|line| line.split_whitespace().map(Arc::from).collect::<Vec<Arc<str>>>());
    let tags =
        lines(&CACHE_TAG).into_iter().flat_map(|line| elements(&line).into_iter().map(Arc::from).collect::<Vec<Arc<str>>>());
    keys.chain(tags).map(named).take(MAX_TAGS).collect()
}

/// The path and query of a reference on the same host.
pub(super) fn resolved(target: &str, host: &str, base: &str) -> Option<String> {
    let target = target.split('#').next().unwrap_or_default();
    if let Some((_, rest)) = target.split_once("://") {
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        return authority
            .eq_ignore_ascii_case(host)
            .then(|| if path.starts_with('/') { path.to_owned() } else { format!("/{path}") });
    }
    if target.starts_with("//") {
        return None;
    }
    if target.starts_with('/') {
        return Some(target.to_owned());
    }
    if target.is_empty() || target.starts_with('?') {
        return Some(format!("{base}{target}"));
    }
    let folder = &base[..=base.rfind('/').unwrap_or(0)];
    Some(format!("{folder}{target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert_eq!(resolved(target, "shop.example", "/dir/page").as_deref(), expected, "{target}");
        }
    }
}
