//! Mails with links: to verify an address, to reset a password, to change an address, to sign in.
//!
//! Each kind has two functions. The first one creates a mail, which the application sends. The
//! second one redeems the token of the mail's link. Users stay in the application's tables: an
//! [`Account`] borrows three strings from there.
//!
//! | link | valid for | ends early when |
//! | --- | --- | --- |
//! | [verify an address](AccountLinks::verify_email) | a day | it is used, or the account's address changes |
//! | [reset a password](AccountLinks::reset_password) | an hour | it is used, or the account's password or address changes |
//! | [change an address](AccountLinks::change_email) | an hour | it is used, or the account's password or address changes, or another change is requested, or changes are [cancelled](AccountLinks::cancel_email_changes) |
//! | [sign in](AccountLinks::sign_in) | 10 minutes | it is used, or the account's password or address changes |
//!
//! | when | then |
//! | --- | --- |
//! | the page of a link is opened, also by a mail scanner | the link stays valid: [`peek`](AccountLinks::peek) checks it, and the `POST` of the page's form redeems it |
//! | no account has the address | no mail, with the same work and the same answer: "if you have an account, a mail is on its way" |
//! | more than one mail a minute, or five an hour, are requested for an account or an address | no mail, and the same answer |
//! | an [`AuditLog`] is set | every request and every redemption of a link is logged first, also for addresses without an account; if the log entry cannot be written, nothing else happens |
//! | an attacker wants a link to another site | not possible: the link's address is a setting, never a request's `Host` |
//!
//! Limit these requests by client address first, with `scale-limit`.

mod mail;

use std::time::Duration;

pub use self::mail::{Mail, MailKind};
use super::audit::{AuditLog, Event};
use super::error::Error;
use super::one_time_store::OneTimeStore;
use super::signed_token::Keys;
use super::token::Tokens;

const DAY: Duration = Duration::from_hours(24);
const HOUR: Duration = Duration::from_hours(1);
/// Maximum lifetime of a code sent outside of the browser (ASVS 5, 6.5.5).
const TEN_MINUTES: Duration = Duration::from_mins(10);
/// Maximum number of mails of one kind to one address per hour.
const MAILS_AN_HOUR: u32 = 5;
/// Counter of requested and cancelled changes of an account's address.
const EMAIL_CHANGES: &str = "email changes";
const NO_ADDRESS: Error = Error::Input("this is not a mail address");
/// Maximum length of a mail address (RFC 5321).
const LONGEST_EMAIL: usize = 254;

/// A user as the application stores it.
#[derive(Clone, Copy)]
pub struct Account<'a> {
    /// User id, at most 256 bytes.
    pub id: &'a str,
    /// Address, as stored.
    pub email: &'a str,
    /// Hash of the password, as stored; empty if there is none.
    pub password_hash: &'a str,
}

impl std::fmt::Debug for Account<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({})", self.id)
    }
}

/// Creates links and redeems them. A clone copies a few short strings.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::account_links::{Account, AccountLinks, MailKind};
/// use scale_session::auth::{OneTimeStore, token::Keys};
///
/// let links = AccountLinks::new(
///     "Shop", "https://shop.example.com/account", Keys::new(&[7; 32])?, &OneTimeStore::memory(),
/// )?;
/// let ann = Account { id: "7", email: "ann@example.com", password_hash: "$argon2id$…" };
///
/// // POST /forgot: always answer "if you have an account, a mail is on its way".
/// let mail = links.reset_password("ann@example.com", Some(ann)).await?
///     .expect("the first mail is sent");
/// let link = mail.link.unwrap();
/// let token = link.strip_prefix("https://shop.example.com/account/reset-password#").unwrap();
///
/// // POST /reset-password with the token and a new password: find the account by the id,
/// // then redeem.
/// let id = AccountLinks::account_id(token).expect("the token has an id");
/// assert_eq!(id, "7");
/// assert!(links.peek(MailKind::ResetPassword, token, ann).await?);
/// assert!(links.redeem_password_reset(token, ann).await?);
/// // Store the new hash, end all sessions, send `links.password_changed(ann)`.
/// assert!(!links.redeem_password_reset(token, ann).await?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct AccountLinks {
    site: String,
    base: String,
    tokens: Tokens,
    one_time: OneTimeStore,
    audit: Option<AuditLog>,
}

