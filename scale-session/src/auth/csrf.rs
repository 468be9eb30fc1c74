//! Requests that another site's page sends in the name of who is signed in here.
//!
//! Browsers say where a request comes from: in `Sec-Fetch-Site`, and older ones in `Origin`. So no token is needed in any form: a request
//! that changes something is refused if it says that it comes from elsewhere. What says neither is no browser's of the last years, and
//! nobody's in whose name a browser acts. (As Go's `http.CrossOriginProtection`, after Filippo Valsorda's "Cross-Site Request Forgery".)
//!
//! `GET` and `HEAD` pass: they must not change anything. The handshake of a websocket does not.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{HOST, ORIGIN, UPGRADE};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use tower_layer::Layer;
use tower_service::Service;

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Answers 403 to what another site's page sends.
///
/// ```
/// use scale_session::auth::CsrfLayer;
///
/// let layer = CsrfLayer::new().trust("https://accounts.example.com").except("/webhooks/");
/// ```
#[derive(Clone, Debug, Default)]
pub struct CsrfLayer(Arc<Rules>);

#[derive(Clone, Debug, Default)]
struct Rules {
    trusted: HashSet<String>,
    except: Vec<String>,
}

impl CsrfLayer {
    /// Only this very origin.
    pub fn new() -> Self {
        Self::default()
    }

    /// Pages of that origin (scheme, host and port, as browsers write it) may send requests here.
    pub fn trust(mut self, origin: &str) -> Self {
        Arc::make_mut(&mut self.0).trusted.insert(origin.trim_end_matches('/').to_ascii_lowercase());
        self
    }

    /// Requests to this path, or to those below it, are not looked at: those that do not go by cookies. A path that is not written plainly
    /// (`..`, `//`, percent signs in its separators or dots) is below none.
    pub fn except(mut self, path: &str) -> Self {
        Arc::make_mut(&mut self.0).except.push(path.to_owned());
        self
    }
}

impl Rules {
    fn allow(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        // A handshake is a GET, and opens a way for what changes something.
        let protocols = headers.get_all(UPGRADE).into_iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        let upgrades = protocols.into_iter().any(|name| name.trim_ascii().eq_ignore_ascii_case(b"websocket"));
        if method.is_safe() && !upgrades || self.except.iter().any(|path| is_below(uri.path(), path)) {
            return true;
        }
        let origin = headers.get(ORIGIN).map(|o| String::from_utf8_lossy(o.as_bytes()).to_ascii_lowercase());
        if origin.as_ref().is_some_and(|origin| self.trusted.contains(origin)) {
            return true;
        }
        let mut sites = headers.get_all(&SEC_FETCH_SITE).iter();
        match (sites.next(), sites.next()) {
            (Some(site), None) => return matches!(site.as_bytes(), b"same-origin" | b"none"),
            (Some(_), Some(_)) => return false,
            (None, _) => {}
        }
        let Some(origin) = origin else { return true };
        let host = uri.authority().map(http::uri::Authority::as_str).or_else(|| headers.get(HOST)?.to_str().ok());
        // The scheme cannot be known behind a proxy; a page of the same host is taken for ours.
        host.is_some_and(|host| origin.split_once("://").is_some_and(|(_, theirs)| theirs.eq_ignore_ascii_case(host)))
    }
}

/// Whether a path is this one or below it, however a server behind us reads it.
fn is_below(path: &str, above: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let is_plain = !["//", "/./", "/../", "%2e", "%2f", "%5c", "%25", "%c0", ";", "\\"].iter().any(|odd| lower.contains(odd))
        && !lower.ends_with("/..")
        && !lower.ends_with("/.");
    let rest = path.strip_prefix(above);
    is_plain && !above.is_empty() && rest.is_some_and(|rest| rest.is_empty() || above.ends_with('/') || rest.starts_with('/'))
}

impl<S> Layer<S> for CsrfLayer {
    type Service = Csrf<S>;

    fn layer(&self, inner: S) -> Csrf<S> {
        Csrf { layer: self.clone(), inner }
    }
}

/// The service of [`CsrfLayer`].
#[derive(Clone, Debug)]
pub struct Csrf<S> {
    layer: CsrfLayer,
    inner: S,
}

