//! Who is kept out for a while, and why: for a whole fleet.
//!
//! Each process has the whole list in memory, so that asking costs no round trip. On Redis all processes follow a log of what is banned and
//! lifted: a ban holds at once in the process that made it, and within about a second in the others.
//!
//! Bans of operators ([`BanList::ban`]) have a place of their own, which no number of automatic ones ([`BanList::strike`],
//! [`BanList::ban_automatically`]) can fill. Of two bans of one subject the one that ends later stands.
//!
//! | key | type | holds | bounded by |
//! | --- | --- | --- | --- |
//! | `{app}:limit:{bans}:log` | stream | who banned, or lifted, whom, for how long, why | its newest 100,000 entries or so |
//! | `{app}:limit:{bans}:kept` | hash | the operators' bans: until when, why | 100,000 subjects |
//!
//! | when | then |
//! | --- | --- |
//! | Redis does not answer | bans hold where they were made and where they are known; [`BanList::ban`] says that the others do not know |
//! | Redis comes back | what was missed is read |
//! | Redis has lost its data | bans hold where they are known; operators' bans are written again |
//! | a process starts | it reads the operators' bans and the log before it serves |
//! | over 100,000 subjects are banned automatically | those with the least time left go first |
//! | operators ban over 100,000 subjects | [`Error::Full`]: networks take more at once |
//!
//! A subject that is an address or a network bans all [clients](crate::client::ClientIp) in it; any other bans the key that reads the same.

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

/// Subjects of each kind at most.
const SUBJECTS: usize = 100_000;
/// How often other processes' bans are asked for.
#[cfg(feature = "redis")]
const EVERY: Duration = Duration::from_secs(1);
/// Longer reasons are cut, and of longer subjects the end becomes a hash; bytes.
const LONGEST: usize = 256;
/// As good as for ever.
const CENTURY: Duration = Duration::from_hours(24 * 36_500);

/// One ban.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ban {
    /// Who: an address, a network, an account, whatever the application bans by.
    pub subject: Arc<str>,
    /// Why, for the operators.
    pub reason: Arc<str>,
    /// The maker of the ban.
    pub by: By,
    until: Instant,
}

/// The makers of bans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// Somebody who answers for it.
    Operator,
    /// A rule that was broken.
    Rule,
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

/// The place up to which a process has read.
#[cfg(feature = "redis")]
struct Read {
    /// The last entry of the log.
    id: String,
    /// The connection's: after another one begins, a server may have taken over that knows less.
    generation: Option<u64>,
}

#[derive(Debug, Default)]
struct Lists {
    operators: HashMap<Arc<str>, Ban>,
    rules: HashMap<Arc<str>, Ban>,
    /// The prefix lengths of the networks that are banned, IPv6 or not.
    lengths: BTreeSet<(bool, u8)>,
}

impl BanList {
    /// A list of this process alone.
    pub fn memory() -> Self {
        Self(Arc::default())
    }

