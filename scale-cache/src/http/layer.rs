//! The layer, and the service it makes.

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
use super::asked::Asked;
use super::body::HttpCacheBody;
use super::freshness::Rules;
use super::service::{Desk, Shared};
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
    /// The state that all services made of one layer value, or of its clones, share.
    shared: Arc<Shared>,
}

/// Finds the address that a client has asked for, where a router has changed it.
#[derive(Clone)]
struct OriginalUri(Arc<dyn Fn(&Extensions) -> Option<Uri> + Send + Sync>);

impl std::fmt::Debug for OriginalUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OriginalUri")
    }
}

impl HttpCacheLayer {
    /// Into this cache, which may hold other things too.
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

    /// Keeps pages apart from those of other layers with the same cache: of another application, or of another part of this one whose
    /// addresses look alike to it.
    pub fn namespace(self, name: &str) -> Self {
        Self { namespace: name.replace('%', "%25").replace(' ', "%20").into(), ..self }
    }

    /// Keeps pages apart by these headers of the request, too: those by which the application answers, and does not say so in `Vary`. Name
    /// only what a proxy of your own sets: what a client may choose fills the cache.
    ///
    /// ```
    /// # use scale_cache::{Cache, http::HttpCacheLayer};
    /// let layer = HttpCacheLayer::new(&Cache::memory()).keyed_by(["x-forwarded-proto".parse().unwrap()]);
    /// ```
    pub fn keyed_by(self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        Self { keyed_by: headers.into_iter().collect(), ..self }
    }

    /// Finds what a client has asked for, where a framework says it.
    #[cfg_attr(feature = "axum", allow(clippy::unnecessary_wraps))]
    fn framework() -> Option<OriginalUri> {
        #[cfg(feature = "axum")]
        return Some(OriginalUri(Arc::new(|extensions| Some(extensions.get::<axum::extract::OriginalUri>()?.0.clone()))));
        #[cfg(not(feature = "axum"))]
        None
    }

    /// Keeps pages by the address that the client has asked for, where a router has taken off a part of it. For axum's `nest` the feature
    /// `axum` does this.
    pub fn original_uri(self, find: impl Fn(&Extensions) -> Option<Uri> + Send + Sync + 'static) -> Self {
        Self { original: Some(OriginalUri(Arc::new(find))), ..self }
    }

    /// Bodies up to so many bytes are stored. They are passed on to the client while they come, whatever their size. Default: 4 MiB.
    pub fn largest(self, bytes: usize) -> Self {
        Self { largest: bytes, ..self }
    }

    /// A body of which nothing comes for so long is no longer waited for by others, nor stored; its own client goes on getting it.
    /// Default: 6 s.
    pub fn stall_timeout(self, time: Duration) -> Self {
        Self { stall: time, ..self }
    }

    /// Stores what RFC 9111 permits even where the origin did not say that it is for all: answers to requests with cookies that have a
    /// `max-age`, and answers without any, for a tenth of the time since they last changed. For origins that know HTTP caching and say
    /// `private` where they mean it. What sets a cookie is never stored.
    pub fn as_the_standard_permits(self) -> Self {
        Self { rules: Rules { as_the_standard_permits: true }, ..self }
    }

    /// Does not let clients have a response validated by `Cache-Control: no-cache` and its kin.
    pub fn ignore_requests_directives(self) -> Self {
        Self { obey: false, ..self }
    }
}

impl<S> Layer<S> for HttpCacheLayer {
    type Service = HttpCache<S>;

    fn layer(&self, inner: S) -> HttpCache<S> {
        let desk = Desk { shared: Arc::clone(&self.shared), layer: self.clone() };
        HttpCache { desk: Arc::new(desk), inner }
    }
}

/// The service of [`HttpCacheLayer`].
#[derive(Clone, Debug)]
pub struct HttpCache<S> {
    desk: Arc<Desk>,
    inner: S,
}

/// The future of [`HttpCache`].
pub type HttpCacheFuture<B, E> = Pin<Box<dyn Future<Output = Result<Response<HttpCacheBody<B>>, E>> + Send>>;

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
        // The ready service is the one called; its clone waits for the next request.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let desk = Arc::clone(&self.desk);
        let (parts, body) = request.into_parts();
        let original = desk.layer.original.as_ref().and_then(|OriginalUri(find)| find(&parts.extensions));
        let address = Address::of(original.as_ref().unwrap_or(&parts.uri), &parts.headers);
        let url = address.as_ref().and_then(|address| desk.named(address, &parts.headers));
        let asked = Asked::new(parts, address, url.clone().unwrap_or_default(), !body.is_end_stream(), desk.layer.obey);
        Box::pin(async move {
            match asked.method {
                Method::GET | Method::HEAD if url.is_some() && !asked.is_nobodys_business() => {
                    desk.serve(inner, asked, body).await
                }
                _ => desk.forward(inner, asked, body).await,
            }
        })
    }
}
