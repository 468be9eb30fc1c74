//! The guest book on loco: `cargo run -- start`, then `curl 127.0.0.1:3000` and
//! `curl -d text=Hello 127.0.0.1:3000`.

mod guestbook;

use axum::Router;
use axum::body::Body;
use axum::response::Redirect;
use guestbook::Guestbook;
use loco_rs::app::Hooks;
use loco_rs::bgworker::Queue;
use loco_rs::boot::{BootResult, StartMode, create_app};
use loco_rs::config::Config;
use loco_rs::controller::{AppRoutes, Routes};
use loco_rs::environment::Environment;
use loco_rs::prelude::*;
use loco_rs::task::Tasks;
use loco_rs::{Error, Result, cli};
use scale_db::StickyLayer;
use scale_limit::LimitLayer;
use scale_limit::client::ClientIp;
use scale_limit::layer::Throttle;
use scale_session::Session;
use serde::Deserialize;

struct App;

#[derive(Deserialize)]
struct Entry {
    text: String,
}

/// Makes an error of the guest book one of loco: logged, and 500 for the client.
fn failed(error: anyhow::Error) -> Error {
    Error::Any(error.into())
}

async fn page(SharedStore(book): SharedStore<Guestbook>, session: Session) -> Result<String> {
    book.page(&session).await.map_err(failed)
}

async fn write(
    SharedStore(book): SharedStore<Guestbook>,
    Form(entry): Form<Entry>,
) -> Result<Redirect> {
    book.write(entry.text).await.map_err(failed)?;
    Ok(Redirect::to("/"))
}

#[async_trait]
impl Hooks for App {
    fn app_name() -> &'static str {
        env!("CARGO_PKG_NAME")
    }

    async fn boot(
        mode: StartMode,
        environment: &Environment,
        config: Config,
    ) -> Result<BootResult> {
        create_app::<Self>(mode, environment, config).await
    }

    async fn after_context(context: AppContext) -> Result<AppContext> {
        context.shared_store.insert(Guestbook::connect().await.map_err(failed)?);
        Ok(context)
    }

    async fn before_run(context: &AppContext) -> Result<()> {
        let book = book(context)?;
        // On many servers, run it in processes of its own, as a task of loco.
        context.shared_store.insert(tokio::spawn(book.work()));
        Ok(())
    }

    fn routes(_: &AppContext) -> AppRoutes {
        AppRoutes::empty().add_route(Routes::new().add("/", get(page)).add("/", post(write)))
    }

    async fn after_routes(router: Router, context: &AppContext) -> Result<Router> {
        let book = book(context)?;
        // Behind a proxy, `ClientIp::behind` reads the header that the proxy writes.
        let clients = ClientIp::direct();
        let entries = Throttle::new(Guestbook::entries_per_client(), move |head| clients.key(head));
        let limits = LimitLayer::new(book.limiter.clone())
            .throttle(entries.method(axum::http::Method::POST));
        Ok(router
            .layer(book.sessions.clone())
            // A visitor reads their own entry, also from a replica.
            .layer(StickyLayer::new(book.db.clone()))
            .layer(limits.preserve_body(Body::new)))
    }

    async fn on_shutdown(context: &AppContext) {
        type Worker = tokio::task::JoinHandle<anyhow::Result<()>>;
        if let Some(worker) = context.shared_store.remove::<Worker>() {
            drop(worker.await);
        }
    }

    async fn connect_workers(_: &AppContext, _: &Queue) -> Result<()> {
        Ok(())
    }

    fn register_tasks(_: &mut Tasks) {}
}

fn book(context: &AppContext) -> Result<Guestbook> {
    context.shared_store.get().ok_or_else(|| Error::Message("no guest book".into()))
}

#[tokio::main]
async fn main() -> Result<()> {
    cli::main::<App>().await
}
