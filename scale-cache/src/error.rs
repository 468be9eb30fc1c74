//! What can go wrong. A broken second level is no error: the cache goes on without it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why there is no value.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The address names no store that is compiled in.
    Address(String),
    /// The store could not be reached at the start.
    Store(Arc<dyn std::error::Error + Send + Sync>),
    /// The store answered, and refused: its memory is full, say, or a key holds another type.
    Refused(Arc<dyn std::error::Error + Send + Sync>),
    /// The loader failed, for this caller and all who waited with it.
    Load(Arc<dyn std::error::Error + Send + Sync>),
    /// The loader panicked.
    Panicked,
    /// The loader of a key asks for the same key, itself or by way of others: it would wait for itself.
    Cycle(Arc<str>),
    /// There is no tokio runtime on which to load.
    NoRuntime,
    /// The loader took longer than allowed. It has been dropped.
    TimedOut(Duration),
    /// The value cannot be encoded.
    Encode(Arc<rmp_serde::encode::Error>),
    /// Of a [strict](crate::Config::strict) cache: the value does not come back from its encoding.
    Decode(Arc<rmp_serde::decode::Error>),
    /// The value comes back from its encoding as another one, as `Some(())` comes back as `None`. Said by a
    /// [strict](crate::Config::strict) cache.
    Altered(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => {
                write!(f, "{address} is no place for a cache; use `memory:` or, with the feature `redis`, a Redis address")
            }
            Self::Store(cause) => write!(f, "the cache's store: {cause}"),
            Self::Refused(cause) => write!(f, "the cache's store refused a command: {cause}"),
            Self::Load(cause) => write!(f, "loading: {cause}"),
            Self::Panicked => f.write_str("the loader panicked"),
            Self::Cycle(key) => write!(f, "the loader of {key:?} asks for the same key: it would wait for itself"),
            Self::NoRuntime => f.write_str("a value is loaded in a task of its own: call it inside a tokio runtime"),
            Self::TimedOut(limit) => write!(f, "loading took longer than {limit:?}"),
            Self::Encode(cause) => write!(f, "the value cannot be encoded: {cause}"),
            Self::Decode(cause) => write!(f, "the value does not come back from its encoding: {cause}"),
            Self::Altered(kind) => write!(f, "a value of type {kind} comes back from its encoding as another one"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // The cause itself: its reference counter hides what it is.
            Self::Store(cause) | Self::Refused(cause) | Self::Load(cause) => Some(&**cause),
            Self::Encode(cause) => Some(&**cause),
            Self::Decode(cause) => Some(&**cause),
            _ => None,
        }
    }
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
