//! Mails for the application to send.

use std::time::Duration;

use super::{DAY, HOUR, TEN_MINUTES};

/// A mail for the application to send.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mail {
    /// Recipient's address.
    pub to: String,
    /// Reason for the mail, for applications with their own texts and languages.
    pub kind: MailKind,
    /// Subject in English.
    pub subject: String,
    /// Text in English, without markup.
    pub text: String,
    /// Link in the text, if there is one. The link is a secret.
    pub link: Option<String>,
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mail")
            .field("to", &self.to)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Reason for a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MailKind {
    /// A link that verifies the address.
    VerifyEmail,
    /// A link to a form for a new password.
    ResetPassword,
    /// A link, sent to the new address, that confirms the new address.
    ChangeEmail,
    /// A notice, sent to the old address, that a change of the address was requested.
    EmailIsChanging,
    /// A link that signs in.
    SignIn,
    /// A notice that the password has changed.
    PasswordChanged,
    /// A notice of a sign-in on a device that was not seen before.
    NewDevice,
}

impl MailKind {
    /// Returns the name of the kind: the path of its links, the action in the audit log, and a part
    /// of each token.
    pub(super) fn name(self) -> &'static str {
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

    pub(super) fn lasts(self) -> Duration {
        match self {
            Self::VerifyEmail => DAY,
            Self::SignIn => TEN_MINUTES,
            _ => HOUR,
        }
    }
}
