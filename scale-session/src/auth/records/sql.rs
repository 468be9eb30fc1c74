//! Records in one table of a PostgreSQL, MySQL, MariaDB or SQLite database. Times are in ms since
//! 1970, by the database's clock.

use std::time::Duration;

use super::{Owner, Store, Swapped};
use crate::auth::error::Error;
use crate::sql::{Database, Query, Statement, System, again, statements, text_of};
use async_trait::async_trait;

/// One in this many additions removes expired rows.
const SWEEP: u32 = 20;

statements! {
    pub(crate) Texts;
    put = "insert into scale_auth_records (app, owner, id, record, ends_ms) \
        values ($1, $2, $3, $4, case when $5 = 0 then null else {now} + $5 end) \
        {conflict:app, owner, id} record = {new:record}, ends_ms = {new:ends_ms}";
    get = "select record from scale_auth_records where app = $1 and owner = $2 and id = $3 \
        and (ends_ms is null or ends_ms > {now})";
    lock = "select pg_advisory_xact_lock(hashtextextended($1 || ':' || $2, 7222014))",
        mysql "insert into scale_auth_locks (name) values (concat('records/', crc32(concat($1, \
            ':', $2)) % 256)) \
            on duplicate key update name = values(name)";
    others = "select count(*) from scale_auth_records \
        where app = $1 and owner = $2 and id <> $3 and (ends_ms is null or ends_ms > {now})";
    swap = "update scale_auth_records set record = $5 \
        where app = $1 and owner = $2 and id = $3 and record = $4 and (ends_ms is null \
        or ends_ms > {now})";
    list = "select id, record from scale_auth_records where app = $1 and owner = $2 \
        and (ends_ms is null or ends_ms > {now})";
    remove = "delete from scale_auth_records where app = $1 and owner = $2 and id = $3";
    remove_all = "delete from scale_auth_records where app = $1 and owner = $2";
    sweep = "delete from scale_auth_records where (app, owner, id) in \
            (select app, owner, id from scale_auth_records where ends_ms <= {now} limit 100)",
        mysql "delete from scale_auth_records where ends_ms <= {now} limit 100";
}

/// Record store in a PostgreSQL, MySQL, MariaDB or SQLite database.
#[derive(Debug)]
pub struct SqlRecords {
    app: String,
    database: Database,
    texts: Texts,
}

fn failed(error: sqlx::Error) -> Error {
    Error::OneTimeStore(Box::new(error))
}

impl SqlRecords {
    /// Connects to a database, for the records of `app`. The table in an SQLite file is created if
    /// it is missing. On a server the table must exist, see [`migrate`](crate::store::migrate).
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
        let database = crate::sql::open(pool.into(), app, &crate::sql::RECORDS).await?;
        Ok(Self { app: text_of(app), texts: Texts::new(database.system()), database })
    }

    fn of(&self, text: &Statement, owner: &Owner) -> Query {
        text.bind(self.app.clone()).bind(owner.text())
    }
}

#[async_trait]
impl Store for SqlRecords {
    async fn put(
        &self,
        owner: &Owner,
        id: &str,
        record: &[u8],
        keep: Option<Duration>,
        most: usize,
    ) -> Result<bool, Error> {
        let keep = keep.map_or(0, |keep| {
            i64::try_from(keep.as_millis()).unwrap_or(i64::MAX / 4).clamp(1, i64::MAX / 4)
        });
        let put = again(|| self.put_once(owner, id, record, keep, most)).await?;
        if put
            && fastrand::u32(..SWEEP) == 0
            && let Err(error) = self.texts.sweep.query().execute(&self.database).await
        {
            tracing::warn!(%error, "expired records were not removed: the next sweep tries again");
        }
        Ok(put)
    }

    async fn get(&self, owner: &Owner, id: &str) -> Result<Option<Vec<u8>>, Error> {
        let row = self
            .of(&self.texts.get, owner)
            .bind(id.to_owned())
            .fetch_optional(&self.database)
            .await;
        row.map_err(failed)?.map(|row| row.get(0)).transpose().map_err(failed)
    }

    async fn swap(
        &self,
        owner: &Owner,
        id: &str,
        old: &[u8],
        new: &[u8],
    ) -> Result<Swapped, Error> {
        let swap = self
            .of(&self.texts.swap, owner)
            .bind(id.to_owned())
            .bind(old.to_owned())
            .bind(new.to_owned());
        if swap.execute(&self.database).await.map_err(failed)? > 0 {
            return Ok(Swapped::Done);
        }
        Ok(if self.get(owner, id).await?.is_some() { Swapped::Changed } else { Swapped::Gone })
    }

    async fn list(&self, owner: &Owner) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let rows =
            self.of(&self.texts.list, owner).fetch_all(&self.database).await.map_err(failed)?;
        rows.iter()
            .map(|row| Ok((row.get(0)?, row.get(1)?)))
            .collect::<Result<_, _>>()
            .map_err(failed)
    }

    async fn remove(&self, owner: &Owner, id: &str) -> Result<bool, Error> {
        let remove = self.of(&self.texts.remove, owner).bind(id.to_owned());
        Ok(remove.execute(&self.database).await.map_err(failed)? > 0)
    }

    async fn remove_all(&self, owner: &Owner) -> Result<u64, Error> {
        let remove = self.of(&self.texts.remove_all, owner);
        Ok(remove.execute(&self.database).await.map_err(failed)?)
    }
}

impl SqlRecords {
    async fn put_once(
        &self,
        owner: &Owner,
        id: &str,
        record: &[u8],
        keep: i64,
        most: usize,
    ) -> Result<bool, Error> {
        let mut tx = self.database.begin().await.map_err(failed)?;
        // Locks the owner: two concurrent additions would each see room for one. SQLite has one
        // writer at a time.
        match self.database.system() {
            System::Postgres => {
                drop(self.of(&self.texts.lock, owner).fetch_all(&mut tx).await.map_err(failed)?);
            }
            System::MySql => {
                self.of(&self.texts.lock, owner).execute(&mut tx).await.map_err(failed)?;
            }
            System::Sqlite => {}
        }
        let others = self.of(&self.texts.others, owner).bind(id).fetch_one(&mut tx).await;
        let others: i64 = others.and_then(|row| row.get(0)).map_err(failed)?;
        if usize::try_from(others).unwrap_or(usize::MAX) >= most {
            return Ok(false);
        }
        let put = self.of(&self.texts.put, owner).bind(id).bind(record.to_owned()).bind(keep);
        put.execute(&mut tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }
}
