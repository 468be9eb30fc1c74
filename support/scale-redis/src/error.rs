//! What can go wrong before there is a handle.

use redis::RedisError;

/// Why a handle could not be made or did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is not one of the documented forms.
    #[error("not a Redis address: {0}")]
    Address(String),
    /// The server could not be reached, refused us, or answered with an error.
    #[error("Redis at {address}: {source}")]
    Redis {
        /// The address, without secrets.
        address: String,
        /// The client's own words.
        source: RedisError,
    },
}
