//! Answers requests from stored pages; passes the others to the origin.

use std::fmt::Write;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{CONTENT_LOCATION, LOCATION, RANGE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use moka::sync::Cache as Moka;
use tower_service::Service;

use super::address::Address;
use super::body::HttpCacheBody;
use super::fetch::Fetched;
use super::flight::Flights;
use super::freshness::Use;
use super::layer::HttpCacheLayer;
use super::references::resolved;
use super::request_head::RequestHead;
use super::status::{Forwarded, Told};
use super::stored::{Page, selecting};
use crate::cache::Cache;
use crate::policy::versions::RESERVED_PREFIX;
use crate::space::Space;

/// Maximum length of a page's name: an address and its key headers.
const LONGEST_NAME: usize = 8_192;
/// Number of tags that URLs share for invalidation.
const BUCKETS: u64 = 1 << 16;
/// Time during which requests for a response that could not be stored do not wait for each other.
const PASS: Duration = Duration::from_secs(10);
const PASSES: u64 = 10_000;
/// Minimum interval between two refreshes of a stale page.
const REFRESH: Duration = Duration::from_secs(1);

/// State shared by all services of a layer.
pub(super) struct Shared {
    pub(super) pages: Space<Page>,
    pub(super) flights: Arc<Flights>,
    /// URLs whose responses could not be stored for any client.
    pub(super) passes: Moka<Arc<str>, ()>,
    /// URLs whose responses to requests with cookies could not be stored.
    pub(super) personal: Moka<Arc<str>, ()>,
    /// URLs that were refreshed a moment ago, or are being refreshed.
    refreshed: Moka<Arc<str>, ()>,
    hasher: foldhash::quality::FixedState,
}

impl Shared {
    pub(super) fn new(cache: &Cache) -> Self {
        let passes = || Moka::builder().max_capacity(PASSES).time_to_live(PASS).build();
        Self {
            pages: cache.space("http"),
            flights: Arc::default(),
            passes: passes(),
            personal: passes(),
            refreshed: Moka::builder().max_capacity(PASSES).time_to_live(REFRESH).build(),
            hasher: foldhash::quality::FixedState::with_seed(0),
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// State shared by all clones of a service.
#[derive(Debug)]
pub(super) struct ServiceState {
    pub(super) shared: Arc<Shared>,
    pub(super) layer: HttpCacheLayer,
}

impl ServiceState {
    /// Returns the name that an address is stored under, for all methods. Its parts are separated
    /// by spaces, which occur nowhere else.
    pub(super) fn named(&self, address: &Address, headers: &HeaderMap) -> Option<Arc<str>> {
        let mut name = match &*self.layer.namespace {
            "" => address.text()?,
            namespace => format!("{namespace} {}", address.text()?),
        };
        for header in &*self.layer.keyed_by {
            name.push_str(" =");
            for value in headers.get_all(header) {
                for byte in value.as_bytes() {
                    let _ = write!(name, "{byte:02x}");
                }
                name.push(',');
            }
        }
        (name.len() <= LONGEST_NAME).then(|| name.into())
    }

    /// Returns the tag by which a URL is invalidated, independently of the scheme, which is unknown
    /// with HTTP/1. A few URLs share each tag, which bounds the number of tags.
    pub(super) fn bucket(&self, url: &str) -> Arc<str> {
        let url = url.split_once("://").map_or(url, |(_, rest)| rest);
        format!("{RESERVED_PREFIX}http:{:x}", self.shared.hasher.hash_one(url) % BUCKETS).into()
    }

    pub(super) fn key(&self, url: &str, vary: &[(String, String)]) -> String {
        if vary.is_empty() {
            return url.to_owned();
        }
        let mut hasher = self.shared.hasher.build_hasher();
        vary.hash(&mut hasher);
        format!("{url} {:016x}", std::hash::Hasher::finish(&hasher))
    }

    pub(super) fn selected(names: &[String], headers: &HeaderMap) -> Vec<(String, String)> {
        names.iter().map(|name| (name.clone(), selecting(headers, name))).collect()
    }

    pub(super) fn now(&self) -> u64 {
        self.layer.cache.0.now_ms()
    }

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
            let usable = stored.freshness.for_request(&asked.wishes.directives, now);
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
                    Told::Hit { left: stored.freshness.left(now) },
                    true,
                ));
            }
            why =
                if stored.freshness.left(now) > 0 { Forwarded::Request } else { Forwarded::Stale };
        }
        if asked.wishes.directives.has("only-if-cached") {
            let mut response = Response::new(HttpCacheBody::whole(Bytes::new()));
            *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
            Told::OnlyIfCached.add(response.headers_mut());
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
                    Told::Forwarded { collapsed: true, .. }
                        | Told::Forwarded { status: StatusCode::NOT_MODIFIED, .. }
                );
                self.answer(&asked, &page, told, from_store)
            }
            Fetched::Stale(page) => {
                let left = match &*page {
                    Page::Response(stored) => stored.freshness.left(self.now()),
                    Page::Varies(_) => 0,
                };
                self.answer(&asked, &page, Told::Error { left }, true)
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
        told: Told,
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
        Told::Forwarded { why, status, stored: false, collapsed: false }
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
            let cache = &self.layer.cache;
            join_all(buckets.into_iter().map(|bucket| cache.0.invalidate(bucket, None))).await;
        }
        Ok(response)
    }
}

pub(super) async fn called<S: Service<R>, R>(
    mut inner: S,
    request: R,
) -> Result<S::Response, S::Error> {
    std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
    inner.call(request).await
}
