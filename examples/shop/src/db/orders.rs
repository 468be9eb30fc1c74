//! Orders.

use std::collections::BTreeMap;

use anyhow::Result;
use scale_db::Dialect;
use serde::Deserialize;
use sqlx::{Any, FromRow, Transaction};

use super::{now_ms, sql, sql_of};
use crate::app::{App, Database};
use crate::jobs::SendReceipt;

#[derive(Debug, FromRow)]
pub(crate) struct Order {
    pub(crate) id: i64,
    pub(crate) account: String,
    pub(crate) email: String,
    pub(crate) total_cents: i64,
    pub(crate) placed_ms: i64,
}

#[derive(Debug, FromRow)]
pub(crate) struct Item {
    pub(crate) product_id: i64,
    pub(crate) name: String,
    pub(crate) quantity: i64,
    pub(crate) price_cents: i64,
}

#[derive(Debug, FromRow)]
pub(crate) struct Receipt {
    pub(crate) body: String,
    pub(crate) attempt: i64,
}

/// Result of placing an order.
pub(crate) enum Placed {
    /// The order was placed; with its number, which is the same if the form was sent twice.
    Order(i64),
    SoldOut(String),
    /// Prices or products have changed since the visitor saw the total; with the prices now, by
    /// product. A product that is not sold any more has none.
    Changed(BTreeMap<i64, i64>),
}

/// An order to be placed.
pub(crate) struct NewOrder<'a> {
    /// Token of the cart: one cart is one order, however often its form is sent.
    pub(crate) token: &'a str,
    pub(crate) account: &'a str,
    pub(crate) email: &'a str,
    /// Quantities by product.
    pub(crate) cart: &'a BTreeMap<i64, i64>,
    /// Total that the visitor has agreed to.
    pub(crate) total_cents: i64,
}

/// Product of a new order, as it is in the database now.
#[derive(FromRow)]
struct Wanted {
    id: i64,
    name: String,
    price_cents: i64,
    stock: i64,
}

/// Places an order: stock, order, items, and the job that sends the receipt are written in one
/// short transaction of seven statements, all or none.
pub(crate) async fn place(app: &App, new: NewOrder<'_>) -> Result<Placed> {
    let db = &app.db;
    let mut tx = db.begin().await?;
    let insert = "insert into orders (token, account, email, total_cents, placed_ms) \
        values ($1, $2, $3, $4, $5)";
    let inserted = sqlx::query(sql(db, insert))
        .bind(new.token.to_owned())
        .bind(new.account.to_owned())
        .bind(new.email.to_owned())
        .bind(new.total_cents)
        .bind(now_ms())
        .execute(&mut *tx)
        .await;
    match inserted {
        Ok(_) => {}
        Err(sqlx::Error::Database(e)) if e.is_unique_violation() => {
            tx.rollback().await?;
            let id = by_token(db, new.token).await?;
            return Ok(Placed::Order(id.ok_or_else(|| anyhow::anyhow!("an order disappeared"))?));
        }
        Err(error) => return Err(error.into()),
    }
    let made = sqlx::query_scalar(sql(db, "select id from orders where token = $1"))
        .bind(new.token.to_owned());
    let id: i64 = made.fetch_one(&mut *tx).await?;
    let wanted = wanted(db, &mut tx, new.cart).await?;
    let quantity = |product: &Wanted| new.cart.get(&product.id).copied().unwrap_or_default();
    let total: i64 = wanted.iter().map(|product| quantity(product) * product.price_cents).sum();
    let refused =
        if let Some(gone) = wanted.iter().find(|product| product.stock < quantity(product)) {
            Some(Placed::SoldOut(gone.name.clone()))
        } else {
            let prices = || wanted.iter().map(|product| (product.id, product.price_cents));
            (wanted.len() != new.cart.len() || total != new.total_cents)
                .then(|| Placed::Changed(prices().collect()))
        };
    if let Some(refused) = refused {
        tx.rollback().await?;
        return Ok(refused);
    }
    take(db, &mut tx, new.cart).await?;
    let rows = (0..wanted.len())
        .map(|n| 5 * n)
        .map(|n| format!("(${}, ${}, ${}, ${}, ${})", n + 1, n + 2, n + 3, n + 4, n + 5));
    let rows = rows.collect::<Vec<_>>().join(", ");
    let insert =
        "insert into order_items (order_id, product_id, name, quantity, price_cents) values";
    let insert = sql_of(db, &format!("{insert} {rows}"));
    let mut insert = sqlx::query(insert);
    for product in &wanted {
        insert = insert.bind(id).bind(product.id).bind(product.name.clone());
        insert = insert.bind(quantity(product)).bind(product.price_cents);
    }
    insert.execute(&mut *tx).await?;
    app.queue.push_in(&mut *tx, SendReceipt { order: id }).await?;
    tx.commit().await?;
    Ok(Placed::Order(id))
}

