//! The layer: looks, fetches, stores, answers.

use std::fmt::Write;
use std::future::Future;
use std::hash::{BuildHasher, Hash};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{CONTENT_LOCATION, LOCATION, RANGE};
use http::{Extensions, HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use moka::sync::Cache as Moka;
use tokio::sync::oneshot;
use tower_layer::Layer;
use tower_service::Service;

use super::address::Address;
use super::asked::Asked;
use super::body::{HttpCacheBody, Read, read};
use super::flight::{Flights, Landed};
use super::freshness::{Rules, Use, has_validator, judge};
use super::references::{resolved, tags_of};
use super::status::{Forwarded, Told};
use super::stored::{Page, Stored, selecting, strip_conditions, strip_connection, varies_by};
use crate::cache::Cache;
use crate::options::Options;
use crate::since::Noted;
use crate::space::Space;
use crate::stamp::{Agreement, OWN, Stamps};

/// Longer names are not kept under: those of addresses with long headers beside them.
const LONGEST_NAME: usize = 8_192;
/// URLs share that many tags by which they are invalidated.
const BUCKETS: u64 = 1 << 16;
/// What could not be stored is not waited for by those who ask for it next.
const PASS: Duration = Duration::from_secs(10);
const PASSES: u64 = 10_000;

/// Caches the responses of any `tower` service of `http` requests. See the [module](crate::http).
#[derive(Clone, Debug)]
pub struct HttpCacheLayer {
    cache: Cache,
    largest: usize,
    rules: Rules,
    obey: bool,
    namespace: Arc<str>,
    keyed_by: Arc<[HeaderName]>,
    original: Option<OriginalUri>,
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
            rules: Rules { as_the_standard_permits: false },
            obey: true,
            namespace: "".into(),
            keyed_by: [].into(),
            original: None,
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

    /// Keeps pages by the address that the client has asked for, where a router has taken off a part of it. In axum:
    /// `.original_uri(|extensions| Some(extensions.get::<axum::extract::OriginalUri>()?.0.clone()))`.
    pub fn original_uri(self, find: impl Fn(&Extensions) -> Option<Uri> + Send + Sync + 'static) -> Self {
        Self { original: Some(OriginalUri(Arc::new(find))), ..self }
    }

    /// Bodies up to so many bytes are stored, and read whole before they are passed on; larger ones are streamed. Default: 4 MiB.
    pub fn largest(self, bytes: usize) -> Self {
        Self { largest: bytes, ..self }
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
        let desk = Desk {
            pages: self.cache.space("http"),
            layer: self.clone(),
            flights: Arc::default(),
            passes: Moka::builder().max_capacity(PASSES).time_to_live(PASS).build(),
            hasher: foldhash::quality::FixedState::with_seed(0),
        };
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

/// What all clones of a service share.
struct Desk {
    pages: Space<Page>,
    layer: HttpCacheLayer,
    flights: Arc<Flights>,
    passes: Moka<Arc<str>, ()>,
    hasher: foldhash::quality::FixedState,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("layer", &self.layer).finish_non_exhaustive()
    }
}

/// What came of a fetch.
enum Fetched<B: Body> {
    Stored(Arc<Page>, Told, Stamps),
    /// Good for whoever asked, and for nobody else: it is not stored.
    Own(Arc<Page>, Told),
    /// What is stored had to do.
    Stale(Arc<Page>),
    Passed(Response<HttpCacheBody<B>>, Told),
}

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
                Method::GET | Method::HEAD if url.is_some() && !asked.has_body => desk.serve(inner, asked, body).await,
                _ => desk.forward(inner, asked, body).await,
            }
        })
    }
}

