//! The cart: a field of the session, changed atomically, so that two concurrent clicks both count.

use std::collections::BTreeMap;

use axum::Form;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect};
use maud::html;
use scale_session::Session;
use serde::Deserialize;

use super::{CART, Failure, Page, catalogue, layout, money};
use crate::app::App;
use crate::db::orders::Item;

/// Quantities by product.
pub(crate) type Cart = BTreeMap<i64, i64>;

const MOST_PRODUCTS: usize = 50;
const MOST_PIECES: i64 = 20;

#[derive(Deserialize)]
pub(crate) struct Change {
    product: i64,
    /// Number of pieces to add; may be negative.
    add: i64,
}

pub(crate) async fn count(session: &Session) -> Result<i64, Failure> {
    let cart: Option<Cart> = session.get(CART).await?;
    Ok(cart.unwrap_or_default().values().sum())
}

pub(crate) async fn change(
    State(app): State<App>,
    session: Session,
    Form(change): Form<Change>,
) -> Page {
    if catalogue::find(&app, change.product).await?.is_some() {
        session
            .update(CART, |cart: Option<Cart>| {
                let mut cart = cart.unwrap_or_default();
                if cart.len() < MOST_PRODUCTS || cart.contains_key(&change.product) {
                    let pieces = cart.entry(change.product).or_insert(0);
                    *pieces = pieces.saturating_add(change.add).clamp(0, MOST_PIECES);
                }
                cart.retain(|_, pieces| *pieces > 0);
                (!cart.is_empty()).then_some(cart)
            })
            .await?;
    }
    Ok(Redirect::to("/cart").into_response())
}

/// Returns the items of the cart at current prices, without products that are no longer sold.
pub(crate) async fn items(app: &App, session: &Session) -> Result<Vec<Item>, Failure> {
    let cart: Cart = session.get(CART).await?.unwrap_or_default();
    let mut items = Vec::new();
    for (product_id, quantity) in cart {
        if let Some(product) = &*catalogue::find(app, product_id).await? {
            items.push(Item {
                product_id,
                name: product.name.clone(),
                quantity,
                price_cents: product.price_cents,
            });
        }
    }
    Ok(items)
}

pub(crate) async fn show(State(app): State<App>, session: Session) -> Page {
    let items = items(&app, &session).await?;
    let total: i64 = items.iter().map(|i| i.quantity * i.price_cents).sum();
    let content = html! {
        section.narrow {
            h1 { "Cart" }
            @if items.is_empty() {
                p.soft { "Nothing in it yet." }
                p { a href="/" { "Look around" } }
            } @else {
                table {
                    @for item in &items {
                        tr {
                            td { a href={ "/products/" (item.product_id) } { (item.name) } }
                            td {
                                div.row {
                                    (step(item.product_id, -1, "−"))
                                    (item.quantity)
                                    (step(item.product_id, 1, "+"))
                                }
                            }
                            td.number { (money(item.quantity * item.price_cents)) }
                        }
                    }
                    tr { th colspan="2" { "Total" } th.number { (money(total)) } }
                }
                form.stack method="post" action="/checkout" {
                    // A form sent twice is still one order.
                    input type="hidden" name="token" value=(uuid::Uuid::new_v4());
                    label {
                        "E-mail address for the receipt"
                        input type="email" name="email" required maxlength="254"
                            placeholder="you@example.com";
                    }
                    button { "Buy" }
                }
            }
        }
    };
    Ok(layout(&session, "Cart", content).await?.into_response())
}

fn step(product: i64, add: i64, sign: &str) -> maud::Markup {
    html! {
        form method="post" action="/cart" {
            input type="hidden" name="product" value=(product);
            input type="hidden" name="add" value=(add);
            button.plain aria-label={ "Change by " (add) } { (sign) }
        }
    }
}
