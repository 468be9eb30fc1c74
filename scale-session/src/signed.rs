//! Who is signed in, on which devices, and how freshly.
//!
//! | a session is | [`user`](Session::user) | [`pending_user`](Session::pending_user) |
//! | --- | --- | --- |
//! | anonymous | `None` | `None` |
//! | waiting for a second factor, for 10 minutes at most | `None` | the user |
//! | signed in | the user | `None` |
//!
//! | when | then |
//! | --- | --- |
//! | somebody signs in, begins to, proves who they are anew, or is another user | there is a new session with what the old one held, and no way to it from an id that somebody planted or saw before; requests under way with the old id read the old state for a few seconds, and their writes end in [`Error::Replaced`] |
//! | somebody signs in where another user was | the new session holds nothing of the old one but what this request has written |
//! | two log-ins of one anonymous session at once | two sessions, each signed in as who it said |
//! | a session is signed in, and its client has sent its cookie once | it is one of its user's devices, until it expires or is destroyed |
//! | [`destroy`](Session::destroy), [`revoke`](Session::revoke) | the session ends in one step, by whichever of its ids, however often it is rotated meanwhile |
//! | [`revoke_others`](Session::revoke_others), [`revoke_all`](Session::revoke_all) | one step in the store, however many there are; the others are gone for every request that has not loaded them yet |
//! | a log-in is under way meanwhile | if its session is made later, it stands: check the password again, or use [`SignIns`](crate::auth::SignIns) around it |
//! | Redis loses what it knows of an owner (eviction) | all that owner's sessions are gone: nobody could say which were revoked |

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::layer::SessionLayer;
use crate::session::{Place, Session, predecessors};
use crate::store::{Destroyed, Handle, Owner, Store};
use crate::value::{decode, encode_ours};

/// The field it is kept in.
pub(crate) const FIELD: &str = ".signed";
/// The field of the same user's sessions that this one replaced: they end with it.
pub(crate) const BEFORE: &str = ".before";
/// How long a second factor is waited for.
const PENDING_FOR: Duration = Duration::from_mins(10);
/// How long somebody may act as another user.
const IMPERSONATED_FOR: Duration = Duration::from_hours(1);
/// A device's name is cut after so many characters.
const LONGEST_NAME: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Signed {
    user: String,
    /// A second factor is missing.
    pending: bool,
    device: String,
    /// When it was signed in; when somebody last proved to be the user. Seconds since 1970.
    since: u64,
    proved: u64,
    /// The first once more, in µs: what came first.
    #[serde(default)]
    since_us: u64,
    /// Who acts as the user, and since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default)]
    acts_since: u64,
}

impl Signed {
    /// Signed in now, who has proved nothing.
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

    /// Nobody acts as somebody else for longer than an hour.
    fn stands(&self) -> bool {
        !self.pending && (self.by.is_none() || now().saturating_sub(self.acts_since) <= IMPERSONATED_FOR.as_secs())
    }
}

/// A session as its user sees it in a list of devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Device {
    /// For [`Session::revoke`]. It signs nobody in, so it may stand in a page.
    pub id: String,
    /// What it was called at its sign-in.
    pub name: String,
    /// When it signed in: s since 1970.
    pub since: u64,
    /// When it was last used, to within [a minute or a twentieth of the idle time-out](crate::Config::idle_timeout): s since 1970.
    pub last_used: u64,
    /// Whether it is the one that asks.
    pub is_this: bool,
}

impl Session {
    /// Signs a user in, by whatever id the application has for them, on a device with a name that the user will know it by. The session gets
    /// a new id.
    ///
    /// ```no_run
    /// # async fn log_in(session: scale_session::Session) -> Result<(), scale_session::Error> {
    /// session.sign_in("7", "Firefox on Linux").await?;
    /// assert_eq!(session.user().await?.as_deref(), Some("7"));
    /// # Ok(()) }
    /// ```
    pub async fn sign_in(&self, user: &str, device: &str) -> Result<(), Error> {
        self.become_signed(Signed { device: device.to_owned(), proved: now(), ..Signed::new(user) }).await
    }