/// Returns the products of a cart, locked in the order of their ids, which prevents deadlocks.
/// SQLite has one writer, and no such locks.
async fn wanted(
    db: &Database,
    tx: &mut Transaction<'static, Any>,
    cart: &BTreeMap<i64, i64>,
) -> Result<Vec<Wanted>, sqlx::Error> {
    let lock = if db.dialect() == Dialect::Sqlite { "" } else { "for update" };
    let ids = places(1, cart.len());
    let select = format!(
        "select id, name, price_cents, stock from products where id in ({ids}) order by id {lock}"
    );
    let mut select = sqlx::query_as(sql_of(db, &select));
    for id in cart.keys() {
        select = select.bind(*id);
    }
    select.fetch_all(&mut **tx).await
}

/// Takes the products of a cart out of the stock, in one statement.
async fn take(
    db: &Database,
    tx: &mut Transaction<'static, Any>,
    cart: &BTreeMap<i64, i64>,
) -> Result<(), sqlx::Error> {
    let case = |n| format!("when ${} then stock - ${}", 2 * n + 1, 2 * n + 2);
    let cases = (0..cart.len()).map(case);
    let (cases, ids) =
        (cases.collect::<Vec<_>>().join(" "), places(2 * cart.len() + 1, cart.len()));
    let update =
        format!("update products set stock = case id {cases} else stock end where id in ({ids})");
    let mut update = sqlx::query(sql_of(db, &update));
    for (id, quantity) in cart {
        update = update.bind(*id).bind(*quantity);
    }
    for id in cart.keys() {
        update = update.bind(*id);
    }
    update.execute(&mut **tx).await.map(drop)
}

/// Returns that many places for parameters, from number `first` on.
fn places(first: usize, count: usize) -> String {
    (first..first + count).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ")
}

/// Returns the order that was placed with the token of a cart. Reads from the primary: a form sent
/// twice in quick succession must find its first order.
pub(crate) async fn by_token(db: &Database, token: &str) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(sql(db, "select id from orders where token = $1"))
        .bind(token.to_owned())
        .fetch_optional(db.primary())
        .await
}

const ORDER: &str = "select id, account, email, total_cents, placed_ms from orders where id = $1";
const ITEMS: &str = "select product_id, name, quantity, price_cents from order_items \
    where order_id = $1 order by product_id";

pub(crate) async fn order(db: &Database, id: i64) -> Result<Option<Order>, sqlx::Error> {
    sqlx::query_as(sql(db, ORDER)).bind(id).fetch_optional(db).await
}

/// Returns an order and its items from the primary, for a job: the job was stored with the order,
/// and a replica may not have it yet.
pub(crate) async fn placed(
    db: &Database,
    id: i64,
) -> Result<Option<(Order, Vec<Item>)>, sqlx::Error> {
    let order = sqlx::query_as(sql(db, ORDER)).bind(id).fetch_optional(db.primary()).await?;
    let Some(order) = order else { return Ok(None) };
    let items = sqlx::query_as(sql(db, ITEMS)).bind(id).fetch_all(db.primary()).await?;
    Ok(Some((order, items)))
}

/// Part of a list of orders, newest first: the newest ones, or those next to an order.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct Slice {
    /// Order before whose placement the slice begins.
    older: Option<i64>,
    /// Order after whose placement the slice ends.
    newer: Option<i64>,
}

impl Slice {
    /// Returns the slice of the orders that are older than this one.
    pub(crate) fn older_than(id: i64) -> Self {
        Self { older: Some(id), newer: None }
    }

    pub(crate) fn is_first(self) -> bool {
        self.older.is_none() && self.newer.is_none()
    }
}

/// Slice of a list, and where its neighbours are, if there are any.
pub(crate) struct List {
    pub(crate) orders: Vec<Order>,
    pub(crate) older: Option<i64>,
    pub(crate) newer: Option<i64>,
}

/// Orders of a slice.
const PAGE: usize = 25;

