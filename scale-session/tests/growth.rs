//! Costs that must not grow with the tables: query plans of the SQL statements on full tables.
#![cfg(all(feature = "auth", feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result};
use scale_session::statements_of;
use scale_session::store::{Database, Options, System, migrate};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection, Row, SqliteConnection};
use testkit::{MariaDb, Postgres};

/// Rows in each table. A million with `SCALE_SESSION_ROWS=1000000`; the plans are the same.
fn rows() -> u64 {
    std::env::var("SCALE_SESSION_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(100_000)
}

const TABLES: [&str; 6] = [
    "scale_sessions", "scale_session_owners", "scale_session_fields", "scale_ledger",
    "scale_auth_records", "scale_audit",
];

/// Statements that fill the tables as those of a site that has run for long; `i` is a row's number,
/// `{i}` the number as text.
fn filling(series: &str, bytes: &str, text: &str, key: &str) -> Vec<String> {
    let far = 4_000_000_000_000_i64;
    [
        format!(
            "scale_sessions (app, handle, proofs, renewed_ms, expires_ms, ends_ms, owner, \
            number) select 'test', {text}, 'p', i, {far}, {far}, {text}, 1"
        ),
        format!(
            "scale_session_owners (app, owner, last, revoked, until_ms) \
            select 'test', {text}, 1, 0, {far}"
        ),
        format!(
            "scale_session_fields (app, handle, field, value) \
            select 'test', {text}, 'user', {bytes}"
        ),
        format!(
            "scale_ledger (app, {key}, next, taken_ms, ends_ms) \
            select 'test', {text}, 0, i, {far}"
        ),
        format!(
            "scale_auth_records (app, owner, id, record, ends_ms) \
            select 'test', {text}, 'id', {bytes}, {far}"
        ),
        format!(
            "scale_audit (app, number, at_ms, actor, action, object, details, seal) \
            select 'test', i, i, 'a', 'b', 'c', 'd', {bytes}"
        ),
    ]
    .iter()
    .map(|table| {
        format!("insert into {table} from {}", series.replace("{rows}", &rows().to_string()))
    })
    .collect()
}

/// Statements whose plan is checked, with their parameters as literals.
fn asked(system: System) -> Vec<(&'static str, String)> {
    let is_of_interest = |(_, sql): &(&str, String)| {
        !sql.starts_with("insert into scale_auth_locks")
            && !sql.contains("pg_advisory")
            && !sql.contains(" values ")
    };
    let written = |(name, sql): (&'static str, String)| {
        let mut sql = sql;
        for n in (1..=8).rev() {
            let place = format!("${n}");
            let value = match n {
                1 => "'test'",
                _ if system == System::Postgres => "null",
                _ => "'1'",
            };
            sql = sql.replace(&format!("limit {place}"), "limit 1").replace(&place, value);
        }
        (name, sql)
    };
    statements_of(system).into_iter().filter(is_of_interest).map(written).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_postgres_reads_what_it_does_not_need() -> Result<()> {
    let server = Postgres::start(0).await?;
    migrate(Database::connect(&server.node(0).url(), &Options::default()).await?).await?;
    let mut connection = PgConnection::connect(&server.node(0).url()).await?;
    for fill in filling("generate_series(1, {rows}) as i", "'\\x01'::bytea", "i::text", "key") {
        sqlx::query(AssertSqlSafe(fill.clone())).execute(&mut connection).await.context(fill)?;
    }
    sqlx::raw_sql("vacuum analyze").execute(&mut connection).await?;
    let mut wrong = Vec::new();
    for (name, sql) in statements_of(System::Postgres) {
        if sql.contains("pg_advisory") || sql.contains(" values ") {
            continue;
        }
        // As for a prepared statement: the planner does not know the parameters.
        sqlx::raw_sql("set plan_cache_mode = force_generic_plan").execute(&mut connection).await?;
        let prepare = format!("prepare probe as {sql}");
        sqlx::raw_sql(AssertSqlSafe(prepare))
            .execute(&mut connection)
            .await
            .context(sql.clone())?;
        let count = "select cardinality(parameter_types)::bigint from pg_prepared_statements \
            where name = 'probe'";
        let count: i64 = sqlx::query(count).fetch_one(&mut connection).await?.try_get(0)?;
        let nulls = vec!["null"; count as usize].join(", ");
        let explain = if count == 0 {
            "explain execute probe".to_owned()
        } else {
            format!("explain execute probe({nulls})")
        };
        let lines = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut connection).await?;
        sqlx::raw_sql("deallocate probe").execute(&mut connection).await?;
        let plan: Vec<String> = lines.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let plan = plan.join("\n");
        if TABLES.iter().any(|table| plan.contains(&format!("Seq Scan on {table}"))) {
            wrong.push(format!("{name}: {sql}\n{plan}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_mariadb_reads_what_it_does_not_need() -> Result<()> {
    let server = MariaDb::start(0).await?;
    migrate(Database::connect(&server.node(0).url(), &Options::default()).await?).await?;
    let mut connection = MySqlConnection::connect(&server.node(0).url()).await?;
    let series = "(select seq as i from seq_1_to_{rows}) as series";
    for fill in filling(series, "x'01'", "concat('', i)", "`key`") {
        sqlx::query(AssertSqlSafe(fill.clone())).execute(&mut connection).await.context(fill)?;
    }
    let mut wrong = Vec::new();
    for (name, sql) in asked(System::MySql) {
        let explain = format!("explain {sql}");
        let plan = sqlx::raw_sql(AssertSqlSafe(explain.clone()))
            .fetch_all(&mut connection)
            .await
            .context(explain)?;
        for row in plan {
            let (table, how): (Option<String>, Option<String>) =
                (row.try_get("table")?, row.try_get("type")?);
            let is_ours = table.is_some_and(|table| {
                TABLES.contains(&&*table) || ["s", "o", "f"].contains(&&*table)
            });
            if is_ours && how.as_deref().is_some_and(|how| ["ALL", "index"].contains(&how)) {
                wrong.push(format!("{name}: {how:?}\n{sql}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_sqlite_reads_what_it_does_not_need() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}/s.db?mode=rwc", folder.path().display());
    migrate(Database::connect(&url, &Options::default()).await?).await?;
    let mut connection = SqliteConnection::connect(&url).await?;
    let mut wrong = Vec::new();
    for (name, sql) in asked(System::Sqlite) {
        let explain = format!("explain query plan {sql}");
        for row in sqlx::raw_sql(AssertSqlSafe(explain))
            .fetch_all(&mut connection)
            .await
            .context(sql.clone())?
        {
            let step: String = row.try_get("detail")?;
            if TABLES.iter().any(|table| step == format!("SCAN {table}")) {
                wrong.push(format!("{name}: {step}\n{sql}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}
