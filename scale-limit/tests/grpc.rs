//! A gRPC server of tonic behind the limits, and how tonic's client interprets a refusal.
#![cfg(feature = "tonic")]
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use scale_limit::client::ClientIp;
use scale_limit::{LimitLayer, Limiter, Policy};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

#[tokio::test]
async fn a_client_is_told_by_its_address_that_it_has_asked_too_often_and_when_to_come_back()
-> Result<()> {
    let clients = ClientIp::direct();
    let limits = LimitLayer::new(Limiter::memory())
        .policy(Policy::per_hour("calls", 3), move |request| clients.key(request));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().layer(limits).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let mut client =
        HealthClient::new(Endpoint::new(format!("http://{address}"))?.connect().await?);
    let ask = || HealthCheckRequest { service: String::new() };
    for _ in 0..3 {
        client.check(ask()).await?;
    }
    let denied = client.check(ask()).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::ResourceExhausted, "too many requests"));
    let wait = denied.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(
        wait.as_secs() > 1_000 && wait.as_secs() <= 1_320,
        "a third of an hour, and a tenth of that: {wait:?}"
    );
    assert_eq!(denied.get_details_quota_failure().unwrap().violations[0].subject, "calls");
    assert!(denied.metadata().contains_key("retry-after"));
    Ok(())
}
