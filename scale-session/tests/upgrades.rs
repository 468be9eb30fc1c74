//! Databases of earlier versions: each earlier schema, with data, is upgraded to the current
//! schema.
#![cfg(all(feature = "auth", feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

mod common;

use anyhow::{Context, Result};
use common::{get, login, send};
use scale_session::auth::audit::Keys;
use scale_session::auth::{AuditLog, OneTimeStore, Records};
use scale_session::store::{Database, Options, System, migrate, migrations};
use scale_session::{Config, Error, SessionLayer};
use scale_sql::Statement;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row, SqliteConnection, SqlitePool};
use testkit::{MariaDb, Postgres};

/// Earlier schemas, by number: `tests/schemas`.
const OLD: [(u32, [&str; 2]); 7] = [
    (1, [include_str!("schemas/1.postgres.sql"), include_str!("schemas/1.sqlite.sql")]),
    (2, [include_str!("schemas/2.postgres.sql"), include_str!("schemas/2.sqlite.sql")]),
    (3, [include_str!("schemas/3.postgres.sql"), include_str!("schemas/3.sqlite.sql")]),
    (4, [include_str!("schemas/4.postgres.sql"), include_str!("schemas/4.sqlite.sql")]),
    (5, [include_str!("schemas/5.postgres.sql"), include_str!("schemas/5.sqlite.sql")]),
    (6, [include_str!("schemas/6.postgres.sql"), include_str!("schemas/6.sqlite.sql")]),
    (7, [include_str!("schemas/7.postgres.sql"), include_str!("schemas/7.sqlite.sql")]),
];
/// The last version whose tables had no application column. Cookies signed by that version are no
/// longer accepted.
const NO_APPLICATIONS: u32 = 4;

/// A session as stored in the tables, and its cookie.
struct Known {
    cookie: String,
    session: String,
    fields: Vec<String>,
}

async fn known() -> Result<Known> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}/s.db", folder.path().display());
    let cookie = login(&SessionLayer::connect(&url, "test", Config::default()).await?).await;
    let mut connection = SqliteConnection::connect(&url).await?;
    let columns = "app || ''', ''' || handle || ''', ''' || proofs || ''', ' || renewed_ms || ', ' \
        || expires_ms || ', ' || ends_ms";
    let session = format!("select '''' || {columns} as line from scale_sessions");
    let session =
        sqlx::query(AssertSqlSafe(session)).fetch_one(&mut connection).await?.try_get(0)?;
    let fields = "select '''' || app || ''', ''' || handle || ''', ''' || field || '''|' || \
        hex(value) from scale_session_fields";
    let rows = sqlx::query(fields).fetch_all(&mut connection).await?;
    let fields = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(Known { cookie, session, fields })
}

fn data(version: u32, system: System, known: &Known) -> Vec<String> {
    let blob = |hex: &str| match system {
        System::Postgres => format!("'\\x{hex}'::bytea"),
        _ => format!("x'{hex}'"),
    };
    let mut data = Vec::new();
    if version <= NO_APPLICATIONS {
        data.push(
            "insert into scale_sessions (handle, renewed_ms, expires_ms, ends_ms) \
             values ('h', 1, 4000000000000, 4000000000000)"
                .to_owned(),
        );
        data.push(format!("insert into scale_session_fields values ('h', 'user', {})", blob("01")));
        if version >= 2 {
            data.push("insert into scale_ledger values ('k', 0, 1, 4000000000000)".to_owned());
        }
    } else {
        let columns = "app, handle, proofs, renewed_ms, expires_ms, ends_ms";
        data.push(format!("insert into scale_sessions ({columns}) values ({})", known.session));
        for field in &known.fields {
            let (names, value) = field.split_once('|').unwrap();
            let columns = "app, handle, field, value";
            data.push(format!(
                "insert into scale_session_fields ({columns}) values ({names}, {})",
                blob(value)
            ));
        }
    }
    if version == NO_APPLICATIONS {
        data.push(format!(
            "insert into scale_audit values (1, 2, 'ann', 'log.in', '', '', {})",
            blob("0102")
        ));
    }
    data
}

