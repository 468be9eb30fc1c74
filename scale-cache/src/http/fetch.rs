//! Fetches from the origin: one for all requests for the same page, passed on while it arrives, and
//! stored for later requests.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, RANGE, SET_COOKIE, TRANSFER_ENCODING};
use http::response::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tower_service::Service;

use super::body::{HttpCacheBody, Part};
use super::fill::{AtOnce, Filled, Filling};
use super::flight::{Flight, FlightResult};
use super::freshness::{Freshness, RequestFacts, has_validator, judge};
use super::references::tags_of;
use super::request_head::RequestHead;
use super::state::ServiceState;
use super::status::{CacheStatus, Forwarded};
use super::stored::{
    Page, Stored, accepts_coding, selecting, spare_body, strip_conditions, strip_connection,
    strip_preconditions, varies_by,
};
use crate::core::conditional_put::TagSnapshot;
use crate::options::Options;
use crate::policy::versions::Stamps;

/// Time that other requests wait for the head of a response.
const HEAD: Duration = Duration::from_secs(10);
/// Maximum duration of a body's transfer that is stored; a longer transfer continues for its client
/// alone.
const LONGEST_FILL: Duration = Duration::from_mins(1);

/// Result of a fetch.
pub(super) enum Fetched<B: Body> {
    /// A page, valid for this client at least.
    Page(Arc<Page>, CacheStatus),
    /// A stored page, because the origin failed.
    Stale(Arc<Page>),
    /// A response as it came from the origin.
    Passed(Response<HttpCacheBody<B>>, CacheStatus),
}

/// A request to the origin in progress.
struct Trip<B: Body, E> {
    asked: RequestHead,
    old: Option<Arc<Page>>,
    why: Forwarded,
    noted: TagSnapshot,
    sent_at: u64,
    flight: Option<Flight>,
    client: Client<B, E>,
}

/// Sender of the response to the waiting client.
type Client<B, E> = oneshot::Sender<Result<Fetched<B>, E>>;

impl ServiceState {
    /// Fetches a page, once for all requests for it. The fetch runs in its own task, so it
    /// continues if the client goes away.
    pub(super) async fn fetch<S, Req, Res>(
        self: Arc<Self>,
        inner: S,
        asked: RequestHead,
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
        let flight = match self.seat(&asked, old.as_deref()).await {
            Seat::Own(flight) => flight,
            Seat::Shared(page, status) => {
                return Ok(Fetched::Page(
                    page,
                    CacheStatus::Forwarded { why, status, stored: true, collapsed: true },
                ));
            }
        };
        let (client, answer) = oneshot::channel();
        let (state, url) = (Arc::clone(&self), Arc::clone(&asked.url));
        tokio::spawn(async move {
            let noted = state.shared.pages.note([state.bucket(&asked.url)]).await;
            let sent_at = state.now();
            let trip = Trip { asked, old, why, noted, sent_at, flight, client };
            state.exchange(inner, body, trip).await;
        });
        if let Ok(fetched) = answer.await {
            return fetched;
        }
        // The service panicked; without the cache the panic would reach the caller.
        tracing::error!(url = &*url, "the service behind the cache panicked: answering 500");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let mut response = Response::new(HttpCacheBody::whole(Bytes::new()));
        *response.status_mut() = status;
        Ok(Fetched::Passed(
            response,
            CacheStatus::Forwarded { why, status, stored: false, collapsed: false },
        ))
    }

    /// Decides which request fetches: this one, or another one whose page can be shared.
    async fn seat(&self, asked: &RequestHead, old: Option<&Page>) -> Seat {
        let shared = &self.shared;
        let alone = Seat::Own(None);
        // Requests with credentials are never shared, nor are requests whose response must not be
        // stored.
        if asked.facts.authorized || asked.facts.directives.has("no-store") {
            return alone;
        }
        let vary =
            old.map_or(
                &[][..],
                |page| if let Page::Response(stored) = page { &stored.vary } else { &[] },
            );
        let mut name: Arc<str> = self.key(&asked.url, vary).into();
        let mut varies = false;
        let inner = &self.settings.cache.0;
        let versions = &inner.versions;
        let came = versions.number();
        loop {
            if shared.passes.contains_key(&asked.url)
                || (asked.facts.cookies && shared.personal.contains_key(&asked.url))
            {
                return alone;
            }
            let waiting = match shared.flights.join(&name, versions.number()) {
                Ok(flight) => return Seat::Own(Some(flight)),
                Err(waiting) => waiting,
            };
            let began = waiting.began;
            // A fetch from before the link was lost may be used for no longer than an entry from
            // that time.
            if inner.subscription.trust_until(waiting.at).is_some_and(|end| Instant::now() >= end) {
                return alone;
            }
            let Ok(landed) = timeout(HEAD, waiting.landed()).await else { return alone };
            // A fetch that began before the last invalidation that this caller may know can be used
            // only if its page is still current.
            let is_good = began >= came || landed.is_current();
            match landed {
                FlightResult::Page(page, _) if is_good => {
                    let Page::Response(stored) = &*page else { return alone };
                    let status = stored.status();
                    if stored.answers(&asked.headers) {
                        return Seat::Shared(page, status);
                    }
                    // Another variant: requests for the same variant share its fetch.
                    if std::mem::replace(&mut varies, true) {
                        return alone;
                    }
                    let names: Vec<String> =
                        stored.vary.iter().map(|(name, _)| name.clone()).collect();
                    name = self.key(&asked.url, &Self::selected(&names, &asked.headers)).into();
                }
                // The page is outdated: one of the waiting requests fetches again, for all of them.
                FlightResult::Page(..) => {}
                FlightResult::Personal if !asked.facts.cookies => {}
                FlightResult::Odd(odd) if *odd != *selecting(&asked.headers, "accept-encoding") => {
                }
                FlightResult::Personal | FlightResult::Odd(_) | FlightResult::Nothing => {
                    return alone;
                }
            }
        }
    }

