//! A `Db` can do everything that sqlx can do with a pool: same rows, same errors, and connections
//! are returned.
#![cfg(all(feature = "postgres", feature = "sqlite", feature = "mysql"))]
#![allow(clippy::unwrap_used)]

use std::fmt::Debug;

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt};
use scale_db::{Db, sticky};
use sqlx::{
    Executor, FromRow, MySql, Postgres as Pg, QueryBuilder, Row, SqlSafeStr, Sqlite, Statement,
};
use testkit::{MariaDb, Postgres};

#[derive(Debug, FromRow)]
#[allow(dead_code)] // Read by its `Debug`.
struct Item {
    id: i64,
    name: Option<String>,
}

/// Describes a result for comparison: values unchanged, errors by kind and code (their texts
/// contain positions that differ by connection).
fn told<T: Debug>(result: Result<T, sqlx::Error>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(sqlx::Error::Database(error)) => {
            format!(
                "database: {:?} {} {:?} {:?}",
                error.code(),
                error.message(),
                error.kind(),
                error.constraint()
            )
        }
        Err(error) => format!("error: {error:?}"),
    }
}

/// The same steps for each driver; `$q` writes placeholders.
macro_rules! steps {
    ($name:ident, $db:ty, $q:expr, $bytes:expr) => {
        #[allow(clippy::too_many_lines)]
        async fn $name<'e, E: Executor<'e, Database = $db> + Copy>(on: E) -> Vec<String> {
            let q = |sql: &str| sqlx::AssertSqlSafe($q(sql)).into_sql_str();
            let mut log = Vec::new();
            macro_rules! step {
                ($result:expr) => {
                    log.push(told($result))
                };
            }
            // Several statements in one text.
            step!(
                sqlx::raw_sql(
                    "drop table if exists things; create table things (id bigint primary key, name \
                     varchar(40) unique)"
                )
                .execute(on)
                .await
                .map(drop)
            );
            step!(
                sqlx::query(q("insert into things values (?, ?), (?, ?)"))
                    .bind(1_i64)
                    .bind("one")
                    .bind(2_i64)
                    .bind(None::<String>)
                    .execute(on)
                    .await
                    .map(|r| r.rows_affected())
            );
            // All ways to fetch.
            step!(
                sqlx::query_as::<_, Item>(
                    "select id, name from things \
                order by id"
                )
                .fetch_all(on)
                .await
            );
            step!(
                sqlx::query_as::<_, Item>(q("select id, name from things \
                where id = ?"))
                .bind(1_i64)
                .fetch_one(on)
                .await
            );
            step!(
                sqlx::query_as::<_, Item>(q("select id, name from things \
                where id = ?"))
                .bind(9_i64)
                .fetch_optional(on)
                .await
            );
            step!(
                sqlx::query_as::<_, Item>(q("select id, name from things \
                where id = ?"))
                .bind(9_i64)
                .fetch_one(on)
                .await
            );
            step!(sqlx::query_scalar::<_, i64>("select count(*) from things").fetch_one(on).await);
            step!(
                sqlx::query("select id from things order by id")
                    .map(|row: <$db as sqlx::Database>::Row| row.get::<i64, _>(0) * 2)
                    .fetch_all(on)
                    .await
            );
            step!(
                sqlx::query("select id from things order by id")
                    .try_map(|row: <$db as sqlx::Database>::Row| row.try_get::<i64, _>("nope"))
                    .fetch_all(on)
                    .await
            );
            step!(
                sqlx::query("select id, name from things order by id")
                    .fetch(on)
                    .map_ok(|row| row.len())
                    .try_collect::<Vec<_>>()
                    .await
            );
            step!(
                sqlx::query(q("select id from things where id > ?"))
                    .bind(0_i64)
                    .persistent(false)
                    .fetch_all(on)
                    .await
                    .map(|rows| rows.len())
            );
            step!(
                sqlx::raw_sql("select 1; update things set name = 'first' where id = 1; select 2")
                    .fetch_many(on)
                    .map_ok(|e| e.map_left(drop).map_right(|row| row.len()).to_string_both())
                    .try_collect::<Vec<_>>()
                    .await
            );
            // Statements prepared explicitly.
            match on.prepare(q("select name from things where id = ?")).await {
                Ok(statement) => {
                    log.push(format!("{} columns", statement.columns().len()));
                    step!(
                        statement.query_scalar::<Option<String>>().bind(1_i64).fetch_one(on).await
                    );
                }
                Err(error) => step!(Err::<(), _>(error)),
            }
            step!(on.prepare("select nonsense from nowhere".into_sql_str()).await.map(drop));
            // Statements from a query builder.
            let mut built = QueryBuilder::<$db>::new("select id from things where id in (");
            let mut list = built.separated(", ");
            (1..=3_i64).for_each(|id| {
                list.push_bind(id);
            });
            built.push(") order by id");
            step!(built.build_query_scalar::<i64>().fetch_all(on).await);
            let mut built = QueryBuilder::<$db>::new("insert into things (id, name) ");
            built.push_values(10..13_i64, |mut row, id| {
                row.push_bind(id).push_bind(format!("n{id}"));
            });
            step!(built.build().execute(on).await.map(|r| r.rows_affected()));
            // On a pool, a transaction in several texts does not work; in one statement it does.
            step!(
                sqlx::query(
                    "with few as (select id from things where id < 12) select count(*) \
                    from few"
                )
                .fetch_one(on)
                .await
                .map(|row| row.get::<i64, _>(0))
            );
            step!(
                sqlx::query(q("delete from things \
                where id >= ?"))
                .bind(10_i64)
                .execute(on)
                .await
                .map(|r| r.rows_affected())
            );
            // Large, empty and unusual values.
            step!(
                sqlx::query_scalar::<_, String>($bytes)
                    .bind("ä'\"\\ \u{1F980}".repeat(10_000))
                    .fetch_one(on)
                    .await
                    .map(|s| s.len())
            );
            step!(sqlx::query_scalar::<_, String>($bytes).bind("").fetch_one(on).await);
            // Failures.
            step!(sqlx::query("selekt 1").execute(on).await.map(drop));
            step!(sqlx::query("select * from nowhere").fetch_all(on).await.map(|rows| rows.len()));
            step!(
                sqlx::query(
                    "insert into things values \
                (1, 'again')"
                )
                .execute(on)
                .await
                .map(drop)
            );
            step!(
                sqlx::query(
                    "insert into things values \
                (50, 'first')"
                )
                .execute(on)
                .await
                .map(drop)
            );
            step!(sqlx::query_scalar::<_, i64>("select 'word'").fetch_one(on).await);
            step!(sqlx::query_as::<_, Item>("select id from things").fetch_all(on).await);
            step!(sqlx::query("").execute(on).await.map(drop));
            // A stream that is dropped before its end returns its connection: more streams than
            // there are connections.
            for _ in 0..20 {
                let mut some = sqlx::query("select id from things").fetch(on);
                step!(some.next().await.unwrap().map(|row| row.len()));
            }
            log
        }
    };
}

