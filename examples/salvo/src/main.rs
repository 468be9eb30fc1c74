//! The guest book on salvo: `cargo run`, then `curl 127.0.0.1:3000` and
//! `curl -d text=Hello 127.0.0.1:3000`.

mod guestbook;

use guestbook::Guestbook;
use salvo::http::header::{COOKIE, HeaderValue, RETRY_AFTER};
use salvo::prelude::*;
use scale_limit::client::prefix;
use scale_session::Session;

/// Opens the session before the handlers and closes it after them, for every status of the
/// response.
struct WithSession(Guestbook);

#[async_trait]
impl Handler for WithSession {
    async fn handle(
        &self,
        request: &mut Request,
        depot: &mut Depot,
        response: &mut Response,
        next: &mut FlowCtrl,
    ) {
        let cookies = request.headers().get_all(COOKIE).into_iter().map(HeaderValue::as_bytes);
        let session = self.0.sessions.open(cookies);
        depot.insert_typed(session.clone());
        // Within the request, reads after a write go to the primary.
        scale_db::sticky::scope(None, next.call_next(request, depot, response)).await;
        if let Err(error) = session.close(response.headers_mut()).await {
            eprintln!("{error}");
            response.status_code(StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}

/// Refuses requests over the limit.
struct Limited(Guestbook);

#[async_trait]
impl Handler for Limited {
    async fn handle(
        &self,
        request: &mut Request,
        _: &mut Depot,
        response: &mut Response,
        next: &mut FlowCtrl,
    ) {
        // Behind a proxy, use `scale_limit::client::ClientIp` to find the client's address.
        let peer = request.remote_addr().clone().into_std();
        let client = peer.map_or_else(|| "nobody".into(), |peer| prefix(peer.ip()));
        let decision = self.0.limiter.check(&Guestbook::entries_per_client(), &client).await;
        if !decision.admitted {
            let wait = decision.retry_after().map_or(1, |wait| wait.as_secs() + 1);
            response.headers_mut().insert(RETRY_AFTER, wait.into());
            response.status_code(StatusCode::TOO_MANY_REQUESTS);
            next.skip_rest();
        }
    }
}

/// An error of a handler: logged, and 500 for the client.
struct Failed(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

#[async_trait]
impl Writer for Failed {
    async fn write(self, _: &mut Request, _: &mut Depot, response: &mut Response) {
        eprintln!("{:#}", self.0);
        response.status_code(StatusCode::INTERNAL_SERVER_ERROR);
    }
}

#[handler]
async fn page(depot: &mut Depot) -> Result<String, Failed> {
    let lost = |_| anyhow::anyhow!("a handler is missing");
    let session = depot.get_typed::<Session>().map_err(lost)?;
    Ok(depot.get_typed::<Guestbook>().map_err(lost)?.page(session).await?)
}

#[handler]
async fn write(request: &mut Request, depot: &mut Depot) -> Result<Redirect, Failed> {
    let text = request.form::<String>("text").await.unwrap_or_default();
    let lost = |_| anyhow::anyhow!("a handler is missing");
    let book = depot.get_typed::<Guestbook>().map_err(lost)?;
    book.write(text).await?;
    Ok(Redirect::other("/"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let book = Guestbook::connect().await?;
    let worker = tokio::spawn(book.clone().work());
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let router = Router::new()
        .hoop(affix_state::inject(book.clone()))
        .hoop(WithSession(book.clone()))
        .get(page)
        .push(Router::new().hoop(Limited(book)).post(write));
    let server = Server::new(TcpListener::new(address).bind().await);
    let handle = server.handle();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        handle.stop_graceful(None);
    });
    server.serve(router).await;
    worker.await?
}