    /// The password was right, a second factor is missing: [`user`](Self::user) is nobody until [`sign_in`](Self::sign_in). The session gets
    /// a new id.
    pub async fn await_second_factor(&self, user: &str) -> Result<(), Error> {
        self.become_signed(Signed { pending: true, ..Signed::new(user) }).await
    }

    async fn become_signed(&self, signed: Signed) -> Result<(), Error> {
        let device = signed.device.chars().take(LONGEST_NAME).collect();
        let signed = Signed { device, ..signed };
        let bytes = encode_ours(FIELD, &signed)?;
        let mut state = self.becoming().await?;
        let before: Option<Signed> = state.field(FIELD).map(|bytes| decode(FIELD, bytes)).transpose()?;
        if before.is_some_and(|before| before.user != signed.user) {
            state.start_empty();
        }
        state.become_of((!signed.pending).then(|| Owner::of(&signed.user)));
        state.write(FIELD, Some(bytes));
        Ok(())
    }

    async fn signed(&self) -> Result<Option<Signed>, Error> {
        let state = self.read().await?;
        state.field(FIELD).map(|bytes| decode(FIELD, bytes)).transpose()
    }

    /// Who is signed in, with all factors.
    pub async fn user(&self) -> Result<Option<String>, Error> {
        Ok(self.signed().await?.filter(Signed::stands).map(|signed| signed.user))
    }

    /// Lets whoever is signed in act as another user, for an hour at most: to see what a customer sees. The session stays theirs: it ends
    /// with their sessions, and is none of the other user's devices. It gets a new id and holds nothing of what it held before. Written into
    /// the audit log before it happens. Whether they may is the application's to check. Returns `false` if nobody is signed in, or acts as
    /// somebody already.
    ///
    /// # Errors
    /// [`auth::Error::Ledger`](crate::auth::Error::Ledger) if it cannot be written down: then it does not happen. [`Error::Replaced`] if the
    /// session was ended or replaced meanwhile.
    #[cfg(feature = "auth")]
    pub async fn impersonate(&self, user: &str, reason: &str, audit: &crate::auth::AuditLog) -> Result<bool, crate::auth::Error> {
        let signed = self.signed().await?.filter(|signed| signed.stands() && signed.by.is_none());
        let Some(signed) = signed else { return Ok(false) };
        let event = crate::auth::audit::Event::new(&signed.user, "impersonate.begin").to(user).details(reason);
        audit.append(event).await?;
        let acting = Signed { user: user.to_owned(), by: Some(signed.user.clone()), acts_since: now(), proved: 0, ..signed };
        self.act(acting).await?;
        Ok(true)
    }

    /// Makes whoever acts as another user themselves again, having [proved](Self::is_proved_within) nothing lately. After the hour, too.
    /// Returns `false` if nobody acts as somebody else.
    ///
    /// # Errors
    /// As [`impersonate`](Self::impersonate).
    #[cfg(feature = "auth")]
    pub async fn stop_impersonating(&self, audit: &crate::auth::AuditLog) -> Result<bool, crate::auth::Error> {
        let Some(signed) = self.signed().await?.filter(|signed| !signed.pending) else { return Ok(false) };
        let Some(own) = signed.by.clone() else { return Ok(false) };
        audit.append(crate::auth::audit::Event::new(&own, "impersonate.end").to(&signed.user)).await?;
        self.act(Signed { user: own, by: None, acts_since: 0, proved: 0, ..signed }).await?;
        Ok(true)
    }

