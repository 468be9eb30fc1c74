//! The tower layer: puts a [`Session`] into every request's extensions and writes what changed when the handler has returned.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::COOKIE;
use http::{HeaderValue, Request, Response, StatusCode};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use crate::config::Config;
use crate::error::Error;
use crate::headers::keep_from_shared_caches;
use crate::plain_http::PlainHttp;
use crate::session::Session;
use crate::store::{MemoryStore, Store};

/// Gives every request a [`Session`]. Cloning costs three reference counts.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::Error> {
/// use scale_session::{Config, SessionLayer};
/// let layer = SessionLayer::connect("memory:", "shop", Config::default()).await?; // or "redis://…"
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SessionLayer {
    store: Arc<dyn Store>,
    config: Arc<Config>,
    plain_http: Arc<PlainHttp>,
}

impl SessionLayer {
    /// Sessions in a store of your choice.
    pub fn new(store: impl Store, config: Config) -> Self {
        Self { store: Arc::new(store), config: Arc::new(config), plain_http: Arc::default() }
    }

    /// Sessions of this process alone.
    pub fn memory(config: Config) -> Self {
        Self::new(MemoryStore::new(), config)
    }

    /// Sessions shared by all that use the same Redis and `app`.
    #[cfg(feature = "redis")]
    pub fn redis(redis: scale_redis::Redis, app: &str, config: Config) -> Self {
        Self::new(crate::store::RedisStore::new(redis, app), config)
    }

    /// Sessions that lie in their cookies, encrypted: nothing is kept on the server, so nothing there can end them.
    ///
    /// | beside a store | here |
    /// | --- | --- |
    /// | a logout, a rotation | clears or replaces the cookie; whoever has a copy of the old one uses it until it expires |
    /// | two requests at once | the answer that comes last counts, with all its fields |
    /// | [`Session::devices`], [`Session::revoke_all`] and their like | [`Error::Irrevocable`] |
    /// | a log-in by a passkey or with another site that is under way, good once | good as often as a copy of its cookie is sent, for its minutes |
    /// | size | 2,500 bytes of names and values |
    ///
    /// Keep the time-outs short, and what must not be copied elsewhere.
    ///
    /// ```
    /// use scale_session::{Config, SessionLayer, store::CookieKeys};
    /// # let (secret, old) = ([1; 32], [2; 32]);
    /// let keys = CookieKeys::new(&secret).older(&old); // 32 random bytes each, from where secrets are kept
    /// let layer = SessionLayer::irrevocable(keys, Config::default());
    /// ```
    #[cfg(feature = "cookie")]
    pub fn irrevocable(keys: crate::store::CookieKeys, config: Config) -> Self {
        Self::new(crate::store::SealedStore::new(keys), config)
    }

    /// Picks the store by its address: `memory:`; with feature `redis` any address of `scale-redis`; with features `postgres` and `sqlite`
    /// a database, whose tables are made if they are not there.
    ///
    /// # Errors
    /// [`Error::Address`] for any other; [`Error::Store`] if nobody answers there.
    pub async fn connect(url: &str, app: &str, config: Config) -> Result<Self, Error> {
        match url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Self::memory(config)),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let redis = scale_redis::Redis::connect(url).await.map_err(|e| Error::Store(Box::new(e)))?;
                redis.warn_of_eviction("sessions").await;
                Ok(Self::redis(redis, app, config))
            }
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            _ if crate::sql::System::of(url).is_some() => Ok(Self::new(crate::store::SqlStore::connect(url, app).await?, config)),
            _ => {
                let _ = app;
                Err(Error::address(url))
            }
        }
    }
}

impl SessionLayer {
    /// Ends who stays signed in by [`Remember`](crate::auth::Remember) wherever all of a user's sessions end:
    /// [`Session::revoke_all`], [`Session::revoke_others`], [`revoke_all_of`](Self::revoke_all_of). Its subjects are the ids that users are
    /// signed in by.
    #[cfg(feature = "auth")]
    pub fn remember(mut self, remember: &crate::auth::Remember) -> Self {
        Arc::make_mut(&mut self.config).remember = Some(remember.clone());
        self
    }

    pub(crate) async fn end_remembered(&self, user: &str) -> Result<(), Error> {
        self.config.end_remembered(user).await
    }

    /// A request's session, by its `Cookie` headers, for frameworks that tower does not reach; [`Session::close`] it when the request has
    /// been answered. Nothing is asked of the store yet. `examples/actix` and `examples/poem` show it.
    pub fn open<'c>(&self, cookies: impl IntoIterator<Item = &'c [u8]>) -> Session {
        let cookies = cookies.into_iter().filter_map(|cookie| HeaderValue::from_bytes(cookie).ok()).collect();
        self.session(cookies)
    }

    fn session(&self, cookies: SmallVec<[HeaderValue; 1]>) -> Session {
        let store = self.store.for_request().unwrap_or_else(|| Arc::clone(&self.store));
        Session::new(store, Arc::clone(&self.config), cookies)
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = Sessions<S>;

    fn layer(&self, inner: S) -> Sessions<S> {
        Sessions { layer: self.clone(), inner }
    }
}

/// The service of [`SessionLayer`].
#[derive(Clone, Debug)]
pub struct Sessions<S> {
    layer: SessionLayer,
    inner: S,
}

impl<S, Req, Res> Service<Request<Req>> for Sessions<S>
where
    S: Service<Request<Req>, Response = Response<Res>>,
    S::Future: Send + 'static,
    S::Error: Send,
    Res: Default + Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Req>) -> Self::Future {
        // Looked at when somebody asks for the session.
        let session = self.layer.session(request.headers().get_all(COOKIE).into_iter().cloned().collect());
        let plain = self.layer.plain_http.look_for(&request, &self.layer.config);
        request.extensions_mut().insert(session.clone());
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            // The session is written whatever the handler answered: a 5xx does not undo what it did.
            if let Ok(has_cookie) = session.end_response(response.headers_mut()).await {
                if let Some(host) = plain.filter(|_| has_cookie) {
                    host.warn();
                }
            } else {
                response = Response::new(Res::default());
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                keep_from_shared_caches(response.headers_mut(), true);
            }
            Ok(response)
        })
    }
}
