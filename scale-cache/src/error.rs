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
    Store(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The store answered, and refused: its memory is full, say, or a key holds another type.
    #[error("the cache's store refused a command: {0}")]
    Refused(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The loader failed, for this caller and all who waited with it.
    #[error("loading: {0}")]
    Load(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The loader panicked.
    #[error("the loader panicked")]
    Panicked,
    /// The loader of a key asks for the same key, itself or by way of others: it would wait for itself.
    #[error("the loader of {0:?} asks for the same key: it would wait for itself")]
    Cycle(Arc<str>),
    /// There is no tokio runtime on which to load.
    #[error("a value is loaded in a task of its own: call it inside a tokio runtime")]
    NoRuntime,
    /// The loader took longer than allowed. It has been dropped.
    #[error("loading took longer than {0:?}")]
    TimedOut(Duration),
    /// The value cannot be encoded.
    #[error("the value cannot be encoded: {0}")]
    Encode(#[source] Arc<rmp_serde::encode::Error>),
    /// Of a [strict](crate::Config::strict) cache: the value does not come back from its encoding.
    #[error("the value does not come back from its encoding: {0}")]
    Decode(#[source] Arc<rmp_serde::decode::Error>),
    /// Of a [strict](crate::Config::strict) cache: the value comes back from its encoding as another one, as `Some(())` comes back as `None`.
    #[error("a value of type {0} comes back from its encoding as another one")]
    Altered(&'static str),
}

impl Error {
    /// Names the scheme alone: the rest may hold a password.
    pub(crate) fn address(url: &str) -> Self {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| !scheme.is_empty());
        let quoted = |scheme: &str| format!("`{}`", scheme.chars().take(20).collect::<String>());
        Self::Address(scheme.map_or_else(|| "an address without a scheme".into(), quoted))
    }

    #[cfg(feature = "redis")]
    pub(crate) fn refused(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Refused(source.into().into())
    }

    pub(crate) fn store(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Store(source.into().into())
    }
}