    /// Goes on as somebody else in a session of the same owner, if this one is still theirs.
    #[cfg(feature = "auth")]
    async fn act(&self, signed: Signed) -> Result<(), Error> {
        let bytes = encode_ours(FIELD, &signed)?;
        let mut state = self.becoming().await?;
        self.establish(&mut state).await?;
        // What was kept for one of them is not the other's.
        state.remove_all();
        state.write(FIELD, Some(bytes));
        self.go_on(&mut state).await?.map(drop).ok_or(Error::Replaced)
    }

    /// Returns who acts as the [`user`](Self::user): for a banner, and for what they must not do in that user's name.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn impersonator(&self) -> Result<Option<String>, Error> {
        Ok(self.signed().await?.filter(Signed::stands).and_then(|signed| signed.by))
    }

    /// Whose second factor is missing, if the first was given within the last 10 minutes.
    pub async fn pending_user(&self) -> Result<Option<String>, Error> {
        let fresh = |signed: &Signed| signed.pending && now().saturating_sub(signed.since) <= PENDING_FOR.as_secs();
        Ok(self.signed().await?.filter(fresh).map(|signed| signed.user))
    }

    /// Whether the user has proved to be who they are within that time, at sign-in or by [`prove`](Self::prove): ask for the password again
    /// before what matters if not. Never of who [acts as somebody else](Self::impersonator).
    pub async fn is_proved_within(&self, time: Duration) -> Result<bool, Error> {
        let signed = self.signed().await?.filter(|signed| signed.stands() && signed.by.is_none());
        Ok(signed.is_some_and(|signed| now().saturating_sub(signed.proved) <= time.as_secs()))
    }

    /// The user has just given their password or second factor again. The session gets a new id. `false`: nobody is signed in,
    /// or somebody [acts as the user](Self::impersonator).
    pub async fn prove(&self) -> Result<bool, Error> {
        let Some(signed) = self.signed().await?.filter(|signed| signed.stands() && signed.by.is_none()) else { return Ok(false) };
        let bytes = encode_ours(FIELD, &Signed { proved: now(), ..signed })?;
        let mut state = self.becoming().await?;
        state.become_itself();
        state.write(FIELD, Some(bytes));
        Ok(true)
    }

    /// Every session of the user signed in, this one first, then the last used. Empty if nobody is. Two round trips.
    pub async fn devices(&self) -> Result<Vec<Device>, Error> {
        let Some(user) = self.user().await? else { return Ok(Vec::new()) };
        self.be_seen().await?;
        let mut devices = list(self.store(), &user, self.handle().await?.as_ref()).await?;
        devices.sort_by_key(|device| std::cmp::Reverse((device.is_this, device.last_used)));
        Ok(devices)
    }

    /// Ends one session of the user, by its [`Device::id`]: this one, too. `false`: it is none of theirs. A cookie to stay signed in
    /// brings a new one: end its [family](crate::auth::Remember::end_family) as well.
    pub async fn revoke(&self, id: &str) -> Result<bool, Error> {
        let Some(user) = self.user().await? else { return Ok(false) };
        self.be_seen().await?;
        let theirs = self.store().owned(&Owner::of(&user)).await?;
        let Some((handle, record)) = theirs.into_iter().find(|(handle, _)| public(handle) == id) else { return Ok(false) };
        if Some(handle) == self.handle().await? {
            self.destroy().await?;
            return Ok(true);
        }
        for before in record.fields.get(BEFORE).map(|bytes| predecessors(bytes)).unwrap_or_default() {
            self.store().destroy(&before, Duration::ZERO).await?;
        }
        // Where its user has proved to be themselves meanwhile, it goes on in another one.
        let mut next = Some(handle);
        while let Some(handle) = next.take() {
            if let Destroyed::Replaced(Some(other)) = self.store().destroy(&handle, Duration::ZERO).await?
                && other.owner() == handle.owner()
            {
                next = Some(other);
            }
        }
        Ok(true)
    }

    /// Ends all other sessions of the user, in one step: after a change of the password, say. With
    /// [`SessionLayer::remember`](crate::SessionLayer::remember) also whoever stays signed in, on this device too: give it a new cookie.
    ///
    /// # Errors
    /// [`Error::Replaced`] if this one has been ended or replaced meanwhile, and nobody can say which is to stay; [`Error::Store`]. Nothing is
    /// pretended: the others may live on.
    pub async fn revoke_others(&self) -> Result<(), Error> {
        let Some(owner) = self.reachable_user().await?.map(|user| Owner::of(&user)) else { return Ok(()) };
        // One that was signed in by this very request is not among them yet, and comes after.
        let this = self.handle().await?.filter(|handle| handle.owner() == Some(&owner));
        let is_apart = self.becoming().await?.is_becoming() || self.impersonator().await?.is_some();
        if this.is_none() && !is_apart {
            return Err(Error::Replaced);
        }
        if let Some(user) = self.user().await? {
            self.config().end_remembered(&user).await?;
        }
        if self.store().revoke(&owner, this.as_ref()).await? { Ok(()) } else { Err(Error::Replaced) }
    }

    /// Ends all sessions of the user in one step, this one included.
    ///
    /// # Errors
    /// [`Error::Store`]: they may live on.
    pub async fn revoke_all(&self) -> Result<(), Error> {
        let Some(user) = self.reachable_user().await? else { return Ok(()) };
        let owner = Owner::of(&user);
        self.config().end_remembered(&user).await?;
        // This one last: requests of its client that are under way are to know that it was there.
        let this = self.handle().await?.filter(|handle| handle.owner() == Some(&owner));
        if !self.store().revoke(&owner, this.as_ref()).await? {
            self.store().revoke(&owner, None).await?;
        }
        self.destroy().await
    }

    /// Who is signed in; an error if nobody can say, whatever is configured.
    async fn reachable_user(&self) -> Result<Option<String>, Error> {
        if matches!(self.becoming().await?.place, Place::Stale(_)) {
            return Err(Error::Replaced);
        }
        self.user().await
    }

    /// Where the session lives, if it does.
    async fn handle(&self) -> Result<Option<Handle>, Error> {
        let state = self.read().await?;
        Ok(match state.place {
            Place::At(handle, _) => Some(handle),
            _ => None,
        })
    }
}

