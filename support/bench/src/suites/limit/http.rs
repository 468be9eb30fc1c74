//! Cost of the layer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use scale_limit::client::{ClientIp, Peer};
use scale_limit::{LimitLayer, Limiter, Policy};
use tower::{Layer, Service, ServiceExt};
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;
use tower_governor::key_extractor::PeerIpKeyExtractor;

use crate::Effort;
use crate::measure::{Better, Case};
use crate::report::Report;

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([203, 0, (n / 250 % 4) as u8, (n % 250) as u8], 4_711))
}

/// Returns nanoseconds per request.
async fn calls<S, R, B>(
    service: S,
    count: usize,
    request: impl Fn(usize) -> Request<B>,
) -> Result<f64>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible> + Clone,
{
    let start = Instant::now();
    for n in 0..count {
        let answer = service.clone().oneshot(request(n)).await?;
        anyhow::ensure!(answer.status() == 200, "{}", answer.status());
        std::hint::black_box(answer);
    }
    Ok(start.elapsed().as_nanos() as f64 / count as f64)
}

pub(super) async fn run(effort: Effort, report: &mut Report) {
    let count = 100_000 * effort.scale;
    let clients = ClientIp::direct();
    let ours = LimitLayer::new(Limiter::memory())
        .policy(Policy::per_second("site", 100_000_000), move |request| clients.key(request));

    let ours_in_axum = ours.clone().preserve_body(Body::new);
    let router = || Router::new().route("/", get(|| async { "hello" }));
    let asked = |n: usize| {
        let request = Request::builder()
            .uri("/")
            .extension(ConnectInfo(address(n)))
            .extension(Peer(address(n)));
        request.body(Body::empty()).unwrap_or_default()
    };
    let governor = || {
        let mut config = GovernorConfigBuilder::default().key_extractor(PeerIpKeyExtractor);
        config.per_nanosecond(1).burst_size(u32::MAX);
        config
    };
    let (Some(told), Some(quiet)) = (governor().use_headers().finish(), governor().finish()) else {
        return;
    };
    // With a state, as `axum::serve` does: routes are made once, not for each request.
    let limited = &router().layer(ours_in_axum.clone()).with_state(());
    let governed = &router().layer(GovernorLayer::new(told)).with_state(());
    let open = &router().with_state(());
    Case::new("layer", "ns", Better::Lower)
        .subject("scale-limit", move || calls(limited.clone(), count, asked))
        .subject("tower_governor", move || calls(governed.clone(), count, asked))
        .target(1.0)
        .subject("no-layer", move || calls(open.clone(), count, asked))
        .measure(effort, report)
        .await;
    let limited = &router().layer(ours_in_axum.without_headers()).with_state(());
    let governed = &router().layer(GovernorLayer::new(quiet)).with_state(());
    Case::new("layer_quiet", "ns", Better::Lower)
        .subject("scale-limit", move || calls(limited.clone(), count, asked))
        .subject("tower_governor", move || calls(governed.clone(), count, asked))
        .measure(effort, report)
        .await;

    let empty = tower::service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let asked = |n: usize| {
        Request::builder().uri("/").extension(Peer(address(n))).body(()).unwrap_or_default()
    };
    let limited = &ours.layer(empty);
    Case::new("layer_over_service", "ns", Better::Lower)
        .subject("scale-limit", move || async move {
            let with = calls(limited.clone(), count, asked).await?;
            Ok(with - calls(empty, count, asked).await?)
        })
        .subject("400-ns", || std::future::ready(Ok(400.0)))
        .target(1.0)
        .measure(effort, report)
        .await;
}
