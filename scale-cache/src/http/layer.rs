//! The layer and its service.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, HeaderName, Method, Request, Response, Uri};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::address::Address;
use super::body::HttpCacheBody;
use super::freshness::Rules;
use super::request_head::RequestHead;
use super::service::{ServiceState, Shared};
use crate::cache::Cache;

/// Caches the responses of any `tower` service of `http` requests. See the [module](crate::http).
#[derive(Clone, Debug)]
pub struct HttpCacheLayer {
    pub(super) cache: Cache,
    pub(super) largest: usize,
    pub(super) stall: Duration,
    pub(super) rules: Rules,
    obey: bool,
    pub(super) namespace: Arc<str>,
    pub(super) keyed_by: Arc<[HeaderName]>,
    original: Option<OriginalUri>,
    /// State shared by all services made from one layer value and its clones.
    shared: Arc<Shared>,
}

/// Function that returns the address that a client requested, if a router has changed it.
#[derive(Clone)]
struct OriginalUri(Arc<dyn Fn(&Extensions) -> Option<Uri> + Send + Sync>);

impl std::fmt::Debug for OriginalUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OriginalUri")
    }
}

impl HttpCacheLayer {
    /// Creates a layer that stores into this cache, which may also contain other entries.
    pub fn new(cache: &Cache) -> Self {
        Self {
            cache: cache.clone(),
            largest: 4 << 20,
            stall: Duration::from_secs(6),
            rules: Rules { as_the_standard_permits: false },
            obey: true,
            namespace: "".into(),
            keyed_by: [].into(),
            original: Self::framework(),
            shared: Arc::new(Shared::new(cache)),
        }
    }

    /// Separates the pages from those of other layers with the same cache: of another application,
    /// or of another part of this one with the same addresses.
    pub fn namespace(self, name: &str) -> Self {
        Self { namespace: name.replace('%', "%25").replace(' ', "%20").into(), ..self }
    }

    /// Also separates pages by these request headers: those that the responses depend on without a
    /// `Vary` field. Name only headers that your own proxy sets: headers that a client can choose
    /// would fill the cache.
    ///
    /// ```
    /// # use scale_cache::{Cache, http::HttpCacheLayer};
    /// let layer = HttpCacheLayer::new(&Cache::memory())
    ///     .keyed_by(["x-forwarded-proto".parse().unwrap()]);
    /// ```
    pub fn keyed_by(self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        Self { keyed_by: headers.into_iter().collect(), ..self }
    }

    /// Returns the framework's function for the requested address, if there is one.
    #[cfg_attr(feature = "axum", allow(clippy::unnecessary_wraps))]
    fn framework() -> Option<OriginalUri> {
        #[cfg(feature = "axum")]
        return Some(OriginalUri(Arc::new(|extensions| {
            Some(extensions.get::<axum::extract::OriginalUri>()?.0.clone())
        })));
        #[cfg(not(feature = "axum"))]
        None
    }

    /// Stores pages under the address that the client requested, if a router has removed a part of
    /// it. The feature `axum` does this for axum's `nest`.
    pub fn original_uri(
        self,
        find: impl Fn(&Extensions) -> Option<Uri> + Send + Sync + 'static,
    ) -> Self {
        Self { original: Some(OriginalUri(Arc::new(find))), ..self }
    }

    /// Sets the maximum size of stored bodies. Bodies of any size are passed on to the client while
    /// they arrive. Default: 4 MiB.
    pub fn largest(self, bytes: usize) -> Self {
        Self { largest: bytes, ..self }
    }

    /// Sets the time without data after which other requests stop waiting for a body, and it is not
    /// stored; its own client still receives it. Default: 6 s.
    pub fn stall_timeout(self, time: Duration) -> Self {
        Self { stall: time, ..self }
    }

    /// Also stores what RFC 9111 permits without an explicit statement of the origin that the
    /// response is for all: responses with a `max-age` to requests with cookies, and responses
    /// without a lifetime, for a tenth of the time since their last change. For origins that use
    /// HTTP caching correctly and mark private responses as `private`. A response that sets a
    /// cookie is never stored.
    pub fn as_the_standard_permits(self) -> Self {
        Self { rules: Rules { as_the_standard_permits: true }, ..self }
    }

    /// Ignores `Cache-Control: no-cache` and similar directives of requests.
    pub fn ignore_requests_directives(self) -> Self {
        Self { obey: false, ..self }
    }
}

impl<S> Layer<S> for HttpCacheLayer {
    type Service = HttpCache<S>;

    fn layer(&self, inner: S) -> HttpCache<S> {
        let state = ServiceState { shared: Arc::clone(&self.shared), layer: self.clone() };
        HttpCache { state: Arc::new(state), inner }
    }
}

/// Service of [`HttpCacheLayer`].
#[derive(Clone, Debug)]
pub struct HttpCache<S> {
    state: Arc<ServiceState>,
    inner: S,
}

/// Future of [`HttpCache`].
pub type HttpCacheFuture<B, E> =
    Pin<Box<dyn Future<Output = Result<Response<HttpCacheBody<B>>, E>> + Send>>;

impl<S, Req, Res> Service<Request<Req>> for HttpCache<S>
where
    S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    Req: Body + Default + Send + 'static,
    Res: Body<Data = Bytes> + Send + 'static,
    Res::Error: Send,
{
    type Response = Response<HttpCacheBody<Res>>;
    type Error = S::Error;
    type Future = HttpCacheFuture<Res, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        // The service that is ready handles this request; the clone handles the next one.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let state = Arc::clone(&self.state);
        let (parts, body) = request.into_parts();
        let original =
            state.layer.original.as_ref().and_then(|OriginalUri(find)| find(&parts.extensions));
        let address = Address::of(original.as_ref().unwrap_or(&parts.uri), &parts.headers);
        let url = address.as_ref().and_then(|address| state.named(address, &parts.headers));
        let asked = RequestHead::new(
            parts,
            address,
            url.clone().unwrap_or_default(),
            !body.is_end_stream(),
            state.layer.obey,
        );
        Box::pin(async move {
            match asked.method {
                Method::GET | Method::HEAD if url.is_some() && !asked.is_nobodys_business() => {
                    state.serve(inner, asked, body).await
                }
                _ => state.forward(inner, asked, body).await,
            }
        })
    }
}
