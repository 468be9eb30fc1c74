//! Missing indexes, found on tables with three rows.
#![cfg(all(feature = "postgres", feature = "sqlite", feature = "mysql"))]
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use scale_db::{Db, observe};
use sqlx::{MySql, Postgres as Pg, Sqlite};
use testkit::{MariaDb, Postgres};

const TABLES: &str = "create table items (id bigint primary key, shelf varchar(20) not null, price \
    bigint not null); \
    create index items_shelf on items (shelf, id); create table shelves (name varchar(20) primary \
    key, note varchar(20)); \
    insert into items values (1, 'a', 1), (2, 'a', 2), (3, 'b', 3); insert into shelves \
    values ('a', 'x'), ('b', 'y')";

/// Statements, with `?` for their parameters, and the tables they scan completely.
const STATEMENTS: &[(&str, &[&str])] = &[
    ("select * from items where id = ?", &[]),
    ("select * from items where shelf = ? and id > ? order by id limit 10", &[]),
    ("select price from items where shelf in (?, ?)", &[]),
    ("select price from items where price = ?", &["items"]),
    ("select * from items order by id limit 10", &[]),
    ("select i.id from items i join shelves s on s.name = i.shelf where i.id = ?", &[]),
    ("update items set price = price + 1 where price < ?", &["items"]),
    ("update items set price = price + 1 where id = ?", &[]),
    ("delete from items where price = ?", &["items"]),
    ("insert into items values (9, 'c', 1)", &[]),
];

macro_rules! explained {
    ($db:expr, $text:expr) => {
        sqlx::raw_sql(TABLES).execute($db).await?;
        for (sql, expected) in STATEMENTS {
            let sql: String = $text(sql);
            let plan = $db.explain(&sql).await?;
            assert_eq!(plan.full_scans(), *expected, "{sql}\n{plan}");
        }
        for bad in
            ["select * from nowhere", "drop table items", "select 1; drop table items", "not sql"]
        {
            assert!($db.explain(bad).await.is_err(), "{bad}");
        }
        let left: i64 = sqlx::query_scalar("select count(*) from items where price > 0")
            .fetch_one($db.primary())
            .await?;
        assert_eq!(left, 3, "nothing ran");
    };
}

/// Replaces `?` by the placeholders of Postgres.
fn dollars(sql: &str) -> String {
    let mut n = 0;
    sql.chars()
        .map(|c| {
            if c == '?' {
                n += 1;
                format!("${n}")
            } else {
                c.to_string()
            }
        })
        .collect()
}

#[tokio::test]
async fn a_missing_index_is_found_on_every_system() -> Result<()> {
    let (pg, maria, folder) =
        (Postgres::start(0).await?, MariaDb::start(0).await?, tempfile::tempdir()?);
    let db: Db<Pg> = Db::connect(&pg.node(0).url()).await?;
    explained!(&db, dollars);
    let db: Db<Sqlite> =
        Db::connect(&format!("sqlite://{}/a.db?mode=rwc", folder.path().display())).await?;
    explained!(&db, str::to_owned);
    let db: Db<MySql> = Db::connect(&maria.node(0).url()).await?;
    explained!(&db, str::to_owned);
    Ok(())
}

#[tokio::test]
async fn what_a_page_ran_is_checked_as_a_whole() -> Result<()> {
    let pg = Postgres::start(0).await?;
    let db: Db<Pg> = Db::connect(&pg.node(0).url()).await?;
    sqlx::raw_sql(TABLES).execute(&db).await?;
    let ((), record) = observe::record(async {
        sqlx::query("select * from items where id = $1").bind(1_i64).fetch_one(&db).await.unwrap();
        sqlx::query("select * from shelves where note = $1")
            .bind("x")
            .fetch_one(&db)
            .await
            .unwrap();
        sqlx::query("set local lock_timeout = 7").execute(&db).await.unwrap();
    })
    .await;
    record.assert_indexed(&db, &["shelves"]).await?;
    let checked = {
        let db = db.clone();
        tokio::spawn(async move { record.assert_indexed(&db, &[]).await })
    };
    let complaint = checked.await.unwrap_err().into_panic();
    let complaint = complaint.downcast_ref::<String>().unwrap();
    assert!(complaint.contains("shelves") && complaint.contains("note = $1"), "{complaint}");
    Ok(())
}
