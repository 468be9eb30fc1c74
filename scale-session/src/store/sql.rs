//! Sessions in tables of a PostgreSQL, MySQL, MariaDB or SQLite database.
//!
//! | table | holds |
//! | --- | --- |
//! | `scale_sessions` | a row per session: times of renewal, expiry and absolute end, its proofs, and the time until which a replaced session can be read |
//! | `scale_session_fields` | a row per field |
//! | `scale_session_owners` | a row per user with sessions: the last number assigned, and the number up to which sessions are revoked |
//!
//! Each key begins with the application's name. The session's row is the lock: every write locks it
//! first. Times are in ms since 1970, by the database's clock. New sessions occasionally trigger
//! the removal of expired rows, a hundred at a time.

use std::time::{Duration, SystemTime};

use super::{
    Destroyed, Fields, Handle, Lifetime, Owner, PendingChanges, Proof, Proofs, REPLACED_FOR,
    Record, Renewal, Saved, Standing, Store, Succession, Swapped,
};
use crate::error::Error;
use crate::sql::{Connection, Database, Query, Statement, again, statements, text_of};
use crate::value::{decode_number, encode_number};
use async_trait::async_trait;
use scale_sql::{millis, ttl_millis};

/// One in this many new sessions removes expired rows.
const SWEEP: u32 = 50;

/// Condition on a row of `scale_sessions`, called `s`.
macro_rules! lives {
    () => {
        "s.app = $1 and s.handle = $2 and s.expires_ms > {clock} and (s.owner is null \
         or s.number > \
            (select revoked from scale_session_owners o where o.app = s.app and o.owner = s.owner))"
    };
}

statements! {
    pub(crate) Texts;
    load = "select s.proofs, s.renewed_ms, case when s.owner is null or s.number > o.revoked \
        then s.frozen_ms else 0 end, s.seen, {now}, \
        f.field, f.value, s.next from scale_sessions s \
        left join scale_session_owners o on o.app = s.app and o.owner = s.owner \
        left join scale_session_fields f on f.app = s.app and f.handle = s.handle \
        where s.app = $1 and s.handle = $2 and s.expires_ms > {now} and (s.owner is null \
        or s.number > o.revoked or s.frozen_ms is not null)";
    number = "insert into scale_session_owners (app, owner, last, revoked, until_ms) \
        values ($1, $2, 1, 0, {now} + $3) \
        {conflict:app, owner} last = scale_session_owners.last + 1, \
            until_ms = {greatest}(scale_session_owners.until_ms, {new:until_ms})";
    last = "select last from scale_session_owners where app = $1 and owner = $2";
    create = "insert into scale_sessions (app, handle, proofs, renewed_ms, expires_ms, ends_ms, \
        owner, number) \
        values ($1, $2, $3, {now}, {now} + $4, {now} + $5, $6, $7)";
    owned = "select s.handle, s.renewed_ms, f.field, f.value from (select app, handle, renewed_ms \
        from scale_sessions \
            where app = $1 and owner = $2 and expires_ms > {now} and frozen_ms is null \
            and seen = 1 \
            and number > (select revoked from scale_session_owners where app = $1 and owner = $2) \
            order by renewed_ms desc, handle limit 1000) s \
        left join scale_session_fields f on f.app = s.app and f.handle = s.handle \
        and f.field like '.%' \
        order by s.renewed_ms desc, s.handle";
    revoke = "update scale_session_owners set revoked = last + 1, last = last + 1 \
        where app = $1 and owner = $2";
    keep = "update scale_sessions set number = $3 where app = $1 and handle = $2 \
        and expires_ms > {now} and frozen_ms is null and number > \
        (select revoked from scale_session_owners o where o.app = scale_sessions.app \
        and o.owner = scale_sessions.owner)";
    sweep_owners = "delete from scale_session_owners where until_ms <= {now}";
    renew = "update scale_sessions set renewed_ms = {now}, expires_ms = {least}({now} + $3, \
        ends_ms), seen = 1, proofs = $4 \
        where app = $1 and handle = $2";
    lock = concat!("select s.frozen_ms, s.proofs, {clock}, s.ends_ms, s.number, s.next \
        from scale_sessions s where ", lives!(), " {lock}");
    field = "select value from scale_session_fields where app = $1 and handle = $2 and field = $3";
    all_fields = "select field, value from scale_session_fields where app = $1 and handle = $2";
    set = "insert into scale_session_fields (app, handle, field, value) values ($1, $2, $3, $4) \
        {conflict:app, handle, field} value = {new:value}";
    unset = "delete from scale_session_fields where app = $1 and handle = $2 and field = $3";
    rotate = "update scale_sessions set proofs = $3 where app = $1 and handle = $2";
    freeze = "update scale_sessions set frozen_ms = {least}({now} + $3, ends_ms), expires_ms = \
        {now} + $3 + $4, next = $5 \
        where app = $1 and handle = $2";
    succeed = "insert into scale_sessions (app, handle, proofs, renewed_ms, expires_ms, ends_ms, \
        owner, number) \
        select app, $3, $4, {now}, {least}({now} + $5, ends_ms), ends_ms, owner, number \
        from scale_sessions where app = $1 and handle = $2";
    copy_fields = "insert into scale_session_fields (app, handle, field, value) \
        select app, $3, field, value from scale_session_fields where app = $1 and handle = $2";
    remember_owner = "update scale_session_owners set until_ms = {greatest}(until_ms, {now} + $3) \
        where app = $1 and owner = $2";
    unread = "update scale_sessions set frozen_ms = 0 where app = $1 and handle = $2";
    end = "update scale_sessions set frozen_ms = 0, expires_ms = {now} + $3 \
        where app = $1 and handle = $2";
    drop_fields = "delete from scale_session_fields where app = $1 and handle = $2";
    destroy = "delete from scale_sessions where app = $1 and handle = $2";
    expired = "select app, handle from scale_sessions where expires_ms <= {now} limit 100";
}

