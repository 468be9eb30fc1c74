//! Limits in tables.

use std::time::Duration;

use async_trait::async_trait;
use scale_sql::{Query, Statement, System};

use super::{SqlStore, again, failed, key_text, millis};
use crate::error::Error;
use crate::limit::line_of;
use crate::store::{
    Admission, LINE_RETRY, LimitStore, PassOn, PassedOn, PermitRequest, RateRequest, WAKES,
};

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

#[async_trait]
impl LimitStore for SqlStore {
    async fn acquire(&self, request: PermitRequest<'_>) -> Result<Admission, Error> {
        let PermitRequest { key, most, .. } = request;
        // If another process takes the chosen permit first, try again as long as one is free.
        let mut retry_in = LINE_RETRY;
        for _ in 0..5 {
            if again(|| self.acquire_one(&request)).await? {
                return Ok(Admission::Now);
            }
            let row = self
                .on(&self.texts.limits.taken, key)
                .fetch_one(&self.database)
                .await
                .map_err(failed)?;
            let (taken, first): (i64, i64) =
                row.get(0).and_then(|taken| Ok((taken, row.get(1)?))).map_err(failed)?;
            if taken >= i64::from(most) {
                retry_in = Duration::from_millis(first.max(0) as u64 + 1).min(LINE_RETRY);
                break;
            }
        }
        Ok(Admission::Later(retry_in))
    }

    async fn renew(&self, key: &str, holder: &str, life: Duration) -> Result<bool, Error> {
        let renew = self
            .ask(&self.texts.limits.renew)
            .bind(key_text(key))
            .bind(key_text(holder))
            .bind(millis(life));
        Ok(renew.execute(&self.database).await.map_err(failed)? > 0)
    }

