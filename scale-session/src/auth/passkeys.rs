//! Passkeys (WebAuthn): log-in by a device that its user unlocks, with or without a user name,
//! alone or as a second factor.
//!
//! | step | in the browser | here |
//! | --- | --- | --- |
//! | register, signed in | `navigator.credentials.create` | [`begin_registration`](Passkeys::begin_registration), [`finish_registration`](Passkeys::finish_registration) |
//! | sign in | `navigator.credentials.get` | [`begin_sign_in`](Passkeys::begin_sign_in), [`finish_sign_in`](Passkeys::finish_sign_in) |
//!
//! Methods that begin a step return JSON for the browser:
//! `PublicKeyCredential.parseCreationOptionsFromJSON` and `parseRequestOptionsFromJSON` parse its
//! `publicKey`. The browser sends the resulting credential back as `credential.toJSON()`.
//!
//! | when | then |
//! | --- | --- |
//! | a step begins | its challenge is kept in the visitor's session for 5 minutes, and works once |
//! | a device answers without having verified its user (PIN, finger, face) | refused: a passkey counts as two factors |
//! | an answer is for another site, another challenge, another user | refused |
//! | a passkey was removed in the meantime | refused |
//! | a device's signature counter does not increase | refused: the device may be a copy |
//! | a user has ten passkeys | no more can be registered until one is removed |
//!
//! Passkeys are stored as [`Records`] of their users: public keys, no secrets. Each passkey is
//! bound to the site's domain, and is lost when the domain changes.

use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use webauthn_rs::prelude::{
    DiscoverableAuthentication, Passkey, PasskeyAuthentication, PasskeyRegistration,
    PublicKeyCredential, RegisterPublicKeyCredential, Url, Uuid, Webauthn, WebauthnBuilder,
    WebauthnError,
};

use super::error::Error;
use super::records::{Owner, Records, Swapped};
use super::same;
use super::signed_token::now;
use super::steps::{self, Step};
use crate::session::Session;

const KIND: &str = "passkey";
/// Time that a user has to answer with the device.
const ANSWER_WITHIN: Duration = Duration::from_mins(5);
/// Maximum number of a user's passkeys.
const MOST: usize = 10;
/// Maximum number of concurrent answers with one passkey.
const MOST_AT_ONCE: u32 = 10;
const LONGEST_NAME: usize = 200;
const TOO_MANY: Error = Error::TooMany("a user can have up to ten passkeys; remove one first");
/// Maximum length of an answer; longer ones are refused unread.
const LONGEST_ANSWER: usize = 64 * 1_024;

/// Registers passkeys, and signs users in by them. A clone costs two reference counts.
///
/// ```no_run
/// # use scale_session::{Session, auth::{Error, Passkeys, Records}};
/// # async fn example(session: Session, records: Records, answer: &str) -> Result<(), Error> {
/// let passkeys = Passkeys::new("Shop", "https://shop.example.com", &records)?;
///
/// // Signed in: GET /passkeys/new, then POST the browser's answer.
/// let options = passkeys.begin_registration(&session, "7", "ann@example.com").await?;
/// let passkey = passkeys.finish_registration(&session, "7", "Ann's phone", answer).await?;
///
/// // Not signed in: GET /log-in/passkey, then POST the browser's answer.
/// let options = passkeys.begin_sign_in(&session, None).await?;
/// if let Some(user) = passkeys.finish_sign_in(&session, answer).await? {
///     session.sign_in(&user, "a browser").await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Passkeys {
    webauthn: Arc<Webauthn>,
    records: Records,
}

/// A passkey as a list shows it to its user. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PasskeyInfo {
    /// Id for [`Passkeys::remove`]. Nobody can sign in with it.
    pub id: String,
    /// Name given by the user.
    pub name: String,
    /// Time of registration.
    pub created: u64,
    /// Time of the last use.
    pub last_used: Option<u64>,
}

/// Stored form of a passkey.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u8,
    user: String,
    name: String,
    created: u64,
    last_used: Option<u64>,
    /// Signature counter of the device at the last use.
    #[serde(default)]
    counter: u32,
    /// Passkey as JSON: the form that the library keeps stable.
    passkey: String,
}

