//! Orders.

use anyhow::Result;
use sqlx::{Any, FromRow, Transaction};

use super::{now_ms, sql};
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
}

/// Places an order: stock, order, items, and the job that sends the receipt are written in one
/// short transaction, all or none. `token` is the form's: a form sent twice is one order.
pub(crate) async fn place(
    app: &App,
    token: &str,
    account: &str,
    email: &str,
    items: &[Item],
) -> Result<Placed> {
    let db = &app.db;
    if let Some(id) = by_token(db, token).await? {
        return Ok(Placed::Order(id));
    }
    let mut tx = db.begin().await?;
    let total: i64 = items.iter().map(|i| i.quantity * i.price_cents).sum();
    let insert = "insert into orders (token, account, email, total_cents, placed_ms) \
        values ($1, $2, $3, $4, $5)";
    let inserted = sqlx::query(sql(db, insert))
        .bind(token.to_owned())
        .bind(account.to_owned())
        .bind(email.to_owned())
        .bind(total)
        .bind(now_ms())
        .execute(&mut *tx)
        .await;
    match inserted {
        Ok(_) => {}
        Err(sqlx::Error::Database(e)) if e.is_unique_violation() => {
            tx.rollback().await?;
            let id = by_token(db, token).await?;
            return Ok(Placed::Order(id.ok_or_else(|| anyhow::anyhow!("an order disappeared"))?));
        }
        Err(error) => return Err(error.into()),
    }
    let made = sqlx::query_scalar(sql(db, "select id from orders where token = $1"))
        .bind(token.to_owned());
    let id: i64 = made.fetch_one(&mut *tx).await?;
    // All transactions take products in the same order, which prevents deadlocks.
    let mut sorted: Vec<&Item> = items.iter().collect();
    sorted.sort_by_key(|item| item.product_id);
    for item in sorted {
        if !take(db, &mut tx, id, item).await? {
            tx.rollback().await?;
            return Ok(Placed::SoldOut(item.name.clone()));
        }
    }
    app.queue.push_in(&mut *tx, SendReceipt { order: id }).await?;
    tx.commit().await?;
    Ok(Placed::Order(id))
}

/// Takes an item out of the stock. Returns `false` if the stock is too small.
async fn take(
    db: &Database,
    tx: &mut Transaction<'static, Any>,
    order: i64,
    item: &Item,
) -> Result<bool, sqlx::Error> {
    let taken = sqlx::query(sql(
        db,
        "update products set stock = stock - $1 where id = $2 and stock >= $3",
    ))
    .bind(item.quantity)
    .bind(item.product_id)
    .bind(item.quantity)
    .execute(&mut **tx)
    .await?;
    if taken.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(sql(
        db,
        "insert into order_items (order_id, product_id, name, quantity, price_cents) \
         values ($1, $2, $3, $4, $5)",
    ))
    .bind(order)
    .bind(item.product_id)
    .bind(item.name.clone())
    .bind(item.quantity)
    .bind(item.price_cents)
    .execute(&mut **tx)
    .await?;
    Ok(true)
}

async fn by_token(db: &Database, token: &str) -> Result<Option<i64>, sqlx::Error> {
    // Reads from the primary: a form sent twice in quick succession must find its first order.
    sqlx::query_scalar(sql(db, "select id from orders where token = $1"))
        .bind(token.to_owned())
        .fetch_optional(db.primary())
        .await
}

pub(crate) async fn order(db: &Database, id: i64) -> Result<Option<Order>, sqlx::Error> {
    sqlx::query_as(sql(
        db,
        "select id, account, email, total_cents, placed_ms from orders where id = $1",
    ))
    .bind(id)
    .fetch_optional(db)
    .await
}

/// Returns the newest orders of an account.
pub(crate) async fn of_account(db: &Database, account: &str) -> Result<Vec<Order>, sqlx::Error> {
    sqlx::query_as(sql(
        db,
        "select id, account, email, total_cents, placed_ms from orders where account = $1 \
         order by id desc limit 50",
    ))
    .bind(account.to_owned())
    .fetch_all(db)
    .await
}

pub(crate) async fn items(db: &Database, id: i64) -> Result<Vec<Item>, sqlx::Error> {
    sqlx::query_as(sql(
        db,
        "select product_id, name, quantity, price_cents from order_items where order_id = $1 \
         order by product_id",
    ))
    .bind(id)
    .fetch_all(db)
    .await
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
