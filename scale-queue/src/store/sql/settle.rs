//! Ends of leases.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use scale_sql::Connection;

use super::push::rank_of;
use super::{SqlStore, again, failed, hex, hexes, key_text, millis};
use crate::error::Error;
use crate::store::{Destination, Settlement, WorkerId};

/// Counters that a settlement adds to.
#[derive(Default)]
struct Counts {
    done: i64,
    failed: i64,
    ended: i64,
    fetchable: usize,
    lines: bool,
    /// Keys of groups in which a turn has ended.
    groups: BTreeSet<String>,
}

impl SqlStore {
    /// Settles all jobs in one transaction. If the database refuses it, each job is settled in a
    /// transaction of its own, so that only the invalid one fails.
    pub(super) async fn settle_all(
        &self,
        queue: &str,
        worker: &WorkerId,
        settlements: &[&Settlement],
    ) -> Vec<Result<bool, Error>> {
        if settlements.is_empty() {
            return Vec::new();
        }
        match again(|| self.settle_together(queue, worker, settlements)).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) if settlements.len() > 1 && error.is_refusal() => {
                let mut answers = Vec::with_capacity(settlements.len());
                for settlement in settlements {
                    let one = again(|| {
                        self.settle_together(queue, worker, std::slice::from_ref(settlement))
                    })
                    .await;
                    answers.push(one.map(|answers| answers.first().copied().unwrap_or_default()));
                }
                answers
            }
            Err(error) => settlements.iter().map(|_| Err(error.repeat())).collect(),
        }
    }

    async fn settle_together(
        &self,
        queue: &str,
        worker: &WorkerId,
        settlements: &[&Settlement],
    ) -> Result<Vec<bool>, Error> {
        let mut tx = self.begin().await?;
        let mut counts = Counts::default();
        let blocked = self.block_together(&mut tx, queue, worker, settlements, &mut counts).await?;
        let mut answers = Vec::with_capacity(settlements.len());
        for settlement in settlements {
            answers.push(match settlement.to {
                Destination::Blocked { .. } => blocked.contains(&hex(&settlement.tag)),
                _ => self.settle_one(&mut tx, queue, worker, settlement, &mut counts).await?,
            });
        }
        if counts.done + counts.failed + counts.ended > 0 {
            let count = self.of(&self.texts.leases.count_ended, queue).bind(worker.to_string());
            let count = count.bind(counts.done).bind(counts.failed).bind(counts.ended);
            count.execute(&mut tx).await.map_err(failed)?;
        }
        for key in &counts.groups {
            let joined = self.give_turns_in(&mut tx, queue, key).await?;
            counts.fetchable = counts.fetchable.saturating_add(joined);
        }
        if counts.fetchable > 0 {
            self.notify(&mut tx, self.payload(queue)).await?;
        }
        tx.commit().await.map_err(failed)?;
        if counts.lines {
            // Jobs of the same line that were pushed later are put there by the next fetch.
            self.hint(queue, |hints| {
                if !hints.lines {
                    (hints.lines, hints.retry_ms) = (true, None);
                }
                (hints.blocked, hints.tended_ms) = (true, self.clock.now_ms());
            });
        }
        self.idle.wake(queue, counts.fetchable);
        Ok(answers)
    }

    /// Puts jobs in line, with one statement per line. Returns the ids of those that were the
    /// worker's.
    async fn block_together(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        worker: &WorkerId,
        settlements: &[&Settlement],
        counts: &mut Counts,
    ) -> Result<HashSet<String>, Error> {
        type Line<'s> = (&'s str, Duration, Option<Duration>, Vec<Vec<u8>>);
        let mut lines: Vec<Line<'_>> = Vec::new();
        for settlement in settlements {
            if let Destination::Blocked { line, retry_in, pace } = &settlement.to {
                match lines.iter_mut().find(|(name, ..)| name == line) {
                    Some((_, soonest, known, tags)) => {
                        (*soonest, *known) = ((*soonest).min(*retry_in), *pace);
                        tags.push(settlement.tag.clone());
                    }
                    None => lines.push((line, *retry_in, *pace, vec![settlement.tag.clone()])),
                }
            }
        }
        lines.sort_unstable_by_key(|(line, ..)| *line);
        let mut blocked = HashSet::new();
        for (line, retry_in, pace, tags) in lines {
            let pace_us = pace
                .map_or(0, |pace| i64::try_from(pace.as_micros()).unwrap_or(i64::MAX / 4).max(1));
            let line = key_text(line);
            // The line's row first: see `close_if_empty`.
            let open = self
                .of(&self.texts.lines.open_line, queue)
                .bind(line.clone())
                .bind(millis(retry_in))
                .bind(pace_us);
            open.bind(0_i64).execute(&mut *tx).await.map_err(failed)?;
            let ids = self
                .of(&self.texts.leases.held_of, queue)
                .bind(worker.to_string())
                .bind(hexes(&tags));
            let rows = ids.fetch_all(&mut *tx).await.map_err(failed)?;
            let ids: Vec<String> =
                rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>().map_err(failed)?;
            if !ids.is_empty() {
                let block = self
                    .of(&self.texts.lines.block, queue)
                    .bind(worker.to_string())
                    .bind(ids.clone())
                    .bind(line);
                block.execute(&mut *tx).await.map_err(failed)?;
            }
            blocked.extend(ids);
            // A worker has to set an alarm for the line.
            (counts.fetchable, counts.lines) = (counts.fetchable.max(1), true);
        }
        Ok(blocked)
    }

    async fn settle_one(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        worker: &WorkerId,
        settlement: &Settlement,
        counts: &mut Counts,
    ) -> Result<bool, Error> {
        let (id, worker) = (hex(&settlement.tag), worker.to_string());
        let release = |body: Option<&Vec<u8>>, delay: i64| {
            let release =
                self.of(&self.texts.leases.release, queue).bind(worker.clone()).bind(id.clone());
            let release =
                release.bind(body.cloned()).bind(delay).bind(body.map(|body| rank_of(body)));
            // A debounced job that has run is not replaced any more: its key is not its own.
            release.bind(i64::from(settlement.unique.is_none()))
        };
        let ours = match &settlement.to {
            Destination::Done | Destination::Removed | Destination::Dead { .. } => {
                let done = self
                    .of(&self.texts.fetch.done, queue)
                    .bind(worker.clone())
                    .bind(vec![id.clone()]);
                done.execute(&mut *tx).await
            }
            Destination::Retry(body, delay) => {
                release(Some(body), millis(*delay)).execute(&mut *tx).await
            }
            Destination::Deferred(body, delay) => {
                release(body.as_ref(), millis(*delay)).execute(&mut *tx).await
            }
            Destination::Waiting => release(None, -1).execute(&mut *tx).await,
            Destination::Suspect => {
                self.hint(queue, |hints| hints.suspects = true);
                self.of(&self.texts.leases.suspect_again, queue)
                    .bind(worker.clone())
                    .bind(id.clone())
                    .execute(&mut *tx)
                    .await
            }
            // Settled before, by `block_together`.
            Destination::Blocked { .. } => return Ok(false),
            Destination::Unhandled(line) => {
                let line = key_text(line);
                let open = self
                    .of(&self.texts.lines.open_line, queue)
                    .bind(line.clone())
                    .bind(1_000_i64)
                    .bind(0_i64);
                open.bind(1_i64).execute(&mut *tx).await.map_err(failed)?;
                counts.lines = true;
                self.hint(queue, |hints| {
                    if !hints.unhandled.contains(&line) {
                        hints.unhandled.push(line.clone());
                        counts.fetchable = usize::MAX;
                    }
                });
                self.of(&self.texts.lines.block, queue)
                    .bind(worker.clone())
                    .bind(vec![id.clone()])
                    .bind(line)
                    .execute(&mut *tx)
                    .await
            }
        };
        if ours.map_err(failed)? == 0 {
            return Ok(false);
        }
        if let Some(group) = &settlement.group {
            match settlement.to {
                Destination::Done | Destination::Removed | Destination::Dead { .. } => {
                    self.end_turn(tx, queue, &settlement.tag).await?;
                    counts.groups.insert(group.key.clone());
                }
                Destination::Waiting => {
                    self.rejoin(tx, queue, &id, group).await?;
                    counts.groups.insert(group.key.clone());
                }
                _ => {}
            }
        }
        match &settlement.to {
            Destination::Done => counts.done += 1,
            Destination::Removed => counts.ended += 1,
            Destination::Retry(..) => counts.failed += 1,
            Destination::Dead { bytes, reason, has_failed } => {
                counts.failed += i64::from(*has_failed);
                counts.ended += 1;
                self.keep_dead(tx, queue, &settlement.tag, reason, bytes).await?;
            }
            _ => {}
        }
        if matches!(
            settlement.to,
            Destination::Retry(..)
                | Destination::Deferred(..)
                | Destination::Waiting
                | Destination::Suspect
        ) {
            counts.fetchable = counts.fetchable.saturating_add(1);
        }
        Ok(true)
    }
}
