//! Cost of the layer for a request, with sessions in process. `cargo bench -p scale-session`
#![allow(missing_docs)]

use std::convert::Infallible;

use divan::{AllocProfiler, Bencher};
use futures_util::FutureExt;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderValue, Request, Response};
use scale_session::{Config, Session, SessionLayer};
use tower::{Layer, Service, service_fn};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn session(request: &Request<()>) -> Option<Session> {
    request.extensions().get::<Session>().cloned()
}

fn begun(layer: &SessionLayer) -> Option<HeaderValue> {
    let mut service = layer.layer(service_fn(async |request: Request<()>| {
        if let Some(session) = session(&request) {
            let _ = session.insert("user", "ann").await;
        }
        Ok::<_, Infallible>(Response::new(()))
    }));
    let answer = service.call(Request::new(())).now_or_never()?.ok()?;
    answer.headers().get(SET_COOKIE)?.to_str().ok()?.split(';').next()?.parse().ok()
}

fn asked(cookie: Option<&HeaderValue>) -> Request<()> {
    let mut request = Request::new(());
    if let Some(cookie) = cookie {
        request.headers_mut().insert(COOKIE, cookie.clone());
    }
    request
}

#[divan::bench]
fn untouched(bencher: Bencher<'_, '_>) {
    let layer = SessionLayer::memory(Config::default());
    let cookie = begun(&layer);
    let mut service =
        layer.layer(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(()))));
    bencher
        .with_inputs(|| asked(cookie.as_ref()))
        .bench_local_values(|request| service.call(request).now_or_never());
}

#[divan::bench]
fn read(bencher: Bencher<'_, '_>) {
    let layer = SessionLayer::memory(Config::default());
    let cookie = begun(&layer);
    let mut service = layer.layer(service_fn(async |request: Request<()>| {
        let user = match session(&request) {
            Some(session) => session.get::<String>("user").await.unwrap_or_default(),
            None => None,
        };
        assert!(user.is_some(), "the session was not found");
        Ok::<_, Infallible>(Response::new(()))
    }));
    bencher
        .with_inputs(|| asked(cookie.as_ref()))
        .bench_local_values(|request| service.call(request).now_or_never());
}
