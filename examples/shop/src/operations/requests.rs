//! Metrics of HTTP requests, by route: `/products/{id}`, and not an address of each product.
//!
//! | metric | meaning |
//! | --- | --- |
//! | `http_server_request_duration_seconds` | time until the response began, by `method`, `route` and `status` |
//! | `http_server_active_requests` | requests whose response has not begun |

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;

pub(super) const DURATION: &str = "http_server_request_duration_seconds";
pub(super) const ACTIVE: &str = "http_server_active_requests";

/// Counts a request, also if its client goes away.
struct Active;

impl Active {
    fn begin() -> Self {
        metrics::gauge!(ACTIVE).increment(1.0);
        Self
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        metrics::gauge!(ACTIVE).decrement(1.0);
    }
}

/// Measures a request.
pub(crate) async fn measured(request: Request, next: Next) -> Response {
    let (active, began) = (Active::begin(), Instant::now());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = name(request.method());
    let response = next.run(request).await;
    let labels = [
        ("method", metrics::SharedString::const_str(method)),
        ("route", route.map_or("none".into(), |route| route.as_str().to_owned().into())),
        ("status", response.status().as_str().to_owned().into()),
    ];
    metrics::histogram!(DURATION, &labels).record(began.elapsed().as_secs_f64());
    drop(active);
    response
}

/// Returns the name of a method. A client can invent others: they are counted together.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
