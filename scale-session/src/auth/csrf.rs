//! Protection against cross-site request forgery (CSRF).
//!
//! Browsers send the origin of a request in `Sec-Fetch-Site`, older ones in `Origin`. So forms need
//! no token: a request that changes something is refused if it comes from another site. A request
//! with neither header does not come from a browser of the last years, and only a browser sends a
//! user's cookies by itself. (As in Go's `http.CrossOriginProtection`, after Filippo Valsorda's
//! "Cross-Site Request Forgery".)
//!
//! For sites that must support older browsers, [`CsrfLayer::tokens`] requires a token from such
//! requests: a cookie, and a text that a key derives from it, sent in the address of a form
//! (`action="/cart?_csrf=…"`) or by a script in `X-CSRF-Token`. A request without any cookie
//! passes, because it is not sent on behalf of a user. So an old browser can still be made to log
//! in as another user; the session can check whether the log-in form was shown.
//!
//! `GET` and `HEAD` pass: they must not change anything. The handshake of a websocket is checked.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use data_encoding::BASE64URL_NOPAD;
use http::header::{COOKIE, HOST, ORIGIN, SET_COOKIE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use scale_common::cookies::cookies;
use tower_layer::Layer;
use tower_service::Service;

use super::error::Error;
use super::signed_token::Keys;
use super::{random, same};
use crate::headers::keep_from_shared_caches;

const X_CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
const PURPOSE: &str = "csrf";
const COOKIE_NAME: &str = "__Host-csrf";
const PARAMETER: &str = "_csrf";
/// Length of the cookie, in characters.
const COOKIE_LETTERS: usize = 22;
const LONGEST_TOKEN: usize = 100;

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Answers 403 to requests from pages of other sites.
///
/// Browsers that send no `Sec-Fetch-Site` are recognized by `Origin`, whose host must be the
/// request's `Host`: a proxy must pass on that header (`proxy_set_header Host $host` in nginx).
/// Refusals are logged at the level `DEBUG` with both, and counted in
/// `scale_session_forged_requests_total`.
///
/// ```
/// use scale_session::auth::CsrfLayer;
///
/// let layer = CsrfLayer::new().trust("https://accounts.example.com").except("/webhooks/");
/// ```
#[must_use]
#[derive(Clone, Debug, Default)]
pub struct CsrfLayer(Arc<Rules>);

#[derive(Clone, Debug, Default)]
struct Rules {
    trusted: HashSet<String>,
    except: Vec<String>,
    tokens: Option<Keys>,
}

/// Creates tokens for the requesting browser. With [`CsrfLayer::tokens`] it is in the extensions of
/// each request.
#[derive(Clone)]
pub struct CsrfToken(Arc<Browser>);

struct Browser {
    keys: Keys,
    /// Value of the cookie that the browser sent or is to receive.
    cookie: String,
    is_new: bool,
    is_used: AtomicBool,
}

impl std::fmt::Debug for CsrfToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CsrfToken")
    }
}

impl CsrfToken {
    /// Returns a token for a form of this browser. Each call returns another text; all of them are
    /// valid as long as the browser keeps its cookie.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn token(&self) -> Result<String, Error> {
        self.0.is_used.store(true, Relaxed);
        let nonce = random::<16>()?;
        let (key, mac) = self.0.keys.mac(PURPOSE, &[self.0.cookie.as_bytes(), &nonce], None)?;
        Ok(BASE64URL_NOPAD.encode(&[&key[..], &nonce, &mac].concat()))
    }

    /// Uses the browser's cookie, or creates a new one.
    fn of(keys: &Keys, headers: &HeaderMap) -> Option<Self> {
        let known = cookie(headers).map(ToOwned::to_owned);
        let is_new = known.is_none();
        let cookie = match known {
            Some(cookie) => cookie,
            None => BASE64URL_NOPAD.encode(&random::<16>().ok()?),
        };
        Some(Self(Arc::new(Browser {
            keys: keys.clone(),
            cookie,
            is_new,
            is_used: AtomicBool::new(false),
        })))
    }

    /// Returns the cookie that the response must set, if a token was created and the browser has no
    /// cookie yet.
    fn set_cookie(&self) -> Option<HeaderValue> {
        let is_due = self.0.is_new && self.0.is_used.load(Relaxed);
        let text = format!(
            "{COOKIE_NAME}={}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=31536000",
            self.0.cookie
        );
        is_due.then(|| HeaderValue::try_from(text).ok()).flatten()
    }
}

