//! Index of the search: the beginnings of each product's words, as rows.
//!
//! | when | then |
//! | --- | --- |
//! | a word of a search is the beginning of a word of a product | the product is found, in the same way on each database, whatever the case of the letters |
//! | a search has several words, or a category | each must fit |
//! | the catalogue grows | a page costs the same: its rows are read in order from the index, up to the page's last one |

use std::collections::BTreeSet;

use anyhow::Result;
use sqlx::FromRow;

use super::{sql, sql_of};
use crate::app::Database;

/// Longest beginning that is stored, in characters. Of a longer word in a search, this much counts.
const LONGEST: usize = 12;
/// Maximum number of words of a search; further ones are ignored.
const MOST_WORDS: usize = 4;
/// Products that are indexed in one statement, of about thirty rows each.
const BATCH: i64 = 100;

/// Returns what a search for these words, within a category or not, asks the index for.
pub(super) fn wanted(text: &str, category: &str) -> Vec<String> {
    let words = words(text).map(|word| word.chars().take(LONGEST).collect());
    let words: BTreeSet<String> = words.take(MOST_WORDS).collect();
    let category = (!category.is_empty()).then(|| of_category(category));
    words.into_iter().chain(category).collect()
}

/// Returns whether there is something to search for.
pub(super) fn has_words(text: &str) -> bool {
    words(text).next().is_some()
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase)
}

fn of_category(category: &str) -> String {
    format!("={category}")
}

/// Returns the rows of a product.
fn beginnings(name: &str, category: &str) -> BTreeSet<String> {
    let mut rows = BTreeSet::from([of_category(category)]);
    for word in words(name) {
        let ends = word.char_indices().skip(1).map(|(at, _)| at).chain([word.len()]);
        rows.extend(ends.take(LONGEST).map(|end| word[..end].to_owned()));
    }
    rows
}

#[derive(FromRow)]
struct Named {
    id: i64,
    name: String,
    category: String,
}

/// Indexes the products that are not in the index yet.
pub(crate) async fn complete(db: &Database) -> Result<()> {
    let mut after = 0;
    loop {
        let select = "select id, name, category from products p where id > $1 and not exists \
            (select 1 from product_words w where w.product_id = p.id) order by id limit $2";
        let found = sqlx::query_as(sql(db, select)).bind(after).bind(BATCH);
        let found: Vec<Named> = found.fetch_all(db.primary()).await?;
        let Some(last) = found.last() else { return Ok(()) };
        after = last.id;
        let of = |product: &Named| {
            let id = product.id;
            beginnings(&product.name, &product.category).into_iter().map(move |row| (row, id))
        };
        let rows: Vec<(String, i64)> = found.iter().flat_map(of).collect();
        let places = (0..rows.len()).map(|n| format!("(${}, ${})", 2 * n + 1, 2 * n + 2));
        let places = places.collect::<Vec<_>>().join(", ");
        let insert = format!("insert into product_words (beginning, product_id) values {places}");
        let mut insert = sqlx::query(sql_of(db, &insert));
        for (row, id) in rows {
            insert = insert.bind(row).bind(id);
        }
        insert.execute(db).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_asks_for_what_is_stored() {
        let stored = beginnings("Ölkanne, klein (Émaille) 2L", "Küche");
        for text in ["ölkanne", "ÖL", "klein émaille", "2l", "k", "kanne"] {
            let is_found = wanted(text, "Küche").iter().all(|word| stored.contains(word));
            assert_eq!(is_found, text != "kanne", "{text}: {stored:?}");
        }
        assert!(!wanted("öl", "Garten").iter().all(|word| stored.contains(word)));
        assert_eq!(wanted(" %_\\\0'", ""), [""; 0], "no words");
        assert_eq!(wanted("a b c d e f", "").len(), MOST_WORDS);
        let long = beginnings("Donaudampfschifffahrt", "");
        assert!(wanted("donaudampfschiff", "").iter().all(|word| long.contains(word)));
        assert!(long.iter().all(|row| row.chars().count() <= LONGEST));
    }
}
