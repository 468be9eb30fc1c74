//! What a worker says and asks in one exchange.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{SWEEP_AFTER_MS, SqlStore, System, failed, hex, hex_list, key_of, local_ms, millis, unhex};
#[cfg(feature = "sqlite")]
use crate::envelope::tag_of;
use crate::error::Error;
use crate::store::Trial;
use crate::store::{Fetched, Request, Store, WorkerId};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};

/// The soonest look after one that left what is due to others.
const BEHIND_MS: i64 = 5;

impl SqlStore {
    pub(super) async fn fetch_jobs(&self, queue: &str, worker: &WorkerId, request: &Request<'_>) -> Result<Fetched, Error> {
        let hints = self.hints(queue);
        let mut fetched = Fetched { lines: hints.unhandled.iter().map(|line| key_of(line)).collect(), ..Fetched::default() };
        if request.max == 0 {
            self.acknowledge(queue, worker, request, &mut fetched).await?;
            return Ok(fetched);
        }
        if hints.suspects && request.trial == Trial::Next && self.fetch_suspect(queue, worker, request, &mut fetched).await? {
            return Ok(fetched);
        }
        let now_ms = self.now_ms() as i64;
        let has_swept = !hints.blocked || now_ms - hints.tended_ms < SWEEP_AFTER_MS;
        if hints.lines && (!request.lines.is_empty() || hints.are_lines_due(now_ms) || !has_swept) {
            self.tend_lines(queue, worker, request, &mut fetched).await?;
        }
        let room = request.max - fetched.jobs.len();
        if room > 0 && fetched.jobs.iter().map(Vec::len).sum::<usize>() < request.max_bytes {
            match self.system {
                #[cfg(feature = "postgres")]
                System::Postgres => self.fetch_postgres(queue, worker, request, room, &mut fetched).await?,
                #[cfg(feature = "sqlite")]
                System::Sqlite => self.fetch_sqlite(queue, worker, request, room, &mut fetched).await?,
            }
        }
        if fetched.jobs.is_empty() && self.hints(queue).blocked {
            // Nothing else to do: a good time for it.
            let nothing = Request { done: &[], max: 0, lines: &[], ..*request };
            self.tend_lines(queue, worker, &nothing, &mut fetched).await?;
        }
        Ok(fetched)
    }

    /// Everything fetched before has begun.
    async fn acknowledge(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
        fetched: &mut Fetched,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        if !request.done.is_empty() {
            fetched.acknowledged = self.remove_done(&mut tx, queue, worker, request).await?;
        }
        let waits = if let Trial::Waiting(tag) = request.trial { hex(&tag) } else { String::new() };
        let begun = self.of(&self.texts.begun, queue).bind(worker.to_string()).bind(fetched.acknowledged as i64).bind(waits);
        begun.execute(&mut *tx).await.map_err(failed)?;
        let trial = match request.trial {
            Trial::Running(tag) => hex(&tag),
            Trial::Elsewhere => "!".to_owned(),
            Trial::None | Trial::Next | Trial::Waiting(_) => String::new(),
        };
        let told = self.of(&self.texts.tell_trial, queue).bind(worker.to_string()).bind(trial);
        told.execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let key = (queue.to_owned(), worker.clone());
        let mut unbegun = self.unbegun.lock();
        // A word on a trial stays until it is cleared.
        if matches!(request.trial, Trial::Running(_) | Trial::Elsewhere | Trial::Waiting(_)) {
            unbegun.insert(key)
        } else {
            unbegun.remove(&key)
        };
        Ok(())
    }

    async fn remove_done(
        &self,
        tx: &mut AnyConnection,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
    ) -> Result<usize, Error> {
        let done = self.of(&self.texts.done, queue).bind(worker.to_string()).bind(hex_list(request.done));
        Ok(done.execute(tx).await.map_err(failed)?.rows_affected() as usize)
    }

