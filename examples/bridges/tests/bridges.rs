//! The bridges, against receivers on this machine.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::post;
use bridges::export::{Export, Exporter, Rows, export};
use bridges::mail::{Mailer, SendMail, Transport};
use bridges::webhooks::{SendWebhook, Webhooks};
use bridges::{mail, webhooks};
use lettre::{AsyncFileTransport, AsyncSmtpTransport, Tokio1Executor};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use scale_queue::testing::{FakeQueue, TestContext};
use scale_queue::worker::{BoxError, Outcome, State};
use scale_queue::{Job, Queue, Worker};
use standardwebhooks::Webhook;
use testkit::eventually;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn webhook(url: &str) -> SendWebhook {
    let data = serde_json::json!({ "order": 7 });
    SendWebhook { endpoint: 1, url: url.to_owned(), event: "order.paid".to_owned(), data }
}

fn secret(endpoint: i64) -> Option<String> {
    (endpoint == 1).then(|| SECRET.to_owned())
}

/// Serves answers one after the other; returns the address and what was received.
async fn receiver(
    answers: Vec<(StatusCode, &'static str)>,
) -> Result<(String, mpsc::UnboundedReceiver<(HeaderMap, Bytes)>)> {
    let (received, requests) = mpsc::unbounded_channel();
    let (answers, next) = (Arc::new(answers), Arc::new(AtomicUsize::new(0)));
    let app = Router::new().route(
        "/",
        post(move |headers: HeaderMap, body: Bytes| {
            let (answers, next, received) =
                (Arc::clone(&answers), Arc::clone(&next), received.clone());
            async move {
                received.send((headers, body)).unwrap();
                let (status, retry_after) = answers[next.fetch_add(1, SeqCst)];
                let mut answer = Response::builder().status(status);
                if !retry_after.is_empty() {
                    answer = answer.header("retry-after", retry_after);
                }
                if status.is_redirection() {
                    answer = answer.header("location", "/");
                }
                answer.body(Body::from("ignored")).unwrap()
            }
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok((url, requests))
}

fn sender(queue: &Queue) -> Worker<Webhooks> {
    let worker = Worker::new(queue).queues(["webhooks"]);
    worker.with_state(Webhooks::to_any_address(secret)).handle(webhooks::send)
}

#[tokio::test]
async fn a_webhook_is_signed_and_retried_under_its_id() -> Result<()> {
    let queue = FakeQueue::new();
    let answers = vec![
        (StatusCode::INTERNAL_SERVER_ERROR, ""),
        (StatusCode::FOUND, ""),
        (StatusCode::TOO_MANY_REQUESTS, "0"),
        (StatusCode::NO_CONTENT, ""),
    ];
    let (url, mut requests) = receiver(answers).await?;
    let pushed = queue.push(webhook(&url)).await?;
    let report = queue.run_pending(sender(&queue)).await?;
    let outcomes = report.outcomes::<SendWebhook>();
    assert!(matches!(
        outcomes[..],
        [Outcome::Retried { .. }, Outcome::Retried { .. }, Outcome::Deferred { .. }, Outcome::Done]
    ));
    let verifier = Webhook::new(SECRET)?;
    for _ in 0..4 {
        let (headers, body) = requests.recv().await.unwrap();
        verifier.verify(&body, &headers)?;
        assert_eq!(headers["webhook-id"], pushed.id.to_string());
        let body: serde_json::Value = serde_json::from_slice(&body)?;
        assert_eq!((&body["type"], &body["data"]["order"]), (&"order.paid".into(), &7.into()));
    }
    assert!(requests.try_recv().is_err(), "a redirect is not followed");
    Ok(())
}

#[tokio::test]
async fn a_webhook_that_nobody_wants_is_dead_at_once() -> Result<()> {
    let queue = FakeQueue::new();
    let (url, _requests) = receiver(vec![(StatusCode::GONE, "")]).await?;
    queue.push(webhook(&url)).await?;
    queue.push(SendWebhook { endpoint: 2, ..webhook(&url) }).await?;
    let wrong = ["no url", "/relative", "ftp://example.org/", "*", "localhost:22"];
    queue.push_many(wrong.map(webhook)).await?;
    // One at a time: at most four of an endpoint run at once, and the others would be told apart.
    let report = queue.run_pending(sender(&queue).concurrency(1)).await?;
    assert_eq!(report.ended.len(), 7);
    for outcome in report.outcomes::<SendWebhook>() {
        assert!(matches!(outcome, Outcome::Dead { .. }), "{outcome:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_webhook_does_not_reach_the_own_network() -> Result<()> {
    let (url, mut requests) = receiver(vec![]).await?;
    let port = url.trim_end_matches('/').rsplit(':').next().unwrap();
    let state = Webhooks::new(secret);
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1"] {
        let job = webhook(&format!("http://{host}:{port}/"));
        let sent = webhooks::send(State(state.clone()), job, TestContext::new().context()).await;
        let error = sent.unwrap_err().to_string();
        assert!(error.contains("no public address"), "{host}: {error}");
    }
    assert!(requests.try_recv().is_err());
    Ok(())
}

/// Speaks SMTP: takes mails, refuses one recipient with 550 and one with 452.
async fn smtp() -> Result<(u16, mpsc::UnboundedReceiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (received, mails) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let received = received.clone();
            tokio::spawn(async move {
                let (reader, mut writer) = stream.into_split();
                let mut lines = BufReader::new(reader).lines();
                writer.write_all(b"220 ready\r\n").await?;
                let mut mail: Option<String> = None;
                while let Some(line) = lines.next_line().await? {
                    let answer = match &mut mail {
                        Some(text) if line != "." => {
                            text.push_str(&line);
                            text.push('\n');
                            continue;
                        }
                        Some(_) => {
                            received.send(mail.take().unwrap()).unwrap();
                            "250 taken"
                        }
                        None if line.contains("gone@") => "550 no such mailbox",
                        None if line.contains("full@") => "452 mailbox full",
                        None if line == "DATA" => {
                            mail = Some(String::new());
                            "354 go on"
                        }
                        None if line == "QUIT" => "221 bye",
                        None => "250 fine",
                    };
                    writer.write_all(format!("{answer}\r\n").as_bytes()).await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    Ok((port, mails))
}

fn to(address: &str) -> SendMail {
    SendMail { to: address.into(), subject: "Your order".into(), text: "It is paid.".into() }
}

#[tokio::test]
async fn a_mail_keeps_its_id_and_is_dead_if_refused_for_good() -> Result<()> {
    let (port, mut mails) = smtp().await?;
    let server = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous("127.0.0.1").port(port);
    let mailer = Mailer::new("Shop <shop@example.org>", Transport::Smtp(server.build()))?;
    let queue = FakeQueue::new();
    let sent = queue.push(to("Ann <ann@example.org>")).await?;
    queue.push(to("gone@example.org")).await?;
    queue.push(to("no address")).await?;
    queue.push(to("full@example.org")).attempts(3).await?;
    let worker = Worker::new(&queue).queues(["mail"]).concurrency(1);
    let worker = worker.with_state(mailer).handle(mail::send);
    let report = queue.run_pending(worker).await?;
    let outcomes = report.outcomes::<SendMail>();
    let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|one| wanted(one)).count();
    assert_eq!(count(|outcome| *outcome == Outcome::Done), 1);
    assert_eq!(count(|outcome| matches!(outcome, Outcome::Retried { .. })), 2, "{outcomes:?}");
    assert_eq!(count(|outcome| matches!(outcome, Outcome::Dead { .. })), 3);
    let mail = mails.recv().await.unwrap();
    assert!(mail.contains(&format!("Message-ID: <{}@example.org>", sent.id)), "{mail}");
    assert!(mail.contains("It is paid."), "{mail}");
    Ok(())
}

#[tokio::test]
async fn a_mail_goes_into_a_folder() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let transport = Transport::Folder(AsyncFileTransport::new(folder.path()));
    let mailer = Mailer::new("shop@example.org", transport)?;
    let context = TestContext::new().context();
    mail::send(State(mailer), to("ann@example.org"), context).await.unwrap();
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 1);
    Ok(())
}

/// Rows that count how often they were read from the beginning, and wait at one of them.
struct Numbers {
    from_start: AtomicUsize,
    stop_at: i64,
    stopped: tokio::sync::Notify,
}

impl Rows for Numbers {
    async fn after(&self, _: &str, id: Option<i64>) -> Result<Vec<(i64, String)>, BoxError> {
        let id = id.unwrap_or(-10);
        if id == -10 {
            self.from_start.fetch_add(1, SeqCst);
        }
        if id == self.stop_at {
            self.stopped.notify_one();
            std::future::pending::<()>().await;
        }
        Ok((id + 1..=(id + 100).min(1_000)).map(|id| (id, format!("row {id}"))).collect())
    }
}

/// The worker is killed in the midst: the next one goes on after the last part.
#[tokio::test]
async fn an_export_goes_on_after_a_crash() -> Result<()> {
    let store = Arc::new(InMemory::new());
    let queue = Queue::memory();
    let numbers =
        |stop_at| Numbers { from_start: 0.into(), stop_at, stopped: tokio::sync::Notify::new() };
    let (first, second) = (Arc::new(numbers(590)), Arc::new(numbers(i64::MAX)));
    let worker = |rows: &Arc<Numbers>| {
        let exporter = Exporter { rows: Arc::clone(rows), store: store.clone(), part: 1_000 };
        let worker = Worker::new(&queue).queues([Export::QUEUE]).with_state(exporter);
        worker.lease(std::time::Duration::from_millis(300)).handle(export::<Numbers>)
    };
    queue.push(Export { table: "orders".into(), object: "orders.txt".into() }).await?;
    let doomed = tokio::spawn(worker(&first).run(std::future::pending::<()>()));
    first.stopped.notified().await;
    doomed.abort();
    let _ = doomed.await;
    assert!(store.get(&Path::from("orders.txt")).await.is_err(), "not before it is whole");
    let worker = tokio::spawn(worker(&second).run(std::future::pending::<()>()));
    let done = async || (queue.stats(Export::QUEUE).await.ok()?.done_total == 1).then_some(());
    eventually("the export", done).await?;
    worker.abort();
    let object = store.get(&Path::from("orders.txt")).await?.bytes().await?;
    let expected: Vec<_> = (-9..=1_000).map(|id| format!("row {id}")).collect();
    let rows: Vec<_> = str::from_utf8(&object)?.lines().collect();
    assert!(rows == expected, "each row once, in order");
    assert_eq!((first.from_start.load(SeqCst), second.from_start.load(SeqCst)), (1, 0));
    Ok(())
}
