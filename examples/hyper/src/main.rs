//! The guest book on hyper, with the layers of tower: `cargo run`, then `curl 127.0.0.1:3000` and
//! `curl -d text=Hello 127.0.0.1:3000`.

mod guestbook;

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use guestbook::Guestbook;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::LOCATION;
use hyper::server::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use scale_db::StickyLayer;
use scale_limit::LimitLayer;
use scale_limit::client::{ClientIp, Peer};
use scale_limit::layer::Throttle;
use scale_session::Session;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceBuilder;

/// Maximum bytes of a form.
const LARGEST: usize = 16 * 1024;

async fn answer(book: &Guestbook, request: Request<Incoming>) -> anyhow::Result<Answer> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => {
            let session = request.extensions().get::<Session>().context("no session layer")?;
            Ok(Response::new(book.page(session).await?.into()))
        }
        (&Method::POST, "/") => {
            let form = Limited::new(request.into_body(), LARGEST).collect().await;
            let Ok(form) = form else { return status(StatusCode::PAYLOAD_TOO_LARGE) };
            let form = form.to_bytes();
            let text = form_urlencoded::parse(&form).find(|(name, _)| name == "text");
            let Some((_, text)) = text else { return status(StatusCode::UNPROCESSABLE_ENTITY) };
            book.write(text.into_owned()).await?;
            let see = Response::builder().status(StatusCode::SEE_OTHER).header(LOCATION, "/");
            Ok(see.body(Full::default())?)
        }
        _ => status(StatusCode::NOT_FOUND),
    }
}

type Answer = Response<Full<Bytes>>;

fn status(status: StatusCode) -> anyhow::Result<Answer> {
    Ok(Response::builder().status(status).body(Full::default())?)
}

async fn serve(book: Guestbook, limits: LimitLayer, stream: TcpStream, from: SocketAddr) {
    let (sessions, sticky) = (book.sessions.clone(), StickyLayer::new(book.db.clone()));
    let service = ServiceBuilder::new()
        // The limits find the client's address there.
        .map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(from));
            request
        })
        .layer(limits)
        // A visitor reads their own entry, also from a replica.
        .layer(sticky)
        .layer(sessions)
        .service_fn(move |request| {
            let book = book.clone();
            async move {
                Ok::<_, Infallible>(answer(&book, request).await.unwrap_or_else(|error| {
                    eprintln!("{error:#}");
                    let mut failed = Response::new(Full::default());
                    *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    failed
                }))
            }
        });
    let service = TowerToHyperService::new(service);
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    {
        eprintln!("{from}: {error}");
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let book = Guestbook::connect().await?;
    let clients = ClientIp::direct();
    let entries = Throttle::new(Guestbook::entries_per_client(), move |head| clients.key(head));
    let limits = LimitLayer::new(book.limiter.clone()).throttle(entries.method(Method::POST));
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    let connections = async {
        loop {
            let (stream, from) = listener.accept().await?;
            tokio::spawn(serve(book.clone(), limits.clone(), stream, from));
        }
    };
    tokio::select! {
        ended = connections => ended,
        ended = book.clone().work() => ended,
    }
}
