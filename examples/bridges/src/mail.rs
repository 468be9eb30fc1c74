//! E-mail by `lettre`.
//!
//! | when | then |
//! | --- | --- |
//! | the worker dies after the server took the mail | it is sent again with the same `Message-ID`, by which mailboxes recognize it |
//! | the server refuses the mail for good (5xx), or an address is invalid | the job is dead at once |
//! | the server refuses it temporarily (4xx), or does not answer | the attempt has failed, and is retried |
//! | many mails are pushed | at most 10 are sent at a time by all workers together |

use std::sync::Arc;
use std::time::Duration;

use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::{file, smtp};
use lettre::{AsyncFileTransport, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use scale_queue::outcome::Discard;
use scale_queue::worker::{BoxError, State};
use scale_queue::{Context, Job, Limit, Retry};
use serde::{Deserialize, Serialize};

/// A mail to be sent.
#[derive(Serialize, Deserialize)]
pub struct SendMail {
    /// Address of the recipient.
    pub to: String,
    /// Subject.
    pub subject: String,
    /// Content, plain text.
    pub text: String,
}

impl Job for SendMail {
    const NAME: &'static str = "mail";
    const QUEUE: &'static str = "mail";
    const RETRY: Retry = Retry::exponential(10).first(Duration::from_secs(10));
    const TIMEOUT: Duration = Duration::from_mins(1);

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::concurrent("smtp", 10)]
    }
}

/// Sender of mails: the state of a worker.
#[derive(Clone)]
pub struct Mailer {
    from: Mailbox,
    transport: Arc<Transport>,
}

/// Way of a mail.
pub enum Transport {
    /// To a server.
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    /// Into a folder, for development.
    Folder(AsyncFileTransport<Tokio1Executor>),
}

impl Mailer {
    /// Creates a sender.
    ///
    /// # Errors
    /// If the address of the sender is invalid.
    pub fn new(from: &str, transport: Transport) -> anyhow::Result<Self> {
        Ok(Self { from: from.parse()?, transport: Arc::new(transport) })
    }
}

/// Error of a transport.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Smtp(#[from] smtp::Error),
    #[error(transparent)]
    Folder(#[from] file::Error),
}

/// Handles a job.
pub async fn send(
    State(mailer): State<Mailer>,
    job: SendMail,
    context: Context,
) -> Result<(), BoxError> {
    let to: Mailbox = job.to.parse().map_err(|_| Discard::because("the address is invalid"))?;
    let id = format!("<{}@{}>", context.id, mailer.from.email.domain());
    let message = Message::builder()
        .message_id(Some(id))
        .from(mailer.from.clone())
        .to(to)
        .subject(job.subject)
        .header(ContentType::TEXT_PLAIN)
        .body(job.text)?;
    let sent = match &*mailer.transport {
        Transport::Smtp(server) => server.send(message).await.map(drop).map_err(SendError::from),
        Transport::Folder(folder) => folder.send(message).await.map(drop).map_err(SendError::from),
    };
    match sent {
        Err(SendError::Smtp(error)) if error.is_permanent() => {
            Err(Discard::because(error.to_string()).into())
        }
        other => Ok(other?),
    }
}
