//! Catalogue: the products for sale.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use super::sql;
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
    // Wildcards in the user's text are ordinary characters.
    let escaped = search.q.replace('!', "!!").replace('%', "!%").replace('_', "!_");
    let pattern = if escaped.is_empty() { "%".to_owned() } else { format!("%{escaped}%") };
    sqlx::query_as(sql(
        db,
        "select id, name, category, description, price_cents from products \
         where id > $1 and ($2 = '' or category = $3) and lower(name) like $4 escape '!' \
         order by id limit $5",
    ))
    .bind(search.after)
    .bind(search.category.clone())
    .bind(search.category.clone())
    .bind(pattern)
    .bind(PAGE as i64 + 1)
    .fetch_all(db)
    .await
}

pub(crate) async fn categories(db: &Database) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("select category from products group by category order by category")
        .fetch_all(db)
        .await
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

pub(crate) async fn stock(db: &Database, id: i64) -> Result<i64, sqlx::Error> {
    let stock: Option<i64> =
        sqlx::query_scalar(sql(db, "select stock from products where id = $1"))
            .bind(id)
            .fetch_optional(db)
            .await?;
    Ok(stock.unwrap_or(0))
}
