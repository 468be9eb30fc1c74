//! Remember-me cookies, exchanged for a new one at each use.
//!
//! Each sign-in begins a *family*. Its cookie works once: each use returns the next cookie. So when
//! a cookie has been stolen, the thief and the owner will sooner or later present the same one. The
//! second use is detected: the family ends, and both must sign in. A cookie that is presented again
//! within a grace time is treated as a lost response, or as a tab that was slower than others, and
//! gets the latest cookie. (After Barry Jaspan's "Improved Persistent Login Cookie Best Practice",
//! and the refresh token rotation of RFC 9700, 4.14.2.)
//!
//! Cookies are derived from a key: the one-time store contains how often a family was used, not the
//! cookies. A family can be bound to a value, for example the current password hash, and ends when
//! that value changes.

use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::one_time_store::{FamilyAdvance, OneTimeStore};
use super::random;
use super::records::{Owner, Records};
use super::signed_token::{Claims, Keys, now};

/// Grace time for duplicate requests and lost responses.
const GRACE: Duration = Duration::from_secs(30);

/// Begins families and exchanges their cookies. A clone copies the keys.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use std::time::Duration;
/// use scale_session::auth::{OneTimeStore, Remember, remember::Refreshed, token::Keys};
///
/// let remember = Remember::new(
///     Keys::new(&[7; 32])?, &OneTimeStore::memory(), Duration::from_secs(30 * 86_400),
/// );
/// let cookie = remember.begin("user:7", "password hash").await?; // at sign-in
///
/// // Later, without a session:
/// let user = Remember::subject(&cookie).unwrap(); // load that account; not verified yet
/// match remember.refresh(&cookie, "password hash").await? {
///     Refreshed::Good { subject, cookie } => {
///         // a new session, and this cookie instead of the old one
///     }
///     Refreshed::Stolen { subject } => { /* tell the user */ }
///     _ => { /* clear the cookie */ }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Remember {
    keys: Keys,
    one_time: OneTimeStore,
    time: Duration,
    grace: Duration,
    records: Option<Records>,
}

/// A browser that stays signed in, as a list shows it to its user. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Family {
    /// Id for [`Remember::end_family`]. Nobody can sign in with it.
    pub id: String,
    /// Name of the device when the family began.
    pub device: String,
    /// Time when the family began.
    pub since: u64,
    /// Time when the cookie was last exchanged.
    pub last_used: u64,
    /// Time when the family ends.
    pub expires: u64,
}

/// Result of presenting a cookie.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refreshed {
    /// The cookie is valid: sign the user in.
    Good {
        /// Subject of the cookie.
        subject: String,
        /// Next cookie. It is a secret.
        cookie: String,
    },
    /// The cookie was used before: the family is revoked.
    Stolen {
        /// Subject of the stolen cookie.
        subject: String,
    },
    /// The cookie was not created here, is expired or revoked, or the value it is bound to has
    /// changed.
    No,
}

impl std::fmt::Debug for Refreshed {
    /// Omits the cookie, which is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Good { subject, .. } => {
                f.debug_struct("Good").field("subject", subject).finish_non_exhaustive()
            }
            Self::Stolen { subject } => f.debug_struct("Stolen").field("subject", subject).finish(),
            Self::No => f.write_str("No"),
        }
    }
}

impl Remember {
    /// Creates families that end `time` after their beginning, regardless of use.
    pub fn new(keys: Keys, one_time: &OneTimeStore, time: Duration) -> Self {
        Self { keys, one_time: one_time.clone(), time, grace: GRACE, records: None }
    }

    /// Keeps a list of each user's families in these records: see [`families`](Self::families).
    pub fn listed_in(self, records: &Records) -> Self {
        Self { records: Some(records.clone()), ..self }
    }

