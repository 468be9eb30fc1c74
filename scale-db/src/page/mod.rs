//! Keyset pagination: page 10,000 costs as much as page 1, and rows inserted meanwhile neither
//! repeat nor hide other rows.
//!
//! A page begins after the last row of the previous page, found by its *key*: the values by which
//! the list is ordered. They must be unique together (put the primary key last) and indexed in that
//! order. The client gets the key as a *cursor* and sends it back. A cursor is signed, so it cannot
//! be forged (HMAC-SHA256, RFC 2104), but not encrypted: its holder can read the key's values. The
//! idea is from Markus Winand, "We need tool support for keyset pagination".
//!
//! A nullable column has an `Option` in the key. A `QueryBuilder<Any>` writes `?` for values, which
//! Postgres does not support: pages of a `Db<Any>` work on MySQL and SQLite only.
//!
//! ```no_run
//! # use scale_db::Db;
//! # use scale_db::page::{Cursors, Order};
//! # #[derive(sqlx::FromRow)] struct Product { id: i64, price: i64 }
//! # async fn example(
//! #     db: Db<sqlx::Postgres>,
//! #     cursors: Cursors,
//! #     after: Option<&str>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let request = cursors.request::<(i64, i64)>("products by price", after, 24)?;
//! let mut query = sqlx::QueryBuilder::new("select id, price from products where stock > 0");
//! request.push(&mut query, [("price", Order::Descending), ("id", Order::Ascending)]);
//! let rows: Vec<Product> = query.build_query_as().fetch_all(&db).await?;
//! let page = request.page(rows, |product| (product.price, product.id))?;
//! // page.items, page.next and page.previous: cursors for links
//! # Ok(()) }
//! ```

mod condition;
mod cursor;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{Database, Encode, IntoArguments, QueryBuilder, Type};

use condition::After;
pub use cursor::Cursors;
use cursor::Direction;

/// Maximum rows of a page.
const MOST: usize = 1_000;

/// Sort order of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
}

/// A cursor that was not made by this list's [`Cursors`]: cut, changed, forged, or of another list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor: expected one of this list")]
pub struct BadCursor;

/// A secret is too short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the secret for cursors is too short: expected at least 32 random bytes, \
     the same in all processes"
)]
pub struct WeakSecret;

/// A row's key does not fit into a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row's key has more than 4,096 bytes: order the list by shorter columns")]
pub struct KeyTooLong;

/// Request for a page.
#[derive(Clone, Debug)]
pub struct PageRequest<K> {
    cursors: Cursors,
    list: String,
    size: usize,
    from: Option<K>,
    direction: Direction,
}

/// A page, and the cursors of the next and previous pages.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page<T> {
    /// Rows in the order of the list, whatever the direction of the request.
    pub items: Vec<T>,
    /// Cursor of the next page; `None` on the last page.
    pub next: Option<String>,
    /// Cursor of the previous page; `None` on the first page.
    pub previous: Option<String>,
}

/// Values by which a list is ordered: a tuple of one to four columns.
pub trait Key: Serialize + DeserializeOwned {
    /// Number of columns.
    const COLUMNS: usize;

    /// Returns whether the `n`th column may be null.
    #[doc(hidden)]
    fn is_nullable(n: usize) -> bool;

    /// Returns whether the `n`th value is null.
    #[doc(hidden)]
    fn is_null(&self, n: usize) -> bool;
}

/// A key whose values a database can bind.
pub trait BindKey<DB: Database>: Key {
    /// Binds the `n`th value.
    #[doc(hidden)]
    fn bind(&self, n: usize, query: &mut QueryBuilder<DB>);
}

/// MessagePack encoding of `None`.
const NULL: &[u8] = &[0xC0];

