//! Errors of connecting.

use redis::RedisError;

/// Error of a handle: it could not be created, or got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is not one of the documented forms.
    #[error("invalid Redis address: {0}")]
    Address(String),
    /// The server could not be reached, refused the connection, or answered with an error.
    #[error("Redis at {address}: {source}")]
    Redis {
        /// Address without secrets.
        address: String,
        /// Error of the client.
        source: RedisError,
    },
}