impl AccountLinks {
    /// `site` is the name of the site in mails. A link consists of `base`, a slash, the kind of the
    /// link, `#` and the token. Browsers do not send the part after `#` to any server, so the token
    /// is in no log and in no `Referer`; the page's script copies it into a form.
    /// [`in_the_query`](Self::in_the_query) is for pages without scripts.
    ///
    /// # Errors
    /// [`Error::Setting`] unless `base` is `https://…`, or `http://` with a local host.
    pub fn new(site: &str, base: &str, keys: Keys, one_time: &OneTimeStore) -> Result<Self, Error> {
        let uri: http::Uri = base.parse().map_err(|_| {
            Error::Setting("the base of links must be an address such as https://example.com")
        })?;
        let is_local = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if uri.scheme_str() != Some("https") && !(uri.scheme_str() == Some("http") && is_local)
            || uri.query().is_some()
        {
            return Err(Error::Setting("the base of links must be https://… without a query"));
        }
        let (site, base) = (site.to_owned(), format!("{}/{{kind}}#", base.trim_end_matches('/')));
        Ok(Self {
            site,
            base,
            tokens: Tokens::new(keys, one_time),
            one_time: one_time.clone(),
            audit: None,
        })
    }

    /// Puts tokens into the query, `?token=…`, so that pages need no script. Keep these tokens out
    /// of access logs, and send `Referrer-Policy: no-referrer` with those pages.
    pub fn in_the_query(mut self) -> Self {
        self.base = self.base.trim_end_matches('#').to_owned() + "?token=";
        self
    }

    /// Sets the audit log for every link that is created or redeemed.
    pub fn audit(mut self, audit: &AuditLog) -> Self {
        self.audit = Some(audit.clone());
        self
    }

    /// Returns a mail whose link verifies the account's address; `None` if there were too many
    /// mails.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]; [`Error::Random`]; [`Error::Setting`] for an id or address that is
    /// too long.
    pub async fn verify_email(&self, account: Account<'_>) -> Result<Option<Mail>, Error> {
        let kind = MailKind::VerifyEmail;
        let text =
            "please open this link to confirm that this address is yours. It is good for a day.";
        self.linked(
            kind,
            account.email,
            Some(account),
            "",
            account.email,
            "Confirm your address",
            text,
        )
        .await
    }

    /// Returns whether the token verifies the account's address.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: it is unknown whether the token was used before.
    pub async fn redeem_verification(
        &self,
        token: &str,
        account: Account<'_>,
    ) -> Result<bool, Error> {
        Ok(self.redeem(MailKind::VerifyEmail, token, account).await?.is_some())
    }

    /// Returns a mail with a link to a form for a new password. `typed` is the address that the
    /// visitor entered, `account` the account with that address.
    ///
    /// # Errors
    /// The same as those of [`verify_email`](Self::verify_email).
    pub async fn reset_password(
        &self,
        typed: &str,
        account: Option<Account<'_>>,
    ) -> Result<Option<Mail>, Error> {
        let text = "somebody asked for a new password. If that was you, open this link; it is good \
            for an hour. If not, do nothing.";
        let to = account.map_or(typed, |account| account.email);
        self.linked(MailKind::ResetPassword, typed, account, "", to, "A new password", text).await
    }

    /// Returns whether a new password may be set. If so, store its hash, which ends all such links;
    /// end the user's sessions; and send [`password_changed`](Self::password_changed).
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: it is unknown whether the token was used before.
    pub async fn redeem_password_reset(
        &self,
        token: &str,
        account: Account<'_>,
    ) -> Result<bool, Error> {
        Ok(self.redeem(MailKind::ResetPassword, token, account).await?.is_some())
    }

