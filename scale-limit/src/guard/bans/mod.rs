//! Bans with an expiry and a reason, for a whole fleet.
//!
//! Each process has the whole list in memory, so a look-up costs no round trip. On Redis all
//! processes follow a log of bans and lifted bans: a ban takes effect at once in the process that
//! made it, and within about a second in the others.
//!
//! Bans of operators ([`BanList::ban`]) are kept separately, so that no number of automatic bans
//! ([`BanList::strike`], [`BanList::ban_automatically`]) can displace them. Of two bans of one
//! subject the one that ends later counts.
//!
//! | key | type | holds | bounded by |
//! | --- | --- | --- | --- |
//! | `{app}:limit:{bans}:log` | stream | bans and lifted bans: maker, subject, duration, reason | its newest 100,000 entries or so |
//! | `{app}:limit:{bans}:kept` | hash | the operators' bans: expiry and reason | 100,000 subjects |
//!
//! | when | then |
//! | --- | --- |
//! | Redis does not answer | bans hold in the processes that know them; [`BanList::ban`] returns an error because the other processes do not know the ban |
//! | Redis answers again | the missed entries are read |
//! | Redis has lost its data | bans hold in the processes that know them; operators' bans are written again |
//! | a process starts | it reads the operators' bans and the log before it serves |
//! | more than 100,000 subjects are banned automatically | bans with the least time left are dropped first |
//! | operators ban more than 100,000 subjects | [`Error::Full`]: ban networks instead, which cover more addresses at once |
//!
//! A subject that is an address or a network bans all [clients](crate::client::ClientIp) in it; any
//! other subject bans the key with the same text.

#[cfg(feature = "redis")]
mod log;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use ipnet::IpNet;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::error::Error;
use crate::limiter::Limiter;
use crate::networks::canonical;
use crate::policy::Policy;

/// Maximum number of subjects of each kind.
const SUBJECTS: usize = 100_000;
/// Interval at which the bans of other processes are read.
#[cfg(feature = "redis")]
const EVERY: Duration = Duration::from_secs(1);
/// Maximum length of reasons and subjects, in bytes: longer reasons are cut off, and the end of
/// longer subjects is replaced by a hash.
const LONGEST: usize = 256;
/// Maximum duration of a ban.
const CENTURY: Duration = Duration::from_hours(24 * 36_500);

/// One ban.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ban {
    /// Subject of the ban: an address, a network, an account, or any other key.
    pub subject: Arc<str>,
    /// Reason, for the operators.
    pub reason: Arc<str>,
    /// Maker of the ban.
    pub by: By,
    until: Instant,
}

/// Kinds of makers of bans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum By {
    /// A person.
    Operator,
    /// A rule of the application.
    Rule,
}

impl Ban {
    /// Returns the remaining time.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// A list of bans that expire. A clone costs one reference count.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_limit::Error> {
/// use std::time::Duration;
/// use scale_limit::{BanList, Limiter, Policy};
///
/// let (bans, limiter) = (BanList::memory(), Limiter::memory());
/// // Five wrong passwords in ten minutes: banned for an hour.
/// let wrong = Policy::new("wrong", 5, Duration::from_secs(600));
/// for _ in 0..6 {
///     bans.strike(
///         &limiter, &wrong, "203.0.113.7", Duration::from_secs(3600), "wrong passwords",
///     ).await?;
/// }
/// assert_eq!(&*bans.find("203.0.113.7").unwrap().reason, "wrong passwords");
/// bans.unban("203.0.113.7").await?;
/// assert!(bans.find("203.0.113.7").is_none());
///
/// bans.ban("198.51.100.0/24", Duration::from_secs(86400), "abuse report 4711").await?;
/// assert!(bans.find_address("198.51.100.9".parse().unwrap()).is_some());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct BanList(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    lists: RwLock<Lists>,
    #[cfg(feature = "redis")]
    log: Option<log::Log>,
}

/// Position up to which a process has read the log.
#[cfg(feature = "redis")]
struct Read {
    /// Id of the last entry read.
    id: String,
    /// Generation of the connection: after a reconnect, a server with older data may have taken
    /// over.
    generation: Option<u64>,
}

#[derive(Debug, Default)]
struct Lists {
    operators: HashMap<Arc<str>, Ban>,
    rules: HashMap<Arc<str>, Ban>,
    /// Prefix lengths of the banned networks, with whether they are of IPv6.
    lengths: BTreeSet<(bool, u8)>,
}

impl BanList {
    /// Creates a list in the memory of this process.
    pub fn memory() -> Self {
        Self(Arc::default())
    }

