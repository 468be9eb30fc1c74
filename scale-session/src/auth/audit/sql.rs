//! Audit log in a table of a PostgreSQL, MySQL, MariaDB or SQLite database.

use async_trait::async_trait;

use super::{Event, Head, Record, Seal, Sealer, Store};
use crate::auth::error::Error;
use crate::sql::{Database, System, again, statements, text_of};
use scale_sql::Row;

statements! {
    pub(crate) Texts;
    // Used on PostgreSQL only. SQLite has one writer at a time. On MySQL the second of two
    // concurrent transactions finds its number taken, and tries again.
    lock = "select pg_advisory_xact_lock(7222013)";
    head = "select number, seal from scale_audit where app = $1 order by number desc limit 1";
    append = "insert into scale_audit (app, number, at_ms, actor, action, object, details, seal) \
        values ($1, $2, $3, $4, $5, $6, $7, $8)";
    page = "select number, at_ms, actor, action, object, details, seal from scale_audit \
        where app = $1 and number > $2 order by number limit $3";
}

/// Maximum number of attempts when other writers take the number of a record.
const MOST_RACES: u32 = 100;

/// Audit log in a PostgreSQL, MySQL, MariaDB or SQLite database.
#[derive(Debug)]
pub struct SqlAudit {
    app: String,
    database: Database,
    texts: Texts,
}

fn failed(error: sqlx::Error) -> Error {
    Error::OneTimeStore(Box::new(error))
}

impl SqlAudit {
    /// Connects to a database, for the log of `app`. The table in an SQLite file is created if it
    /// is missing. On a server the table must exist, see [`migrate`](crate::store::migrate).
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
        let database = crate::sql::open(pool.into(), app, &crate::sql::AUDIT).await?;
        Ok(Self { app: text_of(app), texts: Texts::new(database.system()), database })
    }
}

/// Decodes a key id and HMAC. Bytes of a wrong length give a value that matches no record.
fn seal(row: &Row, column: usize) -> Result<Seal, Error> {
    let bytes: Vec<u8> = row.get(column).map_err(failed)?;
    let parts = bytes
        .split_first_chunk::<4>()
        .and_then(|(key, mac)| Some(Seal { key: *key, mac: mac.try_into().ok()? }));
    Ok(parts.unwrap_or_default())
}

fn head(row: Option<&Row>) -> Result<Head, Error> {
    let Some(row) = row else { return Ok(Head::default()) };
    let number: i64 = row.get(0).map_err(failed)?;
    Ok(Head { number: number.max(0) as u64, seal: seal(row, 1)? })
}

#[async_trait]
impl Store for SqlAudit {
    async fn append(&self, sealer: &Sealer<'_>) -> Result<Head, Error> {
        for _ in 0..MOST_RACES {
            if let Some(head) = again(|| self.append_once(sealer)).await? {
                return Ok(head);
            }
        }
        Err(Error::OneTimeStore("the audit log has too many concurrent writers".into()))
    }

    async fn page(&self, after: u64, limit: usize) -> Result<Vec<Record>, Error> {
        let page = self.texts.page.bind(self.app.clone()).bind(after as i64).bind(limit as i64);
        let record = |row: &Row| {
            let number = |n: usize| row.get::<i64>(n).map(|n| n.max(0) as u64).map_err(failed);
            let text = |n: usize| row.get::<String>(n).map_err(failed);
            let event =
                Event { actor: text(2)?, action: text(3)?, object: text(4)?, details: text(5)? };
            Ok(Record { number: number(0)?, at_ms: number(1)?, event, seal: seal(row, 6)? })
        };
        page.fetch_all(&self.database).await.map_err(failed)?.iter().map(record).collect()
    }

    async fn head(&self) -> Result<Head, Error> {
        head(
            self.texts
                .head
                .bind(self.app.clone())
                .fetch_optional(&self.database)
                .await
                .map_err(failed)?
                .as_ref(),
        )
    }
}

impl SqlAudit {
    /// Appends in one transaction. Returns `None` if another writer has taken the number.
    async fn append_once(&self, sealer: &Sealer<'_>) -> Result<Option<Head>, Error> {
        let mut tx = self.database.begin().await.map_err(failed)?;
        if self.database.system() == System::Postgres {
            self.texts.lock.query().fetch_all(&mut tx).await.map_err(failed)?;
        }
        let last =
            self.texts.head.bind(self.app.clone()).fetch_optional(&mut tx).await.map_err(failed)?;
        let Record { number, at_ms, event, seal } = sealer(&head(last.as_ref())?)?;
        let append =
            self.texts.append.bind(self.app.clone()).bind(number as i64).bind(at_ms as i64);
        let append =
            append.bind(event.actor).bind(event.action).bind(event.object).bind(event.details);
        match append.bind([&seal.key[..], &seal.mac].concat()).execute(&mut tx).await {
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => return Ok(None),
            appended => appended.map_err(failed)?,
        };
        tx.commit().await.map_err(failed)?;
        Ok(Some(Head { number, seal }))
    }
}
