//! Keyset pages with all kinds of keys, on every database system: all rows once, forward and
//! backward, with concurrent deletions.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite", feature = "any"))]
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use scale_db::page::Cursors;
use scale_db::page::{Order, Page};
use scale_db::{Backend, Db};
use sqlx::{Executor, QueryBuilder};
use testkit::{MariaDb, Postgres};

const SECRET: &[u8] = b"a secret of this test's own making";
const ORDERS: [Order; 2] = [Order::Ascending, Order::Descending];

type Key = (Option<i64>, Option<String>, i64);

/// Reads a list from its first page to its last and back.
async fn walk(
    page: impl AsyncFn(Option<String>) -> Result<Page<Key>>,
) -> Result<(Vec<i64>, Vec<i64>)> {
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    let mut current = page(None).await?;
    loop {
        forward.extend(current.items.iter().map(|row| row.2));
        let Some(next) = current.next.clone() else { break };
        current = page(Some(next)).await?;
        assert!(forward.len() < 1_000, "a loop");
    }
    loop {
        backward.splice(0..0, current.items.iter().map(|row| row.2));
        let Some(previous) = current.previous.clone() else { break };
        current = page(Some(previous)).await?;
    }
    Ok((forward, backward))
}

macro_rules! nulls {
    ($name:ident, $db:ty) => {
        async fn $name(db: &Db<$db>) -> Result<()> {
            db.primary()
                .execute(
                    "create table p (id bigint primary key, price bigint, name \
                varchar(20))",
                )
                .await?;
            let mut insert = String::from("insert into p values ");
            for n in 0..100 {
                let price = if n % 5 == 0 { "null".to_owned() } else { (n % 7).to_string() };
                let name = if n % 3 == 0 { "null".to_owned() } else { format!("'n{}'", n % 4) };
                insert += &format!("{}({n}, {price}, {name})", if n == 0 { "" } else { ", " });
            }
            sqlx::query(sqlx::AssertSqlSafe(insert)).execute(db).await?;
            let cursors = Cursors::new(SECRET)?;
            for (a, b, c) in ORDERS.iter().flat_map(|a| {
                ORDERS.iter().flat_map(move |b| ORDERS.iter().map(move |c| (*a, *b, *c)))
            }) {
                // An `or` that must keep its meaning.
                let part = QueryBuilder::<$db>::new(
                    "select price, name, id from p \
                    where id < 50 or id >= 60",
                );
                let page = async |cursor: Option<String>| -> Result<Page<Key>> {
                    let request = cursors.request::<Key>("p", cursor.as_deref(), 7)?;
                    let mut query = QueryBuilder::<$db>::new(part.sql().as_str());
                    request.push(&mut query, [("price", a), ("name", b), ("id", c)]);
                    Ok(request.page(
                        query.build_query_as().fetch_all(db.primary()).await?,
                        Clone::clone,
                    )?)
                };
                let (forward, backward) = walk(page).await?;
                assert_eq!(forward, backward, "{a:?} {b:?} {c:?}");
                // In the order of one query for all rows.
                let whole = cursors.request::<Key>("p", None, 1_000)?;
                let mut query = QueryBuilder::<$db>::new(part.sql().as_str());
                whole.push(&mut query, [("price", a), ("name", b), ("id", c)]);
                let rows: Vec<Key> = query.build_query_as().fetch_all(db.primary()).await?;
                assert_eq!(
                    forward,
                    rows.iter().map(|row| row.2).collect::<Vec<_>>(),
                    "{a:?} {b:?} {c:?}"
                );
                assert_eq!(forward.len(), 90);
            }
            // A query that cannot take another condition is used as a subquery.
            for part in [
                "select price, name, id from p -- all of them",
                "select distinct price, name, id from p",
                "select price, name, id from p where id < 40 union all select price, name, id \
                 from p where id >= 40",
                "select price, name, id from p group by price, name, id having id >= 0",
            ] {
                let page = async |cursor: Option<String>| -> Result<Page<Key>> {
                    let request = cursors.request::<Key>("parts", cursor.as_deref(), 33)?;
                    let mut query = QueryBuilder::<$db>::new(part);
                    request.push(
                        &mut query,
                        [
                            ("price", Order::Ascending),
                            ("name", Order::Descending),
                            ("id", Order::Ascending),
                        ],
                    );
                    Ok(request.page(
                        query.build_query_as().fetch_all(db.primary()).await?,
                        Clone::clone,
                    )?)
                };
                let (mut forward, backward) = walk(page).await?;
                assert_eq!(forward, backward, "{part}");
                forward.sort_unstable();
                assert_eq!(forward, (0..100).collect::<Vec<_>>(), "{part}");
            }
            emptied::<$db>(db).await
        }
    };
}

