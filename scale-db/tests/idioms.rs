//! Code as written for sqlx, with `&Db`: migrations, `Acquire`, conversion from and to pools,
//! options, transactions, `COPY`, `LISTEN`.
#![cfg(all(
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "any",
    feature = "anyhow",
    feature = "uuid"
))]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::{StreamExt, TryStreamExt};
use scale_db::cluster::Role;
use scale_db::retry::{Attempt, Transient};
use scale_db::shard::Shards;
use scale_db::{Backend, Db, Error};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{
    Acquire, Connection, Executor, MySql, PgPool, Postgres as Pg, QueryBuilder, Row, SqlSafeStr,
    Sqlite, Statement,
};
use testkit::{MariaDb, Postgres, eventually};

async fn postgres() -> Result<(Postgres, Db<Pg>)> {
    let pg = Postgres::start(1).await?;
    let db = Db::builder(&pg.urls()[0])
        .replica(&pg.urls()[1])
        .monitor_interval(Duration::from_millis(100))
        .connect()
        .await?;
    eventually("both nodes to be fit", async || db.nodes().iter().all(|n| n.fit).then_some(()))
        .await?;
    Ok((pg, db))
}

#[tokio::test]
async fn migrations_run_on_the_database_itself() -> Result<()> {
    let (pg, db) = postgres().await?;
    sqlx::migrate!("tests/migrations").run(&db).await?;
    // Again, and from two processes at the same time.
    let other = Db::<Pg>::connect(&pg.urls()[0]).await?;
    let migrator = sqlx::migrate!("tests/migrations");
    tokio::try_join!(migrator.run(&db), migrator.run(&other))?;
    assert_eq!(pg.node(0).sql("select count(*) from _sqlx_migrations").await?, "2");
    // A migration that exceeds the timeout of other statements, while another process that starts
    // waits for it.
    let hasty = Db::<Pg>::builder(&pg.urls()[0])
        .statement_timeout(Duration::from_millis(300))
        .lock_timeout(Duration::from_millis(100));
    let (hasty, another) = (hasty.clone().connect().await?, hasty.connect().await?);
    let slow = Migration::new(
        3,
        "slow".into(),
        MigrationType::Simple,
        "select pg_sleep(1)".into_sql_str(),
        false,
    );
    let mut slow = Migrator::with_migrations(vec![slow]);
    slow.set_ignore_missing(true);
    assert!(slow.run(&another).await.is_err());
    // A failed migration keeps the migrator's lock until its connection is closed.
    another.close().await;
    let (one, two) = (slow.run(hasty.unlimited()), slow.run(hasty.unlimited()));
    tokio::try_join!(one, two)?;
    let limit: String =
        sqlx::query_scalar("show statement_timeout").fetch_one(hasty.primary()).await?;
    assert_eq!(limit, "300ms", "its connections are not those of others");

    let maria = MariaDb::start(0).await?;
    let mysql = Db::<MySql>::connect(&maria.node(0).url()).await?;
    sqlx::query("create table _first (id int)").execute(&mysql).await?;
    let lite = Db::<Sqlite>::connect("sqlite::memory:").await?;
    sqlx::migrate!("tests/migrations").run(&lite).await?;
    assert_eq!(
        sqlx::query_scalar::<_, i64>("select count(*) from migrated").fetch_one(&lite).await?,
        0
    );
    Ok(())
}

/// A function that is generic over types with connections.
async fn generic<'a, A: Acquire<'a, Database = Pg>>(from: A) -> sqlx::Result<i64> {
    let mut connection = from.acquire().await?;
    (&mut *connection).execute("create temp table mine (n bigint)").await?;
    sqlx::query_scalar("select count(*) from mine").fetch_one(&mut *connection).await
}

async fn in_transaction<'a, A: Acquire<'a, Database = Pg>>(from: A) -> sqlx::Result<()> {
    let mut tx = from.begin().await?;
    tx.execute("create table in_transaction (n bigint)").await?;
    tx.commit().await
}

async fn any_executor<'e, E: Executor<'e, Database = Pg>>(executor: E) -> sqlx::Result<i64> {
    sqlx::query_scalar("select 7::bigint").fetch_one(executor).await
}

async fn any_database<DB: Backend>(db: &Db<DB>) -> sqlx::Result<()>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    db.execute("select 1").await.map(drop)
}

