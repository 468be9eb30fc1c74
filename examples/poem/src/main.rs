//! The guest book on poem, whose requests are of a type of its own: the middleware here opens and
//! closes the session, and asks the limiter. `cargo run`, then `curl 127.0.0.1:3000` and
//! `curl -d text=Hello 127.0.0.1:3000`.

mod guestbook;

use guestbook::Guestbook;
use poem::error::{InternalServerError, ServiceUnavailable};
use poem::http::header::{COOKIE, HeaderValue, RETRY_AFTER};
use poem::http::{Method, StatusCode};
use poem::listener::TcpListener;
use poem::web::{Data, Form, Redirect};
use poem::{
    Endpoint, EndpointExt, IntoResponse, Request, Response, Result, Route, Server, get, handler,
};
use scale_db::sticky;
use scale_limit::client::prefix;
use scale_session::Session;
use serde::Deserialize;

/// Opens the session before the handler and closes it afterwards, for every status of the response.
async fn with_session<E: Endpoint>(
    book: Guestbook,
    next: E,
    mut request: Request,
) -> Result<Response> {
    let cookies = request.headers().get_all(COOKIE).into_iter().map(HeaderValue::as_bytes);
    let session = book.sessions.open(cookies);
    request.extensions_mut().insert(session.clone());
    // Within the request, reads after a write go to the primary.
    let mut answer = sticky::scope(None, next.get_response(request)).await;
    session.close(answer.headers_mut()).await.map_err(ServiceUnavailable)?;
    Ok(answer)
}

async fn limited<E: Endpoint>(book: Guestbook, next: E, request: Request) -> Result<Response> {
    if request.method() == Method::POST {
        // Behind a proxy, use `scale_limit::client::ClientIp` to find the client's address.
        let peer = request.remote_addr().as_socket_addr();
        let client = peer.map_or_else(|| "nobody".into(), |peer| prefix(peer.ip()));
        let decision = book.limiter.check(&Guestbook::entries_per_client(), &client).await;
        if !decision.admitted {
            let wait = decision.retry_after().map_or(1, |wait| wait.as_secs() + 1);
            let refused = Response::builder().status(StatusCode::TOO_MANY_REQUESTS);
            return Ok(refused.header(RETRY_AFTER, wait).finish());
        }
    }
    Ok(next.call(request).await?.into_response())
}

#[derive(Deserialize)]
struct Entry {
    text: String,
}

#[handler]
async fn page(Data(book): Data<&Guestbook>, Data(session): Data<&Session>) -> Result<String> {
    book.page(session).await.map_err(|error| InternalServerError(Failed(error)))
}

#[handler]
async fn write(Data(book): Data<&Guestbook>, Form(entry): Form<Entry>) -> Result<Redirect> {
    book.write(entry.text).await.map_err(|error| InternalServerError(Failed(error)))?;
    Ok(Redirect::see_other("/"))
}

/// An error of the guest book, as poem wants it.
#[derive(Debug)]
struct Failed(anyhow::Error);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failed {}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let book = Guestbook::connect().await?;
    let worker = tokio::spawn(book.clone().work());
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let (sessions, limits) = (book.clone(), book.clone());
    let app = Route::new()
        .at("/", get(page).post(write))
        .data(book)
        .around(move |next, request| with_session(sessions.clone(), next, request))
        .around(move |next, request| limited(limits.clone(), next, request));
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    Server::new(TcpListener::bind(address)).run_with_graceful_shutdown(app, stop, None).await?;
    worker.await?
}
