//! Sessions in tables of a PostgreSQL or SQLite database.
//!
//! | table | holds |
//! | --- | --- |
//! | `scale_sessions` | a row for each session: when it was renewed, when it expires, when it ends, where it has moved |
//! | `scale_session_fields` | a row for each field |
//! | `scale_session_owners` | a row for each user with sessions: the last number given to one, and up to which they are revoked |
//!
//! The session's row is the lock: every write takes it first. Times are the database's clock, ms since 1970. What has expired is removed
//! by the way, a hundred rows at a time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row, Transaction};

use super::{Changes, Fields, Handle, Left, Lifetime, Owner, Record, Saved, Store, Swapped};
use crate::error::Error;
use crate::sql::{Database, System, statements};

/// One in so many new sessions sweeps.
const SWEEP: u32 = 50;

/// Of a row of `scale_sessions`.
macro_rules! not_revoked {
    () => {
        "(owner is null or number > (select revoked from scale_session_owners o where o.owner = scale_sessions.owner))"
    };
}

statements! {
    tables = "
        create table if not exists scale_sessions (
            handle text primary key,
            renewed_ms bigint not null,
            expires_ms bigint not null,
            ends_ms bigint not null,
            moved_to text,
            owner text,
            number bigint not null default 0
        );
        create index if not exists scale_sessions_owner on scale_sessions (owner) where owner is not null;
        create table if not exists scale_session_owners (
            owner text primary key,
            last bigint not null,
            revoked bigint not null,
            until_ms bigint not null
        );
        create index if not exists scale_sessions_expiry on scale_sessions (expires_ms);
        create table if not exists scale_session_fields (
            handle text not null,
            field text not null,
            value {bytes} not null,
            primary key (handle, field)
        );";
    load = "select s.renewed_ms, s.moved_to, f.field, f.value from scale_sessions s \
        left join scale_session_fields f on f.handle = s.handle where s.handle = $1 and s.expires_ms > {now} \
        and (s.owner is null or s.number > (select revoked from scale_session_owners o where o.owner = s.owner))";
    number = "insert into scale_session_owners (owner, last, revoked, until_ms) values ($1, 1, 0, {now} + $2) \
        on conflict (owner) do update set last = scale_session_owners.last + 1, \
        until_ms = case when excluded.until_ms > scale_session_owners.until_ms then excluded.until_ms else scale_session_owners.until_ms end \
        returning last";
    create = "insert into scale_sessions (handle, renewed_ms, expires_ms, ends_ms, owner, number) \
        values ($1, {now}, {now} + $2, {now} + $3, $4, $5)";
    owned = "select s.handle, s.renewed_ms, f.field, f.value from scale_sessions s \
        left join scale_session_fields f on f.handle = s.handle and f.field like '.%' \
        where s.owner = $1 and s.expires_ms > {now} and s.moved_to is null \
        and s.number > (select revoked from scale_session_owners where owner = $1) order by s.renewed_ms desc limit 1000";
    revoke = "update scale_session_owners set last = last + 1, revoked = last + 1 where owner = $1 returning last";
    keep = "update scale_sessions set number = $2 where handle = $1 and expires_ms > {now} and moved_to is null and number > \
        (select revoked from scale_session_owners o where o.owner = scale_sessions.owner)";
    sweep_owners = "delete from scale_session_owners where until_ms <= {now}";
    renew = "update scale_sessions set renewed_ms = {now}, expires_ms = {least}({now} + $2, ends_ms) where handle = $1";
    lock = concat!("select moved_to from scale_sessions where handle = $1 and expires_ms > {now} and ", not_revoked!(), " {lock}");
    field = "select value from scale_session_fields where handle = $1 and field = $2";
    set = "insert into scale_session_fields (handle, field, value) values ($1, $2, $3) \
        on conflict (handle, field) do update set value = $3";
    unset = "delete from scale_session_fields where handle = $1 and field = $2";
    leave = concat!("update scale_sessions set moved_to = $2, expires_ms = {now} + $3 \
        where handle = $1 and expires_ms > {now} and moved_to is null and ", not_revoked!(), " returning renewed_ms");
    fields = "delete from scale_session_fields where handle = $1 returning field, value";
    destroy = "delete from scale_sessions where handle = $1 returning moved_to";
    expired = "select handle from scale_sessions where expires_ms <= {now} limit 100";
}

