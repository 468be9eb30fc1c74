//! Exports of what the shop knows about an account, for its owner. Each is kept for a day.

use std::time::Duration;

use anyhow::Result;
use scale_db::Dialect;

use super::{now_ms, sql};
use crate::app::Database;

/// Time for which an export can be downloaded.
pub(crate) const KEPT_FOR: Duration = Duration::from_hours(24);

/// Returns the moment before which exports count as removed.
fn oldest_ms() -> i64 {
    now_ms() - KEPT_FOR.as_millis() as i64
}

/// Returns which job made the export of an account, and when.
pub(crate) async fn made(db: &Database, account: &str) -> Result<Option<(String, i64)>> {
    let select = sql(db, "select job, made_ms from exports where account = $1 and made_ms > $2");
    let made = sqlx::query_as(select).bind(account.to_owned()).bind(oldest_ms());
    Ok(made.fetch_optional(db).await?)
}

/// Returns the export of an account, which is JSON.
pub(crate) async fn body(db: &Database, account: &str) -> Result<Option<String>> {
    let select = sql(db, "select body from exports where account = $1 and made_ms > $2");
    let body = sqlx::query_scalar(select).bind(account.to_owned()).bind(oldest_ms());
    Ok(body.fetch_optional(db).await?)
}

/// Stores an export, in place of an earlier one.
pub(crate) async fn save(db: &Database, account: &str, job: &str, body: String) -> Result<()> {
    let set = match db.dialect() {
        Dialect::MySql => {
            "insert into exports (account, body, job, made_ms) values ($1, $2, $3, $4) \
             on duplicate key update body = values(body), job = values(job), \
             made_ms = values(made_ms)"
        }
        _ => {
            "insert into exports (account, body, job, made_ms) values ($1, $2, $3, $4) \
             on conflict (account) do update set body = excluded.body, job = excluded.job, \
             made_ms = excluded.made_ms"
        }
    };
    sqlx::query(sql(db, set))
        .bind(account.to_owned())
        .bind(body)
        .bind(job.to_owned())
        .bind(now_ms())
        .execute(db)
        .await?;
    Ok(())
}

/// Removes an export whose time is over.
pub(crate) async fn expire(db: &Database, account: &str) -> Result<()> {
    let delete = sql(db, "delete from exports where account = $1 and made_ms <= $2");
    sqlx::query(delete).bind(account.to_owned()).bind(oldest_ms()).execute(db).await?;
    Ok(())
}
