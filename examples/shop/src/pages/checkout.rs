//! Turns a cart into an order.

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use scale_session::Session;
use serde::Deserialize;
use uuid::Uuid;

use super::cart::{self, Cart};
use super::{CART, EMAIL, Failure, ORDERS, Page, user};
use crate::app::App;
use crate::db::orders::{self, NewOrder, Placed};
use crate::db::users;

#[derive(Deserialize)]
pub(crate) struct Checkout {
    token: Uuid,
    /// Total that the page showed, in cents.
    total: i64,
    email: String,
}

/// Maximum number of orders that a session remembers.
const REMEMBERED: usize = 50;

pub(crate) async fn place(
    State(app): State<App>,
    session: Session,
    Form(form): Form<Checkout>,
) -> Page {
    let email = form.email.trim();
    let cart = session.get::<Cart>(CART).await?.unwrap_or_default();
    let again = async |note: &str| cart::page(&app, &session, &cart, email, Some(note)).await;
    if !users::is_address(email) {
        let page = again("This is not an e-mail address.").await?;
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    }
    let account = user(&session).await?.map(|user| user.email).unwrap_or_default();
    if cart.token != form.token {
        return bought_before(&app, &session, form.token).await;
    }
    let token = form.token.to_string();
    let new = NewOrder {
        token: &token,
        account: &account,
        email,
        cart: &cart.pieces,
        total_cents: form.total,
    };
    match orders::place(&app, new).await? {
        Placed::SoldOut(name) => {
            let note = format!("There is not enough of “{name}” in stock.");
            Ok((StatusCode::CONFLICT, again(&note).await?).into_response())
        }
        Placed::Changed(prices) => {
            let (cart, note) = cart::corrected(&app, &session, &cart, &prices).await?;
            let page = cart::page(&app, &session, &cart, email, Some(note)).await?;
            Ok((StatusCode::CONFLICT, page).into_response())
        }
        Placed::Order(id) => {
            remember(&session, id).await?;
            session.insert(EMAIL, email).await?;
            cart::ordered(&session, cart).await?;
            Ok(to_order(id))
        }
    }
}

/// Answers a form whose cart is no longer the visitor's: a second click, or another tab. The token
/// alone opens nobody's order.
async fn bought_before(app: &App, session: &Session, token: Uuid) -> Page {
    let known: Vec<i64> = session.get(ORDERS).await?.unwrap_or_default();
    let order = orders::by_token(&app.db, &token.to_string()).await?;
    Ok(match order.filter(|id| known.contains(id)) {
        Some(id) => to_order(id),
        None => Redirect::to("/cart").into_response(),
    })
}

async fn remember(session: &Session, id: i64) -> Result<(), Failure> {
    session
        .update(ORDERS, |known: Option<Vec<i64>>| {
            let mut known = known.unwrap_or_default();
            if !known.contains(&id) {
                known.push(id);
            }
            known.drain(..known.len().saturating_sub(REMEMBERED));
            Some(known)
        })
        .await?;
    Ok(())
}

fn to_order(id: i64) -> Response {
    Redirect::to(&format!("/orders/{id}")).into_response()
}
