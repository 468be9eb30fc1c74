//! Identity of a session: its user, and how freshly that was confirmed.
//!
//! | a session is | [`user`](Session::user) | [`pending_user`](Session::pending_user) |
//! | --- | --- | --- |
//! | anonymous | `None` | `None` |
//! | waiting for a second factor, for at most 10 minutes | `None` | the user |
//! | signed in | the user | `None` |
//!
//! | when | then |
//! | --- | --- |
//! | a user signs in, enters the first of two factors, confirms their identity, or changes to another user | a new session with the old session's content is created. An id that was planted or seen before does not lead to the new session. Requests in progress with the old id read the old state for a few seconds, and their writes fail with [`Error::Replaced`] |
//! | a user signs in where another user was signed in | the new session contains nothing of the old one, only what this request has written |
//! | two log-ins of one anonymous session run at once | there are two sessions, each signed in as its own user |
//! | a session is signed in, and its client has sent its cookie once | the session is one of the user's devices, until it expires or is destroyed |
//! | [`destroy`](Session::destroy), [`revoke`](Session::revoke) | the session ends in one step, by any of its ids, even if it is rotated at the same time |
//! | [`revoke_others`](Session::revoke_others), [`revoke_all`](Session::revoke_all) | one step in the store for any number of sessions; the revoked sessions are gone for every request that has not loaded them yet |
//! | a log-in is in progress during such a revocation | a session that is created after the revocation stays valid: check the password again, or use [`SessionEpochs`](crate::auth::SessionEpochs) around the log-in |
//! | Redis loses its record of an owner (eviction) | all sessions of that owner are gone, because the record of the revocations is lost |

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::session::Session;
use crate::store::Owner;
use crate::value::{IDENTITY, decode, encode_ours};

/// Time within which a second factor must be given.
const PENDING_FOR: Duration = Duration::from_mins(10);
/// Maximum duration of an impersonation.
const IMPERSONATED_FOR: Duration = Duration::from_hours(1);
/// Maximum length of a device's name, in characters; longer names are cut off.
const LONGEST_NAME: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signed {
    user: String,
    /// `true` if a second factor is missing.
    pending: bool,
    pub(crate) device: String,
    /// Times of the sign-in and of the last confirmation, in seconds since 1970.
    pub(crate) since: u64,
    proved: u64,
    /// Time of the sign-in in µs: decides which sign-in was first.
    #[serde(default)]
    since_us: u64,
    /// User who acts as this one, and the start of the impersonation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default)]
    acts_since: u64,
}

impl Signed {
    /// Returns an identity that is signed in now and has confirmed nothing.
    fn new(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            pending: false,
            device: String::new(),
            since: now(),
            proved: 0,
            since_us: now_us(),
            by: None,
            acts_since: 0,
        }
    }

    /// Returns whether the user counts as signed in. An impersonation ends after an hour.
    fn stands(&self) -> bool {
        !self.pending
            && (self.by.is_none()
                || now().saturating_sub(self.acts_since) <= IMPERSONATED_FOR.as_secs())
    }
}

impl Session {
    /// Signs a user in, by the application's id for the user. `device` is the name that the user
    /// will recognise the device by. The session gets a new id.
    ///
    /// ```no_run
    /// # async fn log_in(session: scale_session::Session) -> Result<(), scale_session::Error> {
    /// session.sign_in("7", "Firefox on Linux").await?;
    /// assert_eq!(session.user().await?.as_deref(), Some("7"));
    /// # Ok(()) }
    /// ```
    pub async fn sign_in(&self, user: &str, device: &str) -> Result<(), Error> {
        self.become_signed(Signed { device: device.to_owned(), proved: now(), ..Signed::new(user) })
            .await
    }

    /// Records that the password was right and a second factor is missing: [`user`](Self::user)
    /// returns `None` until [`sign_in`](Self::sign_in). The session gets a new id.
    pub async fn await_second_factor(&self, user: &str) -> Result<(), Error> {
        self.become_signed(Signed { pending: true, ..Signed::new(user) }).await
    }

    async fn become_signed(&self, signed: Signed) -> Result<(), Error> {
        let device = signed.device.chars().take(LONGEST_NAME).collect();
        let signed = Signed { device, ..signed };
        let bytes = encode_ours(IDENTITY, &signed)?;
        let mut state = self.becoming().await?;
        let before: Option<Signed> =
            state.field(IDENTITY).map(|bytes| decode(IDENTITY, bytes)).transpose()?;
        if before.is_some_and(|before| before.user != signed.user) {
            state.start_empty();
        }
        state.become_of((!signed.pending).then(|| Owner::of(&signed.user)));
        state.write(IDENTITY, Some(bytes));
        Ok(())
    }

    async fn signed(&self) -> Result<Option<Signed>, Error> {
        let state = self.read().await?;
        state.field(IDENTITY).map(|bytes| decode(IDENTITY, bytes)).transpose()
    }

    /// Returns the user who is signed in with all factors.
    pub async fn user(&self) -> Result<Option<String>, Error> {
        Ok(self.signed().await?.filter(Signed::stands).map(|signed| signed.user))
    }

