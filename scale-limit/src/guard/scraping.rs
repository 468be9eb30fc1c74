//! Who reads everything, or looks for what is not there.
//!
//! A reader opens some pages again and again; a scraper opens each page once, and a scanner asks for pages that do not exist. So two things
//! are counted for each client, each against a [`Policy`]: *distinct* resources, and answers *not found*. Whoever goes over is banned.
//!
//! Whether a resource is new to a client is remembered in a filter of 2,048 bits for each client and period (a Bloom filter of two
//! hashes): below 200 distinct resources under one in thirty counts as seen by mistake, and none is counted twice. The filter is each
//! process' own; the counts are the limiter's, so on Redis they are the fleet's: a resource that a client opens through `n` processes
//! counts up to `n` times.

use std::future::Future;
use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use super::bans::BanList;
use crate::client::ClientIp;
use crate::limiter::Limiter;
use crate::policy::Policy;
use crate::store::{Table, Worth};
use crate::task::go_on;

/// Clients watched at most; those seen last are kept. About 25 MB.
const CLIENTS: usize = 65_536;
const WORDS: usize = 32;

/// What a client has opened.
#[derive(Debug)]
struct Seen {
    words: [u64; WORDS],
    /// Starts anew then (ns).
    until: u64,
}

impl Worth for Seen {
    fn worth(&self, _: u64) -> u64 {
        self.until
    }
}

/// Watches for scraping, and bans. Cloning costs a few reference counts.
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

#[derive(Clone, Debug)]
struct Inner {
    limiter: Limiter,
    bans: BanList,
    distinct: Policy,
    missing: Policy,
    time: Duration,
    seen: Arc<Table<Seen>>,
    hashers: Arc<[foldhash::fast::RandomState; 2]>,
}

impl Scraping {
    /// At most 300 distinct resources and 30 not found in ten minutes, else out for an hour.
    pub fn new(limiter: &Limiter, bans: &BanList) -> Self {
        let period = Duration::from_mins(10);
        Self(Arc::new(Inner {
            limiter: limiter.clone(),
            bans: bans.clone(),
            distinct: Policy::new("scraping-distinct", 300, period),
            missing: Policy::new("scraping-missing", 30, period),
            time: Duration::from_hours(1),
            seen: Arc::new(Table::new(CLIENTS)),
            hashers: Arc::default(),
        }))
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// How many distinct resources in which time. The filter starts anew after the policy's period.
    pub fn distinct(self, policy: Policy) -> Self {
        self.with(|s| s.distinct = policy)
    }

    /// How many answers not found (404 and 410) in which time.
    pub fn missing(self, policy: Policy) -> Self {
        self.with(|s| s.missing = policy)
    }

    /// For how long to ban. With zero, and policies in [dry run](Policy::dry_run), it only counts.
    pub fn ban_for(self, time: Duration) -> Self {
        self.with(|s| s.time = time)
    }

    /// A client was given an answer; `true`: it is banned for it.
    pub async fn saw(&self, client: &str, resource: &str, status: StatusCode) -> bool {
        let mut over = None;
        if self.is_new(client, resource) && !self.0.limiter.check(&self.0.distinct, client).await.admitted {
            over = Some("too many distinct resources");
        }
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
            && !self.0.limiter.check(&self.0.missing, client).await.admitted
        {
            over = Some("too many resources that do not exist");
        }
        let Some(reason) = over.filter(|_| !self.0.time.is_zero()) else { return false };
        if let Err(error) = self.0.bans.ban(client, self.0.time, reason).await {
            tracing::warn!(%error, "a scraper is banned here only");
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

    /// A layer that watches all answers; clients are told apart by [`ClientIp::key`]. Nobody waits for it.
    pub fn layer(&self, clients: &ClientIp) -> ScrapingLayer {
        ScrapingLayer { scraping: self.clone(), clients: clients.clone() }
    }
}

/// The layer of [`Scraping::layer`].
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

/// The service of [`ScrapingLayer`].
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
        let resource = request.uri().path().to_owned();
        let scraping = self.layer.scraping.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(client) = client {
                let status = answer.status();
                go_on(async move {
                    scraping.saw(&client, &resource, status).await;
                });
            }
            Ok(answer)
        })
    }
}