impl<S, Req, Res> Service<Request<Req>> for Csrf<S>
where
    S: Service<Request<Req>, Response = Response<Res>>,
    Res: Default,
{
    type Response = Response<Res>;
    type Error = S::Error;
    type Future = CsrfFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        if self.layer.0.allow(request.method(), request.uri(), request.headers()) {
            return CsrfFuture { allowed: Some(self.inner.call(request)) };
        }
        metrics::counter!("scale_session_forged_requests_total").increment(1);
        CsrfFuture { allowed: None }
    }
}

pin_project_lite::pin_project! {
    /// The future of [`Csrf`].
    #[derive(Debug)]
    pub struct CsrfFuture<F> {
        #[pin]
        allowed: Option<F>,
    }
}

impl<F, Res, E> Future for CsrfFuture<F>
where
    F: Future<Output = Result<Response<Res>, E>>,
    Res: Default,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if let Some(allowed) = self.project().allowed.as_pin_mut() {
            return Poll::Ready(ready!(allowed.poll(cx)));
        }
        let mut response = Response::new(Res::default());
        *response.status_mut() = StatusCode::FORBIDDEN;
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_requests_from_other_sites() {
        let layer = CsrfLayer::new().trust("https://Trusted.example/").except("/hooks/").except("/api").except("");
        for (method, path, headers, allowed) in [
            // Browsers that say where a request comes from.
            ("POST", "/", &[("sec-fetch-site", "same-origin")][..], true),
            ("POST", "/", &[("sec-fetch-site", "none")], true),
            ("POST", "/", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/", &[("sec-fetch-site", "same-site")], false),
            ("POST", "/", &[("sec-fetch-site", "nonsense")], false),
            ("POST", "/", &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], false),
            ("POST", "/", &[("sec-fetch-site", "cross-site"), ("origin", "https://shop.example")], false),
            ("DELETE", "/", &[("sec-fetch-site", "cross-site")], false),
            ("PATCH", "/", &[("sec-fetch-site", "cross-site")], false),
            ("ODD", "/", &[("sec-fetch-site", "cross-site")], false),
            // Older ones.
            ("POST", "/", &[("origin", "https://shop.example")], true),
            ("POST", "/", &[("origin", "https://SHOP.example")], true),
            ("POST", "/", &[("origin", "https://evil.example")], false),
            ("POST", "/", &[("origin", "https://shop.example.evil.example")], false),
            ("POST", "/", &[("origin", "https://shop.example:8443")], false),
            ("POST", "/", &[("origin", "null")], false),
            ("POST", "/", &[("origin", "")], false),
            // None.
            ("POST", "/", &[], true),
            // What changes nothing, who is trusted, what goes by no cookie.
            ("GET", "/", &[("sec-fetch-site", "cross-site")], true),
            ("HEAD", "/", &[("sec-fetch-site", "cross-site")], true),
            ("POST", "/", &[("sec-fetch-site", "cross-site"), ("origin", "https://trusted.example")], true),
            ("POST", "/hooks/pay", &[("sec-fetch-site", "cross-site")], true),
            ("POST", "/hook", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/../admin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/%2e%2E/admin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/..%2fadmin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/%252e%252e/admin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/..;/admin", &[("sec-fetch-site", "cross-site")], false),
            ("GET", "/", &[("upgrade", "h2c, websocket"), ("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks//x", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/..", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/api", &[("sec-fetch-site", "cross-site")], true),
            ("POST", "/api/x", &[("sec-fetch-site", "cross-site")], true),
            ("POST", "/apis", &[("sec-fetch-site", "cross-site")], false),
            // Websockets.
            ("GET", "/", &[("upgrade", "websocket"), ("sec-fetch-site", "cross-site")], false),
            ("GET", "/", &[("upgrade", "WebSocket"), ("origin", "https://evil.example")], false),
            ("GET", "/", &[("upgrade", "websocket"), ("origin", "https://shop.example")], true),
            ("GET", "/", &[("upgrade", "websocket"), ("origin", "https://trusted.example")], true),
        ] {
            let mut map = HeaderMap::new();
            map.insert(HOST, "shop.example".parse().unwrap());
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(layer.0.allow(&method, &path.parse().unwrap(), &map), allowed, "{method} {path} {headers:?}");
        }
    }
}
