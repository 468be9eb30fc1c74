//! Headers of a response that depends on the session.

use http::header::{CACHE_CONTROL, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");

/// Keeps a response that depends on the session out of shared caches, and one that sets the cookie
/// out of all caches.
pub(crate) fn keep_from_shared_caches(headers: &mut HeaderMap, sets_cookie: bool) {
    let says = |headers: &HeaderMap, name, word: &str| {
        let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    if !says(headers, VARY, "cookie") && !says(headers, VARY, "*") {
        headers.append(VARY, HeaderValue::from_static("cookie"));
    }
    // A directive that cannot be parsed safely may be stricter than `private`: `no-store` replaces
    // it.
    let is_odd = headers
        .get_all(CACHE_CONTROL)
        .into_iter()
        .any(|line| line.to_str().map_or(true, |line| line.contains('"')));
    if sets_cookie || is_odd {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    } else if !says(headers, CACHE_CONTROL, "private") && !says(headers, CACHE_CONTROL, "no-store")
    {
        let lines =
            headers.get_all(CACHE_CONTROL).into_iter().filter_map(|line| line.to_str().ok());
        let is_for_shared = |part: &str| {
            let name = part.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
            matches!(name.as_str(), "public" | "s-maxage" | "proxy-revalidate" | "")
        };
        let kept: Vec<String> = lines
            .flat_map(|line| line.split(','))
            .filter(|part| !is_for_shared(part))
            .map(|part| part.trim().to_owned())
            .collect();
        let words = ["private".to_owned()].into_iter().chain(kept).collect::<Vec<_>>().join(", ");
        if let Ok(value) = HeaderValue::try_from(words) {
            headers.insert(CACHE_CONTROL, value);
        }
    }
}
