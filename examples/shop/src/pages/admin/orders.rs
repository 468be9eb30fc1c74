//! Orders of all customers, newest first.

use axum::extract::{Query, State};
use axum::response::IntoResponse;
use maud::html;
use scale_session::Session;

use super::trail;
use crate::app::App;
use crate::db::orders::{self, Slice};
use crate::pages::orders::{ago, turns};
use crate::pages::{Page, layout, money};

pub(super) async fn list(
    State(app): State<App>,
    session: Session,
    Query(slice): Query<Slice>,
) -> Page {
    let list = orders::page(&app.db, None, slice).await?;
    let content = html! {
        section.narrow {
            (trail())
            h1 { "Orders" }
            @if list.orders.is_empty() { p.soft { "None yet." } }
            table {
                @for order in &list.orders {
                    tr {
                        td { "Order " (order.id) }
                        td { (order.email) }
                        td.soft { (ago(order.placed_ms)) }
                        td.number { (money(order.total_cents)) }
                    }
                }
            }
            (turns("/admin/orders", &list))
        }
    };
    Ok(layout(&session, "Orders", content).await?.into_response())
}
