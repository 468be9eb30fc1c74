//! Second factors: codes of an authenticator app. Their secrets are stored encrypted, bound to the
//! account, so that a row moved to another account is worthless.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use data_encoding::BASE64URL_NOPAD;
use scale_session::auth::{OneTimeStore, Totp, recovery};

use crate::app::Database;
use crate::db::factors::{self, Factor};

/// Name of the shop in authenticator apps.
const ISSUER: &str = "Fathom & Field";

#[derive(Clone)]
pub(crate) struct SecondFactors {
    cipher: Arc<XChaCha20Poly1305>,
    one_time: OneTimeStore,
}

/// A second factor that its user has not confirmed yet.
pub(crate) struct Draft {
    /// The secret, encrypted for the form that confirms it.
    pub(crate) sealed: String,
    /// For users who type it.
    pub(crate) secret: String,
    /// The same as a QR code: an SVG element.
    pub(crate) qr: String,
}

impl SecondFactors {
    pub(crate) fn new(key: &[u8; 32], one_time: OneTimeStore) -> Self {
        Self { cipher: Arc::new(XChaCha20Poly1305::new(key.into())), one_time }
    }

    /// Begins to set up a factor: nothing is stored before the user has shown a first code.
    pub(crate) fn draft(&self, account: &str) -> Result<Draft> {
        self.draft_of(account, &Totp::generate()?)
    }

    /// Returns a draft again, after a wrong code.
    pub(crate) fn again(&self, account: &str, sealed: &str) -> Result<Option<Draft>> {
        let totp = self.open(&draft_of(account), sealed);
        totp.map(|totp| self.draft_of(account, &totp)).transpose()
    }

    fn draft_of(&self, account: &str, totp: &Totp) -> Result<Draft> {
        let qr = totp.qr_svg(ISSUER, account)?;
        let from = qr.find("<svg").context("the QR code is no SVG")?;
        Ok(Draft {
            sealed: self.seal(&draft_of(account), totp)?,
            secret: totp.secret(),
            qr: qr[from..].to_owned(),
        })
    }

    /// Stores a drafted factor, if the code is right. Returns the recovery codes, which are shown
    /// this once.
    pub(crate) async fn confirm(
        &self,
        db: &Database,
        account: &str,
        sealed: &str,
        code: &str,
    ) -> Result<Option<Vec<String>>> {
        let Some(totp) = self.open(&draft_of(account), sealed) else { return Ok(None) };
        if !totp.verify(&self.one_time, account, code).await? {
            return Ok(None);
        }
        let made = recovery::generate()?;
        let secret = self.seal(account, &totp)?;
        factors::set(db, account, Factor { secret, recovery: made.hashes }).await?;
        Ok(Some(made.codes))
    }

    /// Returns whether a code of the app, or an unused recovery code, is right.
    pub(crate) async fn verify(
        &self,
        db: &Database,
        account: &str,
        factor: &Factor,
        code: &str,
    ) -> Result<bool> {
        let totp = self.open(account, &factor.secret);
        let totp = totp.context("a second factor was encrypted with another `secret`")?;
        if totp.verify(&self.one_time, account, code).await? {
            return Ok(true);
        }
        match recovery::redeem(&self.one_time, account, code, &factor.recovery).await? {
            Some(used) => {
                factors::remove_code(db, account, &factor.recovery[used]).await?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn seal(&self, bound: &str, totp: &Totp) -> Result<String> {
        let mut sealed = vec![0; 24];
        getrandom::fill(&mut sealed).map_err(|error| anyhow!("no random numbers: {error}"))?;
        let nonce = XNonce::try_from(&sealed[..])?;
        let secret = totp.secret();
        let bound = Payload { msg: secret.as_bytes(), aad: bound.as_bytes() };
        let bytes = self.cipher.encrypt(&nonce, bound).map_err(|error| anyhow!("{error}"))?;
        sealed.extend(bytes);
        Ok(BASE64URL_NOPAD.encode(&sealed))
    }

    fn open(&self, bound: &str, sealed: &str) -> Option<Totp> {
        let sealed = BASE64URL_NOPAD.decode(sealed.as_bytes()).ok()?;
        let (nonce, bytes) = sealed.split_at_checked(24)?;
        let bytes = Payload { msg: bytes, aad: bound.as_bytes() };
        let secret = self.cipher.decrypt(&XNonce::try_from(nonce).ok()?, bytes).ok()?;
        Totp::from_secret(std::str::from_utf8(&secret).ok()?).ok()
    }
}

/// Returns what a draft is bound to: it is not a stored factor.
fn draft_of(account: &str) -> String {
    format!("draft of {account}")
}