    /// Creates a list that all processes with the same Redis and `app` share. Reads the existing
    /// bans, and follows the log until the last clone is dropped.
    ///
    /// # Errors
    /// [`Error::Store`] if the list cannot be read.
    #[cfg(feature = "redis")]
    pub async fn redis(redis: scale_redis::Redis, app: &str) -> Result<Self, Error> {
        let list = Self(Arc::new(Inner {
            lists: RwLock::default(),
            log: Some(log::Log::new(redis, app)),
        }));
        let mut last = Read { id: String::from("0"), generation: None };
        list.0.catch_up(&mut last).await?;
        let weak = Arc::downgrade(&list.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                let Some(list) = weak.upgrade() else { return };
                if let Err(error) = list.catch_up(&mut last).await {
                    tracing::warn!(%error, "bans of other processes were not read: trying again");
                }
            }
        });
        Ok(list)
    }

    /// Picks the store by its address, as [`Limiter::connect`] does.
    ///
    /// # Errors
    /// [`Error::Address`] for an unsupported address; [`Error::Store`] if the server does not
    /// answer.
    pub async fn connect(url: &str, app: &str) -> Result<Self, Error> {
        match url.split(':').next().unwrap_or_default() {
            "memory" => Ok(Self::memory()),
            #[cfg(feature = "redis")]
            scheme if scheme.starts_with("redis") => {
                let redis = scale_redis::Redis::connect(url)
                    .await
                    .map_err(|e| Error::Store(Box::new(e)))?;
                Self::redis(redis, app).await
            }
            _ => {
                let _ = app;
                Err(Error::address(url))
            }
        }
    }

    /// Returns the ban of a subject, if there is one; of several, the one that ends last.
    pub fn find(&self, subject: &str) -> Option<Ban> {
        self.0.lists.read().find(&name(subject))
    }

    /// Returns the ban of an address or of a network that contains it, if there is one; of several,
    /// the one that ends last.
    pub fn find_address(&self, ip: IpAddr) -> Option<Ban> {
        let lists = self.0.lists.read();
        if lists.operators.is_empty() && lists.rules.is_empty() {
            return None;
        }
        let ip = ip.to_canonical();
        let inside = lists.lengths.iter().filter(|(v6, _)| *v6 == ip.is_ipv6());
        let networks = inside
            .filter_map(|(_, length)| IpNet::new(ip, *length).ok())
            .map(|net| net.trunc().to_string());
        std::iter::once(ip.to_string())
            .chain(networks)
            .filter_map(|subject| lists.find(&subject))
            .max_by_key(|ban| ban.until)
    }

    /// Bans a subject for `time` from now, unless an operator's ban exists that ends later: lift
    /// that ban first.
    ///
    /// # Errors
    /// [`Error::Store`]: the ban holds in this process, but the others do not know it.
    /// [`Error::Full`]: the ban does not hold.
    pub async fn ban(&self, subject: &str, time: Duration, reason: &str) -> Result<(), Error> {
        self.keep_out(By::Operator, subject, time, reason).await
    }

    /// Does the same for a rule, by whatever the application detects automatically. Such bans take
    /// no room from operators' bans, and shorten none of them.
    ///
    /// # Errors
    /// [`Error::Store`]: the ban holds in this process, but the others do not know it.
    pub async fn ban_automatically(
        &self,
        subject: &str,
        time: Duration,
        reason: &str,
    ) -> Result<(), Error> {
        self.keep_out(By::Rule, subject, time, reason).await
    }

    async fn keep_out(
        &self,
        by: By,
        subject: &str,
        time: Duration,
        reason: &str,
    ) -> Result<(), Error> {
        let (subject, reason, time) = (name(subject), cut(reason), time.min(CENTURY));
        if !self.0.insert(by, &subject, time, reason)? {
            return Ok(());
        }
        let by = match by {
            By::Operator => "operator",
            By::Rule => "rule",
        };
        metrics::counter!("scale_limit_bans_total", "by" => by).increment(1);
        #[cfg(feature = "redis")]
        if let Some(log) = &self.0.log {
            log.write(by, &subject, time, reason).await?;
        }
        Ok(())
    }

    /// Lifts the bans of a subject, of operators and rules. Networks that contain the address stay
    /// banned.
    ///
    /// # Errors
    /// [`Error::Store`]: the bans are lifted in this process, but the others do not know that.
    pub async fn unban(&self, subject: &str) -> Result<(), Error> {
        let subject = name(subject);
        self.0.lists.write().remove(&subject);
        #[cfg(feature = "redis")]
        if let Some(log) = &self.0.log {
            log.write("lifted", &subject, Duration::ZERO, "").await?;
        }
        Ok(())
    }

    /// Counts an offence against `policy`, and bans a subject for `time` that has committed more
    /// than the policy admits. Returns `true` if the subject is banned now.
    ///
    /// # Errors
    /// The same as those of [`ban_automatically`](Self::ban_automatically).
    pub async fn strike(
        &self,
        limiter: &Limiter,
        policy: &Policy,
        subject: &str,
        time: Duration,
        reason: &str,
    ) -> Result<bool, Error> {
        if limiter.check(policy, subject).await.admitted {
            return Ok(false);
        }
        self.ban_automatically(subject, time, reason).await?;
        Ok(true)
    }

    /// Returns all bans, those with the most time left first. A subject that was banned both by an
    /// operator and by a rule is listed twice.
    pub fn list(&self) -> Vec<Ban> {
        let now = Instant::now();
        let lists = self.0.lists.read();
        let all = lists.operators.values().chain(lists.rules.values());
        let mut list: Vec<Ban> = all.filter(|ban| ban.until > now).cloned().collect();
        list.sort_by_key(|ban| std::cmp::Reverse(ban.until));
        list
    }
}

