//! What can go wrong before a limiter stands; afterwards each policy says what an error means ([`OnError`](crate::OnError)).

/// Why a limiter or a policy could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address names no store that is compiled in.
    #[error("{0} is no store for limits; use `memory:` or, with the feature `redis`, a Redis address")]
    Address(String),
    /// A policy's numbers make no sense.
    #[error("policy `{name}`: {reason}")]
    Policy {
        /// The policy's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no room for one more ban of an operator.
    #[error("the list holds {0} bans of operators; lift some, or ban networks in place of addresses")]
    Full(usize),
    /// The store could not be reached, or cannot serve now.
    #[error("the limits' store: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store serves, but refused this command: a key of another type has the name of one of ours, a script is not allowed.
    #[error("the limits' store refused a command: {0}")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Names the scheme alone: the rest may hold a password.
    pub(crate) fn address(url: &str) -> Self {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| !scheme.is_empty());
        let quoted = |scheme: &str| format!("`{}`", scheme.chars().take(20).collect::<String>());
        Self::Address(scheme.map_or_else(|| "an address without a scheme".into(), quoted))
    }
}
