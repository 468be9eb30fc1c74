//! The web process: routes and layers.

mod connections;
mod health;

use std::future::Future;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusBuilder;
use scale_cache::http::HttpCacheLayer;
use scale_db::StickyLayer;
use scale_limit::layer::Throttle;
use scale_limit::load::AdaptiveConcurrency;
use scale_limit::{LimitLayer, LoadShed};
use scale_queue::Dashboard;
use scale_session::Session;
use scale_session::auth::CsrfLayer;
use tokio::net::TcpListener;
use tower_http::timeout::{RequestBodyTimeoutLayer, TimeoutLayer};

use self::health::Leaving;
use crate::app::App;
use crate::config::Config;
use crate::db::users::{self, Role};
use crate::pages::{
    Failure, account, cart, catalogue, checkout, devices, orders, passkeys, passwords,
};

/// Serves until `stop` completes. Then the process leaves in three steps: it is not ready any more
/// and still serves, so that its balancer takes it out; it accepts no connection and finishes its
/// requests; it cuts those that take too long.
pub(crate) async fn run(
    app: App,
    config: &Config,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let metrics = PrometheusBuilder::new().install_recorder().context("metrics recorder")?;
    let listener = listen(config.listen).await?;
    let leaving = Leaving::default();
    let operations = match config.operations {
        Some(address) => {
            let routes = Router::new()
                .route("/metrics", get(move || std::future::ready(metrics.render())))
                .merge(health::routes(app.clone(), leaving.clone()));
            Some((listen(address).await?, routes))
        }
        None => None,
    };
    let router = router(app.clone(), config).merge(health::routes(app, leaving.clone()));
    announce(listener.local_addr()?, operations.as_ref().map(|(at, _)| at.local_addr()));
    let (head, lameduck, drain) = (config.timeouts.head, config.stop.lameduck, config.stop.drain);
    let stop = async move {
        stop.await;
        leaving.begin();
        tokio::time::sleep(lameduck).await;
    };
    let pages = connections::serve(listener, router, head, stop, drain);
    match operations {
        None => pages.await,
        // Until the end: what is measured while the process leaves matters most.
        Some((listener, routes)) => tokio::select! {
            () = pages => {}
            () = connections::serve(listener, routes, head, std::future::pending(), drain) => {}
        },
    }
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
}

#[allow(clippy::print_stdout)]
fn announce(address: SocketAddr, operations: Option<std::io::Result<SocketAddr>>) {
    if let Some(Ok(operations)) = operations {
        println!("For operators: http://{operations}/metrics");
    }
    println!("The shop is open: http://{address}");
}

fn router(app: App, config: &Config) -> Router {
    let mut sticky = StickyLayer::new(app.db.clone());
    if config.plain_http {
        sticky = sticky.insecure();
    }
    let [site, login, forgot, search] = [(); 4].map(|()| config.clients.clone());
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
        .throttle(
            Throttle::new(config.limit.search.clone(), move |request| search.key(request))
                .path("/")
                .when(|request| request.uri.query().is_some_and(searches)),
        )
        .preserve_body(Body::new);
    // Under overload, only catalogue requests are refused.
    let shed = config.limit.shed.then(|| LoadShed::new(AdaptiveConcurrency::default()));
    let admin = Router::new()
        .fallback_service(Dashboard::new(&app.queue).allow_changes(|_| true))
        .layer(from_fn_with_state(app.clone(), staff_only));
    let shelves = Router::new()
        .route("/", get(catalogue::list))
        .route("/products/{id}", get(catalogue::product));
    let shelves = match shed {
        Some(shed) => shelves.layer(shed),
        None => shelves,
    };
    Router::new()
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
        // A client that sends its form slowly holds a request no longer than that.
        .layer(RequestBodyTimeoutLayer::new(config.timeouts.body_part))
        // Public pages are answered from the cache, without the layers below; pages that depend on
        // a session are never cached.
        .layer(HttpCacheLayer::new(&app.cache))
        .layer(limits)
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, config.timeouts.request))
        .with_state(app)
}

/// Returns whether a query string has words to search for.
fn searches(query: &str) -> bool {
    query.split('&').any(|pair| pair.starts_with("q=") && pair != "q=")
}

/// Admits staff; for other visitors the page does not exist.
async fn staff_only(
    State(app): State<App>,
    session: Session,
    request: Request,
    next: Next,
) -> Response {
    let is_staff = async {
        let Some(user) = crate::pages::user(&session).await? else { return Ok(false) };
        Ok::<_, Failure>(users::has_role(&app.db, &user.email, Role::Staff).await?)
    };
    match is_staff.await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
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
