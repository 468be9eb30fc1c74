//! Query plans: whether a statement uses an index. The database is asked, without running the
//! statement, and so that it plans for tiny test tables as for large ones.
//!
//! | system | how |
//! | --- | --- |
//! | Postgres | the generic plan, with sequential scans made expensive: a remaining one, or an index that is read completely and filtered, is a full scan |
//! | SQLite | `explain query plan`: `SCAN` |
//! | MySQL, MariaDB | `explain`: type `ALL` without a possible key, or `index`; placeholders are replaced by 1 |
//!
//! A complete index read in order under a `limit` is not a full scan: a first page is made that
//! way.

use std::fmt;

use sqlx::AssertSqlSafe;

use super::Record;
use crate::Dialect;
use crate::backend::Backend;
use crate::db::Db;
use crate::error::Error;

/// Plan of the database for a statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    lines: Vec<String>,
    scans: Vec<String>,
}

impl Plan {
    /// Returns the tables that would be scanned completely.
    pub fn full_scans(&self) -> &[String] {
        &self.scans
    }

    /// Panics if a table would be scanned completely.
    #[track_caller]
    pub fn assert_indexed(&self) {
        assert!(
            self.scans.is_empty(),
            "full table scan on {}: no usable index\n{self}",
            self.scans.join(", ")
        );
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl<DB: Backend> Db<DB> {
    /// Returns the database's plan for a statement with open parameters. The statement does not
    /// run.
    ///
    /// ```no_run
    /// # async fn example(db: scale_db::Db<sqlx::Postgres>) -> Result<(), scale_db::Error> {
    /// db.explain("select id from orders where customer = $1").await?.assert_indexed();
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Sql`] if the statement is invalid, or not a single `select`, `insert`, `update` or
    /// `delete`.
    pub async fn explain(&self, sql: &str) -> Result<Plan, Error> {
        if !is_explainable(self.dialect(), sql) {
            return Err(sqlx::Error::Protocol(
                "not explainable: expected a single select, insert, update or delete".into(),
            )
            .into());
        }
        let limited = sql.to_ascii_lowercase().contains("limit");
        let mut own = self.acquire().await?;
        let rows = match self.dialect() {
            Dialect::Postgres => {
                // The connection does not return to its pool: its settings and prepared statement
                // end with it.
                let mut own = own.detach();
                let settings = "set enable_seqscan = off; set plan_cache_mode = force_generic_plan";
                DB::tell(&mut own, settings.to_owned()).await?;
                DB::tell(&mut own, format!("prepare explained as {sql}")).await?;
                let count = "select cardinality(parameter_types) ::text \
                    from pg_prepared_statements where name = 'explained'";
                let count = DB::ask(
                    &mut own,
                    sqlx::SqlSafeStr::into_sql_str(AssertSqlSafe(count.to_owned())),
                )
                .await?;
                let count: usize =
                    count.first().and_then(|c| c.as_deref()?.parse().ok()).unwrap_or_default();
                let nulls = if count == 0 {
                    String::new()
                } else {
                    format!("({})", vec!["null"; count].join(", "))
                };
                DB::rows(&mut own, format!("explain (costs off) execute explained{nulls}")).await?
            }
            Dialect::Sqlite => DB::rows(&mut own, format!("explain query plan {sql}")).await?,
            Dialect::MySql => DB::rows(&mut own, format!("explain {}", with_ones(sql))).await?,
        };
        let scans = self.dialect().full_scans(&rows, limited);
        let lines = rows
            .into_iter()
            .map(|row| row.into_iter().flatten().collect::<Vec<_>>().join("  "))
            .collect();
        Ok(Plan { lines, scans })
    }
}

impl Record {
    /// Gets the plan of each recorded `select`, `insert`, `update` and `delete` from the database,
    /// and panics if one scans a table completely that is not in `small`.
    ///
    /// ```no_run
    /// # async fn page(db: &scale_db::Db<sqlx::Postgres>) {}
    /// # async fn example(db: scale_db::Db<sqlx::Postgres>) -> Result<(), scale_db::Error> {
    /// let ((), record) = scale_db::observe::record(page(&db)).await;
    /// record.assert_indexed(&db, &["countries"]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Sql`] if the database cannot explain a statement.
    pub async fn assert_indexed<DB: Backend>(
        &self,
        db: &Db<DB>,
        small: &[&str],
    ) -> Result<(), Error> {
        for sql in self.1.iter().filter(|sql| is_explainable(db.dialect(), sql)) {
            let plan = db.explain(sql).await?;
            let scans: Vec<_> =
                plan.scans.iter().filter(|table| !small.contains(&table.as_str())).collect();
            assert!(
                scans.is_empty(),
                "full table scan on {scans:?}: no usable index: {sql}\n{plan}"
            );
        }
        Ok(())
    }
}

/// Returns whether the text is one statement that has a plan.
fn is_explainable(dialect: Dialect, sql: &str) -> bool {
    use sqlparser::ast::Statement::{Delete, Insert, Query, Update};
    let is_one =
        |statements: &[_]| matches!(statements, [Query(_) | Insert(_) | Update { .. } | Delete(_)]);
    crate::router::with_statements(dialect, sql, is_one).unwrap_or(false)
}

/// Replaces each `?` outside of quotes by `1`.
fn with_ones(sql: &str) -> String {
    let mut quote = None;
    let one = |c: char| {
        match quote {
            Some(open) if open == c => quote = None,
            None if "'\"`".contains(c) => quote = Some(c),
            None if c == '?' => return '1',
            _ => {}
        }
        c
    };
    sql.chars().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_placeholders_become_values() {
        assert_eq!(
            with_ones("select ? from `a?` where b = '?''?' and c = ?"),
            "select 1 from `a?` where b = '?''?' and c = 1"
        );
    }

    #[test]
    fn one_statement_only() {
        assert!(is_explainable(Dialect::Postgres, "select 1"));
        assert!(is_explainable(
            Dialect::Postgres,
            "with a as (select 1) update t set n = 1 where id = $1 returning n"
        ));
        for not in
            ["select 1; drop table t", "drop table t", "", "explain select 1", "nonsense", "begin"]
        {
            assert!(!is_explainable(Dialect::Postgres, not), "{not}");
        }
    }
}
