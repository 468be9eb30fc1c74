//! Errors of sessions.

use http::StatusCode;

/// Why a session could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address names no store that is compiled in.
    #[error("{0} is no store for sessions; use `memory:` or, with its feature, a Redis, Postgres or SQLite address")]
    Address(String),
    /// The store did not answer or refused.
    #[error("the session store: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A value cannot be turned into bytes.
    #[error("field `{field}` cannot be encoded: {source}")]
    Encode {
        /// The field's name.
        field: String,
        /// The encoder's words.
        source: rmp_serde::encode::Error,
    },
    /// A field does not hold what was asked for: its type has changed, or its bytes are broken.
    #[error("field `{field}` does not hold the type asked for")]
    Decode {
        /// The field's name.
        field: String,
    },
    /// A value, a name, or the number of fields is over the limit (64 KiB, 128 bytes, 128 fields).
    #[error("the session is full: {0}")]
    TooLarge(&'static str),
    /// The session was destroyed or has expired while it was being written.
    #[error("the session is gone")]
    Gone,
    /// The client has signed in, or is somebody else, since this request began: it has another session now, and this one is only read.
    #[error("the session was replaced by a log-in that came meanwhile")]
    Replaced,
    /// The response has been sent: what would be written with it can be no more.
    #[error("the response has been sent; `update` and `increment` write at once, this does not")]
    Closed,
    /// A setting that cannot be.
    #[error("{0}")]
    Setting(&'static str),
    /// Of sessions that lie in their cookies ([`SessionLayer::irrevocable`](crate::SessionLayer)): nobody knows where the others are.
    #[error("a session that lies in its cookie can neither be listed nor ended from elsewhere")]
    Irrevocable,
    /// An atomic update met other writers too often.
    #[error("field `{field}` is written by too many at once")]
    Contended {
        /// The field's name.
        field: String,
    },
}

impl Error {
    /// Returns the status to answer with: 503 if it may work later, 409 if the client has another session by now, 413 for a value that is
    /// too large, 500 for a mistake of the application.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Store(_) | Self::Contended { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Gone | Self::Replaced => StatusCode::CONFLICT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Address(_)
            | Self::Encode { .. }
            | Self::Decode { .. }
            | Self::Closed
            | Self::Setting(_)
            | Self::Irrevocable => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Names the scheme alone: the rest may hold a password.
    pub(crate) fn address(url: &str) -> Self {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| !scheme.is_empty());
        let quoted = |scheme: &str| format!("`{}`", scheme.chars().take(20).collect::<String>());
        Self::Address(scheme.map_or_else(|| "an address without a scheme".into(), quoted))
    }
}
