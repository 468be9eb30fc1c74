//! Errors of authentication, except for wrong credentials.

use std::time::Duration;

use http::StatusCode;

/// Reason why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Too many passwords are being hashed: 503 with `Retry-After`.
    #[error("too many concurrent log-ins; try again in {retry_after:?}")]
    Busy {
        /// Time to wait before a retry.
        retry_after: Duration,
    },
    /// A new password breaks the rules.
    #[error("the password {0}")]
    Password(&'static str),
    /// A stored value cannot be decoded.
    #[error("the stored {0} cannot be decoded")]
    Stored(&'static str),
    /// The one-time store did not answer: it is unknown whether the code or token was used before.
    #[error("one-time store failed: {0}")]
    OneTimeStore(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The tables of a database are older or newer than this version of the crate needs.
    #[cfg(feature = "sql")]
    #[error(transparent)]
    Schema(Box<dyn std::error::Error + Send + Sync>),
    /// The permissions could not be determined: no action is allowed.
    #[error("reading permissions failed: {0}")]
    Permissions(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The list of breached passwords could not be read.
    #[error("reading the list of breached passwords failed: {0}")]
    Breaches(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The identity provider did not answer, or sent an invalid response.
    #[error("identity provider failed: {0}")]
    Provider(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A log-in through an identity provider or a passkey was refused: the user or the provider
    /// cancelled it, or the response does not belong to a log-in of this session.
    #[error("sign-in refused: {0}")]
    Denied(String),
    /// The operating system's random number generator failed.
    #[error("the operating system's random number generator failed")]
    Random,
    /// A setting is invalid, such as a key or a cost.
    #[error("{0}")]
    Setting(&'static str),
    /// A user's input is invalid.
    #[error("{0}")]
    Input(&'static str),
    /// The user has reached the maximum number of such items.
    #[error("{0}")]
    TooMany(&'static str),
    /// The session could not be read or written.
    #[error(transparent)]
    Session(#[from] crate::Error),
}

impl Error {
    /// Returns the HTTP status to answer with: 503 if a retry may succeed, 422 for invalid input,
    /// 409 for too many items, 403 for a refused sign-in, 500 for a mistake of the application.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Busy { .. }
            | Self::OneTimeStore(_)
            | Self::Permissions(_)
            | Self::Breaches(_)
            | Self::Provider(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::Password(_) | Self::Input(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooMany(_) => StatusCode::CONFLICT,
            Self::Stored(_) | Self::Random | Self::Setting(_) => StatusCode::INTERNAL_SERVER_ERROR,
            #[cfg(feature = "sql")]
            Self::Schema(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Session(error) => error.status(),
        }
    }
}
