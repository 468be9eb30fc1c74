//! Links by mail: to verify an address, to reset a password, to change an address, to sign in.
//!
//! Each is two functions. The first makes a mail, which the application sends; the second redeems what its link holds. Users stay in the
//! application's tables: an [`Account`] is three strings of theirs.
//!
//! | link | good for | ends early when |
//! | --- | --- | --- |
//! | [verify an address](AccountLinks::verify_email) | a day | used, or the address is another one |
//! | [reset a password](AccountLinks::reset_password) | an hour | used, or the password or the address is another one |
//! | [change an address](AccountLinks::change_email) | an hour | used, or the password or the address is another one, or another change is asked for, or it is [given up](AccountLinks::cancel_email_changes) |
//! | [sign in](AccountLinks::sign_in) | 10 minutes | used, or the password or the address is another one |
//!
//! | when | then |
//! | --- | --- |
//! | the page that a link leads to is opened, by a scanner of mails too | nothing is used up: [`peek`](AccountLinks::peek) looks; the `POST` of its form redeems |
//! | nobody has that address | no mail, the same work, and the same answer: say "if you have an account, a mail is on its way" |
//! | more than one mail a minute, or five an hour, are asked for an account or an address | no mail, and the same answer |
//! | an [`AuditLog`] is given | every link asked for and redeemed is written down before, those of nobody's account too; if that fails, nothing else happens |
//! | the link leads elsewhere than to this site | it cannot: its address is a setting, never a request's `Host` |
//!
//! Ask `scale-limit` first who may ask at all, by client address.

use std::time::Duration;

use super::audit::{AuditLog, Event};
use super::error::Error;
use super::ledger::Ledger;
use super::seal::Keys;
use super::token::Tokens;

const DAY: Duration = Duration::from_hours(24);
const HOUR: Duration = Duration::from_hours(1);
/// As long as a code outside of the browser may live (ASVS 5, 6.5.5).
const TEN_MINUTES: Duration = Duration::from_mins(10);
/// Mails of one kind to one address an hour.
const MAILS_AN_HOUR: u32 = 5;
/// What counts the changes of an account's address that were asked for or given up.
const EMAIL_CHANGES: &str = "email changes";
const NO_ADDRESS: Error = Error::Input("that is no address for mail");
/// Longest address that mail knows (RFC 5321).
const LONGEST_EMAIL: usize = 254;

/// A user as the application knows them.
#[derive(Clone, Copy)]
pub struct Account<'a> {
    /// Their id: at most 256 bytes.
    pub id: &'a str,
    /// Their address, as stored.
    pub email: &'a str,
    /// Their password's hash, as stored; empty if there is none.
    pub password_hash: &'a str,
}

impl std::fmt::Debug for Account<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({})", self.id)
    }
}

/// A mail for the application to send.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mail {
    /// To this address.
    pub to: String,
    /// Why: for texts in other words and languages.
    pub kind: MailKind,
    /// A subject in English.
    pub subject: String,
    /// A text in English, without markup.
    pub text: String,
    /// The link in it, if there is one. It is a secret.
    pub link: Option<String>,
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mail").field("to", &self.to).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Why a mail is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MailKind {
    /// A link that verifies the address.
    VerifyEmail,
    /// A link that leads to a new password.
    ResetPassword,
    /// A link, to the new address, that makes it the account's.
    ChangeEmail,
    /// A notice, to the old address, that another one is to take its place.
    EmailIsChanging,
    /// A link that signs in.
    SignIn,
    /// A notice that the password has changed.
    PasswordChanged,
    /// A notice of a sign-in on a device that was not seen before.
    NewDevice,
}

impl MailKind {
    /// Its name: the path of its link, the action in the audit log, a part of each token.
    fn name(self) -> &'static str {
        match self {
            Self::VerifyEmail => "verify-email",
            Self::ResetPassword => "reset-password",
            Self::ChangeEmail => "change-email",
            Self::EmailIsChanging => "email-is-changing",
            Self::SignIn => "sign-in",
            Self::PasswordChanged => "password-changed",
            Self::NewDevice => "new-device",
        }
    }

    fn lasts(self) -> Duration {
        match self {
            Self::VerifyEmail => DAY,
            Self::SignIn => TEN_MINUTES,
            _ => HOUR,
        }
    }
}

