//! Sends one request through the layer, for the tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Result;
use http::header::{COOKIE, SET_COOKIE};
use http::{Request, Response, StatusCode};
use scale_session::{Session, SessionLayer};
use tower::{Layer, ServiceExt, service_fn};

/// Creates the tables on a server.
#[cfg(feature = "sql")]
pub async fn migrate(url: &str) -> Result<()> {
    use scale_session::store::{Database, Options};

    Ok(scale_session::store::migrate(Database::connect(url, &Options::default()).await?).await?)
}

pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub type Action = Arc<dyn Fn(Session) -> Boxed<Result<String>> + Send + Sync>;

pub fn action<F, Fut>(f: F) -> Action
where
    F: Fn(Session) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String>> + Send + 'static,
{
    Arc::new(move |session| Box::pin(f(session)))
}

/// Sends a request; returns the status, the body and the cookie to send next (`None`: keep,
/// `Some("")`: cleared).
pub fn send(
    layer: &SessionLayer,
    cookie: Option<&str>,
    act: Action,
) -> Boxed<(StatusCode, String, Option<String>)> {
    let handler = service_fn(move |request: Request<()>| {
        let session = request.extensions().get::<Session>().unwrap().clone();
        let answer = act(session);
        async move {
            Ok::<_, Infallible>(match answer.await {
                Ok(body) => Response::new(body),
                Err(error) => Response::builder().status(500).body(format!("{error:#}")).unwrap(),
            })
        }
    });
    let mut request = Request::new(());
    if let Some(cookie) = cookie {
        request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
    }
    // Boxed explicitly: the compiler cannot prove `Send` for the service inside an async block.
    let response: Boxed<Result<Response<String>, Infallible>> =
        Box::pin(layer.layer(handler).oneshot(request));
    Box::pin(async move {
        let response = response.await.unwrap();
        let set = response.headers().get(SET_COOKIE).map(|c| {
            let text = c.to_str().unwrap();
            if text.contains("Max-Age=0") {
                String::new()
            } else {
                text.split(';').next().unwrap().to_owned()
            }
        });
        (response.status(), response.into_body(), set)
    })
}

pub fn get(field: &'static str) -> Action {
    action(
        move |s| async move { Ok(s.get::<String>(field).await?.unwrap_or_else(|| "none".into())) },
    )
}

pub fn put(field: String, value: &'static str) -> Action {
    action(move |s| {
        let field = field.clone();
        async move {
            s.insert(&field, value).await?;
            Ok(String::new())
        }
    })
}

pub async fn login(layer: &SessionLayer) -> String {
    send(layer, None, put("user".into(), "ann")).await.2.unwrap()
}