impl SessionLayer {
    /// Every session of a user, the last used first: for support and for administrators.
    pub async fn devices_of(&self, user: &str) -> Result<Vec<Device>, Error> {
        let mut devices = list(self.store(), user, None).await?;
        devices.sort_by_key(|device| std::cmp::Reverse(device.last_used));
        Ok(devices)
    }

    /// Ends all sessions of a user in one step: when the account is closed, or taken back from a thief.
    pub async fn revoke_all_of(&self, user: &str) -> Result<(), Error> {
        self.end_remembered(user).await?;
        self.store().revoke(&Owner::of(user), None).await.map(drop)
    }
}

/// When the session of a record was signed in: µs since 1970, 0 if nobody knows.
pub(crate) fn signed_in_since(record: &crate::store::Record) -> u64 {
    let signed = record.fields.get(FIELD).and_then(|bytes| decode::<Signed>(FIELD, bytes).ok());
    signed.map_or(0, |signed| signed.since_us)
}

async fn list(store: &dyn Store, user: &str, this: Option<&Handle>) -> Result<Vec<Device>, Error> {
    let sessions = store.owned(&Owner::of(user)).await?;
    let device = |(handle, record): (Handle, crate::store::Record)| {
        let signed: Signed = decode(FIELD, record.fields.get(FIELD)?).ok()?;
        let last_used = record.renewed.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        Some(Device { id: public(&handle), name: signed.device, since: signed.since, last_used, is_this: this == Some(&handle) })
    };
    Ok(sessions.into_iter().filter_map(device).collect())
}

/// The hash of the session's family: it stays the same however often the id changes, and signs nobody in.
fn public(handle: &Handle) -> String {
    handle.family()
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}
