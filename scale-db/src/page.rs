//! Keyset pagination: page 10,000 costs what page 1 costs, and a row that is inserted meanwhile neither doubles nor hides another.
//!
//! A page begins after the last row of the one before, found by its *key*: the values it is ordered by, which must be unique together
//! (put the primary key last) and indexed in that order. The key travels to the client and back as a *cursor*: opaque, and signed, so that
//! nobody can make one up (HMAC-SHA256, RFC 2104). The idea: Markus Winand, "We need tool support for keyset pagination".
//!
//! ```no_run
//! # use scale_db::{Cursors, Db, page::Order};
//! # #[derive(sqlx::FromRow)] struct Product { id: i64, price: i64 }
//! # async fn example(db: Db<sqlx::Postgres>, cursors: Cursors, after: Option<&str>) -> Result<(), Box<dyn std::error::Error>> {
//! let request = cursors.request::<(i64, i64)>("products by price", after, 24)?;
//! let mut query = sqlx::QueryBuilder::new("select id, price from products where stock > 0");
//! request.push(&mut query, [("price", Order::Descending), ("id", Order::Ascending)]);
//! let rows: Vec<Product> = query.build_query_as().fetch_all(&db).await?;
//! let page = request.page(rows, |product| (product.price, product.id));
//! // page.items, page.next and page.previous: cursors for links
//! # Ok(()) }
//! ```

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;
use sqlx::{Database, Encode, QueryBuilder, Type};

/// The format's version.
const VERSION: u8 = 1;
/// Bytes of the signature that are kept: 128 bits.
const SIGNATURE: usize = 16;
/// A longer cursor is not looked at.
const LONGEST: usize = 1_024;
/// A page has no more rows.
const MOST: usize = 1_000;

/// Which way a column is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
}

/// Signs and reads cursors. All processes of an application share its key.
#[derive(Clone)]
pub struct Cursors {
    key: Hmac<Sha256>,
}

impl std::fmt::Debug for Cursors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cursors")
    }
}

/// A cursor that was not made here: cut, changed, made up, or of another list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this list")]
pub struct BadCursor;

/// Which page is wanted.
#[derive(Clone, Debug)]
pub struct PageRequest<K> {
    cursors: Cursors,
    list: String,
    size: usize,
    from: Option<K>,
    backward: bool,
}

/// A page, and the cursors of its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page<T> {
    /// The rows, in the list's order whichever way the page was reached.
    pub items: Vec<T>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<String>,
    /// Where the page before ends; `None` on the first.
    pub previous: Option<String>,
}

impl Cursors {
    /// With a secret of at least 32 bytes for good measure; any length works.
    pub fn new(secret: &[u8]) -> Self {
        // HMAC takes keys of any length.
        let key = Hmac::new_from_slice(secret).unwrap_or_else(|_| Hmac::new(&Default::default()));
        Self { key }
    }

    /// A page of `size` rows (1 to 1,000) of a list. The list's name sets its cursors apart from those of others: say in it what the list
    /// is ordered by. Without a cursor it is the first page.
    ///
    /// # Errors
    /// [`BadCursor`]: answer with 400, or with the first page.
    pub fn request<K: Key>(&self, list: &str, cursor: Option<&str>, size: usize) -> Result<PageRequest<K>, BadCursor> {
        let (from, backward) = match cursor {
            Some(cursor) => self.read(list, cursor).map(|(key, backward)| (Some(key), backward))?,
            None => (None, false),
        };
        Ok(PageRequest { cursors: self.clone(), list: list.into(), size: size.clamp(1, MOST), from, backward })
    }

    fn sign(&self, list: &str, payload: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.key.clone();
        mac.update(&(list.len() as u64).to_be_bytes());
        mac.update(list.as_bytes());
        mac.update(payload);
        mac
    }

    fn write<K: Serialize>(&self, list: &str, key: &K, backward: bool) -> Option<String> {
        let mut bytes = vec![VERSION, u8::from(backward)];
        rmp_serde::encode::write(&mut bytes, key).ok()?;
        let signature = self.sign(list, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&signature[..SIGNATURE]);
        Some(BASE64URL_NOPAD.encode(&bytes))
    }

    fn read<K: DeserializeOwned>(&self, list: &str, cursor: &str) -> Result<(K, bool), BadCursor> {
        if cursor.len() > LONGEST {
            return Err(BadCursor);
        }
        let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).map_err(|_| BadCursor)?;
        let (payload, signature) = bytes.split_at_checked(bytes.len().wrapping_sub(SIGNATURE)).ok_or(BadCursor)?;
        // In constant time.
        self.sign(list, payload).verify_truncated_left(signature).map_err(|_| BadCursor)?;
        match payload {
            [VERSION, backward @ (0 | 1), key @ ..] => Ok((rmp_serde::from_slice(key).map_err(|_| BadCursor)?, *backward == 1)),
            _ => Err(BadCursor),
        }
    }
}