macro_rules! key {
    ($($value:ident $n:tt),*; $count:literal) => {
        impl<$($value: Serialize + DeserializeOwned),*> Key for ($($value,)*) {
            const COLUMNS: usize = $count;

            fn is_nullable(n: usize) -> bool {
                match n {
                    $($n => rmp_serde::from_slice::<$value>(NULL).is_ok(),)*
                    _ => false,
                }
            }

            fn is_null(&self, n: usize) -> bool {
                match n {
                    $($n => rmp_serde::to_vec(&self.$n).is_ok_and(|bytes| bytes == NULL),)*
                    _ => false,
                }
            }
        }

        impl<DB: Database, $($value),*> BindKey<DB> for ($($value,)*)
        where
            $(
                $value: Serialize + DeserializeOwned + Clone + Send + 'static,
                $value: for<'q> Encode<'q, DB> + Type<DB>,
            )*
        {
            fn bind(&self, n: usize, query: &mut QueryBuilder<DB>) {
                match n {
                    $($n => { query.push_bind(self.$n.clone()); })*
                    _ => {}
                }
            }
        }
    };
}

key!(A 0; 1);
key!(A 0, B 1; 2);
key!(A 0, B 1, C 2; 3);
key!(A 0, B 1, C 2, D 3; 4);

impl<K: Key> PageRequest<K> {
    /// Adds the condition, the order and the limit to a query. The query must end with its table,
    /// or within its `where` clause, or group or unite rows under the columns' names. `columns` has
    /// one column for each value of the key. Column names are inserted into the SQL unescaped, so
    /// they must not come from user input.
    pub fn push<DB: Database, const N: usize>(
        &self,
        query: &mut QueryBuilder<DB>,
        columns: [(&'static str, Order); N],
    ) where
        K: BindKey<DB>,
        DB::Arguments: IntoArguments<DB>,
    {
        const { assert!(N > 0, "a page is ordered by one column at least") };
        debug_assert_eq!(N, K::COLUMNS, "a column for each value of the key");
        let Direction { backward, inclusive } = self.direction;
        if let Some(key) = &self.from {
            condition::open_where(query);
            query.push("(");
            After { key, columns: &columns, backward, inclusive }.push(query);
            query.push(")");
        }
        // For the driver `Any` the system is unknown, so nulls are ordered explicitly.
        let tell = |n| condition::dialect::<DB>().is_none() && K::is_nullable(n);
        if self.from.is_none() && (0..N).any(tell) {
            condition::open_order(query);
        }
        for (n, (column, order)) in columns.iter().enumerate() {
            let descending = (*order == Order::Descending) != backward;
            query.push(if n == 0 { "\norder by " } else { ", " });
            if tell(n) {
                query
                    .push("case when ")
                    .push(column)
                    .push(" is null then 1 else 0 end")
                    .push(if descending { " desc, " } else { ", " });
            }
            query.push(column).push(if descending { " desc" } else { "" });
        }
        // One more row than the page has shows whether there is another page.
        query.push(" limit ").push((self.size + 1).to_string());
    }

    /// Returns the page with the rows that the query returned.
    ///
    /// # Errors
    /// [`KeyTooLong`].
    pub fn page<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> K) -> Result<Page<T>, KeyTooLong> {
        let backward = self.direction.backward;
        let more = rows.len() > self.size;
        rows.truncate(self.size);
        if backward {
            rows.reverse();
        }
        let at = |key: &K, direction| self.cursors.write(&self.list, key, direction).map(Some);
        let forward = Direction { backward: false, inclusive: false };
        let back = Direction { backward: true, inclusive: false };
        let (next, previous) = match (rows.first(), rows.last(), &self.from) {
            (Some(first), Some(last), _) => {
                let (has_next, has_previous) =
                    if backward { (true, more) } else { (more, self.from.is_some()) };
                let next = if has_next { at(&key(last), forward)? } else { None };
                (next, if has_previous { at(&key(first), back)? } else { None })
            }
            // The rows of this page are gone: the cursor leads back to the row from which the page
            // was reached.
            (_, _, Some(from)) if backward => {
                (at(from, Direction { inclusive: !self.direction.inclusive, ..forward })?, None)
            }
            (_, _, Some(from)) => {
                (None, at(from, Direction { inclusive: !self.direction.inclusive, ..back })?)
            }
            _ => (None, None),
        };
        Ok(Page { next, previous, items: rows })
    }
}
