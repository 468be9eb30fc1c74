//! Fetches: a worker's acknowledgements and requests for jobs.

use std::time::Duration;

use scale_sql::{Connection, Row, Statement, System};

use super::{
    LIST, READ_AGAIN_MS, SWEEP_AFTER_MS, SqlStore, WHOLE_LOOK_MS, again, failed, hex, hexes,
    key_of, millis, unhex,
};
use crate::error::Error;
use crate::format::tag_of;
use crate::store::{Fetched, Request, Store, Trial, WorkerId, within};

/// Minimum delay before looking again when due jobs were locked by other workers.
const BEHIND_MS: i64 = 5;

/// Jobs that were just leased.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    pub(super) jobs: Vec<Vec<u8>>,
    /// Tags of those jobs that are cancelled.
    pub(super) cancelled: Vec<Vec<u8>>,
}

impl Claimed {
    pub(super) fn hand_over(self, fetched: &mut Fetched) {
        fetched.jobs.extend(self.jobs);
        fetched.cancelled.extend(self.cancelled);
    }
}

/// Result of the common fetch statement, besides jobs.
#[derive(Default)]
struct Found {
    acknowledged: usize,
    expired: String,
    /// `None`: not read this time.
    hints: Option<Existing>,
    unbegun: bool,
}

/// Existence of lines, of suspects, and of jobs with a priority.
#[derive(Clone, Copy)]
struct Existing {
    lines: bool,
    suspects: bool,
    ranked: bool,
}

/// Priority of the jobs that a look takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rank {
    /// Normal priority, if no job of high priority is due.
    OnlyNormal,
    High,
    Normal,
    Low,
}

impl Rank {
    const EACH: [Self; 3] = [Self::High, Self::Normal, Self::Low];
}

/// Request for jobs other than suspects and those in lines.
struct Look<'a> {
    worker: &'a WorkerId,
    rank: Rank,
    request: &'a Request<'a>,
    room: usize,
    /// Bytes after which no further job is taken.
    max_bytes: usize,
    /// Number of jobs that begin at once.
    begins: usize,
    done: &'a [Vec<u8>],
    /// True if the worker's row lists jobs that have not begun.
    was_unbegun: bool,
}

impl SqlStore {
    pub(super) async fn fetch_jobs(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
    ) -> Result<Fetched, Error> {
        let hints = self.hints(queue);
        let mut fetched = Fetched {
            lines: hints.unhandled.iter().map(|line| key_of(line)).collect(),
            ..Fetched::default()
        };
        if request.max == 0 {
            fetched.acknowledged = again(|| self.acknowledge(queue, worker, request)).await?;
            return Ok(fetched);
        }
        if hints.suspects
            && request.trial == Trial::Next
            && let Some((claimed, done)) =
                again(|| self.fetch_suspect(queue, worker, request)).await?
        {
            fetched.acknowledged = done;
            fetched.suspect = !claimed.jobs.is_empty();
            claimed.hand_over(&mut fetched);
            if fetched.suspect {
                return Ok(fetched);
            }
        }
        let now_ms = self.now_ms() as i64;
        let has_swept = !hints.blocked || now_ms - hints.tended_ms < SWEEP_AFTER_MS;
        if hints.lines && (!request.lines.is_empty() || hints.are_lines_due(now_ms) || !has_swept) {
            self.tend_lines(queue, worker, request, &mut fetched).await?;
        }
        let ranks = if hints.ranked { &Rank::EACH[..] } else { &[Rank::OnlyNormal] };
        let mut looked = false;
        for rank in ranks {
            let room = (request.max - fetched.jobs.len()).min(LIST);
            let bytes: usize = fetched.jobs.iter().map(Vec::len).sum();
            if room == 0 || bytes >= request.max_bytes && !fetched.jobs.is_empty() {
                break;
            }
            let key = (queue.to_owned(), worker.clone());
            let was_unbegun = self.unbegun.lock().contains(&key);
            // The row lists the jobs of the last look that have not begun: they must stay the last.
            if looked && was_unbegun {
                break;
            }
            let begins = request.begins.saturating_sub(fetched.jobs.len());
            let done = if fetched.jobs.is_empty() && !looked { request.done } else { &[] };
            looked = true;
            let look = Look {
                worker,
                rank: *rank,
                request,
                room,
                max_bytes: request.max_bytes.saturating_sub(bytes),
                begins,
                done,
                was_unbegun,
            };
            let (claimed, found) = match self.system() {
                System::Postgres => again(|| self.fetch_at_once(queue, &look)).await?,
                System::MySql => self.fetch_side_by_side(queue, &look).await?,
                System::Sqlite => again(|| self.fetch_in_steps(queue, &look)).await?,
            };
            claimed.hand_over(&mut fetched);
            fetched.acknowledged += found.acknowledged;
            let expired =
                Some(found.expired).filter(|expired| !expired.is_empty() && *expired != **worker);
            fetched.expired = expired.map(Into::into);
            {
                let mut known = self.unbegun.lock();
                if found.unbegun {
                    known.insert(key)
                } else {
                    known.remove(&key)
                };
            }
            if let Some(existing) = found.hints {
                self.took_hints(queue, request, existing, &mut fetched);
            }
        }
        if fetched.jobs.is_empty() && self.hints(queue).blocked {
            // There was nothing else to do, so the lines are tended now.
            let nothing = Request { done: &[], max: 0, lines: &[], ..*request };
            self.tend_lines(queue, worker, &nothing, &mut fetched).await?;
        }
        Ok(fetched)
    }