/// A step in progress.
#[derive(Clone, Serialize, Deserialize)]
struct Pending {
    challenge: String,
    /// User who registers the passkey, or who is to sign in, if known.
    user: Option<String>,
    since: u64,
    /// State of the library, as JSON.
    state: String,
}

#[derive(Serialize, Deserialize)]
enum State {
    Registration(PasskeyRegistration),
    SignIn(PasskeyAuthentication),
    Discovery(DiscoverableAuthentication),
}

impl Passkeys {
    /// `site` is the name of the site in the browser's dialogs, `origin` the address that pages
    /// come from. Passkeys are valid for its host only.
    ///
    /// # Errors
    /// [`Error::Setting`] unless the origin is `https://` and a host, or `http://localhost`.
    pub fn new(site: &str, origin: &str, records: &Records) -> Result<Self, Error> {
        let wrong =
            Error::Setting("the origin of passkeys must be https://<host> or http://localhost");
        let Ok(url) = Url::parse(origin) else { return Err(wrong) };
        let Some(host) =
            url.domain().filter(|host| url.scheme() == "https" || *host == "localhost")
        else {
            return Err(wrong);
        };
        let webauthn =
            WebauthnBuilder::new(host, &url).and_then(|builder| builder.rp_name(site).build());
        Ok(Self { webauthn: Arc::new(webauthn.map_err(|_| wrong)?), records: records.clone() })
    }

    /// Returns the options for `navigator.credentials.create`, for a user who is signed in. `user`
    /// is the id that the user is signed in by, `shown` the name that the browser shows. Ask for
    /// the password, or another passkey, again before this call.
    ///
    /// # Errors
    /// [`Error::TooMany`] if the user has ten passkeys; [`Error::OneTimeStore`];
    /// [`Error::Session`].
    pub async fn begin_registration(
        &self,
        session: &Session,
        user: &str,
        shown: &str,
    ) -> Result<String, Error> {
        let known = self.records_of(user).await?;
        if known.len() >= MOST {
            return Err(TOO_MANY);
        }
        let ids = known.iter().map(|(_, _, passkey)| passkey.cred_id().clone()).collect();
        let begun = self.webauthn.start_passkey_registration(handle(user), shown, shown, Some(ids));
        let (options, state) = begun.map_err(|error| failed(&error))?;
        let mut options = serde_json::to_value(options).map_err(unwritable)?;
        // Requires a passkey that the browser finds without a user name.
        if let Some(selection) = options.pointer_mut("/publicKey/authenticatorSelection") {
            selection["residentKey"] = "required".into();
            selection["requireResidentKey"] = true.into();
        }
        self.pend(session, &options, Some(user), &State::Registration(state)).await?;
        Ok(options.to_string())
    }

    /// Stores the passkey that the browser has created. `name` is the name that the user will
    /// recognise it by.
    ///
    /// # Errors
    /// [`Error::Denied`] if the answer does not belong to a registration that this session has
    /// begun for that user; [`Error::TooMany`]; [`Error::OneTimeStore`]; [`Error::Session`].
    pub async fn finish_registration(
        &self,
        session: &Session,
        user: &str,
        name: &str,
        answer: &str,
    ) -> Result<PasskeyInfo, Error> {
        let answer: RegisterPublicKeyCredential = read(answer)?;
        let pending = self.take(session, answer.response.client_data_json.as_ref()).await?;
        let (State::Registration(state), true) =
            (pending.state()?, pending.user.as_deref() == Some(user))
        else {
            return Err(Error::Denied("the answer belongs to another step".into()));
        };
        let passkey = self
            .webauthn
            .finish_passkey_registration(&answer, &state)
            .map_err(|error| failed(&error))?;
        let (id, name) =
            (public_id(passkey.cred_id().as_ref()), name.chars().take(LONGEST_NAME).collect());
        let passkey = serde_json::to_string(&passkey).map_err(unwritable)?;
        let record = Record {
            version: 1,
            user: user.to_owned(),
            name,
            created: now(),
            last_used: None,
            counter: 0,
            passkey,
        };
        if !self
            .records
            .store()
            .put(&Owner::of(KIND, user), &id, &record.bytes()?, None, MOST)
            .await?
        {
            return Err(TOO_MANY);
        }
        Ok(record.info(id))
    }

