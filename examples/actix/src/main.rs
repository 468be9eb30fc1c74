//! Sessions and a limit in actix-web. `cargo run -p actix`, or with `SHARED=redis://…` for several
//! servers: the same code.

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::{ErrorInternalServerError, ErrorServiceUnavailable};
use actix_web::http::header::{CACHE_CONTROL, COOKIE, HeaderName, HeaderValue, RETRY_AFTER, VARY};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, Error, FromRequest, HttpMessage, HttpRequest, HttpResponse, HttpServer, web};
use scale_limit::client::prefix;
use scale_limit::{Limiter, Policy};
use scale_session::{Config, Session, SessionLayer};

/// State shared by all requests.
#[derive(Clone)]
struct Shared {
    sessions: SessionLayer,
    limiter: Limiter,
    per_client: Policy,
}

impl Shared {
    async fn connect(url: &str) -> anyhow::Result<Self> {
        Ok(Self {
            sessions: SessionLayer::connect(url, "actix", Config::default()).await?,
            limiter: Limiter::connect(url, "actix").await?,
            per_client: Policy::per_minute("per-client", 60),
        })
    }

    /// Middleware that opens the session before the handler and closes it afterwards, for every
    /// status of the response.
    async fn with_session(
        shared: web::Data<Self>,
        request: ServiceRequest,
        next: Next<impl MessageBody>,
    ) -> Result<ServiceResponse<impl MessageBody>, Error> {
        let session =
            shared.sessions.open(request.headers().get_all(COOKIE).map(HeaderValue::as_bytes));
        request.extensions_mut().insert(session.clone());
        let mut answer = next.call(request).await?;
        // actix has its own header types.
        let mut headers = http::HeaderMap::new();
        for (old, new) in [(CACHE_CONTROL, http::header::CACHE_CONTROL), (VARY, http::header::VARY)]
        {
            for value in answer.headers_mut().remove(old) {
                headers.append(
                    &new,
                    http::HeaderValue::from_bytes(value.as_bytes())
                        .map_err(ErrorInternalServerError)?,
                );
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
        shared: web::Data<Self>,
        request: ServiceRequest,
        next: Next<B>,
    ) -> Result<ServiceResponse<EitherBody<B>>, Error> {
        // Behind a proxy, use `scale_limit::client::ClientIp` to find the client's address.
        let client = request.peer_addr().map_or_else(|| "nobody".into(), |peer| prefix(peer.ip()));
        let decision = shared.limiter.check(&shared.per_client, &client).await;
        if decision.admitted {
            return Ok(next.call(request).await?.map_into_left_body());
        }
        let wait = decision.retry_after().map_or(1, |wait| wait.as_secs() + 1);
        let refused = HttpResponse::TooManyRequests().insert_header((RETRY_AFTER, wait)).finish();
        Ok(request.into_response(refused).map_into_right_body())
    }
}

/// Session of the request, as an argument of a handler.
struct Mine(Session);

impl FromRequest for Mine {
    type Error = Error;
    type Future = std::future::Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let session = request.extensions().get::<Session>().cloned();
        std::future::ready(
            session.map(Self).ok_or_else(|| ErrorServiceUnavailable("no session middleware")),
        )
    }
}

async fn visits(Mine(session): Mine) -> Result<String, Error> {
    Ok(format!(
        "visit {}\n",
        session.increment("visits", 1).await.map_err(ErrorServiceUnavailable)?
    ))
}

/// The application: a macro, because the type of an actix application cannot be written down.
macro_rules! app {
    ($shared:expr) => {
        App::new()
            .app_data(web::Data::new($shared))
            .route("/", web::get().to(visits))
            .wrap(from_fn(Shared::with_session))
            .wrap(from_fn(Shared::limited))
    };
}

#[actix_web::main]
async fn main() -> anyhow::Result<()> {
    let shared =
        Shared::connect(&std::env::var("SHARED").unwrap_or_else(|_| "memory:".into())).await?;
    HttpServer::new(move || app!(shared.clone())).bind(("127.0.0.1", 8080))?.run().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::SET_COOKIE;
    use actix_web::test::{TestRequest, call_service, init_service, read_body};

    #[actix_web::test]
    async fn visits_are_counted_for_each_visitor_and_limited_for_each_client() -> anyhow::Result<()>
    {
        let shared = Shared {
            per_client: Policy::per_minute("per-client", 4),
            ..Shared::connect("memory:").await?
        };
        let app = init_service(app!(shared)).await;
        let ask = |cookie: Option<HeaderValue>| {
            let request = TestRequest::get().uri("/").peer_addr(([203, 0, 113, 7], 4_711).into());
            let request = cookie
                .into_iter()
                .fold(request, |request, cookie| request.insert_header((COOKIE, cookie)));
            call_service(&app, request.to_request())
        };
        let first = ask(None).await;
        let cookie = first
            .headers()
            .get(SET_COOKIE)
            .and_then(|cookie| cookie.to_str().ok()?.split(';').next()?.parse().ok());
        assert!(cookie.is_some(), "a cookie was set");
        assert_eq!(
            first.headers().get(CACHE_CONTROL),
            Some(&HeaderValue::from_static("no-store")),
            "no cache keeps that"
        );
        assert_eq!(read_body(first).await, "visit 1\n");
        let second = ask(cookie.clone()).await;
        assert!(second.headers().get(SET_COOKIE).is_none());
        assert_eq!(second.headers().get(CACHE_CONTROL), Some(&HeaderValue::from_static("private")));
        assert_eq!(second.headers().get(VARY), Some(&HeaderValue::from_static("cookie")));
        assert_eq!(read_body(second).await, "visit 2\n");
        assert_eq!(read_body(ask(None).await).await, "visit 1\n", "somebody else");
        assert_eq!(read_body(ask(cookie.clone()).await).await, "visit 3\n");
        let fifth = ask(cookie).await;
        assert_eq!(fifth.status(), 429);
        assert!(fifth.headers().contains_key(RETRY_AFTER));
        Ok(())
    }
}
