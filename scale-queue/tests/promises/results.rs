//! Results of jobs, jobs pushed at a death, and circuits, on every store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::circuit::Circuit;
use scale_queue::outcome::Discard;
use scale_queue::push::PushOptions;
use scale_queue::status::Waited;
use scale_queue::worker::BoxError;
use scale_queue::{Context, Job, Retry, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

#[derive(Serialize, Deserialize)]
struct Square(i64);

impl Job for Square {
    const NAME: &'static str = "square";
    const RETRY: Retry = Retry::custom(2, |_| Duration::from_millis(1));

    fn unique_key(&self) -> Option<String> {
        (self.0 == 100).then(|| "hundred".into())
    }
}

#[derive(Serialize, Deserialize)]
struct Tell {
    what: String,
}

impl Job for Tell {
    const NAME: &'static str = "tell";
    const QUEUE: &'static str = "tell";
}

#[derive(Serialize, Deserialize)]
struct Partner(u32);

impl Job for Partner {
    const NAME: &'static str = "partner";
    const QUEUE: &'static str = "partner";
    const RETRY: Retry = Retry::custom(100, |_| Duration::from_millis(1));
    const CIRCUIT: Option<Circuit> =
        Some(Circuit::after(5, Duration::from_hours(1)).pause(Duration::from_secs(2)));
}

on_every_store! {
    a_result_is_waited_for,
    a_death_pushes_a_job_once,
    an_open_circuit_lets_no_job_begin,
}

const LONG: Duration = Duration::from_secs(30);

async fn a_result_is_waited_for(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let worker = Worker::new(&queue).handle(|Square(n): Square, context: Context| async move {
        match n {
            0 => Err("no square".to_owned()),
            1 if context.attempt == 1 => Err("not yet".to_owned()),
            _ => Ok(if n < 0 { "x".repeat(100_000) } else { (n * n).to_string() }),
        }
    });
    // Before the job runs, and after it has ended.
    let early = tokio::spawn({
        let queue = queue.clone();
        async move { queue.push(Square(7)).wait::<String>(LONG).await }
    });
    let late = queue.push(Square(8)).keep_result(LONG).await?;
    let unkept = queue.push(Square(9)).await?;
    let worker = run(worker);
    assert_eq!(early.await??, Waited::Done("49".to_owned()));
    until(&queue, "default", "all jobs", is_empty).await?;
    let waited = queue.wait::<Square, String>(late.id, Duration::ZERO).await?;
    assert_eq!(waited, Waited::Done("64".to_owned()));
    let waited = queue.wait::<Square, String>(unkept.id, Duration::from_millis(30)).await?;
    assert_eq!(waited, Waited::TimedOut, "not kept");
    let push = async |n| queue.push(Square(n)).wait::<String>(LONG).await;
    assert_eq!(push(1).await?, Waited::Done("1".to_owned()), "after a retry");
    assert_eq!(push(0).await?, Waited::Dead("no square".to_owned()));
    assert_eq!(push(-1).await?, Waited::TooLarge);
    // It is done nevertheless; a result is stored before the end.
    until(&queue, "default", "five ends", |stats| stats.done_total == 5).await?;
    // Two callers, one job.
    queue.pause("default").await?;
    let both = tokio::spawn({
        let queue = queue.clone();
        async move {
            tokio::try_join!(
                queue.push(Square(100)).wait::<String>(LONG),
                queue.push(Square(100)).wait::<String>(LONG)
            )
        }
    });
    until(&queue, "default", "the job", |stats| stats.waiting == 1).await?;
    queue.resume("default").await?;
    let hundred = Waited::Done("10000".to_owned());
    assert_eq!(both.await??, (hundred.clone(), hundred));
    // A result that is not kept for long.
    let short = queue.push(Square(3)).keep_result(Duration::from_millis(100)).await?;
    until(&queue, "default", "the job", |stats| stats.done_total == 7).await?;
    eventually("its result to be gone", async || {
        queue.result::<String>(Square::NAME, short.id).await.ok()?.is_none().then_some(())
    })
    .await?;
    worker.stop().await
}

async fn a_death_pushes_a_job_once(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let begun = Arc::new(AtomicUsize::new(0));
    let worker = || {
        let begun = Arc::clone(&begun);
        let lease = Duration::from_millis(300);
        let worker = Worker::new(&queue).lease(lease).on_death(|died| {
            let Square(n) = died.job::<Square>().unwrap()?;
            Some(Tell { what: format!("{n}: {}", died.reason) })
        });
        worker.handle(move |Square(n): Square| {
            begun.fetch_add(1, SeqCst);
            async move {
                match n {
                    0 => Err::<(), _>(BoxError::from(Discard::because("never"))),
                    1 => Err("fails".into()),
                    2 => panic!("oh"),
                    _ => std::future::pending().await,
                }
            }
        })
    };
    queue.push_many((0..3).map(Square)).await?;
    let hanging = queue.push(Square(3)).await?;
    queue.push(Square(4).with(PushOptions::new().timeout(Duration::from_millis(20)))).await?;
    let running = run(worker());
    until(&queue, "default", "four deaths", |stats| stats.dead == 4).await?;
    assert!(queue.cancel("default", hanging.id).await?);
    until(&queue, "default", "the fifth death", |stats| stats.dead == 5).await?;
    running.stop().await?;
    let told = async || -> Result<Vec<String>> {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let all = Arc::clone(&told);
        let teller = run(Worker::new(&queue).queues(["tell"]).handle(move |job: Tell| {
            all.lock().push(job.what);
            async {}
        }));
        until(&queue, "tell", "all told", is_empty).await?;
        teller.stop().await?;
        let mut told = told.lock().clone();
        told.sort();
        Ok(told)
    };
    let expected =
        ["0: never", "1: fails", "2: panicked: oh", "3: cancelled", "4: took longer than 20ms"];
    assert_eq!(told().await?, expected);
    // A job that is dead without a run of its own: its workers died.
    let before = begun.load(SeqCst);
    queue.push(Square(5).with(PushOptions::new().attempts(1))).await?;
    for crash in 0..5 {
        let dying = run(worker());
        eventually("its begin", async || (begun.load(SeqCst) == before + crash + 1).then_some(()))
            .await?;
        dying.kill().await;
    }
    let last = run(worker());
    until(&queue, "default", "its death", |stats| stats.dead == 6).await?;
    last.stop().await?;
    assert_eq!(told().await?, ["5: its worker died, and its attempts are used up"]);
    Ok(())
}

async fn an_open_circuit_lets_no_job_begin(server: &Server) -> Result<()> {
    let (queue, other) = (server.queue().await?, server.queue().await?);
    let (fails, runs) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let worker = |queue: &scale_queue::Queue| {
        let (fails, runs) = (Arc::clone(&fails), Arc::clone(&runs));
        let worker = Worker::new(queue).queues(["partner", "default"]).concurrency(1);
        let worker = worker.handle(|_: Square| async {});
        run(worker.handle(move |_: Partner| {
            runs.fetch_add(1, SeqCst);
            let fails = fails.load(SeqCst);
            async move { if fails { Err("down") } else { Ok(()) } }
        }))
    };
    queue.push_many((0..20).map(Partner)).await?;
    let first = worker(&queue);
    let stats =
        until(&queue, "partner", "the pause", |stats| stats.waiting + stats.leased == 0).await?;
    assert_eq!(runs.load(SeqCst), 6, "five failures are allowed");
    assert_eq!((stats.failed_total, stats.scheduled, stats.dead), (6, 20, 0), "{stats:?}");
    // Jobs of other types begin, and another process has heard of the circuit.
    queue.push(Square(2)).await?;
    until(&queue, "default", "another type", |stats| stats.done_total == 1).await?;
    fails.store(false, SeqCst);
    first.stop().await?;
    let second = worker(&other);
    until(&queue, "partner", "the end of the pause", is_empty).await?;
    let stats = queue.stats("partner").await?;
    assert_eq!((stats.done_total, stats.failed_total), (20, 6));
    second.stop().await
}
