//! What can go wrong. A broken second level is no error: the cache goes on without it.

use std::sync::Arc;
use std::time::Duration;

/// Why there is no value.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address names no store that is compiled in.
    #[error("{0} is no place for a cache; use `memory:` or, with the feature `redis`, a Redis address")]
    Address(String),
    /// The store could not be reached at the start.
    #[error("the cache's store: {0}")]
    Store(Arc<dyn std::error::Error + Send + Sync>),
    /// The loader failed, for this caller and all who waited with it.
    #[error("loading: {0}")]
    Load(Arc<dyn std::error::Error + Send + Sync>),
    /// The loader panicked.
    #[error("the loader panicked")]
    Panicked,
    /// The loader took longer than allowed. It has been dropped.
    #[error("loading took longer than {0:?}")]
    TimedOut(Duration),
    /// The value cannot be encoded.
    #[error("the value cannot be encoded: {0}")]
    Encode(Arc<rmp_serde::encode::Error>),
    /// Of a [strict](crate::Config::strict) cache: the value does not come back from its encoding.
    #[error("the value does not come back from its encoding: {0}")]
    Decode(Arc<rmp_serde::decode::Error>),
}

impl Error {
    /// Names the scheme alone: the rest may hold a password.
    pub(crate) fn address(url: &str) -> Self {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| !scheme.is_empty());
        let quoted = |scheme: &str| format!("`{}`", scheme.chars().take(20).collect::<String>());
        Self::Address(scheme.map_or_else(|| "an address without a scheme".into(), quoted))
    }

    pub(crate) fn store(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Store(source.into().into())
    }
}
