//! Staying signed in: a cookie that is exchanged for a new one at each use.
//!
//! Each sign-in begins a *family*. Its cookie is good once: using it gives the next one. So when a cookie has been stolen, thief and
//! owner will sooner or later present the same one, and the second of them is found out: the family ends, and both must sign in. A cookie
//! that is presented again within a grace time is the answer that got lost, or a tab that others came before, and gets the latest cookie. (After Barry Jaspan's "Improved Persistent Login Cookie Best Practice", and the refresh token rotation of RFC 9700, 4.14.2.)
//!
//! Cookies are derived from a key: the ledger knows how often a family was used, not what opens it. A family can be bound, to the present
//! password hash for example, and ends when that changes.

use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::ledger::{Ledger, Turn};
use super::random;
use super::records::{Owner, Records};
use super::seal::{Keys, Said, now};

/// For a request under way twice, or an answer that got lost.
const GRACE: Duration = Duration::from_secs(30);

/// Begins families and exchanges their cookies. Cloning copies the keys.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::auth::Error> {
/// use std::time::Duration;
/// use scale_session::auth::{Ledger, Remember, remember::Exchange, token::Keys};
///
/// let remember = Remember::new(Keys::new(&[7; 32])?, &Ledger::memory(), Duration::from_secs(30 * 86_400));
/// let cookie = remember.begin("user:7", "password hash").await?; // at sign-in
///
/// // Later, without a session:
/// let user = Remember::subject(&cookie).unwrap(); // load that account; it is not believed yet
/// match remember.exchange(&cookie, "password hash").await? {
///     Exchange::Good { subject, cookie } => { /* a new session, and this cookie in place of the old one */ }
///     Exchange::Stolen { subject } => { /* tell the user */ }
///     Exchange::No => { /* clear the cookie */ }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Remember {
    keys: Keys,
    ledger: Ledger,
    time: Duration,
    grace: Duration,
    records: Option<Records>,
}

/// A browser that stays signed in, as its user sees it in a list. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Family {
    /// For [`Remember::end_family`]. It signs nobody in.
    pub id: String,
    /// What it was called when it began.
    pub device: String,
    /// When it began.
    pub since: u64,
    /// When its cookie was last exchanged.
    pub last_used: u64,
    /// When it ends.
    pub expires: u64,
}

/// What came of presenting a cookie.
#[derive(Clone, PartialEq, Eq)]
pub enum Exchange {
    /// Let them in.
    Good {
        /// Who it is.
        subject: String,
        /// The next cookie. Treat it as the secret it is.
        cookie: String,
    },
    /// It was used before: the family is revoked.
    Stolen {
        /// Whose it was.
        subject: String,
    },
    /// Not one of ours, expired, revoked, or bound to what has changed.
    No,
}

impl std::fmt::Debug for Exchange {
    /// Without the cookie: it is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Good { subject, .. } => f.debug_struct("Good").field("subject", subject).finish_non_exhaustive(),
            Self::Stolen { subject } => f.debug_struct("Stolen").field("subject", subject).finish(),
            Self::No => f.write_str("No"),
        }
    }
}

impl Remember {
    /// Families end `time` after they began, however much they are used.
    pub fn new(keys: Keys, ledger: &Ledger, time: Duration) -> Self {
        Self { keys, ledger: ledger.clone(), time, grace: GRACE, records: None }
    }

    /// Keeps a list of each user's families among these records: see [`families`](Self::families).
    pub fn listed_in(self, records: &Records) -> Self {
        Self { records: Some(records.clone()), ..self }
    }

    /// For how long a cookie that was used gets the same next one again. Default: 30 s.
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// The first cookie of a family.
    ///
    /// # Errors
    /// [`Error::Ledger`]; [`Error::Random`]; [`Error::Setting`] for a subject of over 600 bytes.
    pub async fn begin(&self, subject: &str, bound: &str) -> Result<String, Error> {
        self.begin_on(subject, bound, "").await
    }