/// Returns the tables, columns and indexes in a comparable text form.
async fn shape(database: &Database) -> Result<Vec<String>> {
    let text = match database.system() {
        System::Postgres => {
            "select table_name || ' ' || column_name || ' ' || data_type || ' ' || is_nullable || \
             ' ' \
                 || coalesce(collation_name, '') || ' ' || coalesce(column_default, '') \
             from information_schema.columns where table_name like 'scale%' \
             and table_schema = current_schema() \
             union all select regexp_replace(regexp_replace(indexdef, '_pkey\\d*', '_pkey'), ' \
             ON \\w+\\.', ' ON ') \
             from pg_indexes where schemaname = current_schema() and tablename like 'scale%' \
             order by 1"
        }
        _ => {
            "select t.name || ' ' || c.name || ' ' || c.type || ' ' || c.\"notnull\" || ' ' || \
             coalesce(c.dflt_value, '') \
                 || ' ' || c.pk from sqlite_master t join pragma_table_info(t.name) c \
                 where t.name like 'scale%' \
             union all select i.name || ' ' || group_concat(c.name) || ' ' || i.\"unique\" || ' ' \
             || i.partial \
             from sqlite_master t join pragma_index_list(t.name) i \
             join pragma_index_info(i.name) c \
             where t.name like 'scale%' and i.name not like 'sqlite_autoindex%' group by i.name \
             order by 1"
        }
    };
    let rows = Statement::new(database.system(), text).query().fetch_all(database).await?;
    let words: Vec<String> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
    Ok(words.into_iter().filter(|line| !line.contains("_migrations")).collect())
}

