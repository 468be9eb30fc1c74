//! An origin that the test controls, and requests to it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use scale_cache::http::{HttpCacheBody, HttpCacheLayer};
use tokio::sync::Notify;
use tower::{Layer, Service, service_fn};

pub(crate) type Body = UnsyncBoxBody<Bytes, Failed>;
pub(crate) type Answer = Response<HttpCacheBody<Body>>;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the origin failed")]
pub(crate) struct Failed;

/// An origin: responds with a function, counts its requests, and can be paused.
#[derive(Clone, Default)]
pub(crate) struct Origin {
    pub(crate) asked: Arc<Mutex<Vec<(Method, String, HeaderMap)>>>,
    pub(crate) held: Arc<AtomicUsize>,
    pub(crate) go: Arc<Notify>,
}

impl Origin {
    pub(crate) fn count(&self) -> usize {
        self.asked.lock().len()
    }

    pub(crate) fn last(&self, name: &str) -> Option<String> {
        Some(self.asked.lock().last()?.2.get(name)?.to_str().unwrap().to_owned())
    }

    /// Returns a cached application.
    pub(crate) fn cached<A>(
        &self,
        layer: &HttpCacheLayer,
        answer: A,
    ) -> impl Service<Request<Full<Bytes>>, Response = Answer, Error = Failed, Future: Send>
    + Clone
    + Send
    + use<A>
    + 'static
    where
        A: Fn(&Request<Full<Bytes>>, usize) -> Result<Response<Body>, Failed>
            + Send
            + Sync
            + 'static,
    {
        let (origin, answer) = (self.clone(), Arc::new(answer));
        layer.layer(service_fn(move |request: Request<Full<Bytes>>| {
            let (origin, answer) = (origin.clone(), Arc::clone(&answer));
            async move {
                let number = {
                    let mut asked = origin.asked.lock();
                    asked.push((
                        request.method().clone(),
                        request.uri().to_string(),
                        request.headers().clone(),
                    ));
                    asked.len()
                };
                if origin.held.load(SeqCst) > 0 {
                    origin.go.notified().await;
                }
                answer(&request, number)
            }
        }))
    }
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::from(text.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

#[allow(clippy::unnecessary_wraps)]
pub(crate) fn page(
    fields: &[(&str, &str)],
    text: impl Into<Bytes>,
) -> Result<Response<Body>, Failed> {
    let mut response = Response::builder();
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    Ok(response.body(full(text)).unwrap())
}

pub(crate) fn get(path: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::get(path).header("host", "shop.example");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

pub(crate) async fn text(answer: Answer) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

pub(crate) fn status(answer: &Answer) -> String {
    answer.headers()["cache-status"].to_str().unwrap().to_owned()
}
