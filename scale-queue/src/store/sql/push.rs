//! Pushes.

use scale_sql::{Connection, System};

use super::settings::Synchronous;
use super::statements::{PushStatements, Statements};
use super::{SqlStore, again, failed, hex, key_text, millis, unhex};
use crate::error::Error;
use crate::format::{group_of, priority_of, pushed_ms, replace_job, tag_of, turn_of};
use crate::group::{Group, line_of};
use crate::job::Priority;
use crate::limit::LONGEST;
use crate::store::{Entry, portions};

/// SQLite's `synchronous` level at which commits reach the disk.
const FULL: i64 = 2;

impl SqlStore {
    pub(super) async fn push_all(
        &self,
        queue: &str,
        entries: &[Entry],
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        self.know(queue).await?;
        let mut answers = Vec::with_capacity(entries.len());
        for portion in portions(entries) {
            answers.extend(again(|| self.push_portion(queue, portion)).await?);
            self.idle.wake(queue, portion.len());
        }
        Ok(answers)
    }

    async fn push_portion(
        &self,
        queue: &str,
        entries: &[Entry],
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        if entries.iter().all(is_plain) && self.system() == System::Postgres {
            self.push_plain(queue, entries).await?;
            return Ok(vec![None; entries.len()]);
        }
        let mut connection = self.database.acquire().await.map_err(failed)?;
        let before = self.make_durable(&mut connection).await?;
        connection.begin(self.database.lock_timeout()).await.map_err(failed)?;
        let mut answers = Vec::with_capacity(entries.len());
        if entries.len() > 1 && entries.iter().all(is_plain) && self.system() == System::MySql {
            self.push_rows(&mut connection, queue, entries).await?;
            answers.resize(entries.len(), None);
        } else {
            // Keys in the same order for all transactions, so that no two deadlock.
            let mut order: Vec<usize> = (0..entries.len()).collect();
            order.sort_by_cached_key(|n| {
                let Entry { unique, debounce, .. } = &entries[*n];
                let debounced = debounce.as_ref().map(|debounce| debounce.key.as_str());
                let unique = unique.as_ref().map(|(key, _)| key.as_str());
                // Jobs of a group stay in their order.
                match turn_of(&entries[*n].bytes) {
                    Some(group) => (Some(group.key), None, None),
                    None => (None, debounced, unique),
                }
            });
            answers.resize(entries.len(), None);
            // One time for all, so that jobs of one push are in the order of their ids.
            let now_ms = if entries.len() > 1 {
                let clock = self.texts.push.clock.query().fetch_one(&mut connection).await;
                Some(clock.and_then(|row| row.get::<i64>(0)).map_err(failed)?)
            } else {
                None
            };
            let (texts, app) = (self.texts, &self.app_text);
            for n in order {
                answers[n] =
                    push_one(texts, &mut connection, app, queue, &entries[n], now_ms).await?;
            }
        }
        self.notify(&mut connection, self.payload(queue)).await?;
        connection.commit_and_keep().await.map_err(failed)?;
        // If this is dropped earlier, the connection stays more durable than necessary.
        if let Some(before) = before {
            connection.tell(&format!("pragma synchronous = {before}")).await.map_err(failed)?;
        }
        Ok(answers)
    }

    /// Pushes jobs without keys in one statement.
    async fn push_plain(&self, queue: &str, entries: &[Entry]) -> Result<(), Error> {
        let ids: Vec<_> = entries.iter().map(|entry| hex(tag_of(&entry.bytes))).collect();
        let delays: Vec<_> = entries.iter().map(delay_ms).collect();
        let bodies: Vec<_> = entries.iter().map(|entry| entry.bytes.clone()).collect();
        let push = self.of(&self.texts.push.push_plain, queue).bind(ids).bind(delays).bind(bodies);
        push.bind(self.payload(queue)).execute(&self.database).await.map(drop).map_err(failed)
    }

    /// Pushes jobs without keys in few statements, each with a power of two as number of rows.
    async fn push_rows(
        &self,
        tx: &mut Connection<'_>,
        queue: &str,
        entries: &[Entry],
    ) -> Result<(), Error> {
        let mut rest = entries;
        while !rest.is_empty() {
            let count = 1 << rest.len().min(super::BATCH).ilog2();
            let (rows, after) = rest.split_at(count);
            let mut push = PushStatements::rows(count).bind(self.app_text.clone()).bind(queue);
            for entry in rows {
                push = push
                    .bind(hex(tag_of(&entry.bytes)))
                    .bind(delay_ms(entry))
                    .bind(entry.bytes.clone());
            }
            push.execute(&mut *tx).await.map_err(failed)?;
            rest = after;
        }
        Ok(())
    }

