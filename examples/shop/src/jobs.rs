//! Jobs, run later by any process with a free slot.

use std::fmt::Write;
use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use scale_db::sticky::{self, Mark};
use scale_queue::outcome::Discard;
use scale_queue::relay::Relay;
use scale_queue::worker::State;
use scale_queue::{Context, Job, Retry, Worker};
use scale_session::auth::account_links::{self, Account};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::app::App;
use crate::config::Config;
use crate::db::orders::{self, Slice};
use crate::db::{exports, users};
use crate::mail::Mail;
use crate::operations::health::{Health, Role};
use crate::pages::money;

/// Queues, the most urgent first.
const QUEUES: [&str; 3] = ["high", "default", "low"];

/// Each attempt makes a new link, of which an address gets one a minute: an earlier attempt would
/// end without a mail. Delays are shortened by up to a half, at random.
const MAIL_WITH_A_LINK: Retry = Retry::exponential(5).first(Duration::from_secs(150));

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
    const RETRY: Retry = MAIL_WITH_A_LINK;
}

/// Mails a link that opens an account, or a notice if the address has one. The page behaves in the
/// same way in both cases.
#[derive(Serialize, Deserialize)]
pub(crate) struct SendSignUp {
    pub(crate) email: String,
}

impl Job for SendSignUp {
    const NAME: &'static str = "send-sign-up";
    const QUEUE: &'static str = "high";
    const RETRY: Retry = MAIL_WITH_A_LINK;
}

/// Mails a notice that contains no secret.
#[derive(Serialize, Deserialize)]
pub(crate) struct SendNotice {
    to: String,
    subject: String,
    text: String,
}

impl SendNotice {
    pub(crate) fn of(mail: &account_links::Mail) -> Self {
        let (to, subject) = (mail.to.clone(), mail.subject.clone());
        Self { to, subject, text: mail.text.clone() }
    }
}

impl Job for SendNotice {
    const NAME: &'static str = "send-notice";
    const QUEUE: &'static str = "default";
}

/// Takes an account that was deleted out of its orders.
#[derive(Serialize, Deserialize)]
pub(crate) struct ForgetAccount {
    pub(crate) email: String,
    /// The account's last order.
    pub(crate) last: i64,
}

impl Job for ForgetAccount {
    const NAME: &'static str = "forget-account";
    const QUEUE: &'static str = "default";
}

/// Gathers what the shop knows about an account, for its owner.
#[derive(Serialize, Deserialize)]
pub(crate) struct ExportAccount {
    pub(crate) email: String,
    /// Position of the database when the job was pushed: replicas that are behind it are not read.
    pub(crate) position: Option<Vec<u8>>,
}

impl Job for ExportAccount {
    const NAME: &'static str = "export-account";
    const QUEUE: &'static str = "low";

    fn unique_key(&self) -> Option<String> {
        Some(format!("export:{}", self.email))
    }
}

/// Removes an export whose time is over.
#[derive(Serialize, Deserialize)]
struct ExpireExport {
    email: String,
}

impl Job for ExpireExport {
    const NAME: &'static str = "expire-export";
    const QUEUE: &'static str = "low";
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
    let (db, queue) = (app.db.clone(), app.queue.clone());
    let worker = Worker::new(&queue)
        .name("shop")
        .queues(QUEUES)
        .concurrency(config.queue.concurrency)
        .lease(config.queue.lease)
        .with_state(app)
        .handle(send_receipt)
        .handle(send_password_reset)
        .handle(send_sign_up)
        .handle(send_notice)
        .handle(forget_account)
        .handle(export_account)
        .handle(expire_export);
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
    SendPasswordReset { email }: SendPasswordReset,
    State(app): State<App>,
    context: Context,
) -> Result<()> {
    let Some(links) = &app.links else { bail!("`origin` and `secret` are not configured") };
    let owner = users::owner(&app.db, &email).await?;
    let account = owner.as_ref().map(|owner| Account {
        id: &owner.email,
        email: &owner.email,
        password_hash: &owner.password,
    });
    match links.reset_password(&email, account).await? {
        Some(mail) => send(&app, &context, &mail).await,
        None => Ok(()),
    }
}

