//! The live page: what runs, what passes, what was lost, and buttons.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use maud::{DOCTYPE, Markup, html};
use scale_session::auth::CsrfLayer;
use serde::Deserialize;
use tokio::net::TcpListener;

use super::Cluster;
use super::action::Action;
use super::watch::Watched;

const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");

/// Buttons, by what they do to.
const BUTTONS: [(&str, &[&str]); 4] = [
    ("Web processes", &["kill web-1", "pause web-2", "resume web-1", "resume web-2", "roll"]),
    ("Workers", &["kill worker-1", "pause worker-1", "resume worker-1"]),
    ("Postgres", &["kill replica", "pause replica", "resume replica", "promote"]),
    ("Redis", &["kill redis", "pause redis", "resume redis"]),
];

/// Serves the page for as long as it is polled.
pub(super) async fn serve(
    address: SocketAddr,
    cluster: Arc<Cluster>,
    state: Watched,
) -> Result<()> {
    let app = Router::new()
        .route("/", get(page))
        .route("/page.js", get(|| async { ([(CONTENT_TYPE, "text/javascript")], SCRIPT) }))
        .route("/page.css", get(|| async { ([(CONTENT_TYPE, "text/css")], STYLE) }))
        .route("/state", get(move || std::future::ready(Json(state.borrow().clone()))))
        .route("/act", post(act))
        // Another site must not press these buttons.
        .layer(CsrfLayer::new())
        .layer(from_fn(by_address))
        .with_state(cluster);
    Ok(axum::serve(TcpListener::bind(address).await?, app).await?)
}

/// Refuses names other than `localhost`: a site whose name leads to this machine must not get here.
async fn by_address(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let is_address = host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok();
    if is_address || host == "localhost" || host.starts_with("localhost:") {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "expected the host as an address, or localhost\n").into_response()
}

#[derive(Deserialize)]
struct Pressed {
    action: String,
}

async fn act(
    State(cluster): State<Arc<Cluster>>,
    Form(Pressed { action }): Form<Pressed>,
) -> impl IntoResponse {
    match action.parse::<Action>() {
        Ok(action) => {
            cluster.begin(action);
            (StatusCode::ACCEPTED, String::new())
        }
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
    }
}

async fn page(State(cluster): State<Arc<Cluster>>) -> impl IntoResponse {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'";
    ([(CONTENT_SECURITY_POLICY, policy)], content(&cluster))
}

fn content(cluster: &Cluster) -> Markup {
    let figures = [
        ("requests_per_second", "requests a second"),
        ("failures_per_second", "failures a second"),
        ("orders", "orders acknowledged"),
        ("orders_lost", "orders lost"),
        ("receipts_missing", "receipts on their way"),
        ("sessions_lost", "sessions lost"),
        ("failures", "requests failed, all in all"),
    ];
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "A fleet of the shop" }
                link rel="stylesheet" href="/page.css";
                script src="/page.js" defer {}
            }
            body {
                main {
                    h1 { "A fleet of the shop" }
                    p { a href={ "http://" (cluster.fleet.balancer.address()) } { "The shop" } }
                    dl.figures {
                        @for (name, about) in figures {
                            div { dd data-figure=(name) { "–" } dt { (about) } }
                        }
                    }
                    svg id="chart" viewBox="0 0 600 120" preserveAspectRatio="none" role="img"
                        aria-label="requests a second" {
                        polyline id="line" points="";
                    }
                    table { tbody id="parts" {} }
                    p id="last" role="status" {}
                    @for (about, actions) in BUTTONS {
                        fieldset {
                            legend { (about) }
                            @for action in actions {
                                button type="button" data-action=(action) { (action) }
                            }
                        }
                    }
                }
            }
        }
    }
}
