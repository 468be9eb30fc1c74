//! Pages, retried transactions and recorded statements, on Postgres and SQLite.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use scale_db::page::Cursors;
use scale_db::page::{Order, Page};
use scale_db::{Db, Loader, observe};
use sqlx::{FromRow, Postgres as Pg, QueryBuilder, Sqlite};
use testkit::Postgres;

const SECRET: &[u8] = b"a secret of this test's own making";

#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
struct Item {
    id: i64,
    shelf: String,
    price: i64,
}

/// Pages ordered by shelf ascending, price descending, id ascending.
macro_rules! pages {
    ($name:ident, $db:ty) => {
        async fn $name(db: &Db<$db>) -> Result<()> {
            sqlx::query(
                "create table items (id bigint primary key, shelf text not null, price \
                bigint not null)",
            )
            .execute(db)
            .await?;
            let mut all = Vec::new();
            for id in 0..137_i64 {
                let item = Item { id, shelf: format!("shelf {}", id % 3), price: id * 7 % 11 };
                let insert = sqlx::query(
                    "insert into items (id, shelf, price) \
                    values ($1, $2, $3)",
                );
                insert.bind(item.id).bind(item.shelf.clone()).bind(item.price).execute(db).await?;
                all.push(item);
            }
            all.sort_by_key(|i| (i.shelf.clone(), std::cmp::Reverse(i.price), i.id));
            let cursors = Cursors::new(SECRET)?;
            let page = async |cursor: Option<&str>, size: usize| -> Result<Page<Item>> {
                let request = cursors.request::<(String, i64, i64)>("items", cursor, size)?;
                let mut query = QueryBuilder::<$db>::new(
                    "select id, shelf, price from items \
                    where id >= 0",
                );
                request.push(
                    &mut query,
                    [
                        ("shelf", Order::Ascending),
                        ("price", Order::Descending),
                        ("id", Order::Ascending),
                    ],
                );
                // On the primary: rows just written must be visible, however large the replicas'
                // lag.
                let rows: Vec<Item> = query.build_query_as().fetch_all(db.primary()).await?;
                Ok(request.page(rows, |item| (item.shelf.clone(), item.price, item.id))?)
            };
            for size in [1, 10, 68, 136, 137, 138] {
                // Forward to the end, then back to the beginning: the same rows.
                let (mut forward, mut cursor, mut last) = (Vec::new(), None::<String>, None);
                loop {
                    let page = page(cursor.as_deref(), size).await?;
                    forward.extend(page.items.clone());
                    last = page.previous.clone().or(last);
                    cursor.clone_from(&page.next);
                    let done = cursor.is_none();
                    if done {
                        last = page.previous;
                        break;
                    }
                }
                assert_eq!(forward, all, "size {size}");
                let mut backward = Vec::new();
                while let Some(cursor) = last {
                    let page = page(Some(&cursor), size).await?;
                    assert!(page.next.is_some());
                    backward.splice(0..0, page.items);
                    last = page.previous;
                }
                let tail = (all.len() - 1) / size * size;
                assert_eq!(backward, all[..tail], "size {size}, backward");
            }
            // A row inserted or removed before the cursor neither repeats nor hides a row after it.
            let first = page(None, 10).await?;
            sqlx::query("delete from items where id = $1").bind(all[0].id).execute(db).await?;
            sqlx::query(
                "insert into items (id, shelf, price) \
                values (1000, 'a', 99)",
            )
            .execute(db)
            .await?;
            let second = page(first.next.as_deref(), 10).await?;
            assert_eq!(second.items, all[10..20]);
            assert!(page(Some("made up"), 10).await.is_err());
            Ok(())
        }
    };
}

pages!(pages_on_postgres, Pg);
pages!(pages_on_sqlite, Sqlite);

async fn postgres() -> Result<(Postgres, Db<Pg>)> {
    let server = Postgres::start(0).await?;
    let db = Db::connect(&server.node(0).url()).await?;
    Ok((server, db))
}

async fn sqlite() -> Result<(tempfile::TempDir, Db<Sqlite>)> {
    let folder = tempfile::tempdir()?;
    let db = Db::connect(&format!("sqlite://{}/a.db?mode=rwc", folder.path().display())).await?;
    Ok((folder, db))
}

#[tokio::test]
async fn keyset_pages_hold_on_postgres() -> Result<()> {
    let (_server, db) = postgres().await?;
    pages_on_postgres(&db).await
}

#[tokio::test]
async fn keyset_pages_hold_on_sqlite() -> Result<()> {
    let (_folder, db) = sqlite().await?;
    pages_on_sqlite(&db).await
}