    /// Sets how long a used cookie still gets the same next cookie. Default: 30 s.
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Begins a family and returns its first cookie.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]; [`Error::Random`]; [`Error::Setting`] for a subject of more than
    /// 600 bytes.
    pub async fn begin(&self, subject: &str, bound: &str) -> Result<String, Error> {
        self.begin_on(subject, bound, "").await
    }

    /// Begins a family on a device and returns its first cookie. `device` is the name that the user
    /// will recognise the device by. A user can have 100 [listed](Self::listed_in) families; beyond
    /// that, the least recently used one ends.
    ///
    /// # Errors
    /// The same as those of [`begin`](Self::begin).
    pub async fn begin_on(
        &self,
        subject: &str,
        bound: &str,
        device: &str,
    ) -> Result<String, Error> {
        let claims = Claims {
            expires: now().saturating_add(self.time.as_secs()),
            nonce: random()?,
            number: 0,
            subject: subject.to_owned(),
        };
        let binding = self.binding(subject, bound, Some(self.time)).await?;
        let cookie = claims.sign(&self.keys, PURPOSE, &binding)?;
        self.one_time.open(&family(&claims), self.time).await?;
        if let Some(records) = &self.records {
            let device = device.chars().take(LONGEST_NAME).collect();
            let family = Family {
                id: family(&claims),
                device,
                since: now(),
                last_used: now(),
                expires: claims.expires,
            };
            let (owner, bytes) = (Owner::of(PURPOSE, subject), family.bytes()?);
            for _ in 0..MOST_FAMILIES {
                if records
                    .store()
                    .put(&owner, &family.id, &bytes, Some(self.time), MOST_FAMILIES)
                    .await?
                {
                    break;
                }
                let Some(last) = self.families(subject).await?.pop() else { break };
                self.end_family(subject, &last.id).await?;
            }
        }
        Ok(cookie)
    }

    /// Returns the subject that a cookie claims, unverified, to find the value that the cookie is
    /// bound to. Anybody can have written it.
    pub fn subject(cookie: &str) -> Option<String> {
        Claims::decode_unverified(cookie).map(|claims| claims.subject)
    }

    /// Exchanges a cookie for the next one.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`].
    pub async fn refresh(&self, cookie: &str, bound: &str) -> Result<Refreshed, Error> {
        let Some(claims) = self.open(cookie, bound).await? else { return Ok(Refreshed::No) };
        match self.one_time.turn(&family(&claims), claims.number, self.grace).await? {
            FamilyAdvance::Taken(number) => {
                let next = Claims { number, ..claims };
                let binding = self.binding(&next.subject, bound, None).await?;
                let cookie = next.sign(&self.keys, PURPOSE, &binding)?;
                self.mark_used(&next).await;
                Ok(Refreshed::Good { subject: next.subject, cookie })
            }
            FamilyAdvance::Repeated => {
                metrics::counter!("scale_session_stolen_cookies_total").increment(1);
                tracing::warn!(
                    subject = claims.subject,
                    "a remember-me cookie was used twice: its family is revoked"
                );
                self.unlist(&claims.subject, &family(&claims)).await?;
                Ok(Refreshed::Stolen { subject: claims.subject })
            }
            FamilyAdvance::Gone => Ok(Refreshed::No),
        }
    }

    /// Ends the cookie's family, at a logout.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`].
    pub async fn end(&self, cookie: &str, bound: &str) -> Result<(), Error> {
        match self.open(cookie, bound).await? {
            Some(claims) => {
                self.one_time.close(&family(&claims)).await?;
                self.unlist(&claims.subject, &family(&claims)).await.map(drop)
            }
            None => Ok(()),
        }
    }

    /// Returns a user's families, by last use; none without [`listed_in`](Self::listed_in). A
    /// family that ended because its bound value has changed stays listed until it expires.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]; [`Error::Stored`].
    pub async fn families(&self, subject: &str) -> Result<Vec<Family>, Error> {
        let Some(records) = &self.records else { return Ok(Vec::new()) };
        let listed = records.store().list(&Owner::of(PURPOSE, subject)).await?;
        let mut families =
            listed.iter().map(|(_, bytes)| Family::read(bytes)).collect::<Result<Vec<_>, _>>()?;
        families.retain(|family| family.expires > now());
        families.sort_by_key(|family| std::cmp::Reverse(family.last_used));
        Ok(families)
    }

    /// Ends one family of a user, by its [`Family::id`]. Returns `false` if the family is not one
    /// of the user's.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the family may still be valid.
    pub async fn end_family(&self, subject: &str, id: &str) -> Result<bool, Error> {
        let Some(records) = &self.records else { return Ok(false) };
        if records.store().get(&Owner::of(PURPOSE, subject), id).await?.is_none() {
            return Ok(false);
        }
        self.one_time.close(id).await?;
        self.unlist(subject, id).await
    }

    /// Ends all families of a user, in one step. With
    /// [`SessionLayer::remember`](crate::SessionLayer::remember),
    /// [`Session::revoke_all`](crate::Session::revoke_all) and similar methods do this as well:
    /// otherwise a cookie would restore what they ended.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the families may or may not have ended. Try again.
    pub async fn end_all(&self, subject: &str) -> Result<(), Error> {
        // The counter must outlive every family, including those that were begun with a longer
        // time: a forgotten counter reads as zero, and old cookies would be valid again.
        self.one_time.advance(PURPOSE, subject, self.time.max(LONGEST_TIME)).await?;
        if let Some(records) = &self.records {
            records.store().remove_all(&Owner::of(PURPOSE, subject)).await?;
        }
        Ok(())
    }

    /// Records the last use. A failure is logged only: an outdated list must not prevent sign-ins.
    async fn mark_used(&self, claims: &Claims) {
        let Some(records) = &self.records else { return };
        let owner = Owner::of(PURPOSE, &claims.subject);
        let marked = async {
            let Some(bytes) = records.store().get(&owner, &family(claims)).await? else {
                return Ok(());
            };
            let used = Family { last_used: now(), ..Family::read(&bytes)? };
            records.store().swap(&owner, &used.id, &bytes, &used.bytes()?).await.map(drop)
        };
        if let Err(error) = marked.await {
            let _: &Error = &error;
            tracing::warn!(%error, "the list of remember-me families was not updated");
        }
    }

    async fn unlist(&self, subject: &str, id: &str) -> Result<bool, Error> {
        match &self.records {
            Some(records) => records.store().remove(&Owner::of(PURPOSE, subject), id).await,
            None => Ok(false),
        }
    }

    /// Returns the binding of a cookie: the cookie is valid until its user's families end or
    /// `bound` changes.
    async fn binding(
        &self,
        subject: &str,
        bound: &str,
        keep: Option<Duration>,
    ) -> Result<String, Error> {
        let ends = self.one_time.count(PURPOSE, subject, keep).await?;
        Ok(self.one_time.binding(&format!("{ends}\0{bound}")))
    }

    async fn open(&self, cookie: &str, bound: &str) -> Result<Option<Claims>, Error> {
        let Some(subject) = Self::subject(cookie) else { return Ok(None) };
        Ok(Claims::verify(cookie, &self.keys, PURPOSE, &self.binding(&subject, bound, None).await?))
    }
}

