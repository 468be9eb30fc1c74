//! Bans in Redis: a log that all processes follow, and the operators' bans.

use std::time::Duration;

use redis::Script;
use scale_redis::Keys;

use crate::error::Error;

pub(super) struct Entry {
    pub(super) id: String,
    /// Author of the entry: `operator`, `rule`, or `lifted`.
    pub(super) by: String,
    pub(super) subject: String,
    pub(super) reason: String,
    /// Remaining time; zero: the ban is over.
    pub(super) left: Duration,
}

/// State of the log since the last read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    GoesOn,
    First,
    Lost,
    /// Entries were trimmed before they were read.
    Cut,
}

/// Entries written since the last read.
pub(super) struct NewEntries {
    pub(super) log: State,
    /// Entries, oldest first.
    pub(super) entries: Vec<Entry>,
}

pub(super) struct Log {
    redis: scale_redis::Redis,
    log: String,
    kept: String,
    write: Script,
    read: Script,
    scan: Script,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Log").field(&self.redis).finish()
    }
}

fn store(error: redis::RedisError) -> Error {
    Error::Store(Box::new(error))
}

fn left(millis: i64) -> Duration {
    Duration::from_millis(millis.max(0) as u64)
}

impl Log {
    pub(super) fn new(redis: scale_redis::Redis, app: &str) -> Self {
        let keys = Keys::new(app, "limit");
        let script = |text| Script::new(text);
        Self {
            redis,
            log: keys.tagged("bans", "log"),
            kept: keys.tagged("bans", "kept"),
            write: script(include_str!("ban.lua")),
            read: script(include_str!("bans.lua")),
            scan: script(include_str!("kept.lua")),
        }
    }

    pub(super) fn generation(&self) -> Option<u64> {
        self.redis.generation()
    }

    pub(super) async fn write(
        &self,
        by: &str,
        subject: &str,
        time: Duration,
        reason: &str,
    ) -> Result<(), Error> {
        let mut call = self.write.key(&self.log);
        call.key(&self.kept)
            .arg(by)
            .arg(subject)
            .arg(time.as_millis() as u64)
            .arg(reason)
            .arg(super::SUBJECTS);
        let room: bool = call.invoke_async(&mut self.redis.clone()).await.map_err(store)?;
        if room { Ok(()) } else { Err(Error::Full(super::SUBJECTS)) }
    }

    /// Reads the entries after `last`.
    pub(super) async fn read(&self, last: &str) -> Result<NewEntries, Error> {
        let mut redis = self.redis.clone();
        let mut call = self.read.key(&self.log);
        type Row = (String, String, String, i64, String);
        let (state, rows): (u8, Vec<Row>) =
            call.arg(last).invoke_async(&mut redis).await.map_err(store)?;
        let log = match state {
            0 => State::GoesOn,
            1 => State::First,
            2 => State::Lost,
            _ => State::Cut,
        };
        let entry =
            |(id, by, subject, ms, reason): Row| Entry { id, by, subject, reason, left: left(ms) };
        Ok(NewEntries { log, entries: rows.into_iter().map(entry).collect() })
    }

    /// Reads the operators' bans.
    pub(super) async fn kept(&self) -> Result<Vec<Entry>, Error> {
        let (mut cursor, mut kept) = (String::from("0"), Vec::new());
        loop {
            let mut redis = self.redis.clone();
            let mut call = self.scan.key(&self.kept);
            type Row = (String, i64, String);
            let (next, rows): (String, Vec<Row>) =
                call.arg(&cursor).invoke_async(&mut redis).await.map_err(store)?;
            kept.extend(rows.into_iter().map(|(subject, ms, reason)| Entry {
                id: String::new(),
                by: "operator".into(),
                subject,
                reason,
                left: left(ms),
            }));
            if next == "0" {
                return Ok(kept);
            }
            cursor = next;
        }
    }
}
