//! Errors in creating a limiter or a policy. Later errors are handled by each policy
//! ([`OnError`](crate::OnError)).

/// Reason why a limiter or a policy could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address names no store that is compiled in.
    #[error(
        "cannot use {0} as a limit store: expected `memory:` or, with feature `redis`, \
         a Redis address"
    )]
    Address(String),
    /// A policy's numbers are invalid.
    #[error("policy `{name}`: {reason}")]
    Policy {
        /// Name of the policy.
        name: String,
        /// The mistake.
        reason: String,
    },
    /// The list of bans by operators is full.
    #[error(
        "the list is full with {0} bans by operators: lift some, or ban networks instead of \
         addresses"
    )]
    Full(usize),
    /// The store could not be reached, or cannot serve at the moment.
    #[error("limit store failed: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store works, but has refused this command: a key of another type has the name of one of
    /// this crate's keys, or a script is not allowed.
    #[error("the limit store refused a command: {0}")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Returns the error for an unsupported address. It names the scheme alone, because the rest
    /// may contain a password.
    pub(crate) fn address(url: &str) -> Self {
        Self::Address(scale_common::address::shown_scheme(url))
    }
}