    /// Acknowledges completed jobs, and records that all jobs fetched before have begun. Returns
    /// the number of acknowledged jobs.
    async fn acknowledge(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
    ) -> Result<usize, Error> {
        let mut tx = self.begin().await?;
        let acknowledged = self.remove_done(&mut tx, queue, worker, request.done).await?;
        let waits = if let Trial::Waiting(tag) = request.trial { hex(&tag) } else { String::new() };
        let begun = self
            .of(&self.texts.fetch.begun, queue)
            .bind(worker.to_string())
            .bind(acknowledged as i64)
            .bind(waits);
        begun.execute(&mut tx).await.map_err(failed)?;
        let trial = match request.trial {
            Trial::Running(tag) => hex(&tag),
            Trial::Elsewhere => "!".to_owned(),
            Trial::None | Trial::Next | Trial::Waiting(_) => String::new(),
        };
        let told =
            self.of(&self.texts.fetch.tell_trial, queue).bind(worker.to_string()).bind(trial);
        told.execute(&mut tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let key = (queue.to_owned(), worker.clone());
        let mut unbegun = self.unbegun.lock();
        // The trial's state stays in the worker's row until it is cleared.
        if matches!(request.trial, Trial::Running(_) | Trial::Elsewhere | Trial::Waiting(_)) {
            unbegun.insert(key)
        } else {
            unbegun.remove(&key)
        };
        Ok(acknowledged)
    }

    pub(super) async fn remove_done(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        worker: &WorkerId,
        done: &[Vec<u8>],
    ) -> Result<usize, Error> {
        let mut removed = 0;
        for done in done.chunks(LIST) {
            let done =
                self.of(&self.texts.fetch.done, queue).bind(worker.to_string()).bind(hexes(done));
            removed += done.execute(&mut *tx).await.map_err(failed)? as usize;
        }
        Ok(removed)
    }

    /// Leases one suspect, and acknowledges completed jobs. Returns the suspect and the number of
    /// acknowledged jobs; `None` if there is no suspect.
    async fn fetch_suspect(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
    ) -> Result<Option<(Claimed, usize)>, Error> {
        let mut tx = self.begin().await?;
        if self.is_paused(&mut tx, queue).await? {
            return Ok(None);
        }
        let row = self
            .of(&self.texts.fetch.suspect, queue)
            .fetch_optional(&mut tx)
            .await
            .map_err(failed)?;
        let Some(id) = row.map(|row| row.get::<String>(0)).transpose().map_err(failed)? else {
            self.hint(queue, |hints| hints.suspects = false);
            return Ok(None);
        };
        let done = self.remove_done(&mut tx, queue, worker, request.done).await?;
        let claimed = self.claim(&mut tx, queue, worker, vec![id.clone()]).await?;
        // It is recorded as not begun until its worker reports that it begins.
        self.lease(&mut tx, queue, worker, request.lease, done, id, String::new()).await?;
        tx.commit().await.map_err(failed)?;
        // The next fetch has to clear the worker's row.
        self.unbegun.lock().insert((queue.to_owned(), worker.clone()));
        Ok(Some((claimed, done)))
    }

    pub(super) async fn is_paused(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
    ) -> Result<bool, Error> {
        let row =
            self.of(&self.texts.fetch.is_paused, queue).fetch_one(tx).await.map_err(failed)?;
        Ok(row.get::<i64>(0).map_err(failed)? > 0)
    }

    /// Leases the jobs with these ids, in that order.
    pub(super) async fn claim(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        worker: &WorkerId,
        ids: Vec<String>,
    ) -> Result<Claimed, Error> {
        let bound =
            |statement| self.of(statement, queue).bind(worker.to_string()).bind(ids.clone());
        bound(&self.texts.fetch.claim).execute(&mut *tx).await.map_err(failed)?;
        let mut claimed = Claimed::default();
        if self.system() == System::Sqlite {
            let row = bound(&self.texts.fetch.claimed_in_order)
                .fetch_one(&mut *tx)
                .await
                .map_err(failed)?;
            let jobs: String = row.get(0).map_err(failed)?;
            for job in jobs.split(',').filter(|job| !job.is_empty()) {
                let bytes = unhex(&job[1..]);
                if job.starts_with('1') {
                    claimed.cancelled.push(tag_of(&bytes).to_vec());
                }
                claimed.jobs.push(bytes);
            }
            return Ok(claimed);
        }
        let rows = bound(&self.texts.fetch.claimed).fetch_all(tx).await.map_err(failed)?;
        let mut found = std::collections::HashMap::with_capacity(rows.len());
        for row in &rows {
            let id: String = row.get(0).map_err(failed)?;
            found.insert(
                id,
                (row.get::<Vec<u8>>(1).map_err(failed)?, row.get::<i64>(2).map_err(failed)? == 1),
            );
        }
        for id in &ids {
            let Some((body, is_cancelled)) = found.remove(id) else { continue };
            if is_cancelled {
                claimed.cancelled.push(unhex(id));
            }
            claimed.jobs.push(body);
        }
        Ok(claimed)
    }

    #[expect(clippy::too_many_arguments, reason = "a row of as many columns")]
    pub(super) async fn lease(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        worker: &WorkerId,
        lease: Duration,
        done: usize,
        unbegun: String,
        trial: String,
    ) -> Result<(), Error> {
        let row = self
            .of(&self.texts.fetch.lease, queue)
            .bind(worker.to_string())
            .bind(millis(lease))
            .bind(done as i64);
        row.bind(unbegun).bind(trial).execute(tx).await.map(drop).map_err(failed)
    }

    /// Fetches in one round trip, on PostgreSQL.
    async fn fetch_at_once(&self, queue: &str, look: &Look<'_>) -> Result<(Claimed, Found), Error> {
        let texts = &self.texts.fetch;
        let fetch = match look.rank {
            Rank::OnlyNormal => &texts.ack_and_fetch,
            Rank::High => &texts.ack_and_fetch_high,
            Rank::Normal => &texts.ack_and_fetch_normal,
            Rank::Low => &texts.ack_and_fetch_low,
        };
        let fetch = self
            .of(fetch, queue)
            .bind(look.worker.to_string())
            .bind(hexes(look.done))
            .bind(look.room as i64)
            .bind(i64::try_from(look.max_bytes).unwrap_or(i64::MAX))
            .bind(millis(look.request.lease))
            .bind(look.begins as i64)
            .bind(i64::from(look.was_unbegun));
        let rows = fetch.fetch_all(&self.database).await.map_err(failed)?;
        let mut found = Found::default();
        let mut jobs: Vec<(i64, Vec<u8>)> = Vec::with_capacity(rows.len());
        let mut claimed = Claimed::default();
        for row in &rows {
            let number = |n: usize| row.get::<i64>(n).map_err(failed);
            match number(0)? {
                0 => {
                    found.expired = row.get(1).map_err(failed)?;
                    found.acknowledged = number(3)? as usize;
                    found.hints = Some(Existing {
                        lines: number(4)? > 0,
                        suspects: number(5)? > 0,
                        ranked: number(6)? > 0,
                    });
                }
                place => {
                    if number(3)? == 1 {
                        claimed.cancelled.push(unhex(&row.get::<String>(1).map_err(failed)?));
                    }
                    jobs.push((place, row.get(2).map_err(failed)?));
                }
            }
        }
        jobs.sort_unstable_by_key(|(place, _)| *place);
        found.unbegun = jobs.len() > look.begins;
        claimed.jobs.extend(jobs.into_iter().map(|(_, body)| body));
        Ok((claimed, found))
    }

    /// Fetches in one transaction of several statements, on SQLite.
    async fn fetch_in_steps(
        &self,
        queue: &str,
        look: &Look<'_>,
    ) -> Result<(Claimed, Found), Error> {
        let mut tx = self.begin().await?;
        let acknowledged = self.remove_done(&mut tx, queue, look.worker, look.done).await?;
        let pick = self.of(self.pick_of(look.rank), queue).bind(look.room as i64);
        let row = pick.fetch_one(&mut tx).await.map_err(failed)?;
        let (ids, sizes): (String, String) =
            row.get(0).and_then(|ids| Ok((ids, row.get(1)?))).map_err(failed)?;
        let picked: Vec<(&str, usize)> = ids
            .split(',')
            .zip(sizes.split(','))
            .filter_map(|(id, size)| Some((id, size.parse().ok()?)))
            .collect();
        let ids: Vec<_> = within(picked, look.max_bytes, |(_, size)| *size)
            .into_iter()
            .map(|(id, _)| id.to_owned())
            .collect();
        let claimed = if ids.is_empty() {
            Claimed::default()
        } else {
            self.claim(&mut tx, queue, look.worker, ids.clone()).await?
        };
        let unbegun = self.note_lease(&mut tx, queue, look, &ids, acknowledged).await?;
        let found = self.read_hints(&mut tx, queue, look.worker).await?;
        tx.commit().await.map_err(failed)?;
        Ok((claimed, Found { acknowledged, unbegun, ..found }))
    }

    fn pick_of(&self, rank: Rank) -> &Statement {
        match rank {
            Rank::OnlyNormal => &self.texts.fetch.pick,
            Rank::High => &self.texts.fetch.pick_high,
            Rank::Normal => &self.texts.fetch.pick_normal,
            Rank::Low => &self.texts.fetch.pick_low,
        }
    }

    /// Acknowledges in one transaction while another one takes jobs, on MySQL.
    async fn fetch_side_by_side(
        &self,
        queue: &str,
        look: &Look<'_>,
    ) -> Result<(Claimed, Found), Error> {
        let (acknowledged, taken) = tokio::join!(
            again(|| self.count_done(queue, look)),
            again(|| self.take_next(queue, look))
        );
        let (claimed, mut found) = taken?;
        found.acknowledged = acknowledged?;
        Ok((claimed, found))
    }

    async fn count_done(&self, queue: &str, look: &Look<'_>) -> Result<usize, Error> {
        if look.done.is_empty() {
            return Ok(0);
        }
        let mut tx = self.begin().await?;
        let done = self.remove_done(&mut tx, queue, look.worker, look.done).await?;
        let count = self.of(&self.texts.leases.count_ended, queue).bind(look.worker.to_string());
        count.bind(done as i64).bind(0_i64).bind(0_i64).execute(&mut tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(done)
    }

    async fn take_next(&self, queue: &str, look: &Look<'_>) -> Result<(Claimed, Found), Error> {
        let hints = self.hints(queue);
        let now_ms = self.clock.now_ms();
        let has_floor = matches!(look.rank, Rank::OnlyNormal | Rank::Normal);
        let is_whole = !has_floor || now_ms - hints.looked_ms >= WHOLE_LOOK_MS;
        let floor_ms = if is_whole { 0 } else { hints.floor_ms };
        let mut tx = self.begin().await?;
        let pick =
            |from: i64| self.of(self.pick_of(look.rank), queue).bind(look.room as i64).bind(from);
        let mut rows = pick(floor_ms).fetch_all(&mut tx).await.map_err(failed)?;
        let mut is_whole = floor_ms == 0;
        if rows.len() < look.room && !is_whole {
            rows = pick(0).fetch_all(&mut tx).await.map_err(failed)?;
            is_whole = true;
        }
        let last_ms = rows.last().map(|row| row.get(4)).transpose().map_err(failed)?;
        let (ids, claimed) = self.claim_rows(&mut tx, queue, look, &rows).await?;
        let is_all = ids.len() == rows.len();
        let unbegun = self.note_lease(&mut tx, queue, look, &ids, 0).await?;
        let is_fresh = rows.len() == look.room && now_ms - hints.read_ms < READ_AGAIN_MS;
        let found = if is_fresh {
            Found { expired: hints.expired.clone(), ..Found::default() }
        } else {
            self.read_hints(&mut tx, queue, look.worker).await?
        };
        tx.commit().await.map_err(failed)?;
        self.hint(queue, |hints| {
            if !is_fresh {
                (hints.read_ms, hints.expired) = (now_ms, found.expired.clone());
            }
            if !has_floor {
                return;
            }
            if is_whole {
                hints.looked_ms = now_ms;
            }
            // Jobs that did not fit are still to be picked.
            if let Some(last_ms) = last_ms.filter(|_| is_all) {
                hints.floor_ms = last_ms;
            }
        });
        Ok((claimed, Found { unbegun, ..found }))
    }

    /// Records the lease. Returns whether some of its jobs have not begun.
    async fn note_lease(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        look: &Look<'_>,
        ids: &[String],
        acknowledged: usize,
    ) -> Result<bool, Error> {
        let unbegun = ids.get(look.begins..).unwrap_or_default().join(",");
        let has_unbegun = !unbegun.is_empty();
        if !ids.is_empty() || look.was_unbegun || acknowledged > 0 {
            self.lease(
                tx,
                queue,
                look.worker,
                look.request.lease,
                acknowledged,
                unbegun,
                String::new(),
            )
            .await?;
        }
        Ok(has_unbegun)
    }

    /// Reads the hints of a queue.
    async fn read_hints(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        worker: &WorkerId,
    ) -> Result<Found, Error> {
        let row =
            self.of(&self.texts.fetch.hints, queue).bind(worker.to_string()).fetch_one(tx).await;
        let row = row.map_err(failed)?;
        let flag = |n: usize| row.get::<i64>(n).map(|n| n > 0).map_err(failed);
        let expired = row.get(0).map_err(failed)?;
        let existing = Existing { lines: flag(1)?, suspects: flag(2)?, ranked: flag(3)? };
        Ok(Found { expired, hints: Some(existing), ..Found::default() })
    }

    /// Leases locked rows; the bodies of small ones were read with them.
    async fn claim_rows(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        look: &Look<'_>,
        rows: &[Row],
    ) -> Result<(Vec<String>, Claimed), Error> {
        type Picked = (String, i64, i64, Option<Vec<u8>>);
        let read = |row: &Row| -> Result<Picked, sqlx::Error> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        };
        let picked: Vec<Picked> =
            rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)?;
        let picked = within(picked, look.max_bytes, |(_, size, ..)| *size as usize);
        let ids: Vec<_> = picked.iter().map(|(id, ..)| id.clone()).collect();
        if ids.is_empty() {
            return Ok((ids, Claimed::default()));
        }
        if picked.iter().any(|(.., body)| body.is_none()) {
            let claimed = self.claim(tx, queue, look.worker, ids.clone()).await?;
            return Ok((ids, claimed));
        }
        let claim = self.texts.fetch.claim_locked.bind(look.worker.to_string()).bind(ids.clone());
        claim.execute(tx).await.map_err(failed)?;
        let mut claimed = Claimed::default();
        for (id, _, cancelled, body) in picked {
            if cancelled == 1 {
                claimed.cancelled.push(unhex(&id));
            }
            claimed.jobs.extend(body);
        }
        Ok((ids, claimed))
    }

