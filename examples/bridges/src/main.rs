//! Sends a mail and a webhook from jobs: `cargo run -p bridges`. Mails go to the folder `mails`,
//! with `SMTP=smtps://user:password@host` to that server; the webhook goes to `WEBHOOK`, if set.

use anyhow::Result;
use bridges::mail::{Mailer, SendMail, Transport};
use bridges::webhooks::{SendWebhook, Webhooks};
use bridges::{mail, webhooks};
use lettre::{AsyncFileTransport, AsyncSmtpTransport, Tokio1Executor};
use scale_queue::{Queue, Worker};

#[tokio::main]
async fn main() -> Result<()> {
    let queue = Queue::memory();
    let transport = if let Ok(url) = std::env::var("SMTP") {
        Transport::Smtp(AsyncSmtpTransport::<Tokio1Executor>::from_url(&url)?.build())
    } else {
        std::fs::create_dir_all("mails")?;
        Transport::Folder(AsyncFileTransport::new("mails"))
    };
    let (to, subject) = ("Ann <ann@example.org>".to_owned(), "Your order".to_owned());
    queue.push(SendMail { to, subject, text: "It is on its way.".to_owned() }).await?;
    if let Ok(url) = std::env::var("WEBHOOK") {
        let data = serde_json::json!({ "order": 7 });
        queue.push(SendWebhook { endpoint: 1, url, event: "order.paid".to_owned(), data }).await?;
    }
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let worker = Worker::new(&queue)
        .queues(["mail", "webhooks"])
        .with_state(Mailer::new("Shop <shop@example.org>", transport)?)
        .handle(mail::send)
        .with_state(Webhooks::new(|endpoint| (endpoint == 1).then(|| secret.to_owned())))
        .handle(webhooks::send);
    worker.run(tokio::signal::ctrl_c()).await?;
    Ok(())
}