/// Returns the token cookie, if there is one of the right form. Two cookies are a sign of a planted
/// one.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(COOKIE).into_iter().map(HeaderValue::as_bytes);
    let mut ours = cookies(lines).filter(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value);
    let value = ours.next().filter(|value| value.len() == COOKIE_LETTERS)?;
    ours.next().is_none().then_some(value)
}

/// Returns whether a request has a token that matches its cookie.
fn fits(keys: &Keys, uri: &Uri, headers: &HeaderMap) -> bool {
    let parameter =
        || uri.query()?.split('&').find_map(|pair| pair.strip_prefix(PARAMETER)?.strip_prefix('='));
    let token = headers.get(X_CSRF_TOKEN).and_then(|token| token.to_str().ok()).or_else(parameter);
    let read = || {
        let (cookie, token) =
            (cookie(headers)?, token.filter(|token| token.len() <= LONGEST_TOKEN)?);
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
        let (key, rest) = bytes.split_first_chunk::<4>()?;
        let (nonce, mac) = rest.split_first_chunk::<16>()?;
        let (_, right) = keys.mac(PURPOSE, &[cookie.as_bytes(), nonce], Some(*key)).ok()?;
        Some(same(&right, mac))
    };
    read().unwrap_or(false)
}

impl CsrfLayer {
    /// Allows requests from this origin only.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows requests from pages of another origin (scheme, host and port, as browsers write it).
    pub fn trust(mut self, origin: &str) -> Self {
        Arc::make_mut(&mut self.0)
            .trusted
            .insert(origin.trim_end_matches('/').to_ascii_lowercase());
        self
    }

    /// Requires a token from requests with cookies that have neither `Sec-Fetch-Site` nor `Origin`,
    /// as sent by browsers before 2020. Pages put [`CsrfToken::token`] into the addresses of their
    /// forms. Works over HTTPS only, like the cookie.
    ///
    /// ```
    /// use scale_session::auth::{CsrfLayer, token::Keys};
    /// # fn main() -> Result<(), scale_session::auth::Error> {
    /// let layer = CsrfLayer::new().tokens(Keys::new(&[7; 32])?);
    /// # Ok(()) }
    /// ```
    pub fn tokens(mut self, keys: Keys) -> Self {
        Arc::make_mut(&mut self.0).tokens = Some(keys);
        self
    }

    /// Exempts requests to this path and the paths below it, for routes that do not use cookies. A
    /// path that is not written plainly (`..`, `//`, percent signs, `;`, non-ASCII characters) is
    /// never exempt.
    pub fn except(mut self, path: &str) -> Self {
        Arc::make_mut(&mut self.0).except.push(path.to_owned());
        self
    }
}

impl Rules {
    fn allow(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        // A websocket handshake is a GET, but opens a connection that can change something.
        let protocols = headers
            .get_all(UPGRADE)
            .into_iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        let upgrades =
            protocols.into_iter().any(|name| name.trim_ascii().eq_ignore_ascii_case(b"websocket"));
        if method.is_safe() && !upgrades
            || self.except.iter().any(|path| is_below(uri.path(), path))
        {
            return true;
        }
        let origin =
            headers.get(ORIGIN).map(|o| String::from_utf8_lossy(o.as_bytes()).to_ascii_lowercase());
        if origin.as_ref().is_some_and(|origin| self.trusted.contains(origin)) {
            return true;
        }
        let mut sites = headers.get_all(&SEC_FETCH_SITE).iter();
        match (sites.next(), sites.next()) {
            (Some(site), None) => return matches!(site.as_bytes(), b"same-origin" | b"none"),
            (Some(_), Some(_)) => return false,
            (None, _) => {}
        }
        let Some(origin) = origin else {
            return self
                .tokens
                .as_ref()
                .is_none_or(|keys| !headers.contains_key(COOKIE) || fits(keys, uri, headers));
        };
        let host = uri
            .authority()
            .map(http::uri::Authority::as_str)
            .or_else(|| headers.get(HOST)?.to_str().ok());
        // The scheme is unknown behind a proxy; a page of the same host counts as same-origin.
        host.is_some_and(|host| {
            origin.split_once("://").is_some_and(|(_, theirs)| theirs.eq_ignore_ascii_case(host))
        })
    }
}

