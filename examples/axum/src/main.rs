//! The guest book on axum: `cargo run`, then `curl 127.0.0.1:3000` and
//! `curl -d text=Hello 127.0.0.1:3000`.

mod guestbook;

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::{Form, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Router, serve};
use guestbook::Guestbook;
use scale_db::StickyLayer;
use scale_limit::LimitLayer;
use scale_limit::client::ClientIp;
use scale_limit::layer::Throttle;
use scale_session::Session;
use serde::Deserialize;

/// An error of a handler: logged, and 500 for the client.
struct Failed(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        eprintln!("{:#}", self.0);
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

#[derive(Deserialize)]
struct Entry {
    text: String,
}

async fn page(State(book): State<Guestbook>, session: Session) -> Result<String, Failed> {
    Ok(book.page(&session).await?)
}

async fn write(
    State(book): State<Guestbook>,
    Form(entry): Form<Entry>,
) -> Result<Redirect, Failed> {
    book.write(entry.text).await?;
    Ok(Redirect::to("/"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let book = Guestbook::connect().await?;
    // Behind a proxy, `ClientIp::behind` reads the header that the proxy writes.
    let clients = ClientIp::direct();
    let entries = Throttle::new(Guestbook::entries_per_client(), move |head| clients.key(head));
    let limits = LimitLayer::new(book.limiter.clone()).throttle(entries.method(Method::POST));
    let worker = tokio::spawn(book.clone().work());
    let app = Router::new()
        .route("/", get(page).post(write))
        .layer(book.sessions.clone())
        // A visitor reads their own entry, also from a replica.
        .layer(StickyLayer::new(book.db.clone()))
        .layer(limits.preserve_body(Body::new))
        .with_state(book);
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = tokio::net::TcpListener::bind(address).await?;
    serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    worker.await?
}
