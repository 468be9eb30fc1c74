//! Page of this visitor's orders. Always shows the latest one: reads follow the visitor's own
//! writes.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use maud::html;
use scale_session::Session;

use super::{ORDERS, Page, layout, money, problem, user};
use crate::app::App;
use crate::db::{now_ms, orders};

pub(crate) async fn list(State(app): State<App>, session: Session) -> Page {
    let mut found = match user(&session).await? {
        Some(user) => orders::of_account(&app.db, &user.email).await?,
        None => Vec::new(),
    };
    // Orders placed in this session before a log-in, or without one.
    let known: Vec<i64> = session.get(ORDERS).await?.unwrap_or_default();
    for id in known {
        if !found.iter().any(|order| order.id == id) {
            found.extend(orders::order(&app.db, id).await?);
        }
    }
    found.sort_by_key(|order| std::cmp::Reverse(order.id));
    let content = html! {
        section.narrow {
            h1 { "Orders" }
            @if found.is_empty() { p.soft { "None yet." } }
            table {
                @for order in &found {
                    tr {
                        td { a href={ "/orders/" (order.id) } { "Order " (order.id) } }
                        td.soft { (ago(order.placed_ms)) }
                        td.number { (money(order.total_cents)) }
                    }
                }
            }
        }
    };
    Ok(layout(&session, "Orders", content).await?.into_response())
}

pub(crate) async fn show(State(app): State<App>, session: Session, Path(id): Path<i64>) -> Page {
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
    let content = html! {
        @if receipt.is_none() { meta http-equiv="refresh" content="1"; }
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
                None => p.note { "Your receipt is on its way…" },
            }
        }
    };
    Ok(layout(&session, &format!("Order {id}"), content).await?.into_response())
}

fn ago(then_ms: i64) -> String {
    match (now_ms() - then_ms) / 60_000 {
        ..=0 => "just now".into(),
        1..=59 => format!("{} min ago", (now_ms() - then_ms) / 60_000),
        minutes @ 60..=2_879 => format!("{} h ago", minutes / 60),
        minutes => format!("{} days ago", minutes / 1_440),
    }
}