impl Lists {
    fn find(&self, subject: &str) -> Option<Ban> {
        let now = Instant::now();
        let bans = [self.operators.get(subject), self.rules.get(subject)];
        bans.into_iter()
            .flatten()
            .filter(|ban| ban.until > now)
            .max_by_key(|ban| ban.until)
            .cloned()
    }

    fn remove(&mut self, subject: &str) {
        self.operators.remove(subject);
        self.rules.remove(subject);
    }

    /// Keeps the ban that ends later. Returns `false` if that is the existing one.
    fn insert(&mut self, ban: Ban) -> Result<bool, Error> {
        let now = Instant::now();
        let of = match ban.by {
            By::Operator => &mut self.operators,
            By::Rule => &mut self.rules,
        };
        if of.get(&ban.subject).is_some_and(|known| known.until >= ban.until) {
            return Ok(false);
        }
        if of.len() >= SUBJECTS && !of.contains_key(&ban.subject) {
            of.retain(|_, ban| ban.until > now);
            if of.len() >= SUBJECTS && ban.by == By::Operator {
                return Err(Error::Full(SUBJECTS));
            }
            if of.len() >= SUBJECTS {
                let mut ends: Vec<Instant> = of.values().map(|ban| ban.until).collect();
                let (_, bound, _) = ends.select_nth_unstable(SUBJECTS / 16);
                let bound = *bound;
                of.retain(|_, ban| ban.until > bound);
            }
        }
        if let Ok(network) = ban.subject.parse::<IpNet>() {
            self.lengths.insert((network.addr().is_ipv6(), network.prefix_len()));
        }
        of.insert(Arc::clone(&ban.subject), ban);
        Ok(true)
    }
}

impl Inner {
    fn insert(&self, by: By, subject: &str, time: Duration, reason: &str) -> Result<bool, Error> {
        if time.is_zero() {
            return Ok(false);
        }
        let until = Instant::now() + time.min(CENTURY);
        self.lists.write().insert(Ban { subject: subject.into(), reason: reason.into(), by, until })
    }

    #[cfg(feature = "redis")]
    async fn catch_up(&self, read: &mut Read) -> Result<(), Error> {
        let Some(log) = &self.log else { return Ok(()) };
        let generation = log.generation();
        let mut rewrite = read.generation.is_some() && generation != read.generation;
        loop {
            let news = log.read(&read.id).await?;
            rewrite |= news.log == log::State::Lost;
            if news.log != log::State::GoesOn {
                let kept = log.kept().await?;
                if news.log == log::State::Cut {
                    // Some bans may have been lifted in the meantime.
                    self.lists.write().operators.clear();
                }
                for entry in kept {
                    self.take(&entry);
                }
            }
            for entry in &news.entries {
                self.take(entry);
            }
            let Some(newest) = news.entries.last().map(|e| e.id.clone()) else { break };
            read.id = newest;
        }
        if rewrite {
            // Restores bans that the server may have lost; of two bans the longer one counts.
            let known: Vec<Ban> = self.lists.read().operators.values().cloned().collect();
            for ban in known.iter().filter(|ban| !ban.left().is_zero()) {
                log.write("operator", &ban.subject, ban.left(), &ban.reason).await?;
            }
        }
        read.generation = generation;
        Ok(())
    }