    fn took_hints(
        &self,
        queue: &str,
        request: &Request<'_>,
        existing: Existing,
        fetched: &mut Fetched,
    ) {
        let Existing { lines, suspects, ranked } = existing;
        let known = self.hints(queue);
        // Lines, suspects or priorities are new: jobs that the common statement left may be for
        // this worker, so it looks again at once.
        let again = suspects && !known.suspects && request.trial == Trial::Next
            || lines && !known.lines
            || ranked && !known.ranked;
        self.hint(queue, |hints| {
            (hints.lines, hints.suspects, hints.ranked) = (lines, suspects, ranked);
            if !lines {
                hints.unhandled.clear();
            }
        });
        if again {
            fetched.look_again = Some(Duration::ZERO);
        }
    }

    /// Tells a worker that got no jobs when to look again.
    pub(super) async fn outlook(
        &self,
        queue: &str,
        worker: &WorkerId,
        fetched: &mut Fetched,
    ) -> Result<(), Error> {
        let next = self.of(&self.texts.fetch.next, queue).bind(worker.to_string());
        let row = next.fetch_one(&self.database).await.map_err(failed)?;
        let number = |n: usize| row.get::<Option<i64>>(n).ok().flatten();
        let now = number(0).unwrap_or_else(|| self.clock.now_ms());
        self.clock.set(now);
        // Due jobs were locked by other workers, or became due after the fetch; the next look gets
        // them.
        let first_due = [number(1), number(4), number(5)].into_iter().flatten().min();
        let is_due = first_due.is_some_and(|due| due <= now);
        self.hint(queue, |hints| {
            hints.retry_ms = Some(number(3).unwrap_or(i64::MAX));
            // A due job may also have to be put in the line of its limit.
            hints.blocked |= is_due && hints.lines;
        });
        let moment =
            [first_due, number(3)].into_iter().flatten().map(|due| due.max(now + BEHIND_MS));
        let moment = moment.chain(number(2).map(|until| until.max(now + BEHIND_MS))).min();
        fetched.armed = true;
        fetched.look_again = moment.map(|at| Duration::from_millis((at - now).max(0) as u64));
        Ok(())
    }
}
