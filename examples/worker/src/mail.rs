//! E-mail, into a folder or to a server.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::{AsyncFileTransport, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use scale_queue::outcome::Discard;
use scale_queue::worker::BoxError;

use crate::config::Mail;

#[derive(Clone)]
pub struct Mailer {
    from: Mailbox,
    transport: Arc<Transport>,
}

enum Transport {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Folder(AsyncFileTransport<Tokio1Executor>),
}

impl Mailer {
    pub fn new(mail: &Mail) -> Result<Self> {
        let transport = match mail {
            Mail { smtp: Some(url), .. } => {
                // The error would contain the password.
                let server = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).ok();
                Transport::Smtp(
                    server.context("SMTP: expected smtps://user:password@host")?.build(),
                )
            }
            Mail { folder: Some(folder), .. } => {
                std::fs::create_dir_all(folder).context("mail.folder")?;
                Transport::Folder(AsyncFileTransport::new(folder))
            }
            _ => bail!("mail: set `folder`, or the variable SMTP"),
        };
        Ok(Self { from: mail.from.parse().context("mail.from")?, transport: Arc::new(transport) })
    }

    /// Sends a mail. A wrong address, and a refusal for good, make the job dead at once.
    pub async fn send(
        &self,
        id: &str,
        to: &str,
        subject: &str,
        text: &str,
    ) -> Result<(), BoxError> {
        let to: Mailbox = to.parse().map_err(|_| Discard::because("the address is invalid"))?;
        let message = Message::builder()
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .from(self.from.clone())
            .to(to)
            .subject(subject)
            .header(ContentType::TEXT_PLAIN)
            .body(text.to_owned())?;
        match &*self.transport {
            Transport::Folder(folder) => drop(folder.send(message).await?),
            Transport::Smtp(server) => match server.send(message).await {
                Err(error) if error.is_permanent() => {
                    return Err(Discard::because(error.to_string()).into());
                }
                sent => drop(sent?),
            },
        }
        Ok(())
    }
}