/// Makes links and redeems them. Cloning copies a few short strings.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::account_links::{Account, AccountLinks, MailKind};
/// use scale_session::auth::{Ledger, token::Keys};
///
/// let links = AccountLinks::new("Shop", "https://shop.example.com/account", Keys::new(&[7; 32])?, &Ledger::memory())?;
/// let ann = Account { id: "7", email: "ann@example.com", password_hash: "$argon2id$…" };
///
/// // POST /forgot: whatever comes of it, answer "if you have an account, a mail is on its way".
/// let mail = links.reset_password("ann@example.com", Some(ann)).await?.expect("the first one is sent");
/// let link = mail.link.unwrap();
/// let token = link.strip_prefix("https://shop.example.com/account/reset-password#").unwrap();
///
/// // POST /reset-password with the token and a new password: find the account by the id, then redeem.
/// let id = AccountLinks::account_id(token).expect("it has one");
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
    ledger: Ledger,
    audit: Option<AuditLog>,
}

impl AccountLinks {
    /// `site` is its name in mails. Links lead to `base`, a slash, the kind of link, `#` and the token: the part after `#` is sent to no
    /// server, so that it is in no log and in no `Referer`; the page's script puts it into its form.
    /// [`in_the_query`](Self::in_the_query) is for pages without scripts.
    ///
    /// # Errors
    /// [`Error::Setting`] for a base that is not `https://…`, or `http://` at this machine.
    pub fn new(site: &str, base: &str, keys: Keys, ledger: &Ledger) -> Result<Self, Error> {
        let uri: http::Uri =
            base.parse().map_err(|_| Error::Setting("the base of links is an address as https://example.com"))?;
        let is_local = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if uri.scheme_str() != Some("https") && !(uri.scheme_str() == Some("http") && is_local) || uri.query().is_some() {
            return Err(Error::Setting("the base of links begins with https://, and has no query"));
        }
        let (site, base) = (site.to_owned(), format!("{}/{{kind}}#", base.trim_end_matches('/')));
        Ok(Self { site, base, tokens: Tokens::new(keys, ledger), ledger: ledger.clone(), audit: None })
    }

    /// Puts tokens into the query, `?token=…`: pages need no script. Keep them out of access logs, and let those pages say
    /// `Referrer-Policy: no-referrer`.
    pub fn in_the_query(mut self) -> Self {
        self.base = self.base.trim_end_matches('#').to_owned() + "?token=";
        self
    }

    /// Writes every link made and redeemed into the log.
    pub fn audit(mut self, audit: &AuditLog) -> Self {
        self.audit = Some(audit.clone());
        self
    }

    /// Returns a mail whose link verifies the account's address; `None` if there were too many.
    ///
    /// # Errors
    /// [`Error::Ledger`]; [`Error::Random`]; [`Error::Setting`] for an id or address that is too long.
    pub async fn verify_email(&self, account: Account<'_>) -> Result<Option<Mail>, Error> {
        let kind = MailKind::VerifyEmail;
        let text = "please open this link to confirm that this address is yours. It is good for a day.";
        self.linked(kind, account.email, Some(account), "", account.email, "Confirm your address", text).await
    }

    /// Returns whether the account's address is verified by this.
    ///
    /// # Errors
    /// [`Error::Ledger`]: nobody can know.
    pub async fn redeem_verification(&self, token: &str, account: Account<'_>) -> Result<bool, Error> {
        Ok(self.redeem(MailKind::VerifyEmail, token, account).await?.is_some())
    }