    /// One suspect, alone. `false`: there is none.
    async fn fetch_suspect(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
        fetched: &mut Fetched,
    ) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        if self.is_paused(&mut tx, queue).await? {
            return Ok(false);
        }
        let row = self.of(&self.texts.suspect, queue).fetch_optional(&mut *tx).await.map_err(failed)?;
        let Some(id) = row.map(|row| row.try_get::<String, _>(0)).transpose().map_err(failed)? else {
            self.hint(queue, |hints| hints.suspects = false);
            return Ok(false);
        };
        if !request.done.is_empty() {
            fetched.acknowledged = self.remove_done(&mut tx, queue, worker, request).await?;
        }
        self.claim(&mut tx, queue, worker, &id, fetched).await?;
        // It begins when its worker says so.
        self.lease(&mut tx, queue, worker, request, fetched.acknowledged, id, String::new()).await?;
        tx.commit().await.map_err(failed)?;
        // The next fetch has something to clear.
        self.unbegun.lock().insert((queue.to_owned(), worker.clone()));
        fetched.suspect = !fetched.jobs.is_empty();
        Ok(fetched.suspect)
    }

    pub(super) async fn is_paused(&self, tx: &mut AnyConnection, queue: &str) -> Result<bool, Error> {
        let row = self.of(&self.texts.is_paused, queue).fetch_one(tx).await.map_err(failed)?;
        Ok(row.try_get::<i64, _>(0).map_err(failed)? > 0)
    }

    /// Leases the jobs of these ids.
    pub(super) async fn claim(
        &self,
        tx: &mut AnyConnection,
        queue: &str,
        worker: &WorkerId,
        ids: &str,
        fetched: &mut Fetched,
    ) -> Result<(), Error> {
        let claim = self.of(&self.texts.claim, queue).bind(worker.to_string()).bind(ids.to_owned());
        #[cfg(feature = "sqlite")]
        if self.system == System::Sqlite {
            claim.execute(&mut *tx).await.map_err(failed)?;
            let claimed = self.of(&self.texts.claimed, queue).bind(worker.to_string()).bind(ids.to_owned());
            let row = claimed.fetch_one(&mut *tx).await.map_err(failed)?;
            let jobs: String = row.try_get(0).map_err(failed)?;
            for job in jobs.split(',').filter(|job| !job.is_empty()) {
                let bytes = unhex(&job[1..]);
                if job.starts_with('1') {
                    fetched.cancelled.push(tag_of(&bytes).to_vec());
                }
                fetched.jobs.push(bytes);
            }
            return Ok(());
        }
        let rows = claim.fetch_all(tx).await.map_err(failed)?;
        // `returning` keeps no order; the ids have it.
        let mut jobs: Vec<(usize, Vec<u8>)> = Vec::with_capacity(rows.len());
        for row in &rows {
            let id: String = row.try_get(0).map_err(failed)?;
            if row.try_get::<i64, _>(2).map_err(failed)? == 1 {
                fetched.cancelled.push(unhex(&id));
            }
            jobs.push((ids.find(&id).unwrap_or(usize::MAX), row.try_get(1).map_err(failed)?));
        }
        jobs.sort_unstable_by_key(|(place, _)| *place);
        fetched.jobs.extend(jobs.into_iter().map(|(_, body)| body));
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a row of as many columns")]
    pub(super) async fn lease(
        &self,
        tx: &mut AnyConnection,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
        done: usize,
        unbegun: String,
        trial: String,
    ) -> Result<(), Error> {
        let lease = self.of(&self.texts.lease, queue).bind(worker.to_string()).bind(millis(request.lease)).bind(done as i64);
        lease.bind(unbegun).bind(trial).execute(tx).await.map(drop).map_err(failed)
    }

    #[cfg(feature = "postgres")]
    async fn fetch_postgres(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
        room: usize,
        fetched: &mut Fetched,
    ) -> Result<(), Error> {
        let key = (queue.to_owned(), worker.clone());
        let was_unbegun = self.unbegun.lock().contains(&key);
        let begins = request.begins.saturating_sub(fetched.jobs.len());
        let done = if fetched.jobs.is_empty() { request.done } else { &[] };
        let fetch = self
            .of(&self.texts.ack_and_fetch, queue)
            .bind(worker.to_string())
            .bind(hex_list(done))
            .bind(room as i64)
            .bind(i64::try_from(request.max_bytes).unwrap_or(i64::MAX))
            .bind(millis(request.lease))
            .bind(begins as i64)
            .bind(i64::from(was_unbegun));
        let rows = fetch.fetch_all(&self.pool).await.map_err(failed)?;
        let mut jobs: Vec<(i64, Vec<u8>)> = Vec::with_capacity(rows.len());
        let mut hints = (false, false);
        for row in &rows {
            let number = |n: usize| row.try_get::<i64, _>(n).map_err(failed);
            match number(0)? {
                0 => {
                    let expired: String = row.try_get(1).map_err(failed)?;
                    fetched.expired = (!expired.is_empty()).then(|| expired.into());
                    fetched.acknowledged += number(3)? as usize;
                    hints = (number(4)? > 0, number(5)? > 0);
                }
                place => {
                    if number(3)? == 1 {
                        fetched.cancelled.push(unhex(&row.try_get::<String, _>(1).map_err(failed)?));
                    }
                    jobs.push((place, row.try_get(2).map_err(failed)?));
                }
            }
        }
        jobs.sort_unstable_by_key(|(place, _)| *place);
        let unbegun = jobs.len() > begins;
        fetched.jobs.extend(jobs.into_iter().map(|(_, body)| body));
        {
            let mut known = self.unbegun.lock();
            if unbegun {
                known.insert(key)
            } else {
                known.remove(&key)
            };
        }
        self.took_hints(queue, request, hints, fetched);
        Ok(())
    }

    #[cfg(feature = "sqlite")]
    async fn fetch_sqlite(
        &self,
        queue: &str,
        worker: &WorkerId,
        request: &Request<'_>,
        room: usize,
        fetched: &mut Fetched,
    ) -> Result<(), Error> {
        let key = (queue.to_owned(), worker.clone());
        let was_unbegun = self.unbegun.lock().contains(&key);
        let begins = request.begins.saturating_sub(fetched.jobs.len());
        let mut tx = self.begin().await?;
        if fetched.jobs.is_empty() && !request.done.is_empty() {
            fetched.acknowledged = self.remove_done(&mut tx, queue, worker, request).await?;
        }
        let row = self.of(&self.texts.pick, queue).bind(room as i64).fetch_one(&mut *tx).await.map_err(failed)?;
        let (ids, sizes): (String, String) = row.try_get(0).and_then(|ids| Ok((ids, row.try_get(1)?))).map_err(failed)?;
        let picked: Vec<(&str, usize)> =
            ids.split(',').zip(sizes.split(',')).filter_map(|(id, size)| Some((id, size.parse().ok()?))).collect();
        let ids: Vec<_> =
            crate::store::within(picked, request.max_bytes, |(_, size)| *size).into_iter().map(|(id, _)| id).collect();
        if !ids.is_empty() {
            self.claim(&mut tx, queue, worker, &ids.join(","), fetched).await?;
        }
        let unbegun = ids.get(begins..).unwrap_or_default().join(",");
        let has_unbegun = !unbegun.is_empty();
        if !ids.is_empty() || was_unbegun || fetched.acknowledged > 0 {
            self.lease(&mut tx, queue, worker, request, fetched.acknowledged, unbegun, String::new()).await?;
        }
        let row = self.of(&self.texts.hints, queue).bind(worker.to_string()).fetch_one(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let expired: String = row.try_get(0).map_err(failed)?;
        fetched.expired = (!expired.is_empty()).then(|| expired.into());
        let flag = |n: usize| row.try_get::<i64, _>(n).map(|n| n > 0).map_err(failed);
        {
            let mut known = self.unbegun.lock();
            if has_unbegun {
                known.insert(key)
            } else {
                known.remove(&key)
            };
        }
        self.took_hints(queue, request, (flag(1)?, flag(2)?), fetched);
        Ok(())
    }

    fn took_hints(&self, queue: &str, request: &Request<'_>, (lines, suspects): (bool, bool), fetched: &mut Fetched) {
        let known = self.hints(queue);
        // News: what the common statement left may be for this worker after all, so it looks again at once.
        let again = suspects && !known.suspects && request.trial == Trial::Next || lines && !known.lines;
        self.hint(queue, |hints| {
            (hints.lines, hints.suspects) = (lines, suspects);
            if !lines {
                hints.unhandled.clear();
            }
        });
        if again {
            fetched.look_again = Some(Duration::ZERO);
        }
    }

    /// What a worker should know that got less than it wanted.
    pub(super) async fn outlook(&self, queue: &str, worker: &WorkerId, fetched: &mut Fetched) -> Result<(), Error> {
        let next = self.of(&self.texts.next, queue).bind(worker.to_string());
        let row: AnyRow = next.fetch_one(&self.pool).await.map_err(failed)?;
        let number = |n: usize| row.try_get::<Option<i64>, _>(n).ok().flatten();
        let now = number(0).unwrap_or_else(local_ms);
        self.offset.store(now - local_ms(), Relaxed);
        // What is due was locked by others, or has become due since the fetch: both are for the next look.
        self.hint(queue, |hints| hints.retry_ms = Some(number(3).unwrap_or(i64::MAX)));
        let moment = [number(1), number(3)].into_iter().flatten().map(|due| due.max(now + BEHIND_MS));
        let moment = moment.chain(number(2).map(|until| until.max(now + BEHIND_MS))).min();
        fetched.armed = true;
        fetched.look_again = moment.map(|at| Duration::from_millis((at - now).max(0) as u64));
        Ok(())
    }
}
