//! Quiet workers, told waits, edited jobs and the command line, on every store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use scale_queue::outcome::Discard;
use scale_queue::worker::Event;
use scale_queue::{Context, Error, Job, Queue, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;
use tokio::sync::Semaphore;

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

#[derive(Serialize, Deserialize)]
struct Mail {
    to: String,
}

impl Job for Mail {
    const NAME: &'static str = "mail";

    fn unique_key(&self) -> Option<String> {
        Some(self.to.clone())
    }
}

on_every_store! {
    a_quiet_worker_finishes_and_begins_nothing,
    a_worker_is_made_quiet_from_elsewhere,
    a_dead_job_is_edited_and_runs_again,
    a_long_wait_is_told_once,
}
crate::on_stores! { by_hand_redis: "redis"; the_command_line_manages_queues }
crate::on_stores! { by_hand_postgres: "postgres"; the_command_line_manages_queues }
crate::on_stores! { by_hand_mariadb: "mariadb"; the_command_line_manages_queues }
crate::on_stores! { by_hand_sqlite: "sqlite"; the_command_line_manages_queues }

fn mail(n: usize) -> Mail {
    Mail { to: n.to_string() }
}

/// A worker whose jobs wait for a permit, the permits, and the number of jobs that have begun.
fn gated(queue: &Queue) -> (Worker, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (permits, begins) = (Arc::clone(&gate), Arc::clone(&begun));
    let worker = Worker::new(queue).concurrency(3).lease(Duration::from_millis(300));
    let worker = worker.handle(move |_: Mail| {
        let permits = Arc::clone(&permits);
        begins.fetch_add(1, SeqCst);
        async move { permits.acquire().await.unwrap().forget() }
    });
    (worker, gate, begun)
}

async fn a_quiet_worker_finishes_and_begins_nothing(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push_many((0..10).map(mail)).await?;
    let (worker, gate, begun) = gated(&queue);
    let quiet = worker.quiet();
    let worker = run(worker);
    // Not only fetched: a job that has not begun is handed back.
    eventually("running jobs", async || (begun.load(SeqCst) == 3).then_some(())).await?;
    quiet.set(true);
    assert!(quiet.is_quiet());
    // Jobs that were fetched and have not begun wait again; the leases of the others are kept.
    let held = |stats: &scale_queue::status::Stats| stats.leased == 3 && stats.waiting == 7;
    until(&queue, "default", "the hand-back", held).await?;
    // Another worker gets a wake-up that the quiet one does not use.
    let (other, other_gate, _) = gated(&queue);
    other_gate.add_permits(100);
    let other = run(other);
    until(&queue, "default", "the other worker", |stats| stats.done_total == 7).await?;
    queue.push_many((10..20).map(mail)).await?;
    until(&queue, "default", "later jobs", |stats| stats.done_total == 17).await?;
    other.stop().await?;
    gate.add_permits(100);
    let stats = until(&queue, "default", "the running jobs", is_empty).await?;
    assert_eq!((stats.done_total, stats.failed_total), (20, 0));
    queue.push(mail(20)).await?;
    let workers = eventually("its registration", async || {
        queue.workers().await.ok().filter(|workers| workers.iter().any(|worker| worker.quiet))
    });
    workers.await?;
    assert_eq!(queue.stats("default").await?.waiting, 1, "nothing begins");
    quiet.set(false);
    until(&queue, "default", "the last job", |stats| stats.done_total == 21).await?;
    worker.stop().await
}

async fn a_worker_is_made_quiet_from_elsewhere(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let (worker, gate, _) = gated(&queue);
    gate.add_permits(100);
    let quiet = worker.quiet();
    let worker = run(worker);
    let id = eventually("its registration", async || {
        queue.workers().await.ok()?.pop().map(|worker| worker.id)
    })
    .await?;
    queue.set_quiet(&id, true).await?;
    eventually("the request to arrive", async || quiet.is_quiet().then_some(())).await?;
    queue.push(mail(1)).await?;
    queue.set_quiet(&id, false).await?;
    until(&queue, "default", "the job", |stats| stats.done_total == 1).await?;
    worker.stop().await
}

async fn a_dead_job_is_edited_and_runs_again(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let seen: Arc<Mutex<Vec<(String, u16)>>> = Arc::default();
    let log = Arc::clone(&seen);
    let worker =
        run(Worker::new(&queue).handle(move |job: Mail, context: Context| {
            log.lock().push((job.to.clone(), context.attempt));
            async move {
                if job.to == "wrong" { Err(Discard::because("no such address")) } else { Ok(()) }
            }
        }));
    let id = queue.push(Mail { to: "wrong".into() }).await?.id;
    let death =
        async || eventually("a death", async || queue.dead("default", 0, 1).await.ok()?.pop());
    let dead = death().await.await?;
    for invalid in ["{", "", &format!("\"{}\"", "x".repeat(1 << 20))] {
        let refused = queue.revive_with("default", &dead, invalid).await;
        assert!(matches!(refused, Err(Error::Payload(_))), "{refused:?}");
    }
    assert!(queue.revive_with("default", &dead, r#"{"to":"right"}"#).await?);
    assert!(!queue.revive_with("default", &dead, r#"{"to":"again"}"#).await?, "once");
    until(&queue, "default", "the edited job", |stats| stats.done_total == 1).await?;
    assert_eq!(*seen.lock(), [("wrong".into(), 1), ("right".into(), 1)]);
    // It held its old key; now it is free. A job that does not hold its key stays dead.
    let again = queue.push(Mail { to: "wrong".into() }).await?;
    assert!(again.is_new && again.id != id);
    let dead = death().await.await?;
    queue.pause("default").await?;
    let holder = queue.push(Mail { to: "wrong".into() }).await?;
    assert!(holder.is_new);
    assert!(!queue.revive_with("default", &dead, r#"{"to":"right"}"#).await?);
    worker.stop().await
}

async fn a_long_wait_is_told_once(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let events: Arc<Mutex<Vec<String>>> = Arc::default();
    // Two workers of a paused queue: one of them tells.
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let log = Arc::clone(&events);
            let worker = Worker::new(&queue).tell_wait("default", Duration::from_millis(200));
            let worker = worker.on_event(move |event| match event {
                Event::WaitsLong { queue, wait } => {
                    assert!(*wait >= Duration::from_millis(200));
                    log.lock().push(format!("{queue} waits"));
                }
                Event::WaitIsOver { queue } => log.lock().push(format!("{queue} is over")),
                _ => {}
            });
            worker.handle(|_: Mail| async {})
        })
        .collect();
    queue.pause("default").await?;
    queue.push_many((0..3).map(mail)).await?;
    let workers: Vec<_> = workers.into_iter().map(run).collect();
    eventually("the wait to be told", async || (!events.lock().is_empty()).then_some(())).await?;
    queue.resume("default").await?;
    eventually("its end to be told", async || (events.lock().len() >= 2).then_some(())).await?;
    assert_eq!(*events.lock(), ["default waits", "default is over"]);
    for worker in workers {
        worker.stop().await?;
    }
    let unserved = Worker::new(&queue).tell_wait("other", Duration::from_secs(1));
    assert!(matches!(unserved.run(async {}).await, Err(Error::NotServed(_))));
    Ok(())
}

/// Runs the command; returns its exit code and what it printed.
async fn command(server: &Server, arguments: &[&str]) -> Result<(i32, String)> {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_scale-queue"))
        .env("SCALE_QUEUE_URL", &server.url)
        .env("SCALE_QUEUE_APP", "test")
        .args(arguments)
        .output()
        .await?;
    let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
    Ok((output.status.code().context("a signal")?, text))
}

async fn the_command_line_manages_queues(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let run_command = async |arguments: &[&str]| -> Result<String> {
        let (code, text) = command(server, arguments).await?;
        anyhow::ensure!(code == 0, "{arguments:?}: {code}: {text}");
        Ok(text)
    };
    assert!(run_command(&["check"]).await?.contains("ok"));
    let escape = queue.push(Mail { to: "\u{1b}[31m".into() }).await?.id;
    queue.push_many((0..4).map(mail)).await?;
    let jobs = run_command(&["jobs", "default"]).await?;
    assert!(jobs.lines().count() == 5 && jobs.contains(&escape.to_string()), "{jobs}");
    assert!(!jobs.contains('\u{1b}'), "no job controls the terminal");
    let jobs = run_command(&["--json", "jobs", "default", "--limit", "2"]).await?;
    let first: serde_json::Value = serde_json::from_str(jobs.lines().next().unwrap())?;
    assert_eq!((&first["name"], jobs.lines().count()), (&"mail".into(), 2));
    run_command(&["pause", "default"]).await?;
    let queues = run_command(&["queues"]).await?;
    assert!(queues.contains("default  waiting 5") && queues.contains("paused"), "{queues}");
    run_command(&["resume", "default"]).await?;
    run_command(&["cancel", "default", &escape.to_string()]).await?;

    let worker = run(Worker::new(&queue).handle(|job: Mail| async move {
        if job.to == "right" { Ok(()) } else { Err(Discard::because("no such address")) }
    }));
    until(&queue, "default", "all deaths", |stats| stats.dead == 5).await?;
    let dead = run_command(&["dead", "default"]).await?;
    assert!(dead.lines().count() == 5 && dead.contains("no such address"), "{dead}");
    let newest = queue.dead("default", 0, 1).await?.remove(0).id.unwrap().to_string();
    run_command(&["retry", "default", &newest, "--payload", r#"{"to":"right"}"#]).await?;
    until(&queue, "default", "the edited job", |stats| stats.done_total == 1).await?;
    let (code, _) = command(server, &["retry", "default", &newest]).await?;
    assert_eq!(code, 1, "it is not dead any more");
    worker.stop().await?;
    assert!(run_command(&["retry", "default", "--all"]).await?.contains("4 jobs"));
    assert!(run_command(&["drain", "default"]).await?.contains("4 jobs would be removed"));
    assert_eq!(queue.stats("default").await?.waiting, 4);
    assert!(run_command(&["drain", "default", "--yes"]).await?.contains("4 jobs removed"));
    assert!(is_empty(&queue.stats("default").await?));

    let (code, text) = command(server, &["jobs", "a queue"]).await?;
    assert!(code == 2 && text.contains("invalid queue name"), "{text}");
    let (code, text) = command(server, &["retry", "default"]).await?;
    assert!(code == 2 && text.contains("--all"), "{text}");
    for system in ["postgres", "mysql", "sqlite"] {
        let schema = run_command(&["schema", system]).await?;
        assert!(schema.contains("create table") && schema.contains("scale_queue_jobs"), "{schema}");
    }
    Ok(())
}
