//! Page of this visitor's orders. Always shows the latest one: reads follow the visitor's own
//! writes.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use maud::{Markup, html};
use scale_session::Session;
use serde::Deserialize;

use super::{ORDERS, Page, layout, money, problem, user};
use crate::app::App;
use crate::db::now_ms;
use crate::db::orders::{self, List, Slice};

pub(crate) async fn list(
    State(app): State<App>,
    session: Session,
    Query(slice): Query<Slice>,
) -> Page {
    let account = user(&session).await?;
    let mut list = match &account {
        Some(user) => orders::page(&app.db, Some(&user.email), slice).await?,
        None => List { orders: Vec::new(), older: None, newer: None },
    };
    if slice.is_first() {
        // Orders placed in this session before a log-in, or without one.
        let known: Vec<i64> = session.get(ORDERS).await?.unwrap_or_default();
        let mut known = orders::with_ids(&app.db, &known).await?;
        known.retain(|order| account.as_ref().is_none_or(|user| order.account != user.email));
        list.orders.extend(known);
        list.orders.sort_by_key(|order| std::cmp::Reverse(order.id));
    }
    let content = html! {
        section.narrow {
            h1 { "Orders" }
            @if list.orders.is_empty() {
                @if slice.is_first() { p.soft { "None yet." } }
                @else { p { "No more orders here. " a href="/orders" { "The newest ones" } } }
            }
            table {
                @for order in &list.orders {
                    tr {
                        td { a href={ "/orders/" (order.id) } { "Order " (order.id) } }
                        td.soft { (ago(order.placed_ms)) }
                        td.number { (money(order.total_cents)) }
                    }
                }
            }
            (turns("/orders", &list))
        }
    };
    Ok(layout(&session, "Orders", content).await?.into_response())
}

/// Returns the links to the neighbours of a slice.
pub(super) fn turns(path: &str, list: &List) -> Markup {
    html! {
        div.more.row {
            @if let Some(id) = list.newer {
                a href={ (path) "?newer=" (id) } rel="prev" { "Newer" }
            }
            @if let Some(id) = list.older {
                a href={ (path) "?older=" (id) } rel="next" { "Older" }
            }
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct Look {
    /// Number of times that the page has reloaded itself.
    #[serde(default)]
    pub(super) look: u32,
}

/// Seconds until a page looks again for what a job makes.
pub(super) const LOOKS: [u32; 7] = [1, 1, 2, 4, 8, 15, 30];

pub(crate) async fn show(
    State(app): State<App>,
    session: Session,
    Path(id): Path<i64>,
    Query(Look { look }): Query<Look>,
) -> Page {
    let known: Vec<i64> = session.get(ORDERS).await?.unwrap_or_default();
    // Another customer's order and an unknown order give the same answer.
    let account = user(&session).await?.map(|user| user.email);
    let order = orders::order(&app.db, id)
        .await?
        .filter(|o| known.contains(&id) || account.as_ref() == Some(&o.account));
    let Some(order) = order else {
        return Ok(
            (StatusCode::NOT_FOUND, problem("You have no order with that number.")).into_response()
        );
    };
    let items = orders::items(&app.db, id).await?;
    let receipt = orders::receipt(&app.db, id).await?;
    let again = LOOKS.get(look as usize).filter(|_| receipt.is_none());
    let content = html! {
        @if let Some(seconds) = again {
            meta http-equiv="refresh" content={
                (seconds) ";url=/orders/" (order.id) "?look=" (look + 1)
            };
        }
        section.narrow {
            h1 { "Order " (order.id) }
            p.soft { "Placed " (ago(order.placed_ms)) ", for " (order.email) }
            table {
                @for item in &items {
                    tr {
                        td { a href={ "/products/" (item.product_id) } { (item.name) } }
                        td.number { (item.quantity) " ×" }
                        td.number { (money(item.quantity * item.price_cents)) }
                    }
                }
                tr { th colspan="2" { "Total" } th.number { (money(order.total_cents)) } }
            }
            @match &receipt {
                Some(receipt) => {
                    p.note {
                        "The receipt was sent"
                        @if receipt.attempt > 1 { ", at attempt " (receipt.attempt) }
                        "."
                    }
                    pre { (receipt.body) }
                }
                None => p.note role="status" {
                    "Your receipt is on its way"
                    @if again.is_some() { "…" } @else {
                        ", and takes longer than usual. It will come by mail. "
                        a href={ "/orders/" (order.id) } { "Look again" }
                    }
                },
            }
        }
    };
    Ok(layout(&session, &format!("Order {id}"), content).await?.into_response())
}

pub(super) fn ago(then_ms: i64) -> String {
    match (now_ms() - then_ms) / 60_000 {
        ..=0 => "just now".into(),
        1..=59 => format!("{} min ago", (now_ms() - then_ms) / 60_000),
        minutes @ 60..=2_879 => format!("{} h ago", minutes / 60),
        minutes => format!("{} days ago", minutes / 1_440),
    }
}
