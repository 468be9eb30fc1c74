//! Errors of the cache. A second level that fails is not an error: the cache continues without it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Reason why a call returned no value.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The address names no store that is compiled in.
    Address(String),
    /// The store could not be reached at the start.
    Store(Arc<dyn std::error::Error + Send + Sync>),
    /// The store answered, and refused the command: for example its memory is full, or a key has
    /// another type.
    Refused(Arc<dyn std::error::Error + Send + Sync>),
    /// The loader failed, for this caller and all that waited for it.
    Load(Arc<dyn std::error::Error + Send + Sync>),
    /// The loader panicked.
    Panicked,
    /// The loader of a key requests the same key, directly or through other loaders: it would wait
    /// for itself.
    Cycle(Arc<str>),
    /// There is no tokio runtime to load on.
    NoRuntime,
    /// The loader took longer than allowed, and has been dropped.
    TimedOut(Duration),
    /// The value cannot be encoded.
    Encode(Arc<rmp_serde::encode::Error>),
    /// The value cannot be decoded from its own encoding; only [strict](crate::Config::strict)
    /// caches check that.
    Decode(Arc<rmp_serde::decode::Error>),
    /// Encoding and decoding changes the value, as it changes `Some(())` to `None`. Returned by
    /// [strict](crate::Config::strict) caches.
    Altered(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => {
                write!(
                    f,
                    "cannot use {address} as a cache: expected `memory:` or, \
                     with feature `redis`, a Redis address"
                )
            }
            Self::Store(cause) => write!(f, "cache store failed: {cause}"),
            Self::Refused(cause) => write!(f, "the cache store refused a command: {cause}"),
            Self::Load(cause) => write!(f, "load failed: {cause}"),
            Self::Panicked => f.write_str("the loader panicked"),
            Self::Cycle(key) => {
                write!(f, "the loader of {key:?} requests the same key: it would wait for itself")
            }
            Self::NoRuntime => {
                f.write_str("no tokio runtime to load on: call the cache inside a tokio runtime")
            }
            Self::TimedOut(limit) => write!(f, "the load took longer than {limit:?}"),
            Self::Encode(cause) => write!(f, "the value cannot be encoded: {cause}"),
            Self::Decode(cause) => {
                write!(f, "the value cannot be decoded from its own encoding: {cause}")
            }
            Self::Altered(kind) => {
                write!(f, "encoding and decoding changes a value of type {kind}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Returns the cause itself, because its reference counter hides its type.
            Self::Store(cause) | Self::Refused(cause) | Self::Load(cause) => Some(&**cause),
            Self::Encode(cause) => Some(&**cause),
            Self::Decode(cause) => Some(&**cause),
            _ => None,
        }
    }
}

impl Error {
    /// Returns the error for an unsupported address. It names the scheme alone, because the rest
    /// may contain a password.
    pub(crate) fn address(url: &str) -> Self {
        Self::Address(scale_common::address::shown_scheme(url))
    }

    /// Creates the error of a store that has refused a command. Other commands may succeed, so the
    /// circuit breaker stays closed.
    pub fn refused(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Refused(source.into().into())
    }

    /// Creates the error of a store that has not answered, or whose answer is invalid. The circuit
    /// breaker opens.
    pub fn store(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Store(source.into().into())
    }
}

/// Reason why [`Space::get_or_try_load`](crate::Space::get_or_try_load) returned no value.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// The loader failed with this error, for this caller and all that waited for it.
    Load(Arc<E>),
    /// The cache failed, or a loader of another error type that this caller waited for.
    Cache(Error),
}

impl<E> Clone for LoadError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Load(error) => Self::Load(Arc::clone(error)),
            Self::Cache(error) => Self::Cache(error.clone()),
        }
    }
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(error) => write!(f, "load failed: {error}"),
            Self::Cache(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for LoadError<E> {}

/// Carries an application's error, of any type, through a load.
#[derive(Debug)]
pub(crate) struct Carried<E>(Arc<E>);

impl<E> Carried<E> {
    pub(crate) fn new(error: E) -> Self {
        Self(Arc::new(error))
    }
}

impl<E: fmt::Debug> fmt::Display for Carried<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<E: fmt::Debug> std::error::Error for Carried<E> {}

impl<E: fmt::Debug + Send + Sync + 'static> LoadError<E> {
    /// Returns the application's error, if this is one that was carried.
    pub(crate) fn of(error: Error) -> Self {
        match &error {
            Error::Load(cause) => match cause.downcast_ref::<Carried<E>>() {
                Some(Carried(own)) => Self::Load(Arc::clone(own)),
                None => Self::Cache(error),
            },
            _ => Self::Cache(error),
        }
    }
}
