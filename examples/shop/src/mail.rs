//! E-mail: to an SMTP server, into a folder, or into a table of the shop, which sends nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::{AsyncFileTransport, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use scale_queue::outcome::Discard;
use serde::Deserialize;

use crate::app::Database;
use crate::db::mails;

/// Settings of mails.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Sender: `Fathom & Field <shop@example.com>`.
    from: String,
    /// Server that sends the mails: `smtps://user:password@host`.
    smtp: Option<String>,
    /// Folder in which they are kept instead, one file each.
    folder: Option<PathBuf>,
    /// Simulated time of sending a mail that is kept in a table.
    #[serde(with = "humantime_serde")]
    takes: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let from = "Fathom & Field <shop@localhost>".into();
        Self { from, smtp: None, folder: None, takes: Duration::from_millis(300) }
    }
}

impl Config {
    /// Returns `false` if mails are kept in a table.
    pub(crate) fn sends(&self) -> bool {
        self.smtp.is_some() || self.folder.is_some()
    }
}

/// A mail to be sent.
pub(crate) struct Mail<'a> {
    /// Text that is the same if the mail is sent again: mail servers and readers drop doubles.
    pub(crate) id: &'a str,
    pub(crate) to: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) text: &'a str,
}

/// Sends mails. A clone costs a few reference counts.
#[derive(Clone)]
pub(crate) struct Mailer {
    from: Mailbox,
    transport: Arc<Transport>,
}

enum Transport {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Folder(AsyncFileTransport<Tokio1Executor>),
    Table(Database, Duration),
}

impl Mailer {
    pub(crate) fn new(config: &Config, db: &Database) -> Result<Self> {
        let transport = match (&config.smtp, &config.folder) {
            (Some(url), None) => {
                // The error would contain the password.
                let server = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).ok();
                let server = server.context("smtp: expected smtps://user:password@host")?;
                Transport::Smtp(server.build())
            }
            (None, Some(folder)) => {
                std::fs::create_dir_all(folder).context("folder")?;
                Transport::Folder(AsyncFileTransport::new(folder))
            }
            (None, None) => Transport::Table(db.clone(), config.takes),
            (Some(_), Some(_)) => anyhow::bail!("expected `smtp` or `folder`, not both"),
        };
        Ok(Self { from: config.from.parse().context("from")?, transport: Arc::new(transport) })
    }

    /// Sends a mail. A job whose mail is refused for good is dead at once.
    pub(crate) async fn send(&self, mail: Mail<'_>) -> Result<()> {
        if let Transport::Table(db, takes) = &*self.transport {
            tokio::time::sleep(*takes).await;
            return mails::keep(db, &mail).await;
        }
        let refused = |why: String| anyhow::Error::new(Discard::because(why));
        let to = mail.to.parse().map_err(|_| refused("the mail's address is invalid".into()))?;
        let message = Message::builder()
            .message_id(Some(format!("<{}@{}>", mail.id, self.from.email.domain())))
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(mail.subject)
            .header(ContentType::TEXT_PLAIN)
            .body(mail.text.to_owned())?;
        match &*self.transport {
            Transport::Folder(folder) => drop(folder.send(message).await?),
            Transport::Smtp(server) => match server.send(message).await {
                Err(error) if error.is_permanent() => return Err(refused(error.to_string())),
                sent => drop(sent?),
            },
            Transport::Table(..) => {}
        }
        Ok(())
    }
}