    /// Sends one request to the origin, and handles its response.
    async fn exchange<S, Req, Res>(&self, inner: S, body: Req, trip: Trip<Res, S::Error>)
    where
        S: Service<Request<Req>, Response = Response<Res>>,
        Res: Body<Data = Bytes>,
    {
        let Trip { asked, old, .. } = &trip;
        let stored = old
            .as_deref()
            .and_then(|page| if let Page::Response(stored) = page { Some(stored) } else { None });
        let mut to_origin = asked.clone();
        match stored {
            Some(stored) => stored.ask(&mut to_origin.headers),
            // A response for this client alone: the origin may find that the client has it.
            None if trip.flight.is_none() => strip_preconditions(&mut to_origin.headers),
            None => strip_conditions(&mut to_origin.headers),
        }
        to_origin.headers.remove(RANGE);
        let usable = |now: u64| {
            old.clone().filter(|_| stored.is_some_and(|s| s.freshness.serves_errors(now)))
        };
        let answer = match called(inner, to_origin.request(body)).await {
            Ok(answer) => answer,
            Err(error) => {
                let fetched = usable(self.now()).map(Fetched::Stale).ok_or(error);
                return trip.ends(fetched, FlightResult::Nothing);
            }
        };
        let now = self.now();
        let (mut head, body) = answer.into_parts();
        if head.headers.contains_key(TRANSFER_ENCODING) {
            // With both fields, `Content-Length` is not the length of the body (RFC 9112, 6.3).
            head.headers.remove(CONTENT_LENGTH);
        }
        if matches!(head.status.as_u16(), 500 | 502 | 503 | 504)
            && let Some(old) = usable(now)
        {
            return trip.ends(Ok(Fetched::Stale(old)), FlightResult::Nothing);
        }
        if head.status == StatusCode::NOT_MODIFIED
            && let Some(stored) = stored
        {
            // Judged like a full response, by the updated fields. The stored page is for all
            // clients, whatever cookies this request had; other fields of the 304 are for this
            // client only.
            let facts = RequestFacts { cookies: false, ..asked.facts.clone() };
            let judged = |facts: &RequestFacts, fresh: &Stored| {
                judge(
                    self.settings.rules,
                    facts,
                    fresh.status(),
                    fresh.headers(),
                    trip.sent_at,
                    now,
                )
            };
            let sets_cookies = head.headers.contains_key(SET_COOKIE);
            let whole = stored.freshened(head.headers.clone(), true);
            let mut own = whole.withholds().then(|| whole.clone());
            let mut fresh = whole.for_all();
            if judged(&asked.facts, &fresh).is_none() && !sets_cookies {
                let of_all = stored.freshened(head.headers, false).for_all();
                own = Some(std::mem::replace(&mut fresh, of_all));
            }
            let freshness = judged(&facts, &fresh);
            let keep = freshness.is_some();
            fresh.freshness = freshness.unwrap_or_default();
            let own = own.map(|mut own| {
                own.freshness = fresh.freshness.clone();
                Arc::new(Page::Response(own))
            });
            let page = Arc::new(Page::Response(fresh));
            let stamps = if keep { self.store(&trip.noted, asked, &page).await } else { None };
            let told = trip.told(StatusCode::NOT_MODIFIED, stamps.is_some());
            let landed = if keep {
                FlightResult::Page(Arc::clone(&page), stamps)
            } else {
                FlightResult::Nothing
            };
            return trip.ends(Ok(Fetched::Page(own.unwrap_or(page), told)), landed);
        }
        if head.status == StatusCode::NOT_MODIFIED {
            // The answer to the client's own condition says nothing about the page.
            return trip.passes(head, HttpCacheBody::stream(body), FlightResult::Nothing);
        }
        match self.verdict(asked, &head, trip.sent_at, now) {
            Verdict::Store(freshness) => self.fill(trip, head, body, freshness).await,
            Verdict::Personal => {
                let alone = asked.facts.authorized || asked.facts.directives.has("no-store");
                if asked.facts.cookies && !alone {
                    self.shared.personal.insert(Arc::clone(&asked.url), ());
                }
                trip.passes(head, HttpCacheBody::stream(body), FlightResult::Personal);
            }
            Verdict::Odd => {
                let odd = selecting(&asked.headers, "accept-encoding");
                trip.passes(head, HttpCacheBody::stream(body), FlightResult::Odd(odd.into()));
            }
            Verdict::Pass => {
                self.shared.passes.insert(Arc::clone(&asked.url), ());
                trip.passes(head, HttpCacheBody::stream(body), FlightResult::Nothing);
            }
        }
    }