    /// The first cookie of a family on a device, with a name that its user will know it by. Of a user's hundred families that are
    /// [listed](Self::listed_in), the one used longest ago ends for the next.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub async fn begin_on(&self, subject: &str, bound: &str, device: &str) -> Result<String, Error> {
        let said =
            Said { expires: now().saturating_add(self.time.as_secs()), nonce: random()?, number: 0, subject: subject.to_owned() };
        let binding = self.binding(subject, bound, Some(self.time)).await?;
        let cookie = said.seal(&self.keys, PURPOSE, &binding)?;
        self.ledger.open(&family(&said), self.time).await?;
        if let Some(records) = &self.records {
            let device = device.chars().take(LONGEST_NAME).collect();
            let family = Family { id: family(&said), device, since: now(), last_used: now(), expires: said.expires };
            let (owner, bytes) = (Owner::of(PURPOSE, subject), family.bytes()?);
            for _ in 0..MOST_FAMILIES {
                if records.store().put(&owner, &family.id, &bytes, Some(self.time), MOST_FAMILIES).await? {
                    break;
                }
                let Some(last) = self.families(subject).await?.pop() else { break };
                self.end_family(subject, &last.id).await?;
            }
        }
        Ok(cookie)
    }

    /// Whose a cookie says it is: to find what it is bound to. Anybody can have written it.
    pub fn subject(cookie: &str) -> Option<String> {
        Said::peek(cookie).map(|said| said.subject)
    }

    /// Gives the next cookie for this one.
    ///
    /// # Errors
    /// [`Error::Ledger`].
    pub async fn exchange(&self, cookie: &str, bound: &str) -> Result<Exchange, Error> {
        let Some(said) = self.open(cookie, bound).await? else { return Ok(Exchange::No) };
        match self.ledger.turn(&family(&said), said.number, self.grace).await? {
            Turn::Taken(number) => {
                let next = Said { number, ..said };
                let binding = self.binding(&next.subject, bound, None).await?;
                let cookie = next.seal(&self.keys, PURPOSE, &binding)?;
                self.mark_used(&next).await;
                Ok(Exchange::Good { subject: next.subject, cookie })
            }
            Turn::Repeated => {
                metrics::counter!("scale_session_stolen_cookies_total").increment(1);
                tracing::warn!(subject = said.subject, "a cookie to stay signed in was used twice; its family is revoked");
                self.unlist(&said.subject, &family(&said)).await?;
                Ok(Exchange::Stolen { subject: said.subject })
            }
            Turn::Gone => Ok(Exchange::No),
        }
    }

    /// Ends the cookie's family: logout.
    ///
    /// # Errors
    /// [`Error::Ledger`].
    pub async fn end(&self, cookie: &str, bound: &str) -> Result<(), Error> {
        match self.open(cookie, bound).await? {
            Some(said) => {
                self.ledger.close(&family(&said)).await?;
                self.unlist(&said.subject, &family(&said)).await.map(drop)
            }
            None => Ok(()),
        }
    }

    /// Returns a user's families, the last used first; none without [`listed_in`](Self::listed_in). One that ended because what it was bound
    /// to has changed is listed until its time is over.
    ///
    /// # Errors
    /// [`Error::Ledger`]; [`Error::Stored`].
    pub async fn families(&self, subject: &str) -> Result<Vec<Family>, Error> {
        let Some(records) = &self.records else { return Ok(Vec::new()) };
        let listed = records.store().list(&Owner::of(PURPOSE, subject)).await?;
        let mut families = listed.iter().map(|(_, bytes)| Family::read(bytes)).collect::<Result<Vec<_>, _>>()?;
        families.retain(|family| family.expires > now());
        families.sort_by_key(|family| std::cmp::Reverse(family.last_used));
        Ok(families)
    }

    /// Ends one family of a user, by its [`Family::id`]. Returns `false` if it is none of theirs.
    ///
    /// # Errors
    /// [`Error::Ledger`]: it may live on.
    pub async fn end_family(&self, subject: &str, id: &str) -> Result<bool, Error> {
        let Some(records) = &self.records else { return Ok(false) };
        if records.store().get(&Owner::of(PURPOSE, subject), id).await?.is_none() {
            return Ok(false);
        }
        self.ledger.close(id).await?;
        self.unlist(subject, id).await
    }

    /// Ends all families of a user, in one step. [`SessionLayer::remember`](crate::SessionLayer::remember) lets
    /// [`Session::revoke_all`](crate::Session::revoke_all) and its like do it: otherwise a cookie brings back what they ended.
    ///
    /// # Errors
    /// [`Error::Ledger`]: they may have ended or not. Try again.
    pub async fn end_all(&self, subject: &str) -> Result<(), Error> {
        // As long as any family may live, those of a longer time that was set before too: what is forgotten counts as nothing, and would be
        // what they were bound to.
        self.ledger.advance(PURPOSE, subject, self.time.max(LONGEST_TIME)).await?;
        if let Some(records) = &self.records {
            records.store().remove_all(&Owner::of(PURPOSE, subject)).await?;
        }
        Ok(())
    }

    /// A list that is a little behind is no reason to let nobody in.
    async fn mark_used(&self, said: &Said) {
        let Some(records) = &self.records else { return };
        let owner = Owner::of(PURPOSE, &said.subject);
        let marked = async {
            let Some(bytes) = records.store().get(&owner, &family(said)).await? else { return Ok(()) };
            let used = Family { last_used: now(), ..Family::read(&bytes)? };
            records.store().swap(&owner, &used.id, &bytes, &used.bytes()?).await.map(drop)
        };
        if let Err(error) = marked.await {
            let _: &Error = &error;
            tracing::warn!(%error, "the list of those who stay signed in is behind");
        }
    }

    async fn unlist(&self, subject: &str, id: &str) -> Result<bool, Error> {
        match &self.records {
            Some(records) => records.store().remove(&Owner::of(PURPOSE, subject), id).await,
            None => Ok(false),
        }
    }

    /// What a cookie is good for: as long as its user's families have not ended, and what it is bound to has not changed.
    async fn binding(&self, subject: &str, bound: &str, keep: Option<Duration>) -> Result<String, Error> {
        let ends = self.ledger.count(PURPOSE, subject, keep).await?;
        Ok(self.ledger.binding(&format!("{ends}\0{bound}")))
    }

    async fn open(&self, cookie: &str, bound: &str) -> Result<Option<Said>, Error> {
        let Some(subject) = Self::subject(cookie) else { return Ok(None) };
        Ok(Said::open(cookie, &self.keys, PURPOSE, &self.binding(&subject, bound, None).await?))
    }
}