    /// Returns a mail whose link leads to a new password. `typed` is the address that was asked for, `account` whose it is.
    ///
    /// # Errors
    /// As [`verify_email`](Self::verify_email).
    pub async fn reset_password(&self, typed: &str, account: Option<Account<'_>>) -> Result<Option<Mail>, Error> {
        let text =
            "somebody asked for a new password. If that was you, open this link; it is good for an hour. If not, do nothing.";
        let to = account.map_or(typed, |account| account.email);
        self.linked(MailKind::ResetPassword, typed, account, "", to, "A new password", text).await
    }

    /// Returns whether a new password may be set. Then store its hash, which ends all such links; end the user's sessions; and send
    /// [`password_changed`](Self::password_changed).
    ///
    /// # Errors
    /// [`Error::Ledger`]: nobody can know.
    pub async fn redeem_password_reset(&self, token: &str, account: Account<'_>) -> Result<bool, Error> {
        Ok(self.redeem(MailKind::ResetPassword, token, account).await?.is_some())
    }

    /// Returns two mails: a link to the new address, and a notice to the old one. Ask for the password anew before.
    ///
    /// # Errors
    /// As [`verify_email`](Self::verify_email); [`Error::Input`] for what is no address.
    pub async fn change_email(&self, account: Account<'_>, new: &str) -> Result<Option<[Mail; 2]>, Error> {
        let text = "please open this link to make this the address of your account. It is good for an hour.";
        if !is_address(new) {
            return Err(NO_ADDRESS);
        }
        // Nobody's mailbox is filled from many accounts either.
        if !self.may_send(MailKind::ChangeEmail, new).await? {
            return Ok(None);
        }
        self.cancel_email_changes(account.id).await?;
        let link =
            self.linked(MailKind::ChangeEmail, account.email, Some(account), new, new, "Confirm your new address", text).await?;
        let notice = "somebody asked for another address for your account. If that was not you, change your password now: that ends the \
             link they have.";
        let notice = || self.mail(MailKind::EmailIsChanging, account.email, "Your address is to change", notice, None);
        Ok(link.map(|link| [link, notice()]))
    }

    /// Ends the links that would change an account's address: a part of "sign out everywhere".
    ///
    /// # Errors
    /// [`Error::Ledger`]: they may be good.
    pub async fn cancel_email_changes(&self, account_id: &str) -> Result<(), Error> {
        self.ledger.advance(EMAIL_CHANGES, account_id, HOUR * 2).await.map(drop)
    }

    /// Returns the new address, if it is to be the account's now. Check that nobody else has it, and store it as verified.
    ///
    /// # Errors
    /// [`Error::Ledger`]: nobody can know.
    pub async fn redeem_email_change(&self, token: &str, account: Account<'_>) -> Result<Option<String>, Error> {
        self.redeem(MailKind::ChangeEmail, token, account).await
    }

    /// Returns a mail whose link signs in. `typed` is the address that was asked for, `account` whose it is. Whoever reads the mail is the
    /// user: ask for a second factor where there is one.
    ///
    /// # Errors
    /// As [`verify_email`](Self::verify_email).
    pub async fn sign_in(&self, typed: &str, account: Option<Account<'_>>) -> Result<Option<Mail>, Error> {
        let text = "open this link to sign in. It is good for 10 minutes, once. If you did not ask for it, do nothing.";
        let to = account.map_or(typed, |account| account.email);
        self.linked(MailKind::SignIn, typed, account, "", to, "Your link to sign in", text).await
    }

    /// Returns whether to sign the account's user in.
    ///
    /// # Errors
    /// [`Error::Ledger`]: nobody can know.
    pub async fn redeem_sign_in(&self, token: &str, account: Account<'_>) -> Result<bool, Error> {
        Ok(self.redeem(MailKind::SignIn, token, account).await?.is_some())
    }

    /// Returns a notice that the password has changed.
    pub fn password_changed(&self, account: Account<'_>) -> Mail {
        let text = "your password was changed. If that was not you, ask for a new one now.";
        self.mail(MailKind::PasswordChanged, account.email, "Your password was changed", text, None)
    }