    /// Decides whether a response may be stored; and if not, whether that is because of the
    /// requesting client.
    fn verdict(&self, asked: &RequestHead, head: &Parts, sent_at: u64, now: u64) -> Verdict {
        if tags_of(&head.headers).is_none() {
            metrics::counter!("scale_cache_http_untagged_total").increment(1);
            tracing::warn!(
                url = &*asked.url,
                "a response is not stored: it has more than 60 tags, or a tag that is not UTF-8"
            );
            return Verdict::Pass;
        }
        // A response in a coding that the client did not accept cannot be reused for requests with
        // the same field.
        if varies_by(&head.headers).iter().any(|name| name == "accept-encoding")
            && !accepts_coding(&asked.headers, &head.headers)
        {
            return Verdict::Odd;
        }
        let judged = |facts: &RequestFacts| {
            judge(self.settings.rules, facts, head.status, &head.headers, sent_at, now)
        };
        match judged(&asked.facts) {
            Some(freshness) => Verdict::Store(freshness),
            None if judged(&RequestFacts::default()).is_some() => Verdict::Personal,
            None => Verdict::Pass,
        }
    }

    /// Stores a response while it is passed on.
    async fn fill<B, E>(&self, trip: Trip<B, E>, head: Parts, body: B, freshness: Freshness)
    where
        B: Body<Data = Bytes>,
    {
        let filling = match Filling::begin(body, self.settings.largest) {
            AtOnce::Whole(bytes) => return self.filled(trip, head, bytes, freshness).await,
            AtOnce::NotToBeStored(body) => {
                self.shared.passes.insert(Arc::clone(&trip.asked.url), ());
                return trip.passes(head, body, FlightResult::Nothing);
            }
            AtOnce::More(filling) => filling,
        };
        // Without a known size, it is open whether the response will be stored.
        let told = trip.told(head.status, filling.will_fit());
        let Trip { asked, noted, flight, client, .. } = trip;
        let vary = Self::selected(&varies_by(&head.headers), &asked.headers);
        // A page without its body yet, for the head of the response.
        let beginning = Stored::new(
            head.status,
            head.headers.clone(),
            Bytes::new(),
            freshness.clone(),
            vary.clone(),
        );
        let age = freshness.age(self.now());
        // Ranges need the whole body.
        let mut wanted = asked.headers.clone();
        wanted.remove(RANGE);
        let first = beginning.answer(&wanted, false, (age > 0).then_some(age));
        let land = |landed| {
            if let Some(flight) = flight {
                flight.land(landed);
            }
        };
        let parts = if first.status() == head.status {
            let (body, parts) = filling.passed_on();
            let mut response = first.map(|_| body);
            if let Some(length) = head.headers.get(CONTENT_LENGTH) {
                response.headers_mut().insert(CONTENT_LENGTH, length.clone());
            }
            let _ = client.send(Ok(Fetched::Passed(response, told)));
            Some(parts)
        } else {
            // The client has the page already.
            let _ = client.send(Ok(Fetched::Passed(first.map(HttpCacheBody::whole), told)));
            None
        };
        let reading =
            AssertUnwindSafe(filling.read_on(parts.as_ref(), self.settings.stall, LONGEST_FILL))
                .catch_unwind();
        let filled = match reading.await {
            Ok(filled) => filled,
            // Without the cache, the reader of the body would panic as well.
            Err(panic) => {
                if let Some(parts) = &parts {
                    let _ = parts.send(Part::Panicked(panic));
                }
                Filled::Failed
            }
        };
        let landed = match filled {
            Filled::Whole(bytes) if agrees(&head.headers, bytes.len()) => {
                let stored = Stored::new(head.status, head.headers, bytes, freshness, vary);
                let page = Arc::new(Page::Response(stored.for_all()));
                let stamps = self.store(&noted, &asked, &page).await;
                FlightResult::Page(page, stamps)
            }
            Filled::TooLarge => {
                self.shared.passes.insert(Arc::clone(&asked.url), ());
                FlightResult::Nothing
            }
            Filled::Whole(_) | Filled::Failed => FlightResult::Nothing,
        };
        land(landed);
        // The client's body ends only now: then its next request finds the page stored.
        if let Some(parts) = parts {
            let _ = parts.send(Part::End);
        }
    }

