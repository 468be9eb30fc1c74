//! Sessions in tables of a PostgreSQL or SQLite database.
//!
//! | table | holds |
//! | --- | --- |
//! | `scale_sessions` | a row for each session: when it was renewed, when it expires, when it ends, which proofs open it, until when a replaced one is read |
//! | `scale_session_fields` | a row for each field |
//! | `scale_session_owners` | a row for each user with sessions: the last number given to one, and up to which they are revoked |
//!
//! Each key begins with the application's name. The session's row is the lock: every write takes it first. Times are the database's clock, ms since 1970. What has expired is removed
//! by the way, a hundred rows at a time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sqlx::any::AnyArguments;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row, Transaction};

use super::{
    Changes, Destroyed, Fields, Handle, Lifetime, Owner, Proof, Proofs, REPLACED_FOR, Record, Renewal, Saved, Standing, Store,
    Succession, Swapped,
};
use crate::error::Error;
use crate::sql::{Database, System, statements, text_of};
use crate::value::{decode_number, encode_number};

/// One in so many new sessions sweeps.
const SWEEP: u32 = 50;

/// Of a row of `scale_sessions`, called `s`.
macro_rules! lives {
    () => {
        "s.app = $1 and s.handle = $2 and s.expires_ms > {now} and (s.owner is null or s.number > \
            (select revoked from scale_session_owners o where o.app = s.app and o.owner = s.owner))"
    };
}

statements! {
    tables = "
        create table if not exists scale_sessions (
            app {text} not null,
            handle {text} not null,
            proofs {text} not null,
            renewed_ms bigint not null,
            expires_ms bigint not null,
            ends_ms bigint not null,
            seen bigint not null default 0,
            frozen_ms bigint,
            next {text},
            owner {text},
            number bigint not null default 0,
            primary key (app, handle)
        );
        create index if not exists scale_sessions_owner on scale_sessions (app, owner) where owner is not null;
        create index if not exists scale_sessions_expiry on scale_sessions (expires_ms);
        create table if not exists scale_session_owners (
            app {text} not null,
            owner {text} not null,
            last bigint not null,
            revoked bigint not null,
            until_ms bigint not null,
            primary key (app, owner)
        );
        create index if not exists scale_session_owners_until on scale_session_owners (until_ms);
        create table if not exists scale_session_fields (
            app {text} not null,
            handle {text} not null,
            field {text} not null,
            value {bytes} not null,
            primary key (app, handle, field)
        );";
    load = "select s.proofs, s.renewed_ms, case when s.owner is null or s.number > o.revoked then s.frozen_ms else 0 end, s.seen, {now}, \
        f.field, f.value, s.next from scale_sessions s \
        left join scale_session_owners o on o.app = s.app and o.owner = s.owner \
        left join scale_session_fields f on f.app = s.app and f.handle = s.handle \
        where s.app = $1 and s.handle = $2 and s.expires_ms > {now} and (s.owner is null or s.number > o.revoked or s.frozen_ms is not null)";
    number = "insert into scale_session_owners (app, owner, last, revoked, until_ms) values ($1, $2, 1, 0, {now} + $3) \
        on conflict (app, owner) do update set last = scale_session_owners.last + 1, \
        until_ms = case when excluded.until_ms > scale_session_owners.until_ms then excluded.until_ms else scale_session_owners.until_ms end \
        returning last";
    create = "insert into scale_sessions (app, handle, proofs, renewed_ms, expires_ms, ends_ms, owner, number) \
        values ($1, $2, $3, {now}, {now} + $4, {now} + $5, $6, $7)";
    owned = "select s.handle, s.renewed_ms, f.field, f.value from (select app, handle, renewed_ms from scale_sessions \
            where app = $1 and owner = $2 and expires_ms > {now} and frozen_ms is null and seen = 1 \
            and number > (select revoked from scale_session_owners where app = $1 and owner = $2) \
            order by renewed_ms desc, handle limit 1000) s \
        left join scale_session_fields f on f.app = s.app and f.handle = s.handle and f.field like '.%' \
        order by s.renewed_ms desc, s.handle";
    revoke = "update scale_session_owners set last = last + 1, revoked = last + 1 where app = $1 and owner = $2 returning last";
    keep = "update scale_sessions set number = $3 where app = $1 and handle = $2 and expires_ms > {now} and frozen_ms is null and number > \
        (select revoked from scale_session_owners o where o.app = scale_sessions.app and o.owner = scale_sessions.owner)";
    sweep_owners = "delete from scale_session_owners where until_ms <= {now}";
    renew = "update scale_sessions set renewed_ms = {now}, expires_ms = {least}({now} + $3, ends_ms), seen = 1, proofs = $4 \
        where app = $1 and handle = $2";
    lock = concat!("select s.frozen_ms, s.proofs, {now}, s.ends_ms, s.number, s.next from scale_sessions s where ", lives!(), " {lock}");
    field = "select value from scale_session_fields where app = $1 and handle = $2 and field = $3";
    all_fields = "select field, value from scale_session_fields where app = $1 and handle = $2";
    set = "insert into scale_session_fields (app, handle, field, value) values ($1, $2, $3, $4) \
        on conflict (app, handle, field) do update set value = excluded.value";
    unset = "delete from scale_session_fields where app = $1 and handle = $2 and field = $3";
    rotate = "update scale_sessions set proofs = $3 where app = $1 and handle = $2";
    freeze = "update scale_sessions set frozen_ms = {least}({now} + $3, ends_ms), expires_ms = {now} + $3 + $4, next = $5 \
        where app = $1 and handle = $2";
    succeed = "insert into scale_sessions (app, handle, proofs, renewed_ms, expires_ms, ends_ms, owner, number) \
        select app, $3, $4, {now}, {least}({now} + $5, ends_ms), ends_ms, owner, number from scale_sessions where app = $1 and handle = $2";
    copy_fields = "insert into scale_session_fields (app, handle, field, value) \
        select app, $3, field, value from scale_session_fields where app = $1 and handle = $2";
    remember_owner = "update scale_session_owners set until_ms = {most}(until_ms, {now} + $3) where app = $1 and owner = $2";
    unread = "update scale_sessions set frozen_ms = 0 where app = $1 and handle = $2";
    end = "update scale_sessions set frozen_ms = 0, expires_ms = {now} + $3 where app = $1 and handle = $2";
    drop_fields = "delete from scale_session_fields where app = $1 and handle = $2";
    destroy = "delete from scale_sessions where app = $1 and handle = $2";
    expired = "select app, handle from scale_sessions where expires_ms <= {now} limit 100";
}

