//! Answers requests from stored pages; passes the others to the origin.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{CONTENT_LOCATION, LOCATION, RANGE};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tower_service::Service;

use super::address::Address;
use super::body::HttpCacheBody;
use super::fetch::{Fetched, called};
use super::freshness::Use;
use super::references::resolved;
use super::request_head::RequestHead;
use super::state::{OriginalUri, ServiceState};
use super::status::{CacheStatus, Forwarded};
use super::stored::Page;

/// Service of [`HttpCacheLayer`](super::HttpCacheLayer).
#[derive(Clone, Debug)]
pub struct HttpCache<S> {
    state: Arc<ServiceState>,
    inner: S,
}

impl<S> HttpCache<S> {
    pub(super) fn new(state: Arc<ServiceState>, inner: S) -> Self {
        Self { state, inner }
    }
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
            state.settings.original.as_ref().and_then(|OriginalUri(find)| find(&parts.extensions));
        let address = Address::of(original.as_ref().unwrap_or(&parts.uri), &parts.headers);
        let url = address.as_ref().and_then(|address| state.named(address, &parts.headers));
        let asked = RequestHead::new(
            parts,
            address,
            url.clone().unwrap_or_default(),
            !body.is_end_stream(),
            state.settings.obey,
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

impl ServiceState {
    /// Returns the stored response for a request, and whether other variants are stored.
    async fn find(&self, asked: &RequestHead) -> (Option<Arc<Page>>, bool) {
        let Some(page) = self.shared.pages.get(&asked.url).await else { return (None, false) };
        let page = match &*page {
            Page::Response(_) => page,
            Page::Varies(names) => {
                let key = self.key(&asked.url, &Self::selected(names, &asked.headers));
                match self.shared.pages.get(&key).await {
                    Some(page) => page,
                    None => return (None, true),
                }
            }
        };
        let answers = matches!(&*page, Page::Response(stored) if stored.answers(&asked.headers));
        if answers { (Some(page), false) } else { (None, true) }
    }

    pub(super) async fn serve<S, Req, Res>(
        self: Arc<Self>,
        inner: S,
        asked: RequestHead,
        body: Req,
    ) -> Result<Response<HttpCacheBody<Res>>, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        Req: Default + Send + 'static,
        Res: Body<Data = Bytes> + Send + 'static,
        Res::Error: Send,
    {
        let (found, vary_miss) = self.find(&asked).await;
        let now = self.now();
        let mut why = if vary_miss { Forwarded::VaryMiss } else { Forwarded::Miss };
        if let Some(page) = &found
            && let Page::Response(stored) = &**page
        {
            let usable = stored.freshness.for_request(&asked.facts.directives, now);
            if usable != Use::Validate {
                // At most one refresh per second, for any number of requests.
                let is_due =
                    || self.shared.refreshed.entry(Arc::clone(&asked.url)).or_insert(()).is_fresh();
                if usable == Use::Stale && is_due() {
                    let (state, page, mut whole) =
                        (Arc::clone(&self), Arc::clone(page), asked.clone());
                    whole.method = Method::GET;
                    // Waits until the service is ready, in a separate task; the client does not
                    // wait.
                    tokio::spawn(async move {
                        let _ = state
                            .fetch(inner, whole, Req::default(), Some(page), Forwarded::Stale)
                            .await;
                    });
                }
                return Ok(self.answer(
                    &asked,
                    page,
                    CacheStatus::Hit { left: stored.freshness.left(now) },
                    true,
                ));
            }
            why =
                if stored.freshness.left(now) > 0 { Forwarded::Request } else { Forwarded::Stale };
        }
        if asked.facts.directives.has("only-if-cached") {
            let mut response = Response::new(HttpCacheBody::whole(Bytes::new()));
            *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
            CacheStatus::OnlyIfCached.add(response.headers_mut());
            return Ok(response);
        }
        // A part or the head of a page that is not stored is requested from the origin.
        if asked.is_head() || (found.is_none() && asked.headers.contains_key(RANGE)) {
            return self.pass(inner, asked, body, why).await;
        }
        let fetched = Arc::clone(&self).fetch(inner, asked.clone(), body, found, why).await?;
        Ok(match fetched {
            Fetched::Page(page, told) => {
                let from_store = matches!(
                    told,
                    CacheStatus::Forwarded { collapsed: true, .. }
                        | CacheStatus::Forwarded { status: StatusCode::NOT_MODIFIED, .. }
                );
                self.answer(&asked, &page, told, from_store)
            }
            Fetched::Stale(page) => {
                let left = match &*page {
                    Page::Response(stored) => stored.freshness.left(self.now()),
                    Page::Varies(_) => 0,
                };
                self.answer(&asked, &page, CacheStatus::Error { left }, true)
            }
            Fetched::Passed(mut response, told) => {
                told.add(response.headers_mut());
                response
            }
        })
    }

    /// Returns a response made from a stored page.
    pub(super) fn answer<B: Body<Data = Bytes>>(
        &self,
        asked: &RequestHead,
        page: &Page,
        told: CacheStatus,
        from_store: bool,
    ) -> Response<HttpCacheBody<B>> {
        let Page::Response(stored) = page else {
            return Response::new(HttpCacheBody::whole(Bytes::new()));
        };
        let age = stored.freshness.age(self.now());
        let mut response =
            stored.answer(&asked.headers, asked.is_head(), (from_store || age > 0).then_some(age));
        told.add(response.headers_mut());
        response.map(HttpCacheBody::whole)
    }

    /// Passes a request to the origin, without a lookup and without storing the response.
    async fn pass<S, Req, Res>(
        &self,
        inner: S,
        asked: RequestHead,
        body: Req,
        why: Forwarded,
    ) -> Result<Response<HttpCacheBody<Res>>, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>>,
        Res: Body<Data = Bytes>,
    {
        let mut response = called(inner, asked.request(body)).await?.map(HttpCacheBody::stream);
        let status = response.status();
        CacheStatus::Forwarded { why, status, stored: false, collapsed: false }
            .add(response.headers_mut());
        Ok(response)
    }

    /// Handles a request that is not cacheable; a successful unsafe request invalidates (RFC 9111,
    /// 4.4).
    pub(super) async fn forward<S, Req, Res>(
        &self,
        inner: S,
        asked: RequestHead,
        body: Req,
    ) -> Result<Response<HttpCacheBody<Res>>, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>>,
        Res: Body<Data = Bytes>,
    {
        let response = self.pass(inner, asked.clone(), body, Forwarded::Method).await?;
        if !asked.method.is_safe()
            && (response.status().is_success() || response.status().is_redirection())
        {
            let named = [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| {
                let (target, address) =
                    (response.headers().get(name)?.to_str().ok()?, asked.address.as_ref()?);
                self.named(
                    &address.at(&resolved(
                        target,
                        address.scheme(),
                        address.authority(),
                        address.path(),
                    )?),
                    &asked.headers,
                )
            });
            let urls = Some(asked.url).filter(|url| !url.is_empty()).into_iter().chain(named);
            let buckets: Vec<Arc<str>> = urls.map(|url| self.bucket(&url)).collect();
            let cache = &self.settings.cache;
            join_all(buckets.into_iter().map(|bucket| cache.0.invalidate(bucket, None))).await;
        }
        Ok(response)
    }
}
