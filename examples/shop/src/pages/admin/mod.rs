//! Pages for staff. For other visitors they do not exist.

mod audit;
mod orders;
mod products;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::{Markup, html};
use scale_queue::Dashboard;
use scale_session::Session;

use super::{Failure, Page, layout, problem, user};
use crate::app::App;
use crate::db::users::{self, Account, Role};

pub(crate) fn routes(app: &App) -> Router<App> {
    let queues = Router::new()
        .fallback_service(Dashboard::new(&app.queue).allow_changes(|_| true))
        .layer(from_fn_with_state(app.clone(), staff_only));
    Router::new()
        .route("/admin", get(menu))
        .route("/admin/products", get(products::list))
        .route("/admin/products/{id}", get(products::form).post(products::change))
        .route("/admin/orders", get(orders::list))
        .route("/admin/audit", get(audit::list))
        .route_layer(from_fn_with_state(app.clone(), staff_only))
        .nest_service("/admin/queues", queues)
}

/// Admits staff, whose account handlers get as an extension.
async fn staff_only(
    State(app): State<App>,
    session: Session,
    mut request: Request,
    next: Next,
) -> Response {
    match staff(&app, &session).await {
        Ok(Some(account)) => {
            request.extensions_mut().insert(account);
            next.run(request).await
        }
        Ok(None) => (StatusCode::NOT_FOUND, problem("There is no such page.")).into_response(),
        Err(failure) => failure.into_response(),
    }
}

async fn staff(app: &App, session: &Session) -> Result<Option<Account>, Failure> {
    let Some(account) = user(session).await? else { return Ok(None) };
    let is_staff = users::has_role(&app.db, &account.email, Role::Staff).await?;
    Ok(is_staff.then_some(account))
}

async fn menu(session: Session) -> Page {
    let pages = [
        ("/admin/products", "Products", "prices and stock"),
        ("/admin/orders", "Orders", "of all customers"),
        ("/admin/queues/", "Queues", "jobs that wait, run and have failed"),
        ("/admin/audit", "Audit log", "who has changed what"),
    ];
    let content = html! {
        section.narrow {
            h1 { "Behind the counter" }
            table {
                @for (path, name, about) in pages {
                    tr { td { a href=(path) { (name) } } td.soft { (about) } }
                }
            }
        }
    };
    Ok(layout(&session, "Behind the counter", content).await?.into_response())
}

/// Returns the line above each page, with the way back to the menu.
fn trail() -> Markup {
    html! { p.soft { a href="/admin" { "Behind the counter" } } }
}