    /// Returns two mails: a link to the new address, and a notice to the old one. Ask for the
    /// password again before this call.
    ///
    /// # Errors
    /// The same as those of [`verify_email`](Self::verify_email); [`Error::Input`] if `new` is not
    /// a mail address.
    pub async fn change_email(
        &self,
        account: Account<'_>,
        new: &str,
    ) -> Result<Option<[Mail; 2]>, Error> {
        let text = "please open this link to make this the address of your account. It is good \
            for an hour.";
        if !is_address(new) {
            return Err(NO_ADDRESS);
        }
        // Also limits mails that many accounts request for one mailbox.
        if !self.may_send(MailKind::ChangeEmail, new).await? {
            return Ok(None);
        }
        self.cancel_email_changes(account.id).await?;
        let link = self
            .linked(
                MailKind::ChangeEmail,
                account.email,
                Some(account),
                new,
                new,
                "Confirm your new address",
                text,
            )
            .await?;
        let notice = "somebody asked for another address \
            for your account. If that was not you, change your password now: that ends the \
             link they have.";
        let notice = || {
            self.mail(
                MailKind::EmailIsChanging,
                account.email,
                "Your address is about to change",
                notice,
                None,
            )
        };
        Ok(link.map(|link| [link, notice()]))
    }

    /// Ends the links that would change an account's address: a part of "sign out everywhere".
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: the links may still be valid.
    pub async fn cancel_email_changes(&self, account_id: &str) -> Result<(), Error> {
        self.one_time.advance(EMAIL_CHANGES, account_id, HOUR * 2).await.map(drop)
    }

    /// Returns the new address, if the token confirms it. Check that no other account has that
    /// address, and store it as verified.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: it is unknown whether the token was used before.
    pub async fn redeem_email_change(
        &self,
        token: &str,
        account: Account<'_>,
    ) -> Result<Option<String>, Error> {
        self.redeem(MailKind::ChangeEmail, token, account).await
    }

    /// Returns a mail whose link signs in. `typed` is the address that the visitor entered,
    /// `account` the account with that address. Anybody who reads the mail can sign in: ask for a
    /// second factor if the user has one.
    ///
    /// # Errors
    /// The same as those of [`verify_email`](Self::verify_email).
    pub async fn sign_in(
        &self,
        typed: &str,
        account: Option<Account<'_>>,
    ) -> Result<Option<Mail>, Error> {
        let text = "open this link to sign in. It is good for 10 minutes, once. If you did not ask \
            for it, do nothing.";
        let to = account.map_or(typed, |account| account.email);
        self.linked(MailKind::SignIn, typed, account, "", to, "Your link to sign in", text).await
    }

    /// Returns whether to sign in the account's user.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`]: it is unknown whether the token was used before.
    pub async fn redeem_sign_in(&self, token: &str, account: Account<'_>) -> Result<bool, Error> {
        Ok(self.redeem(MailKind::SignIn, token, account).await?.is_some())
    }

    /// Returns a notice that the password has changed.
    pub fn password_changed(&self, account: Account<'_>) -> Mail {
        let text = "your password was changed. If that was not you, ask for a new one now.";
        self.mail(MailKind::PasswordChanged, account.email, "Your password was changed", text, None)
    }

    /// Returns a notice of a sign-in on a device that is not among the
    /// [`KnownDevices`](super::KnownDevices).
    pub fn new_device(&self, account: Account<'_>, device: &str) -> Mail {
        let device: String = device.chars().filter(|c| !c.is_control()).take(100).collect();
        let text = format!(
            "somebody signed in to your account with {device}. If that was not you, change your \
             password now."
        );
        self.mail(MailKind::NewDevice, account.email, "A new sign-in", &text, None)
    }

    /// Returns the account id that a token claims, to find the account. The claim is not verified.
    pub fn account_id(token: &str) -> Option<String> {
        Some(split(&Tokens::subject(token)?)?.0)
    }

    /// Returns whether redeeming would succeed now. The link stays valid. For the page that the
    /// link leads to.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`].
    pub async fn peek(
        &self,
        kind: MailKind,
        token: &str,
        account: Account<'_>,
    ) -> Result<bool, Error> {
        let bound = self.bound(kind, account).await?;
        let subject = self.tokens.peek(kind.name(), token, &texts(&bound)).await?;
        Ok(subject.and_then(|subject| split(&subject)).is_some_and(|(id, _)| id == account.id))
    }

