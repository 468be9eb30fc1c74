//! What can go wrong before a limiter stands; afterwards each policy says what an error means ([`OnError`](crate::OnError)).

/// Why a limiter or a policy could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address names no store that is compiled in.
    #[error("`{0}` is no store for limits; use `memory:` or, with the feature `redis`, a Redis address")]
    Address(String),
    /// A policy's numbers make no sense.
    #[error("policy `{name}`: {reason}")]
    Policy {
        /// The policy's name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The store could not be reached or refused the command.
    #[error("the limits' store: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}
