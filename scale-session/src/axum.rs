//! The extractors for axum: take a [`Session`], or a [`SignedIn`] user, as a handler's argument.

use axum_core::extract::FromRequestParts;
use http::StatusCode;
use http::request::Parts;

use crate::session::Session;

type Rejection = (StatusCode, &'static str);

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        let missing = (StatusCode::INTERNAL_SERVER_ERROR, "no SessionLayer stands around this route");
        parts.extensions.get::<Self>().cloned().ok_or(missing)
    }
}

/// A user who is signed in with all factors. Others get a 401, and a 503 if the store does not answer: a route that takes this cannot be
/// entered half-way.
///
/// ```
/// async fn orders(scale_session::SignedIn { user, .. }: scale_session::SignedIn) -> String {
///     format!("orders of {user}")
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SignedIn {
    /// The id they were signed in by.
    pub user: String,
    /// Their session.
    pub session: Session,
}

impl<S: Sync> FromRequestParts<S> for SignedIn {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let session = Session::from_request_parts(parts, state).await?;
        match session.user().await {
            Ok(Some(user)) => Ok(Self { user, session }),
            Ok(None) => Err((StatusCode::UNAUTHORIZED, "please sign in")),
            Err(error) => {
                tracing::warn!(%error, "nobody can say who is signed in");
                Err((StatusCode::SERVICE_UNAVAILABLE, "please try again"))
            }
        }
    }
}
