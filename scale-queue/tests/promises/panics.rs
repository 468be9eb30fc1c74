//! Application code that panics outside of its handler: the attempt of that job has failed, its
//! slot is free, and the worker goes on, on every store.

use std::time::Duration;

use anyhow::Result;
use scale_queue::retry::RetryRules;
use scale_queue::worker::BoxError;
use scale_queue::{Context, Job, Queue, Retry, Worker};
use serde::{Deserialize, Serialize};

use crate::on_every_store;
use crate::server::{Server, is_empty, run, until};

on_every_store! {
    a_panic_at_the_end_of_an_attempt_frees_its_slot,
    a_panic_while_a_failure_is_judged_ends_that_job_alone,
}

/// A value that panics when it is dropped.
struct Fuse;

impl Drop for Fuse {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a fuse");
    }
}

#[derive(Serialize, Deserialize)]
struct Holds(u32);

impl Job for Holds {
    const NAME: &'static str = "holds";
    const RETRY: Retry = Retry::never();
    const TIMEOUT: Duration = Duration::from_millis(50);
}

/// An error whose parts panic.
#[derive(Debug)]
struct Broken(&'static str);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        assert_ne!(self.0, "text", "no text");
        f.write_str(self.0)
    }
}

impl std::error::Error for Broken {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        assert_ne!(self.0, "cause", "no cause");
        None
    }
}

#[derive(Serialize, Deserialize)]
struct Fails(String);

impl Job for Fails {
    const NAME: &'static str = "fails";
    const RETRY: Retry = Retry::never();

    fn retry_rules() -> RetryRules {
        let once = Retry::never();
        RetryRules::new()
            .discard_if(|error| {
                assert!(!error.is::<std::io::Error>(), "no rule");
                false
            })
            .retry_on::<Broken>("broken", once)
    }
}

#[derive(Serialize, Deserialize)]
struct Again;

impl Job for Again {
    const NAME: &'static str = "again";
    const RETRY: Retry = Retry::custom(2, |failed| {
        assert_eq!(failed, 0, "no delay");
        Duration::ZERO
    });
}

#[derive(Serialize, Deserialize)]
struct Fine;

impl Job for Fine {
    const NAME: &'static str = "fine";
}

async fn deaths(queue: &Queue) -> Result<Vec<String>> {
    let mut reasons: Vec<_> =
        queue.dead("default", 0, 10).await?.into_iter().map(|dead| dead.reason).collect();
    reasons.sort();
    Ok(reasons)
}

async fn a_panic_at_the_end_of_an_attempt_frees_its_slot(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.push_many((0..4).map(Holds)).await?;
    queue.push(Fine).await?;
    let worker = Worker::new(&queue).concurrency(2).handle(|_: Fine| async {});
    let worker = run(worker.handle(|_: Holds| async {
        let _fuse = Fuse;
        std::future::pending::<()>().await;
    }));
    let stats = until(&queue, "default", "all ends", is_empty).await?;
    assert_eq!((stats.done_total, stats.dead), (1, 4));
    worker.stop().await?;
    assert_eq!(deaths(&queue).await?, ["panicked: a fuse"; 4]);
    Ok(())
}

async fn a_panic_while_a_failure_is_judged_ends_that_job_alone(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    for how in ["text", "cause", "rule"] {
        queue.push(Fails(how.into())).await?;
    }
    queue.push(Again).await?;
    queue.push(Fine).await?;
    let worker = Worker::new(&queue).handle(|_: Fine| async {});
    let worker = worker.handle(|_: Again| async { Err::<(), _>("again") });
    let worker = run(worker.handle(|Fails(how): Fails, _: Context| async move {
        Err::<(), BoxError>(match how.as_str() {
            "text" => Broken("text").into(),
            "cause" => Broken("cause").into(),
            _ => std::io::Error::other("rule").into(),
        })
    }));
    let stats = until(&queue, "default", "all ends", is_empty).await?;
    assert_eq!((stats.done_total, stats.dead), (1, 4));
    // The worker itself has not ended.
    queue.push(Fine).await?;
    until(&queue, "default", "one more", |stats| stats.done_total == 2).await?;
    worker.stop().await?;
    let reasons = deaths(&queue).await?;
    assert!(reasons.iter().all(|reason| reason.contains("panicked: ")), "{reasons:?}");
    for what in ["no text", "no cause", "no rule", "no delay"] {
        assert!(reasons.iter().any(|reason| reason.contains(what)), "{what}: {reasons:?}");
    }
    Ok(())
}
