//! One-time store in one table of a PostgreSQL, MySQL, MariaDB or SQLite database, shared by a
//! fleet. Times are in ms since 1970, by the database's clock.

use std::time::Duration;

use super::{FamilyAdvance, Store, judge};
use crate::auth::error::Error;
use crate::sql::{Connection, Database, Query, Statement, System, again, statements, text_of};
use async_trait::async_trait;
use scale_sql::Row;
use scale_sql::ttl_millis;

/// One in this many claims removes expired rows.
const SWEEP: u32 = 100;

statements! {
    pub(crate) Texts;
    claim = "insert into scale_ledger (app, {key}, next, taken_ms, ends_ms) \
            values ($1, $2, 0, {now}, {now} + $3) \
            on conflict (app, key) do update \
                set taken_ms = excluded.taken_ms, ends_ms = excluded.ends_ms \
                where scale_ledger.ends_ms <= {now}",
    // On MySQL, `drop_ended` runs before, so that an expired row is gone.
        mysql "{insert} scale_ledger (app, {key}, next, taken_ms, ends_ms) \
            values ($1, $2, 0, {now}, {now} + $3)";
    drop_ended = "delete from scale_ledger where app = $1 and {key} = $2 and ends_ms <= {now}";
    claimed = "select count(*) from scale_ledger where app = $1 and {key} = $2 and ends_ms > {now}";
    open = "insert into scale_ledger (app, {key}, next, taken_ms, ends_ms) \
        values ($1, $2, 0, {now}, {now} + $3)";
    family = "select next, {clock} - taken_ms from scale_ledger \
        where app = $1 and {key} = $2 and ends_ms > {clock} {lock}";
    take = "update scale_ledger set next = $3, taken_ms = {now} where app = $1 and {key} = $2";
    count = "select next from scale_ledger where app = $1 and {key} = $2 and ends_ms > {now}";
    keep = "update scale_ledger set ends_ms = {greatest}({now} + $3, ends_ms) \
        where app = $1 and {key} = $2 and ends_ms > {now}";
    advance = "insert into scale_ledger (app, {key}, next, taken_ms, ends_ms) \
        values ($1, $2, 1, {now}, {now} + $3) \
        {conflict:app, key} next = scale_ledger.next + 1, taken_ms = {new:taken_ms}, \
            ends_ms = {greatest}({new:ends_ms}, scale_ledger.ends_ms)";
    close = "delete from scale_ledger where app = $1 and {key} = $2";
    sweep = "delete from scale_ledger where (app, key) in \
            (select app, key from scale_ledger where ends_ms <= {now} limit 100)",
        mysql "delete from scale_ledger where ends_ms <= {now} limit 100";
}

/// One-time store in a PostgreSQL, MySQL, MariaDB or SQLite database.
#[derive(Debug)]
pub struct SqlLedger {
    app: String,
    database: Database,
    texts: Texts,
}

fn failed(error: sqlx::Error) -> Error {
    Error::OneTimeStore(Box::new(error))
}

impl SqlLedger {
    /// Connects to a database, for the one-time store of `app`. The table in an SQLite file is
    /// created if it is missing. On a server the table must exist, see
    /// [`migrate`](crate::store::migrate).
    ///
    /// # Errors
    /// [`Error::Setting`] for an unsupported address; [`Error::Schema`] if the table is older or
    /// newer than this version needs; [`Error::OneTimeStore`] if the database does not answer.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        Self::with_pool(crate::sql::connect(url).await?, app).await
    }

    /// Uses the application's own pool; otherwise the same as [`connect`](Self::connect).
    ///
    /// # Errors
    /// The same as those of [`connect`](Self::connect).
    pub async fn with_pool(pool: impl Into<Database>, app: &str) -> Result<Self, Error> {
        let database = crate::sql::open(pool.into(), app, &crate::sql::LEDGER).await?;
        Ok(Self { app: text_of(app), texts: Texts::new(database.system()), database })
    }

    fn on(&self, text: &Statement, key: &str) -> Query {
        text.bind(self.app.clone()).bind(key)
    }

    async fn sweep_now_and_then(&self) {
        if fastrand::u32(..SWEEP) == 0
            && let Err(error) = self.texts.sweep.query().execute(&self.database).await
        {
            tracing::warn!(%error, "expired one-time entries were not removed: tried again later");
        }
    }

    async fn begin(&self) -> Result<Connection<'static>, Error> {
        self.database.begin().await.map_err(failed)
    }
}

