//! Prices and stock of products. A change is recorded in the audit log, and ends cached pages that
//! show the product, on all processes.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};
use maud::{Markup, html};
use scale_session::Session;
use scale_session::auth::audit::Event;
use serde::Deserialize;

use super::trail;
use crate::app::App;
use crate::db::catalogue::{self, PAGE, Shelf};
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
    let mut found = catalogue::shelf(&app.db, after).await?;
    let is_more = found.len() > PAGE;
    found.truncate(PAGE);
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
            @if let Some(last) = found.last().filter(|_| is_more) {
                p.more { a href={ "/admin/products?after=" (last.id) } rel="next" { "More" } }
            }
        }
    };
    Ok(layout(&session, "Products", content).await?.into_response())
}

/// Form of a product, as it was filled in.
#[derive(Deserialize)]
pub(super) struct Change {
    /// Price in euros, such as `12.50`.
    price: String,
    /// Price in cents when the form was made: another one now is another person's change.
    was: i64,
    /// Pieces to add to the stock, which orders change at the same time; negative to remove some.
    add: String,
}

/// Largest change of a stock.
const MOST_PIECES: i64 = 100_000;

pub(super) async fn form(State(app): State<App>, session: Session, Path(id): Path<i64>) -> Page {
    let Some(product) = catalogue::on_shelf(&app.db, id).await? else { return Ok(unknown()) };
    Ok(page(&session, &product, None).await?.into_response())
}

pub(super) async fn change(
    State(app): State<App>,
    session: Session,
    Path(id): Path<i64>,
    Extension(account): Extension<Account>,
    Form(form): Form<Change>,
) -> Page {
    let Some(product) = catalogue::on_shelf(&app.db, id).await? else { return Ok(unknown()) };
    let add = form.add.trim().parse().ok().filter(|add: &i64| add.abs() <= MOST_PIECES);
    let (price_cents, add) = match (cents(&form.price), add) {
        (Some(price_cents), Some(add)) => (price_cents, add),
        (None, _) => {
            let wrong = "A price has the form 12.50, from 0.01 to 99999.99.";
            return refused(&session, &product, &form, StatusCode::UNPROCESSABLE_ENTITY, wrong)
                .await;
        }
        (_, None) => {
            let wrong = "At most 100,000 pieces at a time.";
            return refused(&session, &product, &form, StatusCode::UNPROCESSABLE_ENTITY, wrong)
                .await;
        }
    };
    let details = format!("price {} to {}, stock {add:+}", money(form.was), money(price_cents));
    let record = |action: &str| {
        Event::new(&*account.email, action).to(format!("product {id}")).details(&*details)
    };
    // Recorded first: what cannot be recorded is not done.
    app.record(record("product.change")).await?;
    let changed = catalogue::change(&app.db, id, form.was, price_cents, add).await;
    if !matches!(changed, Ok(true)) {
        app.record(record("product.change.refused")).await?;
    }
    if changed? {
        app.invalidate([shelves::tag(id), shelves::PAGES.into()]).await;
        return Ok(Redirect::to(&format!("/admin/products/{id}")).into_response());
    }
    let wrong = if product.price_cents == form.was {
        format!("The stock has {} pieces: that is not possible.", product.stock)
    } else {
        format!("The price is {} by now: please look again.", money(product.price_cents))
    };
    refused(&session, &product, &form, StatusCode::CONFLICT, &wrong).await
}

fn unknown() -> Response {
    (StatusCode::NOT_FOUND, problem("No product has that number.")).into_response()
}

async fn refused(
    session: &Session,
    product: &Shelf,
    form: &Change,
    status: StatusCode,
    wrong: &str,
) -> Page {
    Ok((status, page(session, product, Some((form, wrong))).await?).into_response())
}

/// Returns the form: with the product's values, or as it was filled in, and what is wrong with it.
async fn page(
    session: &Session,
    product: &Shelf,
    filled: Option<(&Change, &str)>,
) -> Result<Markup, Failure> {
    let (euros, cents) = (product.price_cents / 100, product.price_cents % 100);
    let current = (format!("{euros}.{cents:02}"), "0".to_owned());
    let (price, add) = filled.map_or(current, |(form, _)| (form.price.clone(), form.add.clone()));
    let content = html! {
        section.narrow {
            (trail())
            h1 { (product.name) }
            @if let Some((_, wrong)) = filled { p.note role="alert" { (wrong) } }
            p {
                (product.stock) " in stock · "
                a href={ "/products/" (product.id) } { "as customers see it" }
            }
            form.stack method="post" action={ "/admin/products/" (product.id) } {
                input type="hidden" name="was" value=(product.price_cents);
                label {
                    "Price in euros"
                    input name="price" inputmode="decimal" required value=(price);
                }
                label {
                    "Add to the stock"
                    input type="number" name="add" required value=(add) min=(-MOST_PIECES)
                        max=(MOST_PIECES);
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
