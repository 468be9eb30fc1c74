//! The fleet's, in a PostgreSQL or SQLite database: one table. Times are the database's clock, ms since 1970.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::any::AnyRow;
use sqlx::{Any, AssertSqlSafe, Row, Transaction};

use super::{Store, Turn, judge};
use crate::auth::error::Error;
use crate::sql::{Database, System, statements, text_of};

/// One in so many claims sweeps.
const SWEEP: u32 = 100;

statements! {
    tables = "
        create table if not exists scale_ledger (
            app {text} not null,
            key {text} not null,
            next bigint not null,
            taken_ms bigint not null,
            ends_ms bigint not null,
            primary key (app, key)
        );
        create index if not exists scale_ledger_end on scale_ledger (ends_ms);";
    claim = "insert into scale_ledger (app, key, next, taken_ms, ends_ms) values ($1, $2, 0, {now}, {now} + $3) \
        on conflict (app, key) do update set taken_ms = excluded.taken_ms, ends_ms = excluded.ends_ms \
        where scale_ledger.ends_ms <= {now}";
    claimed = "select count(*) from scale_ledger where app = $1 and key = $2 and ends_ms > {now}";
    open = "insert into scale_ledger (app, key, next, taken_ms, ends_ms) values ($1, $2, 0, {now}, {now} + $3)";
    family = "select next, {now} - taken_ms from scale_ledger where app = $1 and key = $2 and ends_ms > {now} {lock}";
    take = "update scale_ledger set next = $3, taken_ms = {now} where app = $1 and key = $2";
    count = "select next from scale_ledger where app = $1 and key = $2 and ends_ms > {now}";
    keep = "update scale_ledger set ends_ms = {most}({now} + $3, ends_ms) where app = $1 and key = $2 and ends_ms > {now} returning next";
    advance = "insert into scale_ledger (app, key, next, taken_ms, ends_ms) values ($1, $2, 1, {now}, {now} + $3) \
        on conflict (app, key) do update set next = scale_ledger.next + 1, taken_ms = excluded.taken_ms, \
        ends_ms = {most}(excluded.ends_ms, scale_ledger.ends_ms) \
        returning next";
    close = "delete from scale_ledger where app = $1 and key = $2";
    sweep = "delete from scale_ledger where (app, key) in (select app, key from scale_ledger where ends_ms <= {now} limit 100)";
}

/// A ledger in a PostgreSQL or SQLite database.
#[derive(Debug)]
pub struct SqlLedger {
    app: String,
    database: Database,
    texts: Texts,
}

fn failed(error: sqlx::Error) -> Error {
    Error::Ledger(Box::new(error))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4).clamp(1, i64::MAX / 4)
}

impl SqlLedger {
    /// Connects, for the ledger of `app`, and makes the table if it is not there.
    ///
    /// # Errors
    /// [`Error::Setting`] for an address that cannot be read; [`Error::Ledger`] if nobody answers there.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        let system = System::of(url).ok_or(Error::Setting("that is no address of a ledger"))?;
        let texts = Texts::new(system);
        let database = Database::connect(url, &texts.tables).await.map_err(|e| Error::Ledger(Box::new(e)))?;
        Ok(Self { app: text_of(app), database, texts })
    }

    fn on(&self, text: &std::sync::Arc<str>, key: &str) -> sqlx::query::Query<'static, Any, sqlx::any::AnyArguments> {
        query(text).bind(self.app.clone()).bind(key.to_owned())
    }

    async fn sweep_now_and_then(&self) {
        if fastrand::u32(..SWEEP) == 0
            && let Err(error) = query(&self.texts.sweep).execute(self.database.pool()).await
        {
            tracing::warn!(%error, "ended entries of the ledger could not be removed");
        }
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, Error> {
        self.database.begin().await.map_err(|e| Error::Ledger(Box::new(e)))
    }
}

fn query(text: &std::sync::Arc<str>) -> sqlx::query::Query<'static, Any, sqlx::any::AnyArguments> {
    // Made of the constants of this file alone.
    sqlx::query(AssertSqlSafe(std::sync::Arc::clone(text)))
}

fn counted(row: &AnyRow) -> Result<u64, Error> {
    let count: i64 = row.try_get(0).map_err(failed)?;
    Ok(count.max(0) as u64)
}

#[async_trait]
impl Store for SqlLedger {
    async fn claim(&self, key: &str, time: Duration) -> Result<bool, Error> {
        let claim = self.on(&self.texts.claim, key).bind(millis(time));
        let done = claim.execute(self.database.pool()).await.map_err(failed)?.rows_affected() > 0;
        self.sweep_now_and_then().await;
        Ok(done)
    }

    async fn claimed(&self, key: &str) -> Result<bool, Error> {
        counted(&self.on(&self.texts.claimed, key).fetch_one(self.database.pool()).await.map_err(failed)?).map(|count| count > 0)
    }

    async fn open(&self, key: &str, time: Duration) -> Result<(), Error> {
        let open = self.on(&self.texts.open, key).bind(millis(time));
        open.execute(self.database.pool()).await.map_err(failed)?;
        self.sweep_now_and_then().await;
        Ok(())
    }

    async fn turn(&self, key: &str, turn: u64, grace: Duration) -> Result<Turn, Error> {
        let mut tx = self.begin().await?;
        let row = self.on(&self.texts.family, key).fetch_optional(&mut *tx).await.map_err(failed)?;
        let Some(row) = row else { return Ok(Turn::Gone) };
        let (next, since): (i64, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let judged = judge(next.max(0) as u64, Duration::from_millis(since.max(0) as u64), turn, grace);
        match judged {
            Turn::Taken(_) if turn == next.max(0) as u64 => {
                self.on(&self.texts.take, key).bind(next + 1).execute(&mut *tx).await.map_err(failed)?;
            }
            Turn::Repeated => {
                self.on(&self.texts.close, key).execute(&mut *tx).await.map_err(failed)?;
            }
            _ => {}
        }
        tx.commit().await.map_err(failed)?;
        Ok(judged)
    }

    async fn close(&self, key: &str) -> Result<(), Error> {
        self.on(&self.texts.close, key).execute(self.database.pool()).await.map(drop).map_err(failed)
    }

    async fn count(&self, key: &str, keep: Option<Duration>) -> Result<u64, Error> {
        let count = match keep {
            Some(keep) => self.on(&self.texts.keep, key).bind(millis(keep)),
            None => self.on(&self.texts.count, key),
        };
        let row = count.fetch_optional(self.database.pool()).await.map_err(failed)?;
        row.map_or(Ok(0), |row| counted(&row))
    }

    async fn advance(&self, key: &str, keep: Duration) -> Result<u64, Error> {
        let advance = self.on(&self.texts.advance, key).bind(millis(keep));
        let count = counted(&advance.fetch_one(self.database.pool()).await.map_err(failed)?);
        self.sweep_now_and_then().await;
        count
    }
}
