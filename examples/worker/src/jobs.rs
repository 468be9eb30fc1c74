//! Jobs and their handlers.

use std::time::Duration;

use scale_queue::worker::{BoxError, State};
use scale_queue::{Context, Job, Limit, Retry};
use serde::{Deserialize, Serialize};

use crate::mail::Mailer;

/// Welcomes a new user.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    pub to: String,
}

impl Job for Welcome {
    const NAME: &'static str = "welcome";
    const QUEUE: &'static str = "mail";
    const RETRY: Retry = Retry::exponential(10).first(Duration::from_secs(10));
    const TIMEOUT: Duration = Duration::from_mins(1);

    fn limits(&self) -> Vec<Limit> {
        // What the mail server allows, for all workers together.
        vec![Limit::concurrent("smtp", 10)]
    }
}

pub async fn welcome(
    State(mailer): State<Mailer>,
    job: Welcome,
    context: Context,
) -> Result<(), BoxError> {
    // A job that runs again sends the same message id, by which mailboxes recognize the mail.
    mailer.send(&context.id.to_string(), &job.to, "Welcome", "It is good to have you here.").await
}

/// A summary of the day, pushed by the schedule.
#[derive(Serialize, Deserialize)]
pub struct Digest;

impl Job for Digest {
    const NAME: &'static str = "digest";
}

pub async fn digest(_: Digest, context: Context) {
    println!("the digest, attempt {}", context.attempt);
}

#[cfg(test)]
mod tests {
    use scale_queue::Worker;
    use scale_queue::testing::FakeQueue;
    use scale_queue::worker::Outcome;

    use super::*;
    use crate::config::Mail;

    #[tokio::test]
    async fn a_welcome_is_sent_once() {
        let folder = tempfile::tempdir().unwrap();
        let mail = Mail {
            from: "Shop <shop@example.org>".into(),
            folder: Some(folder.path().to_owned()),
            smtp: None,
        };
        let queue = FakeQueue::new();
        let worker = || {
            let worker = Worker::new(&queue).queues(["mail"]);
            worker.with_state(Mailer::new(&mail).unwrap()).handle(welcome)
        };
        queue.push(Welcome { to: "ann@example.org".into() }).await.unwrap();
        let report = queue.run_pending(worker()).await.unwrap();
        assert_eq!(report.outcomes::<Welcome>(), [&Outcome::Done]);
        queue.push(Welcome { to: "no address".into() }).await.unwrap();
        let report = queue.run_pending(worker()).await.unwrap();
        assert!(matches!(report.outcomes::<Welcome>()[..], [Outcome::Dead { .. }]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
