//! Observation of statements: slow ones are logged, and tests can record all of them.
//!
//! A statement is identified by its *fingerprint*: its text with literals replaced by `?`, so that
//! values never reach a log.

mod plan;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::dialect::Dialect;

pub use self::plan::Plan;

tokio::task_local! {
    static RECORD: Recording;
}

/// Recorded statements by fingerprint, each with one of its texts.
pub(crate) type Recording = Arc<Mutex<HashMap<String, (RecordedStatement, String)>>>;

/// Returns the active recording, if any.
pub(crate) fn current() -> Option<Recording> {
    RECORD.try_with(Arc::clone).ok()
}

/// Runs a future within a recording.
pub(crate) async fn recorded<F: Future>(record: Option<Recording>, future: F) -> F::Output {
    match record {
        Some(record) => RECORD.scope(record, future).await,
        None => future.await,
    }
}

/// Runs a function within a recording.
pub(crate) fn recorded_now<T>(record: Option<&Recording>, now: impl FnOnce() -> T) -> T {
    match record {
        Some(record) => RECORD.sync_scope(Arc::clone(record), now),
        None => now(),
    }
}

/// Maximum bytes of a text that are read; the rest is cut off.
const LONGEST: usize = 10_000;

/// Number and duration of a statement's runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordedStatement {
    /// Number of runs.
    pub times: u32,
    /// Total duration.
    pub took: Duration,
}

/// Statements that ran inside [`record`].
#[derive(Clone, Debug, Default)]
pub struct Record(Vec<(String, RecordedStatement)>, Vec<String>);

/// Runs a future and records every statement that it runs through a [`Db`](crate::Db), within its
/// own task.
///
/// ```no_run
/// # async fn page(db: &scale_db::Db<sqlx::Postgres>) {}
/// # async fn example(db: scale_db::Db<sqlx::Postgres>) {
/// let ((), record) = scale_db::observe::record(page(&db)).await;
/// record.assert_no_repeats(1); // fails the test on N+1 queries, and names the statement
/// # }
/// ```
pub async fn record<F: Future>(future: F) -> (F::Output, Record) {
    let seen = Arc::default();
    let output = RECORD.scope(Arc::clone(&seen), future).await;
    let mut all: Vec<_> = seen.lock().drain().collect();
    all.sort_by_key(|(_, (seen, _))| std::cmp::Reverse((seen.times, seen.took)));
    let (statements, samples) =
        all.into_iter().map(|(print, (seen, sample))| ((print, seen), sample)).unzip();
    (output, Record(statements, samples))
}

impl Record {
    /// Returns the statements by fingerprint, the most frequent first.
    pub fn statements(&self) -> &[(String, RecordedStatement)] {
        &self.0
    }

    /// Returns the total number of runs.
    pub fn total(&self) -> u32 {
        self.0.iter().map(|(_, seen)| seen.times).sum()
    }

    /// Panics if a statement ran more than `most` times, which is the sign of N+1 queries.
    #[track_caller]
    pub fn assert_no_repeats(&self, most: u32) {
        if let Some((statement, seen)) = self.0.iter().find(|(_, seen)| seen.times > most) {
            panic!("ran {} times, expected at most {most} (N+1?): {statement}\n{self}", seen.times);
        }
    }

    /// Panics if more than `total` statements ran.
    #[track_caller]
    pub fn assert_at_most(&self, total: u32) {
        assert!(
            self.total() <= total,
            "{} statements ran, expected at most {total}:\n{self}",
            self.total()
        );
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(statement, seen)| {
            writeln!(f, "{:>6} × {:>10.2?}  {statement}", seen.times, seen.took)
        })
    }
}

/// Records an answered statement, and logs it if it was slow.
pub(crate) fn saw(dialect: Dialect, sql: &str, node: usize, took: Duration, slow: Duration) {
    let _ = RECORD.try_with(|record| {
        let mut record = record.lock();
        let (seen, _) = record
            .entry(fingerprint(dialect, sql))
            .or_insert_with(|| (RecordedStatement::default(), sql.to_owned()));
        seen.times += 1;
        seen.took += took;
    });
    if took >= slow {
        tracing::warn!(db.query.summary = fingerprint(dialect, sql), node, ?took, "slow query");
        metrics::counter!("scale_db_slow_queries_total").increment(1);
    }
}