impl Desk {
    /// Returns the name that an address is stored under: the same for all methods. Spaces stand between its parts alone.
    fn named(&self, address: &Address, headers: &HeaderMap) -> Option<Arc<str>> {
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

    /// The tag by which a URL is invalidated. It shares it with a few others: so their number is bounded.
    fn bucket(&self, url: &str) -> Arc<str> {
        format!("{OWN}http:{:x}", self.hasher.hash_one(url) % BUCKETS).into()
    }

    fn key(&self, url: &str, vary: &[(String, String)]) -> String {
        if vary.is_empty() {
            return url.to_owned();
        }
        let mut hasher = self.hasher.build_hasher();
        vary.hash(&mut hasher);
        format!("{url} {:016x}", std::hash::Hasher::finish(&hasher))
    }

    fn selected(names: &[String], headers: &HeaderMap) -> Vec<(String, String)> {
        names.iter().map(|name| (name.clone(), selecting(headers, name))).collect()
    }

    fn now(&self) -> u64 {
        self.layer.cache.now_ms()
    }

    /// What is stored for a request, if it answers it; and whether there are variants that do not.
    async fn find(&self, asked: &Asked) -> (Option<Arc<Page>>, bool) {
        let Some(page) = self.pages.get(&asked.url).await else { return (None, false) };
        let page = match &*page {
            Page::Response(_) => page,
            Page::Varies(names) => {
                let key = self.key(&asked.url, &Self::selected(names, &asked.headers));
                match self.pages.get(&key).await {
                    Some(page) => page,
                    None => return (None, true),
                }
            }
        };
        let answers = matches!(&*page, Page::Response(stored) if stored.answers(&asked.headers));
        if answers { (Some(page), false) } else { (None, true) }
    }

    async fn serve<S, Req, Res>(
        self: Arc<Self>,
        inner: S,
        asked: Asked,
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
                if usable == Use::Stale {
                    let (desk, page, mut whole) = (Arc::clone(&self), Arc::clone(page), asked.clone());
                    whole.method = Method::GET;
                    // Of a service that is ready for it, sooner or later; whoever asked does not wait.
                    tokio::spawn(async move {
                        let _ = desk.fetch(inner, whole, Req::default(), Some(page), Forwarded::Stale).await;
                    });
                }
                return Ok(self.answer(&asked, page, Told::Hit { left: stored.freshness.left(now) }, true));
            }
            why = if stored.freshness.left(now) > 0 { Forwarded::Request } else { Forwarded::Stale };
        }
        if asked.wishes.directives.has("only-if-cached") {
            let mut response = Response::new(HttpCacheBody::whole(Bytes::new()));
            *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
            Told::OnlyIfCached.add(response.headers_mut());
            return Ok(response);
        }
        // A part, or the head, of what is not stored: the origin's business.
        if asked.is_head() || (found.is_none() && asked.headers.contains_key(RANGE)) {
            return self.pass(inner, asked, body, why).await;
        }
        let fetched = Arc::clone(&self).fetch(inner, asked.clone(), body, found, why).await?;
        Ok(match fetched {
            Fetched::Stored(page, told, _) | Fetched::Own(page, told) => {
                let from_store = matches!(
                    told,
                    Told::Forwarded { collapsed: true, .. } | Told::Forwarded { status: StatusCode::NOT_MODIFIED, .. }
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

    /// An answer from what is stored.
    fn answer<B: Body<Data = Bytes>>(
        &self,
        asked: &Asked,
        page: &Page,
        told: Told,
        from_store: bool,
    ) -> Response<HttpCacheBody<B>> {
        let Page::Response(stored) = page else { return Response::new(HttpCacheBody::whole(Bytes::new())) };
        let age = stored.freshness.age(self.now());
        let mut response = stored.answer(&asked.headers, asked.is_head(), (from_store || age > 0).then_some(age));
        told.add(response.headers_mut());
        response.map(HttpCacheBody::whole)
    }

    /// To the origin and back, without looking or storing.
    async fn pass<S, Req, Res>(
        &self,
        inner: S,
        asked: Asked,
        body: Req,
        why: Forwarded,
    ) -> Result<Response<HttpCacheBody<Res>>, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>>,
        Res: Body<Data = Bytes>,
    {
        let mut response = called(inner, asked.request(body)).await?.map(HttpCacheBody::stream);
        let status = response.status();
        Told::Forwarded { why, status, stored: false, collapsed: false }.add(response.headers_mut());
        Ok(response)
    }

    /// A request that is not cached; one that changed something invalidates (RFC 9111, 4.4).
    async fn forward<S, Req, Res>(&self, inner: S, asked: Asked, body: Req) -> Result<Response<HttpCacheBody<Res>>, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>>,
        Res: Body<Data = Bytes>,
    {
        let response = self.pass(inner, asked.clone(), body, Forwarded::Method).await?;
        if !asked.method.is_safe() && (response.status().is_success() || response.status().is_redirection()) {
            let named = [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| {
                let (target, address) = (response.headers().get(name)?.to_str().ok()?, asked.address.as_ref()?);
                self.named(&address.at(&resolved(target, address.authority(), address.path())?), &asked.headers)
            });
            let urls = Some(asked.url).filter(|url| !url.is_empty()).into_iter().chain(named);
            let buckets: Vec<Arc<str>> = urls.map(|url| self.bucket(&url)).collect();
            let cache = &self.layer.cache;
            join_all(buckets.into_iter().map(|bucket| cache.invalidate(bucket, None))).await;
        }
        Ok(response)
    }

    /// Fetches, once for all who want the same; in a task of its own, so that a client that goes away takes nothing with it.
    async fn fetch<S, Req, Res>(
        self: Arc<Self>,
        inner: S,
        asked: Asked,
        body: Req,
        old: Option<Arc<Page>>,
        why: Forwarded,
    ) -> Result<Fetched<Res>, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        Req: Send + 'static,
        Res: Body<Data = Bytes> + Send + 'static,
        Res::Error: Send,
    {
        // With credentials everybody asks alone; and so does who asks for what could not be stored.
        let mut alone = asked.wishes.authorized || asked.wishes.directives.has("no-store");
        let vary = old.as_deref().map_or(&[][..], |page| if let Page::Response(stored) = page { &stored.vary } else { &[] });
        let name: Arc<str> = self.key(&asked.url, vary).into();
        let mut flight = None;
        while !alone && flight.is_none() && !self.passes.contains_key(&asked.url) {
            match self.flights.join(&name).await {
                Ok(own) => flight = Some(own),
                Err(Landed::Page(page, stamps)) if stamps.agree() == Agreement::Same => {
                    let Page::Response(stored) = &*page else { continue };
                    if !stored.answers(&asked.headers) {
                        alone = true;
                        continue;
                    }
                    let told = Told::Forwarded { why, status: stored.status(), stored: true, collapsed: true };
                    return Ok(Fetched::Stored(Arc::clone(&page), told, stamps));
                }
                // One of those who waited asks anew.
                Err(Landed::Page(..) | Landed::Invalidated) => {}
                Err(Landed::Nothing) => alone = true,
            }
        }
        let (sender, receiver) = oneshot::channel();
        let desk = Arc::clone(&self);
        let url = Arc::clone(&asked.url);
        tokio::spawn(async move {
            let fetched = desk.exchange(inner, asked, body, old, why).await;
            if let Some(flight) = flight {
                flight.land(match &fetched {
                    Ok(Fetched::Stored(page, _, stamps)) => Landed::Page(Arc::clone(page), stamps.clone()),
                    Ok(Fetched::Own(..)) => Landed::Invalidated,
                    _ => Landed::Nothing,
                });
            }
            let _ = sender.send(fetched);
        });
        if let Ok(fetched) = receiver.await {
            return fetched;
        }
        // The service panicked; without the cache its caller would have, too.
        tracing::error!(url = &*url, "the service behind the cache panicked");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let mut response = Response::new(HttpCacheBody::whole(Bytes::new()));
        *response.status_mut() = status;
        Ok(Fetched::Passed(response, Told::Forwarded { why, status, stored: false, collapsed: false }))
    }

    /// One request to the origin, and what becomes of its answer.
    async fn exchange<S, Req, Res>(
        &self,
        inner: S,
        mut asked: Asked,
        body: Req,
        old: Option<Arc<Page>>,
        why: Forwarded,
    ) -> Result<Fetched<Res>, S::Error>
    where
        S: Service<Request<Req>, Response = Response<Res>>,
        Res: Body<Data = Bytes>,
    {
        let noted = self.pages.note([self.bucket(&asked.url)]).await;
        let stored = old.as_ref().and_then(|page| if let Page::Response(stored) = &**page { Some(stored) } else { None });
        match stored {
            Some(stored) => stored.ask(&mut asked.headers),
            None => strip_conditions(&mut asked.headers),
        }
        asked.headers.remove(RANGE);
        let sent_at = self.now();
        let usable = |now: u64| old.clone().filter(|_| stored.is_some_and(|s| s.freshness.serves_errors(now)));
        let answer = match called(inner, asked.request(body)).await {
            Ok(answer) => answer,
            Err(error) => return usable(self.now()).map(Fetched::Stale).ok_or(error),
        };
        let now = self.now();
        let (mut head, body) = answer.into_parts();
        if matches!(head.status.as_u16(), 500 | 502 | 503 | 504)
            && let Some(old) = usable(now)
        {
            return Ok(Fetched::Stale(old));
        }
        let told = |stored: bool, status: StatusCode| Told::Forwarded { why, status, stored, collapsed: false };
        if head.status == StatusCode::NOT_MODIFIED
            && let Some(stored) = stored
        {
            // Judged as if it had come whole: by the fields as they are now.
            let mut fresh = stored.freshened(head.headers);
            let freshness = judge(self.layer.rules, &asked.wishes, fresh.status(), fresh.headers(), sent_at, now);
            let keep = freshness.is_some();
            fresh.freshness = freshness.unwrap_or_default();
            let page = Arc::new(Page::Response(fresh));
            let stamps = if keep { self.store(&noted, &asked, &page).await } else { None };
            return Ok(kept(page, stamps, |stored| told(stored, StatusCode::NOT_MODIFIED)));
        }
        let has_all_tags = tags_of(&head.headers).is_some();
        if !has_all_tags {
            metrics::counter!("scale_cache_http_untagged_total").increment(1);
            tracing::warn!(url = &*asked.url, "a response is not stored: it has more than 60 tags, or one that is no UTF-8");
        }
        let freshness = judge(self.layer.rules, &asked.wishes, head.status, &head.headers, sent_at, now);
        let Some(freshness) = freshness.filter(|_| has_all_tags) else {
            self.passes.insert(Arc::clone(&asked.url), ());
            strip_connection(&mut head.headers);
            let told = told(false, head.status);
            return Ok(Fetched::Passed(Response::from_parts(head, HttpCacheBody::stream(body)), told));
        };
        match read(body, self.layer.largest).await {
            Read::Whole(bytes) => {
                let names = varies_by(&head.headers);
                let vary = Self::selected(&names, &asked.headers);
                let page = Arc::new(Page::Response(Stored::new(head.status, head.headers, bytes, freshness, vary)));
                let stamps = self.store(&noted, &asked, &page).await;
                Ok(kept(page, stamps, |stored| told(stored, head.status)))
            }
            Read::NotToBeStored(body) => {
                self.passes.insert(Arc::clone(&asked.url), ());
                strip_connection(&mut head.headers);
                let told = told(false, head.status);
                Ok(Fetched::Passed(Response::from_parts(head, body), told))
            }
        }
    }

    /// Stores a page under its URL, or as a variant of it.
    async fn store(&self, noted: &Noted, asked: &Asked, page: &Arc<Page>) -> Option<Stamps> {
        let Page::Response(stored) = &**page else { return None };
        let kept = stored.freshness.kept(has_validator(stored.headers()));
        let tags: Vec<Arc<str>> = tags_of(stored.headers())?;
        let options = Options::ttl(kept).jitter(0.0).refresh_ahead(false);
        if !stored.vary.is_empty() {
            let names = stored.vary.iter().map(|(name, _)| name.clone()).collect();
            let varies = Arc::new(Page::Varies(names));
            // As long as any of the variants may live.
            let options = Options { ttl: kept.max(Duration::from_hours(24)), ..options.clone() };
            self.pages.put_since(noted, &asked.url, &options, &[], varies).await?;
        }
        let key = self.key(&asked.url, &stored.vary);
        self.pages.put_since(noted, &key, &options, &tags, Arc::clone(page)).await
    }
}

fn kept<B: Body>(page: Arc<Page>, stamps: Option<Stamps>, told: impl FnOnce(bool) -> Told) -> Fetched<B> {
    match stamps {
        Some(stamps) => Fetched::Stored(page, told(true), stamps),
        None => Fetched::Own(page, told(false)),
    }
}

async fn called<S: Service<R>, R>(mut inner: S, request: R) -> Result<S::Response, S::Error> {
    std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
    inner.call(request).await
}
