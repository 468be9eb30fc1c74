//! Lines: jobs that wait for a limit, or for a worker that can handle them.

use scale_sql::{Connection, Statement};

use super::fetch::Claimed;
use super::{LIST, SqlStore, again, failed, key_of, key_text, millis, unhex};
use crate::error::Error;
use crate::store::{Fetched, LINE_RETRY, Request, WorkerId};

/// Result of tending lines.
#[derive(Default)]
struct Tended {
    claimed: Claimed,
    acknowledged: usize,
    overdue: Vec<Vec<u8>>,
    unhandled: Vec<String>,
    /// Lines from which jobs were taken, and which may be empty now.
    emptied: Vec<String>,
    next_retry: Option<i64>,
    has_unbegun: bool,
    is_paused: bool,
}

impl SqlStore {
    /// Promotes the first jobs of lines that are due, leases jobs that wait for a handler of this
    /// worker, and puts jobs in line whose line is not empty.
    pub(super) async fn tend_lines(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
        fetched: &mut Fetched,
    ) -> Result<(), Error> {
        let tended = again(|| self.tend(queue, worker, request)).await?;
        fetched.lines = tended.unhandled.iter().map(|line| key_of(line)).collect();
        if tended.is_paused {
            return Ok(());
        }
        fetched.acknowledged += tended.acknowledged;
        fetched.overdue.extend(tended.overdue);
        tended.claimed.hand_over(fetched);
        if tended.has_unbegun {
            self.unbegun.lock().insert((queue.to_owned(), worker.clone()));
        }
        // `outlook` reads when the next line is due.
        let now_ms = self.clock.now_ms();
        self.hint(queue, |hints| {
            hints.unhandled = tended.unhandled;
            (hints.blocked, hints.tended_ms) = (false, now_ms);
            hints.retry_ms = Some(tended.next_retry.unwrap_or(now_ms + millis(LINE_RETRY)));
        });
        for line in tended.emptied {
            self.close_if_empty(queue, &line).await?;
        }
        Ok(())
    }

    async fn tend(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
    ) -> Result<Tended, Error> {
        let texts = &self.texts.lines;
        let mut tended = Tended::default();
        let mut tx = self.begin().await?;
        if self.is_paused(&mut tx, queue).await? {
            return Ok(Tended { is_paused: true, ..tended });
        }
        tended.unhandled =
            texts_of(self.of(&texts.unhandled_lines, queue).fetch_all(&mut tx).await)?;
        let mut ids: Vec<String> = Vec::new();
        let mine: Vec<_> = request
            .lines
            .iter()
            .map(|line| key_text(line))
            .filter(|line| tended.unhandled.contains(line))
            .collect();
        for line in mine {
            let room = request.max.min(LIST) - ids.len();
            if room == 0 {
                break;
            }
            let first = self.of(&texts.first_in_line, queue).bind(line.clone()).bind(room as i64);
            let found = texts_of(first.fetch_all(&mut tx).await)?;
            if found.len() < room {
                tended.emptied.push(line);
            }
            ids.extend(found);
        }
        let due = self.of(&texts.due_lines, queue).fetch_all(&mut tx).await.map_err(failed)?;
        for row in &due {
            let line: String = row.get(0).map_err(failed)?;
            let number = |n: usize| row.get::<i64>(n).map_err(failed);
            let (retry_ms, pace_us, now) = (number(1)?, number(2)?, number(4)?);
            let next = if number(3)? == 1 {
                // Of a handler line only the jobs that have waited for too long.
                let overdue = self
                    .of(&texts.overdue, queue)
                    .bind(line.clone())
                    .bind(millis(request.unhandled_for));
                let overdue = texts_of(overdue.fetch_all(&mut tx).await)?;
                let is_all = overdue.len() < 50;
                for id in overdue.into_iter().take(request.max.saturating_sub(ids.len())) {
                    tended.overdue.push(unhex(&id));
                    ids.push(id);
                }
                if is_all { now + millis(request.unhandled_for).min(60_000) } else { now }
            } else {
                let wanted =
                    if pace_us > 0 { ((now - retry_ms) * 1_000 / pace_us + 1).min(100) } else { 1 };
                let promoted = self.promote(&mut tx, queue, &line, wanted).await?;
                match (pace_us, promoted) {
                    (0, _) => now + millis(LINE_RETRY),
                    // Empty so far: its next jobs need not wait for the rate.
                    (_, 0) => now,
                    _ => retry_ms + promoted * pace_us / 1_000,
                }
            };
            let retry = self.of(&texts.retry_line, queue).bind(line.clone()).bind(next);
            retry.execute(&mut tx).await.map_err(failed)?;
            tended.emptied.push(line);
            tended.next_retry = Some(tended.next_retry.map_or(next, |known| known.min(next)));
        }
        if !ids.is_empty() {
            // An overdue job may also be the first of its line.
            let mut seen = std::collections::HashSet::new();
            ids.retain(|id| seen.insert(id.clone()));
            let unbegun = ids.get(request.begins..).unwrap_or_default().join(",");
            tended.claimed = self.claim(&mut tx, queue, worker, ids).await?;
            tended.acknowledged = self.remove_done(&mut tx, queue, worker, request.done).await?;
            tended.has_unbegun = !unbegun.is_empty();
            let lease = request.lease;
            self.lease(&mut tx, queue, worker, lease, tended.acknowledged, unbegun, String::new())
                .await?;
        }
        let lines = texts_of(self.of(&texts.limit_lines, queue).fetch_all(&mut tx).await)?;
        if !lines.is_empty() {
            let locked = self.of(&texts.lock_lines, queue).bind(lines).fetch_all(&mut tx).await;
            for line in texts_of(locked)? {
                self.queue_up(&mut tx, queue, &line, &mut tended).await?;
            }
        }
        tx.commit().await.map_err(failed)?;
        Ok(tended)
    }