/// A cursor starts at its position in the index, in any order of the columns.
#[tokio::test]
async fn a_deep_page_reads_no_more_rows_than_it_has() -> Result<()> {
    let (server, db) = postgres().await?;
    let setup = "create table items (id bigint primary key, price bigint not null);
        insert into items select n, n / 10 from generate_series(1, 50000) n;
        create index up on items (price, id); create index mixed \
        on items (price, id desc); analyze items";
    server.node(0).sql(setup).await?;
    for second in [Order::Ascending, Order::Descending] {
        let cursors = Cursors::new(SECRET)?;
        let deep = cursors
            .request::<(i64, i64)>("items", None, 1)?
            .page(vec![(4_500, 45_000), (0, 0)], |key| *key)?
            .next;
        let request = cursors.request::<(i64, i64)>("items", deep.as_deref(), 20)?;
        let mut query = QueryBuilder::<Pg>::new(
            "explain (analyze, format text) select id, price from items where true",
        );
        request.push(&mut query, [("price", Order::Ascending), ("id", second)]);
        let plan: Vec<String> = query.build_query_scalar().fetch_all(db.primary()).await?;
        let plan = plan.join("\n");
        assert!(plan.contains("Index Cond"), "{plan}");
        // Some rows with the same value in the first column may be skipped.
        let passed = plan.lines().find_map(|line| {
            line.trim().strip_prefix("Rows Removed by Filter: ")?.parse::<u32>().ok()
        });
        assert!(passed.unwrap_or(0) < 20, "{plan}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serialization_failures_and_deadlocks_are_tried_again() -> Result<()> {
    let (_server, db) = postgres().await?;
    sqlx::query("create table counters (id bigint primary key, n bigint not null)")
        .execute(&db)
        .await?;
    sqlx::query("insert into counters values (1, 0), (2, 0)").execute(&db).await?;
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let db = db.clone();
            tokio::spawn(async move {
                let mut done = 0;
                for _ in 0..25 {
                    // Each transaction locks the two rows in a different order: deadlocks are
                    // certain, and so are lost updates without `serializable`.
                    let order = if task % 2 == 0 { [1_i64, 2] } else { [2, 1] };
                    let result = db
                        .transaction(async |mut tx| {
                            sqlx::query("set transaction isolation level serializable")
                                .execute(&mut **tx)
                                .await?;
                            for id in order {
                                let read =
                                    sqlx::query_scalar("select n from counters where id = $1")
                                        .bind(id);
                                let n: i64 = read.fetch_one(&mut **tx).await?;
                                let write = sqlx::query("update counters set n = $2 where id = $1")
                                    .bind(id)
                                    .bind(n + 1);
                                write.execute(&mut **tx).await?;
                            }
                            Ok::<_, sqlx::Error>(())
                        })
                        .await;
                    done += i64::from(result.is_ok());
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await?;
    }
    let counted: Vec<i64> =
        sqlx::query_scalar("select n from counters order by id").fetch_all(db.primary()).await?;
    assert_eq!(counted, [done, done], "what committed is counted, once");
    assert!(done >= 80, "{done} of 100: most got through by trying again");

    // An error of the caller is not retried, and rolls back.
    let mut runs = 0;
    let result = db
        .transaction(|mut tx| {
            runs += 1;
            async move {
                sqlx::query("update counters set n = -1").execute(&mut **tx).await?;
                Err::<(), sqlx::Error>(sqlx::Error::RowNotFound)
            }
        })
        .await;
    assert!(matches!(result, Err(sqlx::Error::RowNotFound)) && runs == 1);
    let least: i64 =
        sqlx::query_scalar("select min(n) from counters").fetch_one(db.primary()).await?;
    assert!(least >= 0);
    Ok(())
}

#[tokio::test]
async fn an_n_plus_one_is_seen_and_a_loader_cures_it() -> Result<()> {
    let (_folder, db) = sqlite().await?;
    sqlx::raw_sql(
        "create table customers (id integer primary key, name text); insert into customers \
         values (1, 'Ann'), (2, 'Ben')",
    )
    .execute(&db)
    .await?;
    let name = "select name from customers where id = $1";
    let ((), record) = observe::record(async {
        for id in [1_i64, 2, 1, 2, 1] {
            sqlx::query(name).bind(id).fetch_one(&db).await.unwrap();
        }
    })
    .await;
    assert_eq!((record.statements()[0].0.as_str(), record.statements()[0].1.times), (name, 5));
    let complaint = std::panic::catch_unwind(|| record.assert_no_repeats(2)).unwrap_err();
    assert!(complaint.downcast_ref::<String>().unwrap().contains("N+1"));

    let (names, record) = observe::record(async {
        let pool = db.clone();
        let loader = Loader::new(move |ids: Vec<i64>| {
            let db = pool.clone();
            async move {
                let mut query =
                    QueryBuilder::<Sqlite>::new("select id, name from customers where id in (");
                let mut list = query.separated(", ");
                for id in ids {
                    list.push_bind(id);
                }
                query.push(")");
                let rows: Vec<(i64, String)> = query.build_query_as().fetch_all(&db).await?;
                Ok(rows.into_iter().collect::<HashMap<_, _>>())
            }
        });
        loader.load_many([1, 2, 1, 3]).await
    })
    .await;
    assert_eq!(names.unwrap(), [Some("Ann".into()), Some("Ben".into()), Some("Ann".into()), None]);
    // The loader's query runs in a separate task, so the request's own record stays short.
    record.assert_at_most(1);
    Ok(())
}

#[tokio::test]
async fn a_slow_query_is_answered_all_the_same() -> Result<()> {
    let server = Postgres::start(0).await?;
    let db = Db::<Pg>::builder(server.node(0).url())
        .slow_query(Duration::from_millis(10))
        .connect()
        .await?;
    let answer: i32 = sqlx::query_scalar("select 7 from pg_sleep(0.05)").fetch_one(&db).await?;
    assert_eq!(answer, 7);
    Ok(())
}
