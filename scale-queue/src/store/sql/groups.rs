//! Groups: which of their jobs have a turn, and which wait in line.
//!
//! A push locks the group's row until its transaction ends, so the places in line are in the order
//! of the pushes. A worker never waits for that lock: it ends the turn of a job, and gives it to
//! the next one, together with the job. If an application's transaction holds the lock, the worker
//! looks for the next one soon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scale_sql::Connection;

use super::push::rank_of;
use super::{SqlStore, again, failed, hex, key_text};
use crate::error::Error;
use crate::group::{Group, line_of};

/// Time after which a group is tried again whose row was locked.
const AGAIN: Duration = Duration::from_millis(250);
/// Maximum number of such groups that a fetch tries again.
const TRIES: usize = 16;

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

    /// Gives free turns of a group to the first jobs in its line. A failure is only logged: a later
    /// fetch tries again.
    pub(super) async fn give_turns(&self, queue: &str, key: &str) {
        let give = async || {
            let mut tx = self.begin().await?;
            let joined = self.give_turns_in(&mut tx, queue, key).await?;
            tx.commit().await.map_err(failed)?;
            Ok(joined)
        };
        match again(give).await {
            Ok(joined) => self.idle.wake(queue, joined),
            Err(error) => {
                tracing::warn!(%error, queue, "could not give a turn to the next job of a group");
                self.give_later(queue, key);
            }
        }
    }

    fn give_later(&self, queue: &str, key: &str) {
        let at = Instant::now() + AGAIN;
        let is_first = {
            let mut groups = self.groups.lock();
            let is_first = !groups.keys().any(|(known, _)| known == queue);
            groups.insert((queue.to_owned(), key.to_owned()), at);
            is_first
        };
        if is_first {
            // A worker that sleeps already does not know of it.
            let (idle, queue) = (Arc::downgrade(&self.idle), queue.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(AGAIN).await;
                if let Some(idle) = idle.upgrade() {
                    idle.wake(&queue, 1);
                }
            });
        }
    }

    /// Tries again for groups whose row was locked. Returns the time after which to try once more.
    pub(super) async fn give_late_turns(&self, queue: &str) -> Option<Duration> {
        let late: Vec<_> = {
            let (mut groups, now) = (self.groups.lock(), Instant::now());
            if groups.is_empty() {
                return None;
            }
            let due = groups.extract_if(|(known, _), at| known == queue && *at <= now);
            due.take(TRIES).map(|((_, key), _)| key).collect()
        };
        for key in late {
            self.give_turns(queue, &key).await;
        }
        let is_late = self.groups.lock().keys().any(|(known, _)| known == queue);
        is_late.then_some(AGAIN)
    }

    /// Gives free turns of a group, if no other transaction has locked it; otherwise a later fetch
    /// tries again. Returns the number of jobs that have a turn now.
    pub(super) async fn give_turns_in(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        key: &str,
    ) -> Result<usize, Error> {
        let (texts, name) = (&self.texts.groups, key_text(key));
        let group = self.of(&texts.group, queue).bind(name.clone());
        let Some(row) = group.fetch_optional(&mut *tx).await.map_err(failed)? else {
            // Locked, or gone.
            let known = self.of(&texts.entered, queue).bind(name);
            if known.fetch_optional(tx).await.map_err(failed)?.is_some() {
                self.give_later(queue, key);
            }
            return Ok(0);
        };
        let at_once: i64 = row.get(0).map_err(failed)?;
        let taken = self.of(&texts.taken, queue).bind(name.clone());
        let taken: i64 =
            taken.fetch_one(&mut *tx).await.and_then(|row| row.get(0)).map_err(failed)?;
        let line = key_text(&line_of(key));
        let free = (at_once - taken).max(0);
        let first = self.of(&texts.first, queue).bind(line).bind(free);
        let jobs = first.fetch_all(&mut *tx).await.map_err(failed)?;
        for row in &jobs {
            let (id, body): (String, Vec<u8>) =
                row.get(0).and_then(|id| Ok((id, row.get(1)?))).map_err(failed)?;
            let join = self.of(&texts.join, queue).bind(id.clone()).bind(rank_of(&body));
            join.execute(&mut *tx).await.map_err(failed)?;
            let turn = self.of(&texts.turn, queue).bind(id).bind(name.clone());
            turn.execute(&mut *tx).await.map_err(failed)?;
        }
        let taken = taken + jobs.len() as i64;
        let store = if taken == 0 {
            self.of(&texts.leave, queue).bind(name)
        } else {
            self.of(&texts.take_turns, queue).bind(name).bind(taken)
        };
        store.execute(&mut *tx).await.map_err(failed)?;
        if !jobs.is_empty() {
            self.notify(tx, self.payload(queue)).await?;
        }
        Ok(jobs.len())
    }

    /// Puts a job that comes back, and has no turn, into its line again, at the same place.
    pub(super) async fn rejoin(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        id: &str,
        group: &Group,
    ) -> Result<(), Error> {
        let (name, line) = (key_text(&group.key), key_text(&line_of(&group.key)));
        let rejoin = self.of(&self.texts.groups.rejoin, queue).bind(id).bind(line);
        if rejoin.execute(&mut *tx).await.map_err(failed)? > 0 {
            // The last of its group may have ended meanwhile.
            let enter = self.of(&self.texts.groups.enter, queue).bind(name);
            enter.bind(i64::from(group.at_once)).execute(tx).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Gives turns in groups in which a fault has left free ones.
    pub(super) async fn give_lost_turns(&self, queue: &str) -> Result<(), Error> {
        // Read without locks: a turn of a transaction that is open is not lost.
        let lost = self.of(&self.texts.groups.lost_turns, queue);
        for row in lost.fetch_all(&self.database).await.map_err(failed)? {
            let end = self.of(&self.texts.groups.end_turn, queue);
            let end = end.bind(row.get::<String>(0).map_err(failed)?);
            end.execute(&self.database).await.map_err(failed)?;
        }
        let idle = self.of(&self.texts.groups.idle, queue);
        for row in idle.fetch_all(&self.database).await.map_err(failed)? {
            let name: String = row.get(0).map_err(failed)?;
            self.give_turns(queue, &super::key_of(&name)).await;
        }
        Ok(())
    }
}