/// Returns whether a path is `above` or below it, for every way in which a server may read the
/// path.
fn is_below(path: &str, above: &str) -> bool {
    // Characters that every server reads in the same way; servers differ in how they decode percent
    // signs.
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,=:@".contains(&byte);
    let is_plain = path.bytes().all(is_letter)
        && !path.contains("//")
        && path.split('/').all(|part| !matches!(part, "." | ".."));
    let rest = path.strip_prefix(above);
    is_plain
        && !above.is_empty()
        && rest.is_some_and(|rest| rest.is_empty() || above.ends_with('/') || rest.starts_with('/'))
}

impl<S> Layer<S> for CsrfLayer {
    type Service = Csrf<S>;

    fn layer(&self, inner: S) -> Csrf<S> {
        Csrf { layer: self.clone(), inner }
    }
}

/// Service of [`CsrfLayer`].
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

    fn call(&mut self, mut request: Request<Req>) -> Self::Future {
        if !self.layer.0.allow(request.method(), request.uri(), request.headers()) {
            metrics::counter!("scale_session_forged_requests_total").increment(1);
            let headers = request.headers();
            let [origin, host] = [ORIGIN, HOST].map(|name| headers.get(name));
            tracing::debug!(?origin, ?host, "refused a request of another site's page");
            return CsrfFuture { allowed: None, token: None };
        }
        let token =
            self.layer.0.tokens.as_ref().and_then(|keys| CsrfToken::of(keys, request.headers()));
        if let Some(token) = &token {
            request.extensions_mut().insert(token.clone());
        }
        CsrfFuture { allowed: Some(self.inner.call(request)), token }
    }
}

pin_project_lite::pin_project! {
    /// Future of [`Csrf`].
    #[derive(Debug)]
    pub struct CsrfFuture<F> {
        #[pin]
        allowed: Option<F>,
        token: Option<CsrfToken>,
    }
}

