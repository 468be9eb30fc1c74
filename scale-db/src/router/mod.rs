//! Router: decides where a statement may run. Pure policy: SQL text in, verdict out.

mod functions;
mod proof;

use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use self::proof::{relations, with_statements};
pub use crate::dialect::Dialect;

/// Verdict on a statement: proven to be free of side effects, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Proven read-only: any replica may run it, and it may be repeated.
    Read,
    /// Not proven: only the primary.
    Write,
}

/// Statements longer than this (bytes) are not parsed and go to the primary.
pub const MAX_PARSED: usize = 64 * 1024;

/// Maximum number of remembered verdicts; then all are forgotten and computed again.
const MAX_KNOWN: usize = 8_192;

/// Computes and remembers the verdict of each distinct SQL text. The look-up of a known statement
/// is lock-free.
///
/// ```
/// use scale_db::router::{Dialect, Router, Verdict};
/// let router = Router::new(Dialect::Postgres, ["my_pure_function"]);
/// assert_eq!(
///     router.verdict("select my_pure_function(id) from users where id = $1"), Verdict::Read,
/// );
/// assert_eq!(router.verdict("select * from users for update"), Verdict::Write);
/// assert_eq!(router.verdict("select nextval('seq')"), Verdict::Write);
/// ```
#[derive(Debug)]
pub struct Router {
    dialect: Dialect,
    safe: Vec<String>,
    known: papaya::HashMap<Box<str>, Verdict, foldhash::fast::RandomState>,
    count: AtomicUsize,
}

impl Router {
    /// Creates a router for one dialect. `safe` are the names, as written in SQL, of functions of
    /// the application that neither write nor lock.
    pub fn new<S: Into<String>>(dialect: Dialect, safe: impl IntoIterator<Item = S>) -> Self {
        let safe = safe.into_iter().map(Into::into).collect();
        Self { dialect, safe, known: papaya::HashMap::default(), count: AtomicUsize::new(0) }
    }

    /// Returns the verdict on an SQL text, which may contain several statements.
    pub fn verdict(&self, sql: &str) -> Verdict {
        if let Some(verdict) = self.known.pin().get(sql) {
            return *verdict;
        }
        if sql.len() > MAX_PARSED {
            return Verdict::Write;
        }
        let verdict = proof::verdict(self.dialect, &self.safe, sql);
        self.learn(sql, verdict);
        verdict
    }

    /// Remembers a statement as a write after a replica refused it: from now on it goes to the
    /// primary.
    pub fn mark_as_write(&self, sql: &str) {
        self.learn(sql, Verdict::Write);
    }

    fn learn(&self, sql: &str, verdict: Verdict) {
        let known = self.known.pin();
        if self.count.fetch_add(1, Ordering::Relaxed) >= MAX_KNOWN {
            self.count.store(0, Ordering::Relaxed);
            known.clear();
        }
        known.insert(sql.into(), verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_remembered_over_the_proof() {
        let router = Router::new(Dialect::Postgres, [""; 0]);
        assert_eq!(router.verdict("select * from a_view"), Verdict::Read);
        router.mark_as_write("select * from a_view");
        assert_eq!(router.verdict("select * from a_view"), Verdict::Write);
    }

    #[test]
    fn memory_is_bounded_and_long_text_is_not_parsed() {
        let router = Router::new(Dialect::Sqlite, [""; 0]);
        for n in 0..3 * MAX_KNOWN {
            router.verdict(&format!("select {n}"));
        }
        assert!(router.known.len() <= MAX_KNOWN + 1, "{}", router.known.len());
        assert_eq!(router.verdict(&format!("select '{}'", "x".repeat(1 << 20))), Verdict::Write);
    }
}
