//! Errors of queue operations. Errors of handlers belong to their jobs.

/// Error of a queue operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address belongs to no store that is compiled in.
    #[error("{0}")]
    Address(String),
    /// The store did not answer. The operation may or may not have happened: a job may have been
    /// pushed.
    #[error("the queue's store: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The tables of a database are older or newer than this version of the crate needs, or could
    /// not be migrated.
    #[cfg(feature = "sql")]
    #[error(transparent)]
    Schema(Box<dyn std::error::Error + Send + Sync>),
    /// The store has no room. Nothing was written.
    #[error("the queue's store is full")]
    Full,
    /// The job is stored, but on fewer replicas than [requested](crate::QueueBuilder::replicas): a
    /// failover may lose it.
    #[error(
        "the job has reached {reached} of {wanted} replicas: it is stored, \
         but a failover may lose it"
    )]
    Unacknowledged {
        /// Number of replicas that have the job.
        reached: usize,
        /// Number of replicas requested.
        wanted: usize,
    },
    /// The job cannot be encoded as JSON.
    #[error("job `{job}` cannot be encoded: {source}")]
    Encode {
        /// Name of the job.
        job: &'static str,
        /// Error of the encoder.
        source: serde_json::Error,
    },
    /// The encoded job is larger than 1 MiB. Store large data elsewhere, and push a reference to
    /// it.
    #[error("job `{job}` has {size} bytes: at most 1 MiB (1,048,576 bytes) is allowed")]
    TooLarge {
        /// Name of the job.
        job: &'static str,
        /// Size in bytes.
        size: usize,
    },
    /// A chain or a batch has more jobs than one may have. Divide it.
    #[error("job `{job}` is one too many: at most {most} jobs are allowed together")]
    TooMany {
        /// Name of the first job that is refused.
        job: &'static str,
        /// Largest number of jobs.
        most: usize,
    },
    /// The payload could not be [encrypted](crate::encryption::PayloadCipher).
    #[error("job `{job}` cannot be encrypted: {source}")]
    Encryption {
        /// Name of the job.
        job: &'static str,
        /// Error of the cipher.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A worker was given a bound for a queue that it does not serve.
    #[error("queue `{0}` is not among the worker's queues")]
    NotServed(String),
    /// The new content of a dead job is invalid.
    #[error("{0}")]
    Payload(String),
    /// A worker's handlers contradict each other.
    #[error("{0}")]
    Handlers(String),
    /// The store does not support a setting.
    #[error("{0}")]
    Setting(&'static str),
    /// A workflow is invalid, or a job asked for an output that it cannot have.
    #[error("{0}")]
    Workflow(String),
    /// A chain, batch or workflow has no jobs.
    #[error("a chain, batch or workflow without jobs: expected at least one")]
    Empty,
    /// A queue's name is not made of 1 to 64 letters, digits, `-`, `_` and `.`.
    #[error("invalid queue name `{0}`: expected 1 to 64 letters, digits, `-`, `_` and `.`")]
    Name(String),
}

impl Error {
    /// Creates an address error that contains only the scheme: the rest may contain a password.
    pub(crate) fn address(url: &str) -> Self {
        Self::unsupported(&scale_common::address::shown_scheme(url))
    }

    pub(crate) fn unsupported(address: &str) -> Self {
        Self::Address(format!(
            "cannot use {address} as a queue store: expected memory or, with its feature, redis, \
             postgres, mysql or sqlite"
        ))
    }

    pub(crate) fn store(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Store(source.into())
    }

    /// Returns whether the store refused the operation, so that it had no effect.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            #[cfg(feature = "sql")]
            Self::Store(source) => source.downcast_ref().is_some_and(scale_sql::is_refusal),
            _ => false,
        }
    }

    /// Copies the error, for each of the callers that waited for the same answer.
    pub(crate) fn repeat(&self) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Unacknowledged { reached, wanted } => {
                Self::Unacknowledged { reached: *reached, wanted: *wanted }
            }
            other => Self::store(other.without_prefix()),
        }
    }

    /// Returns the text of a store's error, to become a part of another one.
    pub(crate) fn without_prefix(&self) -> String {
        match self {
            Self::Store(source) => source.to_string(),
            other => other.to_string(),
        }
    }
}