#[tokio::test]
async fn functions_that_take_whatever_has_connections_take_it() -> Result<()> {
    let (_pg, db) = postgres().await?;
    assert_eq!(generic(&db).await?, 0);
    in_transaction(&db).await?;
    assert_eq!((any_executor(&db).await?, any_executor(db.primary()).await?), (7, 7));
    any_database(&db).await?;
    // A handle is already a reference count; an additional `Arc` also works.
    let shared = Arc::new(db);
    assert_eq!(any_executor(&*shared).await?, 7);
    Ok(())
}

#[tokio::test]
async fn pools_come_in_and_out() -> Result<()> {
    let (pg, db) = postgres().await?;
    // A pool as given by `#[sqlx::test]`.
    let pool: PgPool = PgPoolOptions::new().max_connections(3).connect(&pg.urls()[0]).await?;
    let lone = Db::from(pool.clone());
    sqlx::query("create table t (n bigint)").execute(&lone).await?;
    assert_eq!(sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&lone).await?, 0);
    assert!(lone.position().await.is_ok());
    let replica = PgPoolOptions::new().connect(&pg.urls()[1]).await?;
    // Roles are observed, in any order of the pools.
    let several = Db::from_pools([replica, pool]).await?;
    assert_eq!(
        several.nodes().iter().map(|n| n.role).collect::<Vec<_>>(),
        [Role::Replica, Role::Primary]
    );
    sqlx::query("insert into t values (1)").execute(&several).await?;
    assert!(matches!(Db::<Pg>::from_pools([]).await, Err(Error::Address(_))));

    let mut listener = PgListener::connect_with(&db.primary_pool().await?).await?;
    listener.listen("news").await?;
    sqlx::query("select pg_notify('news', 'hello')").execute(&db).await?;
    assert_eq!(tokio::time::timeout(testkit::DEADLINE, listener.recv()).await??.payload(), "hello");
    let replicas = db.replica_pools();
    let recovering: bool =
        sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&replicas[0]).await?;
    assert!(recovering && replicas.len() == 1);
    Ok(())
}

#[tokio::test]
async fn options_and_hooks_are_sqlx_s() -> Result<()> {
    let pg = Postgres::start(1).await?;
    let options = |n: usize| {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(pg.node(n).port())
            .username("postgres")
    };
    let greeted = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&greeted);
    let db = Db::<Pg>::builder(options(0).application_name("idioms"))
        .replica(options(1))
        .min_connections(3)
        .after_connect(move |connection, _| {
            let count = Arc::clone(&count);
            Box::pin(async move {
                connection.execute("set time zone 'Asia/Kathmandu'").await?;
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        })
        .connect()
        .await?;
    let zone: String = sqlx::query_scalar("show time zone").fetch_one(&db).await?;
    assert_eq!(zone, "Asia/Kathmandu");
    eventually("three connections to each", async || {
        (greeted.load(Ordering::Relaxed) >= 6).then_some(())
    })
    .await?;
    let name: String = sqlx::query_scalar("show application_name").fetch_one(db.primary()).await?;
    assert_eq!(name, "idioms");
    // Options of another driver are refused before any connection attempt.
    let wrong = Db::<Pg>::builder(sqlx::mysql::MySqlConnectOptions::new()).connect().await;
    assert!(matches!(&wrong, Err(Error::Address(why)) if why.contains("PostgreSQL")), "{wrong:?}");
    let folder = tempfile::tempdir()?;
    let file = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(folder.path().join("a.db"))
        .create_if_missing(true);
    let lite = Db::<Sqlite>::builder(file).connect().await?;
    assert_eq!(lite.nodes().len(), 2);
    let memory =
        Db::<Sqlite>::builder("sqlite::memory:".parse::<sqlx::sqlite::SqliteConnectOptions>()?)
            .connect()
            .await?;
    assert_eq!(memory.nodes().len(), 1);
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error("sold out")]
    SoldOut,
}

impl Transient for Refused {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_transient())
    }
}

/// A function of the application that takes a transaction.
async fn balance(tx: &mut sqlx::Transaction<'_, Pg>, owner: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar("select cents from accounts where owner = $1")
        .bind(owner)
        .fetch_one(&mut **tx)
        .await
}