/// Sessions in a PostgreSQL or SQLite database.
#[derive(Debug)]
pub struct SqlStore {
    app: String,
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

fn time(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0) as u64)
}

impl SqlStore {
    /// Connects, for the sessions of `app`, and makes the tables if they are not there.
    ///
    /// # Errors
    /// [`Error::Address`] for an address that is none of these; [`Error::Store`] if the database does not answer.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        let system = System::of(url).ok_or_else(|| Error::address(url))?;
        let texts = Texts::new(system);
        Ok(Self { app: text_of(app), database: Database::connect(url, &texts.tables).await?, texts })
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, Error> {
        self.database.begin().await
    }

    /// A statement whose first parameter is the application.
    fn ask(&self, text: &Arc<str>) -> sqlx::query::Query<'static, Any, AnyArguments> {
        query(text).bind(self.app.clone())
    }

    /// A statement on one session.
    fn on(&self, text: &Arc<str>, handle: &Handle) -> sqlx::query::Query<'static, Any, AnyArguments> {
        self.ask(text).bind(handle.text())
    }

    async fn apply(&self, connection: &mut AnyConnection, handle: &Handle, changes: &Changes) -> Result<(), Error> {
        for (field, value) in changes.iter() {
            let change = match value {
                Some(value) => self.on(&self.texts.set, handle).bind(field.to_owned()).bind(value.to_vec()),
                None => self.on(&self.texts.unset, handle).bind(field.to_owned()),
            };
            change.execute(&mut *connection).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Locks the session's row; `None` if it is gone.
    async fn lock(&self, connection: &mut AnyConnection, handle: &Handle) -> Result<Option<Locked>, Error> {
        let row = self.on(&self.texts.lock, handle).fetch_optional(connection).await.map_err(failed)?;
        let locked = row.map(|row| {
            let next: Option<String> = row.try_get(5)?;
            let next = next.and_then(|text| Handle::parse(&text));
            Ok(Locked { frozen_ms: row.try_get(0)?, proofs: row.try_get(1)?, now_ms: row.try_get(2)?, next })
        });
        locked.transpose().map_err(failed)
    }

    async fn freeze_in(
        &self,
        connection: &mut AnyConnection,
        handle: &Handle,
        next: &Handle,
        grace: Duration,
    ) -> Result<(), Error> {
        let grace = i64::try_from(grace.as_millis()).unwrap_or(i64::MAX / 4);
        let freeze = self.on(&self.texts.freeze, handle).bind(grace).bind(millis(REPLACED_FOR)).bind(next.text());
        freeze.execute(&mut *connection).await.map_err(failed)?;
        if let Some(owner) = handle.owner() {
            // What is revoked is known for as long as it may be asked for.
            let known = self.ask(&self.texts.remember_owner).bind(owner.text());
            let known = known.bind(grace.saturating_add(millis(REPLACED_FOR)).saturating_add(1_000));
            known.execute(connection).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn held(&self, connection: &mut AnyConnection, handle: &Handle) -> Result<Fields, Error> {
        let rows = self.on(&self.texts.all_fields, handle).fetch_all(connection).await.map_err(failed)?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)
    }

    /// Of all applications: what has expired is nobody's.
    async fn sweep(&self) -> Result<(), Error> {
        query(&self.texts.sweep_owners).execute(self.database.pool()).await.map_err(failed)?;
        let rows = query(&self.texts.expired).fetch_all(self.database.pool()).await.map_err(failed)?;
        for row in rows {
            let (app, handle): (String, String) = row.try_get(0).and_then(|app| Ok((app, row.try_get(1)?))).map_err(failed)?;
            let mut tx = self.begin().await?;
            for text in [&self.texts.destroy, &self.texts.drop_fields] {
                query(text).bind(app.clone()).bind(handle.clone()).execute(&mut *tx).await.map_err(failed)?;
            }
            tx.commit().await.map_err(failed)?;
        }
        Ok(())
    }
}

/// A session's row.
struct Locked {
    frozen_ms: Option<i64>,
    proofs: String,
    now_ms: i64,
    next: Option<Handle>,
}

#[async_trait]
impl Store for SqlStore {
    async fn load(&self, handle: &Handle, proof: Option<&Proof>) -> Result<Option<Record>, Error> {
        let rows = self.on(&self.texts.load, handle).fetch_all(self.database.pool()).await.map_err(failed)?;
        let Some(first) = rows.first() else { return Ok(None) };
        let number = |column: usize| first.try_get::<i64, _>(column).map_err(failed);
        let (renewed, seen, now_ms) = (time(number(1)?), number(3)? == 1, number(4)?);
        let Some(proofs) = Proofs::parse(&first.try_get::<String, _>(0).map_err(failed)?) else { return Ok(None) };
        let is_known = proof.is_none_or(|proof| proofs.accepts(proof, now_ms.max(0) as u64));
        let standing = match first.try_get::<Option<i64>, _>(2).map_err(failed)? {
            _ if !is_known => Standing::Stale,
            None => Standing::Live,
            Some(until) if now_ms < until => Standing::Frozen,
            Some(_) => Standing::Replaced,
        };
        let mut fields = Fields::default();
        for row in rows.iter().filter(|_| matches!(standing, Standing::Live | Standing::Frozen)) {
            if let Some(field) = row.try_get::<Option<String>, _>(5).map_err(failed)? {
                fields.insert(field, row.try_get(6).map_err(failed)?);
            }
        }
        let next: Option<String> = first.try_get(7).map_err(failed)?;
        let next = next.and_then(|text| Handle::parse(&text));
        let (is_current, is_unconfirmed) = (proof.is_none_or(|proof| proofs.is_current(proof)), proofs.is_unconfirmed());
        Ok(Some(Record { fields, renewed, standing, is_current, seen, is_unconfirmed, next }))
    }

    async fn create(&self, handle: &Handle, proof: &Proof, changes: &Changes, lifetime: Lifetime) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let number = match handle.owner() {
            None => 0,
            Some(owner) => {
                // A second longer than the session can live.
                let number = self.ask(&self.texts.number).bind(owner.text());
                let number = number.bind(millis(lifetime.absolute).saturating_add(1_000));
                number.fetch_one(&mut *tx).await.and_then(|row| row.try_get(0)).map_err(failed)?
            }
        };
        let create = self.on(&self.texts.create, handle).bind(Proofs::new(*proof).text());
        let create = create.bind(millis(lifetime.idle.min(lifetime.absolute)));
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

    async fn save(&self, handle: &Handle, changes: &Changes, renewal: Option<Renewal>) -> Result<Saved, Error> {
        let mut tx = self.begin().await?;
        let locked = match self.lock(&mut tx, handle).await? {
            None => return Ok(Saved::Gone),
            Some(Locked { frozen_ms: Some(_), .. }) => return Ok(Saved::Frozen),
            Some(locked) => locked,
        };
        if let Some(Renewal { idle, grace }) = renewal {
            let Some(mut proofs) = Proofs::parse(&locked.proofs) else { return Ok(Saved::Gone) };
            proofs.confirm(locked.now_ms.max(0) as u64, grace);
            self.on(&self.texts.renew, handle).bind(millis(idle)).bind(proofs.text()).execute(&mut *tx).await.map_err(failed)?;
        }
        self.apply(&mut tx, handle, changes).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Saved::Done)
    }

    async fn swap(&self, handle: &Handle, field: &str, expected: Option<&[u8]>, new: Option<&[u8]>) -> Result<Swapped, Error> {
        let mut tx = self.begin().await?;
        match self.lock(&mut tx, handle).await? {
            None => return Ok(Swapped::Gone),
            Some(Locked { frozen_ms: Some(_), .. }) => return Ok(Swapped::Frozen),
            Some(_) => {}
        }
        let row = self.on(&self.texts.field, handle).bind(field.to_owned()).fetch_optional(&mut *tx).await.map_err(failed)?;
        let found: Option<Vec<u8>> = row.map(|row| row.try_get(0)).transpose().map_err(failed)?;
        if found.as_deref() != expected {
            return Ok(Swapped::Found(found));
        }
        let change = Changes([(field.to_owned(), new.map(<[u8]>::to_vec))].into());
        self.apply(&mut tx, handle, &change).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Swapped::Done)
    }

    async fn add(&self, handle: &Handle, field: &str, by: i64) -> Result<Option<Result<i64, Swapped>>, Error> {
        let mut tx = self.begin().await?;
        // Whoever has the row's lock adds; the others wait for their turn.
        match self.lock(&mut tx, handle).await? {
            None => return Ok(Some(Err(Swapped::Gone))),
            Some(Locked { frozen_ms: Some(_), .. }) => return Ok(Some(Err(Swapped::Frozen))),
            Some(_) => {}
        }
        let row = self.on(&self.texts.field, handle).bind(field.to_owned()).fetch_optional(&mut *tx).await.map_err(failed)?;
        let found: Option<Vec<u8>> = row.map(|row| row.try_get(0)).transpose().map_err(failed)?;
        let Some(number) = found.as_deref().map_or(Some(0), decode_number) else { return Ok(None) };
        let sum = number.saturating_add(by);
        let set = self.on(&self.texts.set, handle).bind(field.to_owned()).bind(encode_number(sum));
        set.execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(Some(Ok(sum)))
    }

    async fn rotate(&self, handle: &Handle, from: &Proof, to: &Proof) -> Result<Saved, Error> {
        let mut tx = self.begin().await?;
        let locked = match self.lock(&mut tx, handle).await? {
            None => return Ok(Saved::Gone),
            Some(Locked { frozen_ms: Some(_), .. }) => return Ok(Saved::Frozen),
            Some(locked) => locked,
        };
        let Some(mut proofs) = Proofs::parse(&locked.proofs) else { return Ok(Saved::Gone) };
        if !proofs.rotate(from, *to, locked.now_ms.max(0) as u64) {
            return Ok(Saved::Stale);
        }
        self.on(&self.texts.rotate, handle).bind(proofs.text()).execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(Saved::Done)
    }

    async fn freeze(&self, handle: &Handle, next: &Handle, grace: Duration) -> Result<Option<Fields>, Error> {
        let mut tx = self.begin().await?;
        let Some(Locked { frozen_ms, now_ms, .. }) = self.lock(&mut tx, handle).await? else { return Ok(None) };
        if frozen_ms.is_some_and(|until| until <= now_ms) {
            return Ok(None);
        }
        let fields = self.held(&mut tx, handle).await?;
        if frozen_ms.is_some() {
            return Ok(Some(fields));
        }
        self.freeze_in(&mut tx, handle, next, grace).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Some(fields))
    }

    async fn succeed(&self, handle: &Handle, next: &Succession<'_>, changes: &Changes) -> Result<Saved, Error> {
        let mut tx = self.begin().await?;
        match self.lock(&mut tx, handle).await? {
            None => return Ok(Saved::Gone),
            Some(Locked { frozen_ms: Some(_), .. }) => return Ok(Saved::Frozen),
            Some(_) => {}
        }
        let made = self.on(&self.texts.succeed, handle).bind(next.handle.text()).bind(Proofs::new(*next.proof).text());
        made.bind(millis(next.idle)).execute(&mut *tx).await.map_err(failed)?;
        self.on(&self.texts.copy_fields, handle).bind(next.handle.text()).execute(&mut *tx).await.map_err(failed)?;
        self.apply(&mut tx, next.handle, changes).await?;
        self.freeze_in(&mut tx, handle, next.handle, next.grace).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Saved::Done)
    }

    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error> {
        let rows = self.ask(&self.texts.owned).bind(owner.text()).fetch_all(self.database.pool()).await.map_err(failed)?;
        let mut found: Vec<(Handle, Record)> = Vec::new();
        for row in &rows {
            let Some(handle) = Handle::parse(&row.try_get::<String, _>(0).map_err(failed)?) else { continue };
            if found.last().is_none_or(|(last, _)| *last != handle) {
                let renewed = time(row.try_get(1).map_err(failed)?);
                let (fields, standing) = (Fields::default(), Standing::Live);
                let record =
                    Record { fields, renewed, standing, is_current: true, seen: true, is_unconfirmed: false, next: None };
                found.push((handle, record));
            }
            if let Some((_, record)) = found.last_mut()
                && let Some(field) = row.try_get::<Option<String>, _>(2).map_err(failed)?
            {
                record.fields.insert(field, row.try_get(3).map_err(failed)?);
            }
        }
        Ok(found)
    }

    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let number = || self.ask(&self.texts.number).bind(owner.text()).bind(0_i64);
        // Before the others are revoked: one that is already stays so. The number is after theirs.
        if let Some(handle) = except {
            let last: i64 = number().fetch_one(&mut *tx).await.and_then(|row| row.try_get(0)).map_err(failed)?;
            let kept = self.on(&self.texts.keep, handle).bind(last + 2).execute(&mut *tx).await.map_err(failed)?;
            if kept.rows_affected() == 0 {
                return Ok(false);
            }
        }
        self.ask(&self.texts.revoke).bind(owner.text()).fetch_optional(&mut *tx).await.map_err(failed)?;
        if except.is_some() {
            number().execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn destroy(&self, handle: &Handle, known_for: Duration) -> Result<Destroyed, Error> {
        let mut tx = self.begin().await?;
        let (last, destroyed) = match self.lock(&mut tx, handle).await? {
            None => (self.on(&self.texts.destroy, handle), Destroyed::Gone),
            Some(Locked { frozen_ms: Some(_), next: None, .. }) => return Ok(Destroyed::Gone),
            Some(Locked { frozen_ms: Some(_), next, .. }) => (self.on(&self.texts.unread, handle), Destroyed::Replaced(next)),
            Some(_) if known_for.is_zero() => (self.on(&self.texts.destroy, handle), Destroyed::Done),
            Some(_) => (self.on(&self.texts.end, handle).bind(millis(known_for)), Destroyed::Done),
        };
        last.execute(&mut *tx).await.map_err(failed)?;
        self.on(&self.texts.drop_fields, handle).execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(destroyed)
    }
}