trait Both {
    fn to_string_both(self) -> String;
}

impl Both for either::Either<(), usize> {
    fn to_string_both(self) -> String {
        self.either(|()| "end of a statement".into(), |columns| format!("{columns} columns"))
    }
}

fn dollars(sql: &str) -> String {
    let mut n = 0;
    let one = |c: char| {
        if c != '?' {
            return c.to_string();
        }
        n += 1;
        format!("${n}")
    };
    sql.chars().map(one).collect()
}

steps!(on_postgres, Pg, dollars, "select $1::text");
steps!(on_sqlite, Sqlite, str::to_owned, "select cast(? as text)");
steps!(on_mariadb, MySql, str::to_owned, "select cast(? as char)");

fn same(pool: &[String], db: &[String]) {
    for (n, (pool, db)) in pool.iter().zip(db).enumerate() {
        assert_eq!(pool, db, "step {n}");
    }
    assert_eq!(pool.len(), db.len());
    // The steps cover both successes and errors.
    let errors = pool
        .iter()
        .filter(|line| line.starts_with("error") || line.starts_with("database"))
        .count();
    assert!((5..15).contains(&errors), "{errors} errors: {pool:#?}");
}

#[tokio::test]
async fn postgres_does_the_same() -> Result<()> {
    let server = Postgres::start(1).await?;
    let urls = server.urls();
    let pool = sqlx::PgPool::connect(&urls[0]).await?;
    let expected = on_postgres(&pool).await;
    let db: Db<Pg> = Db::connect(&urls[0]).await?;
    same(&expected, &on_postgres(&db).await);
    same(&expected, &on_postgres(db.primary()).await);
    // With a replica, inside a request that reads its own writes.
    let db: Db<Pg> = Db::<Pg>::builder(&urls[0]).replica(&urls[1]).connect().await?;
    same(&expected, &sticky::scope(None, on_postgres(&db)).await);
    Ok(())
}

#[tokio::test]
async fn sqlite_does_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = |name: &str| format!("sqlite://{}/{name}.db?mode=rwc", folder.path().display());
    let pool = sqlx::SqlitePool::connect(&url("a")).await?;
    let expected = on_sqlite(&pool).await;
    let db: Db<Sqlite> = Db::connect(&url("b")).await?;
    same(&expected, &on_sqlite(&db).await);
    let memory: Db<Sqlite> = Db::connect("sqlite::memory:").await?;
    same(&expected, &on_sqlite(&memory).await);
    Ok(())
}

#[tokio::test]
async fn mariadb_does_the_same() -> Result<()> {
    let server = MariaDb::start(0).await?;
    let url = server.node(0).url();
    let pool = sqlx::MySqlPool::connect(&url).await?;
    let expected = on_mariadb(&pool).await;
    let db: Db<MySql> = Db::connect(&url).await?;
    same(&expected, &on_mariadb(&db).await);
    Ok(())
}