#[tokio::test]
async fn transactions_borrow_and_fail_as_their_authors_like() -> Result<()> {
    let (_pg, db) = postgres().await?;
    sqlx::query("create table accounts (id bigint primary key, owner text, cents bigint)")
        .execute(&db)
        .await?;
    let (name, runs) = (String::from("Ann"), AtomicU32::new(0));
    // Borrowed variables, a counter, and the error type of anyhow.
    let cents: i64 = db
        .transaction(async |mut tx: Attempt<Pg>| {
            runs.fetch_add(1, Ordering::Relaxed);
            sqlx::query("insert into accounts values (1, $1, 500)")
                .bind(&name)
                .execute(&mut **tx)
                .await?;
            let cents = balance(&mut tx, &name).await?;
            ensure!(cents > 0, "nothing left");
            anyhow::Ok(cents)
        })
        .await?;
    assert_eq!((cents, runs.into_inner()), (500, 1));
    // An error of the application rolls back.
    let refused: Result<(), Refused> = db
        .transaction(async |mut tx| {
            sqlx::query("update accounts set cents = 0").execute(&mut **tx).await?;
            Err(Refused::SoldOut)
        })
        .await;
    assert!(matches!(refused, Err(Refused::SoldOut)));
    // In a task, like a handler's future, and with a closure that is not an async closure.
    let task = tokio::spawn({
        let (db, name) = (db.clone(), name.clone());
        async move {
            let (mut runs, order) = (0, [1_i64, 2]);
            let one = db.transaction(async |mut tx| {
                for id in order {
                    sqlx::query("update accounts set cents = cents where id = $1")
                        .bind(id)
                        .execute(&mut **tx)
                        .await?;
                }
                balance(&mut tx, &name).await
            });
            let one = one.await?;
            let two = db.transaction(|mut tx| {
                runs += 1;
                let name = &name;
                async move { balance(&mut tx, name).await }
            });
            Ok::<_, sqlx::Error>((one, two.await?, runs))
        }
    });
    assert_eq!(task.await??, (500, 500, 1));
    let done = db
        .chunked("accounts", "id")
        .run(async |mut tx, ids| {
            let update = sqlx::query("update accounts set owner = $3 where id between $1 and $2")
                .bind(ids.start())
                .bind(ids.end());
            anyhow::Ok(update.bind(&name).execute(&mut **tx).await?.rows_affected())
        })
        .await?;
    assert_eq!(done.rows, 1);
    // Another isolation level, a savepoint, a snapshot.
    let mut tx = db.begin_with("begin isolation level serializable").await?;
    let level: String =
        sqlx::query_scalar("show transaction_isolation").fetch_one(&mut *tx).await?;
    assert_eq!(level, "serializable");
    let mut savepoint = tx.begin().await?;
    sqlx::query("delete from accounts").execute(&mut *savepoint).await?;
    savepoint.rollback().await?;
    tx.commit().await?;
    assert_eq!(
        sqlx::query_scalar::<_, i64>("select count(*) from accounts")
            .fetch_one(db.primary())
            .await?,
        1
    );
    Ok(())
}

#[tokio::test]
async fn queries_of_every_kind_run_on_it() -> Result<()> {
    let (_pg, db) = postgres().await?;
    sqlx::raw_sql(
        "create table people (id bigint primary key, name text not null); create table \
        empty (n int)",
    )
    .execute(&db)
    .await?;
    let mut insert = QueryBuilder::new("insert into people (id, name) ");
    insert.push_values(1..=100_i64, |mut row, n| {
        row.push_bind(n).push_bind(format!("person {n}"));
    });
    assert_eq!(insert.build().execute(&db).await?.rows_affected(), 100);
    let primary = db.primary();
    #[derive(Debug, PartialEq, sqlx::FromRow)]
    struct Person {
        id: i64,
        name: String,
    }
    let person: Person =
        sqlx::query_as("select * from people where id = $1").bind(7_i64).fetch_one(primary).await?;
    assert_eq!(person, Person { id: 7, name: "person 7".into() });
    assert!(sqlx::query("select * from empty").fetch_optional(primary).await?.is_none());
    assert!(matches!(
        sqlx::query("select * from empty").fetch_one(primary).await,
        Err(sqlx::Error::RowNotFound)
    ));
    let mapped: Vec<String> = sqlx::query("select name from people order by id limit 2")
        .map(|row: sqlx::postgres::PgRow| row.get(0))
        .fetch_all(primary)
        .await?;
    assert_eq!(mapped, ["person 1", "person 2"]);
    let many: Vec<Vec<i64>> =
        sqlx::query_scalar("select array[1::bigint, 2]").fetch_all(&db).await?;
    assert_eq!(many, [[1, 2]]);
    // Several statements: the count of each, and its rows.
    let steps: Vec<_> = sqlx::raw_sql("insert into empty values (1), (2); select n from empty")
        .fetch_many(&db)
        .try_collect()
        .await?;
    assert_eq!(steps.iter().filter(|step| step.is_left()).count(), 2);
    assert_eq!(steps.iter().filter(|step| step.is_right()).count(), 2);
    // A stream in a task, dropped before its end, returns its connection.
    for _ in 0..30 {
        let mut rows = sqlx::query("select id from people").fetch(&db);
        rows.next().await.unwrap()?;
    }
    let task = tokio::spawn({
        let db = db.clone();
        async move { sqlx::query("select id from people").fetch(db.primary()).count().await }
    });
    assert_eq!(task.await?, 100);
    let statement = (&db).prepare("select name from people where id = $1".into_sql_str()).await?;
    assert_eq!(
        statement.query().bind(3_i64).fetch_one(primary).await?.get::<&str, _>(0),
        "person 3"
    );
    assert_eq!(statement.columns().len(), 1);
    let error =
        sqlx::query("insert into people values (1, 'again')").execute(&db).await.unwrap_err();
    assert!(error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation));
    // COPY needs a connection.
    let mut connection = db.acquire().await?;
    let mut copy = connection.copy_in_raw("copy empty from stdin").await?;
    copy.send(&b"3\n4\n"[..]).await?;
    assert_eq!(copy.finish().await?, 2);
    connection.ping().await?;
    Ok(())
}