    /// Lets the signed-in user act as another user for at most an hour, for example to see what a
    /// customer sees. The session still belongs to the original user: it ends with that user's
    /// sessions, and is not one of the other user's devices. The session gets a new id and keeps
    /// nothing of its content. The audit log entry is written first. The application must check
    /// whether the user may do this. Returns `false` if no user is signed in, or if an
    /// impersonation is active already.
    ///
    /// # Errors
    /// [`auth::Error::OneTimeStore`](crate::auth::Error::OneTimeStore) if the audit log entry
    /// cannot be written: the impersonation does not begin. [`Error::Replaced`] if the session was
    /// ended or replaced in the meantime.
    #[cfg(feature = "auth")]
    pub async fn impersonate(
        &self,
        user: &str,
        reason: &str,
        audit: &crate::auth::AuditLog,
    ) -> Result<bool, crate::auth::Error> {
        let signed = self.signed().await?.filter(|signed| signed.stands() && signed.by.is_none());
        let Some(signed) = signed else { return Ok(false) };
        let event = crate::auth::audit::Event::new(&signed.user, "impersonate.begin")
            .to(user)
            .details(reason);
        audit.append(event).await?;
        let acting = Signed {
            user: user.to_owned(),
            by: Some(signed.user.clone()),
            acts_since: now(),
            proved: 0,
            ..signed
        };
        self.act(acting).await?;
        Ok(true)
    }

    /// Ends an impersonation: the session is the original user's again, and [not
    /// confirmed](Self::is_confirmed_within). Works after the hour as well. Returns `false` if no
    /// impersonation is active.
    ///
    /// # Errors
    /// The same as those of [`impersonate`](Self::impersonate).
    #[cfg(feature = "auth")]
    pub async fn stop_impersonating(
        &self,
        audit: &crate::auth::AuditLog,
    ) -> Result<bool, crate::auth::Error> {
        let Some(signed) = self.signed().await?.filter(|signed| !signed.pending) else {
            return Ok(false);
        };
        let Some(own) = signed.by.clone() else { return Ok(false) };
        audit
            .append(crate::auth::audit::Event::new(&own, "impersonate.end").to(&signed.user))
            .await?;
        self.act(Signed { user: own, by: None, acts_since: 0, proved: 0, ..signed }).await?;
        Ok(true)
    }

    /// Continues as another user in a session of the same owner, if the session is still that
    /// owner's.
    #[cfg(feature = "auth")]
    async fn act(&self, signed: Signed) -> Result<(), Error> {
        let bytes = encode_ours(IDENTITY, &signed)?;
        let mut state = self.becoming().await?;
        self.establish(&mut state).await?;
        // Content that was kept for one user must not be visible to the other.
        state.remove_all();
        state.write(IDENTITY, Some(bytes));
        self.go_on(&mut state).await?.map(drop).ok_or(Error::Replaced)
    }

    /// Returns the user who acts as the [`user`](Self::user): for a banner, and to forbid some
    /// actions during an impersonation.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn impersonator(&self) -> Result<Option<String>, Error> {
        Ok(self.signed().await?.filter(Signed::stands).and_then(|signed| signed.by))
    }

    /// Returns the user whose second factor is missing, if the first factor was given within the
    /// last 10 minutes.
    pub async fn pending_user(&self) -> Result<Option<String>, Error> {
        let fresh = |signed: &Signed| {
            signed.pending && now().saturating_sub(signed.since) <= PENDING_FOR.as_secs()
        };
        Ok(self.signed().await?.filter(fresh).map(|signed| signed.user))
    }

    /// Returns whether the user has confirmed their identity within that time, at sign-in or by
    /// [`confirm`](Self::confirm). If not, ask for the password again before a sensitive action.
    /// Always `false` during [an impersonation](Self::impersonator).
    pub async fn is_confirmed_within(&self, time: Duration) -> Result<bool, Error> {
        let signed = self.signed().await?.filter(|signed| signed.stands() && signed.by.is_none());
        Ok(signed.is_some_and(|signed| now().saturating_sub(signed.proved) <= time.as_secs()))
    }

    /// Records that the user has just given their password or second factor again. The session gets
    /// a new id. Returns `false` if no user is signed in, or during [an
    /// impersonation](Self::impersonator).
    pub async fn confirm(&self) -> Result<bool, Error> {
        let Some(signed) =
            self.signed().await?.filter(|signed| signed.stands() && signed.by.is_none())
        else {
            return Ok(false);
        };
        let bytes = encode_ours(IDENTITY, &Signed { proved: now(), ..signed })?;
        let mut state = self.becoming().await?;
        state.become_itself();
        state.write(IDENTITY, Some(bytes));
        Ok(true)
    }
}

/// Returns when the session of a record was signed in, in µs since 1970; 0 if unknown.
pub(crate) fn signed_in_since(record: &crate::store::Record) -> u64 {
    let signed =
        record.fields.get(IDENTITY).and_then(|bytes| decode::<Signed>(IDENTITY, bytes).ok());
    signed.map_or(0, |signed| signed.since_us)
}

fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}
