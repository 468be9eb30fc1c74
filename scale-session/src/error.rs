//! Errors of sessions.

use http::StatusCode;

/// Reason why a session could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address names no store that is compiled in.
    #[error("{0}")]
    Address(String),
    /// The store did not answer, or refused.
    #[error("session store failed: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The tables of a database are older or newer than this version of the crate needs, or could
    /// not be migrated.
    #[cfg(feature = "sql")]
    #[error(transparent)]
    Schema(Box<dyn std::error::Error + Send + Sync>),
    /// A value cannot be encoded.
    #[error("field `{field}` cannot be encoded: {source}")]
    Encode {
        /// The field's name.
        field: String,
        /// The encoder's error.
        source: rmp_serde::encode::Error,
    },
    /// A field does not contain the requested type: the type has changed, or the bytes are broken.
    #[error("field `{field}` does not contain the requested type")]
    Decode {
        /// The field's name.
        field: String,
    },
    /// A value, a name, or the number of fields exceeds its limit (64 KiB, 128 bytes, 128 fields).
    #[error("session content exceeds a limit: {0}")]
    TooLarge(&'static str),
    /// The session was destroyed or has expired while it was being written.
    #[error("the session was destroyed or has expired")]
    Gone,
    /// The client has signed in, or has changed its user, since this request began. The client has
    /// another session now, and this one is read-only.
    #[error("the session was replaced by a log-in that ran at the same time")]
    Replaced,
    /// The response has been sent: changes that are written with the response come too late.
    #[error("the response has been sent: only `update` and `increment` still write")]
    Closed,
    /// A setting is invalid.
    #[error("{0}")]
    Setting(&'static str),
    /// The store cannot list or end sessions, because their content is in their cookies
    /// ([`SessionLayer::irrevocable`](crate::SessionLayer)).
    #[error("a session that is kept in its cookie can neither be listed nor ended from elsewhere")]
    Irrevocable,
    /// An atomic update conflicted with other writers too often.
    #[error("field `{field}` has too many concurrent writers")]
    Contended {
        /// The field's name.
        field: String,
    },
}

impl Error {
    /// Returns the HTTP status to answer with: 503 if a retry may succeed, 409 if the client has
    /// another session now, 413 for a value that is too large, 500 for a mistake of the
    /// application.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Store(_) | Self::Contended { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Gone | Self::Replaced => StatusCode::CONFLICT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            #[cfg(feature = "sql")]
            Self::Schema(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Address(_)
            | Self::Encode { .. }
            | Self::Decode { .. }
            | Self::Closed
            | Self::Setting(_)
            | Self::Irrevocable => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the error for an unsupported address. It names the scheme alone, because the rest
    /// may contain a password.
    pub(crate) fn address(url: &str) -> Self {
        Self::unsupported(&scale_common::address::shown_scheme(url))
    }

    pub(crate) fn unsupported(address: &str) -> Self {
        Self::Address(format!(
            "cannot use {address} as a session store: expected `memory:` or, with its feature, a \
             Redis, Postgres, MySQL or SQLite address"
        ))
    }
}
