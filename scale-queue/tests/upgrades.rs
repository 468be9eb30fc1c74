//! Databases of earlier versions: each earlier schema, with data, is migrated to the current one.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use anyhow::{Context, Result};
use common::{Log, Note, log_worker, running};
use scale_queue::relay::Relay;
use scale_queue::store::{Database, System, migrate, migrations};
use scale_queue::{Error, Job, Queue};
use scale_sql::{Options, Statement};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row, SqliteConnection, SqlitePool};
use testkit::{MariaDb, Postgres};

/// Earlier schemas, by number: `tests/schemas`.
const OLD: [(u32, [&str; 2]); 6] = [
    (1, [include_str!("schemas/1.postgres.sql"), include_str!("schemas/1.sqlite.sql")]),
    (2, [include_str!("schemas/2.postgres.sql"), include_str!("schemas/2.sqlite.sql")]),
    (3, [include_str!("schemas/3.postgres.sql"), include_str!("schemas/3.sqlite.sql")]),
    (4, [include_str!("schemas/4.postgres.sql"), include_str!("schemas/4.sqlite.sql")]),
    (5, [include_str!("schemas/5.postgres.sql"), include_str!("schemas/5.sqlite.sql")]),
    (6, [include_str!("schemas/6.postgres.sql"), include_str!("schemas/6.sqlite.sql")]),
];
/// The last schema version without applications.
const NO_APPLICATIONS: u32 = 4;

#[derive(Serialize, Deserialize)]
struct Keyed;

impl Job for Keyed {
    const NAME: &'static str = "keyed";
    const QUEUE: &'static str = "keyed";

    fn unique_key(&self) -> Option<String> {
        Some("a,b\\c".to_owned())
    }
}

/// Bodies in the format that every version has written: five notes and a keyed job, with their ids.
async fn bodies() -> Result<Vec<(String, String)>> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}/jobs.db", folder.path().display());
    let queue = Queue::connect(&url, "test").await?;
    queue.push_many((1..=5).map(|n| Note { n })).await?;
    queue.push(Keyed).await?;
    let mut connection = SqliteConnection::connect(&url).await?;
    let rows = sqlx::query("select id, hex(body) from scale_queue_jobs order by unique_key, id")
        .fetch_all(&mut connection)
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Data left by a version: two jobs waiting, one leased, one scheduled in the past, one dead, one
/// in the outbox, and one that is held by its key.
fn data(version: u32, system: System, bodies: &[(String, String)]) -> Vec<String> {
    let blob = |hex: &str| match system {
        System::Postgres => format!("'\\x{hex}'::bytea"),
        _ => format!("x'{hex}'"),
    };
    let (app, in_app) = if version > NO_APPLICATIONS { ("app, ", "'test', ") } else { ("", "") };
    let job = |n: usize, queue: &str, worker: &str, due: &str, key: &str| {
        let (id, body) = &bodies[n];
        let until = if key == "null" { "null" } else { "4000000000000" };
        format!(
            "insert into scale_queue_jobs ({app}id, queue, due_ms, worker, unique_key, \
             unique_until_ms, body) \
             values ({in_app}'{id}', '{queue}', {due}, {worker}, {key}, {until}, {})",
            blob(body)
        )
    };
    let key = if version > NO_APPLICATIONS { "'a\\cb\\\\c'" } else { "'a,b\\c'" };
    let (ended, unbegun) =
        if version > NO_APPLICATIONS { (", ended", ", ended, unbegun, trial") } else { ("", "") };
    let (no_ended, no_unbegun) =
        if version > NO_APPLICATIONS { (", 0", ", 0, '', ''") } else { ("", "") };
    let dead_id = if version > NO_APPLICATIONS {
        ("id, ", format!("'{}', ", bodies[3].0))
    } else {
        ("", String::new())
    };
    let mut data = vec![
        job(0, "notes", "null", "1000", "null"),
        job(1, "notes", "null", "2000", "null"),
        job(2, "notes", "'gone'", "3000", "null"),
        job(5, "keyed", "null", "4000000000000", key),
        format!(
            "insert into scale_queue_workers ({app}queue, worker, until_ms, done, failed{unbegun}) \
             values ({in_app}'notes', 'gone', 5, 7, 2{no_unbegun})"
        ),
        format!(
            "insert into scale_queue_queues ({app}queue, paused, done, failed{ended}) \
             values ({in_app}'notes', 0, 3, 1{no_ended})"
        ),
        format!(
            "insert into scale_queue_dead ({app}{}queue, died_ms, reason, body) \
             values ({in_app}{}'notes', 9000, 'no', {})",
            dead_id.0,
            dead_id.1,
            blob(&bodies[3].1)
        ),
        format!(
            "insert into scale_queue_outbox ({app}id, queue, delay_ms, body) \
             values ({in_app}'{}', 'notes', 0, {})",
            bodies[4].0,
            blob(&bodies[4].1)
        ),
    ];
    if version >= 2 {
        data.push(format!(
            "insert into scale_queue_once ({app}queue, once_key, id, until_ms) \
             values ({in_app}'notes', 'told', 'x', 4000000000000)"
        ));
    }
    if version >= 3 {
        data.push(format!(
            "insert into scale_queue_notes ({app}note_key, value, until_ms) \
             values ({in_app}'n', {}, 4000000000000)",
            blob("01")
        ));
    }
    data
}

