//! Webhooks: events sent to URLs of customers, as the specification Standard Webhooks says.
//!
//! | when | then |
//! | --- | --- |
//! | an event is sent again | its `webhook-id` is the same, its timestamp and signature are new |
//! | the receiver answers 2xx | the job is done |
//! | the receiver answers 410 | the job is dead at once; the application turns the endpoint off |
//! | the receiver answers 429 or 503 with `Retry-After` in seconds | the job waits as long, 5 s to an hour, and no attempt is counted; after three days it is |
//! | any other answer, also a redirect, or none within 20 s | the attempt has failed |
//! | the address is not a public one | the job is dead at once: nobody reaches the own network through it |
//! | one receiver is slow | it occupies at most 4 places of a worker |

use std::future::{Future, ready};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use scale_queue::outcome::{Discard, Snooze};
use scale_queue::worker::{BoxError, State};
use scale_queue::{Context, Job, Limit, Retry};
use serde::{Deserialize, Serialize};
use standardwebhooks::Webhook;
use tower::Service;

/// Longest pause that a receiver can ask for.
const LONGEST_PAUSE: u64 = 3_600;

/// Time for which it can do so.
const LONGEST_WAIT: Duration = Duration::from_hours(3 * 24);

/// An event to be sent. The secret is not part of the job: it is read when the job runs, so that it
/// is in no store of jobs and can be changed.
#[derive(Serialize, Deserialize)]
pub struct SendWebhook {
    /// Number of the endpoint, by which the application finds its secret.
    pub endpoint: i64,
    /// Address of the receiver.
    pub url: String,
    /// Name of the event, for example `order.paid`.
    pub event: String,
    /// Content of the event.
    pub data: serde_json::Value,
}

impl Job for SendWebhook {
    const NAME: &'static str = "webhook";
    const QUEUE: &'static str = "webhooks";
    const RETRY: Retry = Retry::exponential(12).first(Duration::from_secs(5));
    const TIMEOUT: Duration = Duration::from_secs(20);

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::concurrent(format!("webhook:{}", self.endpoint), 4)]
    }
}

/// Sender of webhooks: the state of a worker.
#[derive(Clone)]
pub struct Webhooks {
    client: Client<HttpsConnector<HttpConnector<PublicOnly>>, Full<Bytes>>,
    secrets: Arc<Secrets>,
    resolver: PublicOnly,
}

/// Returns the secret of an endpoint, `whsec_…`.
type Secrets = dyn Fn(i64) -> Option<String> + Send + Sync;

impl Webhooks {
    /// Creates a sender that finds secrets by a function of the application.
    pub fn new(secrets: impl Fn(i64) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::with(secrets, PublicOnly { allows_private: false })
    }

    /// Creates a sender that also sends to private addresses. For tests: a customer could reach
    /// services of the own network.
    pub fn to_any_address(secrets: impl Fn(i64) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::with(secrets, PublicOnly { allows_private: true })
    }

    fn with(
        secrets: impl Fn(i64) -> Option<String> + Send + Sync + 'static,
        resolver: PublicOnly,
    ) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(resolver.clone());
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(Duration::from_secs(5)));
        let tls = HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new()).build(tls.wrap_connector(tcp));
        Self { client, secrets: Arc::new(secrets), resolver }
    }
}

/// Handles a job.
pub async fn send(
    State(webhooks): State<Webhooks>,
    job: SendWebhook,
    context: Context,
) -> Result<(), BoxError> {
    let secret = (webhooks.secrets)(job.endpoint);
    let secret = secret.ok_or_else(|| Discard::because("the endpoint is gone"))?;
    let url: Uri = job.url.parse().map_err(|_| Discard::because("the URL is invalid"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
        return Err(Discard::because("the URL is no address of the web").into());
    }
    // An address in the URL is not resolved, so it is checked here.
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    if host.parse().is_ok_and(|address| !webhooks.resolver.allows(address)) {
        return Err(Discard::because("the URL leads to no public address").into());
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() as i64;
    let body = serde_json::json!({ "type": job.event, "timestamp": now, "data": job.data });
    let body = serde_json::to_vec(&body)?;
    let id = context.id.to_string();
    let signature = Webhook::new(&secret)?.sign(&id, now, &body)?;
    let request = Request::post(url)
        .header(CONTENT_TYPE, "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", now)
        .header("webhook-signature", signature)
        .body(Full::from(body))?;
    let response = match webhooks.client.request(request).await {
        Ok(response) => response,
        Err(error) if is_private(&error) => {
            return Err(Discard::because("the URL leads to no public address").into());
        }
        Err(error) => return Err(error.into()),
    };
    // The content of the answer is not read: it is the receiver's, of any size.
    let status = response.status();
    let pause = response.headers().get(RETRY_AFTER);
    let pause = pause.and_then(|seconds| seconds.to_str().ok()?.parse::<u64>().ok());
    match (status, pause) {
        (status, _) if status.is_success() => Ok(()),
        (StatusCode::GONE, _) => Err(Discard::because("the receiver wants no more events").into()),
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, Some(seconds))
            if context.waited < LONGEST_WAIT =>
        {
            Err(Snooze::after(Duration::from_secs(seconds.clamp(5, LONGEST_PAUSE))).into())
        }
        (status, _) => Err(format!("the receiver answered {status}").into()),
    }
}

/// Resolver of names that returns public addresses only. The address to which a connection is made
/// is the one that was checked, so a name that changes its address is no way around it.
#[derive(Clone, Debug)]
struct PublicOnly {
    allows_private: bool,
}

/// Error of a name that has no public address.
#[derive(Debug, thiserror::Error)]
#[error("the name has no public address")]
struct NotPublic;

fn is_private(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An error of I/O hides the error that it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if wrapped.and_then(|wrapped| wrapped.downcast_ref::<NotPublic>()).is_some() {
            return true;
        }
        next = error.source();
    }
    false
}

impl PublicOnly {
    fn allows(&self, address: IpAddr) -> bool {
        self.allows_private || is_public(address)
    }
}

impl Service<Name> for PublicOnly {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        if name.as_str().is_empty() {
            return Box::pin(ready(Err(io::Error::other("no name"))));
        }
        let this = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<_> = found.filter(|address| this.allows(address.ip())).collect();
            if public.is_empty() {
                Err(io::Error::other(NotPublic))
            } else {
                Ok(public.into_iter())
            }
        })
    }
}

/// Returns whether an address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || a == 100 && (64..128).contains(&b)
                || a == 198 && (b == 18 || b == 19)
                || a == 192 && b == 0)
        }
        IpAddr::V6(v6) => {
            let [first, second, ..] = v6.segments();
            // Global unicast, without the ranges that translate to IPv4 or are reserved.
            first & 0xe000 == 0x2000
                && !(first == 0x2001 && second < 0x0200)
                && !(first == 0x2001 && second == 0x0db8)
                && first != 0x2002
                && v6 != Ipv6Addr::UNSPECIFIED
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_own_network_are_no_public_ones() {
        for own in [
            "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
            "0.0.0.0", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.0.8", "240.0.0.1",
            "::1", "::", "fc00::1", "fe80::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1",
            "64:ff9b::a00:1", "2002:7f00:1::", "2001:db8::1", "2001::1", "ff02::1",
        ] {
            assert!(!is_public(own.parse().unwrap()), "{own}");
        }
        for public in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2001:4860:4860::8888"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
