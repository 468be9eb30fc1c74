//! The tower layer: puts a [`Session`] into every request's extensions and writes what changed when
//! the handler has returned.

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

/// Adds a [`Session`] to every request. A clone costs three reference counts.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::Error> {
/// use scale_session::{Config, SessionLayer};
/// // or "redis://…"
/// let layer = SessionLayer::connect("memory:", "shop", Config::default()).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SessionLayer {
    store: Arc<dyn Store>,
    config: Arc<Config>,
    plain_http: Arc<PlainHttp>,
}

impl SessionLayer {
    /// Keeps sessions in the given store.
    pub fn new(store: impl Store, config: Config) -> Self {
        Self { store: Arc::new(store), config: Arc::new(config), plain_http: Arc::default() }
    }

    /// Keeps sessions in the memory of this process.
    pub fn memory(config: Config) -> Self {
        Self::new(MemoryStore::new(), config)
    }

    /// Keeps sessions in Redis, shared by all processes with the same Redis and `app`.
    #[cfg(feature = "redis")]
    pub fn redis(redis: scale_redis::Redis, app: &str, config: Config) -> Self {
        Self::new(crate::store::RedisStore::new(redis, app), config)
    }

    /// Keeps sessions in their cookies, encrypted. The server keeps nothing, so nothing on the
    /// server can end a session.
    ///
    /// | compared with a store | here |
    /// | --- | --- |
    /// | a logout, a rotation | clears or replaces the cookie; a copy of the old cookie works until it expires |
    /// | two requests at once | the response that arrives last wins, with all its fields |
    /// | [`Session::devices`], [`Session::revoke_all`] and similar methods | [`Error::Irrevocable`] |
    /// | a log-in in progress, by a passkey or through another site, which a store accepts once | is accepted as often as a copy of its cookie is sent, within its minutes |
    /// | size | 2,500 bytes of names and values |
    ///
    /// Set short time-outs, and keep elsewhere what must not be copied.
    ///
    /// ```
    /// use scale_session::{Config, SessionLayer, store::CookieKeys};
    /// # let (secret, old) = ([1; 32], [2; 32]);
    /// // 32 random bytes each, from a secret store
    /// let keys = CookieKeys::new(&secret).older(&old);
    /// let layer = SessionLayer::irrevocable(keys, Config::default());
    /// ```
    #[cfg(feature = "cookie")]
    pub fn irrevocable(keys: crate::store::CookieKeys, config: Config) -> Self {
        Self::new(crate::store::EncryptedCookieStore::new(keys), config)
    }

    /// Picks the store by its address: `memory:`; with feature `redis` any address of
    /// `scale-redis`; with features `postgres`, `mysql` and `sqlite` a database. The tables in an
    /// SQLite file are created if they are missing. On a server the tables must exist, see
    /// `store::migrate`.
    ///
    /// # Errors
    /// [`Error::Address`] for any other address; `Error::Schema` if a server has no tables, or
    /// tables of another version; [`Error::Store`] if the server does not answer.
    pub async fn connect(url: &str, app: &str, config: Config) -> Result<Self, Error> {
        match url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Self::memory(config)),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let redis = scale_redis::Redis::connect(url)
                    .await
                    .map_err(|e| Error::Store(Box::new(e)))?;
                redis.warn_of_eviction("sessions").await;
                Ok(Self::redis(redis, app, config))
            }
            #[cfg(feature = "sql")]
            _ if scale_sql::System::of(url).is_some() => {
                Ok(Self::new(crate::store::SqlStore::connect(url, app).await?, config))
            }
            _ => {
                let _ = app;
                Err(Error::address(url))
            }
        }
    }

    /// Keeps sessions in a database, through the application's own pool: a `PgPool`, a `MySqlPool`
    /// or an `SqlitePool`. The tables must exist, see [`migrate`](crate::store::migrate).
    ///
    /// # Errors
    /// [`Error::Schema`] if the tables are older or newer than this version needs; [`Error::Store`]
    /// if the database does not answer.
    #[cfg(feature = "sql")]
    pub async fn with_pool(
        pool: impl Into<scale_sql::Database>,
        app: &str,
        config: Config,
    ) -> Result<Self, Error> {
        Ok(Self::new(crate::store::SqlStore::with_pool(pool, app).await?, config))
    }
}

impl SessionLayer {
    /// Ends the [`Remember`](crate::auth::Remember) cookies of a user whenever all of the user's
    /// sessions end: [`Session::revoke_all`], [`Session::revoke_others`],
    /// [`revoke_all_of`](Self::revoke_all_of). The subjects of `Remember` must be the ids that
    /// users are signed in by.
    #[cfg(feature = "auth")]
    pub fn remember(mut self, remember: &crate::auth::Remember) -> Self {
        Arc::make_mut(&mut self.config).remember = Some(remember.clone());
        self
    }

    pub(crate) async fn end_remembered(&self, user: &str) -> Result<(), Error> {
        self.config.end_remembered(user).await
    }

    /// Returns a request's session, by its `Cookie` headers, for frameworks without tower. Call
    /// [`Session::close`] when the request has been answered. The store is not asked yet.
    /// `examples/actix` and `examples/poem` show the use.
    pub fn open<'c>(&self, cookies: impl IntoIterator<Item = &'c [u8]>) -> Session {
        let cookies =
            cookies.into_iter().filter_map(|cookie| HeaderValue::from_bytes(cookie).ok()).collect();
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

/// Service of [`SessionLayer`].
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
        // The cookie is parsed when the application first uses the session.
        let session =
            self.layer.session(request.headers().get_all(COOKIE).into_iter().cloned().collect());
        let plain = self.layer.plain_http.look_for(&request, &self.layer.config);
        request.extensions_mut().insert(session.clone());
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            // The session is written for every answer of the handler: a 5xx does not undo the
            // changes.
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
