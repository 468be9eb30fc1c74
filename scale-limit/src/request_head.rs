//! Heads of requests, as keys, costs and conditions see them.

use http::request::Parts;
use http::{Extensions, HeaderMap, Method, Request, Uri};

/// A request without its body, borrowed. Converts from a request, or from its [`Parts`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'r> {
    /// Method of the request.
    pub method: &'r Method,
    /// Address of the request.
    pub uri: &'r Uri,
    /// Headers of the request.
    pub headers: &'r HeaderMap,
    /// Extensions, which outer layers have set.
    pub extensions: &'r Extensions,
}

impl<'r, B> From<&'r Request<B>> for RequestHead<'r> {
    fn from(request: &'r Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }
}

impl<'r> From<&'r Parts> for RequestHead<'r> {
    fn from(parts: &'r Parts) -> Self {
        let Parts { method, uri, headers, extensions, .. } = parts;
        Self { method, uri, headers, extensions }
    }
}

impl<'r> From<&RequestHead<'r>> for RequestHead<'r> {
    fn from(head: &RequestHead<'r>) -> Self {
        *head
    }
}