impl<F, Res, E> Future for CsrfFuture<F>
where
    F: Future<Output = Result<Response<Res>, E>>,
    Res: Default,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let Some(allowed) = this.allowed.as_pin_mut() {
            let mut answer = ready!(allowed.poll(cx));
            if let (Ok(response), Some(token)) =
                (&mut answer, this.token.as_ref().filter(|token| token.0.is_used.load(Relaxed)))
            {
                let cookie = token.set_cookie();
                // The page contains this browser's token.
                keep_from_shared_caches(response.headers_mut(), cookie.is_some());
                if let Some(cookie) = cookie {
                    response.headers_mut().append(SET_COOKIE, cookie);
                }
            }
            return Poll::Ready(answer);
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
    fn a_cookie_of_another_application_in_any_bytes_hides_no_token() {
        let value = "a".repeat(COOKIE_LETTERS);
        let mut line = b"other=\xFF; ".to_vec();
        line.extend(format!("{COOKIE_NAME}={value}").bytes());
        let headers = [(COOKIE, HeaderValue::from_bytes(&line).unwrap())].into_iter().collect();
        assert_eq!(cookie(&headers), Some(&*value));
    }

    #[test]
    fn browsers_that_say_nothing_need_a_token() {
        let keys = || Keys::new(&[7; 32]).unwrap();
        let layer = CsrfLayer::new().tokens(keys());
        let headers = |lines: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            map.insert(HOST, "shop.example".parse().unwrap());
            for (name, value) in lines {
                map.append(*name, value.parse().unwrap());
            }
            map
        };
        let first = CsrfToken::of(&keys(), &headers(&[])).unwrap();
        assert!(first.set_cookie().is_none(), "no cookie without need for a token");
        let token = first.token().unwrap();
        assert_ne!(token, first.token().unwrap());
        let set = first.set_cookie().unwrap().to_str().unwrap().to_owned();
        let cookie = set.split(';').next().unwrap();
        assert!(
            CsrfToken::of(&keys(), &headers(&[("cookie", cookie)])).unwrap().set_cookie().is_none(),
            "it has one"
        );
        let allow = |uri: &str, lines: &[(&'static str, &str)]| {
            layer.0.allow(&Method::POST, &uri.parse().unwrap(), &headers(lines))
        };
        let with = format!("/cart?a=b&_csrf={token}");
        let both = format!("session=x; {cookie}");
        assert!(
            allow(&with, &[("cookie", &both)])
                && allow("/cart", &[("cookie", &both), ("x-csrf-token", &token)])
        );
        assert!(allow("/cart", &[]), "no cookie: not on behalf of a user");
        assert!(!allow("/cart", &[("cookie", &both)]) && !allow(&with, &[("cookie", "session=x")]));
        let other = CsrfToken::of(&keys(), &headers(&[])).unwrap().token().unwrap();
        assert!(
            !allow("/cart", &[("cookie", &both), ("x-csrf-token", &other)]),
            "another browser's"
        );
        assert!(!allow(&with, &[("cookie", &format!("{both}; {cookie}"))]), "two cookies");
        let mut forged = token.clone().into_bytes();
        forged[50] = if forged[50] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).unwrap();
        for bad in ["", "x", &forged, &token[..token.len() - 1], &"x".repeat(10_000)] {
            assert!(!allow("/cart", &[("cookie", &both), ("x-csrf-token", bad)]), "{bad:.20}");
        }
        // A request that states its origin needs no token, and no token helps a request from
        // another origin.
        assert!(allow("/cart", &[("cookie", &both), ("sec-fetch-site", "same-origin")]));
        assert!(!allow(&with, &[("cookie", &both), ("sec-fetch-site", "cross-site")]));
        assert!(!allow(&with, &[("cookie", &both), ("origin", "https://evil.example")]));
    }

    #[test]
    fn a_table_of_requests_from_other_sites() {
        let layer = CsrfLayer::new()
            .trust("https://Trusted.example/")
            .except("/hooks/")
            .except("/api")
            .except("");
        for (method, path, headers, allowed) in [
            // Browsers that send `Sec-Fetch-Site`.
            ("POST", "/", &[("sec-fetch-site", "same-origin")][..], true),
            ("POST", "/", &[("sec-fetch-site", "none")], true),
            ("POST", "/", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/", &[("sec-fetch-site", "same-site")], false),
            ("POST", "/", &[("sec-fetch-site", "nonsense")], false),
            (
                "POST",
                "/",
                &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
                false,
            ),
            (
                "POST",
                "/",
                &[("sec-fetch-site", "cross-site"), ("origin", "https://shop.example")],
                false,
            ),
            ("DELETE", "/", &[("sec-fetch-site", "cross-site")], false),
            ("PATCH", "/", &[("sec-fetch-site", "cross-site")], false),
            ("ODD", "/", &[("sec-fetch-site", "cross-site")], false),
            // Older browsers.
            ("POST", "/", &[("origin", "https://shop.example")], true),
            ("POST", "/", &[("origin", "https://SHOP.example")], true),
            ("POST", "/", &[("origin", "https://evil.example")], false),
            ("POST", "/", &[("origin", "https://shop.example.evil.example")], false),
            ("POST", "/", &[("origin", "https://shop.example:8443")], false),
            ("POST", "/", &[("origin", "null")], false),
            ("POST", "/", &[("origin", "")], false),
            // Requests with neither header.
            ("POST", "/", &[], true),
            // Safe methods, trusted origins, exempt paths.
            ("GET", "/", &[("sec-fetch-site", "cross-site")], true),
            ("HEAD", "/", &[("sec-fetch-site", "cross-site")], true),
            (
                "POST",
                "/",
                &[("sec-fetch-site", "cross-site"), ("origin", "https://trusted.example")],
                true,
            ),
            ("POST", "/hooks/pay", &[("sec-fetch-site", "cross-site")], true),
            ("POST", "/hook", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/../admin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/%2e%2E/admin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/..%2fadmin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/%252e%252e/admin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/..;/admin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/%e0%80%ae./admin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/.%09./admin", &[("sec-fetch-site", "cross-site")], false),
            ("POST", "/hooks/%uff0e%uff0e/admin", &[("sec-fetch-site", "cross-site")], false),
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
            assert_eq!(
                layer.0.allow(&method, &path.parse().unwrap(), &map),
                allowed,
                "{method} {path} {headers:?}"
            );
        }
    }
}