    async fn release(&self, key: &str, holder: &str, order: &[String]) -> Result<(), Error> {
        let (text, line) = (key_text(key), key_text(&line_of(key)));
        if self.system() == System::Postgres {
            for attempt in 0.. {
                let holder = if attempt == 0 { key_text(holder) } else { String::new() };
                let release =
                    self.ask(&self.texts.limits.release_and_wake).bind(text.clone()).bind(holder);
                let release =
                    release.bind(line.clone()).bind(order.to_vec()).bind(self.payload(""));
                let Some(row) = release.fetch_optional(&self.database).await.map_err(failed)?
                else {
                    return Ok(());
                };
                let queue: String = row.get(0).map_err(failed)?;
                let number = |n: usize| row.get::<i64>(n).map_err(failed);
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
        let give_back = self.ask(&self.texts.limits.give_back).bind(text).bind(key_text(holder));
        give_back.execute(&self.database).await.map_err(failed)?;
        let queues = self.ask(&self.texts.lines.line_queues).bind(line.clone());
        let rows = queues.fetch_all(&self.database).await.map_err(failed)?;
        let mut queues: Vec<String> =
            rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>().map_err(failed)?;
        queues.sort_by_key(|queue| {
            order.iter().position(|known| known == queue).unwrap_or(usize::MAX)
        });
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
        if self.system() == System::Postgres {
            let pass =
                self.ask(&self.texts.limits.pass_on).bind(text).bind(line).bind(queues.to_vec());
            let pass = pass
                .bind(worker.to_string())
                .bind(millis(lease))
                .bind(key_text(holder))
                .bind(key_text(next));
            let row = pass
                .bind(millis(life))
                .bind(i64::from(most))
                .fetch_optional(&self.database)
                .await
                .map_err(failed)?;
            let Some(row) = row else { return Ok(None) };
            let number = |n: usize| row.get::<i64>(n).map_err(failed);
            let (queue, has_permit): (String, bool) = (row.get(0).map_err(failed)?, number(2)? > 0);
            if number(4)? < i64::from(most) {
                // More permits are free. If this fails, the end of the next job wakes the line.
                let _ = self.wake_line(&queue, &key_text(&line_of(key))).await;
            }
            return Ok(Some(PassedOn { queue, bytes: row.get(1).map_err(failed)?, has_permit }));
        }
        let known = self.ask(&self.texts.lines.line_queues).bind(line.clone());
        let rows = known.fetch_all(&self.database).await.map_err(failed)?;
        let known: Vec<String> =
            rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>().map_err(failed)?;
        for queue in queues.iter().filter(|queue| known.contains(queue)) {
            if let Some(passed) = again(|| self.pass_on_in(queue, &pass)).await? {
                return Ok(Some(passed));
            }
        }
        Ok(None)
    }

    async fn wake_if_free(&self, key: &str, most: u32, queue: &str) -> Result<(), Error> {
        let taken = self.ask(&self.texts.limits.taken).bind(key_text(key));
        let taken: i64 =
            taken.fetch_one(&self.database).await.and_then(|row| row.get(0)).map_err(failed)?;
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
        // A job of an earlier queue that is about to be tried goes first.
        let admit = self.on(&self.texts.limits.admit, key).bind(spacing).bind(slack);
        let admit = admit.bind(key_text(&line_of(key))).bind(before.to_vec()).bind(spacing / 2_000);
        if again(|| self.admit_one(key, admit.clone())).await? {
            return Ok(Admission::Now);
        }
        let wait = self.ask(&self.texts.limits.rate_wait).bind(key_text(key));
        let row = wait.fetch_optional(&self.database).await.map_err(failed)?;
        let wait: i64 = row.map(|row| row.get(0)).transpose().map_err(failed)?.unwrap_or(0);
        // If there is room, a job of another queue goes first. A wait of less than a millisecond is
        // rounded up.
        let wait = if wait <= slack { spacing } else { wait - slack };
        Ok(Admission::Later(Duration::from_micros(wait.max(1_000) as u64)))
    }

    async fn refund(&self, key: &str, spacing: Duration) -> Result<(), Error> {
        let refund = self.ask(&self.texts.limits.refund).bind(key_text(key)).bind(micros(spacing));
        refund.execute(&self.database).await.map(drop).map_err(failed)
    }
}

impl SqlStore {
    /// Binds the application and the limit's key.
    fn on(&self, statement: &Statement, key: &str) -> Query {
        self.ask(statement).bind(key_text(key))
    }

    async fn acquire_one(&self, request: &PermitRequest<'_>) -> Result<bool, Error> {
        let PermitRequest { key, holder, most, life, .. } = request;
        let acquire = self.on(&self.texts.limits.acquire, key).bind(key_text(holder));
        let acquire = acquire.bind(millis(*life)).bind(i64::from(*most));
        if self.system() != System::MySql {
            return Ok(acquire.execute(&self.database).await.map_err(failed)? > 0);
        }
        let mut tx = self.begin().await?;
        let lock = format!("permits/{}", lock_of(&self.app_text, key));
        self.texts.limits.lock_limit.bind(lock).execute(&mut tx).await.map_err(failed)?;
        self.on(&self.texts.limits.drop_late_permits, key)
            .execute(&mut tx)
            .await
            .map_err(failed)?;
        let acquired = acquire.execute(&mut tx).await.map_err(failed)? > 0;
        tx.commit().await.map_err(failed)?;
        Ok(acquired)
    }

    async fn admit_one(&self, key: &str, admit: Query) -> Result<bool, Error> {
        if self.system() == System::MySql {
            self.on(&self.texts.limits.know_rate, key)
                .execute(&self.database)
                .await
                .map_err(failed)?;
        }
        Ok(admit.execute(&self.database).await.map_err(failed)? > 0)
    }

    /// Leases the next job in line of a queue, and passes the permit on to it.
    async fn pass_on_in(&self, queue: &str, pass: &PassOn<'_>) -> Result<Option<PassedOn>, Error> {
        let PassOn { key, most, holder, next, life, worker, lease, .. } = pass;
        let line = key_text(&line_of(key));
        let mut tx = self.begin().await?;
        let taken = self.on(&self.texts.limits.taken, key).fetch_one(&mut tx).await;
        let taken: i64 = taken.and_then(|row| row.get(0)).map_err(failed)?;
        if taken > i64::from(*most) || self.is_paused(&mut tx, queue).await? {
            return Ok(None);
        }
        let first = self.of(&self.texts.lines.take_first, queue).bind(line.clone());
        let Some(row) = first.fetch_optional(&mut tx).await.map_err(failed)? else {
            return Ok(None);
        };
        let (id, bytes): (String, Vec<u8>) =
            row.get(0).and_then(|id| Ok((id, row.get(1)?))).map_err(failed)?;
        self.texts
            .lines
            .take
            .bind(id)
            .bind(worker.to_string())
            .execute(&mut tx)
            .await
            .map_err(failed)?;
        let touch = self
            .of(&self.texts.limits.touch_lease, queue)
            .bind(worker.to_string())
            .bind(millis(*lease));
        touch.execute(&mut tx).await.map_err(failed)?;
        let pass = self.on(&self.texts.limits.pass_permit, key).bind(key_text(holder));
        let pass = pass.bind(key_text(next)).bind(millis(*life));
        let has_permit = pass.execute(&mut tx).await.map_err(failed)? > 0;
        tx.commit().await.map_err(failed)?;
        if taken < i64::from(*most) {
            // More permits are free. If this fails, the end of the next job wakes the line.
            let _ = self.wake_line(queue, &line).await;
        }
        Ok(Some(PassedOn { queue: queue.to_owned(), bytes, has_permit }))
    }
}

/// Returns one of 256 rows to lock for a limit; a row for each key would be too many.
fn lock_of(app: &str, key: &str) -> u8 {
    app.bytes().chain(key.bytes()).fold(7_u8, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte))
}
