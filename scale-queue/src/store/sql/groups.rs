//! Groups: which of their jobs have a turn, and which wait in line.
//!
//! A push locks the group's row until its transaction ends, so the places in line are in the order
//! of the pushes. A worker never waits for that lock: it ends the turn of a job together with the
//! job, and then looks for the next one. If an application's transaction holds the lock, the worker
//! looks again soon.

use std::time::Duration;

use scale_sql::Connection;

use super::push::rank_of;
use super::{SqlStore, again, failed, hex, key_text};
use crate::error::Error;
use crate::group::line_of;

/// Time after which a group is tried again whose row was locked.
const AGAIN: Duration = Duration::from_millis(250);

impl SqlStore {
    /// Ends the turn of a job whose row is removed in the same transaction.
    pub(super) async fn end_turn(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        tag: &[u8],
    ) -> Result<(), Error> {
        let end = self.of(&self.texts.groups.end_turn, queue).bind(hex(tag));
        end.execute(tx).await.map(drop).map_err(failed)
    }

    /// Gives free turns of a group to the first jobs in its line. A failure is only logged: the
    /// next fetch tries again.
    pub(super) async fn give_turns(&self, queue: &str, key: &str) {
        let given = again(|| self.try_give_turns(queue, key)).await;
        match given {
            Ok(Some(0)) => {}
            Ok(Some(joined)) => self.idle.wake(queue, joined),
            Ok(None) => {
                self.groups.lock().insert((queue.to_owned(), key.to_owned()));
            }
            Err(error) => {
                tracing::warn!(%error, queue, "could not give a turn to the next job of a group");
                self.groups.lock().insert((queue.to_owned(), key.to_owned()));
            }
        }
    }

    /// Tries again for the groups whose row was locked. Returns the time after which to try once
    /// more.
    pub(super) async fn give_late_turns(&self, queue: &str) -> Option<Duration> {
        let late: Vec<_> = {
            let mut groups = self.groups.lock();
            if groups.is_empty() {
                return None;
            }
            groups.extract_if(|(known, _)| known == queue).collect()
        };
        for (_, key) in late {
            self.give_turns(queue, &key).await;
        }
        let is_late = self.groups.lock().iter().any(|(known, _)| known == queue);
        is_late.then_some(AGAIN)
    }

    /// Returns the number of jobs that have a turn now, or `None` if another transaction has locked
    /// the group.
    async fn try_give_turns(&self, queue: &str, key: &str) -> Result<Option<usize>, Error> {
        let (texts, name) = (&self.texts.groups, key_text(key));
        let mut tx = self.begin().await?;
        let group = self.of(&texts.group, queue).bind(name.clone());
        let Some(row) = group.fetch_optional(&mut tx).await.map_err(failed)? else {
            // Locked, or gone.
            let known = self.of(&texts.entered, queue).bind(name);
            let is_known = known.fetch_optional(&mut tx).await.map_err(failed)?.is_some();
            return Ok((!is_known).then_some(0));
        };
        let at_once: i64 = row.get(0).map_err(failed)?;
        let taken = self.of(&texts.taken, queue).bind(name.clone());
        let taken: i64 =
            taken.fetch_one(&mut tx).await.and_then(|row| row.get(0)).map_err(failed)?;
        let line = key_text(&line_of(key));
        let free = (at_once - taken).max(0);
        let first = self.of(&texts.first, queue).bind(line).bind(free);
        let jobs = first.fetch_all(&mut tx).await.map_err(failed)?;
        for row in &jobs {
            let (id, body): (String, Vec<u8>) =
                row.get(0).and_then(|id| Ok((id, row.get(1)?))).map_err(failed)?;
            let join = self.of(&texts.join, queue).bind(id.clone()).bind(rank_of(&body));
            join.execute(&mut tx).await.map_err(failed)?;
            let turn = self.of(&texts.turn, queue).bind(id).bind(name.clone());
            turn.execute(&mut tx).await.map_err(failed)?;
        }
        let taken = taken + jobs.len() as i64;
        let store = if taken == 0 {
            self.of(&texts.leave, queue).bind(name)
        } else {
            self.of(&texts.take_turns, queue).bind(name).bind(taken)
        };
        store.execute(&mut tx).await.map_err(failed)?;
        if !jobs.is_empty() {
            self.notify(&mut tx, self.payload(queue)).await?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(Some(jobs.len()))
    }

    /// Gives turns in groups in which a fault has left free ones.
    pub(super) async fn give_lost_turns(&self, queue: &str) -> Result<(), Error> {
        let lost = self.of(&self.texts.groups.lost_turns, queue);
        lost.execute(&self.database).await.map_err(failed)?;
        let idle = self.of(&self.texts.groups.idle, queue);
        for row in idle.fetch_all(&self.database).await.map_err(failed)? {
            let name: String = row.get(0).map_err(failed)?;
            self.give_turns(queue, &super::key_of(&name)).await;
        }
        Ok(())
    }
}