const PURPOSE: &str = "remember";
/// Browsers keep cookies for at most 400 days.
const LONGEST_TIME: Duration = Duration::from_hours(400 * 24);
/// Maximum number of listed families per user.
const MOST_FAMILIES: usize = 100;
/// Maximum length of a device's name, in characters; longer names are cut off.
const LONGEST_NAME: usize = 200;

impl Family {
    fn read(bytes: &[u8]) -> Result<Self, Error> {
        rmp_serde::from_slice(bytes).map_err(|_| Error::Stored("list of remember-me families"))
    }

    fn bytes(&self) -> Result<Vec<u8>, Error> {
        rmp_serde::to_vec_named(self).map_err(|_| Error::Stored("list of remember-me families"))
    }
}

fn family(claims: &Claims) -> String {
    HEXLOWER.encode(&claims.nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remember() -> Remember {
        Remember::new(
            Keys::new(&[1; 32]).unwrap(),
            &OneTimeStore::memory(),
            Duration::from_hours(24),
        )
    }

    fn good(exchange: Refreshed) -> String {
        let Refreshed::Good { subject, cookie } = exchange else { panic!("{exchange:?}") };
        assert_eq!(subject, "user:7");
        cookie
    }

    #[tokio::test(start_paused = true)]
    async fn a_cookie_is_exchanged_and_a_lost_answer_is_no_theft() {
        let remember = remember();
        let mut cookie = remember.begin("user:7", "hash").await.unwrap();
        for _ in 0..5 {
            let next = good(remember.refresh(&cookie, "hash").await.unwrap());
            // Twice at once, or again after a lost response: the same next cookie.
            assert_eq!(good(remember.refresh(&cookie, "hash").await.unwrap()), next);
            assert_ne!(next, cookie);
            cookie = next;
            tokio::time::advance(Duration::from_mins(10)).await;
        }
        for (cookie, bound) in [(&cookie[..], "new hash"), ("nonsense", "hash"), ("", "")] {
            assert_eq!(remember.refresh(cookie, bound).await.unwrap(), Refreshed::No);
        }
        good(remember.refresh(&cookie, "hash").await.unwrap());
        remember.end(&cookie, "hash").await.unwrap();
        assert_eq!(remember.refresh(&cookie, "hash").await.unwrap(), Refreshed::No);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stolen_cookie_ends_the_family_whoever_comes_second() {
        for thief_first in [true, false] {
            let remember = remember();
            let stolen = remember.begin("user:7", "hash").await.unwrap();
            let other = remember.begin("user:7", "hash").await.unwrap();
            let winner = good(remember.refresh(&stolen, "hash").await.unwrap());
            tokio::time::advance(Duration::from_mins(1)).await;
            let second = remember.refresh(&stolen, "hash").await.unwrap();
            assert_eq!(second, Refreshed::Stolen { subject: "user:7".into() }, "{thief_first}");
            assert_eq!(
                remember.refresh(&winner, "hash").await.unwrap(),
                Refreshed::No,
                "the other one is out as well"
            );
            good(remember.refresh(&other, "hash").await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tab_a_few_turns_late_is_no_theft() {
        let remember = remember();
        let mut cookies = vec![remember.begin("user:7", "hash").await.unwrap()];
        for _ in 0..4 {
            cookies.push(good(remember.refresh(cookies.last().unwrap(), "hash").await.unwrap()));
        }
        for late in &cookies[1..4] {
            assert_eq!(
                good(remember.refresh(late, "hash").await.unwrap()),
                cookies[4],
                "the latest one"
            );
        }
        assert!(
            matches!(
                remember.refresh(&cookies[0], "hash").await.unwrap(),
                Refreshed::Stolen { .. }
            ),
            "four turns are too many"
        );
    }

    #[tokio::test]
    async fn families_are_listed_and_ended() {
        let remember = remember().listed_in(&Records::memory());
        let begin =
            async |user: &str, device: &str| remember.begin_on(user, "hash", device).await.unwrap();
        let (phone, laptop, other) = (
            begin("user:7", "phone").await,
            begin("user:7", "laptop").await,
            begin("user:8", "x").await,
        );
        let laptop = good(remember.refresh(&laptop, "hash").await.unwrap());
        let listed = remember.families("user:7").await.unwrap();
        let id =
            |device: &str| listed.iter().find(|family| family.device == device).unwrap().id.clone();
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert!(!remember.end_family("user:8", &id("phone")).await.unwrap(), "another user's");
        assert!(remember.end_family("user:7", &id("phone")).await.unwrap());
        assert!(!remember.end_family("user:7", &id("phone")).await.unwrap());
        assert_eq!(remember.refresh(&phone, "hash").await.unwrap(), Refreshed::No);
        let laptop = good(remember.refresh(&laptop, "hash").await.unwrap());
        remember.end(&laptop, "hash").await.unwrap();
        assert!(remember.families("user:7").await.unwrap().is_empty());
        remember.end_all("user:8").await.unwrap();
        assert!(remember.families("user:8").await.unwrap().is_empty());
        assert_eq!(remember.refresh(&other, "hash").await.unwrap(), Refreshed::No);
    }

    #[tokio::test(start_paused = true)]
    async fn what_ended_stays_so_though_the_time_is_made_shorter() {
        let one_time = OneTimeStore::memory();
        let of = |time| Remember::new(Keys::new(&[1; 32]).unwrap(), &one_time, time);
        let cookie = of(Duration::from_hours(24 * 90)).begin("user:7", "hash").await.unwrap();
        let shorter = of(Duration::from_secs(1));
        shorter.end_all("user:7").await.unwrap();
        for _ in 0..3 {
            assert_eq!(shorter.refresh(&cookie, "hash").await.unwrap(), Refreshed::No);
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
            good += usize::from(remember.refresh(cookie, "hash").await.unwrap() != Refreshed::No);
        }
        assert_eq!(good, MOST_FAMILIES);
        assert!(
            !format!("{:?}", Refreshed::Good { subject: "7".into(), cookie: "secret".into() })
                .contains("secret")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn all_families_of_a_user_end_at_once() {
        let remember = remember();
        let begin = async |user: &str| remember.begin(user, "hash").await.unwrap();
        let (one, two, other) =
            (begin("user:7").await, begin("user:7").await, begin("user:8").await);
        remember.end_all("user:7").await.unwrap();
        for cookie in [&one, &two] {
            assert_eq!(remember.refresh(cookie, "hash").await.unwrap(), Refreshed::No);
        }
        assert!(matches!(remember.refresh(&other, "hash").await.unwrap(), Refreshed::Good { .. }));
        good(remember.refresh(&begin("user:7").await, "hash").await.unwrap());
    }
}
