//! Errors of signing in, besides that somebody is not let in.

use std::time::Duration;

use http::StatusCode;

/// Why a question could not be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Too many passwords are being hashed: 503, `Retry-After`.
    #[error("too many log-ins at once; try again in {retry_after:?}")]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// A new password does not keep the rules.
    #[error("the password {0}")]
    Password(&'static str),
    /// A stored string is not what it should be.
    #[error("what is stored for the {0} cannot be read")]
    Stored(&'static str),
    /// The ledger did not answer: nobody can know whether this was used before.
    #[error("the ledger: {0}")]
    Ledger(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What somebody may do could not be asked: nobody may.
    #[error("permissions: {0}")]
    Permissions(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The list of breached passwords did not answer.
    #[error("the list of breached passwords: {0}")]
    Breaches(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A provider of accounts did not answer, or with what it must not.
    #[error("the provider: {0}")]
    Provider(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Somebody who comes back from a provider of accounts is not let in: they, or it, said no, or this is no answer to a log-in of theirs.
    #[error("not let in: {0}")]
    Denied(String),
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    Random,
    /// A key or a cost that makes no sense.
    #[error("{0}")]
    Setting(&'static str),
    /// What somebody typed is not what it should be.
    #[error("{0}")]
    Input(&'static str),
    /// A user has as many of these as they may.
    #[error("{0}")]
    TooMany(&'static str),
    /// The session could not be read or written.
    #[error(transparent)]
    Session(#[from] crate::Error),
}

impl Error {
    /// Returns the status to answer with: 503 if it may work later, 422 for what somebody typed, 409 for one more than they may have, 403 for who
    /// is not let in, 500 for a mistake of the application.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Busy { .. } | Self::Ledger(_) | Self::Permissions(_) | Self::Breaches(_) | Self::Provider(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::Password(_) | Self::Input(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooMany(_) => StatusCode::CONFLICT,
            Self::Stored(_) | Self::Random | Self::Setting(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Session(error) => error.status(),
        }
    }
}
