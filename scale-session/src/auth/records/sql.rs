//! Records in a PostgreSQL or SQLite database: one table. Times are the database's clock, ms since 1970.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Any, AssertSqlSafe, Row};

use super::{Owner, Store, Swapped};
use crate::auth::error::Error;
use crate::sql::{Database, System, statements, text_of};

/// One in so many additions sweeps.
const SWEEP: u32 = 20;

statements! {
    tables = "
        create table if not exists scale_auth_records (
            app {text} not null,
            owner {text} not null,
            id {text} not null,
            record {bytes} not null,
            ends_ms bigint,
            primary key (app, owner, id)
        );
        create index if not exists scale_auth_records_end on scale_auth_records (ends_ms);";
    put = "insert into scale_auth_records (app, owner, id, record, ends_ms) \
        values ($1, $2, $3, $4, case when $5 = 0 then null else {now} + $5 end) \
        on conflict (app, owner, id) do update set record = excluded.record, ends_ms = excluded.ends_ms";
    get = "select record from scale_auth_records where app = $1 and owner = $2 and id = $3 and (ends_ms is null or ends_ms > {now})";
    lock = "{lock_owner}";
    others = "select count(*) from scale_auth_records \
        where app = $1 and owner = $2 and id <> $3 and (ends_ms is null or ends_ms > {now})";
    swap = "update scale_auth_records set record = $5 \
        where app = $1 and owner = $2 and id = $3 and record = $4 and (ends_ms is null or ends_ms > {now})";
    list = "select id, record from scale_auth_records where app = $1 and owner = $2 and (ends_ms is null or ends_ms > {now})";
    remove = "delete from scale_auth_records where app = $1 and owner = $2 and id = $3";
    remove_all = "delete from scale_auth_records where app = $1 and owner = $2";
    sweep = "delete from scale_auth_records where (app, owner, id) in \
        (select app, owner, id from scale_auth_records where ends_ms <= {now} limit 100)";
}

/// Records in a PostgreSQL or SQLite database.
#[derive(Debug)]
pub struct SqlRecords {
    app: String,
    database: Database,
    texts: Texts,
}

fn failed(error: sqlx::Error) -> Error {
    Error::Ledger(Box::new(error))
}

fn query(text: &std::sync::Arc<str>) -> sqlx::query::Query<'static, Any, sqlx::any::AnyArguments> {
    // Made of the constants of this file alone.
    sqlx::query(AssertSqlSafe(std::sync::Arc::clone(text)))
}

impl SqlRecords {
    /// Connects, for the records of `app`, and makes the table if it is not there.
    ///
    /// # Errors
    /// [`Error::Setting`] for an address that cannot be read; [`Error::Ledger`] if nobody answers there.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        let system = System::of(url).ok_or(Error::Setting("the address names no database: use postgres: or sqlite:"))?;
        let texts = Texts::new(system);
        let database = Database::connect(url, &texts.tables).await.map_err(|e| Error::Ledger(Box::new(e)))?;
        Ok(Self { app: text_of(app), database, texts })
    }

    fn of(&self, text: &std::sync::Arc<str>, owner: &Owner) -> sqlx::query::Query<'static, Any, sqlx::any::AnyArguments> {
        query(text).bind(self.app.clone()).bind(owner.text())
    }
}

#[async_trait]
impl Store for SqlRecords {
    async fn put(&self, owner: &Owner, id: &str, record: &[u8], keep: Option<Duration>, most: usize) -> Result<bool, Error> {
        let keep = keep.map_or(0, |keep| i64::try_from(keep.as_millis()).unwrap_or(i64::MAX / 4).clamp(1, i64::MAX / 4));
        let mut tx = self.database.begin().await.map_err(|e| Error::Ledger(Box::new(e)))?;
        // Two at once would each see that there is room for one.
        self.of(&self.texts.lock, owner).execute(&mut *tx).await.map_err(failed)?;
        let others = self.of(&self.texts.others, owner).bind(id.to_owned()).fetch_one(&mut *tx).await;
        let others: i64 = others.and_then(|row| row.try_get(0)).map_err(failed)?;
        if usize::try_from(others).unwrap_or(usize::MAX) >= most {
            return Ok(false);
        }
        let put = self.of(&self.texts.put, owner).bind(id.to_owned()).bind(record.to_owned()).bind(keep);
        put.execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        if fastrand::u32(..SWEEP) == 0
            && let Err(error) = query(&self.texts.sweep).execute(self.database.pool()).await
        {
            tracing::warn!(%error, "records whose time has passed could not be removed");
        }
        Ok(true)
    }

    async fn get(&self, owner: &Owner, id: &str) -> Result<Option<Vec<u8>>, Error> {
        let row = self.of(&self.texts.get, owner).bind(id.to_owned()).fetch_optional(self.database.pool()).await;
        row.map_err(failed)?.map(|row| row.try_get(0)).transpose().map_err(failed)
    }

    async fn swap(&self, owner: &Owner, id: &str, old: &[u8], new: &[u8]) -> Result<Swapped, Error> {
        let swap = self.of(&self.texts.swap, owner).bind(id.to_owned()).bind(old.to_owned()).bind(new.to_owned());
        if swap.execute(self.database.pool()).await.map_err(failed)?.rows_affected() > 0 {
            return Ok(Swapped::Done);
        }
        Ok(if self.get(owner, id).await?.is_some() { Swapped::Changed } else { Swapped::Gone })
    }

    async fn list(&self, owner: &Owner) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let rows = self.of(&self.texts.list, owner).fetch_all(self.database.pool()).await.map_err(failed)?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)
    }

    async fn remove(&self, owner: &Owner, id: &str) -> Result<bool, Error> {
        let remove = self.of(&self.texts.remove, owner).bind(id.to_owned());
        Ok(remove.execute(self.database.pool()).await.map_err(failed)?.rows_affected() > 0)
    }

    async fn remove_all(&self, owner: &Owner) -> Result<u64, Error> {
        let remove = self.of(&self.texts.remove_all, owner);
        Ok(remove.execute(self.database.pool()).await.map_err(failed)?.rows_affected())
    }
}
