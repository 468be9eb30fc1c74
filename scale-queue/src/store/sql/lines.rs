//! Lines: jobs that wait for a limit, or for a worker that can handle them.

use sqlx::Row;

use super::{SqlStore, Statement, failed, hex_list, key_of, key_text, millis, unhex};
use crate::error::Error;
use crate::store::LINE_RETRY;
use crate::store::{Fetched, Request, Store, WorkerId};

impl SqlStore {
    /// Lets those first in line be taken whose time has come, leases what waits for a handler that this worker has, and puts jobs in line
    /// whose line is not empty.
    pub(super) async fn tend_lines(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
        fetched: &mut Fetched,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        if self.is_paused(&mut tx, queue).await? {
            fetched.lines.clear();
            return Ok(());
        }
        let rows = self.of(&self.texts.unhandled_lines, queue).fetch_all(&mut *tx).await.map_err(failed)?;
        let unhandled: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)?;
        fetched.lines = unhandled.iter().map(|line| key_of(line)).collect();
        let (mut emptied, mut next_retry) = (Vec::new(), None::<i64>);
        let mut ids: Vec<String> = Vec::new();
        let mine: Vec<_> = request.lines.iter().map(|line| key_text(line)).filter(|line| unhandled.contains(line)).collect();
        if !mine.is_empty() {
            let first = self.of(&self.texts.first_of_lines, queue).bind(mine.join(",")).bind(request.max as i64);
            let rows = first.fetch_all(&mut *tx).await.map_err(failed)?;
            for row in &rows {
                ids.push(row.try_get(0).map_err(failed)?);
            }
            if rows.len() < request.max {
                emptied.extend(mine);
            }
        }
        let due = self.of(&self.texts.due_lines, queue).fetch_all(&mut *tx).await.map_err(failed)?;
        for row in &due {
            let line: String = row.try_get(0).map_err(failed)?;
            let number = |n: usize| row.try_get::<i64, _>(n).map_err(failed);
            let (retry_ms, pace_us, now) = (number(1)?, number(2)?, number(4)?);
            let next = if number(3)? == 1 {
                // Of a handler line only those that are too old for it.
                let overdue = self.of(&self.texts.overdue, queue).bind(line.clone()).bind(millis(request.unhandled_for));
                let rows = overdue.fetch_all(&mut *tx).await.map_err(failed)?;
                for row in rows.iter().take(request.max.saturating_sub(ids.len())) {
                    let id: String = row.try_get(0).map_err(failed)?;
                    fetched.overdue.push(unhex(&id));
                    ids.push(id);
                }
                if rows.len() < 50 { now + millis(request.unhandled_for).min(60_000) } else { now }
            } else {
                let wanted = if pace_us > 0 { ((now - retry_ms) * 1_000 / pace_us + 1).min(100) } else { 1 };
                let promote = self.of(&self.texts.promote, queue).bind(line.clone()).bind(wanted);
                let promoted = promote.execute(&mut *tx).await.map_err(failed)?.rows_affected() as i64;
                if pace_us > 0 && promoted > 0 { retry_ms + promoted * pace_us / 1_000 } else { now + millis(LINE_RETRY) }
            };
            let retry = self.of(&self.texts.retry_line, queue).bind(line.clone()).bind(next);
            retry.execute(&mut *tx).await.map_err(failed)?;
            emptied.push(line);
            next_retry = Some(next_retry.map_or(next, |known| known.min(next)));
        }
        if !ids.is_empty() {
            self.claim(&mut tx, queue, worker, &ids.join(","), fetched).await?;
            let done = if request.done.is_empty() {
                0
            } else {
                let done = self.of(&self.texts.done, queue).bind(worker.to_string()).bind(hex_list(request.done));
                done.execute(&mut *tx).await.map_err(failed)?.rows_affected() as usize
            };
            fetched.acknowledged = done;
            let unbegun = ids.get(request.begins..).unwrap_or_default().join(",");
            if !unbegun.is_empty() {
                self.unbegun.lock().insert((queue.to_owned(), worker.clone()));
            }
            self.lease(&mut tx, queue, worker, request, done, unbegun, String::new()).await?;
        }
        let rows = self.of(&self.texts.limit_lines, queue).fetch_all(&mut *tx).await.map_err(failed)?;
        for row in &rows {
            let line: String = row.try_get(0).map_err(failed)?;
            if let Some(group) = line.strip_prefix("limit:") {
                let sweep = self.of(&self.texts.sweep_line, queue).bind(line.clone()).bind(group.to_owned());
                if sweep.execute(&mut *tx).await.map_err(failed)?.rows_affected() > 0 {
                    // A permit may have come free while these were in no line: the first asks.
                    let ask = self.of(&self.texts.try_line, queue).bind(line.clone());
                    ask.execute(&mut *tx).await.map_err(failed)?;
                    next_retry = Some(0);
                }
            }
        }
        tx.commit().await.map_err(failed)?;
        // When the next one is due, the outlook says.
        let now_ms = self.now_ms() as i64;
        self.hint(queue, |hints| {
            hints.unhandled = unhandled;
            (hints.blocked, hints.tended_ms) = (false, now_ms);
            hints.retry_ms = Some(next_retry.unwrap_or(now_ms + millis(LINE_RETRY)));
        });
        for line in emptied {
            self.close_if_empty(queue, &line).await?;
        }
        Ok(())
    }

    /// A line without jobs goes. Whoever puts a job in line locks the line's row first, so none is overlooked.
    pub(super) async fn close_if_empty(&self, queue: &str, line: &str) -> Result<(), Error> {
        let of = |statement: &Statement| self.of(statement, queue).bind(line.to_owned());
        let is_used = |row: sqlx::any::AnyRow| row.try_get::<i64, _>(0).map(|n| n > 0).map_err(failed);
        if is_used(of(&self.texts.line_is_used).fetch_one(&self.pool).await.map_err(failed)?)? {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        of(&self.texts.lock_line).fetch_optional(&mut *tx).await.map_err(failed)?;
        if !is_used(of(&self.texts.line_is_used).fetch_one(&mut *tx).await.map_err(failed)?)? {
            of(&self.texts.close_line).execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    /// Moves the first in line to where it is taken next. `false`: there is no such line.
    pub(super) async fn wake_line(&self, queue: &str, line: &str) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let promote = self.of(&self.texts.promote, queue).bind(line.to_owned()).bind(1_i64);
        let promoted = promote.execute(&mut *tx).await.map_err(failed)?.rows_affected() > 0;
        if promoted {
            self.notify(&mut tx, self.payload(queue)).await?;
        }
        tx.commit().await.map_err(failed)?;
        if promoted {
            self.idle.wake(queue, 1);
        }
        self.close_if_empty(queue, line).await?;
        Ok(promoted)
    }

    /// Jobs in a line that has no row would wait for ever: what a fault has left behind.
    pub(super) async fn reopen_lost_lines(&self, queue: &str) -> Result<(), Error> {
        let rows = self.of(&self.texts.lost_lines, queue).fetch_all(&self.pool).await.map_err(failed)?;
        for row in &rows {
            let line: String = row.try_get(0).map_err(failed)?;
            let unhandled = i64::from(!line.starts_with("limit:"));
            let open = self.of(&self.texts.open_line, queue).bind(line).bind(0_i64).bind(0_i64).bind(unhandled);
            open.execute(&self.pool).await.map_err(failed)?;
        }
        Ok(())
    }
}
