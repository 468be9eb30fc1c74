//! The layer and its settings.

use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderName, Uri};
use tower_layer::Layer;

use super::freshness::Rules;
use super::service::HttpCache;
use super::state::{OriginalUri, ServiceState, Settings, Shared};
use crate::cache::Cache;

/// Caches the responses of any `tower` service of `http` requests. See the [module](crate::http).
#[must_use]
#[derive(Clone, Debug)]
pub struct HttpCacheLayer {
    settings: Settings,
    /// State shared by all services made from one layer value and its clones.
    shared: Arc<Shared>,
}

impl HttpCacheLayer {
    /// Creates a layer that stores into this cache, which may also contain other entries.
    pub fn new(cache: &Cache) -> Self {
        let settings = Settings {
            cache: cache.clone(),
            largest: 4 << 20,
            stall: Duration::from_secs(6),
            rules: Rules { as_the_standard_permits: false },
            obey: true,
            namespace: "".into(),
            keyed_by: [].into(),
            original: Self::framework(),
        };
        Self { settings, shared: Arc::new(Shared::new(cache)) }
    }

    /// Separates the pages from those of other layers with the same cache: of another application,
    /// or of another part of this one with the same addresses.
    pub fn namespace(mut self, name: &str) -> Self {
        self.settings.namespace = name.replace('%', "%25").replace(' ', "%20").into();
        self
    }

    /// Also separates pages by these request headers: those that the responses depend on without a
    /// `Vary` field. Name only headers that your own proxy sets: headers that a client can choose
    /// would fill the cache. Called again, adds more.
    ///
    /// ```
    /// # use scale_cache::{Cache, http::HttpCacheLayer};
    /// let layer = HttpCacheLayer::new(&Cache::memory())
    ///     .keyed_by(["x-forwarded-proto".parse().unwrap()]);
    /// ```
    pub fn keyed_by(mut self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        let known = self.settings.keyed_by.iter().cloned();
        self.settings.keyed_by = known.chain(headers).collect();
        self
    }

    /// Returns the framework's function for the requested address, if there is one.
    #[cfg_attr(feature = "axum", allow(clippy::unnecessary_wraps))]
    fn framework() -> Option<OriginalUri> {
        #[cfg(feature = "axum")]
        return Some(OriginalUri(Arc::new(|extensions| {
            Some(extensions.get::<axum::extract::OriginalUri>()?.0.clone())
        })));
        #[cfg(not(feature = "axum"))]
        None
    }

    /// Stores pages under the address that the client requested, if a router has removed a part of
    /// it. The feature `axum` does this for axum's `nest`.
    pub fn original_uri(
        mut self,
        find: impl Fn(&Extensions) -> Option<Uri> + Send + Sync + 'static,
    ) -> Self {
        self.settings.original = Some(OriginalUri(Arc::new(find)));
        self
    }

    /// Sets the maximum size of stored bodies. Bodies of any size are passed on to the client while
    /// they arrive. Default: 4 MiB.
    pub fn largest(mut self, bytes: usize) -> Self {
        self.settings.largest = bytes;
        self
    }

    /// Sets the time without data after which other requests stop waiting for a body, and it is not
    /// stored; its own client still receives it. Default: 6 s.
    pub fn stall_timeout(mut self, time: Duration) -> Self {
        self.settings.stall = time;
        self
    }

    /// Also stores what RFC 9111 permits without an explicit statement of the origin that the
    /// response is for all: responses with a `max-age` to requests with cookies, and responses
    /// without a lifetime, for a tenth of the time since their last change. For origins that use
    /// HTTP caching correctly and mark private responses as `private`. A response that sets a
    /// cookie is never stored.
    pub fn as_the_standard_permits(mut self) -> Self {
        self.settings.rules = Rules { as_the_standard_permits: true };
        self
    }

    /// Ignores `Cache-Control: no-cache` and similar directives of requests.
    pub fn ignore_requests_directives(mut self) -> Self {
        self.settings.obey = false;
        self
    }
}

impl<S> Layer<S> for HttpCacheLayer {
    type Service = HttpCache<S>;

    fn layer(&self, inner: S) -> HttpCache<S> {
        let state =
            ServiceState { shared: Arc::clone(&self.shared), settings: self.settings.clone() };
        HttpCache::new(Arc::new(state), inner)
    }
}
