//! A log in a table of a PostgreSQL or SQLite database.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::{Any, AssertSqlSafe, Row};

use super::{Event, Head, Record, Seal, Sealer, Store};
use crate::auth::error::Error;
use crate::sql::{Database, System, statements, text_of};

statements! {
    tables = "
        create table if not exists scale_audit (
            app {text} not null,
            number bigint not null,
            at_ms bigint not null,
            actor text not null,
            action text not null,
            object text not null,
            details text not null,
            seal {bytes} not null,
            primary key (app, number)
        );";
    lock = "{one_at_a_time}";
    head = "select number, seal from scale_audit where app = $1 order by number desc limit 1";
    append = "insert into scale_audit (app, number, at_ms, actor, action, object, details, seal) \
        values ($1, $2, $3, $4, $5, $6, $7, $8)";
    page = "select number, at_ms, actor, action, object, details, seal from scale_audit \
        where app = $1 and number > $2 order by number limit $3";
}

/// A log in a PostgreSQL or SQLite database.
#[derive(Debug)]
pub struct SqlAudit {
    app: String,
    database: Database,
    texts: Texts,
}

fn failed(error: sqlx::Error) -> Error {
    Error::Ledger(Box::new(error))
}

fn query(text: &Arc<str>) -> sqlx::query::Query<'static, Any, AnyArguments> {
    // Made of the constants of this file alone.
    sqlx::query(AssertSqlSafe(Arc::clone(text)))
}

impl SqlAudit {
    /// Connects, for the log of `app`, and makes the table if it is not there.
    ///
    /// # Errors
    /// [`Error::Setting`] for an address that cannot be read; [`Error::Ledger`] if nobody answers there.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        let system = System::of(url).ok_or(Error::Setting("that is no address of an audit log"))?;
        let texts = Texts::new(system);
        let database = Database::connect(url, &texts.tables).await.map_err(|e| Error::Ledger(Box::new(e)))?;
        Ok(Self { app: text_of(app), database, texts })
    }
}

/// Of a wrong length: no seal that fits anything.
fn seal(row: &AnyRow, column: usize) -> Result<Seal, Error> {
    let bytes: Vec<u8> = row.try_get(column).map_err(failed)?;
    let parts = bytes.split_first_chunk::<4>().and_then(|(key, mac)| Some(Seal { key: *key, mac: mac.try_into().ok()? }));
    Ok(parts.unwrap_or_default())
}

fn head(row: Option<&AnyRow>) -> Result<Head, Error> {
    let Some(row) = row else { return Ok(Head::default()) };
    let number: i64 = row.try_get(0).map_err(failed)?;
    Ok(Head { number: number.max(0) as u64, seal: seal(row, 1)? })
}

#[async_trait]
impl Store for SqlAudit {
    async fn append(&self, sealer: &Sealer<'_>) -> Result<Head, Error> {
        let mut tx = self.database.begin().await.map_err(|e| Error::Ledger(Box::new(e)))?;
        query(&self.texts.lock).execute(&mut *tx).await.map_err(failed)?;
        let last = head(query(&self.texts.head).bind(self.app.clone()).fetch_optional(&mut *tx).await.map_err(failed)?.as_ref())?;
        let Record { number, at_ms, event, seal } = sealer(&last)?;
        let append = query(&self.texts.append)
            .bind(self.app.clone())
            .bind(number as i64)
            .bind(at_ms as i64)
            .bind(event.actor)
            .bind(event.action);
        let append = append.bind(event.object).bind(event.details).bind([&seal.key[..], &seal.mac].concat());
        append.execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(Head { number, seal })
    }

    async fn page(&self, after: u64, limit: usize) -> Result<Vec<Record>, Error> {
        let page = query(&self.texts.page).bind(self.app.clone()).bind(after as i64).bind(limit as i64);
        let record = |row: &AnyRow| {
            let number = |n: usize| row.try_get::<i64, _>(n).map(|n| n.max(0) as u64).map_err(failed);
            let text = |n: usize| row.try_get::<String, _>(n).map_err(failed);
            let event = Event { actor: text(2)?, action: text(3)?, object: text(4)?, details: text(5)? };
            Ok(Record { number: number(0)?, at_ms: number(1)?, event, seal: seal(row, 6)? })
        };
        page.fetch_all(self.database.pool()).await.map_err(failed)?.iter().map(record).collect()
    }

    async fn head(&self) -> Result<Head, Error> {
        head(query(&self.texts.head).bind(self.app.clone()).fetch_optional(self.database.pool()).await.map_err(failed)?.as_ref())
    }
}
