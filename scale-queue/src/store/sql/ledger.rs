//! Shared state in tables.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

use super::{SqlStore, failed, millis};
use crate::error::Error;
use crate::store::{End, Ledger, MOST_PRESENT, NewBatch, Tally};

#[async_trait]
impl Ledger for SqlStore {
    async fn open_batch(&self, id: &str, batch: NewBatch<'_>) -> Result<(), Error> {
        self.sweep().await?;
        let open = self.texts.batch_open.query().bind(id.to_owned()).bind(i64::from(batch.total)).bind(i64::from(batch.lenient));
        let open = open.bind(batch.plan.to_vec()).bind(millis(batch.life));
        open.execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn mark(&self, id: &str, number: u32, end: End) -> Result<Option<Tally>, Error> {
        let mut tx = self.begin().await?;
        // One at a time: the row is locked until we commit.
        let touch = self.texts.batch_touch.query().bind(id.to_owned());
        let Some(row) = touch.fetch_optional(&mut *tx).await.map_err(failed)? else { return Ok(None) };
        let field = |n: usize| row.try_get::<i64, _>(n).map_err(failed);
        let (mut tally, lenient) = (tally(&row)?, field(4)? == 1);
        let known = self.texts.end_known.query().bind(id.to_owned()).bind(i64::from(number));
        let known = known.fetch_optional(&mut *tx).await.map_err(failed)?;
        let known: Option<i64> = known.map(|row| row.try_get(0)).transpose().map_err(failed)?;
        let dead = i64::from(end == End::Dead);
        if number < tally.total && known != Some(0) && known != Some(dead) {
            match end {
                End::Done => tally.done += 1,
                End::Dead => tally.dead += 1,
            }
            tally.dead -= u32::from(known.is_some());
            tally.cancelled |= end == End::Dead && !lenient;
            let put = self.texts.end_put.query().bind(id.to_owned()).bind(i64::from(number)).bind(dead);
            put.execute(&mut *tx).await.map_err(failed)?;
            let save = self.texts.batch_save.query().bind(id.to_owned()).bind(i64::from(tally.done)).bind(i64::from(tally.dead));
            save.bind(i64::from(tally.cancelled)).execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(Some(tally))
    }

    async fn batch(&self, id: &str) -> Result<Option<(Tally, Vec<u8>)>, Error> {
        let row = self.texts.batch.query().bind(id.to_owned()).fetch_optional(&self.pool).await.map_err(failed)?;
        row.map(|row| Ok((tally(&row)?, row.try_get(4).map_err(failed)?))).transpose()
    }

    async fn cancel_batch(&self, id: &str) -> Result<bool, Error> {
        let cancel = self.texts.batch_cancel.query().bind(id.to_owned());
        Ok(cancel.execute(&self.pool).await.map_err(failed)?.rows_affected() > 0)
    }

    async fn take_turn(&self, key: &str, spacing: Duration, burst: u32) -> Result<Duration, Error> {
        // Microseconds, so that a thousand turns a second are a thousand.
        let spacing_us = i64::try_from(spacing.as_micros()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
        let turn = self.texts.turn.query().bind(key.to_owned()).bind(spacing_us);
        let row = turn.fetch_one(&self.pool).await.map_err(failed)?;
        let (after, now): (i64, i64) = row.try_get(0).and_then(|after| Ok((after, row.try_get(1)?))).map_err(failed)?;
        let wait = after - spacing_us - now - spacing_us.saturating_mul(i64::from(burst.saturating_sub(1)));
        Ok(Duration::from_micros(wait.max(0) as u64))
    }

    async fn hold(&self, key: &str, holder: &str, most: u32, life: Duration) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        // A row of its own for each key, to be locked: two that count at once would both find room.
        let lock = self.texts.hold_lock.query().bind(key.to_owned());
        lock.execute(&mut *tx).await.map_err(failed)?;
        let late = self.texts.hold_late.query().bind(key.to_owned());
        late.execute(&mut *tx).await.map_err(failed)?;
        let others = self.texts.hold_others.query().bind(key.to_owned()).bind(holder.to_owned());
        let others: i64 = others.fetch_one(&mut *tx).await.and_then(|row| row.try_get(0)).map_err(failed)?;
        let free = others < i64::from(most);
        if free {
            let put = self.texts.hold_put.query().bind(key.to_owned()).bind(holder.to_owned()).bind(millis(life));
            put.execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(free)
    }

    async fn release(&self, key: &str, holder: &str) -> Result<(), Error> {
        let release = self.texts.hold_drop.query().bind(key.to_owned()).bind(holder.to_owned());
        release.execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn announce(&self, kind: &str, name: &str, about: &[u8], life: Duration) -> Result<(), Error> {
        let forget = self.texts.forget_present.query().bind(kind.to_owned()).bind(MOST_PRESENT as i64 - 1);
        forget.execute(&self.pool).await.map_err(failed)?;
        let announce = self.texts.announce.query().bind(kind.to_owned()).bind(name.to_owned()).bind(about.to_vec());
        announce.bind(millis(life)).execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn withdraw(&self, kind: &str, name: &str) -> Result<(), Error> {
        let withdraw = self.texts.withdraw.query().bind(kind.to_owned()).bind(name.to_owned());
        withdraw.execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn present(&self, kind: &str, offset: usize, limit: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let present = self.texts.present.query().bind(kind.to_owned()).bind(limit as i64).bind(offset as i64);
        let rows = present.fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)
    }

    async fn note(&self, key: &str, value: &[u8], life: Duration) -> Result<(), Error> {
        if fastrand::u8(..64) == 0 {
            self.sweep().await?;
        }
        let note = self.texts.note.query().bind(key.to_owned()).bind(value.to_vec()).bind(millis(life));
        note.execute(&self.pool).await.map(drop).map_err(failed)
    }

    async fn noted(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let row = self.texts.noted.query().bind(key.to_owned()).fetch_optional(&self.pool).await.map_err(failed)?;
        row.map(|row| row.try_get(0)).transpose().map_err(failed)
    }
}

impl SqlStore {
    /// What has expired goes.
    async fn sweep(&self) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        for sweep in [&self.texts.sweep_batches, &self.texts.sweep_ends, &self.texts.sweep_turns, &self.texts.sweep_notes] {
            sweep.query().execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }
}

fn tally(row: &sqlx::any::AnyRow) -> Result<Tally, Error> {
    let field = |n: usize| row.try_get::<i64, _>(n).map_err(failed);
    Ok(Tally { total: field(0)? as u32, done: field(1)? as u32, dead: field(2)? as u32, cancelled: field(3)? == 1 })
}