    /// Returns a notice of a sign-in on a device that [`KnownDevices`](super::KnownDevices) did not know.
    pub fn new_device(&self, account: Account<'_>, device: &str) -> Mail {
        let device: String = device.chars().filter(|c| !c.is_control()).take(100).collect();
        let text = format!("somebody signed in to your account with {device}. If that was not you, change your password now.");
        self.mail(MailKind::NewDevice, account.email, "A new sign-in", &text, None)
    }

    /// Returns whose link it says it is, to find the account. Anybody can have written it.
    pub fn account_id(token: &str) -> Option<String> {
        Some(split(&Tokens::subject(token)?)?.0)
    }

    /// Returns whether redeeming would work now; the link stays good. For the page that it leads to.
    ///
    /// # Errors
    /// [`Error::Ledger`].
    pub async fn peek(&self, kind: MailKind, token: &str, account: Account<'_>) -> Result<bool, Error> {
        let bound = self.bound(kind, account).await?;
        let subject = self.tokens.peek(kind.name(), token, &texts(&bound)).await?;
        Ok(subject.and_then(|subject| split(&subject)).is_some_and(|(id, _)| id == account.id))
    }

    #[expect(clippy::too_many_arguments, reason = "each differs from link to link")]
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
        // However it was typed, it is one account's.
        if !self.may_send(kind, account.map_or(asked, |account| account.email)).await? {
            return Ok(None);
        }
        self.note(account.map_or("", |account| account.id), kind, "link").await?;
        // The same work for an address that nobody has.
        let made_for = account.unwrap_or(Account { id: "", email: to, password_hash: "" });
        let bound = self.bound(kind, made_for).await?;
        let token = self.tokens.make(kind.name(), &joined(made_for.id, more), &texts(&bound), kind.lasts())?;
        let link = format!("{}{token}", self.base.replace("{kind}", kind.name()));
        let mail = self.mail(kind, to, subject, text, Some(link));
        Ok(account.map(|_| mail))
    }

    async fn redeem(&self, kind: MailKind, token: &str, account: Account<'_>) -> Result<Option<String>, Error> {
        // Before it is used up: whose it is, and that it is good.
        if !self.peek(kind, token, account).await? {
            return Ok(None);
        }
        // Should it fail, the link stays good.
        self.note(account.id, kind, "redeem").await?;
        let bound = self.bound(kind, account).await?;
        let subject = self.tokens.redeem(kind.name(), token, &texts(&bound)).await?;
        Ok(subject.and_then(|subject| split(&subject)).map(|(_, more)| more))
    }

    /// What ends a link early when it changes.
    async fn bound(&self, kind: MailKind, account: Account<'_>) -> Result<Vec<String>, Error> {
        let mut bound = vec![account.email.to_owned()];
        if kind != MailKind::VerifyEmail {
            bound.push(account.password_hash.to_owned());
        }
        if kind == MailKind::ChangeEmail {
            bound.push(self.ledger.count(EMAIL_CHANGES, account.id, None).await?.to_string());
        }
        Ok(bound)
    }

    /// One a minute, five an hour, by the address.
    async fn may_send(&self, kind: MailKind, address: &str) -> Result<bool, Error> {
        let scope = format!("mail-{}", kind.name());
        let address = address.trim().to_lowercase();
        if !self.ledger.count_off(&scope, &format!("minute {address}"), Duration::from_mins(1)).await? {
            return Ok(false);
        }
        for n in 0..MAILS_AN_HOUR {
            if self.ledger.count_off(&scope, &format!("{n} {address}"), HOUR).await? {
                return Ok(true);
            }
        }
        tracing::warn!(kind = kind.name(), "an address has had its mails of this hour");
        Ok(false)
    }

    async fn note(&self, id: &str, kind: MailKind, what: &str) -> Result<(), Error> {
        if let Some(audit) = &self.audit {
            audit.append(Event::new(id, format!("{}.{what}", kind.name())).to(id)).await?;
        }
        Ok(())
    }

    fn mail(&self, kind: MailKind, to: &str, subject: &str, text: &str, link: Option<String>) -> Mail {
        let link_lines = link.as_ref().map_or(String::new(), |link| format!("\n\n{link}"));
        let text = format!("Hello,\n\n{text}{link_lines}\n\n{}\n", self.site);
        Mail { to: to.to_owned(), kind, subject: format!("{}: {subject}", self.site), text, link }
    }
}