const PURPOSE: &str = "remember";
/// Browsers keep no cookie for longer than 400 days.
const LONGEST_TIME: Duration = Duration::from_hours(400 * 24);
/// Families of a user that are listed, at most.
const MOST_FAMILIES: usize = 100;
/// A device's name is cut after so many characters.
const LONGEST_NAME: usize = 200;

impl Family {
    fn read(bytes: &[u8]) -> Result<Self, Error> {
        rmp_serde::from_slice(bytes).map_err(|_| Error::Stored("list of those who stay signed in"))
    }

    fn bytes(&self) -> Result<Vec<u8>, Error> {
        rmp_serde::to_vec_named(self).map_err(|_| Error::Stored("list of those who stay signed in"))
    }
}

fn family(said: &Said) -> String {
    HEXLOWER.encode(&said.nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remember() -> Remember {
        Remember::new(Keys::new(&[1; 32]).unwrap(), &Ledger::memory(), Duration::from_hours(24))
    }

    fn good(exchange: Exchange) -> String {
        let Exchange::Good { subject, cookie } = exchange else { panic!("{exchange:?}") };
        assert_eq!(subject, "user:7");
        cookie
    }

    #[tokio::test(start_paused = true)]
    async fn a_cookie_is_exchanged_and_a_lost_answer_is_no_theft() {
        let remember = remember();
        let mut cookie = remember.begin("user:7", "hash").await.unwrap();
        for _ in 0..5 {
            let next = good(remember.exchange(&cookie, "hash").await.unwrap());
            // Twice at once, or once more after a lost answer: the same one.
            assert_eq!(good(remember.exchange(&cookie, "hash").await.unwrap()), next);
            assert_ne!(next, cookie);
            cookie = next;
            tokio::time::advance(Duration::from_mins(10)).await;
        }
        for (cookie, bound) in [(&cookie[..], "new hash"), ("nonsense", "hash"), ("", "")] {
            assert_eq!(remember.exchange(cookie, bound).await.unwrap(), Exchange::No);
        }
        good(remember.exchange(&cookie, "hash").await.unwrap());
        remember.end(&cookie, "hash").await.unwrap();
        assert_eq!(remember.exchange(&cookie, "hash").await.unwrap(), Exchange::No);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stolen_cookie_ends_the_family_whoever_comes_second() {
        for thief_first in [true, false] {
            let remember = remember();
            let stolen = remember.begin("user:7", "hash").await.unwrap();
            let other = remember.begin("user:7", "hash").await.unwrap();
            let winner = good(remember.exchange(&stolen, "hash").await.unwrap());
            tokio::time::advance(Duration::from_mins(1)).await;
            let second = remember.exchange(&stolen, "hash").await.unwrap();
            assert_eq!(second, Exchange::Stolen { subject: "user:7".into() }, "{thief_first}");
            assert_eq!(remember.exchange(&winner, "hash").await.unwrap(), Exchange::No, "the other one is out as well");
            good(remember.exchange(&other, "hash").await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tab_a_few_turns_late_is_no_theft() {
        let remember = remember();
        let mut cookies = vec![remember.begin("user:7", "hash").await.unwrap()];
        for _ in 0..4 {
            cookies.push(good(remember.exchange(cookies.last().unwrap(), "hash").await.unwrap()));
        }
        for late in &cookies[1..4] {
            assert_eq!(good(remember.exchange(late, "hash").await.unwrap()), cookies[4], "the latest one");
        }
        assert!(
            matches!(remember.exchange(&cookies[0], "hash").await.unwrap(), Exchange::Stolen { .. }),
            "four turns are too many"
        );
    }

    #[tokio::test]
    async fn families_are_listed_and_ended() {
        let remember = remember().listed_in(&Records::memory());
        let begin = async |user: &str, device: &str| remember.begin_on(user, "hash", device).await.unwrap();
        let (phone, laptop, other) =
            (begin("user:7", "phone").await, begin("user:7", "laptop").await, begin("user:8", "x").await);
        let laptop = good(remember.exchange(&laptop, "hash").await.unwrap());
        let listed = remember.families("user:7").await.unwrap();
        let id = |device: &str| listed.iter().find(|family| family.device == device).unwrap().id.clone();
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert!(!remember.end_family("user:8", &id("phone")).await.unwrap(), "somebody else's");
        assert!(remember.end_family("user:7", &id("phone")).await.unwrap());
        assert!(!remember.end_family("user:7", &id("phone")).await.unwrap());
        assert_eq!(remember.exchange(&phone, "hash").await.unwrap(), Exchange::No);
        let laptop = good(remember.exchange(&laptop, "hash").await.unwrap());
        remember.end(&laptop, "hash").await.unwrap();
        assert!(remember.families("user:7").await.unwrap().is_empty());
        remember.end_all("user:8").await.unwrap();
        assert!(remember.families("user:8").await.unwrap().is_empty());
        assert_eq!(remember.exchange(&other, "hash").await.unwrap(), Exchange::No);
    }

    #[tokio::test(start_paused = true)]
    async fn what_ended_stays_so_though_the_time_is_made_shorter() {
        let ledger = Ledger::memory();
        let of = |time| Remember::new(Keys::new(&[1; 32]).unwrap(), &ledger, time);
        let cookie = of(Duration::from_hours(24 * 90)).begin("user:7", "hash").await.unwrap();
        let shorter = of(Duration::from_secs(1));
        shorter.end_all("user:7").await.unwrap();
        for _ in 0..3 {
            assert_eq!(shorter.exchange(&cookie, "hash").await.unwrap(), Exchange::No);
            tokio::time::advance(Duration::from_hours(24)).await;
        }
    }

    #[tokio::test]
    async fn a_user_has_a_hundred_families_and_one_ends_for_the_next() {
        let remember = remember().listed_in(&Records::memory());
        let mut cookies = Vec::new();
        for _ in 0..=MOST_FAMILIES {
            cookies.push(remember.begin_on("user:7", "hash", "browser").await.unwrap());
        }
        assert_eq!(remember.families("user:7").await.unwrap().len(), MOST_FAMILIES);
        let mut good = 0;
        for cookie in &cookies {
            good += usize::from(remember.exchange(cookie, "hash").await.unwrap() != Exchange::No);
        }
        assert_eq!(good, MOST_FAMILIES);
        assert!(!format!("{:?}", Exchange::Good { subject: "7".into(), cookie: "secret".into() }).contains("secret"));
    }

    #[tokio::test(start_paused = true)]
    async fn all_families_of_a_user_end_at_once() {
        let remember = remember();
        let begin = async |user: &str| remember.begin(user, "hash").await.unwrap();
        let (one, two, other) = (begin("user:7").await, begin("user:7").await, begin("user:8").await);
        remember.end_all("user:7").await.unwrap();
        for cookie in [&one, &two] {
            assert_eq!(remember.exchange(cookie, "hash").await.unwrap(), Exchange::No);
        }
        assert!(matches!(remember.exchange(&other, "hash").await.unwrap(), Exchange::Good { .. }));
        good(remember.exchange(&begin("user:7").await, "hash").await.unwrap());
    }
}
