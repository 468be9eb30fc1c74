//! Devices of a user: the sessions in which the user is signed in, listed and revoked.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use crate::error::Error;
use crate::identity::Signed;
use crate::layer::SessionLayer;
use crate::session::{Place, Session, predecessors};
use crate::store::{Destroyed, Handle, Owner, Store};
use crate::value::{IDENTITY, PREDECESSORS, decode};

/// A session as a list of devices shows it to its user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Device {
    /// Id for [`Session::revoke`]. Nobody can sign in with it, so a page may contain it.
    pub id: String,
    /// Name given at the sign-in.
    pub name: String,
    /// Time of the sign-in, in seconds since 1970.
    pub since: u64,
    /// Time of the last use, in seconds since 1970, accurate to [a minute or a twentieth of the
    /// idle time-out](crate::Config::idle_timeout).
    pub last_used: u64,
    /// `true` if the device is the one that sent the request.
    pub is_this: bool,
}

impl Session {
    /// Returns every session of the signed-in user: this one first, then by last use. Empty if no
    /// user is signed in. Two round trips.
    pub async fn devices(&self) -> Result<Vec<Device>, Error> {
        let Some(user) = self.user().await? else { return Ok(Vec::new()) };
        self.be_seen().await?;
        let mut devices = list(self.store(), &user, self.handle().await?.as_ref()).await?;
        devices.sort_by_key(|device| std::cmp::Reverse((device.is_this, device.last_used)));
        Ok(devices)
    }

    /// Ends one session of the user, by its [`Device::id`]; the id of this session works as well.
    /// Returns `false` if the session is not one of the user's. A remember-me cookie creates a new
    /// session: end its [family](crate::auth::Remember::end_family) as well.
    pub async fn revoke(&self, id: &str) -> Result<bool, Error> {
        let Some(user) = self.user().await? else { return Ok(false) };
        self.be_seen().await?;
        let theirs = self.store().owned(&Owner::of(&user)).await?;
        let Some((handle, record)) = theirs.into_iter().find(|(handle, _)| public(handle) == id)
        else {
            return Ok(false);
        };
        if Some(handle) == self.handle().await? {
            self.destroy().await?;
            return Ok(true);
        }
        for before in
            record.fields.get(PREDECESSORS).map(|bytes| predecessors(bytes)).unwrap_or_default()
        {
            self.store().destroy(&before, Duration::ZERO).await?;
        }
        // If the user has confirmed their identity in the meantime, the session continues in a
        // successor.
        let mut next = Some(handle);
        while let Some(handle) = next.take() {
            if let Destroyed::Replaced(Some(other)) =
                self.store().destroy(&handle, Duration::ZERO).await?
                && other.owner() == handle.owner()
            {
                next = Some(other);
            }
        }
        Ok(true)
    }

    /// Ends all other sessions of the user in one step, for example after a change of the password.
    /// With [`SessionLayer::remember`](crate::SessionLayer::remember) all remember-me cookies end
    /// as well, including the one of this device: give this device a new cookie.
    ///
    /// # Errors
    /// [`Error::Replaced`] if this session has been ended or replaced in the meantime, so that the
    /// session to keep is unknown; [`Error::Store`]. After an error the other sessions may still be
    /// valid.
    pub async fn revoke_others(&self) -> Result<(), Error> {
        let Some(owner) = self.reachable_user().await?.map(|user| Owner::of(&user)) else {
            return Ok(());
        };
        // A session that was signed in by this request is not stored yet: it is created later, and
        // stays.
        let this = self.handle().await?.filter(|handle| handle.owner() == Some(&owner));
        let is_apart = self.becoming().await?.is_becoming() || self.impersonator().await?.is_some();
        if this.is_none() && !is_apart {
            return Err(Error::Replaced);
        }
        if let Some(user) = self.user().await? {
            self.config().end_remembered(&user).await?;
        }
        if self.store().revoke(&owner, this.as_ref()).await? {
            Ok(())
        } else {
            Err(Error::Replaced)
        }
    }

    /// Ends all sessions of the user in one step, including this one.
    ///
    /// # Errors
    /// [`Error::Store`]: the sessions may still be valid.
    pub async fn revoke_all(&self) -> Result<(), Error> {
        let Some(user) = self.reachable_user().await? else { return Ok(()) };
        let owner = Owner::of(&user);
        self.config().end_remembered(&user).await?;
        // This session is destroyed last: its client's requests in progress must learn that it
        // existed.
        let this = self.handle().await?.filter(|handle| handle.owner() == Some(&owner));
        if !self.store().revoke(&owner, this.as_ref()).await? {
            self.store().revoke(&owner, None).await?;
        }
        self.destroy().await
    }

    /// Returns the user who is signed in, or an error if that is unknown, regardless of
    /// [`OnStoreError`](crate::OnStoreError).
    async fn reachable_user(&self) -> Result<Option<String>, Error> {
        if matches!(self.becoming().await?.place, Place::Stale(_)) {
            return Err(Error::Replaced);
        }
        self.user().await
    }

    /// Returns the storage key of the session, if the session is stored.
    async fn handle(&self) -> Result<Option<Handle>, Error> {
        let state = self.read().await?;
        Ok(match state.place {
            Place::At(handle, _) => Some(handle),
            _ => None,
        })
    }
}

impl SessionLayer {
    /// Returns every session of a user, by last use: for support and administrators.
    pub async fn devices_of(&self, user: &str) -> Result<Vec<Device>, Error> {
        let mut devices = list(self.store(), user, None).await?;
        devices.sort_by_key(|device| std::cmp::Reverse(device.last_used));
        Ok(devices)
    }

    /// Ends all sessions of a user in one step, for example when the account is closed or was
    /// stolen.
    pub async fn revoke_all_of(&self, user: &str) -> Result<(), Error> {
        self.end_remembered(user).await?;
        self.store().revoke(&Owner::of(user), None).await.map(drop)
    }
}

async fn list(store: &dyn Store, user: &str, this: Option<&Handle>) -> Result<Vec<Device>, Error> {
    let sessions = store.owned(&Owner::of(user)).await?;
    let device = |(handle, record): (Handle, crate::store::Record)| {
        let signed: Signed = decode(IDENTITY, record.fields.get(IDENTITY)?).ok()?;
        let last_used = record.renewed.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        Some(Device {
            id: public(&handle),
            name: signed.device,
            since: signed.since,
            last_used,
            is_this: this == Some(&handle),
        })
    };
    Ok(sessions.into_iter().filter_map(device).collect())
}

/// Returns the hash of the session's family. It stays the same across rotations, and nobody can
/// sign in with it.
fn public(handle: &Handle) -> String {
    handle.family()
}
