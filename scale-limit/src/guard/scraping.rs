//! Detection of clients that read everything, or look for pages that do not exist.
//!
//! A reader opens some pages again and again; a scraper opens each page once, and a scanner
//! requests pages that do not exist. So two things are counted for each client, each against a
//! [`Policy`]: *distinct* resources, and *not found* answers. A client that exceeds one of them is
//! banned.
//!
//! A resource is a path with its query, in any order, without parameters that only describe where a
//! visitor comes from (`utm_source`, `gclid` and the like): `/product?id=1` and `/product?id=2` are
//! two resources. Embedded content does not count: answers that are images, fonts, styles, scripts,
//! audio or video, and missing paths with the extension of such content (`.png`, `.css`, `.js.map`,
//! …). The application can [define resources itself](Scraping::resource).
//!
//! A filter of 2,048 bits for each client and period remembers which resources the client has
//! opened (a Bloom filter of two hashes): below 200 distinct resources fewer than one in thirty is
//! missed by mistake, and no resource is counted twice. Each process has its own filter; the counts
//! are the limiter's, so on Redis they are those of the fleet: a resource that a client opens
//! through `n` processes counts up to `n` times.

use std::future::Future;
use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use tower_layer::Layer;
use tower_service::Service;

use super::bans::BanList;
use crate::bounded_map::{BoundedMap, EvictionRank};
use crate::client::ClientIp;
use crate::limiter::Limiter;
use crate::policy::Policy;
use crate::poll_then_spawn::poll_then_spawn;
use crate::request_head::RequestHead;

/// Maximum number of watched clients; the most recent ones are kept. About 25 MB.
const CLIENTS: usize = 65_536;
const WORDS: usize = 32;

/// Filter of the resources that a client has opened.
#[derive(Debug)]
struct Seen {
    words: [u64; WORDS],
    /// Time at which the filter is cleared (ns).
    until: u64,
}

impl EvictionRank for Seen {
    fn rank(&self, _: u64) -> u64 {
        self.until
    }
}

/// Detects scraping, and bans scrapers. A clone costs a few reference counts.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use http::StatusCode;
/// use scale_limit::guard::scraping::Scraping;
/// use scale_limit::{BanList, Limiter};
///
/// let bans = BanList::memory();
/// let scraping = Scraping::new(&Limiter::memory(), &bans);
/// for n in 0..1_000 {
///     scraping.saw("203.0.113.7", &format!("/products/{n}"), StatusCode::OK).await;
///     scraping.saw("198.51.100.1", "/", StatusCode::OK).await;
/// }
/// assert!(bans.find("203.0.113.7").is_some() && bans.find("198.51.100.1").is_none());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Scraping(Arc<Inner>);

