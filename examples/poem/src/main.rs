//! Sessions and a limit in poem. `cargo run -p poem-example`, or with `SHARED=redis://…` for
//! several servers: the same code.

use poem::error::ServiceUnavailable;
use poem::http::StatusCode;
use poem::http::header::{COOKIE, HeaderValue, RETRY_AFTER};
use poem::listener::TcpListener;
use poem::web::Data;
use poem::{
    Endpoint, EndpointExt, IntoResponse, Request, Response, Result, Route, Server, get, handler,
};
use scale_limit::client::prefix;
use scale_limit::{Limiter, Policy};
use scale_session::{Config, Session, SessionLayer};

/// Middleware that opens the session before the handler and closes it afterwards, for every status
/// of the response.
async fn with_session<E: Endpoint>(
    sessions: SessionLayer,
    next: E,
    mut request: Request,
) -> Result<Response> {
    let session =
        sessions.open(request.headers().get_all(COOKIE).into_iter().map(HeaderValue::as_bytes));
    request.extensions_mut().insert(session.clone());
    let mut answer = next.get_response(request).await;
    session.close(answer.headers_mut()).await.map_err(ServiceUnavailable)?;
    Ok(answer)
}

async fn limited<E: Endpoint>(
    limiter: Limiter,
    policy: Policy,
    next: E,
    request: Request,
) -> Result<Response> {
    // Behind a proxy, use `scale_limit::client::ClientIp` to find the client's address.
    let peer = request
        .remote_addr()
        .as_socket_addr()
        .ok_or_else(|| poem::Error::from_status(StatusCode::BAD_REQUEST))?;
    let decision = limiter.check(&policy, &prefix(peer.ip())).await;
    if decision.admitted {
        return Ok(next.call(request).await?.into_response());
    }
    let wait = decision.retry_after().map_or(1, |wait| wait.as_secs() + 1);
    Ok(Response::builder().status(StatusCode::TOO_MANY_REQUESTS).header(RETRY_AFTER, wait).finish())
}

#[handler]
async fn visits(Data(session): Data<&Session>) -> Result<String> {
    Ok(format!("visit {}\n", session.increment("visits", 1).await.map_err(ServiceUnavailable)?))
}

async fn app(shared: &str, per_client: Policy) -> anyhow::Result<impl Endpoint + use<>> {
    let sessions = SessionLayer::connect(shared, "poem", Config::default()).await?;
    let limiter = Limiter::connect(shared, "poem").await?;
    Ok(Route::new()
        .at("/", get(visits))
        .around(move |next, request| with_session(sessions.clone(), next, request))
        .around(move |next, request| limited(limiter.clone(), per_client.clone(), next, request)))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let shared = std::env::var("SHARED").unwrap_or_else(|_| "memory:".into());
    let app = app(&shared, Policy::per_minute("per-client", 60)).await?;
    Ok(Server::new(TcpListener::bind("127.0.0.1:8080")).run(app).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use poem::listener::{Acceptor, Listener};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn visits_are_counted_for_each_visitor_and_limited_for_each_client() -> anyhow::Result<()>
    {
        let app = app("memory:", Policy::per_minute("per-client", 4)).await?;
        let acceptor = TcpListener::bind("127.0.0.1:0").into_acceptor().await?;
        let address = acceptor.local_addr()[0]
            .as_socket_addr()
            .copied()
            .unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        tokio::spawn(Server::new_with_acceptor(acceptor).run(app));
        let ask = async |cookie: &str| -> anyhow::Result<String> {
            let mut stream = TcpStream::connect(address).await?;
            let request = format!(
                "GET / HTTP/1.1\r\nhost: localhost\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        let first = ask("").await?;
        assert!(
            first.contains("cache-control: no-store") && first.ends_with("visit 1\n"),
            "{first}"
        );
        let (_, cookie) = first.split_once("set-cookie: ").unwrap_or_default();
        let (cookie, _) = cookie.split_once(';').unwrap_or_default();
        let second = ask(cookie).await?;
        assert!(
            second.contains("cache-control: private") && second.contains("vary: cookie"),
            "{second}"
        );
        assert!(second.ends_with("visit 2\n") && !second.contains("set-cookie"), "{second}");
        assert!(ask("").await?.ends_with("visit 1\n"), "somebody else");
        assert!(ask(cookie).await?.ends_with("visit 3\n"));
        let fifth = ask(cookie).await?;
        assert!(fifth.starts_with("HTTP/1.1 429") && fifth.contains("retry-after: "), "{fifth}");
        Ok(())
    }
}
