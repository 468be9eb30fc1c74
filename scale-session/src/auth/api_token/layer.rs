//! Layer that authorizes requests with an API token.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use super::{ApiToken, ApiTokens};

/// Admits requests with a valid token in `Authorization: Bearer …`, and adds the [`ApiToken`] to
/// their extensions.
///
/// | a request | is answered |
/// | --- | --- |
/// | without a token | 401, `WWW-Authenticate: Bearer` |
/// | with a token that is unknown, revoked or expired, or with two tokens | 401, `error="invalid_token"` |
/// | with a token that lacks the ability | 403, `error="insufficient_scope"` |
/// | while the store does not answer | 503 |
///
/// With axum (feature `axum`), take an [`ApiToken`] as an argument.
#[derive(Clone, Debug)]
pub struct ApiTokenLayer {
    tokens: ApiTokens,
    ability: Option<Arc<str>>,
}

impl ApiTokens {
    /// Returns a layer that admits every valid token, regardless of its abilities.
    pub fn layer(&self) -> ApiTokenLayer {
        ApiTokenLayer { tokens: self.clone(), ability: None }
    }

    /// Returns a layer that admits valid tokens with this ability.
    pub fn require(&self, ability: &str) -> ApiTokenLayer {
        ApiTokenLayer { tokens: self.clone(), ability: Some(ability.into()) }
    }
}

impl<S> Layer<S> for ApiTokenLayer {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Authenticated<S> {
        Authenticated { layer: self.clone(), inner }
    }
}

/// Service of [`ApiTokenLayer`].
#[derive(Clone, Debug)]
pub struct Authenticated<S> {
    layer: ApiTokenLayer,
    inner: S,
}

/// Returns the token of a request. `Err(false)`: there is none; `Err(true)`: the header is
/// malformed.
fn bearer(headers: &HeaderMap) -> Result<String, bool> {
    let mut lines = headers.get_all(AUTHORIZATION).into_iter();
    let line = lines.next().ok_or(false)?;
    if lines.next().is_some() {
        return Err(true);
    }
    let (scheme, token) = line.to_str().ok().and_then(|line| line.split_once(' ')).ok_or(true)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim().to_owned()) } else { Err(false) }
}

fn refuse<Res: Default>(status: StatusCode, challenge: Option<String>) -> Response<Res> {
    let mut response = Response::new(Res::default());
    *response.status_mut() = status;
    if let Some(value) = challenge.and_then(|challenge| HeaderValue::try_from(challenge).ok()) {
        response.headers_mut().insert(WWW_AUTHENTICATE, value);
    }
    response
}

impl ApiTokenLayer {
    /// Returns the verified token, or the response that refuses the request.
    async fn check<Res: Default>(
        &self,
        presented: Result<String, bool>,
    ) -> Result<ApiToken, Response<Res>> {
        let invalid =
            || refuse(StatusCode::UNAUTHORIZED, Some("Bearer error=\"invalid_token\"".into()));
        let secret = match presented {
            Ok(secret) => secret,
            Err(true) => return Err(invalid()),
            Err(false) => return Err(refuse(StatusCode::UNAUTHORIZED, Some("Bearer".into()))),
        };
        let token = match self.tokens.verify(&secret).await {
            Ok(Some(token)) => token,
            Ok(None) => return Err(invalid()),
            Err(error) => {
                tracing::error!(%error, "API token check failed: the request is refused");
                return Err(refuse(error.status(), None));
            }
        };
        match &self.ability {
            Some(ability) if !token.can(ability) => {
                let scope: String = ability
                    .chars()
                    .filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\'))
                    .collect();
                let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"");
                Err(refuse(StatusCode::FORBIDDEN, Some(challenge)))
            }
            _ => Ok(token),
        }
    }
}

impl<S, Req, Res> Service<Request<Req>> for Authenticated<S>
where
    S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
    S::Future: Send,
    Req: Send + 'static,
    Res: Default + Send,
{
    type Response = Response<Res>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Res>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Req>) -> Self::Future {
        let layer = self.layer.clone();
        // The service that is ready handles this request; the clone handles the next one.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            match layer.check(bearer(request.headers())).await {
                Ok(token) => request.extensions_mut().insert(token),
                Err(response) => return Ok(response),
            };
            inner.call(request).await
        })
    }
}