type ResourceOf = dyn Fn(&RequestHead<'_>) -> Option<String> + Send + Sync;

#[derive(Clone)]
struct Inner {
    limiter: Limiter,
    bans: BanList,
    /// The application's own definition of a resource, instead of path and query.
    resource: Option<Arc<ResourceOf>>,
    distinct: Policy,
    missing: Policy,
    time: Duration,
    seen: Arc<BoundedMap<Seen>>,
    hashers: Arc<[foldhash::fast::RandomState; 2]>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("distinct", &self.distinct)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

impl Scraping {
    /// Creates a detector: at most 300 distinct resources and 30 not found in ten minutes,
    /// otherwise a ban for an hour.
    pub fn new(limiter: &Limiter, bans: &BanList) -> Self {
        let period = Duration::from_mins(10);
        Self(Arc::new(Inner {
            limiter: limiter.clone(),
            bans: bans.clone(),
            resource: None,
            distinct: Policy::new("scraping-distinct", 300, period),
            missing: Policy::new("scraping-missing", 30, period),
            time: Duration::from_hours(1),
            seen: Arc::new(BoundedMap::new(CLIENTS)),
            hashers: Arc::default(),
        }))
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Sets the limit of distinct resources in the policy's period. The filter is cleared after
    /// each period.
    pub fn distinct(self, policy: Policy) -> Self {
        self.with(|s| s.distinct = policy)
    }

    /// Sets the limit of not found answers (404 and 410) in the policy's period.
    pub fn missing(self, policy: Policy) -> Self {
        self.with(|s| s.missing = policy)
    }

    /// Sets how the application names the resource of a request; `None`: the request is not
    /// counted.
    ///
    /// ```
    /// # use scale_limit::{BanList, Limiter, guard::scraping::Scraping};
    /// let photos = Scraping::new(&Limiter::memory(), &BanList::memory())
    ///     .resource(|request| request.uri.path().strip_prefix("/photos/").map(str::to_owned));
    /// ```
    pub fn resource(
        self,
        resource: impl Fn(&RequestHead<'_>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.with(|s| s.resource = Some(Arc::new(resource)))
    }

    /// Sets the duration of bans. With zero, and policies in [dry run](Policy::dry_run), requests
    /// are only counted.
    pub fn ban_for(self, time: Duration) -> Self {
        self.with(|s| s.time = time)
    }

    /// Counts an answer to a client. Returns `true` if the client was banned for it.
    pub async fn saw(&self, client: &str, resource: &str, status: StatusCode) -> bool {
        let mut over = None;
        if self.is_new(client, resource)
            && !self.0.limiter.check(&self.0.distinct, client).await.admitted
        {
            over = Some("too many distinct resources");
        }
        if is_missing(status) && !self.0.limiter.check(&self.0.missing, client).await.admitted {
            over = Some("too many resources that do not exist");
        }
        let Some(reason) = over.filter(|_| !self.0.time.is_zero()) else { return false };
        if let Err(error) = self.0.bans.ban_automatically(client, self.0.time, reason).await {
            tracing::warn!(%error, "banning a scraper failed on Redis: only this process bans it");
        }
        true
    }

    fn is_new(&self, client: &str, resource: &str) -> bool {
        let now = self.0.limiter.now();
        let period = self.0.distinct.period().as_nanos() as u64;
        let place = self.0.seen.place(&self.0.distinct, client);
        let mut shard = self.0.seen.lock(place.shard());
        let fresh = || Seen { words: [0; WORDS], until: now + period };
        let seen = self.0.seen.entry(&mut shard, place, (&self.0.distinct, client), now, fresh);
        if seen.until <= now {
            *seen = fresh();
        }
        let mut new = false;
        for hasher in self.0.hashers.iter() {
            let bit = hasher.hash_one(resource) as usize % (WORDS * 64);
            let (word, bit) = (&mut seen.words[bit / 64], 1 << (bit % 64));
            new |= *word & bit == 0;
            *word |= bit;
        }
        new
    }

    /// Returns a layer that counts all answers; [`ClientIp::key`] identifies the clients. Responses
    /// do not wait for the counting.
    pub fn layer(&self, clients: &ClientIp) -> ScrapingLayer {
        ScrapingLayer { scraping: self.clone(), clients: clients.clone() }
    }
}

/// Layer of [`Scraping::layer`].
#[derive(Clone, Debug)]
pub struct ScrapingLayer {
    scraping: Scraping,
    clients: ClientIp,
}

impl<S> Layer<S> for ScrapingLayer {
    type Service = Watch<S>;

    fn layer(&self, inner: S) -> Watch<S> {
        Watch { layer: self.clone(), inner }
    }
}

/// Service of [`ScrapingLayer`].
#[derive(Clone, Debug)]
pub struct Watch<S> {
    layer: ScrapingLayer,
    inner: S,
}

impl<S, Req, Res> Service<Request<Req>> for Watch<S>
where
    S: Service<Request<Req>, Response = Response<Res>>,
    S::Future: Send + 'static,
{
    type Response = Response<Res>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Res>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let client = self.layer.clients.key(&request).filter(|client| !client.is_unknown());
        let scraping = self.layer.scraping.clone();
        let (resource, embedded) = match &scraping.0.resource {
            Some(resource) => (resource(&RequestHead::from(&request)), false),
            None => (Some(resource_of(request.uri())), is_embedded(request.uri().path())),
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let (Some(client), Some(resource)) = (client, resource)
                && (scraping.0.resource.is_some()
                    || !(embedded && is_missing(answer.status())
                        || shows_in_a_page(answer.headers())))
            {
                let status = answer.status();
                poll_then_spawn(async move {
                    scraping.saw(&client, &resource, status).await;
                });
            }
            Ok(answer)
        })
    }
}

fn is_missing(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// Returns the path with the relevant parameters in canonical order.
fn resource_of(uri: &Uri) -> String {
    /// Maximum length of a query, in bytes; the rest is ignored.
    const LONGEST: usize = 2_048;
    let Some(query) = uri.query() else { return uri.path().to_owned() };
    let query = &query[..query.floor_char_boundary(LONGEST)];
    let mut pairs: Vec<&str> =
        query.split('&').filter(|pair| !pair.is_empty() && !is_campaign(pair)).collect();
    pairs.sort_unstable();
    let mut resource = uri.path().to_owned();
    for (n, pair) in pairs.into_iter().enumerate() {
        resource.push(if n == 0 { '?' } else { '&' });
        resource.push_str(pair);
    }
    resource
}

/// Returns whether a parameter describes where a visitor comes from.
fn is_campaign(pair: &str) -> bool {
    let name = pair.split('=').next().unwrap_or_default();
    name.starts_with("utm_")
        || matches!(
            name,
            "gclid" | "gbraid" | "wbraid" | "dclid" | "fbclid" | "msclkid" | "mc_cid" | "mc_eid"
        )
}

/// Returns whether a path has the extension of embedded content.
fn is_embedded(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some((_, end)) = name.rsplit_once('.') else { return false };
    [
        "png", "jpg", "jpeg", "gif", "webp", "avif", "svg", "ico", "bmp", "css", "js", "mjs",
        "map", "wasm", "woff", "woff2", "ttf", "otf", "eot", "mp3", "mp4", "ogg", "webm",
        "webmanifest",
    ]
    .iter()
    .any(|known| end.eq_ignore_ascii_case(known))
}

/// Returns whether an answer is of a type that pages embed.
fn shows_in_a_page(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    [
        "image/", "font/", "audio/", "video/", "text/css", "text/javascript",
        "application/javascript", "application/wasm",
    ]
    .iter()
    .any(|start| kind.starts_with(start))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::client::Peer;

    async fn asks(scraping: &Scraping, address: &str, uris: impl Iterator<Item = String>) {
        let answer = |request: Request<()>| async move {
            let path = request.uri().path();
            let kind = if path.starts_with("/thumb") { "image/webp" } else { "text/html" };
            let status =
                if path.contains("missing") { StatusCode::NOT_FOUND } else { StatusCode::OK };
            Ok::<_, std::convert::Infallible>(
                Response::builder().status(status).header(CONTENT_TYPE, kind).body(()).unwrap(),
            )
        };
        let service = scraping.layer(&ClientIp::direct()).layer(service_fn(answer));
        for uri in uris {
            let mut request = Request::builder().uri(uri).body(()).unwrap();
            request.extensions_mut().insert(Peer(SocketAddr::new(address.parse().unwrap(), 1)));
            service.clone().oneshot(request).await.unwrap();
        }
    }

    #[tokio::test]
    async fn queries_that_matter_count_and_what_pages_embed_does_not() {
        let bans = BanList::memory();
        let scraping = Scraping::new(&Limiter::memory(), &bans);
        let is_banned = |address: &str| bans.find(address).is_some();
        asks(&scraping, "203.0.113.1", (0..500).map(|n| format!("/product?id={n}"))).await;
        assert!(is_banned("203.0.113.1"), "one path, a query for each product");
        asks(
            &scraping,
            "203.0.113.2",
            (0..500).map(|n| format!("/product?a=1&utm_source={n}&b=2")),
        )
        .await;
        asks(&scraping, "203.0.113.2", (0..500).map(|_| "/product?b=2&gclid=x&a=1".to_owned()))
            .await;
        assert!(!is_banned("203.0.113.2"), "one product, however it was found");
        asks(&scraping, "203.0.113.3", (0..500).map(|n| format!("/thumb/{n}"))).await;
        asks(&scraping, "203.0.113.3", (0..500).map(|n| format!("/missing/{n}.PNG?v=2"))).await;
        assert!(!is_banned("203.0.113.3"), "a page with many images");
        asks(&scraping, "203.0.113.4", (0..60).map(|n| format!("/missing/{n}.php"))).await;
        assert!(is_banned("203.0.113.4"), "a scanner");
        asks(&scraping, "203.0.113.6", (0..500).map(|n| format!("/product/{n}.css"))).await;
        assert!(is_banned("203.0.113.6"), "pages under names of styles");
        let photos = scraping
            .clone()
            .resource(|request| request.uri.path().strip_prefix("/thumb/").map(str::to_owned));
        asks(&photos, "203.0.113.5", (0..500).map(|n| format!("/product?id={n}"))).await;
        assert!(!is_banned("203.0.113.5"));
        asks(&photos, "203.0.113.5", (0..500).map(|n| format!("/thumb/{n}"))).await;
        assert!(is_banned("203.0.113.5"), "by the application's own rule");
    }
}
