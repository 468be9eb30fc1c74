//! SQL condition of a page: the rows that come after a key.
//!
//! | columns | condition |
//! | --- | --- |
//! | all in one direction, none nullable, not on MySQL | `(a, b) > (1, 2)`: the index is entered at that position |
//! | otherwise | `a >= 1 and (a > 1 or (a = 1 and b > 2))`, which enters an index at `a = 1` |
//! | nullable (`Option`) | nulls are where the database orders them: after all values on Postgres, before them on other systems. If the first column is nullable, a page before its nulls reads the index from its beginning |
//!
//! MySQL and MariaDB read an index from its beginning for a comparison of rows.

use sqlparser::dialect::GenericDialect;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Location, Token, Tokenizer};
use sqlx::{Database, IntoArguments, QueryBuilder};

use super::{BindKey, Order};
use crate::dialect::Dialect;

/// Returns the dialect of a driver; `None` for the driver `Any`.
pub(super) fn dialect<DB: Database>() -> Option<Dialect> {
    match DB::NAME {
        "PostgreSQL" => Some(Dialect::Postgres),
        "MySQL" => Some(Dialect::MySql),
        "SQLite" => Some(Dialect::Sqlite),
        _ => None,
    }
}

/// Condition for the rows after a key, in the order of these columns.
pub(super) struct After<'a, K> {
    pub(super) key: &'a K,
    pub(super) columns: &'a [(&'static str, Order)],
    pub(super) backward: bool,
    pub(super) inclusive: bool,
}

impl<K> After<'_, K> {
    /// Adds the condition to a query.
    pub(super) fn push<DB: Database>(&self, query: &mut QueryBuilder<DB>)
    where
        K: BindKey<DB>,
    {
        let same_way = self.columns.iter().all(|(_, order)| *order == self.columns[0].1);
        let nullable = (0..self.columns.len()).any(K::is_nullable);
        if same_way && !nullable && dialect::<DB>() != Some(Dialect::MySql) {
            self.push_rows(query);
        } else {
            self.push_nested(query);
        }
    }

    fn is_upwards(&self, n: usize) -> bool {
        (self.columns[n].1 == Order::Ascending) != self.backward
    }

    fn push_rows<DB: Database>(&self, query: &mut QueryBuilder<DB>)
    where
        K: BindKey<DB>,
    {
        let names = self.columns.iter().map(|(column, _)| *column).collect::<Vec<_>>().join(", ");
        let equal = if self.inclusive { "=" } else { "" };
        let sign = if self.is_upwards(0) { " >" } else { " <" };
        query.push("(").push(names).push(")").push(sign).push(equal).push(" (");
        for n in 0..self.columns.len() {
            query.push(if n == 0 { "" } else { ", " });
            self.key.bind(n, query);
        }
        query.push(")");
    }

    fn push_nested<DB: Database>(&self, query: &mut QueryBuilder<DB>)
    where
        K: BindKey<DB>,
    {
        let last = self.columns.len() - 1;
        let (first, nulls_beyond) =
            (self.columns[0].0, self.is_upwards(0) == nulls_are_largest::<DB>());
        // Bounds the first column, so that an index can be entered there, unless nulls are beyond
        // or before.
        let begins = match (self.key.is_null(0), nulls_beyond) {
            (true, true) => {
                query.push(first).push(" is null and (");
                true
            }
            (false, beyond) if !beyond || !K::is_nullable(0) => {
                query.push(first).push(if self.is_upwards(0) { " >= " } else { " <= " });
                self.key.bind(0, query);
                query.push(" and (");
                true
            }
            _ => false,
        };
        for n in 0..=last {
            query.push("(");
            self.push_beyond(n, query);
            query.push(")");
            if n < last || self.inclusive {
                query.push(" or (");
                self.push_equal(n, query);
                query.push(if n < last { " and (" } else { ")" });
            }
        }
        query.push("))".repeat(last)).push(if begins { ")" } else { "" });
    }

    fn push_beyond<DB: Database>(&self, n: usize, query: &mut QueryBuilder<DB>)
    where
        K: BindKey<DB>,
    {
        let (column, upwards) = (self.columns[n].0, self.is_upwards(n));
        let nulls_beyond = upwards == nulls_are_largest::<DB>();
        if self.key.is_null(n) {
            query.push(column).push(if nulls_beyond {
                " is null and 1 = 0"
            } else {
                " is not null"
            });
            return;
        }
        query.push(column).push(if upwards { " > " } else { " < " });
        self.key.bind(n, query);
        if nulls_beyond && K::is_nullable(n) {
            query.push(" or ").push(column).push(" is null");
        }
    }

    fn push_equal<DB: Database>(&self, n: usize, query: &mut QueryBuilder<DB>)
    where
        K: BindKey<DB>,
    {
        query.push(self.columns[n].0);
        if self.key.is_null(n) {
            query.push(" is null");
        } else {
            query.push(" = ");
            self.key.bind(n, query);
        }
    }
}

/// Returns whether nulls are ordered last by default. For the driver `Any`, queries order them last
/// explicitly.
pub(super) fn nulls_are_largest<DB: Database>() -> bool {
    !matches!(dialect::<DB>(), Some(Dialect::MySql | Dialect::Sqlite))
}

