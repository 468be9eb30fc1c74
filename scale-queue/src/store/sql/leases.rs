//! Leases: jobs that workers hold, and reclaiming them when a worker is gone.

use std::collections::{BTreeSet, HashSet};

use scale_sql::{Connection, Row, Statement};

use super::push::{notify, rank_of};
use super::{LIST, SqlStore, failed, hex, hexes, unhex};
use crate::error::Error;
use crate::format::{count_failure, turn_of};
use crate::store::{CANCELLED, Cancellation, Reclaimed, WorkerId, within};

impl SqlStore {
    pub(super) async fn ids_held(
        &self,
        queue: &str,
        worker: &WorkerId,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let held = self.of(&self.texts.leases.held, queue).bind(worker.to_string());
        let rows = held.fetch_all(&self.database).await.map_err(failed)?;
        rows.iter().map(|row| row.get::<String>(0).map(|id| unhex(&id)).map_err(failed)).collect()
    }

    pub(super) async fn bodies_held(
        &self,
        queue: &str,
        worker: &WorkerId,
        tags: &[Vec<u8>],
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let asked = |statement: &Statement, ids: &[String]| {
            self.of(statement, queue).bind(worker.to_string()).bind(ids.to_vec())
        };
        let mut sizes: Vec<(String, i64)> = Vec::new();
        for ids in hexes(tags).chunks(LIST) {
            let rows = asked(&self.texts.leases.held_sizes, ids)
                .fetch_all(&self.database)
                .await
                .map_err(failed)?;
            let read = |row: &Row| Ok((row.get(0)?, row.get(1)?));
            sizes.extend(rows.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(failed)?);
        }
        let ids: Vec<_> = within(sizes, max_bytes, |(_, size)| *size as usize)
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        let mut bodies = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LIST) {
            let rows = asked(&self.texts.leases.held_jobs, ids)
                .fetch_all(&self.database)
                .await
                .map_err(failed)?;
            bodies.extend(super::bodies(&rows, 1)?);
        }
        Ok(bodies)
    }

    /// Reclaims some jobs of a worker whose lease has expired.
    pub(super) async fn take_back(
        &self,
        queue: &str,
        expired: &WorkerId,
    ) -> Result<Reclaimed, Error> {
        let mut tx = self.begin().await?;
        let worker = expired.to_string();
        let texts = &self.texts.leases;
        let row = self
            .of(&texts.expired, queue)
            .bind(worker.clone())
            .fetch_optional(&mut tx)
            .await
            .map_err(failed)?;
        let (unbegun, trial) = match row {
            Some(row) if row.get::<i64>(2).map_err(failed)? == 0 => return Ok(Reclaimed::default()),
            Some(row) => {
                row.get::<String>(0).and_then(|u| Ok((u, row.get::<String>(1)?))).map_err(failed)?
            }
            None => Default::default(),
        };
        let unbegun: HashSet<&str> = unbegun.split(',').collect();
        let held = self
            .of(&texts.held, queue)
            .bind(worker.clone())
            .fetch_all(&mut tx)
            .await
            .map_err(failed)?;
        let held: HashSet<String> =
            held.iter().map(|row| row.get(0)).collect::<Result<_, _>>().map_err(failed)?;
        // '!': the suspect that ran alone was reclaimed in an earlier step, or is of another queue.
        let on_trial = !trial.is_empty() && (trial == "!" || held.contains(&trial));
        let rows = self
            .of(&texts.held_some, queue)
            .bind(worker.clone())
            .fetch_all(&mut tx)
            .await
            .map_err(failed)?;
        let looked_at = rows.len();
        let (mut jobs, mut failures) = (0, 0_i64);
        let mut groups = BTreeSet::new();
        for row in rows {
            let (id, mut body): (String, Vec<u8>) =
                row.get(0).and_then(|id| Ok((id, row.get(1)?))).map_err(failed)?;
            let is_suspect = if on_trial { id == trial } else { !unbegun.contains(id.as_str()) };
            if is_suspect {
                count_failure(&mut body);
            }
            let rank = if is_suspect { 1 } else { rank_of(&body) };
            let back =
                self.of(&texts.take_back, queue).bind(id.clone()).bind(body.clone()).bind(rank);
            if back.bind(worker.clone()).execute(&mut tx).await.map_err(failed)? == 0 {
                continue;
            }
            jobs += 1;
            failures += i64::from(is_suspect);
            // Taken by a drain that died, from the line of its group.
            if let Some(group) = turn_of(&body) {
                self.rejoin(&mut tx, queue, &id, &group).await?;
                groups.insert(group.key);
            }
            if is_suspect && on_trial {
                self.of(&texts.blame, queue)
                    .bind(worker.clone())
                    .execute(&mut tx)
                    .await
                    .map_err(failed)?;
            }
        }
        for key in groups {
            self.give_turns_in(&mut tx, queue, &key).await?;
        }
        self.fold(&mut tx, queue, 0, failures, 0).await?;
        self.dismiss(&mut tx, queue, &worker).await?;
        // Expired workers that hold nothing are removed too.
        let idle = self.of(&texts.idle_expired, queue).fetch_all(&mut tx).await.map_err(failed)?;
        for row in idle {
            let idle: String = row.get(0).map_err(failed)?;
            self.dismiss(&mut tx, queue, &idle).await?;
        }
        notify(self.texts, &mut tx, self.payload(queue)).await?;
        tx.commit().await.map_err(failed)?;
        self.hint(queue, |hints| hints.suspects |= failures > 0);
        self.idle.wake(queue, jobs);
        Ok(Reclaimed { jobs, left: held.len().saturating_sub(looked_at) })
    }

    /// Removes the row of a worker that holds nothing, and adds its counts to the queue's.
    pub(super) async fn dismiss(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        worker: &str,
    ) -> Result<(), Error> {
        let leaving = self.of(&self.texts.leases.leaving, queue).bind(worker);
        let Some(row) = leaving.fetch_optional(&mut *tx).await.map_err(failed)? else {
            return Ok(());
        };
        let count = |n: usize| row.get::<i64>(n).map_err(failed);
        let dismiss = self.of(&self.texts.leases.dismiss, queue).bind(worker);
        if dismiss.execute(&mut *tx).await.map_err(failed)? == 0 {
            return Ok(());
        }
        self.fold(tx, queue, count(0)?, count(1)?, count(2)?).await
    }

    /// Adds to a queue's counts.
    pub(super) async fn fold(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        done: i64,
        failures: i64,
        ended: i64,
    ) -> Result<(), Error> {
        let fold = self.of(&self.texts.leases.fold, queue).bind(done).bind(failures).bind(ended);
        fold.execute(tx).await.map(drop).map_err(failed)
    }

    pub(super) async fn cancel_job(&self, queue: &str, tag: &[u8]) -> Result<Cancellation, Error> {
        let mut tx = self.begin().await?;
        let texts = &self.texts.leases;
        let waiting = self.of(&texts.waiting, queue).bind(hex(tag));
        if let Some(row) = waiting.fetch_optional(&mut tx).await.map_err(failed)? {
            let body: Vec<u8> = row.get(0).map_err(failed)?;
            self.of(&texts.remove, queue).bind(hex(tag)).execute(&mut tx).await.map_err(failed)?;
            self.end_turn(&mut tx, queue, tag).await?;
            self.keep_dead(&mut tx, queue, tag, CANCELLED, &body).await?;
            self.fold(&mut tx, queue, 0, 0, 1).await?;
            tx.commit().await.map_err(failed)?;
            return Ok(Cancellation::Cancelled(body));
        }
        let leased = self.of(&texts.cancel_leased, queue).bind(hex(tag));
        if leased.execute(&mut tx).await.map_err(failed)? == 0 {
            return Ok(Cancellation::Unknown);
        }
        self.tell_of_cancellation(&mut tx, tag).await?;
        tx.commit().await.map_err(failed)?;
        self.idle.cancel(tag);
        Ok(Cancellation::Asked)
    }
}
