//! What somebody may do.
//!
//! The application knows, and is asked at each request; what it remembers, and for how long, is its own. Nobody is let through on a guess:
//!
//! | when | then |
//! | --- | --- |
//! | nobody is signed in, or a second factor is missing | 401 |
//! | the user has not got the permission | 403 |
//! | the user, or who [acts as them](Session::impersonate), is gone or shut out | 401, and the session ends |
//! | the application cannot say, or the session's store | 503; of the store 401, with [`OnStoreError::Anonymous`](crate::OnStoreError) |

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
type Asked = Pin<Box<dyn Future<Output = Result<Option<Arc<Granted>>, BoxError>> + Send>>;

/// What a user may do. `orders.*` is all that begins with `orders.`, and `*` is everything.
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
    /// Whether it is among them.
    pub fn allows(&self, permission: &str) -> bool {
        let wide = |star: usize| self.0.contains(&format!("{}*", &permission[..star]));
        self.0.contains(permission) || wide(0) || permission.match_indices('.').any(|(dot, _)| wide(dot + 1))
    }
}

impl<P: Into<String>> FromIterator<P> for Granted {
    fn from_iter<I: IntoIterator<Item = P>>(permissions: I) -> Self {
        Self(permissions.into_iter().map(Into::into).collect())
    }
}

/// Whether somebody may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// They may.
    Yes,
    /// They may not.
    No,
    /// Nobody is signed in; or whoever was is gone, and their session has been ended.
    Nobody,
}

/// Asks the application what a user may do. Cloning costs one reference count.
///
/// ```
/// use scale_session::auth::permissions::{Granted, Permissions};
/// use std::sync::Arc;
///
/// // In an application: from its database, through its cache; `None` for an account that is gone or shut out.
/// let permissions = Permissions::new(|user: String| async move {
///     let granted: Granted = ["orders.*"].into_iter().collect();
///     Ok::<_, std::io::Error>((user == "ann").then(|| Arc::new(granted)))
/// });
/// let layer = permissions.require("orders.refund"); // inside of the session's layer, around the routes that refund
/// ```
#[derive(Clone)]
pub struct Permissions(Arc<dyn Fn(String) -> Asked + Send + Sync>);

impl std::fmt::Debug for Permissions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permissions")
    }
}

impl Permissions {
    /// `ask` is given the user as [signed in](Session::sign_in), and says what they may do: `None` if there is no such user any more.
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

    /// Whether the session's user may.
    ///
    /// # Errors
    /// [`Error::Permissions`]: nobody can say, so they may not.
    pub async fn may(&self, session: &Session, permission: &str) -> Result<May, Error> {
        let Some(user) = session.user().await? else { return Ok(May::Nobody) };
        // Whoever acts as somebody else must still be there, too.
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

    /// A layer that lets through who may.
    pub fn require(&self, permission: impl Into<Arc<str>>) -> RequireLayer {
        RequireLayer { permissions: self.clone(), permission: permission.into() }
    }
}

/// Lets through who has a permission; see the [module's table](self). Its place is inside of the session's layer.
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

/// The service of [`RequireLayer`].
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
                None => Err(Error::Setting("this layer's place is inside of the session's")),
            };
            let refused = match may {
                Ok(May::Yes) => return inner.call(request).await,
                Ok(May::No) => StatusCode::FORBIDDEN,
                Ok(May::Nobody) => StatusCode::UNAUTHORIZED,
                Err(error) => {
                    tracing::error!(%error, permission = &*permission, "nobody is let through");
                    StatusCode::SERVICE_UNAVAILABLE
                }
            };
            metrics::counter!("scale_session_refused_total", "status" => refused.as_str().to_owned()).increment(1);
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
