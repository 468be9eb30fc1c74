//! One-time store in the memory of one process.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{FamilyAdvance, LIMIT, Store, judge};
use crate::auth::error::Error;

/// Maximum number of entries. Beyond it expired entries are removed; if none has expired, new
/// claims fail, so that a flood of claims never makes a used token valid again.
const MOST: usize = 1_000_000;

#[derive(Debug, Default)]
struct Entries {
    claims: HashMap<String, Instant>,
    /// Claims that limit rates. They are counted separately, so that a flood of them affects
    /// nothing else.
    limits: HashMap<String, Instant>,
    families: HashMap<String, Family>,
    counters: HashMap<String, (u64, Instant)>,
}

#[derive(Debug)]
struct Family {
    next: u64,
    taken: Instant,
    ends: Instant,
}

/// Store for one process: development, tests, small sites. At most a million entries, and as many
/// again that limit the rate of mails.
#[derive(Debug, Default)]
pub struct MemoryLedger(Mutex<Entries>);

/// Adds a time to an instant, limited to what the clock can represent.
fn after(now: Instant, time: Duration) -> Instant {
    now.checked_add(time).unwrap_or_else(|| now + Duration::from_hours(24 * 365 * 100))
}

impl Entries {
    fn len(&self) -> usize {
        self.claims.len() + self.families.len() + self.counters.len()
    }

    fn claims(&mut self, key: &str) -> &mut HashMap<String, Instant> {
        if key.starts_with(LIMIT) { &mut self.limits } else { &mut self.claims }
    }

    fn room_for_claim(&mut self, key: &str, now: Instant) -> Result<(), Error> {
        if !key.starts_with(LIMIT) {
            return self.room(now);
        }
        if self.limits.len() >= MOST {
            self.limits.retain(|_, ends| *ends > now);
        }
        if self.limits.len() < MOST {
            Ok(())
        } else {
            Err(Error::OneTimeStore("the store is full".into()))
        }
    }

    fn room(&mut self, now: Instant) -> Result<(), Error> {
        if self.len() < MOST {
            return Ok(());
        }
        self.claims.retain(|_, ends| *ends > now);
        self.families.retain(|_, family| family.ends > now);
        self.counters.retain(|_, (_, ends)| *ends > now);
        if self.len() < MOST { Ok(()) } else { Err(Error::OneTimeStore("store is full".into())) }
    }
}

#[async_trait]
impl Store for MemoryLedger {
    async fn claim(&self, key: &str, time: Duration) -> Result<bool, Error> {
        let now = Instant::now();
        let mut entries = self.0.lock();
        if entries.claims(key).get(key).is_some_and(|ends| *ends > now) {
            return Ok(false);
        }
        entries.room_for_claim(key, now)?;
        entries.claims(key).insert(key.to_owned(), after(now, time));
        Ok(true)
    }

    async fn claimed(&self, key: &str) -> Result<bool, Error> {
        let now = Instant::now();
        Ok(self.0.lock().claims(key).get(key).is_some_and(|ends| *ends > now))
    }

    async fn open(&self, key: &str, time: Duration) -> Result<(), Error> {
        let now = Instant::now();
        let mut entries = self.0.lock();
        entries.room(now)?;
        entries
            .families
            .insert(key.to_owned(), Family { next: 0, taken: now, ends: after(now, time) });
        Ok(())
    }

    async fn turn(&self, key: &str, turn: u64, grace: Duration) -> Result<FamilyAdvance, Error> {
        let now = Instant::now();
        let mut entries = self.0.lock();
        let Some(family) = entries.families.get_mut(key).filter(|f| f.ends > now) else {
            return Ok(FamilyAdvance::Gone);
        };
        let judged = judge(family.next, now - family.taken, turn, grace);
        match judged {
            FamilyAdvance::Taken(_) if turn == family.next => {
                (family.next, family.taken) = (turn + 1, now);
            }
            FamilyAdvance::Repeated => drop(entries.families.remove(key)),
            _ => {}
        }
        Ok(judged)
    }

    async fn close(&self, key: &str) -> Result<(), Error> {
        self.0.lock().families.remove(key);
        Ok(())
    }

    async fn count(&self, key: &str, keep: Option<Duration>) -> Result<u64, Error> {
        let now = Instant::now();
        let mut entries = self.0.lock();
        let Some((count, ends)) = entries.counters.get_mut(key).filter(|(_, ends)| *ends > now)
        else {
            return Ok(0);
        };
        if let Some(keep) = keep {
            *ends = after(now, keep).max(*ends);
        }
        Ok(*count)
    }

    async fn advance(&self, key: &str, keep: Duration) -> Result<u64, Error> {
        let now = Instant::now();
        let mut entries = self.0.lock();
        if !entries.counters.contains_key(key) {
            entries.room(now)?;
        }
        let counter = entries.counters.entry(key.to_owned()).or_insert((0, now));
        *counter = (counter.0 + 1, after(now, keep).max(counter.1));
        Ok(counter.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_of_mails_stops_no_second_factor() {
        let one_time = MemoryLedger::default();
        {
            let ends = Instant::now() + Duration::from_hours(1);
            one_time.0.lock().limits.extend((0..MOST).map(|n| (format!("{LIMIT}{n}"), ends)));
        }
        assert!(one_time.claim(&format!("{LIMIT}x"), Duration::from_secs(1)).await.is_err());
        assert!(one_time.claim("a code", Duration::from_secs(1)).await.unwrap());
    }
}
