//! Prices and stock of products. A change is recorded in the audit log, and ends cached pages that
//! show the product, on all processes.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect};
use axum::{Extension, Form};
use maud::{Markup, html};
use scale_session::Session;
use scale_session::auth::audit::Event;
use serde::Deserialize;

use super::trail;
use crate::app::App;
use crate::db::catalogue::{self, Shelf};
use crate::db::users::Account;
use crate::pages::{Failure, Page, catalogue as shelves, layout, money, problem};

#[derive(Deserialize)]
pub(super) struct After {
    /// Last product of the previous page.
    #[serde(default)]
    after: i64,
}

pub(super) async fn list(
    State(app): State<App>,
    session: Session,
    Query(After { after }): Query<After>,
) -> Page {
    let found = catalogue::shelf(&app.db, after).await?;
    let content = html! {
        section.narrow {
            (trail())
            h1 { "Products" }
            table {
                tr { th { "Product" } th.number { "Price" } th.number { "Stock" } }
                @for product in &found {
                    tr {
                        td { a href={ "/admin/products/" (product.id) } { (product.name) } }
                        td.number { (money(product.price_cents)) }
                        td.number { (product.stock) }
                    }
                }
            }
            @if let Some(last) = found.last() {
                p.more { a href={ "/admin/products?after=" (last.id) } rel="next" { "More" } }
            }
        }
    };
    Ok(layout(&session, "Products", content).await?.into_response())
}

#[derive(Deserialize)]
pub(super) struct Change {
    /// Price in euros, such as `12.50`.
    price: String,
    /// Pieces to add to the stock, which orders change at the same time; negative to remove some.
    add: i64,
}

pub(super) async fn form(State(app): State<App>, session: Session, Path(id): Path<i64>) -> Page {
    let Some(product) = catalogue::on_shelf(&app.db, id).await? else { return Ok(unknown()) };
    Ok(page(&session, &product, None).await?.into_response())
}

pub(super) async fn change(
    State(app): State<App>,
    session: Session,
    Path(id): Path<i64>,
    Extension(account): Extension<Account>,
    Form(change): Form<Change>,
) -> Page {
    let Some(product) = catalogue::on_shelf(&app.db, id).await? else { return Ok(unknown()) };
    let Some(price_cents) = cents(&change.price) else {
        let wrong = "A price has the form 12.50, from 0.01 to 99999.99.";
        let page = page(&session, &product, Some(wrong)).await?;
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    };
    let (before, now) = (money(product.price_cents), money(price_cents));
    let details = format!("price {before} to {now}, stock {:+}", change.add);
    let record = |action: &str| {
        Event::new(&*account.email, action).to(format!("product {id}")).details(&*details)
    };
    // Recorded first: what cannot be recorded is not done.
    app.record(record("product.change")).await?;
    if !catalogue::change(&app.db, id, price_cents, change.add).await? {
        app.record(record("product.change.refused")).await?;
        let wrong = format!("The stock has {} pieces: no more can be removed.", product.stock);
        let page = page(&session, &product, Some(&wrong)).await?;
        return Ok((StatusCode::CONFLICT, page).into_response());
    }
    app.invalidate([shelves::tag(id), shelves::PAGES.into()]).await;
    Ok(Redirect::to(&format!("/admin/products/{id}")).into_response())
}

fn unknown() -> axum::response::Response {
    (StatusCode::NOT_FOUND, problem("No product has that number.")).into_response()
}

async fn page(session: &Session, product: &Shelf, wrong: Option<&str>) -> Result<Markup, Failure> {
    let (euros, cents) = (product.price_cents / 100, product.price_cents % 100);
    let content = html! {
        section.narrow {
            (trail())
            h1 { (product.name) }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            p {
                (product.stock) " in stock · "
                a href={ "/products/" (product.id) } { "as customers see it" }
            }
            form.stack method="post" action={ "/admin/products/" (product.id) } {
                label {
                    "Price in euros"
                    input name="price" inputmode="decimal" required
                        value={ (euros) "." (format!("{cents:02}")) };
                }
                label {
                    "Add to the stock"
                    input type="number" name="add" required value="0" min="-100000" max="100000";
                }
                button { "Save" }
            }
        }
    };
    layout(session, &product.name, content).await
}

/// Reads a price.
fn cents(text: &str) -> Option<i64> {
    let text = text.trim().replace(',', ".");
    let (euros, cents) = text.split_once('.').unwrap_or((&text, "00"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !is_number(euros) || !is_number(cents) || euros.len() > 5 || cents.len() != 2 {
        return None;
    }
    let price = euros.parse::<i64>().ok()? * 100 + cents.parse::<i64>().ok()?;
    (price > 0).then_some(price)
}

#[cfg(test)]
mod tests {
    use super::cents;

    #[test]
    fn prices() {
        let good = [("12.50", 1_250), ("12,50", 1_250), ("7", 700), (" 0.01 ", 1)];
        for (text, price) in good {
            assert_eq!(cents(text), Some(price), "{text}");
        }
        for text in ["", "0", "0.00", "-1", "1.5", "1.234", "123456", "1e3", "+7", "x", ".50"] {
            assert_eq!(cents(text), None, "{text}");
        }
    }
}