    #[cfg(feature = "redis")]
    fn take(&self, entry: &log::Entry) {
        let by = match &*entry.by {
            "operator" => By::Operator,
            "rule" => By::Rule,
            _ => return self.lists.write().remove(&entry.subject),
        };
        // The operators' list cannot be full here, because the writer had room.
        let _ = self.insert(by, &entry.subject, entry.left, &entry.reason);
    }
}

/// Returns an address or a network in its canonical form; of a long text, the end is replaced by a
/// hash.
fn name(subject: &str) -> String {
    if let Ok(ip) = subject.parse::<IpAddr>() {
        return ip.to_canonical().to_string();
    }
    if let Ok(network) = subject.parse::<IpNet>() {
        return canonical(network).to_string();
    }
    if subject.len() <= LONGEST {
        return subject.into();
    }
    let hash = HEXLOWER.encode(&Sha256::digest(subject.as_bytes())[..16]);
    format!("{}#{hash}", &subject[..subject.floor_char_boundary(LONGEST - 33)])
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn bans_end_by_themselves_and_the_longer_one_stands() {
        let bans = BanList::memory();
        bans.ban("a", Duration::from_secs(10), "first").await.unwrap();
        bans.ban("a", Duration::from_secs(5), "second").await.unwrap();
        assert_eq!(bans.list().len(), 1);
        assert_eq!(&*bans.find("a").unwrap().reason, "first");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(bans.find("a").is_none() && bans.list().is_empty());
        bans.ban("a", Duration::MAX, "for ever").await.unwrap();
        assert!(bans.find("a").unwrap().left() > CENTURY / 2);
        bans.unban("a").await.unwrap();
        bans.ban("a", MINUTE, "shorter").await.unwrap();
        assert_eq!(&*bans.find("a").unwrap().reason, "shorter");
    }

    #[tokio::test(start_paused = true)]
    async fn strikes_neither_shorten_nor_push_out_what_an_operator_has_said() {
        let (bans, limiter, policy) =
            (BanList::memory(), Limiter::memory(), Policy::per_hour("wrong", 1));
        bans.ban("a", Duration::from_hours(720), "abuse").await.unwrap();
        for _ in 0..3 {
            bans.strike(&limiter, &policy, "a", MINUTE, "strike").await.unwrap();
        }
        let ban = bans.find("a").unwrap();
        assert!(
            ban.left() > Duration::from_hours(719)
                && ban.by == By::Operator
                && &*ban.reason == "abuse"
        );
        for n in 0..SUBJECTS + 4_000 {
            bans.ban_automatically(&n.to_string(), Duration::from_hours(1_000), "").await.unwrap();
        }
        assert!(bans.find("a").is_some());
        assert!(bans.list().len() <= SUBJECTS + 1);
        bans.unban("a").await.unwrap();
        assert!(bans.find("a").is_none(), "both");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_bans_is_bounded_and_the_longest_stay() {
        let bans = BanList::memory();
        bans.ban_automatically("long", Duration::from_hours(24), "").await.unwrap();
        for n in 0..SUBJECTS + 10 {
            bans.ban_automatically(&n.to_string(), Duration::from_secs(60 + n as u64 / 100), "")
                .await
                .unwrap();
        }
        assert!(bans.list().len() <= SUBJECTS);
        assert!(bans.find("long").is_some());
        for n in 0..SUBJECTS {
            bans.ban(&n.to_string(), MINUTE, "").await.unwrap();
        }
        assert!(matches!(bans.ban("one more", MINUTE, "").await, Err(Error::Full(_))));
    }

    #[tokio::test]
    async fn addresses_and_networks_are_found_however_they_are_written() {
        let bans = BanList::memory();
        for subject in [
            "2001:DB8::1", "2001:db8:1:2:3::/64", "2001:db8:ffff::/48", "203.0.113.0/24",
            "::ffff:198.51.100.7",
        ] {
            bans.ban(subject, MINUTE, "").await.unwrap();
        }
        let is_banned = |ip: &str| bans.find_address(ip.parse().unwrap()).is_some();
        for banned in [
            "2001:db8::1", "2001:db8:1:2::9", "2001:db8:ffff:7::1", "203.0.113.9",
            "::ffff:203.0.113.9", "198.51.100.7",
        ] {
            assert!(is_banned(banned), "{banned}");
        }
        for free in ["2001:db8::2", "2001:db8:1:3::9", "203.0.114.9", "198.51.100.8"] {
            assert!(!is_banned(free), "{free}");
        }
        let long = "x".repeat(LONGEST);
        bans.ban(&format!("{long}A"), MINUTE, "").await.unwrap();
        assert!(
            bans.find(&format!("{long}A")).is_some() && bans.find(&format!("{long}B")).is_none()
        );
    }
}
