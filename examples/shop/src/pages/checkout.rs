//! Turns a cart into an order.

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect};
use scale_session::Session;
use serde::Deserialize;

use super::{CART, ORDERS, Page, cart, problem, user};
use crate::app::App;
use crate::db::orders::{self, Placed};

#[derive(Deserialize)]
pub(crate) struct Checkout {
    token: uuid::Uuid,
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
    if email.len() > 254 || !email.contains('@') || email.contains(char::is_whitespace) {
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, problem("This is not an e-mail address."))
            .into_response());
    }
    let items = cart::items(&app, &session).await?;
    if items.is_empty() {
        return Ok(Redirect::to("/cart").into_response());
    }
    let account = user(&session).await?.map(|user| user.email).unwrap_or_default();
    match orders::place(&app, &form.token.to_string(), &account, email, &items).await? {
        Placed::SoldOut(name) => Ok((
            StatusCode::CONFLICT,
            problem(&format!("There is not enough of “{name}” in stock.")),
        )
            .into_response()),
        Placed::Order(id) => {
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
            session.remove(CART).await?;
            Ok(Redirect::to(&format!("/orders/{id}")).into_response())
        }
    }
}