/// Session store in a PostgreSQL, MySQL, MariaDB or SQLite database.
#[derive(Debug)]
pub struct SqlStore {
    app: String,
    database: Database,
    texts: Texts,
}

fn failed(error: sqlx::Error) -> Error {
    Error::Store(Box::new(error))
}

fn time(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0) as u64)
}

impl SqlStore {
    /// Connects to a database, for the sessions of `app`. The tables in an SQLite file are created
    /// if they are missing. On a server the tables must exist, see [`migrate`](super::migrate).
    ///
    /// # Errors
    /// [`Error::Address`] for any other address; [`Error::Schema`] if the tables are older or newer
    /// than this version needs; [`Error::Store`] if the database does not answer.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        Self::with_pool(crate::sql::connect(url).await?, app).await
    }

    /// Uses the application's own pool; otherwise the same as [`connect`](Self::connect).
    ///
    /// # Errors
    /// The same as those of [`connect`](Self::connect).
    pub async fn with_pool(pool: impl Into<Database>, app: &str) -> Result<Self, Error> {
        let database = crate::sql::open(pool.into(), app, &crate::sql::SESSIONS).await?;
        Ok(Self { app: text_of(app), texts: Texts::new(database.system()), database })
    }

    async fn begin(&self) -> Result<Connection<'static>, Error> {
        self.database.begin().await.map_err(failed)
    }

    /// Assigns an owner's next number.
    async fn number(
        &self,
        tx: &mut Connection<'_>,
        owner: &Owner,
        known_for: i64,
    ) -> Result<i64, Error> {
        let number = self.ask(&self.texts.number).bind(owner.text()).bind(known_for);
        number.execute(&mut *tx).await.map_err(failed)?;
        let last = self.ask(&self.texts.last).bind(owner.text()).fetch_one(tx).await;
        last.and_then(|row| row.get(0)).map_err(failed)
    }

    /// Prepares a statement whose first parameter is the application.
    fn ask(&self, text: &Statement) -> Query {
        text.bind(self.app.clone())
    }

    /// Prepares a statement on one session.
    fn on(&self, text: &Statement, handle: &Handle) -> Query {
        self.ask(text).bind(handle.text())
    }

    async fn apply(
        &self,
        connection: &mut Connection<'_>,
        handle: &Handle,
        changes: &PendingChanges,
    ) -> Result<(), Error> {
        for (field, value) in changes.iter() {
            let change = match value {
                Some(value) => {
                    self.on(&self.texts.set, handle).bind(field.to_owned()).bind(value.to_vec())
                }
                None => self.on(&self.texts.unset, handle).bind(field.to_owned()),
            };
            change.execute(&mut *connection).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Locks the session's row. Returns `None` if the session is gone.
    async fn lock(
        &self,
        connection: &mut Connection<'_>,
        handle: &Handle,
    ) -> Result<Option<Locked>, Error> {
        let row =
            self.on(&self.texts.lock, handle).fetch_optional(connection).await.map_err(failed)?;
        let locked = row.map(|row| {
            let next: Option<String> = row.get(5)?;
            let next = next.and_then(|text| Handle::parse(&text));
            Ok(Locked { frozen_ms: row.get(0)?, proofs: row.get(1)?, now_ms: row.get(2)?, next })
        });
        locked.transpose().map_err(failed)
    }

    async fn freeze_in(
        &self,
        connection: &mut Connection<'_>,
        handle: &Handle,
        next: &Handle,
        grace: Duration,
    ) -> Result<(), Error> {
        let grace = millis(grace);
        let freeze = self
            .on(&self.texts.freeze, handle)
            .bind(grace)
            .bind(ttl_millis(REPLACED_FOR))
            .bind(next.text());
        freeze.execute(&mut *connection).await.map_err(failed)?;
        if let Some(owner) = handle.owner() {
            // The owner's revocations must stay known for as long as a session can be loaded.
            let known = self.ask(&self.texts.remember_owner).bind(owner.text());
            let known =
                known.bind(grace.saturating_add(ttl_millis(REPLACED_FOR)).saturating_add(1_000));
            known.execute(connection).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn held(
        &self,
        connection: &mut Connection<'_>,
        handle: &Handle,
    ) -> Result<Fields, Error> {
        let rows =
            self.on(&self.texts.all_fields, handle).fetch_all(connection).await.map_err(failed)?;
        rows.iter()
            .map(|row| Ok((row.get(0)?, row.get(1)?)))
            .collect::<Result<_, _>>()
            .map_err(failed)
    }

    /// Removes expired rows, of all applications.
    async fn sweep(&self) -> Result<(), Error> {
        self.texts.sweep_owners.query().execute(&self.database).await.map_err(failed)?;
        let rows = self.texts.expired.query().fetch_all(&self.database).await.map_err(failed)?;
        for row in rows {
            let (app, handle): (String, String) =
                row.get(0).and_then(|app| Ok((app, row.get(1)?))).map_err(failed)?;
            let mut tx = self.begin().await?;
            for text in [&self.texts.destroy, &self.texts.drop_fields] {
                text.bind(app.clone())
                    .bind(handle.clone())
                    .execute(&mut tx)
                    .await
                    .map_err(failed)?;
            }
            tx.commit().await.map_err(failed)?;
        }
        Ok(())
    }
}

/// Locked row of a session.
struct Locked {
    frozen_ms: Option<i64>,
    proofs: String,
    now_ms: i64,
    next: Option<Handle>,
}

#[async_trait]
impl Store for SqlStore {
    async fn load(&self, handle: &Handle, proof: Option<&Proof>) -> Result<Option<Record>, Error> {
        let rows =
            self.on(&self.texts.load, handle).fetch_all(&self.database).await.map_err(failed)?;
        let Some(first) = rows.first() else { return Ok(None) };
        let number = |column: usize| first.get::<i64>(column).map_err(failed);
        let (renewed, seen, now_ms) = (time(number(1)?), number(3)? == 1, number(4)?);
        let Some(proofs) = Proofs::parse(&first.get::<String>(0).map_err(failed)?) else {
            return Ok(None);
        };
        let is_known = proof.is_none_or(|proof| proofs.accepts(proof, now_ms.max(0) as u64));
        let standing = match first.get::<Option<i64>>(2).map_err(failed)? {
            _ if !is_known => Standing::Stale,
            None => Standing::Live,
            Some(until) if now_ms < until => Standing::Frozen,
            Some(_) => Standing::Replaced,
        };
        let mut fields = Fields::default();
        for row in rows.iter().filter(|_| matches!(standing, Standing::Live | Standing::Frozen)) {
            if let Some(field) = row.get::<Option<String>>(5).map_err(failed)? {
                fields.insert(field, row.get(6).map_err(failed)?);
            }
        }
        let next: Option<String> = first.get(7).map_err(failed)?;
        let next = next.and_then(|text| Handle::parse(&text));
        let (is_current, is_unconfirmed) =
            (proof.is_none_or(|proof| proofs.is_current(proof)), proofs.is_unconfirmed());
        Ok(Some(Record { fields, renewed, standing, is_current, seen, is_unconfirmed, next }))
    }

    async fn create(
        &self,
        handle: &Handle,
        proof: &Proof,
        changes: &PendingChanges,
        lifetime: Lifetime,
    ) -> Result<(), Error> {
        again(|| self.create_once(handle, proof, changes, lifetime)).await
    }

    async fn save(
        &self,
        handle: &Handle,
        changes: &PendingChanges,
        renewal: Option<Renewal>,
    ) -> Result<Saved, Error> {
        again(|| self.save_once(handle, changes, renewal)).await
    }

    async fn swap(
        &self,
        handle: &Handle,
        field: &str,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swapped, Error> {
        again(|| self.swap_once(handle, field, expected, new)).await
    }

    async fn add(
        &self,
        handle: &Handle,
        field: &str,
        by: i64,
    ) -> Result<Option<Result<i64, Swapped>>, Error> {
        again(|| self.add_once(handle, field, by)).await
    }

    async fn rotate(&self, handle: &Handle, from: &Proof, to: &Proof) -> Result<Saved, Error> {
        again(|| self.rotate_once(handle, from, to)).await
    }

    async fn freeze(
        &self,
        handle: &Handle,
        next: &Handle,
        grace: Duration,
    ) -> Result<Option<Fields>, Error> {
        again(|| self.freeze_once(handle, next, grace)).await
    }

    async fn succeed(
        &self,
        handle: &Handle,
        next: &Succession<'_>,
        changes: &PendingChanges,
    ) -> Result<Saved, Error> {
        again(|| self.succeed_once(handle, next, changes)).await
    }

    async fn owned(&self, owner: &Owner) -> Result<Vec<(Handle, Record)>, Error> {
        let rows = self
            .ask(&self.texts.owned)
            .bind(owner.text())
            .fetch_all(&self.database)
            .await
            .map_err(failed)?;
        let mut found: Vec<(Handle, Record)> = Vec::new();
        for row in &rows {
            let Some(handle) = Handle::parse(&row.get::<String>(0).map_err(failed)?) else {
                continue;
            };
            if found.last().is_none_or(|(last, _)| *last != handle) {
                let renewed = time(row.get(1).map_err(failed)?);
                let (fields, standing) = (Fields::default(), Standing::Live);
                let record = Record {
                    fields,
                    renewed,
                    standing,
                    is_current: true,
                    seen: true,
                    is_unconfirmed: false,
                    next: None,
                };
                found.push((handle, record));
            }
            if let Some((_, record)) = found.last_mut()
                && let Some(field) = row.get::<Option<String>>(2).map_err(failed)?
            {
                record.fields.insert(field, row.get(3).map_err(failed)?);
            }
        }
        Ok(found)
    }

    async fn revoke(&self, owner: &Owner, except: Option<&Handle>) -> Result<bool, Error> {
        again(|| self.revoke_once(owner, except)).await
    }

    async fn destroy(&self, handle: &Handle, known_for: Duration) -> Result<Destroyed, Error> {
        again(|| self.destroy_once(handle, known_for)).await
    }
}

/// Write operations, each in one transaction.
impl SqlStore {
    async fn create_once(
        &self,
        handle: &Handle,
        proof: &Proof,
        changes: &PendingChanges,
        lifetime: Lifetime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let number = match handle.owner() {
            None => 0,
            Some(owner) => {
                // The record outlives the session by a second.
                self.number(&mut tx, owner, ttl_millis(lifetime.absolute).saturating_add(1_000))
                    .await?
            }
        };
        let create = self.on(&self.texts.create, handle).bind(Proofs::new(*proof).text());
        let create = create.bind(ttl_millis(lifetime.idle.min(lifetime.absolute)));
        let create = create
            .bind(ttl_millis(lifetime.absolute))
            .bind(handle.owner().map(Owner::text))
            .bind(number);
        create.execute(&mut tx).await.map_err(failed)?;
        self.apply(&mut tx, handle, changes).await?;
        tx.commit().await.map_err(failed)?;
        if fastrand::u32(..SWEEP) == 0
            && let Err(error) = self.sweep().await
        {
            tracing::warn!(%error, "expired sessions were not removed: the next sweep tries again");
        }
        Ok(())
    }

    async fn save_once(
        &self,
        handle: &Handle,
        changes: &PendingChanges,
        renewal: Option<Renewal>,
    ) -> Result<Saved, Error> {
        let mut tx = self.begin().await?;
        let locked = match self.lock(&mut tx, handle).await? {
            None => return Ok(Saved::Gone),
            Some(Locked { frozen_ms: Some(_), .. }) => return Ok(Saved::Frozen),
            Some(locked) => locked,
        };
        if let Some(Renewal { idle, grace }) = renewal {
            let Some(mut proofs) = Proofs::parse(&locked.proofs) else { return Ok(Saved::Gone) };
            proofs.confirm(locked.now_ms.max(0) as u64, grace);
            self.on(&self.texts.renew, handle)
                .bind(ttl_millis(idle))
                .bind(proofs.text())
                .execute(&mut tx)
                .await
                .map_err(failed)?;
        }
        self.apply(&mut tx, handle, changes).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Saved::Done)
    }

    async fn swap_once(
        &self,
        handle: &Handle,
        field: &str,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swapped, Error> {
        let mut tx = self.begin().await?;
        match self.lock(&mut tx, handle).await? {
            None => return Ok(Swapped::Gone),
            Some(Locked { frozen_ms: Some(_), .. }) => return Ok(Swapped::Frozen),
            Some(_) => {}
        }
        let row = self
            .on(&self.texts.field, handle)
            .bind(field.to_owned())
            .fetch_optional(&mut tx)
            .await
            .map_err(failed)?;
        let found: Option<Vec<u8>> = row.map(|row| row.get(0)).transpose().map_err(failed)?;
        if found.as_deref() != expected {
            return Ok(Swapped::Found(found));
        }
        let change = PendingChanges([(field.to_owned(), new.map(<[u8]>::to_vec))].into());
        self.apply(&mut tx, handle, &change).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Swapped::Done)
    }

    async fn add_once(
        &self,
        handle: &Handle,
        field: &str,
        by: i64,
    ) -> Result<Option<Result<i64, Swapped>>, Error> {
        let mut tx = self.begin().await?;
        // The row lock serialises concurrent additions.
        match self.lock(&mut tx, handle).await? {
            None => return Ok(Some(Err(Swapped::Gone))),
            Some(Locked { frozen_ms: Some(_), .. }) => return Ok(Some(Err(Swapped::Frozen))),
            Some(_) => {}
        }
        let row = self
            .on(&self.texts.field, handle)
            .bind(field.to_owned())
            .fetch_optional(&mut tx)
            .await
            .map_err(failed)?;
        let found: Option<Vec<u8>> = row.map(|row| row.get(0)).transpose().map_err(failed)?;
        let Some(number) = found.as_deref().map_or(Some(0), decode_number) else { return Ok(None) };
        let sum = number.saturating_add(by);
        let set = self.on(&self.texts.set, handle).bind(field.to_owned()).bind(encode_number(sum));
        set.execute(&mut tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(Some(Ok(sum)))
    }

    async fn rotate_once(&self, handle: &Handle, from: &Proof, to: &Proof) -> Result<Saved, Error> {
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
        self.on(&self.texts.rotate, handle)
            .bind(proofs.text())
            .execute(&mut tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(Saved::Done)
    }

    async fn freeze_once(
        &self,
        handle: &Handle,
        next: &Handle,
        grace: Duration,
    ) -> Result<Option<Fields>, Error> {
        let mut tx = self.begin().await?;
        let Some(Locked { frozen_ms, now_ms, .. }) = self.lock(&mut tx, handle).await? else {
            return Ok(None);
        };
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

    async fn succeed_once(
        &self,
        handle: &Handle,
        next: &Succession<'_>,
        changes: &PendingChanges,
    ) -> Result<Saved, Error> {
        let mut tx = self.begin().await?;
        match self.lock(&mut tx, handle).await? {
            None => return Ok(Saved::Gone),
            Some(Locked { frozen_ms: Some(_), .. }) => return Ok(Saved::Frozen),
            Some(_) => {}
        }
        let made = self
            .on(&self.texts.succeed, handle)
            .bind(next.handle.text())
            .bind(Proofs::new(*next.proof).text());
        made.bind(ttl_millis(next.idle)).execute(&mut tx).await.map_err(failed)?;
        self.on(&self.texts.copy_fields, handle)
            .bind(next.handle.text())
            .execute(&mut tx)
            .await
            .map_err(failed)?;
        self.apply(&mut tx, next.handle, changes).await?;
        self.freeze_in(&mut tx, handle, next.handle, next.grace).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Saved::Done)
    }

    async fn revoke_once(&self, owner: &Owner, except: Option<&Handle>) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        // Runs before the others are revoked: a session that is already revoked stays revoked. The
        // kept session gets a number above theirs.
        if let Some(handle) = except {
            let last = self.number(&mut tx, owner, 0).await?;
            let kept = self
                .on(&self.texts.keep, handle)
                .bind(last + 2)
                .execute(&mut tx)
                .await
                .map_err(failed)?;
            if kept == 0 {
                return Ok(false);
            }
        }
        self.ask(&self.texts.revoke).bind(owner.text()).execute(&mut tx).await.map_err(failed)?;
        if except.is_some() {
            self.number(&mut tx, owner, 0).await?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn destroy_once(&self, handle: &Handle, known_for: Duration) -> Result<Destroyed, Error> {
        let mut tx = self.begin().await?;
        let (last, destroyed) = match self.lock(&mut tx, handle).await? {
            None => (self.on(&self.texts.destroy, handle), Destroyed::Gone),
            Some(Locked { frozen_ms: Some(_), next: None, .. }) => return Ok(Destroyed::Gone),
            Some(Locked { frozen_ms: Some(_), next, .. }) => {
                (self.on(&self.texts.unread, handle), Destroyed::Replaced(next))
            }
            Some(_) if known_for.is_zero() => {
                (self.on(&self.texts.destroy, handle), Destroyed::Done)
            }
            Some(_) => {
                (self.on(&self.texts.end, handle).bind(ttl_millis(known_for)), Destroyed::Done)
            }
        };
        last.execute(&mut tx).await.map_err(failed)?;
        self.on(&self.texts.drop_fields, handle).execute(&mut tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(destroyed)
    }
}
