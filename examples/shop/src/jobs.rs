//! Jobs, run later by any process with a free slot.

use std::fmt::Write;
use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use scale_queue::outcome::Discard;
use scale_queue::relay::Relay;
use scale_queue::{Context, Job, Worker};
use scale_session::auth::account_links::Account;
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::config::Config;
use crate::db::{mails, orders, users};
use crate::operations::health::{Health, Role};
use crate::pages::money;

/// Queues, the most urgent first.
const QUEUES: [&str; 3] = ["high", "default", "low"];

/// Writes and sends the receipt of an order.
#[derive(Serialize, Deserialize)]
pub(crate) struct SendReceipt {
    pub(crate) order: i64,
}

impl Job for SendReceipt {
    const NAME: &'static str = "send-receipt";
    const QUEUE: &'static str = "high";

    fn unique_key(&self) -> Option<String> {
        Some(format!("receipt:{}", self.order))
    }
}

/// Mails a link for a new password, if the address has an account. The page behaves in the same way
/// in both cases, and the link is created here: no secret is stored in the queue.
#[derive(Serialize, Deserialize)]
pub(crate) struct SendPasswordReset {
    pub(crate) email: String,
}

impl Job for SendPasswordReset {
    const NAME: &'static str = "send-password-reset";
    const QUEUE: &'static str = "high";
}

/// Runs jobs until `stop` completes.
pub(crate) async fn work(
    app: App,
    config: &Config,
    health: Health,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let stop = async {
        stop.await;
        health.leave();
    };
    let (db, queue, mail_takes) = (app.db.clone(), app.queue.clone(), config.queue.mail_takes);
    let links = app.clone();
    let worker = Worker::new(&queue)
        .name("shop")
        .queues(QUEUES)
        .concurrency(config.queue.concurrency)
        .lease(config.queue.lease)
        .handle(move |job: SendReceipt, context: Context| {
            send_receipt(app.clone(), job, context, mail_takes)
        })
        .handle(move |job: SendPasswordReset, _: Context| send_password_reset(links.clone(), job));
    tracing::info!("working on the queues {QUEUES:?}");
    if health.role() == Role::Worker {
        health.open();
    }
    // Jobs pushed in a transaction wait in the database if the queue is elsewhere.
    let (done, worked) = tokio::sync::oneshot::channel::<()>();
    let relay = Relay::new(&queue).run(|| db.begin(), worked);
    let work = async {
        let ended = worker.run(stop).await;
        drop(done);
        ended
    };
    Ok(tokio::join!(work, relay).0?)
}

async fn send_password_reset(
    app: App,
    SendPasswordReset { email }: SendPasswordReset,
) -> Result<()> {
    let Some(links) = &app.links else { bail!("`origin` and `secret` are not configured") };
    let owner = users::owner(&app.db, &email).await?;
    let account = owner.as_ref().map(|owner| Account {
        id: &owner.email,
        email: &owner.email,
        password_hash: &owner.password,
    });
    if let Some(mail) = links.reset_password(&email, account).await? {
        mails::send(&app.db, &mail).await?;
    }
    Ok(())
}

async fn send_receipt(
    app: App,
    job: SendReceipt,
    context: Context,
    mail_takes: Duration,
) -> Result<()> {
    let Some((order, items)) = orders::placed(&app.db, job.order).await? else {
        let reason = format!("order {} does not exist", job.order);
        return Err(anyhow::Error::new(Discard::because(reason)));
    };
    let mut body = format!("To {}\nThank you for order {}.\n", order.email, order.id);
    for item in &items {
        // Narrow enough for a phone: the price has a line of its own.
        let _ = writeln!(body, "{} × {}", item.quantity, item.name);
        let _ = writeln!(body, "{:>32}", money(item.quantity * item.price_cents));
    }
    let _ = writeln!(body, "\nTotal {:>26}", money(order.total_cents));
    // A real shop would send a mail here, with the order's number as its idempotency key.
    tokio::time::sleep(mail_takes).await;
    orders::save_receipt(&app.db, order.id, &body, context.attempt).await?;
    tracing::info!(order = order.id, attempt = context.attempt, "the receipt was sent");
    Ok(())
}