    /// A list shared by all that use the same Redis and `app`. Reads what there is, and follows it until the last clone is gone.
    ///
    /// # Errors
    /// [`Error::Store`] if the list cannot be read.
    #[cfg(feature = "redis")]
    pub async fn redis(redis: scale_redis::Redis, app: &str) -> Result<Self, Error> {
        let list = Self(Arc::new(Inner { lists: RwLock::default(), log: Some(log::Log::new(redis, app)) }));
        let mut last = Read { id: String::from("0"), generation: None };
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

    /// The ban of a subject, if there is one; of several the one that ends last.
    pub fn find(&self, subject: &str) -> Option<Ban> {
        self.0.lists.read().find(&name(subject))
    }

    /// The ban of an address or of a network that it is in, if there is one; of several the one that ends last.
    pub fn find_address(&self, ip: IpAddr) -> Option<Ban> {
        let lists = self.0.lists.read();
        if lists.operators.is_empty() && lists.rules.is_empty() {
            return None;
        }
        let ip = ip.to_canonical();
        let inside = lists.lengths.iter().filter(|(v6, _)| *v6 == ip.is_ipv6());
        let networks = inside.filter_map(|(_, length)| IpNet::new(ip, *length).ok()).map(|net| net.trunc().to_string());
        std::iter::once(ip.to_string()).chain(networks).filter_map(|subject| lists.find(&subject)).max_by_key(|ban| ban.until)
    }

    /// Keeps somebody out from now on for `time`, unless a ban of an operator stands that ends later: lift that first.
    ///
    /// # Errors
    /// [`Error::Store`]: it holds in this process, but the others could not be told. [`Error::Full`]: it does not hold.
    pub async fn ban(&self, subject: &str, time: Duration, reason: &str) -> Result<(), Error> {
        self.keep_out(By::Operator, subject, time, reason).await
    }

    /// The same by a rule: whatever an application finds suspicious by itself. It takes no place from operators' bans, and makes none of
    /// them shorter.
    ///
    /// # Errors
    /// [`Error::Store`]: it holds in this process, but the others could not be told.
    pub async fn ban_automatically(&self, subject: &str, time: Duration, reason: &str) -> Result<(), Error> {
        self.keep_out(By::Rule, subject, time, reason).await
    }

    async fn keep_out(&self, by: By, subject: &str, time: Duration, reason: &str) -> Result<(), Error> {
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

    /// Lets somebody in again, whoever has banned them. Networks that an address is in stay banned.
    ///
    /// # Errors
    /// [`Error::Store`]: it holds in this process, but the others could not be told.
    pub async fn unban(&self, subject: &str) -> Result<(), Error> {
        let subject = name(subject);
        self.0.lists.write().remove(&subject);
        #[cfg(feature = "redis")]
        if let Some(log) = &self.0.log {
            log.write("lifted", &subject, Duration::ZERO, "").await?;
        }
        Ok(())
    }

    /// Counts an offence against `policy`, and bans for `time` whoever has committed more than it admits; `true`: banned now.
    ///
    /// # Errors
    /// As [`ban_automatically`](Self::ban_automatically).
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

    /// All bans, those with the most time left first. A subject that operators and rules have banned is there twice.
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
        bans.into_iter().flatten().filter(|ban| ban.until > now).max_by_key(|ban| ban.until).cloned()
    }

    fn remove(&mut self, subject: &str) {
        self.operators.remove(subject);
        self.rules.remove(subject);
    }

    /// Keeps the ban that ends later; `false`: it is the one there was.
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
                    // Some may have been lifted meanwhile.
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
            // What the server may have forgotten is known here; of two bans the longer one stands.
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
        // Full of operators' bans it cannot be: whoever wrote it was let.
        let _ = self.insert(by, &entry.subject, entry.left, &entry.reason);
    }
}

/// An address or a network in one spelling; of anything too long the end as a hash.
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
        let (bans, limiter, policy) = (BanList::memory(), Limiter::memory(), Policy::per_hour("wrong", 1));
        bans.ban("a", Duration::from_hours(720), "abuse").await.unwrap();
        for _ in 0..3 {
            bans.strike(&limiter, &policy, "a", MINUTE, "strike").await.unwrap();
        }
        let ban = bans.find("a").unwrap();
        assert!(ban.left() > Duration::from_hours(719) && ban.by == By::Operator && &*ban.reason == "abuse");
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
            bans.ban_automatically(&n.to_string(), Duration::from_secs(60 + n as u64 / 100), "").await.unwrap();
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
        for subject in ["2001:DB8::1", "2001:db8:1:2:3::/64", "2001:db8:ffff::/48", "203.0.113.0/24", "::ffff:198.51.100.7"] {
            bans.ban(subject, MINUTE, "").await.unwrap();
        }
        let is_banned = |ip: &str| bans.find_address(ip.parse().unwrap()).is_some();
        for banned in
            ["2001:db8::1", "2001:db8:1:2::9", "2001:db8:ffff:7::1", "203.0.113.9", "::ffff:203.0.113.9", "198.51.100.7"]
        {
            assert!(is_banned(banned), "{banned}");
        }
        for free in ["2001:db8::2", "2001:db8:1:3::9", "203.0.114.9", "198.51.100.8"] {
            assert!(!is_banned(free), "{free}");
        }
        let long = "x".repeat(LONGEST);
        bans.ban(&format!("{long}A"), MINUTE, "").await.unwrap();
        assert!(bans.find(&format!("{long}A")).is_some() && bans.find(&format!("{long}B")).is_none());
    }
}