/// What a list is ordered by: a tuple of one to four columns' values.
pub trait Key: Serialize + DeserializeOwned {
    /// How many columns.
    const COLUMNS: usize;
}

/// A key whose values a database takes.
pub trait BindKey<DB: Database>: Key {
    /// Binds the `n`th value.
    #[doc(hidden)]
    fn bind(&self, n: usize, query: &mut QueryBuilder<DB>);
}

macro_rules! key {
    ($($value:ident $n:tt),*; $count:literal) => {
        impl<$($value: Serialize + DeserializeOwned),*> Key for ($($value,)*) {
            const COLUMNS: usize = $count;
        }

        impl<DB: Database, $($value),*> BindKey<DB> for ($($value,)*)
        where
            $($value: Serialize + DeserializeOwned + Clone + for<'q> Encode<'q, DB> + Type<DB> + Send + 'static,)*
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
    /// Adds to a query that ends inside its `where` clause: the condition, the order, and the limit. One column for each value of the
    /// key; their names go into the SQL as they are, so they must not come from outside.
    pub fn push<DB: Database, const N: usize>(&self, query: &mut QueryBuilder<DB>, columns: [(&'static str, Order); N])
    where
        K: BindKey<DB>,
    {
        debug_assert_eq!(N, K::COLUMNS, "a column for each value of the key");
        let Some(&(first, direction)) = columns.first() else { return };
        if let Some(from) = &self.from {
            let sign = |order: Order| if (order == Order::Ascending) == self.backward { " < " } else { " > " };
            if columns.iter().all(|(_, order)| *order == direction) {
                // One row comparison, which an index answers by going straight there.
                query
                    .push(" and (")
                    .push(columns.map(|(column, _)| column).join(", "))
                    .push(")")
                    .push(sign(columns[0].1))
                    .push("(");
                for n in 0..N {
                    query.push(if n == 0 { "" } else { ", " });
                    from.bind(n, query);
                }
                query.push(")");
            } else {
                // (a, b, c) after (1, 2, 3), each in its own direction: a >= 1, where an index begins, and
                // (a > 1 or (a = 1 and (b > 2 or (b = 2 and c > 3))))
                query.push(" and ").push(first).push(sign(direction).trim_end()).push("= ");
                from.bind(0, query);
                query.push(" and (");
                for (n, (column, order)) in columns.iter().enumerate() {
                    query.push(column).push(sign(*order));
                    from.bind(n, query);
                    if n + 1 < N {
                        query.push(" or (").push(column).push(" = ");
                        from.bind(n, query);
                        query.push(" and (");
                    }
                }
                query.push("))".repeat(N.saturating_sub(1))).push(")");
            }
        }
        for (n, (column, order)) in columns.iter().enumerate() {
            let descending = (*order == Order::Descending) != self.backward;
            query.push(if n == 0 { " order by " } else { ", " }).push(column).push(if descending { " desc" } else { "" });
        }
        // One row more than the page has says whether there is another page.
        query.push(" limit ").push((self.size + 1).to_string());
    }

    /// The page, of the rows that the query brought.
    pub fn page<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> K) -> Page<T> {
        let more = rows.len() > self.size;
        rows.truncate(self.size);
        if self.backward {
            rows.reverse();
        }
        let cursor = |row: Option<&T>, backward| row.and_then(|row| self.cursors.write(&self.list, &key(row), backward));
        let (has_next, has_previous) = if self.backward { (true, more) } else { (more, self.from.is_some()) };
        let next = cursor(rows.last().filter(|_| has_next), false);
        let previous = cursor(rows.first().filter(|_| has_previous), true);
        Page { next, previous, items: rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cursors() -> Cursors {
        Cursors::new(b"a secret of this test's")
    }

    #[test]
    fn a_cursor_of_another_list_or_key_is_none() {
        let cursor = cursors().write("a", &(7_i64, "x".to_owned()), false).unwrap();
        assert_eq!(cursors().read::<(i64, String)>("a", &cursor), Ok(((7, "x".into()), false)));
        assert_eq!(cursors().read::<(i64, String)>("b", &cursor), Err(BadCursor));
        assert_eq!(Cursors::new(b"another").read::<(i64, String)>("a", &cursor), Err(BadCursor));
        assert_eq!(cursors().read::<(String,)>("a", &cursor), Err(BadCursor), "of another type");
        assert_eq!(cursors().read::<(i64,)>("a", &"A".repeat(5_000)), Err(BadCursor));
    }

    proptest! {
        #[test]
        fn no_changed_bit_passes(key: (i64, i64), at in 0_usize..1_000, bit in 0_u8..8) {
            let cursor = cursors().write("a", &key, true).unwrap();
            let mut bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(cursors().read::<(i64, i64)>("a", &BASE64URL_NOPAD.encode(&bytes)), Err(BadCursor));
        }

        #[test]
        fn any_text_is_survived(text in ".{0,80}") {
            prop_assert_eq!(cursors().read::<(i64,)>("a", &text), Err(BadCursor));
        }
    }
}
