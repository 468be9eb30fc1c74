//! Limits of a request, as its handler can read them.

use std::sync::Arc;

use crate::decision::{Decision, Outcome};
use crate::permit::Permits;

/// The standing of a request with the limits it has passed, for handlers: in the request's extensions, if the layer
/// [says so](crate::LimitLayer::with_extension). Of layers in layers, what all of them say.
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
/// let limits = LimitLayer::new(Limiter::memory()).policy(Policy::per_hour("api", 1_000), |_| Some("all".into()));
/// let app: Router = Router::new().route("/usage", get(usage)).layer(limits.with_extension());
/// ```
#[derive(Clone, Debug)]
pub struct Limits(Arc<[Outcome]>);

impl Limits {
    pub(super) fn new(decision: &Decision, outer: Option<&Self>) -> Self {
        let outer = outer.map(|outer| outer.outcomes().iter()).into_iter().flatten();
        Self(outer.chain(decision.outcomes()).cloned().collect())
    }

    /// One for each policy asked, in the order asked.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.0
    }

    /// Returns the units left of a policy, by its name; `None` if it does not apply to this request. `u32::MAX`: no limit.
    pub fn remaining(&self, policy: &str) -> Option<u32> {
        self.0.iter().find(|outcome| outcome.policy() == policy).map(Outcome::remaining)
    }
}

/// The places that a request holds of policies that count [how many at once](crate::Policy::at_once). It is in the extensions of each
/// request that holds some.
///
/// Places are free again when the answer's body has been sent. A connection that goes on after that, as a websocket's does, has to hold
/// them itself: move this into its task. An upgrade (status 101) whose places nobody holds is refused with 500, and an error in the log.
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
/// let limits = LimitLayer::new(Limiter::memory()).policy(Policy::at_once("chat", 1_000), |_| Some("all".into()));
/// let app: Router = Router::new().route("/chat", any(chat)).layer(limits);
/// ```
#[derive(Clone, Debug)]
pub struct Places {
    _held: Arc<Permits>,
    /// Those of layers further out.
    _outer: Option<Box<Self>>,
}

impl Places {
    pub(super) fn new(held: &Arc<Permits>, outer: Option<Self>) -> Self {
        Self { _held: Arc::clone(held), _outer: outer.map(Box::new) }
    }
}
