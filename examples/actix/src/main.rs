//! The guest book on actix-web, which does not use tower: the middleware here opens and closes the
//! session, and asks the limiter. `cargo run`, then `curl 127.0.0.1:3000` and
//! `curl -d text=Hello 127.0.0.1:3000`.

mod guestbook;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::{ErrorInternalServerError, ErrorServiceUnavailable};
use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, COOKIE, HeaderName, HeaderValue, RETRY_AFTER, VARY};
use actix_web::middleware::{Next, from_fn};
use actix_web::web::{self, Data, Form, Redirect};
use actix_web::{App, Error, FromRequest, HttpMessage, HttpRequest, HttpResponse, HttpServer};
use guestbook::Guestbook;
use scale_db::sticky;
use scale_limit::client::prefix;
use scale_session::Session;
use serde::Deserialize;

/// Opens the session before the handler and closes it afterwards, for every status of the response.
async fn with_session(
    book: Data<Guestbook>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let session = book.sessions.open(request.headers().get_all(COOKIE).map(HeaderValue::as_bytes));
    request.extensions_mut().insert(session.clone());
    // Within the request, reads after a write go to the primary.
    let mut answer = sticky::scope(None, next.call(request)).await?;
    // actix has its own header types.
    let mut headers = http::HeaderMap::new();
    for (old, new) in [(CACHE_CONTROL, http::header::CACHE_CONTROL), (VARY, http::header::VARY)] {
        for value in answer.headers_mut().remove(old) {
            let value = http::HeaderValue::from_bytes(value.as_bytes());
            headers.append(&new, value.map_err(ErrorInternalServerError)?);
        }
    }
    session.close(&mut headers).await.map_err(ErrorServiceUnavailable)?;
    for (name, value) in &headers {
        let name = HeaderName::from_bytes(name.as_ref()).map_err(ErrorInternalServerError)?;
        answer.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes())?);
    }
    Ok(answer)
}

async fn limited<B: MessageBody>(
    book: Data<Guestbook>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    if request.method() == Method::POST {
        // Behind a proxy, use `scale_limit::client::ClientIp` to find the client's address.
        let client = request.peer_addr().map_or_else(|| "nobody".into(), |peer| prefix(peer.ip()));
        let decision = book.limiter.check(&Guestbook::entries_per_client(), &client).await;
        if !decision.admitted {
            let wait = decision.retry_after().map_or(1, |wait| wait.as_secs() + 1);
            let refused =
                HttpResponse::TooManyRequests().insert_header((RETRY_AFTER, wait)).finish();
            return Ok(request.into_response(refused).map_into_right_body());
        }
    }
    Ok(next.call(request).await?.map_into_left_body())
}

/// Session of the request, as an argument of a handler.
struct Mine(Session);

impl FromRequest for Mine {
    type Error = Error;
    type Future = std::future::Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let session = request.extensions().get::<Session>().cloned();
        std::future::ready(
            session.map(Self).ok_or_else(|| ErrorInternalServerError("no session middleware")),
        )
    }
}

#[derive(Deserialize)]
struct Entry {
    text: String,
}

async fn page(book: Data<Guestbook>, Mine(session): Mine) -> Result<String, Error> {
    book.page(&session).await.map_err(ErrorInternalServerError)
}

async fn write(book: Data<Guestbook>, Form(entry): Form<Entry>) -> Result<Redirect, Error> {
    book.write(entry.text).await.map_err(ErrorInternalServerError)?;
    Ok(Redirect::to("/").see_other())
}

#[actix_web::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let book = Guestbook::connect().await?;
    let worker = tokio::spawn(book.clone().work());
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let server = HttpServer::new(move || {
        App::new()
            .app_data(Data::new(book.clone()))
            .route("/", web::get().to(page))
            .route("/", web::post().to(write))
            .wrap(from_fn(with_session))
            .wrap(from_fn(limited))
    });
    server.bind(address)?.run().await?;
    worker.await?
}
