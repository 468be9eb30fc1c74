//! The web process: routes and layers.

use std::future::Future;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use scale_cache::http::HttpCacheLayer;
use scale_db::StickyLayer;
use scale_limit::layer::Throttle;
use scale_limit::load::AdaptiveConcurrency;
use scale_limit::{LimitLayer, LoadShed};
use scale_queue::Dashboard;
use scale_session::Session;
use scale_session::auth::CsrfLayer;
use tokio::net::TcpListener;

use crate::app::App;
use crate::config::Config;
use crate::pages::{account, cart, catalogue, checkout, devices, orders, passkeys, passwords};

/// Serves until `stop` completes, and then finishes the requests in progress.
pub(crate) async fn run(
    app: App,
    config: &Config,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let metrics = PrometheusBuilder::new().install_recorder().context("metrics recorder")?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listening on {}", config.listen))?;
    let address = listener.local_addr()?;
    let service = router(app, config, metrics).into_make_service_with_connect_info::<SocketAddr>();
    announce(address);
    axum::serve(listener, service).with_graceful_shutdown(stop).await.context("serving")
}

#[allow(clippy::print_stdout)]
fn announce(address: SocketAddr) {
    println!("The shop is open: http://{address}");
}

fn router(app: App, config: &Config, metrics: PrometheusHandle) -> Router {
    let mut sticky = StickyLayer::new(app.db.clone());
    if config.plain_http {
        sticky = sticky.insecure();
    }
    let (site, login, forgot) =
        (config.clients.clone(), config.clients.clone(), config.clients.clone());
    let limits = LimitLayer::new(app.limiter.clone())
        .policy(config.limit.site.clone(), move |request| site.key(request))
        .throttle(
            Throttle::new(config.limit.login.clone(), move |request| login.key(request))
                .method(Method::POST)
                .path("/login"),
        )
        .throttle(
            Throttle::new(config.limit.login.clone(), move |request| forgot.key(request))
                .method(Method::POST)
                .path("/forgot"),
        )
        .preserve_body(Body::new);
    // Under overload, only catalogue requests are refused.
    let shed = config.limit.shed.then(|| LoadShed::new(AdaptiveConcurrency::default()));
    // Every logged-in user counts as staff here; a real shop has roles.
    let admin = Router::new()
        .fallback_service(Dashboard::new(&app.queue).allow_changes(|_| true))
        .layer(from_fn(staff_only));
    let shelves = Router::new()
        .route("/", get(catalogue::list))
        .route("/products/{id}", get(catalogue::product));
    let shelves = match shed {
        Some(shed) => shelves.layer(shed),
        None => shelves,
    };
    let shop = Router::new()
        .merge(shelves)
        .route("/cart", get(cart::show).post(cart::change))
        .route("/checkout", post(checkout::place))
        .route("/orders", get(orders::list))
        .route("/orders/{id}", get(orders::show))
        .route("/login", get(account::form).post(account::log_in))
        .route("/logout", post(account::log_out))
        .route("/devices", get(devices::list).post(devices::end))
        .route("/forgot", get(passwords::forgot).post(passwords::ask))
        .route("/reset-password", get(passwords::form).post(passwords::set))
        .route("/passkeys.js", get(passkeys::script))
        .route("/passkeys", get(passkeys::list))
        .route("/passkeys/begin", post(passkeys::begin_registration))
        .route("/passkeys/finish", post(passkeys::finish_registration))
        .route("/passkeys/remove", post(passkeys::remove))
        .route("/login/passkey/begin", post(passkeys::begin_log_in))
        .route("/login/passkey/finish", post(passkeys::finish_log_in))
        .nest_service("/admin/queues", admin)
        .fallback(|| async {
            (StatusCode::NOT_FOUND, crate::pages::problem("There is no such page."))
        })
        .layer(app.sessions.clone())
        .layer(sticky)
        // Pages of other sites must not send this shop's forms.
        .layer(CsrfLayer::new())
        .layer(from_fn(hardened))
        // Public pages are answered from the cache, without the layers below; pages that depend on
        // a session are never cached.
        .layer(HttpCacheLayer::new(&app.cache))
        .layer(limits)
        .with_state(app.clone());
    // For a load balancer and a metrics scraper; not limited.
    let operations = Router::new()
        .route("/health/live", get(|| async { "alive\n" }))
        .route("/health/ready", get(ready))
        .with_state(app)
        .route("/metrics", get(move || std::future::ready(metrics.render())));
    shop.merge(operations)
}

async fn ready(State(app): State<App>) -> Response {
    match app.ready().await {
        Ok(()) => "ready\n".into_response(),
        Err(error) => {
            tracing::warn!("not ready: {error:#}");
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
        }
    }
}

/// Admits staff; for other visitors the page does not exist.
async fn staff_only(session: Session, request: Request, next: Next) -> Response {
    match crate::pages::user(&session).await {
        Ok(Some(_)) => next.run(request).await,
        Ok(None) => {
            (StatusCode::NOT_FOUND, crate::pages::problem("There is no such page.")).into_response()
        }
        Err(failure) => failure.into_response(),
    }
}

/// Adds headers that restrict what pages may do in browsers.
async fn hardened(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers
        .entry(header::X_CONTENT_TYPE_OPTIONS)
        .or_insert(header::HeaderValue::from_static("nosniff"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(header::HeaderValue::from_static(
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; \
         img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ));
    response
}
