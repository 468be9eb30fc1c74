//! Shared state in tables.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

use super::{SqlStore, failed, key_text, millis};
use crate::error::Error;
use crate::store::{End, Ledger, MOST_PRESENT, NewBatch, Tally};

#[async_trait]
impl Ledger for SqlStore {
    async fn open_batch(&self, id: &str, batch: NewBatch<'_>) -> Result<(), Error> {
        self.sweep().await?;
        let open = self.of(&self.texts.batch_open, id).bind(i64::from(batch.total)).bind(i64::from(batch.lenient));
        let open = open.bind(batch.plan.to_vec()).bind(millis(batch.life));
        open.execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn mark(&self, id: &str, number: u32, end: End) -> Result<Option<Tally>, Error> {
        let mut tx = self.begin().await?;
        // One at a time: the row is locked until we commit.
        let touch = self.of(&self.texts.batch_touch, id);
        let Some(row) = touch.fetch_optional(&mut *tx).await.map_err(failed)? else { return Ok(None) };
        let field = |n: usize| row.try_get::<i64, _>(n).map_err(failed);
        // 1: somebody asked for it; 2: by a death.
        let (mut tally, mut cancelled, lenient) = (tally(&row)?, field(3)?, field(6)? == 1);
        let known = self.of(&self.texts.end_known, id).bind(i64::from(number));
        let known = known.fetch_optional(&mut *tx).await.map_err(failed)?;
        let known: Option<i64> = known.map(|row| row.try_get(0)).transpose().map_err(failed)?;
        let dead = i64::from(end == End::Dead);
        // A dead one may be done after all, and nothing else.
        if !tally.followed && number < tally.total && (known.is_none() || known == Some(1) && end == End::Done) {
            match end {
                End::Done | End::Skipped => tally.done += 1,
                End::Dead => tally.dead += 1,
            }
            tally.dead -= u32::from(known.is_some());
            if end == End::Dead && !lenient && cancelled == 0 {
                cancelled = 2;
            }
            tally.cancelled = cancelled > 0;
            tally.skipped |= end == End::Skipped && cancelled == 2;
            let put = self.of(&self.texts.end_put, id).bind(i64::from(number)).bind(dead);
            put.execute(&mut *tx).await.map_err(failed)?;
            let save = self.of(&self.texts.batch_save, id).bind(i64::from(tally.done)).bind(i64::from(tally.dead));
            save.bind(cancelled).bind(i64::from(tally.skipped)).execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(Some(tally))
    }

    async fn batch(&self, id: &str) -> Result<Option<(Tally, Vec<u8>)>, Error> {
        let row = self.of(&self.texts.batch, id).fetch_optional(&self.pool).await.map_err(failed)?;
        row.map(|row| Ok((tally(&row)?, row.try_get(6).map_err(failed)?))).transpose()
    }

    async fn conclude_batch(&self, id: &str, life: Duration) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        self.of(&self.texts.batch_conclude, id).bind(millis(life)).execute(&mut *tx).await.map_err(failed)?;
        self.of(&self.texts.end_drop, id).execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn cancel_batch(&self, id: &str) -> Result<bool, Error> {
        let cancel = self.of(&self.texts.batch_cancel, id);
        Ok(cancel.execute(&self.pool).await.map_err(failed)?.rows_affected() > 0)
    }

    async fn is_cancelled(&self, id: &str, number: u32) -> Result<bool, Error> {
        let asked = self.of(&self.texts.batch_is_cancelled, id).bind(i64::from(number));
        let row = asked.fetch_one(&self.pool).await.map_err(failed)?;
        Ok(row.try_get::<i64, _>(0).map_err(failed)? > 0)
    }

    async fn announce(&self, kind: &str, name: &str, about: &[u8], life: Duration) -> Result<(), Error> {
        let forget = self.of(&self.texts.forget_present, kind).bind(MOST_PRESENT as i64 - 1);
        forget.execute(&self.pool).await.map_err(failed)?;
        let announce = self.of(&self.texts.announce, kind).bind(name.to_owned()).bind(about.to_vec());
        announce.bind(millis(life)).execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn withdraw(&self, kind: &str, name: &str) -> Result<(), Error> {
        let withdraw = self.of(&self.texts.withdraw, kind).bind(name.to_owned());
        withdraw.execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn present(&self, kind: &str, offset: usize, limit: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let present = self.of(&self.texts.present, kind).bind(limit as i64).bind(offset as i64);
        let rows = present.fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)
    }

    async fn note(&self, key: &str, value: &[u8], life: Duration) -> Result<(), Error> {
        if fastrand::u8(..64) == 0 {
            self.sweep().await?;
        }
        let note = self.of(&self.texts.note, &key_text(key)).bind(value.to_vec()).bind(millis(life));
        note.execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn noted(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let row = self.of(&self.texts.noted, &key_text(key)).fetch_optional(&self.pool).await.map_err(failed)?;
        row.map(|row| row.try_get(0)).transpose().map_err(failed)
    }
}

impl SqlStore {
    /// What has expired goes, of every application.
    async fn sweep(&self) -> Result<(), Error> {
        let texts = &self.texts;
        let late = texts.late_batches.query().fetch_all(&self.pool).await.map_err(failed)?;
        for row in late {
            let (app, id): (String, String) = row.try_get(0).and_then(|app| Ok((app, row.try_get(1)?))).map_err(failed)?;
            let mut tx = self.begin().await?;
            let gone = texts.sweep_batch.query().bind(app.clone()).bind(id.clone()).execute(&mut *tx).await.map_err(failed)?;
            if gone.rows_affected() > 0 {
                texts.end_drop.query().bind(app).bind(id).execute(&mut *tx).await.map_err(failed)?;
            }
            tx.commit().await.map_err(failed)?;
        }
        for sweep in [&texts.sweep_rates, &texts.sweep_permits, &texts.sweep_notes, &texts.sweep_once] {
            sweep.query().execute(&self.pool).await.map_err(failed)?;
        }
        Ok(())
    }
}

fn tally(row: &sqlx::any::AnyRow) -> Result<Tally, Error> {
    let field = |n: usize| row.try_get::<i64, _>(n).map_err(failed);
    Ok(Tally {
        total: field(0)? as u32,
        done: field(1)? as u32,
        dead: field(2)? as u32,
        cancelled: field(3)? > 0,
        followed: field(4)? == 1,
        skipped: field(5)? == 1,
    })
}