    /// Returns the options for `navigator.credentials.get`: for this user, or, without one, for any
    /// user whose passkey the device has. As a second factor, pass [`Session::pending_user`]. A
    /// user without passkeys gets the same options as an unknown user, and no answer to them signs
    /// that user in. The options list a user's passkeys, so anybody who can ask by name learns
    /// whether that user has any.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]; [`Error::Session`].
    pub async fn begin_sign_in(
        &self,
        session: &Session,
        user: Option<&str>,
    ) -> Result<String, Error> {
        let known = match user {
            Some(user) => self.records_of(user).await?,
            None => Vec::new(),
        };
        let (mut options, state) = if known.is_empty() {
            let (options, state) = self
                .webauthn
                .start_discoverable_authentication()
                .map_err(|error| failed(&error))?;
            (serde_json::to_value(options).map_err(unwritable)?, State::Discovery(state))
        } else {
            let passkeys: Vec<Passkey> = known.into_iter().map(|(_, _, passkey)| passkey).collect();
            let (options, state) = self
                .webauthn
                .start_passkey_authentication(&passkeys)
                .map_err(|error| failed(&error))?;
            (serde_json::to_value(options).map_err(unwritable)?, State::SignIn(state))
        };
        // The page decides whether the browser asks at once, or offers the passkey in a field.
        if let Some(options) = options.as_object_mut() {
            options.remove("mediation");
        }
        self.pend(session, &options, user, &state).await?;
        Ok(options.to_string())
    }

    /// Returns the user who has authenticated, with both factors; `None` if the passkey is unknown
    /// here. Then call [`Session::sign_in`].
    ///
    /// # Errors
    /// [`Error::Denied`] if the answer is not valid for a step that this session has begun;
    /// [`Error::OneTimeStore`]; [`Error::Session`].
    pub async fn finish_sign_in(
        &self,
        session: &Session,
        answer: &str,
    ) -> Result<Option<String>, Error> {
        let answer: PublicKeyCredential = read(answer)?;
        let pending = self.take(session, answer.response.client_data_json.as_ref()).await?;
        let id = public_id(answer.raw_id.as_ref());
        let state = pending.state()?;
        let owner = match (&state, &pending.user) {
            (State::SignIn(_), Some(user)) => Owner::of(KIND, user),
            (State::Discovery(_), _) => {
                let (user, _) = self
                    .webauthn
                    .identify_discoverable_authentication(&answer)
                    .map_err(|error| failed(&error))?;
                Owner(user.into_bytes())
            }
            _ => return Err(Error::Denied("the answer belongs to another step".into())),
        };
        // Retries when another answer of the same passkey was stored first.
        for _ in 0..MOST_AT_ONCE {
            // The passkey was removed, or never registered here.
            let Some(bytes) = self.records.store().get(&owner, &id).await? else { return Ok(None) };
            let (mut record, mut passkey) = Record::read(&bytes)?;
            if pending.user.as_ref().is_some_and(|user| *user != record.user) {
                return Err(Error::Denied("the passkey belongs to another user".into()));
            }
            let result = match &state {
                State::SignIn(state) => self.webauthn.finish_passkey_authentication(&answer, state),
                State::Discovery(state) => self.webauthn.finish_discoverable_authentication_v2(
                    &answer,
                    state.clone(),
                    &passkey,
                ),
                State::Registration(_) => {
                    return Err(Error::Denied("the answer belongs to another step".into()));
                }
            };
            let result = result.map_err(|error| failed(&error))?;
            if !result.user_verified() {
                return Err(Error::Denied("the device has not verified its user".into()));
            }
            // The library compares with the counter at the beginning of the step; this compares
            // with the stored one.
            if result.counter() <= record.counter && record.counter > 0 {
                return Err(Error::Denied(
                    "the device's counter did not increase: the device may be a copy".into(),
                ));
            }
            passkey.update_credential(&result);
            (record.last_used, record.counter) = (Some(now()), result.counter());
            record.passkey = serde_json::to_string(&passkey).map_err(unwritable)?;
            match self.records.store().swap(&owner, &id, &bytes, &record.bytes()?).await? {
                Swapped::Done => return Ok(Some(record.user)),
                Swapped::Gone => return Ok(None),
                Swapped::Changed => {}
            }
        }
        Err(Error::Denied("the passkey is being used by other requests; please try again".into()))
    }

