//! The crate in an axum application: extractors, and errors as responses.
#![cfg(all(feature = "axum", feature = "auth"))]
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http::header::{COOKIE, RETRY_AFTER, SET_COOKIE};
use http::{Request, StatusCode};
use scale_session::{Config, Error, Session, SessionLayer, SignedIn, auth};
use tower::ServiceExt;

async fn visits(session: Session) -> Result<String, Error> {
    Ok(format!("visit {}", session.increment("visits", 1).await?))
}

/// Session and sign-in errors in one handler, by `?` alone.
async fn log_in(session: Session) -> Result<(), auth::Error> {
    let passwords = auth::Passwords::default();
    let hash = passwords.hash("correct horse").await?;
    if passwords.verify("correct horse", Some(&hash)).await?.is_yes() {
        session.sign_in("ann", "a test").await?;
    }
    Ok(())
}

async fn orders(SignedIn { user, .. }: SignedIn) -> String {
    user
}

async fn home(signed_in: Option<SignedIn>) -> String {
    signed_in.map_or("nobody".into(), |signed_in| signed_in.user)
}

fn routes() -> Router {
    Router::new()
        .route("/visits", get(visits))
        .route("/log-in", post(log_in))
        .route("/orders", get(orders))
        .route("/", get(home))
}

async fn ask(
    app: &Router,
    method: &str,
    path: &str,
    cookie: Option<&str>,
) -> (StatusCode, String, Option<String>) {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(cookie) = cookie {
        request = request.header(COOKIE, cookie);
    }
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let set = response
        .headers()
        .get(SET_COOKIE)
        .map(|c| c.to_str().unwrap().split(';').next().unwrap().to_owned());
    let status = response.status();
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    (status, String::from_utf8_lossy(&body).into_owned(), set)
}

/// A body that ends when its user is signed out, on any server.
#[tokio::test]
async fn a_stream_of_events_ends_with_its_session() -> Result<()> {
    use futures_util::{StreamExt, stream};
    async fn events(SignedIn { session, .. }: SignedIn) -> Body {
        let news =
            stream::repeat(Ok::<_, std::convert::Infallible>("news\n")).then(|news| async move {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                news
            });
        let ended = async move { session.watch(std::time::Duration::from_millis(20)).await };
        Body::from_stream(news.take_until(Box::pin(ended)))
    }
    let sessions = SessionLayer::connect("memory:", "shop", Config::default()).await?;
    let app = routes().route("/events", get(events)).layer(sessions.clone());
    let cookie = ask(&app, "POST", "/log-in", None).await.2.unwrap();
    let request = Request::builder().uri("/events").header(COOKIE, &cookie).body(Body::empty())?;
    let mut body = app.clone().oneshot(request).await?.into_body().into_data_stream();
    for _ in 0..10 {
        assert!(body.next().await.is_some());
    }
    sessions.revoke_all_of("ann").await?;
    let rest = tokio::time::timeout(std::time::Duration::from_secs(10), body.count()).await?;
    assert!(rest < 500, "{rest} more");
    Ok(())
}

#[tokio::test]
async fn handlers_take_sessions_and_return_errors() -> Result<()> {
    let app = routes().layer(SessionLayer::connect("memory:", "shop", Config::default()).await?);
    assert_eq!(ask(&app, "GET", "/visits", None).await.1, "visit 1");
    assert_eq!(ask(&app, "GET", "/orders", None).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&app, "GET", "/", None).await.1, "nobody");
    let (status, _, cookie) = ask(&app, "POST", "/log-in", None).await;
    assert_eq!(status, StatusCode::OK);
    for path in ["/orders", "/"] {
        assert_eq!(ask(&app, "GET", path, cookie.as_deref()).await.1, "ann");
    }
    Ok(())
}

/// A missing layer must not silently admit or refuse all users.
#[tokio::test]
async fn without_a_layer_handlers_are_not_entered() {
    for path in ["/visits", "/orders", "/"] {
        let (status, body, _) = ask(&routes(), "GET", path, None).await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::INTERNAL_SERVER_ERROR, "something went wrong")
        );
    }
}

#[tokio::test]
async fn errors_are_responses_that_tell_nothing_of_the_inside() {
    let io = || Box::new(std::io::Error::other("password=hunter2"));
    let cases = [
        (Error::Store(io()).into_response(), StatusCode::SERVICE_UNAVAILABLE, true),
        (Error::Gone.into_response(), StatusCode::CONFLICT, false),
        (Error::Replaced.into_response(), StatusCode::CONFLICT, false),
        (Error::TooLarge("x").into_response(), StatusCode::PAYLOAD_TOO_LARGE, false),
        (Error::Closed.into_response(), StatusCode::INTERNAL_SERVER_ERROR, false),
        (auth::Error::OneTimeStore(io()).into_response(), StatusCode::SERVICE_UNAVAILABLE, true),
        (
            auth::Error::from(Error::Store(io())).into_response(),
            StatusCode::SERVICE_UNAVAILABLE,
            true,
        ),
        (auth::Error::Stored("password").into_response(), StatusCode::INTERNAL_SERVER_ERROR, false),
        (
            auth::Error::Password("is too short").into_response(),
            StatusCode::UNPROCESSABLE_ENTITY,
            false,
        ),
    ];
    for (response, status, later) in cases {
        assert_eq!(
            (response.status(), response.headers().contains_key(RETRY_AFTER)),
            (status, later)
        );
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        let body = String::from_utf8_lossy(&body);
        assert!(!body.contains("hunter2") && !body.is_empty(), "{body}");
        assert_eq!(body.contains("too short"), status == StatusCode::UNPROCESSABLE_ENTITY);
    }
    let busy = auth::Error::Busy { retry_after: std::time::Duration::from_secs(7) }.into_response();
    assert_eq!(busy.headers()[RETRY_AFTER], "7");
}
