//! Limits of a request, for its handler.

use std::sync::Arc;

use crate::decision::{Decision, Outcome};
use crate::permit::Permits;

/// Outcomes of the limits that a request has passed, for its handler. They are in the request's
/// extensions, if the layer [is configured so](crate::LimitLayer::with_extension). Nested layers
/// contribute all their outcomes.
///
/// ```
/// use axum::{Extension, Router, routing::get};
/// use scale_limit::layer::Limits;
/// use scale_limit::{LimitLayer, Limiter, Policy};
///
/// async fn usage(Extension(limits): Extension<Limits>) -> String {
///     format!("{:?} requests left", limits.remaining("api"))
/// }
///
/// let limits = LimitLayer::new(Limiter::memory())
///     .policy(Policy::per_hour("api", 1_000), |_| Some("all".into()));
/// let app: Router = Router::new().route("/usage", get(usage)).layer(limits.with_extension());
/// ```
#[derive(Clone, Debug)]
pub struct Limits(Arc<[Outcome]>);

impl Limits {
    pub(super) fn new(decision: &Decision, outer: Option<&Self>) -> Self {
        let outer = outer.map(|outer| outer.outcomes().iter()).into_iter().flatten();
        Self(outer.chain(decision.outcomes()).cloned().collect())
    }

    /// Returns one outcome for each policy, in the order of the charges.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.0
    }

    /// Returns the number of units left of a policy, by its name; `None` if the policy does not
    /// apply to this request. `u32::MAX`: no limit.
    pub fn remaining(&self, policy: &str) -> Option<u32> {
        self.0.iter().find(|outcome| outcome.policy() == policy).map(Outcome::remaining)
    }
}

/// Permits that a request holds of [concurrency policies](crate::Policy::concurrency). Each request
/// with permits has them in its extensions.
///
/// The permits are released when the response body has been sent. A connection that lives on, such
/// as a websocket, must hold them itself: move this value into its task. An upgrade (status 101)
/// whose permits are not held is refused with 500, and an error is logged.
///
/// ```
/// use axum::extract::ws::WebSocketUpgrade;
/// use axum::response::Response;
/// use axum::{Extension, Router, routing::any};
/// use scale_limit::layer::Places;
/// use scale_limit::{LimitLayer, Limiter, Policy};
///
/// async fn chat(upgrade: WebSocketUpgrade, places: Option<Extension<Places>>) -> Response {
///     upgrade.on_upgrade(async move |mut socket| {
///         while socket.recv().await.is_some() {}
///         drop(places);
///     })
/// }
///
/// let limits = LimitLayer::new(Limiter::memory())
///     .policy(Policy::concurrency("chat", 1_000), |_| Some("all".into()));
/// let app: Router = Router::new().route("/chat", any(chat)).layer(limits);
/// ```
#[derive(Clone, Debug)]
pub struct Places {
    _held: Arc<Permits>,
    /// Permits of outer layers.
    _outer: Option<Box<Self>>,
}

impl Places {
    pub(super) fn new(held: &Arc<Permits>, outer: Option<Self>) -> Self {
        Self { _held: Arc::clone(held), _outer: outer.map(Box::new) }
    }
}
