//! Head of a request, as the cache needs it.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, PRAGMA, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Extensions, HeaderMap, Method, Request, Uri, Version};

use super::address::Address;
use super::freshness::RequestFacts;

/// A request, without its body.
#[derive(Clone)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    pub(super) uri: Uri,
    version: Version,
    pub(super) headers: HeaderMap,
    extensions: Extensions,
    pub(super) facts: RequestFacts,
    /// Address of the request, unless it is ambiguous.
    pub(super) address: Option<Address>,
    /// Storage key; empty for requests whose responses must not be stored.
    pub(super) url: Arc<str>,
    /// `true` if the request has a body, or may have one: the response may depend on it, but it is
    /// not part of a page's key.
    pub(super) has_body: bool,
}

impl RequestHead {
    /// Creates the head. `obey`: whether the request's cache directives count.
    pub(super) fn new(
        parts: Parts,
        address: Option<Address>,
        url: Arc<str>,
        may_have_body: bool,
        obey: bool,
    ) -> Self {
        let Parts { method, uri, version, headers, extensions, .. } = parts;
        let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
        let has_body = may_have_body || length || headers.contains_key(TRANSFER_ENCODING);
        let facts = if obey {
            RequestFacts::of(&headers)
        } else {
            RequestFacts::of(&without_wishes(&headers))
        };
        Self { method, uri, version, headers, extensions, facts, address, url, has_body }
    }

    pub(super) fn request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        *request.extensions_mut() = self.extensions.clone();
        request
    }

    /// Returns whether the request is not for a page: the response may depend on a body, or the
    /// request is an `Upgrade`.
    pub(super) fn is_nobodys_business(&self) -> bool {
        self.has_body || self.headers.contains_key(UPGRADE)
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }
}

fn without_wishes(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.remove(CACHE_CONTROL);
    headers.remove(PRAGMA);
    headers
}