    /// Makes commits reach the disk, if this SQLite file must keep every push. Returns the previous
    /// setting.
    async fn make_durable(&self, connection: &mut Connection<'_>) -> Result<Option<i64>, Error> {
        if self.system() != System::Sqlite || self.synchronous == Synchronous::Normal {
            return Ok(None);
        }
        let set = scale_sql::Statement::new(System::Sqlite, "pragma synchronous").query();
        let set: i64 =
            set.fetch_one(&mut *connection).await.and_then(|row| row.get(0)).map_err(failed)?;
        if set >= FULL {
            return Ok(None);
        }
        connection.tell("pragma synchronous = full").await.map_err(failed)?;
        Ok(Some(set))
    }
}

/// Stores a job. Returns the id of the job that holds its key, if any.
pub(super) async fn push_one(
    texts: &Statements,
    connection: &mut Connection<'_>,
    app: &str,
    queue: &str,
    entry: &Entry,
    now_ms: Option<i64>,
) -> Result<Option<Vec<u8>>, Error> {
    let id = hex(tag_of(&entry.bytes));
    let of = |statement: &scale_sql::Statement| statement.bind(app).bind(queue);
    // A key is read only after it was in the way. On MySQL, reading a missing key locks its gap,
    // and two transactions with the same gap deadlock. A key is changed only if it has expired,
    // because all transactions that were refused share its lock.
    if let Some((key, life)) = &entry.once {
        let key = key_text(key);
        let once = of(&texts.push.once).bind(key.clone()).bind(id.clone()).bind(millis(*life));
        if once.clone().execute(&mut *connection).await.map_err(failed)? == 0 {
            match holder_of(of(&texts.push.once_holder).bind(key.clone()), connection).await? {
                Some((holder, false)) => return Ok(Some(holder)),
                Some((_, true)) => {
                    let late = of(&texts.push.forget_late_once).bind(key);
                    late.execute(&mut *connection).await.map_err(failed)?;
                }
                None => {}
            }
            if once.execute(&mut *connection).await.map_err(failed)? == 0 {
                // Another push was faster. Its id is unknown, and this job is not stored.
                return Ok(Some(tag_of(&entry.bytes).to_vec()));
            }
        }
    }
    let unique = match &entry.debounce {
        // Never late: only the next push under the key releases it.
        Some(debounce) => Some((key_text(&debounced_key(&debounce.key)), millis(LONGEST))),
        None => entry.unique.as_ref().map(|(key, life)| (key_text(key), millis(*life))),
    };
    let push = texts.push.push.bind(id).bind(app).bind(queue).bind(delay_ms(entry));
    let push = push
        .bind(group_of(&entry.bytes).map(key_text))
        .bind(unique.as_ref().map(|(key, _)| key.clone()));
    let push = push
        .bind(unique.as_ref().map_or(0, |(_, life)| *life))
        .bind(entry.bytes.clone())
        .bind(rank_of(&entry.bytes))
        .bind(now_ms);
    // The holder may end between the refused insert and the read of the holder. Then the insert is
    // repeated.
    for _ in 0..10 {
        if let Some((key, _)) = unique.as_ref().filter(|_| entry.debounce.is_some()) {
            let replaced = replace_debounced(texts, connection, app, queue, entry, key).await?;
            if replaced.is_some() {
                return Ok(replaced);
            }
            let release = of(&texts.push.release_debounce).bind(key.clone());
            release.execute(&mut *connection).await.map_err(failed)?;
        }
        let stored = push.clone().execute(&mut *connection).await.map_err(failed)? > 0;
        let Some((key, _)) = unique.as_ref().filter(|_| !stored) else {
            // A job that was there already has its turn or its place.
            if stored && let Some(group) = turn_of(&entry.bytes) {
                enter_group(texts, connection, app, queue, entry, &group).await?;
            }
            return Ok(None);
        };
        if entry.debounce.is_some() {
            // Another push under the key was faster: its job is replaced.
            continue;
        }
        match holder_of(of(&texts.push.holder).bind(key.clone()), connection).await? {
            Some((holder, false)) => return Ok(Some(holder)),
            Some((_, true)) => {
                of(&texts.push.free_late)
                    .bind(key.clone())
                    .execute(&mut *connection)
                    .await
                    .map_err(failed)?;
            }
            None => {}
        }
    }
    Err(Error::store("the holder of a unique key changed ten times during a push; try again"))
}

