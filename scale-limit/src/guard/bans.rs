//! Who is kept out for a while, and why: for a whole fleet.
//!
//! Each process has the whole list in memory, so that asking costs no round trip. On Redis a ban is an entry of a log that all processes
//! follow: it holds at once in the process that made it, and within about a second in the others.
//!
//! | key | type | holds | bounded by |
//! | --- | --- | --- | --- |
//! | `{app}:limit:bans` | stream | subject, for how long, reason | its newest 100,000 entries or so |
//!
//! | when | then |
//! | --- | --- |
//! | Redis does not answer | bans hold where they were made and where they are known; [`BanList::ban`] says that the others do not know |
//! | Redis comes back | what was missed is read |
//! | a process starts | it reads the log before it serves |
//! | over 100,000 subjects are banned | those with the least time left go first |

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use crate::error::Error;
use crate::limiter::Limiter;
use crate::policy::Policy;

/// Subjects at most.
const SUBJECTS: usize = 100_000;
/// How often other processes' bans are asked for.
#[cfg(feature = "redis")]
const EVERY: Duration = Duration::from_secs(1);
/// Longer reasons and subjects are cut.
const LONGEST: usize = 256;

/// One ban.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ban {
    /// Who: an address, an account, whatever the application bans by.
    pub subject: Arc<str>,
    /// Why, for the operators.
    pub reason: Arc<str>,
    until: Instant,
}

impl Ban {
    /// For how long it still holds.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// A list of bans that expire. Cloning costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_limit::Error> {
/// use std::time::Duration;
/// use scale_limit::{BanList, Limiter, Policy};
///
/// let (bans, limiter) = (BanList::memory(), Limiter::memory());
/// // Five wrong passwords in ten minutes: out for an hour.
/// let wrong = Policy::new("wrong", 5, Duration::from_secs(600));
/// for _ in 0..6 {
///     bans.strike(&limiter, &wrong, "203.0.113.7", Duration::from_secs(3600), "wrong passwords").await?;
/// }
/// assert_eq!(&*bans.find("203.0.113.7").unwrap().reason, "wrong passwords");
/// bans.unban("203.0.113.7").await?;
/// assert!(bans.find("203.0.113.7").is_none());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct BanList(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    bans: RwLock<HashMap<Arc<str>, Ban>>,
    #[cfg(feature = "redis")]
    log: Option<log::Log>,
}

impl BanList {
    /// A list of this process alone.
    pub fn memory() -> Self {
        Self(Arc::default())
    }

    /// A list shared by all that use the same Redis and `app`. Reads what there is, and follows it until the last clone is gone.
    ///
    /// # Errors
    /// [`Error::Store`] if the log cannot be read.
    #[cfg(feature = "redis")]
    pub async fn redis(redis: scale_redis::Redis, app: &str) -> Result<Self, Error> {
        let list = Self(Arc::new(Inner { bans: RwLock::default(), log: Some(log::Log::new(redis, app)) }));
        let mut last = String::from("0");
        list.0.catch_up(&mut last).await?;
        let weak = Arc::downgrade(&list.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                let Some(list) = weak.upgrade() else { return };
                if let Err(error) = list.catch_up(&mut last).await {
                    tracing::warn!(%error, "bans of other processes could not be read");
                }
            }
        });
        Ok(list)
    }

    /// Picks the store by its address, as [`Limiter::connect`] does.
    ///
    /// # Errors
    /// [`Error::Address`] for an address that is none; [`Error::Store`] if nobody answers there.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        match url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Self::memory()),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let redis = scale_redis::Redis::connect(url).await.map_err(|e| Error::Store(Box::new(e)))?;
                Self::redis(redis, app).await
            }
            _ => {
                let _ = app;
                Err(Error::address(url))
            }
        }
    }

    /// Whether somebody is banned.
    pub fn find(&self, subject: &str) -> Option<Ban> {
        self.0.bans.read().get(cut(subject)).filter(|ban| ban.until > Instant::now()).cloned()
    }

    /// Keeps somebody out from now on for `time`, in place of an earlier ban.
    ///
    /// # Errors
    /// [`Error::Store`]: it holds in this process, but the others could not be told.
    pub async fn ban(&self, subject: &str, time: Duration, reason: &str) -> Result<(), Error> {
        let (subject, reason) = (cut(subject), cut(reason));
        self.0.insert(subject, time, reason);
        metrics::counter!("scale_limit_bans_total").increment(1);
        #[cfg(feature = "redis")]
        if let Some(log) = &self.0.log {
            log.write(subject, time, reason).await?;
        }
        Ok(())
    }

    /// Lets somebody in again.
    ///
    /// # Errors
    /// [`Error::Store`]: it holds in this process, but the others could not be told.
    pub async fn unban(&self, subject: &str) -> Result<(), Error> {
        let subject = cut(subject);
        self.0.bans.write().remove(subject);
        #[cfg(feature = "redis")]
        if let Some(log) = &self.0.log {
            log.write(subject, Duration::ZERO, "").await?;
        }
        Ok(())
    }

    /// Counts an offence against `policy`, and bans for `time` whoever has committed more than it admits; `true`: banned now.
    ///
    /// # Errors
    /// As [`ban`](Self::ban).
    pub async fn strike(
        &self,
        limiter: &Limiter,
        policy: &Policy,
        subject: &str,
        time: Duration,
        reason: &str,
    ) -> Result<bool, Error> {
        if limiter.check(policy, cut(subject)).await.admitted {
            return Ok(false);
        }
        self.ban(subject, time, reason).await?;
        Ok(true)
    }

    /// All who are banned, those with the most time left first.
    pub fn list(&self) -> Vec<Ban> {
        let now = Instant::now();
        let mut list: Vec<Ban> = self.0.bans.read().values().filter(|ban| ban.until > now).cloned().collect();
        list.sort_by_key(|ban| std::cmp::Reverse(ban.until));
        list
    }
}

