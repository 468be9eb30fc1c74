//! Catalogue pages and product pages. Content that is the same for all visitors comes through the
//! cache; stock comes from the database.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use maud::{Markup, html};
use scale_cache::{LoadContext, Options};
use scale_db::sticky::{self, Mark};
use scale_session::Session;

use super::{Failure, Page, drawing, layout, money, percent, problem};
use crate::app::App;
use crate::db::catalogue::{self, PAGE, Product, Search};

/// Returns options for cached pages: if the database fails, outdated pages are better than none.
fn kept(ttl: Duration) -> Options {
    Options::ttl(ttl).stale_if_error(Duration::from_hours(1)).tag("catalogue")
}

/// Cache tag of all pages that show several products. A page's products are known only when it has
/// been read, too late to say which replica may be read.
pub(crate) const PAGES: &str = "pages";

/// Returns the cache tag of a product.
pub(crate) fn tag(id: i64) -> String {
    format!("product:{id}")
}

pub(crate) async fn find(app: &App, id: i64) -> Result<Arc<Option<Product>>, Failure> {
    let (db, products) = (app.db.clone(), app.cache.space("product"));
    let options = kept(Duration::from_mins(10)).tag(tag(id));
    Ok(products
        .get_or_load_with(id, &options, move |load: LoadContext| async move {
            let product = catalogue::product(&db, id);
            // Not from a replica that is behind the change by which it was invalidated.
            sticky::seeing(&db, load.position().map(Mark::from_bytes), product).await
        })
        .await?)
}

pub(crate) async fn list(
    State(app): State<App>,
    session: Session,
    Query(search): Query<Search>,
) -> Page {
    let search = search.normal();
    let (db, wanted, pages) =
        (app.db.clone(), search.clone(), app.cache.space::<Vec<Product>>("page"));
    let options = kept(Duration::from_mins(1)).tag(PAGES);
    let found = pages
        .get_or_load_with(search.key(), &options, move |load: LoadContext| async move {
            let page = catalogue::page(&db, &wanted);
            sticky::seeing(&db, load.position().map(Mark::from_bytes), page).await
        })
        .await?;
    let (db, shelves) = (app.db.clone(), app.cache.space::<Vec<String>>("shelves"));
    let categories = shelves
        .get_or_load_with("all", &kept(Duration::from_mins(10)), move |_| async move {
            catalogue::categories(&db).await
        })
        .await?;
    let heading = match (search.q.as_str(), search.category.as_str()) {
        ("", "") => "Everything in the shop",
        ("", category) => category,
        (words, _) => words,
    };
    let content = html! {
        h1.unseen { (heading) }
        form.search action="/" role="search" {
            input type="search" name="q" value=(search.q) placeholder="Search the shop"
                aria-label="Search" maxlength="64";
            @if !search.category.is_empty() {
                input type="hidden" name="category" value=(search.category);
            }
            button { "Search" }
        }
        div.shelves {
            a href="/" aria-current=[search.category.is_empty().then_some("page")] { "Everything" }
            @for category in categories.iter() {
                @let current = (search.category == *category).then_some("page");
                a href={ "/?category=" (category) } aria-current=[current] { (category) }
            }
        }
        @if found.is_empty() { p.soft { "No product has a word that begins like that." } }
        ul.grid { @for product in found.iter().take(PAGE) { li { (card(product)) } } }
        @if let (Some(last), true) = (found.get(PAGE - 1), found.len() > PAGE) {
            @let (q, category) = (percent(&search.q), percent(&search.category));
            @let more = format!("/?q={q}&category={category}&after={}", last.id);
            div.more { a href=(more) rel="next" { "More" } }
        }
    };
    Ok(layout(&session, "Shop", content).await?.into_response())
}

fn card(product: &Product) -> Markup {
    html! {
        a href={ "/products/" (product.id) } {
            (drawing::of(product.id, &product.name))
            div.what { (product.name) span { (money(product.price_cents)) } }
        }
    }
}

pub(crate) async fn product(State(app): State<App>, session: Session, Path(id): Path<i64>) -> Page {
    let found = find(&app, id).await?;
    let Some(product) = &*found else {
        return Ok((StatusCode::NOT_FOUND, problem("No product has that number.")).into_response());
    };
    let stock = catalogue::stock(&app.db, id).await?;
    let content = html! {
        div.product {
            (drawing::of(product.id, &product.name))
            div {
                p.soft { a href={ "/?category=" (product.category) } { (product.category) } }
                h1 { (product.name) }
                p { (product.description) }
                p.price { (money(product.price_cents)) }
                @if stock > 0 {
                    form.row method="post" action="/cart" {
                        input type="hidden" name="product" value=(product.id);
                        input type="hidden" name="add" value="1";
                        button { "Add to cart" }
                        span.soft { (stock) " in stock" }
                    }
                } @else { p.note { "Sold out." } }
            }
        }
    };
    Ok(layout(&session, &product.name, content).await?.into_response())
}
