//! The extractor for axum: take a [`Session`] as a handler's argument.

use axum_core::extract::FromRequestParts;
use http::StatusCode;
use http::request::Parts;

use crate::session::Session;

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let missing = (StatusCode::INTERNAL_SERVER_ERROR, "no SessionLayer stands around this route");
        parts.extensions.get::<Self>().cloned().ok_or(missing)
    }
}