impl Inner {
    fn insert(&self, subject: &str, time: Duration, reason: &str) {
        let now = Instant::now();
        let mut bans = self.bans.write();
        if time.is_zero() {
            bans.remove(subject);
            return;
        }
        if bans.len() >= SUBJECTS && !bans.contains_key(subject) {
            bans.retain(|_, ban| ban.until > now);
            if bans.len() >= SUBJECTS {
                let mut ends: Vec<Instant> = bans.values().map(|ban| ban.until).collect();
                let (_, bound, _) = ends.select_nth_unstable(SUBJECTS / 16);
                let bound = *bound;
                bans.retain(|_, ban| ban.until > bound);
            }
        }
        // A century is as good as for ever.
        let until = now + time.min(Duration::from_hours(24 * 36_500));
        let subject: Arc<str> = subject.into();
        bans.insert(Arc::clone(&subject), Ban { subject, reason: reason.into(), until });
    }

    #[cfg(feature = "redis")]
    async fn catch_up(&self, last: &mut String) -> Result<(), Error> {
        let Some(log) = &self.log else { return Ok(()) };
        loop {
            let entries = log.read(last).await?;
            let Some(newest) = entries.last().map(|e| e.id.clone()) else { return Ok(()) };
            for entry in entries {
                self.insert(&entry.subject, entry.left, &entry.reason);
            }
            *last = newest;
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

#[cfg(feature = "redis")]
mod log {
    use std::time::Duration;

    use redis::Script;
    use scale_redis::Keys;

    use crate::error::Error;

    pub(super) struct Entry {
        pub(super) id: String,
        pub(super) subject: String,
        pub(super) reason: String,
        /// Zero: over, or lifted.
        pub(super) left: Duration,
    }

    pub(super) struct Log {
        redis: scale_redis::Redis,
        key: String,
        read: Script,
    }

    impl std::fmt::Debug for Log {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_tuple("Log").field(&self.redis).finish()
        }
    }

    fn store(error: redis::RedisError) -> Error {
        Error::Store(Box::new(error))
    }

    impl Log {
        pub(super) fn new(redis: scale_redis::Redis, app: &str) -> Self {
            Self { redis, key: Keys::new(app, "limit").plain("bans"), read: Script::new(include_str!("bans.lua")) }
        }

        pub(super) async fn write(&self, subject: &str, time: Duration, reason: &str) -> Result<(), Error> {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(100 * 365 * 86_400_000);
            let mut add = redis::cmd("XADD");
            add.arg(&self.key).arg("MAXLEN").arg("~").arg(super::SUBJECTS).arg("*");
            add.arg("subject").arg(subject).arg("ms").arg(millis).arg("reason").arg(reason);
            add.query_async(&mut self.redis.clone()).await.map_err(store)
        }

        /// Entries after `last`, oldest first.
        pub(super) async fn read(&self, last: &str) -> Result<Vec<Entry>, Error> {
            let mut redis = self.redis.clone();
            let mut call = self.read.key(&self.key);
            let rows: Vec<(String, String, i64, String)> = call.arg(last).invoke_async(&mut redis).await.map_err(store)?;
            let entry = |(id, subject, left, reason): (String, String, i64, String)| Entry {
                id,
                subject,
                reason,
                left: Duration::from_millis(left.max(0) as u64),
            };
            Ok(rows.into_iter().map(entry).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bans_end_by_themselves_and_the_newest_counts() {
        let bans = BanList::memory();
        bans.ban("a", Duration::from_secs(10), "first").await.unwrap();
        bans.ban("a", Duration::from_secs(5), "second").await.unwrap();
        assert_eq!(bans.list().len(), 1);
        assert_eq!(&*bans.find("a").unwrap().reason, "second");
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(bans.find("a").is_none() && bans.list().is_empty());
        bans.ban("a", Duration::MAX, "for ever").await.unwrap();
        assert!(bans.find("a").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_bans_is_bounded_and_the_longest_stay() {
        let bans = BanList::memory();
        bans.ban("long", Duration::from_hours(24), "").await.unwrap();
        for n in 0..SUBJECTS + 10 {
            bans.ban(&n.to_string(), Duration::from_secs(60 + n as u64 / 100), "").await.unwrap();
        }
        assert!(bans.list().len() <= SUBJECTS);
        assert!(bans.find("long").is_some());
    }
}
