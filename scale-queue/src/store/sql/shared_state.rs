//! Shared state in tables.

use std::time::Duration;

use async_trait::async_trait;

use super::{BATCH, SqlStore, again, failed, key_text, millis};
use crate::error::Error;
use crate::store::{BatchStore, End, MAX_REGISTERED, NewBatch, Notes, Registry, Tally};

#[async_trait]
impl BatchStore for SqlStore {
    async fn open_batch(&self, id: &str, batch: NewBatch<'_>) -> Result<(), Error> {
        self.sweep().await?;
        let open = self
            .of(&self.texts.batches.open, id)
            .bind(i64::from(batch.total))
            .bind(i64::from(batch.lenient));
        let open = open.bind(batch.plan.to_vec()).bind(millis(batch.life));
        open.execute(&self.database).await.map(drop).map_err(failed)
    }

    async fn mark(&self, id: &str, number: u32, end: End) -> Result<Option<Tally>, Error> {
        again(|| self.mark_once(id, number, end)).await
    }

    async fn grow_batch(&self, id: &str, name: &str, by: u32) -> Result<Option<(u32, u32)>, Error> {
        again(|| self.grow_once(id, name, by)).await
    }

    async fn ends(&self, id: &str, below: u32) -> Result<Vec<(u32, End)>, Error> {
        let ends = self.of(&self.texts.batches.ends, id).bind(i64::from(below));
        let rows = ends.fetch_all(&self.database).await.map_err(failed)?;
        let end = |row: &scale_sql::Row| {
            let is_dead = row.get::<i64>(1)? == 1;
            Ok((row.get::<i64>(0)? as u32, if is_dead { End::Dead } else { End::Done }))
        };
        rows.iter().map(end).collect::<Result<_, _>>().map_err(failed)
    }

    async fn batch(&self, id: &str) -> Result<Option<(Tally, Vec<u8>)>, Error> {
        let row = self
            .of(&self.texts.batches.get, id)
            .fetch_optional(&self.database)
            .await
            .map_err(failed)?;
        row.map(|row| Ok((tally(&row)?, row.get(6).map_err(failed)?))).transpose()
    }

    async fn conclude_batch(&self, id: &str, life: Duration) -> Result<(), Error> {
        let conclude = || async {
            let mut tx = self.begin().await?;
            self.of(&self.texts.batches.conclude, id)
                .bind(millis(life))
                .execute(&mut tx)
                .await
                .map_err(failed)?;
            self.of(&self.texts.batches.end_drop, id).execute(&mut tx).await.map_err(failed)?;
            tx.commit().await.map_err(failed)
        };
        again(conclude).await
    }

    async fn cancel_batch(&self, id: &str, by_death: bool) -> Result<bool, Error> {
        let cause = if by_death { 2_i64 } else { 1 };
        let cancel = self.of(&self.texts.batches.cancel, id).bind(cause);
        Ok(cancel.execute(&self.database).await.map_err(failed)? > 0)
    }

    async fn is_cancelled(&self, id: &str, number: u32) -> Result<bool, Error> {
        let asked = self.of(&self.texts.batches.is_cancelled, id).bind(i64::from(number));
        let row = asked.fetch_one(&self.database).await.map_err(failed)?;
        Ok(row.get::<i64>(0).map_err(failed)? > 0)
    }
}

#[async_trait]
impl Registry for SqlStore {
    async fn register(
        &self,
        kind: &str,
        name: &str,
        about: &[u8],
        life: Duration,
    ) -> Result<(), Error> {
        let forget = self.of(&self.texts.registry.forget, kind).bind(MAX_REGISTERED as i64 - 1);
        forget.execute(&self.database).await.map_err(failed)?;
        let announce =
            self.of(&self.texts.registry.announce, kind).bind(name.to_owned()).bind(about.to_vec());
        announce.bind(millis(life)).execute(&self.database).await.map(drop).map_err(failed)
    }

    async fn deregister(&self, kind: &str, name: &str) -> Result<(), Error> {
        let withdraw = self.of(&self.texts.registry.withdraw, kind).bind(name.to_owned());
        withdraw.execute(&self.database).await.map(drop).map_err(failed)
    }

    async fn registered(
        &self,
        kind: &str,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let present =
            self.of(&self.texts.registry.list, kind).bind(limit as i64).bind(offset as i64);
        let rows = present.fetch_all(&self.database).await.map_err(failed)?;
        rows.iter()
            .map(|row| Ok((row.get(0)?, row.get(1)?)))
            .collect::<Result<_, _>>()
            .map_err(failed)
    }
}

#[async_trait]
impl Notes for SqlStore {
    async fn put_note(&self, key: &str, value: &[u8], life: Duration) -> Result<(), Error> {
        if fastrand::u8(..64) == 0 {
            self.sweep().await?;
        }
        let note = self
            .of(&self.texts.registry.note, &key_text(key))
            .bind(value.to_vec())
            .bind(millis(life));
        note.execute(&self.database).await.map(drop).map_err(failed)
    }

