//! Permissions of users.
//!
//! The application is asked at each request, and decides whether and for how long it caches. Access
//! is granted only on a definite answer:
//!
//! | when | then |
//! | --- | --- |
//! | no user is signed in, or a second factor is missing | 401 |
//! | the user does not have the permission | 403 |
//! | the user, or the user who [acts as them](Session::impersonate), is deleted or locked | 401, and the session ends |
//! | the application or the session store does not answer | 503; for the session store 401, with [`OnStoreError::Anonymous`](crate::OnStoreError) |

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;

use super::error::Error;
use crate::session::Session;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type PendingLookup = Pin<Box<dyn Future<Output = Result<Option<Arc<Granted>>, BoxError>> + Send>>;

/// Permissions of a user. `orders.*` covers everything that begins with `orders.`, and `*` covers
/// everything.
///
/// ```
/// use scale_session::auth::permissions::Granted;
///
/// let clerk: Granted = ["orders.*", "customers.read"].into_iter().collect();
/// assert!(clerk.allows("orders.refund") && clerk.allows("customers.read"));
/// assert!(!clerk.allows("customers.write") && !clerk.allows("orders"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted(BTreeSet<String>);

impl Granted {
    /// Returns whether the set covers a permission.
    pub fn allows(&self, permission: &str) -> bool {
        let wide = |star: usize| self.0.contains(&format!("{}*", &permission[..star]));
        self.0.contains(permission)
            || wide(0)
            || permission.match_indices('.').any(|(dot, _)| wide(dot + 1))
    }
}

impl<P: Into<String>> FromIterator<P> for Granted {
    fn from_iter<I: IntoIterator<Item = P>>(permissions: I) -> Self {
        Self(permissions.into_iter().map(Into::into).collect())
    }
}

/// Result of a permission check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum May {
    /// The user has the permission.
    Yes,
    /// The user does not have the permission.
    No,
    /// No user is signed in, or the account is gone and its session has been ended.
    Nobody,
}

/// Asks the application which permissions a user has. A clone costs one reference count.
///
/// ```
/// use scale_session::auth::permissions::{Granted, Permissions};
/// use std::sync::Arc;
///
/// // In an application: from its database, through its cache; `None` for an account that is
/// // deleted or locked.
/// let permissions = Permissions::new(|user: String| async move {
///     let granted: Granted = ["orders.*"].into_iter().collect();
///     Ok::<_, std::io::Error>((user == "ann").then(|| Arc::new(granted)))
/// });
/// // inside of the session layer, around the routes that refund
/// let layer = permissions.require("orders.refund");
/// ```
#[derive(Clone)]
pub struct Permissions(Arc<dyn Fn(String) -> PendingLookup + Send + Sync>);

impl std::fmt::Debug for Permissions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permissions")
    }
}

impl Permissions {
    /// `ask` receives the user id of the [sign-in](Session::sign_in) and returns the user's
    /// permissions, or `None` if there is no such user any more.
    pub fn new<F, Fut, E>(ask: F) -> Self
    where
        F: Fn(String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<Arc<Granted>>, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Arc::new(move |user| {
            let asked = ask(user);
            Box::pin(async move { asked.await.map_err(Into::into) })
        }))
    }

    /// Returns whether the session's user has a permission.
    ///
    /// # Errors
    /// [`Error::Permissions`]: the answer is unknown, so treat it as a no.
    pub async fn may(&self, session: &Session, permission: &str) -> Result<May, Error> {
        let Some(user) = session.user().await? else { return Ok(May::Nobody) };
        // The user behind an impersonation must still exist as well.
        if let Some(by) = session.impersonator().await?
            && (self.0)(by).await.map_err(Error::Permissions)?.is_none()
        {
            session.destroy().await?;
            return Ok(May::Nobody);
        }
        match (self.0)(user).await.map_err(Error::Permissions)? {
            Some(granted) if granted.allows(permission) => Ok(May::Yes),
            Some(_) => Ok(May::No),
            None => {
                session.destroy().await?;
                Ok(May::Nobody)
            }
        }
    }

    /// Returns a layer that admits only users with the permission.
    pub fn require(&self, permission: impl Into<Arc<str>>) -> RequireLayer {
        RequireLayer { permissions: self.clone(), permission: permission.into() }
    }
}

/// Admits only users with a permission; see the [module's table](self). Place this layer inside of
/// the session layer.
#[derive(Clone, Debug)]
pub struct RequireLayer {
    permissions: Permissions,
    permission: Arc<str>,
}

impl<S> Layer<S> for RequireLayer {
    type Service = Require<S>;

    fn layer(&self, inner: S) -> Require<S> {
        Require { layer: self.clone(), inner }
    }
}

/// Service of [`RequireLayer`].
#[derive(Clone, Debug)]
pub struct Require<S> {
    layer: RequireLayer,
    inner: S,
}

impl<S, Req, Res> Service<Request<Req>> for Require<S>
where
    S: Service<Request<Req>, Response = Response<Res>> + Clone + Send + 'static,
    S::Future: Send,
    Req: Send + 'static,
    Res: Default,
{
    type Response = Response<Res>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Res>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        // The ready service is the one called; its clone waits for the next request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let RequireLayer { permissions, permission } = self.layer.clone();
        Box::pin(async move {
            let session = request.extensions().get::<Session>().cloned();
            let may = match &session {
                Some(session) => permissions.may(session, &permission).await,
                None => Err(Error::Setting("this layer must be inside of the session layer")),
            };
            let refused = match may {
                Ok(May::Yes) => return inner.call(request).await,
                Ok(May::No) => StatusCode::FORBIDDEN,
                Ok(May::Nobody) => StatusCode::UNAUTHORIZED,
                Err(error) => {
                    tracing::error!(%error, permission = &*permission, "permission check failed");
                    StatusCode::SERVICE_UNAVAILABLE
                }
            };
            metrics::counter!(
                "scale_session_refused_total", "status" => refused.as_str().to_owned(),
            )
            .increment(1);
            let mut response = Response::new(Res::default());
            *response.status_mut() = refused;
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_covers_what_is_below_it_and_nothing_else() {
        let granted: Granted = ["a.b.*", "c", "d.e"].into_iter().collect();
        for (permission, allowed) in [
            ("a.b.c", true),
            ("a.b.c.d", true),
            ("a.b", false),
            ("a.bc", false),
            ("c", true),
            ("c.d", false),
            ("d", false),
            ("", false),
            ("a.b.", true),
            ("*", false),
            (".", false),
            ("é.ü", false),
        ] {
            assert_eq!(granted.allows(permission), allowed, "{permission}");
        }
        let all: Granted = ["*"].into_iter().collect();
        assert!(all.allows("anything.at.all") && all.allows(""));
        assert!(!Granted::default().allows(""));
    }
}