/// Gives a job that was just stored a turn in its group, or puts it in line.
async fn enter_group(
    texts: &Statements,
    connection: &mut Connection<'_>,
    app: &str,
    queue: &str,
    entry: &Entry,
    group: &Group,
) -> Result<(), Error> {
    let name = key_text(&group.key);
    let of = |statement: &scale_sql::Statement| statement.bind(app).bind(queue);
    let enter = of(&texts.groups.enter).bind(name.clone()).bind(i64::from(group.at_once));
    enter.execute(&mut *connection).await.map_err(failed)?;
    let entered = of(&texts.groups.entered).bind(name.clone());
    let row = entered.fetch_one(&mut *connection).await.map_err(failed)?;
    let number = |n: usize| row.get::<i64>(n).map_err(failed);
    // The number of the job with which the group began.
    let (taken, last_ms, at_once) = (number(0)?, number(1)?, number(2)?);
    let id = hex(tag_of(&entry.bytes));
    if taken < at_once {
        let take = of(&texts.groups.take_turns).bind(name.clone()).bind(taken + 1);
        take.execute(&mut *connection).await.map_err(failed)?;
        let turn = of(&texts.groups.turn).bind(id).bind(name);
        return turn.execute(connection).await.map(drop).map_err(failed);
    }
    let line = key_text(&line_of(&group.key));
    let put = of(&texts.groups.put_in_line).bind(id).bind(line).bind(last_ms);
    put.execute(connection).await.map(drop).map_err(failed)
}

/// Replaces the scheduled job of a debounce key. Returns its id, or `None` if there is none.
async fn replace_debounced(
    texts: &Statements,
    connection: &mut Connection<'_>,
    app: &str,
    queue: &str,
    entry: &Entry,
    key: &str,
) -> Result<Option<Vec<u8>>, Error> {
    let of = |statement: &scale_sql::Statement| statement.bind(app).bind(queue);
    let held = of(&texts.push.debounced).bind(key);
    let Some(row) = held.fetch_optional(&mut *connection).await.map_err(failed)? else {
        return Ok(None);
    };
    let (id, replaced): (String, Vec<u8>) =
        row.get(0).and_then(|id| Ok((id, row.get(1)?))).map_err(failed)?;
    let mut bytes = entry.bytes.clone();
    replace_job(&mut bytes, &replaced);
    let at_most = entry.debounce.as_ref().map_or(0, |debounce| millis(debounce.at_most));
    let latest = pushed_ms(&replaced).unwrap_or(0) as i64;
    let replace = of(&texts.push.replace).bind(id.clone()).bind(bytes);
    let replace = replace
        .bind(rank_of(&entry.bytes))
        .bind(group_of(&entry.bytes).map(key_text))
        .bind(delay_ms(entry))
        .bind(latest.saturating_add(at_most));
    replace.execute(connection).await.map_err(failed)?;
    Ok(Some(unhex(&id)))
}

/// Returns the unique key of a debounced job. No key of the application begins like this.
fn debounced_key(key: &str) -> String {
    format!("\u{1}debounce:{key}")
}

/// Reads the id of a key's holder, and whether the key has expired.
async fn holder_of(
    ask: scale_sql::Query,
    connection: &mut Connection<'_>,
) -> Result<Option<(Vec<u8>, bool)>, Error> {
    let row = ask.fetch_optional(connection).await.map_err(failed)?;
    let read = |row: scale_sql::Row| Ok((unhex(&row.get::<String>(0)?), row.get::<i64>(1)? == 1));
    row.map(read).transpose().map_err(failed)
}

/// Notifies other processes' idle workers when the transaction commits.
pub(super) async fn notify(
    texts: &Statements,
    connection: &mut Connection<'_>,
    payload: String,
) -> Result<(), Error> {
    if connection.system() == System::Postgres {
        texts.push.notify.bind(payload).fetch_all(connection).await.map_err(failed)?;
    }
    Ok(())
}

pub(super) fn delay_ms(entry: &Entry) -> i64 {
    millis(entry.delay)
}

fn is_plain(entry: &Entry) -> bool {
    entry.unique.is_none()
        && entry.once.is_none()
        && entry.debounce.is_none()
        && group_of(&entry.bytes).is_none()
        && priority_of(&entry.bytes) == Priority::Normal
        && turn_of(&entry.bytes).is_none()
}

/// Returns the rank of a job that is no suspect: see `statements::fetch`.
pub(super) fn rank_of(bytes: &[u8]) -> i64 {
    match priority_of(bytes) {
        Priority::High => 2,
        Priority::Normal => 0,
        Priority::Low => 3,
    }
}
