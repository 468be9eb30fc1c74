//! Catalogue: the products for sale.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use super::{search, sql, sql_of};
use crate::app::Database;

/// A product without its stock, which changes with every order and is never cached.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow)]
pub(crate) struct Product {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) category: String,
    pub(crate) description: String,
    pub(crate) price_cents: i64,
}

/// A search for products.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Search {
    #[serde(default)]
    pub(crate) q: String,
    #[serde(default)]
    pub(crate) category: String,
    /// Last product of the previous page: keyset pagination, as fast on page 10,000 as on page 1.
    #[serde(default)]
    pub(crate) after: i64,
}

pub(crate) const PAGE: usize = 24;
/// Maximum length of a search text; longer ones are cut off.
const LONGEST_QUERY: usize = 64;

impl Search {
    /// Returns the canonical form, for lookup and cache: equivalent searches become equal.
    pub(crate) fn normal(mut self) -> Self {
        self.q = self.q.trim().to_lowercase();
        self.q.truncate(self.q.floor_char_boundary(LONGEST_QUERY));
        // Postgres stores no NUL, and no category has a control character.
        self.category.retain(|c| !c.is_control());
        self.category.truncate(self.category.floor_char_boundary(LONGEST_QUERY));
        self.after = self.after.max(0);
        self
    }

    pub(crate) fn key(&self) -> String {
        format!("{}\u{1f}{}\u{1f}{}", self.q, self.category, self.after)
    }
}

/// Returns one page, and one more product if there is a next page.
pub(crate) async fn page(db: &Database, search: &Search) -> Result<Vec<Product>, sqlx::Error> {
    let wanted = search::wanted(&search.q, &search.category);
    if !search.q.is_empty() && !search::has_words(&search.q) {
        return Ok(Vec::new());
    }
    // The first word's rows are read in order, each other one is looked up. Parameters are numbered
    // in the order of the text, as MariaDB needs them.
    let joins = (1..wanted.len()).map(|n| {
        format!(
            "join product_words w{n} on w{n}.product_id = w0.product_id and w{n}.beginning = ${n} "
        )
    });
    let (joins, words) = (joins.collect::<String>(), wanted.len());
    let (from, first, id) = match words {
        0 => ("products p".to_owned(), String::new(), "p.id"),
        _ => (
            format!("product_words w0 {joins}join products p on p.id = w0.product_id"),
            format!("w0.beginning = ${words} and "),
            "w0.product_id",
        ),
    };
    let (after, most) = (words + 1, words + 2);
    let select = format!(
        "select p.id, p.name, p.category, p.description, p.price_cents from {from} \
         where {first}{id} > ${after} order by {id} limit ${most}"
    );
    let mut select = sqlx::query_as(sql_of(db, &select));
    for word in wanted {
        select = select.bind(word);
    }
    select.bind(search.after).bind(PAGE as i64 + 1).fetch_all(db).await
}

/// Returns the categories, by name.
pub(crate) async fn categories(db: &Database) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("select name from categories order by name").fetch_all(db).await
}

pub(crate) async fn product(db: &Database, id: i64) -> Result<Option<Product>, sqlx::Error> {
    sqlx::query_as(sql(
        db,
        "select id, name, category, description, price_cents from products where id = $1",
    ))
    .bind(id)
    .fetch_optional(db)
    .await
}

/// A product as staff sees it.
#[derive(Debug, FromRow)]
pub(crate) struct Shelf {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) price_cents: i64,
    pub(crate) stock: i64,
}

/// Returns one page of the products after that one, and one more product if there is a next page.
/// From the primary, as staff changes them.
pub(crate) async fn shelf(db: &Database, after: i64) -> Result<Vec<Shelf>, sqlx::Error> {
    let select = "select id, name, price_cents, stock from products where id > $1 \
        order by id limit $2";
    sqlx::query_as(sql(db, select)).bind(after).bind(PAGE as i64 + 1).fetch_all(db.primary()).await
}

pub(crate) async fn on_shelf(db: &Database, id: i64) -> Result<Option<Shelf>, sqlx::Error> {
    let select = "select id, name, price_cents, stock from products where id = $1";
    sqlx::query_as(sql(db, select)).bind(id).fetch_optional(db.primary()).await
}

/// Largest stock of a product.
const MOST_STOCK: i64 = 1_000_000_000;

/// Sets the price of a product, and changes its stock by a number of pieces. Returns `false`, and
/// changes nothing, if the price is not `was` any more, or the stock would not be possible.
pub(crate) async fn change(
    db: &Database,
    id: i64,
    was: i64,
    price_cents: i64,
    add: i64,
) -> Result<bool, sqlx::Error> {
    // MySQL counts rows that change: an equal price and no pieces change none.
    if was == price_cents && add == 0 {
        return Ok(true);
    }
    let update = "update products set price_cents = $1, stock = stock + $2 \
        where id = $3 and price_cents = $4 and stock + $5 between 0 and $6";
    let changed = sqlx::query(sql(db, update)).bind(price_cents).bind(add).bind(id).bind(was);
    Ok(changed.bind(add).bind(MOST_STOCK).execute(db).await?.rows_affected() > 0)
}

pub(crate) async fn stock(db: &Database, id: i64) -> Result<i64, sqlx::Error> {
    let stock: Option<i64> =
        sqlx::query_scalar(sql(db, "select stock from products where id = $1"))
            .bind(id)
            .fetch_optional(db)
            .await?;
    Ok(stock.unwrap_or(0))
}
