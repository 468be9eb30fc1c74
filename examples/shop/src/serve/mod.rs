//! The web process: routes and layers.

pub(crate) mod connections;

use std::future::Future;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use scale_cache::http::HttpCacheLayer;
use scale_db::StickyLayer;
use scale_limit::layer::Throttle;
use scale_limit::load::{AdaptiveConcurrency, Priority};
use scale_limit::{LimitLayer, LoadShed};
use scale_session::auth::CsrfLayer;
use tokio::net::TcpListener;
use tower_http::timeout::{RequestBodyTimeoutLayer, TimeoutLayer};

use crate::app::App;
use crate::config::Config;
use crate::db::catalogue::Search;
use crate::operations::health::{self, Health};
use crate::operations::requests;
use crate::pages::{
    account, admin, assets, cart, catalogue, checkout, devices, login, orders, passkeys, passwords,
    refusals, second_factor, signup,
};

/// Serves until `stop` completes. Then the process leaves in three steps: it is not ready any more
/// and still serves, so that its balancer takes it out; it accepts no connection and finishes its
/// requests; it cuts those that take too long.
pub(crate) async fn run(
    app: App,
    config: &Config,
    health: Health,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let address = config.listen;
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    let router = router(app, config).merge(health::routes(health.clone()));
    announce(listener.local_addr()?, config.origin.as_deref());
    health.open();
    let (head, lameduck, drain) = (config.timeouts.head, config.stop.lameduck, config.stop.drain);
    let stop = async move {
        stop.await;
        health.leave();
        tokio::time::sleep(lameduck).await;
    };
    connections::serve(listener, router, head, stop, drain).await;
    Ok(())
}

#[allow(clippy::print_stdout)]
fn announce(address: SocketAddr, origin: Option<&str>) {
    println!("The shop is open: http://{address}");
    if let Some(origin) = origin {
        println!("In a browser: {origin}");
    }
}

fn router(app: App, config: &Config) -> Router {
    let mut sticky = StickyLayer::new(app.db.clone());
    if config.plain_http {
        sticky = sticky.insecure();
    }
    let [site, passwords, mails, search] = [(); 4].map(|()| config.clients.clone());
    let limits = LimitLayer::new(app.limiter.clone())
        .policy(config.limit.site.clone(), move |request| site.key(request))
        .throttle(
            Throttle::new(config.limit.login.clone(), move |request| passwords.key(request))
                .method(Method::POST)
                .path("/login"),
        )
        .throttle(
            Throttle::new(config.limit.login.clone(), move |request| mails.key(request))
                .method(Method::POST)
                .when(|request| ["/forgot", "/signup"].contains(&request.uri.path())),
        )
        .throttle(
            Throttle::new(config.limit.search.clone(), move |request| search.key(request))
                .path("/")
                .when(|request| searches(request.uri)),
        )
        .preserve_body(Body::new);
    // Under overload, only catalogue requests are refused, and searches first.
    let shed = config.limit.shed.then(|| {
        LoadShed::new(AdaptiveConcurrency::default())
            .priority(|request| match searches(request.uri) {
                true => Priority::Low,
                false => Priority::Normal,
            })
            // Each is compared with its own kind: a search takes longer.
            .class(|request| match request.uri.path() {
                "/" if searches(request.uri) => 2,
                "/" => 1,
                _ => 0,
            })
    });
    let shelves = Router::new()
        .route("/", get(catalogue::list))
        .route("/products/{id}", get(catalogue::product));
    let shelves = match shed {
        Some(shed) => shelves.layer(shed),
        None => shelves,
    };
    Router::new()
        .merge(shelves)
        .merge(assets::routes())
        .route("/cart", get(cart::show).post(cart::change))
        .route("/checkout", post(checkout::place))
        .route("/orders", get(orders::list))
        .route("/orders/{id}", get(orders::show))
        .route("/login", get(login::form).post(login::log_in))
        .route("/login/code", get(second_factor::ask).post(second_factor::answer))
        .route("/logout", post(login::log_out))
        .route("/signup", get(signup::form).post(signup::ask))
        .route("/verify-email", get(signup::opened).post(signup::create))
        .route("/account", get(account::show))
        .route("/account/delete", post(account::delete))
        .route("/account/export", get(account::exported).post(account::export))
        .route("/account/export.json", get(account::download))
        .route("/account/second-factor", get(second_factor::show).post(second_factor::confirm))
        .route("/account/second-factor/remove", post(second_factor::remove))
        .route("/devices", get(devices::list).post(devices::end))
        .route("/forgot", get(passwords::forgot).post(passwords::ask))
        .route("/reset-password", get(passwords::form).post(passwords::set))
        .route("/passkeys", get(passkeys::list))
        .route("/passkeys/begin", post(passkeys::begin_registration))
        .route("/passkeys/finish", post(passkeys::finish_registration))
        .route("/passkeys/remove", post(passkeys::remove))
        .route("/login/passkey/begin", post(passkeys::begin_log_in))
        .route("/login/passkey/finish", post(passkeys::finish_log_in))
        .merge(admin::routes(&app))
        .fallback(|| async {
            (StatusCode::NOT_FOUND, crate::pages::problem("There is no such page."))
        })
        .layer(app.sessions.clone())
        .layer(sticky)
        // Pages of other sites must not send this shop's forms.
        .layer(CsrfLayer::new())
        // A client that sends its form slowly holds a request no longer than that.
        .layer(RequestBodyTimeoutLayer::new(config.timeouts.body_part))
        // Public pages are answered from the cache, without the layers below; pages that depend on
        // a session are never cached.
        .layer(HttpCacheLayer::new(&app.cache))
        .layer(limits)
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            config.timeouts.request,
        ))
        .layer(from_fn(refusals::as_pages))
        .layer(from_fn_with_state(app.clone(), hardened))
        .layer(from_fn(requests::measured))
        .with_state(app)
}

/// Returns whether an address has words to search for, as the page reads it.
fn searches(address: &Uri) -> bool {
    Query::<Search>::try_from_uri(address).is_ok_and(|Query(search)| !search.q.trim().is_empty())
}

/// Adds headers that restrict what pages may do in browsers.
async fn hardened(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if !app.plain_http {
        // Browsers use HTTPS for this host from now on, also for addresses that say HTTP.
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            header::HeaderValue::from_static("max-age=31536000"),
        );
    }
    headers
        .entry(header::REFERRER_POLICY)
        .or_insert(header::HeaderValue::from_static("same-origin"));
    headers
        .entry(header::X_CONTENT_TYPE_OPTIONS)
        .or_insert(header::HeaderValue::from_static("nosniff"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(header::HeaderValue::from_static(
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; \
         img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ));
    response
}