async fn send_sign_up(
    SendSignUp { email }: SendSignUp,
    State(app): State<App>,
    context: Context,
) -> Result<()> {
    let Some(links) = &app.links else { bail!("`origin` and `secret` are not configured") };
    if users::owner(&app.db, &email).await?.is_some() {
        let text = "Hello,\n\nsomebody wanted to open an account with this address, which has one \
            already. If that was you, log in, or ask for a new password. If not, do nothing.\n";
        let (id, subject) = (&*context.id.to_string(), "You have an account");
        return app.mailer.send(Mail { id, to: &email, subject, text }).await;
    }
    // The account does not exist yet: the owner of the address makes it, with a password.
    let account = Account { id: &email, email: &email, password_hash: "" };
    match links.verify_email(account).await? {
        Some(mail) => send(&app, &context, &mail).await,
        None => Ok(()),
    }
}

async fn send_notice(notice: SendNotice, State(app): State<App>, context: Context) -> Result<()> {
    let SendNotice { to, subject, text } = &notice;
    app.mailer.send(Mail { id: &context.id.to_string(), to, subject, text }).await
}

async fn forget_account(
    ForgetAccount { email, last }: ForgetAccount,
    State(app): State<App>,
) -> Result<()> {
    while orders::forget_some(&app.db, &email, last).await? > 0 {}
    Ok(())
}

async fn export_account(
    job: ExportAccount,
    State(app): State<App>,
    context: Context,
) -> Result<()> {
    let seen = job.position.as_deref().map(Mark::from_bytes);
    let export = sticky::seeing(&app.db, seen, gather(&app, &context, &job.email)).await?;
    let Some(export) = export else {
        return Err(anyhow::Error::new(Discard::because("the account was deleted")));
    };
    exports::save(&app.db, &job.email, &context.id.to_string(), export).await?;
    let expire = ExpireExport { email: job.email };
    app.queue.push(expire).delay(exports::KEPT_FOR + Duration::from_mins(1)).await?;
    Ok(())
}

/// Returns all that is known about an account, as JSON.
async fn gather(app: &App, context: &Context, email: &str) -> Result<Option<String>> {
    let Some(account) = users::find(&app.db, email).await? else { return Ok(None) };
    let count = orders::count(&app.db, email).await?.try_into().unwrap_or(0);
    let (mut all, mut slice) = (Vec::new(), Slice::default());
    loop {
        let page = orders::page(&app.db, Some(email), slice).await?;
        let mut items = orders::items_of(&app.db, &page.orders).await?;
        for order in &page.orders {
            let of_order = items.extract_if(.., |(id, _)| *id == order.id).map(|(_, item)| {
                json!({
                    "product": item.product_id,
                    "name": item.name,
                    "quantity": item.quantity,
                    "price_cents": item.price_cents,
                })
            });
            let items: Vec<_> = of_order.collect();
            all.push(json!({
                "number": order.id,
                "placed": jiff::Timestamp::from_millisecond(order.placed_ms)?.to_string(),
                "email": order.email,
                "total_cents": order.total_cents,
                "items": items,
            }));
        }
        context.progress(all.len() as u64, count, "orders").await?;
        match page.older {
            Some(id) => slice = Slice::older_than(id),
            None => break,
        }
    }
    let export = json!({ "email": account.email, "name": account.name, "orders": all });
    Ok(Some(serde_json::to_string_pretty(&export)?))
}

async fn expire_export(job: ExpireExport, State(app): State<App>) -> Result<()> {
    exports::expire(&app.db, &job.email).await
}

async fn send(app: &App, context: &Context, mail: &account_links::Mail) -> Result<()> {
    let id = &*context.id.to_string();
    app.mailer.send(Mail { id, to: &mail.to, subject: &mail.subject, text: &mail.text }).await
}

async fn send_receipt(job: SendReceipt, State(app): State<App>, context: Context) -> Result<()> {
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
    // If this worker dies now, the mail is sent again: with the same id, so that readers see one.
    let (id, subject) = (format!("order-{}", order.id), format!("Your order {}", order.id));
    app.mailer.send(Mail { id: &id, to: &order.email, subject: &subject, text: &body }).await?;
    orders::save_receipt(&app.db, order.id, &body, context.attempt).await?;
    tracing::info!(order = order.id, attempt = context.attempt, "the receipt was sent");
    Ok(())
}
