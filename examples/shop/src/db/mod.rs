//! Tables and queries. The same SQL runs on SQLite and Postgres; only the tables are written twice.

pub(crate) mod catalogue;
pub(crate) mod devices;
pub(crate) mod mails;
pub(crate) mod orders;
pub(crate) mod seed;
pub(crate) mod users;

use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use scale_db::Dialect;
use scale_queue::store::Relay;

use crate::app::Database;

/// Makes what is not there.
pub(crate) async fn migrate(db: &Database) -> Result<()> {
    let tables = match db.dialect() {
        Dialect::Sqlite => include_str!("sqlite.sql"),
        Dialect::Postgres => include_str!("postgres.sql"),
        Dialect::MySql => bail!("the shop has no tables for MySQL"),
    };
    sqlx::raw_sql(tables).execute(db).await.context("making the tables")?;
    Relay::migrate(&mut *db.acquire().await?).await.context("making the outbox")
}

/// Milliseconds since 1970, as all times are stored.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}