/// Existing tables, columns and indexes, as comparable text.
async fn shape(database: &Database) -> Result<Vec<String>> {
    let text = match database.system() {
        System::Postgres => {
            "select table_name || ' ' || column_name || ' ' || data_type || ' ' || is_nullable || \
             ' ' \
                 || coalesce(collation_name, '') || ' ' || coalesce(column_default, '') || ' ' || \
                 is_identity \
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
    // Columns that were added later come last, so their order is not compared.
    let mut words: Vec<String> =
        words.into_iter().filter(|line| !line.contains("_migrations")).collect();
    words.sort();
    Ok(words)
}

async fn upgraded(
    version: u32,
    database: Database,
    bodies: &[(String, String)],
    today: &[String],
) -> Result<()> {
    migrate(database.clone()).await?;
    assert_eq!(shape(&database).await?, today, "as if made anew");
    // A second migration has nothing to do.
    migrate(database.clone()).await?;
    let queue = Queue::with_pool(database.clone(), "test").connect().await?;
    let stats = queue.stats("notes").await?;
    assert_eq!(stats.dead, 1);
    assert_eq!((stats.done_total, stats.failed_total), (10, 3), "{stats:?}");
    let held = queue.push(Keyed).await?;
    assert!(!held.is_new, "its key is held");
    assert_eq!(held.id.to_string().replace('-', ""), bodies[5].0);
    let log = Log::default();
    let workers = running([log_worker(&queue, &log).lease(Duration::from_millis(300))]);
    log.wait_for(3).await?;
    let dead = queue.dead("notes", 0, 10).await?.remove(0);
    assert_eq!((dead.reason.as_str(), dead.died_ms), ("no", 9_000));
    assert!(queue.revive("notes", &dead).await?);
    log.wait_for(4).await?;
    // The relay of the current version imports the old outbox.
    let relay = Relay::new(&queue);
    let moved = match database.postgres() {
        Some(pool) => relay.step(&mut *pool.acquire().await?).await?,
        None => relay.step(&mut *database.sqlite().context("a pool")?.acquire().await?).await?,
    };
    assert_eq!(moved, 1);
    log.wait_for(5).await?;
    assert_eq!(log.sorted(), [1, 2, 3, 4, 5], "of version {version}");
    workers.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_schema_of_postgres_that_ever_was() -> Result<()> {
    let server = Postgres::start(0).await?;
    let bodies = bodies().await?;
    let fresh = PgPool::connect(&in_schema(&server, "fresh").await?).await?;
    migrate(&fresh).await?;
    let today = shape(&Database::from(&fresh)).await?;
    for (version, [tables, _]) in OLD {
        let url = in_schema(&server, &format!("v{version}")).await?;
        let pool = PgPool::connect(&url).await?;
        sqlx::raw_sql(tables).execute(&pool).await?;
        for row in data(version, System::Postgres, &bodies) {
            sqlx::query(AssertSqlSafe(row.clone())).execute(&pool).await.context(row)?;
        }
        upgraded(version, Database::from(&pool), &bodies, &today)
            .await
            .with_context(|| format!("version {version}"))?;
    }
    Ok(())
}

/// Creates a separate schema on the shared server.
async fn in_schema(server: &Postgres, name: &str) -> Result<String> {
    server.node(0).sql(&format!("create schema {name}")).await?;
    Ok(format!("{}?options=-csearch_path%3D{name}", server.node(0).url()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_schema_of_sqlite_that_ever_was() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bodies = bodies().await?;
    let url = |name: &str| format!("sqlite://{}/{name}.db?mode=rwc", folder.path().display());
    let fresh = Database::connect(&url("fresh"), &Options::default()).await?;
    migrate(fresh.clone()).await?;
    let today = shape(&fresh).await?;
    for (version, [_, tables]) in OLD {
        let pool = SqlitePool::connect(&url(&version.to_string())).await?;
        sqlx::raw_sql(tables).execute(&pool).await?;
        for row in data(version, System::Sqlite, &bodies) {
            sqlx::query(AssertSqlSafe(row.clone())).execute(&pool).await.context(row)?;
        }
        upgraded(version, Database::from(&pool), &bodies, &today)
            .await
            .with_context(|| format!("version {version}"))?;
    }
    Ok(())
}

/// A database with only the outbox of a queue elsewhere has some of the tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_an_outbox_becomes_one_of_a_queue() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pool =
        SqlitePool::connect(&format!("sqlite://{}/outbox.db?mode=rwc", folder.path().display()))
            .await?;
    let (tables, _) = OLD[4].1[1]
        .split_once("create table if not exists scale_queue_batches")
        .context("shared tables")?;
    sqlx::raw_sql(AssertSqlSafe(tables.to_owned())).execute(&pool).await?;
    let queue = Queue::sqlite(pool, "test").await?;
    queue.push(Note { n: 1 }).await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    log.wait_for(1).await?;
    workers.stop().await
}

/// Older and newer tables are refused with a message of one line; newer tables with only additions
/// are accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_another_version_are_refused() -> Result<()> {
    let (postgres, mariadb) = tokio::try_join!(Postgres::start(0), MariaDb::start(0))?;
    for url in [postgres.node(0).url(), mariadb.node(0).url()] {
        let database = Database::connect(&url, &Options::default()).await?;
        let refused = Queue::connect(&url, "test").await.unwrap_err();
        assert!(matches!(refused, Error::Schema(_)), "{refused}");
        let said = refused.to_string();
        let newest = 9;
        let needs = format!("at version 0, and this version needs {newest}");
        assert!(said.contains(&needs) && said.contains("migrate"), "{said}");
        migrate(database.clone()).await?;
        let queue = Queue::connect(&url, "test").await?;
        let newer = async |version: i64, name: &str| -> Result<(), sqlx::Error> {
            let text = "insert into scale_queue_migrations (version, description, success, \
                checksum, execution_time) \
                 values ($1, $2, true, $3, 0)";
            let insert =
                Statement::new(database.system(), text).bind(version).bind(name).bind(vec![0_u8]);
            insert.execute(&database).await.map(drop)
        };
        newer(newest + 1, "expand_something").await?;
        // During a deploy, processes of the earlier version continue and may restart.
        Queue::connect(&url, "test").await?.push(Note { n: 1 }).await?;
        migrate(database.clone()).await?;
        newer(newest + 2, "contract_something").await?;
        let refused = Queue::connect(&url, "test").await.unwrap_err().to_string();
        let knows = format!("at version {}, and this version knows {newest} at most", newest + 2);
        assert!(refused.contains(&knows), "{refused}");
        assert!(migrate(database).await.is_err());
        assert_eq!(queue.stats("notes").await?.waiting, 1, "who is connected stays so");
    }
    Ok(())
}

/// A role without the right to create objects can use all functions, once another role has applied
/// the files with a separate tool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_create_needs_no_more_than_rows() -> Result<()> {
    let server = Postgres::start(0).await?;
    let mut owner = PgConnection::connect(&server.node(0).url()).await?;
    for (name, sql) in migrations(System::Postgres) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut owner).await.context(name)?;
    }
    sqlx::raw_sql(
        "create role clerk login; revoke create on schema public from public; \
         grant select, insert, update, delete on all tables in schema public to clerk",
    )
    .execute(&mut owner)
    .await?;
    let url = server.node(0).url().replace("postgres@", "clerk@");
    // With migration enabled, there is nothing to do.
    Queue::builder(&url, "test").migrate(true).connect().await?;
    let queue = Queue::connect(&url, "test").await?;
    queue.push_many((0..20).map(|n| Note { n })).await?;
    let mut clerk = PgConnection::connect(&url).await?;
    queue.push_in(&mut clerk, Note { n: 20 }).await?;
    let log = Log::default();
    let workers = running([log_worker(&queue, &log)]);
    log.wait_for(21).await?;
    workers.stop().await
}
