//! Limits in tables.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

#[cfg(feature = "postgres")]
use super::System;
use super::{SqlStore, failed, key_text, millis};
use crate::error::Error;
use crate::limit::line_of;
use crate::store::{Admission, LINE_RETRY, LimitStore, PassOn, PassedOn, PermitRequest, RateRequest, WAKES};

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

#[async_trait]
impl LimitStore for SqlStore {
    async fn acquire(&self, request: PermitRequest<'_>) -> Result<Admission, Error> {
        let PermitRequest { key, holder, most, life, .. } = request;
        // Who loses a permit to another that chose the same looks again, as long as one is free.
        let mut retry_in = LINE_RETRY;
        for _ in 0..5 {
            let acquire = self.texts.acquire.query().bind(self.app_text.clone()).bind(key_text(key)).bind(key_text(holder));
            let acquire = acquire.bind(millis(life)).bind(i64::from(most));
            if acquire.execute(&self.pool).await.map_err(failed)?.rows_affected() > 0 {
                return Ok(Admission::Now);
            }
            let taken = self.texts.taken.query().bind(self.app_text.clone()).bind(key_text(key));
            let row = taken.fetch_one(&self.pool).await.map_err(failed)?;
            let (taken, first): (i64, i64) = row.try_get(0).and_then(|taken| Ok((taken, row.try_get(1)?))).map_err(failed)?;
            if taken >= i64::from(most) {
                retry_in = Duration::from_millis(first.max(0) as u64 + 1).min(LINE_RETRY);
                break;
            }
        }
        Ok(Admission::Later(retry_in))
    }

    async fn renew(&self, key: &str, holder: &str, life: Duration) -> Result<bool, Error> {
        let renew =
            self.texts.renew.query().bind(self.app_text.clone()).bind(key_text(key)).bind(key_text(holder)).bind(millis(life));
        Ok(renew.execute(&self.pool).await.map_err(failed)?.rows_affected() > 0)
    }

