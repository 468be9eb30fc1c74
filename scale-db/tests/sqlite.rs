//! The laptop tier: one writer and many readers of one file.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use scale_db::Db;
use scale_db::cluster::Role;
use sqlx::{Row, Sqlite};

async fn file() -> Result<(Db<Sqlite>, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let db = Db::connect(&format!("sqlite://{}/a.db?mode=rwc", folder.path().display())).await?;
    sqlx::query("create table t (id integer primary key, n int not null)").execute(&db).await?;
    Ok((db, folder))
}

#[tokio::test]
async fn reads_and_writes_meet() -> Result<()> {
    let (db, _folder) = file().await?;
    let roles: Vec<_> = db.nodes().iter().map(|n| n.role).collect();
    assert_eq!(roles, [Role::Primary, Role::Replica]);
    for n in 0..100_i64 {
        let id: i64 = sqlx::query_scalar("insert into t (n) values ($1) returning id")
            .bind(n)
            .fetch_one(&db)
            .await?;
        let read: i64 =
            sqlx::query_scalar("select n from t where id = $1").bind(id).fetch_one(&db).await?;
        assert_eq!(read, n, "a committed write is seen by the readers at once");
    }
    Ok(())
}

#[tokio::test]
async fn readers_go_on_while_a_transaction_is_open() -> Result<()> {
    let (db, _folder) = file().await?;
    let mut tx = db.begin().await?;
    sqlx::query("insert into t (n) values (1)").execute(&mut *tx).await?;
    let seen: i64 = sqlx::query_scalar("select count(*) from t").fetch_one(&db).await?;
    assert_eq!(seen, 0, "uncommitted");
    tx.commit().await?;
    let mut snapshot = db.begin_read().await?;
    assert_eq!(
        sqlx::query("select count(*) from t").fetch_one(&mut *snapshot).await?.get::<i64, _>(0),
        1
    );
    Ok(())
}

#[tokio::test]
async fn a_write_forced_upon_a_reader_is_repeated_on_the_writer() -> Result<()> {
    let (db, _folder) = file().await?;
    sqlx::query("insert into t (n) values (5)").execute(db.replica()).await?;
    assert_eq!(sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&db).await?, 1);
    Ok(())
}

#[tokio::test]
async fn memory_is_one_database() -> Result<()> {
    let db = Db::<Sqlite>::connect("sqlite::memory:").await?;
    sqlx::query("create table t (n int)").execute(&db).await?;
    assert_eq!(sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&db).await?, 0);
    Ok(())
}

#[tokio::test]
async fn wrong_addresses_say_so() {
    for url in ["", "nonsense", "http://x", "postgres://x/y"] {
        let error = Db::<Sqlite>::connect(url).await.unwrap_err();
        assert!(matches!(error, scale_db::Error::Address(_)), "{url}: {error}");
    }
    let error = Db::<Sqlite>::connect("sqlite:///no/such/folder/a.db").await.unwrap_err();
    assert!(matches!(error, scale_db::Error::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn an_address_without_a_file_is_refused() {
    for url in ["sqlite:", "sqlite://", "sqlite:?mode=rwc"] {
        let error = Db::<Sqlite>::connect(url).await.unwrap_err().to_string();
        assert!(error.contains("sqlite::memory:"), "{url}: {error}");
    }
}

/// A second handle represents a second process: SQLite locks per connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_wait_for_each_other() -> Result<()> {
    let (one, folder) = file().await?;
    let two = Db::<Sqlite>::connect(&format!("sqlite:{}/a.db", folder.path().display())).await?;
    sqlx::query("insert into t (id, n) values (1, 0)").execute(&one).await?;
    // Reads, and then writes the value derived from the read.
    let count = async |db: Db<Sqlite>| {
        for _ in 0..100 {
            let mut tx = db.begin().await?;
            let n: i64 =
                sqlx::query_scalar("select n from t where id = 1").fetch_one(&mut *tx).await?;
            sqlx::query("update t set n = $1 where id = 1").bind(n + 1).execute(&mut *tx).await?;
            tx.commit().await?;
            sqlx::query("update t set n = n + 1 where id = 1").execute(&db).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(count(one.clone()), count(two))?;
    assert_eq!(
        sqlx::query_scalar::<_, i64>("select n from t where id = 1").fetch_one(&one).await?,
        400
    );
    Ok(())
}

#[tokio::test]
async fn what_only_the_writer_has_is_read_from_the_writer() -> Result<()> {
    let (db, folder) = file().await?;
    sqlx::query("create temp table mine (n int)").execute(&db).await?;
    let attach = format!("attach database '{}/b.db' as other", folder.path().display());
    sqlx::query(sqlx::AssertSqlSafe(attach)).execute(&db).await?;
    sqlx::query("create table other.theirs (n int)").execute(&db).await?;
    for read in ["select count(*) from mine", "select count(*) from other.theirs"] {
        for _ in 0..2 {
            assert_eq!(sqlx::query_scalar::<_, i64>(read).fetch_one(&db).await?, 0, "{read}");
        }
    }
    assert!(sqlx::query("select count(*) from nobody_s").fetch_one(&db).await.is_err());
    Ok(())
}
