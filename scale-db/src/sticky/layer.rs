//! Middleware: a scope for every request, and the mark in a cookie.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderValue, Request, Response};
use scale_common::cookies::cookies;
use tower_layer::Layer;
use tower_service::Service;

use super::{Mark, SCOPE, Scope, current, has_written, mark};
use crate::backend::Backend;
use crate::db::Db;

/// Tower layer that gives every request a scope, and passes its mark to the client's next request
/// in a cookie.
///
/// ```no_run
/// # async fn example() -> Result<(), scale_db::Error> {
/// let db = scale_db::Db::<sqlx::Postgres>::connect("postgres://primary/shop").await?;
/// let layer = scale_db::StickyLayer::new(db);
/// # Ok(()) }
/// ```
#[must_use]
#[derive(Debug)]
pub struct StickyLayer<DB: Backend> {
    db: Db<DB>,
    cookie: Arc<str>,
    lifetime: Duration,
    secure: bool,
}

impl<DB: Backend> Clone for StickyLayer<DB> {
    fn clone(&self) -> Self {
        Self {
            db: self.db.clone(),
            cookie: Arc::clone(&self.cookie),
            lifetime: self.lifetime,
            secure: self.secure,
        }
    }
}

impl<DB: Backend> StickyLayer<DB> {
    /// Creates a layer with the cookie `scale_db`, kept for a minute, which is longer than the lag
    /// of any replica that gets reads.
    pub fn new(db: Db<DB>) -> Self {
        Self { db, cookie: "scale_db".into(), lifetime: Duration::from_mins(1), secure: true }
    }

    /// Sets the cookie's name, for several databases in one application.
    pub fn cookie(mut self, name: &str) -> Self {
        self.cookie = name.into();
        self
    }

    /// Sets for how long a client's reads have to see its last write.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Sends the cookie over plain HTTP too. For development only.
    pub fn insecure(mut self) -> Self {
        self.secure = false;
        self
    }

    fn read<B>(&self, request: &Request<B>) -> Option<Mark> {
        let lines = request.headers().get_all(COOKIE).iter().map(HeaderValue::as_bytes);
        cookies(lines).find(|(name, _)| *name == &*self.cookie)?.1.parse().ok()
    }

    fn write(&self, mark: Mark) -> Option<HeaderValue> {
        let secure = if self.secure { "; Secure" } else { "" };
        let age = self.lifetime.as_secs();
        format!("{}={mark}; Max-Age={age}; Path=/; HttpOnly; SameSite=Lax{secure}", self.cookie)
            .parse()
            .ok()
    }
}

impl<DB: Backend, S> Layer<S> for StickyLayer<DB> {
    type Service = Sticky<DB, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Sticky { layer: self.clone(), inner }
    }
}

/// Service of [`StickyLayer`].
#[derive(Debug)]
pub struct Sticky<DB: Backend, S> {
    layer: StickyLayer<DB>,
    inner: S,
}

impl<DB: Backend, S: Clone> Clone for Sticky<DB, S> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), inner: self.inner.clone() }
    }
}

impl<DB, S, Req, Res> Service<Request<Req>> for Sticky<DB, S>
where
    DB: Backend,
    S: Service<Request<Req>, Response = Response<Res>>,
    S::Future: Send + 'static,
    S::Error: Send,
    Res: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let layer = self.layer.clone();
        let id = layer.db.0.id;
        let scope = Scope::inside(layer.read(&request).map(|mark| (id, mark)), current());
        // The inner service may run code in `call`, before its future is polled.
        let future = SCOPE.sync_scope(Arc::clone(&scope), || self.inner.call(request));
        Box::pin(SCOPE.scope(scope, async move {
            let mut response = future.await?;
            // A user who only reads is not kept on the primary forever.
            if has_written(id)
                && let Some(mark) = mark(&layer.db).await
                && let Some(cookie) = layer.write(mark)
            {
                response.headers_mut().append(SET_COOKIE, cookie);
            }
            Ok(response)
        }))
    }
}