/// Returns a slice of the orders of an account, or of all: page 10,000 costs as much as the first,
/// and a new order shifts none.
pub(crate) async fn page(
    db: &Database,
    account: Option<&str>,
    slice: Slice,
) -> Result<List, sqlx::Error> {
    let whose = if account.is_some() { "account = $1" } else { "1 = 1" };
    let at = 1 + usize::from(account.is_some());
    let (from, order, id) = match (slice.older, slice.newer) {
        (Some(id), _) => ("id <", "desc", id),
        (None, Some(id)) => ("id >", "asc", id),
        (None, None) => ("id <", "desc", i64::MAX),
    };
    let select = format!(
        "select id, account, email, total_cents, placed_ms from orders \
         where {whose} and {from} ${at} order by id {order} limit ${}",
        at + 1
    );
    let mut select = sqlx::query_as(sql_of(db, &select));
    if let Some(account) = account {
        select = select.bind(account.to_owned());
    }
    let mut orders: Vec<Order> = select.bind(id).bind(PAGE as i64 + 1).fetch_all(db).await?;
    let is_more = orders.len() > PAGE;
    orders.truncate(PAGE);
    let backwards = order == "asc";
    if backwards {
        orders.reverse();
    }
    let (first, last) = (orders.first().map(|o| o.id), orders.last().map(|o| o.id));
    Ok(List {
        older: last.filter(|_| is_more || backwards),
        newer: first.filter(|_| if backwards { is_more } else { slice.older.is_some() }),
        orders,
    })
}

/// Returns the orders with these numbers.
pub(crate) async fn with_ids(db: &Database, ids: &[i64]) -> Result<Vec<Order>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let select = format!(
        "select id, account, email, total_cents, placed_ms from orders where id in ({})",
        places(1, ids.len())
    );
    let mut select = sqlx::query_as(sql_of(db, &select));
    for id in ids {
        select = select.bind(*id);
    }
    select.fetch_all(db).await
}

/// Returns the items of several orders, each with the number of its order, in one statement.
pub(crate) async fn items_of(
    db: &Database,
    orders: &[Order],
) -> Result<Vec<(i64, Item)>, sqlx::Error> {
    if orders.is_empty() {
        return Ok(Vec::new());
    }
    let select = format!(
        "select order_id, product_id, name, quantity, price_cents from order_items \
         where order_id in ({}) order by order_id, product_id",
        places(1, orders.len())
    );
    let mut select = sqlx::query_as(sql_of(db, &select));
    for order in orders {
        select = select.bind(order.id);
    }
    let rows: Vec<(i64, i64, String, i64, i64)> = select.fetch_all(db).await?;
    let item = |(order, product_id, name, quantity, price_cents)| {
        (order, Item { product_id, name, quantity, price_cents })
    };
    Ok(rows.into_iter().map(item).collect())
}

/// Returns the number of an account's orders.
pub(crate) async fn count(db: &Database, account: &str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(sql(db, "select count(*) from orders where account = $1"))
        .bind(account.to_owned())
        .fetch_one(db)
        .await
}

/// Removes an account and its addresses from a number of its orders, up to the one with the number
/// `last`, and their receipts. Returns how many there were.
pub(crate) async fn forget_some(db: &Database, account: &str, last: i64) -> Result<usize> {
    let select = "select id from orders where account = $1 and id <= $2 order by id limit 500";
    let mut tx = db.begin().await?;
    let ids: Vec<i64> = sqlx::query_scalar(sql(db, select))
        .bind(account.to_owned())
        .bind(last)
        .fetch_all(&mut *tx)
        .await?;
    if ids.is_empty() {
        return Ok(0);
    }
    let places = places(1, ids.len());
    for statement in [
        format!("update orders set account = '', email = '' where id in ({places})"),
        format!("delete from receipts where order_id in ({places})"),
    ] {
        let mut statement = sqlx::query(sql_of(db, &statement));
        for id in &ids {
            statement = statement.bind(*id);
        }
        statement.execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(ids.len())
}

pub(crate) async fn items(db: &Database, id: i64) -> Result<Vec<Item>, sqlx::Error> {
    sqlx::query_as(sql(db, ITEMS)).bind(id).fetch_all(db).await
}

pub(crate) async fn receipt(db: &Database, id: i64) -> Result<Option<Receipt>, sqlx::Error> {
    sqlx::query_as(sql(db, "select body, attempt from receipts where order_id = $1"))
        .bind(id)
        .fetch_optional(db)
        .await
}

/// Saves a receipt, once for any number of runs of the job.
pub(crate) async fn save_receipt(
    db: &Database,
    id: i64,
    body: &str,
    attempt: u16,
) -> Result<(), sqlx::Error> {
    let saved = sqlx::query(sql(
        db,
        "insert into receipts (order_id, body, attempt, sent_ms) values ($1, $2, $3, $4)",
    ))
    .bind(id)
    .bind(body.to_owned())
    .bind(i64::from(attempt))
    .bind(now_ms())
    .execute(db)
    .await;
    match saved {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(()),
        other => other.map(drop),
    }
}