    async fn forget_notes(&self, keys: &[String]) -> Result<(), Error> {
        for keys in keys.chunks(BATCH) {
            let keys: Vec<_> = keys.iter().map(|key| key_text(key)).collect();
            let forget = self.texts.registry.forget_notes.bind(self.app_text.clone()).bind(keys);
            forget.execute(&self.database).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn read_note(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let row = self
            .of(&self.texts.registry.noted, &key_text(key))
            .fetch_optional(&self.database)
            .await
            .map_err(failed)?;
        row.map(|row| row.get(0)).transpose().map_err(failed)
    }
}

impl SqlStore {
    async fn mark_once(&self, id: &str, number: u32, end: End) -> Result<Option<Tally>, Error> {
        let texts = &self.texts.batches;
        let mut tx = self.begin().await?;
        // One transaction at a time: the row is locked until this one commits.
        if self.of(&texts.touch, id).execute(&mut tx).await.map_err(failed)? == 0 {
            return Ok(None);
        }
        let row = self.of(&texts.state, id).fetch_one(&mut tx).await.map_err(failed)?;
        let field = |n: usize| row.get::<i64>(n).map_err(failed);
        // 1: by a request; 2: by a death.
        let (mut tally, mut cancelled, lenient) = (tally(&row)?, field(3)?, field(6)? == 1);
        let known = self.of(&texts.end_known, id).bind(i64::from(number));
        let known = known.fetch_optional(&mut tx).await.map_err(failed)?;
        let known: Option<i64> = known.map(|row| row.get(0)).transpose().map_err(failed)?;
        let dead = i64::from(end == End::Dead);
        // Only a dead job may change: it may be done later.
        if !tally.followed
            && number < tally.total
            && (known.is_none() || known == Some(1) && end == End::Done)
        {
            match end {
                End::Done | End::Skipped => tally.done += 1,
                End::Dead => tally.dead += 1,
            }
            tally.dead -= u32::from(known.is_some());
            if end == End::Dead && !lenient && cancelled == 0 {
                cancelled = 2;
            }
            (tally.cancelled, tally.by_death) = (cancelled > 0, cancelled == 2);
            tally.skipped |= end == End::Skipped && cancelled == 2;
            let put = self.of(&texts.end_put, id).bind(i64::from(number)).bind(dead);
            put.execute(&mut tx).await.map_err(failed)?;
            let save =
                self.of(&texts.save, id).bind(i64::from(tally.done)).bind(i64::from(tally.dead));
            save.bind(cancelled)
                .bind(i64::from(tally.skipped))
                .execute(&mut tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(Some(tally))
    }

    async fn grow_once(&self, id: &str, name: &str, by: u32) -> Result<Option<(u32, u32)>, Error> {
        let texts = &self.texts.batches;
        let key = key_text(&format!("grown:{id}:{name}"));
        let mut tx = self.begin().await?;
        // One transaction at a time: the row is locked until this one commits.
        if self.of(&texts.touch, id).execute(&mut tx).await.map_err(failed)? == 0 {
            return Ok(None);
        }
        let row = self.of(&texts.state, id).fetch_one(&mut tx).await.map_err(failed)?;
        let (tally, life_ms) = (tally(&row)?, row.get::<i64>(7).map_err(failed)?);
        if tally.followed {
            return Ok(None);
        }
        let known = self.of(&self.texts.registry.noted, &key).fetch_optional(&mut tx).await;
        if let Some(row) = known.map_err(failed)? {
            let added = row.get::<Vec<u8>>(0).map_err(failed)?;
            return Ok(Some(rmp_serde::from_slice(&added).map_err(Error::store)?));
        }
        let added = (tally.total, by);
        let note = self.of(&self.texts.registry.note, &key);
        let note = note.bind(rmp_serde::to_vec(&added).map_err(Error::store)?);
        note.bind(life_ms).execute(&mut tx).await.map_err(failed)?;
        let grow = self.of(&texts.grow, id).bind(i64::from(by));
        grow.execute(&mut tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(Some(added))
    }

    /// Removes expired rows of all applications.
    async fn sweep(&self) -> Result<(), Error> {
        let texts = self.texts;
        let late = texts.batches.late.query().fetch_all(&self.database).await.map_err(failed)?;
        for row in late {
            let (app, id): (String, String) =
                row.get(0).and_then(|app| Ok((app, row.get(1)?))).map_err(failed)?;
            let mut tx = self.begin().await?;
            let of =
                |statement: &scale_sql::Statement| statement.bind(app.clone()).bind(id.clone());
            if of(&texts.batches.sweep).execute(&mut tx).await.map_err(failed)? > 0 {
                of(&texts.batches.end_drop).execute(&mut tx).await.map_err(failed)?;
            }
            tx.commit().await.map_err(failed)?;
        }
        let sweeps = [
            &texts.limits.sweep_rates, &texts.limits.sweep_permits, &texts.registry.sweep_notes,
            &texts.registry.sweep_once,
        ];
        for sweep in sweeps {
            sweep.query().execute(&self.database).await.map_err(failed)?;
        }
        Ok(())
    }
}

fn tally(row: &scale_sql::Row) -> Result<Tally, Error> {
    let field = |n: usize| row.get::<i64>(n).map_err(failed);
    Ok(Tally {
        total: field(0)? as u32,
        done: field(1)? as u32,
        dead: field(2)? as u32,
        cancelled: field(3)? > 0,
        by_death: field(3)? == 2,
        followed: field(4)? == 1,
        skipped: field(5)? == 1,
    })
}