/// Prepares a query for another condition: begins its `where`, encloses an existing condition with
/// an `or` in parentheses, or wraps the whole query if it has groups or unions.
pub(super) fn open_where<DB: Database>(query: &mut QueryBuilder<DB>)
where
    DB::Arguments: IntoArguments<DB>,
{
    let sql = query.sql().as_str().to_owned();
    let found = last_where::<DB>(&sql);
    if found != Some(Where::Whole) {
        // The text may end with a comment.
        query.push("\n");
    }
    match found {
        Some(Where::None) => {
            query.push("where ");
        }
        Some(Where::Whole) => wrap(query, " where "),
        Some(Where::Alternatives(at)) => {
            let arguments = sqlx::Execute::take_arguments(&mut query.build())
                .ok()
                .flatten()
                .unwrap_or_default();
            *query = QueryBuilder::with_arguments(
                format!("{} ({}\n) and ", &sql[..at], &sql[at..]),
                arguments,
            );
        }
        Some(Where::Plain) | None => {
            query.push("and ");
        }
    }
}

/// Prepares a query for an order by expressions, which unions do not support.
pub(super) fn open_order<DB: Database>(query: &mut QueryBuilder<DB>)
where
    DB::Arguments: IntoArguments<DB>,
{
    if last_where::<DB>(query.sql().as_str()) == Some(Where::Whole) {
        wrap(query, "");
    }
}

/// Wraps a query as a table of another one.
fn wrap<DB: Database>(query: &mut QueryBuilder<DB>, end: &str)
where
    DB::Arguments: IntoArguments<DB>,
{
    let sql = query.sql().as_str().to_owned();
    let arguments =
        sqlx::Execute::take_arguments(&mut query.build()).ok().flatten().unwrap_or_default();
    *query =
        QueryBuilder::with_arguments(format!("select * from ({sql}\n) as page{end}"), arguments);
}

#[derive(Debug, PartialEq, Eq)]
enum Where {
    None,
    Plain,
    /// Has an `or`; the condition begins after this byte.
    Alternatives(usize),
    /// No condition can be added at its end, because of groups or unions.
    Whole,
}

/// Finds the last `where` outside of parentheses; `None` if the text cannot be tokenized.
fn last_where<DB: Database>(sql: &str) -> Option<Where> {
    let grammar = dialect::<DB>()
        .map_or(&GenericDialect {} as &dyn sqlparser::dialect::Dialect, Dialect::parser);
    let (mut depth, mut found) = (0_u32, Where::None);
    let (mut begins, mut alternatives, mut whole, mut first) = (None, false, false, true);
    for token in Tokenizer::new(grammar, sql).tokenize_with_location().ok()? {
        // The whole text is in parentheses.
        if first && !matches!(token.token, Token::Whitespace(_)) {
            whole = token.token == Token::LParen;
            first = false;
        }
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            Token::Word(word) if depth == 0 && word.quote_style.is_none() => match word.keyword {
                Keyword::WHERE => {
                    (begins, alternatives) = (Some(token.span.end), false);
                }
                Keyword::OR | Keyword::XOR => alternatives = true,
                Keyword::DISTINCT
                | Keyword::GROUP
                | Keyword::HAVING
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::INTERSECT
                | Keyword::WINDOW => {
                    whole = true;
                }
                _ => {}
            },
            // `||` is `or` in MySQL by default.
            Token::StringConcat if depth == 0 && dialect::<DB>() == Some(Dialect::MySql) => {
                alternatives = true;
            }
            _ => {}
        }
    }
    if whole {
        return Some(Where::Whole);
    }
    if let Some(at) = begins {
        found = if alternatives { Where::Alternatives(byte_of(sql, at)?) } else { Where::Plain };
    }
    Some(found)
}

/// Returns the byte offset of a token's line and column.
fn byte_of(sql: &str, at: Location) -> Option<usize> {
    let line_begins = match at.line {
        1 => 0,
        line => sql.match_indices('\n').nth(line as usize - 2)?.0 + 1,
    };
    let line = &sql[line_begins..];
    let within =
        line.char_indices().nth(at.column as usize - 1).map_or(line.len(), |(byte, _)| byte);
    Some(line_begins + within)
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;

    #[test]
    fn a_where_with_an_or_is_put_into_parentheses() {
        let opened = |sql: &str| {
            let mut query = QueryBuilder::<sqlx::Sqlite>::new(sql);
            open_where(&mut query);
            query.into_string()
        };
        for (sql, with) in [
            ("select 1 from t", "select 1 from t\nwhere "),
            ("select 1 from t -- all", "select 1 from t -- all\nwhere "),
            ("select 1 from t where a", "select 1 from t where a\nand "),
            ("select 1 from t where a or b", "select 1 from t where ( a or b\n) and "),
            ("select 1 from t where (a or b)", "select 1 from t where (a or b)\nand "),
            (
                "select 'ö',\n'ü' from t\n Where a\n or b",
                "select 'ö',\n'ü' from t\n Where (\n a\n or b\n) and ".trim_start(),
            ),
            (
                "select 1 from (select 1 where a or b) x",
                "select 1 from (select 1 where a or b) x\nwhere ",
            ),
            (
                "select 'where a or b' from t where \"or\" = 1",
                "select 'where a or b' from t where \"or\" = 1\nand ",
            ),
            (
                "select 1 from t union select 2",
                "select * from (select 1 from t union select 2\n) as page where ",
            ),
            (
                "select a from t where b group by a",
                "select * from (select a from t where b group by a\n) as page where ",
            ),
        ] {
            assert_eq!(
                opened(sql).replace("Where (\n", "Where ("),
                with.replace("Where (\n", "Where ("),
                "{sql}"
            );
        }
    }

    #[test]
    fn bound_values_stay_where_they_were() {
        let mut query = QueryBuilder::<sqlx::Sqlite>::new("select 1 from t where a = ");
        query.push_bind(1_i64).push(" or b = ").push_bind(2_i64);
        open_where(&mut query);
        query.push("c = ").push_bind(3_i64);
        assert_eq!(query.into_string().matches('?').count(), 3);
    }
}