/// Returns the fingerprint of a statement: its text without values, parsed in its dialect. Literals
/// become `?`, lists of literals one `?`, white space one blank; comments are removed. A text that
/// cannot be parsed is not shown at all, because the ends of its literals are unknown.
///
/// ```
/// # use scale_db::{Dialect, observe::fingerprint};
/// let print = |sql| fingerprint(Dialect::Postgres, sql);
/// assert_eq!(
///     print("select *  from t where name = 'o''hara' and id in (1, 2, 3)"),
///     "select * from t where name = ? and id in (?)",
/// );
/// assert_eq!(print("select 'open"), "(unreadable)");
/// ```
pub fn fingerprint(dialect: Dialect, sql: &str) -> String {
    let read = &sql[..sql.floor_char_boundary(LONGEST)];
    let mut tokens = Vec::new();
    let whole = Tokenizer::new(dialect.parser(), read).tokenize_with_location_into_buf(&mut tokens);
    // A cut text may end within a literal; the part before it is used.
    if whole.is_err() && read.len() == sql.len() {
        return "(unreadable)".into();
    }
    let mut out = String::with_capacity(read.len());
    for TokenWithSpan { token, .. } in tokens {
        match token {
            Token::Whitespace(_) => blank(&mut out),
            // SQLite treats a name in double quotes that is not a column as a string.
            Token::Word(word) if word.quote_style == Some('"') && dialect != Dialect::Postgres => {
                literal(&mut out);
            }
            Token::Word(_) | Token::Placeholder(_) => push(&mut out, &token),
            other if other.to_string().chars().any(char::is_alphanumeric) => literal(&mut out),
            other => push(&mut out, &other),
        }
    }
    out.truncate(out.trim_end().len());
    out
}

fn push(out: &mut String, token: &Token) {
    use fmt::Write;
    // Writing to a string cannot fail.
    let _ = write!(out, "{token}");
}

fn blank(out: &mut String) {
    if !out.is_empty() && !out.ends_with(' ') {
        out.push(' ');
    }
}

/// Writes one `?` for a literal or a whole list of literals.
fn literal(out: &mut String) {
    let before = out.trim_end();
    if let Some(list) = before.strip_suffix(',').map(str::trim_end)
        && list.ends_with('?')
    {
        let length = list.len();
        out.truncate(length);
        return;
    }
    out.push('?');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Dialect; 3] = [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite];

    #[test]
    fn values_are_gone_and_names_stay() {
        for (sql, expected) in [
            ("select 1", "select ?"),
            (
                "select a1, t.b2 from t_2 as t where x = 1.5e3",
                "select a1, t.b2 from t_2 as t where x = ?",
            ),
            ("select /* secret */ x -- secret\nfrom t", "select x from t"),
            ("insert into t values (1, 'a', 2)", "insert into t values (?)"),
            ("select 'it''s', x'736563726574'", "select ?"),
            ("select `a b` from t", "select `a b` from t"),
            ("select 'open", "(unreadable)"),
            ("", ""),
        ] {
            for dialect in ALL {
                let can = dialect != Dialect::Postgres || !sql.contains('`');
                assert!(
                    !can || fingerprint(dialect, sql) == expected,
                    "{dialect:?}: {sql}: {}",
                    fingerprint(dialect, sql)
                );
            }
        }
        for (dialect, sql, expected) in [
            (Dialect::Postgres, "select E'it\\'s', $1 from \"T a\"", "select ?, $1 from \"T a\""),
            (Dialect::Postgres, "select $$secret$$, $a$ $b$ secret $a$", "select ?"),
            // A backslash is an ordinary character in Postgres, and escapes the quote in MySQL.
            (
                Dialect::Postgres,
                r"select * from t where path = 'C:\' and token = 's3cret'",
                "select * from t where path = ? and token = ?",
            ),
            (
                Dialect::MySql,
                r"select * from t where path = 'C:\' and token = 's3cret'",
                "(unreadable)",
            ),
            (Dialect::MySql, r"select 'it\'s', 's3cret'", "select ?"),
            (
                Dialect::MySql,
                r#"select * from t where token = "s3cret" # s3cret"#,
                "select * from t where token = ?",
            ),
            (
                Dialect::Sqlite,
                r#"select * from t where token = "s3cret""#,
                "select * from t where token = ?",
            ),
            (Dialect::Postgres, "select /* a /* b */ s3cret */ x from t", "select x from t"),
        ] {
            assert_eq!(fingerprint(dialect, sql), expected, "{dialect:?}: {sql}");
        }
        let long = format!("select x from t where name = '{}'", "s3cret".repeat(LONGEST));
        assert_eq!(fingerprint(Dialect::Postgres, &long), "select x from t where name =");
    }

    proptest! {
        #[test]
        fn no_literal_gets_through(
            word in "[a-z]{12}",
            number in 1_000_000_u32..,
            before in "[a-z ,=(]{0,10}",
        ) {
            for dialect in ALL {
                let print = fingerprint(
                    dialect, &format!("select {before} '{word}', {number} /* {word} */ from t"),
                );
                prop_assert!(
                    !print.contains(&word) && !print.contains(&number.to_string()), "{}", print,
                );
            }
        }

        #[test]
        fn any_text_is_survived(sql in ".{0,200}") {
            for dialect in ALL {
                fingerprint(dialect, &sql);
            }
        }
    }
}