    /// Returns a user's passkeys, newest first.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]; [`Error::Stored`].
    pub async fn list(&self, user: &str) -> Result<Vec<PasskeyInfo>, Error> {
        let mut all: Vec<_> = self
            .records_of(user)
            .await?
            .into_iter()
            .map(|(id, record, _)| record.info(id))
            .collect();
        all.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
        Ok(all)
    }

    /// Removes one passkey of a user, by its [`PasskeyInfo::id`]. Returns `false` if the passkey is
    /// not one of the user's. Make sure that the user has another way to sign in.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the passkey may still be valid.
    pub async fn remove(&self, user: &str, id: &str) -> Result<bool, Error> {
        self.records.store().remove(&Owner::of(KIND, user), id).await
    }

    async fn records_of(&self, user: &str) -> Result<Vec<(String, Record, Passkey)>, Error> {
        let records = self.records.store().list(&Owner::of(KIND, user)).await?;
        let read = |(id, bytes): (String, Vec<u8>)| {
            Record::read(&bytes).map(|(record, passkey)| (id, record, passkey))
        };
        records.into_iter().map(read).collect()
    }

    async fn pend(
        &self,
        session: &Session,
        options: &Value,
        user: Option<&str>,
        state: &State,
    ) -> Result<(), Error> {
        let challenge = options
            .pointer("/publicKey/challenge")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let state = serde_json::to_string(state).map_err(unwritable)?;
        let pending = Pending { challenge, user: user.map(ToOwned::to_owned), since: now(), state };
        Ok(steps::begin(session, pending).await?)
    }

    /// Takes the step out of the session: its challenge works once.
    async fn take(&self, session: &Session, client_data: &[u8]) -> Result<Pending, Error> {
        let client_data: Value = serde_json::from_slice(client_data).map_err(|_| unreadable())?;
        let challenge =
            client_data.get("challenge").and_then(Value::as_str).ok_or_else(unreadable)?;
        let challenge = challenge.trim_end_matches('=');
        let is_it = |pending: &Pending| same(pending.challenge.as_bytes(), challenge.as_bytes());
        let found = steps::take(session, is_it).await?;
        found.ok_or_else(|| {
            Error::Denied("this session has not begun such a step, or it has expired".into())
        })
    }
}

impl Step for Pending {
    const FIELD: &'static str = ".step.passkey";
    const LASTS: Duration = ANSWER_WITHIN;

    fn since(&self) -> u64 {
        self.since
    }
}

impl Pending {
    fn state(&self) -> Result<State, Error> {
        serde_json::from_str(&self.state).map_err(|_| Error::Stored("passkey challenge"))
    }
}

impl Record {
    fn read(bytes: &[u8]) -> Result<(Self, Passkey), Error> {
        let wrong = || Error::Stored("passkey");
        let record: Self = rmp_serde::from_slice(bytes).map_err(|_| wrong())?;
        let passkey = serde_json::from_str(&record.passkey).map_err(|_| wrong())?;
        Ok((record, passkey))
    }

    fn bytes(&self) -> Result<Vec<u8>, Error> {
        rmp_serde::to_vec_named(self).map_err(|_| Error::Stored("passkey"))
    }

    fn info(self, id: String) -> PasskeyInfo {
        PasskeyInfo { id, name: self.name, created: self.created, last_used: self.last_used }
    }
}

/// Returns the id under which devices store a user: it contains no name and is the same for all
/// passkeys of the user.
fn handle(user: &str) -> Uuid {
    Uuid::from_bytes(Owner::of(KIND, user).0)
}

fn public_id(credential: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(credential)[..20])
}

fn read<T: serde::de::DeserializeOwned>(answer: &str) -> Result<T, Error> {
    if answer.len() > LONGEST_ANSWER {
        return Err(unreadable());
    }
    serde_json::from_str(answer).map_err(|_| unreadable())
}

fn unreadable() -> Error {
    Error::Denied("the browser's answer cannot be decoded".into())
}

fn unwritable(_: serde_json::Error) -> Error {
    Error::Stored("passkey")
}

fn failed(error: &WebauthnError) -> Error {
    Error::Denied(format!("invalid answer of the device: {error:?}").chars().take(200).collect())
}