    #[expect(clippy::too_many_arguments, reason = "each argument differs from link to link")]
    async fn linked(
        &self,
        kind: MailKind,
        asked: &str,
        account: Option<Account<'_>>,
        more: &str,
        to: &str,
        subject: &str,
        text: &str,
    ) -> Result<Option<Mail>, Error> {
        if !is_address(to) {
            return if account.is_some() { Err(NO_ADDRESS) } else { Ok(None) };
        }
        // The limit is per account, however the address was typed.
        if !self.may_send(kind, account.map_or(asked, |account| account.email)).await? {
            return Ok(None);
        }
        self.note(account.map_or("", |account| account.id), kind, "link").await?;
        // Does the same work for an address without an account.
        let made_for = account.unwrap_or(Account { id: "", email: to, password_hash: "" });
        let bound = self.bound(kind, made_for).await?;
        let token = self.tokens.make(
            kind.name(),
            &joined(made_for.id, more),
            &texts(&bound),
            kind.lasts(),
        )?;
        let link = format!("{}{token}", self.base.replace("{kind}", kind.name()));
        let mail = self.mail(kind, to, subject, text, Some(link));
        Ok(account.map(|_| mail))
    }

    async fn redeem(
        &self,
        kind: MailKind,
        token: &str,
        account: Account<'_>,
    ) -> Result<Option<String>, Error> {
        // Checks account and validity before the token is used up.
        if !self.peek(kind, token, account).await? {
            return Ok(None);
        }
        // If this call fails, the link stays valid.
        self.note(account.id, kind, "redeem").await?;
        let bound = self.bound(kind, account).await?;
        let subject = self.tokens.redeem(kind.name(), token, &texts(&bound)).await?;
        Ok(subject.and_then(|subject| split(&subject)).map(|(_, more)| more))
    }

    /// Returns the values that a link is bound to: the link ends early when one of them changes.
    async fn bound(&self, kind: MailKind, account: Account<'_>) -> Result<Vec<String>, Error> {
        let mut bound = vec![account.email.to_owned()];
        if kind != MailKind::VerifyEmail {
            bound.push(account.password_hash.to_owned());
        }
        if kind == MailKind::ChangeEmail {
            bound.push(self.one_time.count(EMAIL_CHANGES, account.id, None).await?.to_string());
        }
        Ok(bound)
    }

    /// Limits mails by address: one a minute, five an hour.
    async fn may_send(&self, kind: MailKind, address: &str) -> Result<bool, Error> {
        let scope = format!("mail-{}", kind.name());
        let address = address.trim().to_lowercase();
        if !self
            .one_time
            .count_off(&scope, &format!("minute {address}"), Duration::from_mins(1))
            .await?
        {
            return Ok(false);
        }
        for n in 0..MAILS_AN_HOUR {
            if self.one_time.count_off(&scope, &format!("{n} {address}"), HOUR).await? {
                return Ok(true);
            }
        }
        tracing::warn!(kind = kind.name(), "mail not sent: the address is over its hourly limit");
        Ok(false)
    }

    async fn note(&self, id: &str, kind: MailKind, what: &str) -> Result<(), Error> {
        if let Some(audit) = &self.audit {
            audit.append(Event::new(id, format!("{}.{what}", kind.name())).to(id)).await?;
        }
        Ok(())
    }

    fn mail(
        &self,
        kind: MailKind,
        to: &str,
        subject: &str,
        text: &str,
        link: Option<String>,
    ) -> Mail {
        let link_lines = link.as_ref().map_or(String::new(), |link| format!("\n\n{link}"));
        let text = format!("Hello,\n\n{text}{link_lines}\n\n{}\n", self.site);
        Mail { to: to.to_owned(), kind, subject: format!("{}: {subject}", self.site), text, link }
    }
}

/// Accepts one line with one `@` between two parts, and nothing that could begin another header.
fn is_address(text: &str) -> bool {
    let parts: Vec<&str> = text.split('@').collect();
    text.len() <= LONGEST_EMAIL
        && parts.len() == 2
        && parts.iter().all(|part| !part.is_empty())
        && !text
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || matches!(c, ',' | ';' | '<' | '>'))
}

fn texts(bound: &[String]) -> Vec<&str> {
    bound.iter().map(String::as_str).collect()
}

fn joined(id: &str, more: &str) -> String {
    format!("{}:{id}{more}", id.len())
}

fn split(subject: &str) -> Option<(String, String)> {
    let (length, rest) = subject.split_once(':')?;
    let (id, more) = rest.split_at_checked(length.parse().ok()?)?;
    Some((id.to_owned(), more.to_owned()))
}

#[cfg(test)]
mod tests;
