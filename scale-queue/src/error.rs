//! What can go wrong with a queue itself; what goes wrong in a handler is its job's business.

/// Why a job could not be pushed, or a queue not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address names no store that is compiled in.
    #[error("{0} is no store for jobs; use `memory:` or, with its feature, a Redis, Postgres or SQLite address")]
    Address(String),
    /// The store did not answer. Whether what was asked for has happened is unknown: a job may have been pushed.
    #[error("the queue's store: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store has no room. Nothing was written.
    #[error("the queue's store is full")]
    Full,
    /// The job is stored, but not on as many replicas as [asked for](crate::QueueBuilder::replicas): a fail-over may lose it.
    #[error("the job has reached {reached} of {wanted} replicas: it is stored, and a fail-over may lose it")]
    Unacknowledged {
        /// Replicas that have it.
        reached: usize,
        /// Replicas that were to have it.
        wanted: usize,
    },
    /// The job cannot be written as JSON.
    #[error("job `{job}` cannot be encoded: {source}")]
    Encode {
        /// Its name.
        job: &'static str,
        /// The encoder's words.
        source: serde_json::Error,
    },
    /// The encoded job is over the limit (1 MiB). Store what is large elsewhere and push where it is.
    #[error("job `{job}` has {size} bytes; the limit is 1 MiB")]
    TooLarge {
        /// Its name.
        job: &'static str,
        /// Its size, bytes.
        size: usize,
    },
    /// The payload could not be [sealed](crate::Seal).
    #[error("job `{job}` cannot be sealed: {source}")]
    Seal {
        /// Its name.
        job: &'static str,
        /// The seal's words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A worker was given a bound for a queue that it does not serve.
    #[error("`{0}` is not among the worker's queues")]
    NotServed(String),
    /// A setting that the store cannot keep.
    #[error("{0}")]
    Setting(&'static str),
    /// A chain has no job.
    #[error("a chain needs a job")]
    Empty,
    /// A queue's name is not made of 1 to 64 letters, digits, `-`, `_` and `.`.
    #[error("`{0}` is no name for a queue: use 1 to 64 letters, digits, `-`, `_` and `.`")]
    Name(String),
}

impl Error {
    /// Names the scheme alone: the rest may hold a password.
    pub(crate) fn address(url: &str) -> Self {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| !scheme.is_empty());
        let quoted = |scheme: &str| format!("`{}`", scheme.chars().take(20).collect::<String>());
        Self::Address(scheme.map_or_else(|| "an address without a scheme".into(), quoted))
    }

    pub(crate) fn store(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Store(source.into())
    }

    /// Returns whether the store has refused what was asked, so that nothing of it has happened.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            Self::Store(_) => crate::store::sql::is_refusal(self),
            _ => false,
        }
    }

    /// The same again, for each of those that waited for one answer.
    pub(crate) fn repeat(&self) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Unacknowledged { reached, wanted } => Self::Unacknowledged { reached: *reached, wanted: *wanted },
            other => Self::store(other.to_string()),
        }
    }
}
