//! Distinguishes statements that read only tables from those that read views, which may call
//! functions that write.
//!
//! A replica refuses the writes of such a view. A primary runs them, so a statement whose
//! connection was lost there may have had an effect.

use sqlx::{AssertSqlSafe, SqlSafeStr};

use crate::backend::Backend;
use crate::db::Db;
use crate::dialect::Dialect;
use crate::router;

/// Asks the primary's catalogue what a statement reads. If that is unknown, it counts as a view.
pub(crate) async fn are_all_it_reads<DB: Backend>(db: &Db<DB>, sql: &str) -> bool {
    let Some(names) = router::relations(db.0.dialect, sql) else { return false };
    if names.is_empty() {
        return true;
    }
    let ask = async {
        let node = db.primary_node().await?;
        let mut connection = node.pool().acquire().await?;
        let question = AssertSqlSafe(question(db.0.dialect, &names)).into_sql_str();
        db.within_deadline(&node, DB::ask(&mut connection, question)).await
    };
    ask.await.is_ok_and(|row| row.first().and_then(Option::as_deref) == Some("0"))
}

/// Builds a query that counts relations that are no tables or have row-level security.
fn question(dialect: Dialect, names: &[String]) -> String {
    let literals: Vec<_> = names.iter().map(|name| dialect.literal(name)).collect();
    match dialect {
        Dialect::Postgres => format!(
            "select count(*)::text from unnest(array[{}]::text[]) n left \
             join pg_class c on c.oid = to_regclass(n) \
             where c.oid is null or c.relkind not in ('r', 'p', 'm', 't') or c.relrowsecurity",
            literals.join(", ")
        ),
        Dialect::MySql => {
            let one = |name: &String| {
                let (schema, table) = match name.split_once('.') {
                    Some((schema, table)) => {
                        (dialect.literal(&bare(schema)), dialect.literal(&bare(table)))
                    }
                    None => ("database()".to_owned(), dialect.literal(&bare(name))),
                };
                format!(
                    "(select count(*) from information_schema.tables \
                     where table_schema = {schema} and table_name = {table} \
                     and table_type = 'BASE TABLE')"
                )
            };
            let found: Vec<_> = names.iter().map(one).collect();
            format!("select cast({} - ({}) as char)", names.len(), found.join(" + "))
        }
        Dialect::Sqlite => "select '1'".to_owned(),
    }
}

fn bare(name: &str) -> String {
    name.trim_matches('`').replace("``", "`")
}
