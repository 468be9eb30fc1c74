//! The cart: a field of the session, changed atomically, so that two concurrent clicks both count.

use std::collections::BTreeMap;

use axum::Form;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect};
use maud::html;
use scale_session::Session;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{CART, EMAIL, Failure, Page, catalogue, layout, money, user};
use crate::app::App;
use crate::db::orders::Item;

/// Cart of a visitor, in the session.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Cart {
    /// Makes the cart one order, however often and in however many tabs it is bought.
    pub(crate) token: Uuid,
    /// Quantities by product.
    pub(crate) pieces: BTreeMap<i64, i64>,
}

impl Default for Cart {
    fn default() -> Self {
        Self { token: Uuid::new_v4(), pieces: BTreeMap::new() }
    }
}

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
    Ok(cart.map_or(0, |cart| cart.pieces.values().sum()))
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
                let known = &mut cart.pieces;
                if known.len() < MOST_PRODUCTS || known.contains_key(&change.product) {
                    let pieces = known.entry(change.product).or_insert(0);
                    *pieces = pieces.saturating_add(change.add).clamp(0, MOST_PIECES);
                }
                known.retain(|_, pieces| *pieces > 0);
                (!known.is_empty()).then_some(cart)
            })
            .await?;
    }
    Ok(Redirect::to("/cart").into_response())
}

/// Takes what was ordered out of the cart. What was added meanwhile stays.
pub(crate) async fn ordered(session: &Session, ordered: Cart) -> Result<(), Failure> {
    session
        .update(CART, |cart: Option<Cart>| {
            let cart = cart?;
            if cart.token != ordered.token {
                return Some(cart);
            }
            let mut rest = Cart { pieces: cart.pieces, ..Cart::default() };
            for (product, pieces) in &ordered.pieces {
                if let Some(left) = rest.pieces.get_mut(product) {
                    *left -= pieces;
                }
            }
            rest.pieces.retain(|_, pieces| *pieces > 0);
            (!rest.pieces.is_empty()).then_some(rest)
        })
        .await?;
    Ok(())
}

/// Corrects a cart and the cache by the prices that the database has now, so that the page shows
/// them. Returns the cart, and a note for the visitor.
pub(crate) async fn corrected(
    app: &App,
    session: &Session,
    cart: &Cart,
    prices: &BTreeMap<i64, i64>,
) -> Result<(Cart, &'static str), Failure> {
    let mut outdated = Vec::new();
    for id in cart.pieces.keys() {
        let shown = catalogue::find(app, *id).await?;
        // Only what is wrong in the cache: a form with a made-up total ends nothing.
        if shown.as_ref().as_ref().map(|product| product.price_cents) != prices.get(id).copied() {
            outdated.push(catalogue::tag(*id));
        }
    }
    if !outdated.is_empty() {
        outdated.push(catalogue::PAGES.into());
        app.invalidate(outdated).await;
    }
    if cart.pieces.keys().all(|id| prices.contains_key(id)) {
        return Ok((cart.clone(), "The price has changed. Please look at the new total."));
    }
    let rest = |cart: Option<Cart>| {
        let mut cart = cart?;
        cart.pieces.retain(|id, _| prices.contains_key(id));
        (!cart.pieces.is_empty()).then_some(cart)
    };
    let rest = session.update(CART, rest).await?.unwrap_or_default();
    Ok((rest, "Something in your cart is no longer sold. Please look at the new total."))
}

/// Returns the items of the cart at current prices, without products that are no longer sold.
pub(crate) async fn items(app: &App, cart: &Cart) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    for (&product_id, &quantity) in &cart.pieces {
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
    let cart = session.get::<Cart>(CART).await?.unwrap_or_default();
    let email = match session.get::<String>(EMAIL).await? {
        Some(email) => email,
        None => user(&session).await?.map(|account| account.email).unwrap_or_default(),
    };
    Ok(page(&app, &session, &cart, &email, None).await?.into_response())
}

/// Returns the page, with the address that the visitor has given, and a note on what is wrong with
/// the form or has changed.
pub(crate) async fn page(
    app: &App,
    session: &Session,
    cart: &Cart,
    email: &str,
    note: Option<&str>,
) -> Result<maud::Markup, Failure> {
    let items = items(app, cart).await?;
    let total: i64 = items.iter().map(|i| i.quantity * i.price_cents).sum();
    let content = html! {
        section.narrow {
            h1 { "Cart" }
            @if let Some(note) = note { p.note role="alert" { (note) } }
            @if items.is_empty() {
                p.soft { "Nothing in it yet." }
                p { a href="/" { "Look around" } }
            } @else {
                table {
                    @for item in &items {
                        tr {
                            td { a href={ "/products/" (item.product_id) } { (item.name) } }
                            td {
                                div.row.steps {
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
                    input type="hidden" name="token" value=(cart.token);
                    // What the visitor agrees to pay.
                    input type="hidden" name="total" value=(total);
                    label {
                        "E-mail address for the receipt"
                        input type="email" name="email" value=(email) required maxlength="254"
                            autocomplete="email" placeholder="you@example.com";
                    }
                    button { "Buy" }
                }
            }
        }
    };
    layout(session, "Cart", content).await
}

fn step(product: i64, add: i64, sign: &str) -> maud::Markup {
    html! {
        form method="post" action="/cart" {
            input type="hidden" name="product" value=(product);
            input type="hidden" name="add" value=(add);
            button.plain aria-label=(if add > 0 { "One more" } else { "One less" }) { (sign) }
        }
    }
}