    /// Puts jobs in line that were pushed after others of their group.
    async fn queue_up(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        line: &str,
        tended: &mut Tended,
    ) -> Result<(), Error> {
        let Some(group) = line.strip_prefix("limit:") else { return Ok(()) };
        let of_group = self.of(&self.texts.lines.of_group, queue).bind(group);
        let ids = texts_of(of_group.fetch_all(&mut *tx).await)?;
        if ids.is_empty() {
            return Ok(());
        }
        self.texts
            .lines
            .put_in_line
            .bind(line)
            .bind(ids)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        // A permit may have come free while these jobs were in no line, so the first one is tried.
        let ask = self.of(&self.texts.lines.try_line, queue).bind(line);
        ask.execute(tx).await.map_err(failed)?;
        tended.next_retry = Some(0);
        Ok(())
    }

    /// Promotes the first jobs of a line. Returns their number.
    async fn promote(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        line: &str,
        count: i64,
    ) -> Result<i64, Error> {
        let first = self.of(&self.texts.lines.first_in_line, queue).bind(line).bind(count);
        let ids = texts_of(first.fetch_all(&mut *tx).await)?;
        if ids.is_empty() {
            return Ok(0);
        }
        Ok(self.texts.lines.promote.bind(ids).execute(tx).await.map_err(failed)? as i64)
    }

    /// Removes a line without jobs. A transaction that puts a job in line locks the line's row
    /// first, so no job is missed.
    pub(super) async fn close_if_empty(&self, queue: &str, line: &str) -> Result<(), Error> {
        let of = |statement: &Statement| self.of(statement, queue).bind(line);
        let texts = &self.texts.lines;
        let is_used = |row: scale_sql::Row| row.get::<i64>(0).map(|n| n > 0).map_err(failed);
        if is_used(of(&texts.line_is_used).fetch_one(&self.database).await.map_err(failed)?)? {
            return Ok(());
        }
        let close = || async {
            let mut tx = self.begin().await?;
            // A row that is not there is not locked either: another process may create it, with
            // its first job, until this transaction ends.
            if of(&texts.lock_line).fetch_optional(&mut tx).await.map_err(failed)?.is_none() {
                return Ok(());
            }
            if !is_used(of(&texts.line_is_used).fetch_one(&mut tx).await.map_err(failed)?)? {
                of(&texts.close_line).execute(&mut tx).await.map_err(failed)?;
            }
            tx.commit().await.map_err(failed)
        };
        again(close).await
    }

    /// Promotes the first job in line. Returns `false` if there is none.
    pub(super) async fn wake_line(&self, queue: &str, line: &str) -> Result<bool, Error> {
        let wake = || async {
            let mut tx = self.begin().await?;
            let promoted = self.promote(&mut tx, queue, line, 1).await? > 0;
            if promoted {
                self.notify(&mut tx, self.payload(queue)).await?;
            }
            tx.commit().await.map_err(failed)?;
            Ok(promoted)
        };
        let promoted = again(wake).await?;
        if promoted {
            self.idle.wake(queue, 1);
        }
        self.close_if_empty(queue, line).await?;
        Ok(promoted)
    }

    /// Creates the missing rows of lines that have jobs, which would otherwise wait forever; a
    /// fault may have left them.
    pub(super) async fn reopen_lost_lines(&self, queue: &str) -> Result<(), Error> {
        let lines =
            texts_of(self.of(&self.texts.lines.lost_lines, queue).fetch_all(&self.database).await)?;
        for line in lines {
            let unhandled = i64::from(!line.starts_with("limit:"));
            let open = self
                .of(&self.texts.lines.open_line, queue)
                .bind(line)
                .bind(0_i64)
                .bind(0_i64)
                .bind(unhandled);
            open.execute(&self.database).await.map_err(failed)?;
            self.idle.wake(queue, 1);
        }
        Ok(())
    }
}

/// Reads the first column of each row.
fn texts_of(rows: Result<Vec<scale_sql::Row>, sqlx::Error>) -> Result<Vec<String>, Error> {
    rows.and_then(|rows| rows.iter().map(|row| row.get(0)).collect()).map_err(failed)
}
