//! A caching reverse proxy, made of the layer and of hyper.
//!
//! ```text
//! cargo run --release -p scale-cache --features http --example caching_proxy -- \
//!     --listen 127.0.0.1:8001 --origin http://127.0.0.1:8000
//! ```
//!
//! The proxy may have any origin, so it applies RFC 9111 literally
//! ([`HttpCacheLayer::as_the_standard_permits`]); for your own application, omit that setting.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Error};
use bytes::Bytes;
use clap::Parser;
use http::header::CONNECTION;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use scale_cache::Cache;
use scale_cache::http::HttpCacheLayer;
use tower::{Layer, Service, ServiceExt, service_fn};

type Body = UnsyncBoxBody<Bytes, Error>;

#[derive(Parser)]
struct Arguments {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
    /// Origin of responses: a scheme and an authority.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    origin: Uri,
    /// Store of responses: `memory:` or, with the feature `redis`, a Redis address.
    #[arg(long, default_value = "memory:")]
    cache: String,
    /// Maximum number of seconds without data from a body that is being stored.
    #[arg(long, default_value_t = 6)]
    stall_timeout: u64,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let cache = Cache::connect(&arguments.cache, "proxy").await?;
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
    let origin = arguments.origin.authority().cloned().context("the origin needs an authority")?;
    let forward = service_fn(move |mut request: Request<Body>| {
        let (client, origin) = (client.clone(), origin.clone());
        async move {
            let mut uri = std::mem::take(request.uri_mut()).into_parts();
            (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(origin));
            uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
            *request.uri_mut() = Uri::from_parts(uri)?;
            request.headers_mut().remove(CONNECTION);
            *request.version_mut() = http::Version::HTTP_11;
            Ok::<_, Error>(
                client.request(request).await?.map(|body| body.map_err(Error::from).boxed_unsync()),
            )
        }
    });
    let proxy = HttpCacheLayer::new(&cache)
        .as_the_standard_permits()
        .stall_timeout(Duration::from_secs(arguments.stall_timeout))
        .layer(forward);

    let listener = tokio::net::TcpListener::bind(arguments.listen).await?;
    #[allow(clippy::print_stdout)]
    {
        println!("listening on http://{}", listener.local_addr()?);
    }
    loop {
        let (stream, _) = listener.accept().await?;
        let proxy = proxy.clone();
        let serve = hyper::service::service_fn(move |request: Request<Incoming>| {
            answer(proxy.clone(), request)
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), serve),
        );
    }
}

/// Answers a request; a failed origin becomes 502 Bad Gateway.
async fn answer<S, B>(proxy: S, request: Request<Incoming>) -> Result<Response<Body>, Error>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Error>,
    B: http_body::Body<Data = Bytes, Error = Error> + Send + 'static,
{
    let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
    match proxy.oneshot(request).await {
        Ok(response) => Ok(response.map(BodyExt::boxed_unsync)),
        Err(error) => {
            let text = Full::from(format!("the origin cannot be reached: {error}\n"))
                .map_err(|never| match never {});
            let mut response = Response::new(text.boxed_unsync());
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            Ok(response)
        }
    }
}