nulls!(on_postgres, sqlx::Postgres);
nulls!(on_mysql, sqlx::MySql);
nulls!(on_sqlite, sqlx::Sqlite);
nulls!(on_any, sqlx::Any);

/// A page whose rows were deleted meanwhile leads back to the page before it.
async fn emptied<DB: Backend>(db: &Db<DB>) -> Result<()>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: sqlx::IntoArguments<DB>,
    (i64,): for<'r> sqlx::FromRow<'r, DB::Row>,
    i64: for<'q> sqlx::Encode<'q, DB> + sqlx::Type<DB>,
    Db<DB>: Clone,
{
    let cursors = Cursors::new(SECRET)?;
    let page = async |cursor: Option<&str>| -> Result<Page<(i64,)>> {
        let request = cursors.request::<(i64,)>("ids", cursor, 10)?;
        let mut query = QueryBuilder::<DB>::new("select id from p");
        request.push(&mut query, [("id", Order::Ascending)]);
        let rows: Vec<(i64,)> = query.build_query_as().fetch_all(db.primary()).await?;
        Ok(request.page(rows, |row| *row)?)
    };
    let ids = |page: &Page<(i64,)>| page.items.iter().map(|row| row.0).collect::<Vec<_>>();
    let first = page(None).await?;
    let second = page(first.next.as_deref()).await?;
    db.primary().execute("delete from p where id < 10").await?;
    let gone = page(second.previous.as_deref()).await?;
    assert_eq!((ids(&gone), gone.previous.is_none()), (Vec::new(), true));
    let again = page(gone.next.as_deref()).await?;
    assert_eq!(ids(&again), ids(&second), "the row it was reached from is on it");
    db.primary().execute("delete from p where id >= 20").await?;
    let end = page(again.next.as_deref()).await?;
    assert_eq!((ids(&end), end.next.is_none()), (Vec::new(), true));
    assert_eq!(ids(&page(end.previous.as_deref()).await?), ids(&second));
    db.primary().execute("delete from p").await?;
    let nothing = page(again.next.as_deref()).await?;
    let back = page(nothing.previous.as_deref()).await?;
    assert!(back.items.is_empty() && back.previous.is_none());
    Ok(())
}

#[tokio::test]
async fn all_rows_once_on_postgres() -> Result<()> {
    let pg = Postgres::start(0).await?;
    on_postgres(&Db::connect(&pg.urls()[0]).await?).await
}

#[tokio::test]
async fn all_rows_once_on_mariadb() -> Result<()> {
    let maria = MariaDb::start(0).await?;
    on_mysql(&Db::connect(&maria.node(0).url()).await?).await
}

#[tokio::test]
async fn all_rows_once_on_sqlite() -> Result<()> {
    on_sqlite(&Db::connect("sqlite::memory:").await?).await
}

#[tokio::test]
async fn all_rows_once_whichever_system_it_is() -> Result<()> {
    on_any(&Db::connect("sqlite::memory:").await?).await
}

/// For a comparison of rows, MariaDB reads an index from its beginning: a deep page read 297,020
/// entries.
#[tokio::test]
async fn a_deep_page_of_mariadb_enters_the_index_at_its_place() -> Result<()> {
    let maria = MariaDb::start(0).await?;
    let node = maria.node(0);
    node.sql(
        "create table test.p (id bigint primary key, price bigint not null, key (price, id)); \
         insert into test.p select seq, seq div 3 from test.seq_1_to_30000; analyze table test.p",
    )
    .await?;
    let db = Db::<sqlx::MySql>::connect(&node.url()).await?;
    let mut connection = db.acquire().await?;
    let cursors = Cursors::new(SECRET)?;
    let deep = cursors
        .request::<(i64, i64)>("p", None, 1)?
        .page(vec![(9_900, 29_700), (0, 0)], |key| *key)?
        .next;
    for order in ORDERS {
        let request = cursors.request::<(i64, i64)>("p", deep.as_deref(), 20)?;
        let mut query = QueryBuilder::<sqlx::MySql>::new("select price, id from p");
        request.push(&mut query, [("price", order), ("id", order)]);
        sqlx::query("flush status").execute(&mut *connection).await?;
        let rows: Vec<(i64, i64)> = query.build_query_as().fetch_all(&mut *connection).await?;
        assert_eq!(rows.len(), 21);
        let read = "select sum(cast(variable_value as signed)) \
            from information_schema.session_status \
                    where variable_name in ('HANDLER_READ_NEXT', 'HANDLER_READ_PREV')";
        let entries: f64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select cast(({read}) as double)")))
                .fetch_one(&mut *connection)
                .await?;
        assert!(entries < 100.0, "{entries} entries for 20 rows, {order:?}");
    }
    Ok(())
}