/// One line, one `@` between two parts: nothing that begins another header.
fn is_address(text: &str) -> bool {
    let parts: Vec<&str> = text.split('@').collect();
    text.len() <= LONGEST_EMAIL
        && parts.len() == 2
        && parts.iter().all(|part| !part.is_empty())
        && !text.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, ',' | ';' | '<' | '>'))
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
mod tests {
    use super::*;

    const ANN: Account<'_> = Account { id: "7", email: "ann@example.com", password_hash: "old" };
    const BEN: Account<'_> = Account { id: "8", email: "ben@example.com", password_hash: "old" };

    fn links() -> AccountLinks {
        AccountLinks::new("Shop", "https://shop.test/a/", Keys::new(&[1; 32]).unwrap(), &Ledger::memory()).unwrap()
    }

    fn token(mail: &Mail) -> String {
        mail.link.as_ref().unwrap().split(['#', '=']).next_back().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_link_is_its_accounts_and_good_once() {
        let links = links();
        let mail = links.verify_email(ANN).await.unwrap().unwrap();
        assert_eq!((mail.to.as_str(), mail.kind), ("ann@example.com", MailKind::VerifyEmail));
        assert!(mail.text.contains("https://shop.test/a/verify-email#") && !format!("{mail:?}").contains('#'));
        let token = token(&mail);
        assert_eq!(AccountLinks::account_id(&token).as_deref(), Some("7"));
        assert!(!links.redeem_verification(&token, BEN).await.unwrap());
        assert!(!links.redeem_verification(&token, Account { id: "8", ..ANN }).await.unwrap(), "another id, the same address");
        assert!(!links.redeem_verification(&token, Account { email: "new@example.com", ..ANN }).await.unwrap());
        assert!(!links.redeem_sign_in(&token, ANN).await.unwrap(), "another kind");
        for _ in 0..3 {
            assert!(links.peek(MailKind::VerifyEmail, &token, ANN).await.unwrap(), "a scanner of mails");
        }
        assert!(links.redeem_verification(&token, Account { password_hash: "new", ..ANN }).await.unwrap());
        assert!(
            !links.redeem_verification(&token, ANN).await.unwrap()
                && !links.peek(MailKind::VerifyEmail, &token, ANN).await.unwrap()
        );
    }

    #[tokio::test]
    async fn a_reset_ends_with_the_password_it_was_for() {
        let links = links().in_the_query();
        let mail = links.reset_password("ANN@example.com ", Some(ANN)).await.unwrap().unwrap();
        assert!(mail.to == ANN.email && mail.link.as_ref().unwrap().contains("/reset-password?token="));
        assert!(!links.redeem_password_reset(&token(&mail), Account { password_hash: "new", ..ANN }).await.unwrap());
        assert!(links.redeem_password_reset(&token(&mail), ANN).await.unwrap());
    }

    #[tokio::test]
    async fn an_address_changes_only_by_the_new_one() {
        let links = links();
        let [link, notice] = links.change_email(ANN, "ann@new.example").await.unwrap().unwrap();
        assert_eq!((link.to.as_str(), notice.to.as_str(), &notice.link), ("ann@new.example", ANN.email, &None));
        let found = links.redeem_email_change(&token(&link), ANN).await.unwrap();
        assert_eq!(found.as_deref(), Some("ann@new.example"));
        for bad in ["", "x", "a@b@c", "a@b\r\nBcc: all@example.com", "a b@c", "<a@b>", &format!("{}@b", "x".repeat(300))] {
            assert!(links.change_email(BEN, bad).await.is_err(), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_notice_advises_ends_the_link() {
        let links = links();
        let ask = async |new: &str| {
            tokio::time::advance(Duration::from_secs(61)).await;
            let [link, _] = links.change_email(ANN, new).await.unwrap().unwrap();
            token(&link)
        };
        let thiefs = ask("thief@evil.example").await;
        let changed = Account { password_hash: "new", ..ANN };
        assert_eq!(links.redeem_email_change(&thiefs, changed).await.unwrap(), None, "the password has changed");
        let first = ask("one@evil.example").await;
        let second = ask("two@evil.example").await;
        assert_eq!(links.redeem_email_change(&first, ANN).await.unwrap(), None, "another one was asked for");
        links.cancel_email_changes(ANN.id).await.unwrap();
        assert_eq!(links.redeem_email_change(&second, ANN).await.unwrap(), None, "given up");
        let third = ask("ann@new.example").await;
        assert_eq!(links.redeem_email_change(&third, ANN).await.unwrap().as_deref(), Some("ann@new.example"));
    }

    #[tokio::test(start_paused = true)]
    async fn mails_are_counted_by_who_gets_them() {
        let links = links();
        let mut sent = 0;
        for n in 0..50 {
            let id = n.to_string();
            let account = Account { id: &id, email: &format!("{n}@example.com"), password_hash: "" };
            sent += u32::from(links.change_email(account, "victim@example.com").await.unwrap().is_some());
        }
        assert_eq!(sent, 1, "from fifty accounts");
        let mut sent = 0;
        for n in 0..50 {
            let typed = format!("ann{}@example.com", "\u{200b}".repeat(n));
            sent += u32::from(links.sign_in(&typed, Some(ANN)).await.unwrap().is_some());
        }
        assert_eq!(sent, 1, "however the address was typed");
    }

    #[tokio::test]
    async fn an_audit_log_tells_nobody_who_has_an_account() {
        let audit = AuditLog::memory(Keys::new(&[2; 32]).unwrap());
        let links = links().audit(&audit);
        links.reset_password("nobody@example.com", None).await.unwrap();
        links.reset_password(ANN.email, Some(ANN)).await.unwrap();
        let actors: Vec<String> = audit.records(0, 10).await.unwrap().into_iter().map(|record| record.event.actor).collect();
        assert_eq!(actors, ["", "7"], "the same work for both");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_flooded_and_nobody_is_told_of() {
        let links = links();
        let ask = async |account| links.reset_password("ann@example.com", account).await.unwrap().is_some();
        assert!(ask(Some(ANN)).await && !ask(Some(ANN)).await);
        let mut sent = 1;
        for _ in 0..20 {
            tokio::time::advance(Duration::from_secs(61)).await;
            sent += u32::from(ask(Some(ANN)).await);
        }
        assert_eq!(sent, MAILS_AN_HOUR);
        tokio::time::advance(HOUR).await;
        assert!(ask(Some(ANN)).await);
        // Unknown ones: no mail, no error.
        assert!(links.sign_in("nobody@example.com", None).await.unwrap().is_none());
        assert!(links.sign_in("no address", None).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_happened_is_written_down() {
        let audit = AuditLog::memory(Keys::new(&[2; 32]).unwrap());
        let links = links().audit(&audit);
        let mail = links.sign_in(ANN.email, Some(ANN)).await.unwrap().unwrap();
        assert!(links.redeem_sign_in(&token(&mail), ANN).await.unwrap());
        let actions: Vec<String> = audit.records(0, 10).await.unwrap().into_iter().map(|record| record.event.action).collect();
        assert_eq!(actions, ["sign-in.link", "sign-in.redeem"]);
    }

    #[test]
    fn links_lead_to_this_site_over_https() {
        let made = |base: &str| AccountLinks::new("x", base, Keys::new(&[1; 32]).unwrap(), &Ledger::memory());
        for bad in ["http://example.com", "example.com", "", "ftp://x", "https://x/?a=b", "javascript:alert(1)"] {
            assert!(made(bad).is_err(), "{bad}");
        }
        for good in ["https://example.com", "http://localhost:3000", "http://127.0.0.1:3000/a/"] {
            assert!(made(good).is_ok(), "{good}");
        }
    }
}
