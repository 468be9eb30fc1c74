//! Sessions and limits in tonic: `cargo run`, or with `SHARED=redis://…` for several servers.
//!
//! The service is gRPC's own health check, so that the example needs no protobuf compiler. It
//! counts how often a visitor has called it.

use scale_limit::client::ClientIp;
use scale_limit::{LimitLayer, Limiter, Policy};
use scale_session::{Config, Session, SessionLayer};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

struct Visits;

#[tonic::async_trait]
impl Health for Visits {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        // Extensions of the HTTP request are also those of the call.
        let session = request
            .extensions()
            .get::<Session>()
            .ok_or_else(|| Status::internal("no SessionLayer around this service"))?;
        let visits = session
            .increment("visits", 1)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let mut response =
            Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() });
        response.metadata_mut().insert("visits", visits.into());
        Ok(response)
    }

    type WatchStream = tonic::codegen::BoxStream<HealthCheckResponse>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only `check` is implemented"))
    }
}

/// Connects the layers: sessions, and a limit of five calls a minute for each client.
async fn layers(shared: &str) -> anyhow::Result<(SessionLayer, LimitLayer)> {
    let sessions = SessionLayer::connect(shared, "visits", Config::default()).await?;
    let (limiter, clients) = (Limiter::connect(shared, "visits").await?, ClientIp::direct());
    let limits = LimitLayer::new(limiter)
        .policy(Policy::per_minute("calls", 5), move |head| clients.key(head));
    Ok((sessions, limits))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let shared = std::env::var("SHARED").unwrap_or_else(|_| "memory:".into());
    let (sessions, limits) = layers(&shared).await?;
    Ok(Server::builder()
        .layer(limits)
        .layer(sessions)
        .add_service(HealthServer::new(Visits))
        .serve(([127, 0, 0, 1], 50_051).into())
        .await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Endpoint;
    use tonic_health::pb::health_client::HealthClient;

    #[tokio::test]
    async fn visits_are_counted_for_each_visitor_and_limited_for_each_client() -> anyhow::Result<()>
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let (sessions, limits) = layers("memory:").await?;
        let server =
            Server::builder().layer(limits).layer(sessions).add_service(HealthServer::new(Visits));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let client = HealthClient::new(Endpoint::from_shared(address)?.connect().await?);
        let ask = async |cookie: Option<&str>| -> anyhow::Result<Response<HealthCheckResponse>> {
            let mut request = Request::new(HealthCheckRequest::default());
            if let Some(cookie) = cookie {
                request.metadata_mut().insert("cookie", cookie.parse()?);
            }
            Ok(client.clone().check(request).await?)
        };
        let visits = |answer: &Response<HealthCheckResponse>| {
            answer.metadata().get("visits").map(|n| n.as_bytes().to_vec())
        };
        let first = ask(None).await?;
        assert_eq!(visits(&first).as_deref(), Some(&b"1"[..]));
        let cookie = first
            .metadata()
            .get("set-cookie")
            .and_then(|cookie| cookie.to_str().ok()?.split(';').next());
        assert!(cookie.is_some(), "a cookie was set");
        let second = ask(cookie).await?;
        assert_eq!(visits(&second).as_deref(), Some(&b"2"[..]));
        assert!(second.metadata().get("set-cookie").is_none());
        assert_eq!(visits(&ask(None).await?).as_deref(), Some(&b"1"[..]), "somebody else");
        ask(None).await?;
        ask(None).await?;
        let sixth = ask(None).await.unwrap_err();
        let status = sixth.downcast::<Status>()?;
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        Ok(())
    }
}