/// Sessions in a PostgreSQL or SQLite database.
#[derive(Debug)]
pub struct SqlStore {
    database: Database,
    texts: Texts,
}

fn failed(error: sqlx::Error) -> Error {
    Error::Store(Box::new(error))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4).clamp(1, i64::MAX / 4)
}

fn query(text: &Arc<str>) -> sqlx::query::Query<'static, Any, AnyArguments> {
    // Made of the constants of this file alone.
    sqlx::query(AssertSqlSafe(Arc::clone(text)))
}

fn moved(row: &AnyRow, column: usize) -> Result<Option<Handle>, Error> {
    let text: Option<String> = row.try_get(column).map_err(failed)?;
    Ok(text.and_then(|t| Handle::parse(&t)))
}

fn time(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0) as u64)
}

impl SqlStore {
    /// Connects, and makes the tables if they are not there.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let system = System::of(url).ok_or_else(|| Error::address(url))?;
        let texts = Texts::new(system);
        Ok(Self { database: Database::connect(url, &texts.tables).await?, texts })
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, Error> {
        self.database.begin().await
    }

    async fn apply(&self, connection: &mut AnyConnection, handle: &Handle, changes: &Changes) -> Result<(), Error> {
        for (field, value) in changes.iter() {
            let change = match value {
                Some(value) => query(&self.texts.set).bind(handle.text()).bind(field.to_owned()).bind(value.to_vec()),
                None => query(&self.texts.unset).bind(handle.text()).bind(field.to_owned()),
            };
            change.execute(&mut *connection).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Locks the session's row: where it has moved, if it has; `None` if it is gone.
    async fn lock(&self, connection: &mut AnyConnection, handle: &Handle) -> Result<Option<Option<Handle>>, Error> {
        let row = query(&self.texts.lock).bind(handle.text()).fetch_optional(connection).await.map_err(failed)?;
        row.map(|row| moved(&row, 0)).transpose()
    }

    async fn sweep(&self) -> Result<(), Error> {
        query(&self.texts.sweep_owners).execute(self.database.pool()).await.map_err(failed)?;
        let rows = query(&self.texts.expired).fetch_all(self.database.pool()).await.map_err(failed)?;
        for row in rows {
            let handle: String = row.try_get(0).map_err(failed)?;
            if let Some(handle) = Handle::parse(&handle) {
                self.destroy(&handle).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn load(&self, handle: &Handle) -> Result<Option<Record>, Error> {
        let rows = query(&self.texts.load).bind(handle.text()).fetch_all(self.database.pool()).await.map_err(failed)?;
        let Some(first) = rows.first() else { return Ok(None) };
        let (renewed, moved_to) = (time(first.try_get(0).map_err(failed)?), moved(first, 1)?);
        let mut fields = Fields::default();
        for row in &rows {
            if let Some(field) = row.try_get::<Option<String>, _>(2).map_err(failed)? {
                fields.insert(field, row.try_get(3).map_err(failed)?);
            }
        }
        Ok(Some(Record { fields, renewed, moved_to }))
    }

    async fn create(&self, handle: &Handle, changes: &Changes, lifetime: Lifetime) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let number = match handle.owner() {
            None => 0,
            Some(owner) => {
                // A second longer than the session can live.
                let number = query(&self.texts.number).bind(owner.text()).bind(millis(lifetime.absolute).saturating_add(1_000));
                number.fetch_one(&mut *tx).await.and_then(|row| row.try_get(0)).map_err(failed)?
            }
        };
        let create = query(&self.texts.create).bind(handle.text()).bind(millis(lifetime.idle.min(lifetime.absolute)));
        let create = create.bind(millis(lifetime.absolute)).bind(handle.owner().map(Owner::text)).bind(number);
        create.execute(&mut *tx).await.map_err(failed)?;
        self.apply(&mut tx, handle, changes).await?;
        tx.commit().await.map_err(failed)?;
        if fastrand::u32(..SWEEP) == 0
            && let Err(error) = self.sweep().await
        {
            tracing::warn!(%error, "expired sessions could not be removed");
        }
        Ok(())
    }

    async fn save(&self, handle: &Handle, changes: &Changes, idle: Option<Duration>) -> Result<Saved, Error> {
        let mut tx = self.begin().await?;
        match self.lock(&mut tx, handle).await? {
            None => return Ok(Saved::Gone),
            Some(Some(to)) => return Ok(Saved::Moved(to)),
            Some(None) => {}
        }
        if let Some(idle) = idle {
            let renew = query(&self.texts.renew).bind(handle.text()).bind(millis(idle));
            renew.execute(&mut *tx).await.map_err(failed)?;
        }
        self.apply(&mut tx, handle, changes).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Saved::Done)
    }

    async fn swap(&self, handle: &Handle, field: &str, expected: Option<&[u8]>, new: Option<&[u8]>) -> Result<Swapped, Error> {
        let mut tx = self.begin().await?;
        match self.lock(&mut tx, handle).await? {
            None => return Ok(Swapped::Gone),
            Some(Some(to)) => return Ok(Swapped::Moved(to)),
            Some(None) => {}
        }
        let row = query(&self.texts.field).bind(handle.text()).bind(field.to_owned());
        let row = row.fetch_optional(&mut *tx).await.map_err(failed)?;
        let found: Option<Vec<u8>> = row.map(|row| row.try_get(0)).transpose().map_err(failed)?;
        if found.as_deref() != expected {
            return Ok(Swapped::Found(found));
        }
        let change = Changes([(field.to_owned(), new.map(<[u8]>::to_vec))].into());
        self.apply(&mut tx, handle, &change).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Swapped::Done)
    }

    async fn leave(&self, handle: &Handle, to: &Handle, expected: &Fields, grace: Duration) -> Result<Left, Error> {
        let mut tx = self.begin().await?;
        let leave = query(&self.texts.leave).bind(handle.text()).bind(to.text()).bind(millis(grace));
        let Some(row) = leave.fetch_optional(&mut *tx).await.map_err(failed)? else { return Ok(Left::Gone) };
        let renewed = time(row.try_get(0).map_err(failed)?);
        let rows = query(&self.texts.fields).bind(handle.text()).fetch_all(&mut *tx).await.map_err(failed)?;
        let fields: Fields =
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)?;
        if fields != *expected {
            tx.rollback().await.map_err(failed)?;
            return Ok(Left::Changed(Record { fields, renewed, moved_to: None }));
        }
        tx.commit().await.map_err(failed)?;
        Ok(Left::Done)
    }

    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error> {
        let rows = query(&self.texts.owned).bind(owner.text()).fetch_all(self.database.pool()).await.map_err(failed)?;
        let mut found: Vec<(Handle, Record)> = Vec::new();
        for row in &rows {
            let Some(handle) = Handle::parse(&row.try_get::<String, _>(0).map_err(failed)?) else { continue };
            if found.last().is_none_or(|(last, _)| *last != handle) {
                let renewed = time(row.try_get(1).map_err(failed)?);
                found.push((handle, Record { fields: Fields::default(), renewed, moved_to: None }));
            }
            if let Some((_, record)) = found.last_mut()
                && let Some(field) = row.try_get::<Option<String>, _>(2).map_err(failed)?
            {
                record.fields.insert(field, row.try_get(3).map_err(failed)?);
            }
        }
        Ok(found)
    }

    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        // Before the others are revoked: one that is already stays so. The number is after theirs.
        if let Some(handle) = except {
            let number = query(&self.texts.number).bind(owner.text()).bind(0_i64);
            let number: i64 = number.fetch_one(&mut *tx).await.and_then(|row| row.try_get(0)).map_err(failed)?;
            query(&self.texts.keep).bind(handle.text()).bind(number + 2).execute(&mut *tx).await.map_err(failed)?;
        }
        query(&self.texts.revoke).bind(owner.text()).fetch_optional(&mut *tx).await.map_err(failed)?;
        if except.is_some() {
            query(&self.texts.number).bind(owner.text()).bind(0_i64).execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    async fn destroy(&self, handle: &Handle) -> Result<Option<Handle>, Error> {
        let mut tx = self.begin().await?;
        let row = query(&self.texts.destroy).bind(handle.text()).fetch_optional(&mut *tx).await.map_err(failed)?;
        query(&self.texts.fields).bind(handle.text()).fetch_all(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        row.map_or(Ok(None), |row| moved(&row, 0))
    }
}