fn counted(row: &Row) -> Result<u64, Error> {
    let count: i64 = row.get(0).map_err(failed)?;
    Ok(count.max(0) as u64)
}

#[async_trait]
impl Store for SqlLedger {
    async fn claim(&self, key: &str, time: Duration) -> Result<bool, Error> {
        if self.database.system() == System::MySql {
            self.on(&self.texts.drop_ended, key).execute(&self.database).await.map_err(failed)?;
        }
        let claim = || self.on(&self.texts.claim, key).bind(ttl_millis(time));
        let done =
            again(|| async { claim().execute(&self.database).await.map_err(failed) }).await? > 0;
        self.sweep_now_and_then().await;
        Ok(done)
    }

    async fn claimed(&self, key: &str) -> Result<bool, Error> {
        counted(&self.on(&self.texts.claimed, key).fetch_one(&self.database).await.map_err(failed)?)
            .map(|count| count > 0)
    }

    async fn open(&self, key: &str, time: Duration) -> Result<(), Error> {
        let open = self.on(&self.texts.open, key).bind(ttl_millis(time));
        open.execute(&self.database).await.map_err(failed)?;
        self.sweep_now_and_then().await;
        Ok(())
    }

    async fn turn(&self, key: &str, turn: u64, grace: Duration) -> Result<FamilyAdvance, Error> {
        again(|| self.turn_once(key, turn, grace)).await
    }

    async fn close(&self, key: &str) -> Result<(), Error> {
        self.on(&self.texts.close, key).execute(&self.database).await.map(drop).map_err(failed)
    }

    async fn count(&self, key: &str, keep: Option<Duration>) -> Result<u64, Error> {
        if let Some(keep) = keep {
            let keep = || self.on(&self.texts.keep, key).bind(ttl_millis(keep));
            again(|| async { keep().execute(&self.database).await.map_err(failed) }).await?;
        }
        let row =
            self.on(&self.texts.count, key).fetch_optional(&self.database).await.map_err(failed)?;
        row.map_or(Ok(0), |row| counted(&row))
    }

    async fn advance(&self, key: &str, keep: Duration) -> Result<u64, Error> {
        let count = again(|| self.advance_once(key, keep)).await;
        self.sweep_now_and_then().await;
        count
    }
}

impl SqlLedger {
    async fn turn_once(
        &self,
        key: &str,
        turn: u64,
        grace: Duration,
    ) -> Result<FamilyAdvance, Error> {
        let mut tx = self.begin().await?;
        let row = self.on(&self.texts.family, key).fetch_optional(&mut tx).await.map_err(failed)?;
        let Some(row) = row else { return Ok(FamilyAdvance::Gone) };
        let (next, since): (i64, i64) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
        let judged =
            judge(next.max(0) as u64, Duration::from_millis(since.max(0) as u64), turn, grace);
        match judged {
            FamilyAdvance::Taken(_) if turn == next.max(0) as u64 => {
                self.on(&self.texts.take, key)
                    .bind(next + 1)
                    .execute(&mut tx)
                    .await
                    .map_err(failed)?;
            }
            FamilyAdvance::Repeated => {
                self.on(&self.texts.close, key).execute(&mut tx).await.map_err(failed)?;
            }
            _ => {}
        }
        tx.commit().await.map_err(failed)?;
        Ok(judged)
    }

    async fn advance_once(&self, key: &str, keep: Duration) -> Result<u64, Error> {
        let mut tx = self.begin().await?;
        self.on(&self.texts.advance, key)
            .bind(ttl_millis(keep))
            .execute(&mut tx)
            .await
            .map_err(failed)?;
        let count =
            counted(&self.on(&self.texts.count, key).fetch_one(&mut tx).await.map_err(failed)?)?;
        tx.commit().await.map_err(failed)?;
        Ok(count)
    }
}