#[tokio::test]
async fn mysql_and_sqlite_and_any_of_them_run_the_same() -> Result<()> {
    let maria = MariaDb::start(0).await?;
    let mysql = Db::<MySql>::connect(&maria.node(0).url()).await?;
    sqlx::query("create table t (id bigint auto_increment primary key, name varchar(20))")
        .execute(&mysql)
        .await?;
    let done = sqlx::query("insert into t (name) values (?)").bind("a").execute(&mysql).await?;
    assert_eq!((done.rows_affected(), done.last_insert_id()), (1, 1));
    let mut tx = mysql.begin().await?;
    sqlx::query("insert into t (name) values ('b')").execute(&mut *tx).await?;
    let mut savepoint = Acquire::begin(&mut *tx).await?;
    sqlx::query("insert into t (name) values ('c')").execute(&mut *savepoint).await?;
    savepoint.rollback().await?;
    tx.commit().await?;
    assert_eq!(sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&mysql).await?, 2);
    assert_eq!(sqlx::query("select id from t").fetch(&mysql).count().await, 2);

    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}/a.db?mode=rwc", folder.path().display());
    let any = Db::<sqlx::Any>::connect(&url).await?;
    sqlx::query("create table t (id integer primary key, name text, picture blob)")
        .execute(&any)
        .await?;
    for n in 0..3_i64 {
        let name = (n > 0).then_some("x");
        sqlx::query("insert into t values ($1, $2, $3)")
            .bind(n)
            .bind(name)
            .bind(vec![1_u8, 2])
            .execute(&any)
            .await?;
    }
    let rows = sqlx::query("select id, name, picture from t where id >= $1 order by id")
        .bind(0_i64)
        .fetch_all(&any)
        .await?;
    assert_eq!(
        (rows[0].get::<Option<String>, _>(1), rows[2].get::<Vec<u8>, _>(2)),
        (None, vec![1, 2])
    );
    let pool = sqlx::any::AnyPoolOptions::new().max_connections(1).connect(&url).await?;
    let from_pool = Db::from(pool);
    assert_eq!(from_pool.dialect(), scale_db::Dialect::Sqlite);
    assert_eq!(
        sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&from_pool).await?,
        3
    );
    Ok(())
}

#[tokio::test]
async fn shards_take_unsigned_ids_and_uuids() -> Result<()> {
    let one = || Db::<Sqlite>::connect("sqlite::memory:");
    let shards = Shards::new([("a", one().await?), ("b", one().await?)])?;
    let id = uuid::Uuid::from_u128(7);
    assert_eq!(shards.name_of(&id), shards.name_of(id.as_bytes()));
    for n in 0..100_u32 {
        let name = shards.name_of(&i64::from(n));
        assert_eq!(
            (
                shards.name_of(&u64::from(n)),
                shards.name_of(&(n as usize)),
                shards.name_of(&u128::from(n))
            ),
            (name, name, name)
        );
    }
    let _ = shards.of(&u64::MAX);
    Ok(())
}
