//! Axum: the extractors [`Session`], [`SignedIn`] and `Option<SignedIn>`, and errors as responses.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{HeaderValue, StatusCode};

use crate::error::Error;
use crate::session::Session;

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or(Rejection::NoLayer)
    }
}

/// A user who is signed in with all factors. Other requests get a 401, or a 503 if the store does
/// not answer: no handler with this extractor runs for a request that is partly signed in.
/// `Option<SignedIn>` admits every request and says who is signed in; a store that does not answer
/// is still a 503. With [`OnStoreError::Anonymous`](crate::OnStoreError) no user is signed in while
/// the store does not answer: a 401, and `None`.
///
/// ```
/// use scale_session::SignedIn;
///
/// async fn orders(SignedIn { user, .. }: SignedIn) -> String {
///     format!("orders of {user}")
/// }
///
/// async fn home(signed_in: Option<SignedIn>) -> String {
///     signed_in.map_or("please sign in".into(), |signed_in| format!("hello, {}", signed_in.user))
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SignedIn {
    /// Id that the user was signed in by.
    pub user: String,
    /// Session of the user.
    pub session: Session,
}

impl<S: Sync> FromRequestParts<S> for SignedIn {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let found = <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state).await?;
        found.ok_or(Rejection::Nobody)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for SignedIn {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, Rejection> {
        let session = <Session as FromRequestParts<S>>::from_request_parts(parts, state).await?;
        let user = session.user().await.map_err(Rejection::Session)?;
        Ok(user.map(|user| Self { user, session }))
    }
}

/// Reason why a handler that takes a [`Session`] or a [`SignedIn`] was not called.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The route has no [`SessionLayer`](crate::SessionLayer) around it: 500.
    #[error(
        "no SessionLayer around this route: add `.layer(sessions)` to its router, outside of the \
         layers that read the session"
    )]
    NoLayer,
    /// The route has no [`ApiTokenLayer`](crate::auth::api_token::ApiTokenLayer) around it: 500.
    #[cfg(feature = "auth")]
    #[error("no ApiTokenLayer around this route: add `.layer(tokens.layer())` to its router")]
    NoApiTokenLayer,
    /// No user is signed in: 401.
    #[error("no user is signed in")]
    Nobody,
    /// The session cannot be read.
    #[error(transparent)]
    Session(Error),
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        match self {
            Self::Nobody => (StatusCode::UNAUTHORIZED, "please sign in").into_response(),
            Self::Session(error) => error.into_response(),
            _ => answer(StatusCode::INTERNAL_SERVER_ERROR, &self, None),
        }
    }
}

/// Extracts the API token that authorized the request.
#[cfg(feature = "auth")]
impl<S: Sync> FromRequestParts<S> for crate::auth::api_token::ApiToken {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or(Rejection::NoApiTokenLayer)
    }
}

/// Answers with the [status](Error::status) and a general sentence. The error's text goes into the
/// log only.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        answer(self.status(), &self, None)
    }
}

/// Answers with the [status](crate::auth::Error::status) and a general sentence. The error's text
/// goes into the log only, except for errors about the user's input or about too many items: their
/// text is for the user.
#[cfg(feature = "auth")]
impl IntoResponse for crate::auth::Error {
    fn into_response(self) -> Response {
        use crate::auth::Error as Auth;
        match self {
            Auth::Session(error) => error.into_response(),
            Auth::Password(_) | Auth::Input(_) | Auth::TooMany(_) => {
                (self.status(), self.to_string()).into_response()
            }
            Auth::Denied(_) => {
                (self.status(), "you were not signed in; please try again").into_response()
            }
            Auth::Busy { retry_after } => {
                answer(self.status(), &self, Some(retry_after.as_secs().max(1)))
            }
            _ => answer(self.status(), &self, None),
        }
    }
}

fn answer(status: StatusCode, error: &dyn std::fmt::Display, retry_after: Option<u64>) -> Response {
    let text = match status {
        StatusCode::SERVICE_UNAVAILABLE => "please try again in a moment",
        StatusCode::CONFLICT => "you have signed in or out in the meantime; please reload the page",
        StatusCode::PAYLOAD_TOO_LARGE => "the data is too large to be kept",
        _ => "something went wrong",
    };
    if status.is_server_error() {
        tracing::error!(%error, %status, "session error: the request is not answered");
    }
    let mut response = (status, text).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after.unwrap_or(1)));
    }
    response
}