    async fn release(&self, key: &str, holder: &str, order: &[String]) -> Result<(), Error> {
        let (text, line) = (key_text(key), key_text(&line_of(key)));
        #[cfg(feature = "postgres")]
        if self.system == System::Postgres {
            for attempt in 0.. {
                let holder = if attempt == 0 { key_text(holder) } else { String::new() };
                let release = self.texts.release_and_wake.query().bind(self.app_text.clone()).bind(text.clone()).bind(holder);
                let release = release.bind(line.clone()).bind(order.join(",")).bind(self.payload(""));
                let Some(row) = release.fetch_optional(&self.pool).await.map_err(failed)? else { return Ok(()) };
                let queue: String = row.try_get(0).map_err(failed)?;
                let number = |n: usize| row.try_get::<i64, _>(n).map_err(failed);
                let (promoted, there) = (number(1)?, number(2)?);
                if promoted > 0 {
                    self.idle.wake(&queue, 1);
                }
                if there <= promoted {
                    self.close_if_empty(&queue, &line).await?;
                }
                if promoted > 0 || attempt == 10 {
                    return Ok(());
                }
            }
        }
        let give_back = self.texts.give_back.query().bind(self.app_text.clone()).bind(text).bind(key_text(holder));
        give_back.execute(&self.pool).await.map_err(failed)?;
        let queues = self.texts.line_queues.query().bind(self.app_text.clone()).bind(line.clone());
        let rows = queues.fetch_all(&self.pool).await.map_err(failed)?;
        let mut queues: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)?;
        queues.sort_by_key(|queue| order.iter().position(|known| known == queue).unwrap_or(usize::MAX));
        for queue in queues {
            if self.wake_line(&queue, &line).await? {
                break;
            }
        }
        Ok(())
    }

    async fn pass_on_permit(&self, pass: PassOn<'_>) -> Result<Option<PassedOn>, Error> {
        let PassOn { key, most, holder, next, life, queues, worker, lease } = pass;
        let (text, line) = (key_text(key), key_text(&line_of(key)));
        #[cfg(feature = "postgres")]
        if self.system == System::Postgres {
            let pass = self.texts.pass_on.query().bind(self.app_text.clone()).bind(text).bind(line).bind(queues.join(","));
            let pass = pass.bind(worker.to_string()).bind(millis(lease)).bind(key_text(holder)).bind(key_text(next));
            let row = pass.bind(millis(life)).bind(i64::from(most)).fetch_optional(&self.pool).await.map_err(failed)?;
            let Some(row) = row else { return Ok(None) };
            let number = |n: usize| row.try_get::<i64, _>(n).map_err(failed);
            let (queue, has_permit): (String, bool) = (row.try_get(0).map_err(failed)?, number(2)? > 0);
            if number(4)? < i64::from(most) {
                // Others are free as well. Should this fail, the next one that ends sees it.
                let _ = self.wake_line(&queue, &key_text(&line_of(key))).await;
            }
            return Ok(Some(PassedOn { queue, bytes: row.try_get(1).map_err(failed)?, has_permit }));
        }
        let known = self.texts.line_queues.query().bind(self.app_text.clone()).bind(line.clone());
        let rows = known.fetch_all(&self.pool).await.map_err(failed)?;
        let known: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)?;
        for queue in queues.iter().filter(|queue| known.contains(queue)) {
            let mut tx = self.begin().await?;
            let taken = self.texts.taken.query().bind(self.app_text.clone()).bind(text.clone()).fetch_one(&mut *tx).await;
            let taken: i64 = taken.and_then(|row| row.try_get(0)).map_err(failed)?;
            if taken > i64::from(most) || self.is_paused(&mut tx, queue).await? {
                continue;
            }
            let take = self.of(&self.texts.take_first, queue).bind(line.clone()).bind(worker.to_string());
            let Some(row) = take.fetch_optional(&mut *tx).await.map_err(failed)? else { continue };
            let bytes: Vec<u8> = row.try_get(0).map_err(failed)?;
            let touch = self.of(&self.texts.touch_lease, queue).bind(worker.to_string()).bind(millis(lease));
            touch.execute(&mut *tx).await.map_err(failed)?;
            let pass = self.texts.pass_permit.query().bind(self.app_text.clone()).bind(text).bind(key_text(holder));
            let pass = pass.bind(key_text(next)).bind(millis(life));
            let has_permit = pass.execute(&mut *tx).await.map_err(failed)?.rows_affected() > 0;
            tx.commit().await.map_err(failed)?;
            if taken < i64::from(most) {
                let _ = self.wake_line(queue, &line).await;
            }
            return Ok(Some(PassedOn { queue: queue.clone(), bytes, has_permit }));
        }
        Ok(None)
    }

    async fn wake_if_free(&self, key: &str, most: u32, queue: &str) -> Result<(), Error> {
        let taken = self.texts.taken.query().bind(self.app_text.clone()).bind(key_text(key));
        let taken: i64 = taken.fetch_one(&self.pool).await.and_then(|row| row.try_get(0)).map_err(failed)?;
        for _ in 0..(i64::from(most) - taken).clamp(0, i64::from(WAKES)) {
            if !self.wake_line(queue, &key_text(&line_of(key))).await? {
                break;
            }
        }
        Ok(())
    }

    async fn admit(&self, request: RateRequest<'_>) -> Result<Admission, Error> {
        let RateRequest { key, spacing, burst, before, .. } = request;
        let spacing = micros(spacing);
        let slack = spacing.saturating_mul(i64::from(burst.saturating_sub(1)));
        let admit = self.texts.admit.query().bind(self.app_text.clone()).bind(key_text(key)).bind(spacing).bind(slack);
        let admit = admit.bind(key_text(&line_of(key))).bind(before.join(","));
        // Who is about to ask for the same place goes first.
        let admit = admit.bind(spacing / 2_000);
        if admit.execute(&self.pool).await.map_err(failed)?.rows_affected() > 0 {
            return Ok(Admission::Now);
        }
        let wait = self.texts.rate_wait.query().bind(self.app_text.clone()).bind(key_text(key));
        let row = wait.fetch_optional(&self.pool).await.map_err(failed)?;
        let wait: i64 = row.map(|row| row.try_get(0)).transpose().map_err(failed)?.unwrap_or(0);
        // There is room, and somebody else goes first; else less than a millisecond is one, not none.
        let wait = if wait <= slack { spacing } else { wait - slack };
        Ok(Admission::Later(Duration::from_micros(wait.max(1_000) as u64)))
    }

    async fn refund(&self, key: &str, spacing: Duration) -> Result<(), Error> {
        let refund = self.texts.refund.query().bind(self.app_text.clone()).bind(key_text(key)).bind(micros(spacing));
        refund.execute(&self.pool).await.map(drop).map_err(failed)
    }
}