    /// Stores a complete response.
    async fn filled<B: Body, E>(
        &self,
        trip: Trip<B, E>,
        head: Parts,
        bytes: Bytes,
        freshness: Freshness,
    ) {
        let vary = Self::selected(&varies_by(&head.headers), &trip.asked.headers);
        let is_whole = agrees(&head.headers, bytes.len());
        let stored = Stored::new(head.status, head.headers, bytes, freshness, vary);
        let own = stored.withholds().then(|| Arc::new(Page::Response(stored.clone())));
        let page = Arc::new(Page::Response(stored.for_all()));
        let stamps =
            if is_whole { self.store(&trip.noted, &trip.asked, &page).await } else { None };
        let told = trip.told(head.status, stamps.is_some());
        let landed = if is_whole {
            FlightResult::Page(Arc::clone(&page), stamps)
        } else {
            FlightResult::Nothing
        };
        trip.ends(Ok(Fetched::Page(own.unwrap_or(page), told)), landed);
    }

    /// Stores a page under its URL, or as a variant of it.
    async fn store(
        &self,
        noted: &TagSnapshot,
        asked: &RequestHead,
        page: &Arc<Page>,
    ) -> Option<Stamps> {
        let Page::Response(stored) = &**page else { return None };
        let kept = stored.freshness.kept(has_validator(stored.headers()));
        let tags: Vec<Arc<str>> = tags_of(stored.headers())?;
        let options = Options::ttl(kept).jitter(0.0).refresh_ahead(false);
        let pages = &self.shared.pages;
        if !stored.vary.is_empty() {
            let names = stored.vary.iter().map(|(name, _)| name.clone()).collect();
            let varies = Arc::new(Page::Varies(names));
            // Lives as long as any of the variants may.
            let options = Options { ttl: kept.max(Duration::from_hours(24)), ..options.clone() };
            pages.put_if_current(noted, &asked.url, &options, &[], varies).await?;
        }
        let key = self.key(&asked.url, &stored.vary);
        pages.put_if_current(noted, &key, &options, &tags, Arc::clone(page)).await
    }
}

/// Decision about which request fetches.
enum Seat {
    /// This request fetches; others wait for its flight, if it has one.
    Own(Option<Flight>),
    /// Another request has fetched the page, with this status from the origin.
    Shared(Arc<Page>, StatusCode),
}

/// Decision about a response.
enum Verdict {
    Store(Freshness),
    /// The response would be stored if another client had asked.
    Personal,
    /// The response is in a coding that was not accepted.
    Odd,
    Pass,
}

impl<B: Body, E> Trip<B, E> {
    fn told(&self, status: StatusCode, stored: bool) -> CacheStatus {
        CacheStatus::Forwarded { why: self.why, status, stored, collapsed: false }
    }

    /// Sends the response to the client, and its result to the waiting requests.
    fn ends(self, fetched: Result<Fetched<B>, E>, landed: FlightResult) {
        if let Some(flight) = self.flight {
            flight.land(landed);
        }
        let _ = self.client.send(fetched);
    }

    /// Sends a response that is not stored.
    fn passes(self, mut head: Parts, body: HttpCacheBody<B>, landed: FlightResult)
    where
        B: Body<Data = Bytes>,
    {
        strip_connection(&mut head.headers);
        let told = self.told(head.status, false);
        let status = head.status;
        spare_body(&self.asked.headers, &mut head.status, &mut head.headers);
        let body = if head.status == status { body } else { HttpCacheBody::whole(Bytes::new()) };
        self.ends(Ok(Fetched::Passed(Response::from_parts(head, body), told)), landed);
    }
}

/// Returns whether a body has the length that its head states: otherwise it was cut off, or belongs
/// to another response.
fn agrees(headers: &HeaderMap, length: usize) -> bool {
    let said = headers
        .get(CONTENT_LENGTH)
        .map(|said| std::str::from_utf8(said.as_bytes()).ok().and_then(|said| said.parse().ok()));
    said.is_none_or(|said: Option<usize>| said == Some(length))
}

/// Calls a service as soon as it is ready.
pub(super) async fn called<S: Service<R>, R>(
    mut inner: S,
    request: R,
) -> Result<S::Response, S::Error> {
    std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
    inner.call(request).await
}