async fn upgraded(version: u32, database: Database, known: &Known, today: &[String]) -> Result<()> {
    migrate(database.clone()).await?;
    assert_eq!(shape(&database).await?, today, "as if newly created");
    migrate(database.clone()).await?;
    let layer = SessionLayer::with_pool(database.clone(), "test", Config::default()).await?;
    let who = send(&layer, Some(&known.cookie), get("user")).await.1;
    assert_eq!(who, if version > NO_APPLICATIONS { "ann" } else { "none" }, "of version {version}");
    let cookie = login(&layer).await;
    assert_eq!(send(&layer, Some(&cookie), get("user")).await.1, "ann");
    let one_time = OneTimeStore::with_pool(database.clone(), "test").await?;
    assert!(one_time.claim("test", "code", std::time::Duration::from_mins(1)).await?);
    Records::with_pool(database.clone(), "test").await?;
    let log = AuditLog::with_pool(database, "", Keys::new(&[7; 32])?).await?;
    let records = log.records(0, 10).await?;
    assert_eq!(records.len(), usize::from(version == NO_APPLICATIONS));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_schema_of_postgres_that_ever_was() -> Result<()> {
    let server = Postgres::start(0).await?;
    let known = known().await?;
    let in_schema = async |name: String| -> Result<PgPool> {
        server.node(0).sql(&format!("create schema {name}")).await?;
        Ok(PgPool::connect(&format!("{}?options=-csearch_path%3D{name}", server.node(0).url()))
            .await?)
    };
    let fresh = Database::from(in_schema("fresh".into()).await?);
    migrate(fresh.clone()).await?;
    let today = shape(&fresh).await?;
    for (version, [tables, _]) in OLD {
        let pool = in_schema(format!("v{version}")).await?;
        sqlx::raw_sql(tables).execute(&pool).await?;
        for row in data(version, System::Postgres, &known) {
            sqlx::query(AssertSqlSafe(row.clone())).execute(&pool).await.context(row)?;
        }
        upgraded(version, Database::from(pool), &known, &today)
            .await
            .with_context(|| format!("version {version}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_schema_of_sqlite_that_ever_was() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let known = known().await?;
    let url = |name: &str| format!("sqlite://{}/{name}.db?mode=rwc", folder.path().display());
    let fresh = Database::connect(&url("fresh"), &Options::default()).await?;
    migrate(fresh.clone()).await?;
    let today = shape(&fresh).await?;
    for (version, [_, tables]) in OLD {
        let pool = SqlitePool::connect(&url(&version.to_string())).await?;
        sqlx::raw_sql(tables).execute(&pool).await?;
        for row in data(version, System::Sqlite, &known) {
            sqlx::query(AssertSqlSafe(row.clone())).execute(&pool).await.context(row)?;
        }
        upgraded(version, Database::from(pool), &known, &today)
            .await
            .with_context(|| format!("version {version}"))?;
    }
    Ok(())
}

/// A database with the tables of only some stores gets the tables of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_a_ledger_becomes_one_of_sessions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pool =
        SqlitePool::connect(&format!("sqlite://{}/l.db?mode=rwc", folder.path().display())).await?;
    let (_, one_time) =
        OLD[6].1[1].split_once("create table if not exists scale_ledger").context("a ledger")?;
    let (one_time, _) =
        one_time.split_once("create table if not exists scale_audit").context("a log")?;
    let one_time = format!("create table if not exists scale_ledger{one_time}");
    sqlx::raw_sql(AssertSqlSafe(one_time)).execute(&pool).await?;
    migrate(&pool).await?;
    let layer = SessionLayer::with_pool(&pool, "test", Config::default()).await?;
    let cookie = login(&layer).await;
    assert_eq!(send(&layer, Some(&cookie), get("user")).await.1, "ann");
    Records::with_pool(&pool, "test").await.map(drop)?;
    Ok(())
}

/// A server that lacks the tables reports that in one line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_tables_are_named() -> Result<()> {
    let (postgres, mariadb) = tokio::try_join!(Postgres::start(0), MariaDb::start(0))?;
    for url in [postgres.node(0).url(), mariadb.node(0).url()] {
        let refused = SessionLayer::connect(&url, "test", Config::default()).await.unwrap_err();
        assert!(matches!(refused, Error::Schema(_)), "{refused}");
        assert!(
            refused.to_string().contains("at version 0, and this version needs 4"),
            "{refused}"
        );
        let refused = OneTimeStore::connect(&url, "test").await.unwrap_err().to_string();
        assert!(refused.contains("scale_ledger") && refused.contains("migrate"), "{refused}");
        // Several processes migrate at once.
        futures_util::future::try_join_all((0..6).map(|_| common::migrate(&url))).await?;
        SessionLayer::connect(&url, "test", Config::default()).await?;
    }
    Ok(())
}

/// A role that may not create tables can do everything else, once another role has applied the
/// files with its own tool; the audit log's role may not even change a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_create_needs_no_more_than_rows() -> Result<()> {
    let server = Postgres::start(0).await?;
    let mut owner = PgConnection::connect(&server.node(0).url()).await?;
    for (name, sql) in migrations(System::Postgres) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut owner).await.context(name)?;
    }
    sqlx::raw_sql(
        "create role clerk login; create role notary login; revoke create on schema public \
         from public; \
         grant select, insert, update, delete on all tables in schema public to clerk; \
         revoke all on scale_audit from clerk; grant select, insert on scale_audit to notary",
    )
    .execute(&mut owner)
    .await?;
    let url = |role: &str| server.node(0).url().replace("postgres@", &format!("{role}@"));
    let layer = SessionLayer::connect(&url("clerk"), "test", Config::default()).await?;
    let cookie = login(&layer).await;
    assert_eq!(send(&layer, Some(&cookie), get("user")).await.1, "ann");
    assert!(
        OneTimeStore::connect(&url("clerk"), "test")
            .await?
            .claim("a", "b", std::time::Duration::from_mins(1))
            .await?
    );
    let log = AuditLog::connect(&url("notary"), "test", Keys::new(&[7; 32])?).await?;
    log.append(scale_session::auth::audit::Event::new("ann", "log.in")).await?;
    assert_eq!(log.verify(None).await?, Ok(1));
    Ok(())
}
