//! The guest book on leptos, rendered by the server: `cargo run`, then open
//! <http://127.0.0.1:3000>.

mod guestbook;

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::Method;
use axum::routing::{get, post};
use axum::{Router, serve};
use guestbook::Guestbook;
use leptos::prelude::*;
use leptos_axum::{extract, handle_server_fns_with_context, redirect};
use scale_db::StickyLayer;
use scale_limit::LimitLayer;
use scale_limit::client::ClientIp;
use scale_limit::layer::Throttle;
use scale_session::Session;

/// Makes an error of the guest book one of leptos: logged, and without details for the client.
fn failed(error: anyhow::Error) -> ServerFnError {
    eprintln!("{error:#}");
    ServerFnError::new("the guest book has failed")
}

#[server]
async fn page() -> Result<String, ServerFnError> {
    let (book, session) = (expect_context::<Guestbook>(), extract::<Session>().await?);
    book.page(&session).await.map_err(failed)
}

#[server(endpoint = "write")]
async fn write(text: String) -> Result<(), ServerFnError> {
    expect_context::<Guestbook>().write(text).await.map_err(failed)?;
    redirect("/");
    Ok(())
}

#[component]
fn Book() -> impl IntoView {
    let entries = Resource::new_blocking(|| (), |()| page());
    let write = ServerAction::<Write>::new();
    view! {
        <!DOCTYPE html>
        <html lang="en">
            <head>
                <meta charset="utf-8" />
                <title>"Guest book"</title>
            </head>
            <body>
                <pre>
                    <Suspense>{move || Suspend::new(async move { entries.await })}</Suspense>
                </pre>
                <ActionForm action=write>
                    <label>"Your entry: " <input name="text" required /></label>
                    <button>"Write"</button>
                </ActionForm>
            </body>
        </html>
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Leptos has its own tasks, which run on tokio.
    any_spawner::Executor::init_tokio()?;
    let book = Guestbook::connect().await?;
    // Behind a proxy, `ClientIp::behind` reads the header that the proxy writes.
    let clients = ClientIp::direct();
    let entries = Throttle::new(Guestbook::entries_per_client(), move |head| clients.key(head));
    let limits = LimitLayer::new(book.limiter.clone()).throttle(entries.method(Method::POST));
    let worker = tokio::spawn(book.clone().work());
    let context = {
        let book = book.clone();
        move || provide_context(book.clone())
    };
    let functions = {
        let context = context.clone();
        post(move |request| handle_server_fns_with_context(context.clone(), request))
    };
    let app = Router::new()
        .route("/", get(leptos_axum::render_app_async_with_context(context, Book)))
        .route("/api/{*function}", functions)
        .layer(book.sessions.clone())
        // A visitor reads their own entry, also from a replica.
        .layer(StickyLayer::new(book.db.clone()))
        .layer(limits.preserve_body(Body::new));
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = tokio::net::TcpListener::bind(address).await?;
    serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    worker.await?
}
