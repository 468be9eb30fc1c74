//! Schedules that are added, changed, paused, run and removed while schedulers run, on every store.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use scale_queue::push::PushOptions;
use scale_queue::schedule::Rule;
use scale_queue::{Job, Queue, Scheduler, Worker};
use serde::{Deserialize, Serialize};
use testkit::eventually;
use tokio::task::JoinHandle;

use crate::on_every_store;
use crate::server::{Server, run};

#[derive(Serialize, Deserialize)]
struct Tick(String);

impl Job for Tick {
    const NAME: &'static str = "tick";
}

on_every_store! {
    schedules_change_while_schedulers_run,
    a_stored_schedule_takes_the_place_of_one_in_code,
    a_schedule_does_not_run_for_a_time_before_its_creation,
}

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_hours(1_000);

type Ran = Arc<Mutex<Vec<String>>>;

fn tick(name: &str) -> Tick {
    Tick(name.into())
}

/// Starts a scheduler with one schedule in code, and a worker.
fn scheduler(queue: &Queue, period: Duration) -> Result<JoinHandle<()>> {
    let scheduler = Scheduler::new(queue).every("code", period, || tick("code"))?;
    Ok(tokio::spawn(scheduler.run(std::future::pending::<()>())))
}

async fn ran(ran: &Ran, name: &str) -> Result<()> {
    eventually(&format!("a run of {name}"), async || {
        ran.lock().iter().any(|known| known == name).then_some(())
    })
    .await
}

async fn schedules_change_while_schedulers_run(server: &Server) -> Result<()> {
    let (queue, other) = (server.queue().await?, server.queue().await?);
    let schedulers = [scheduler(&queue, LONG)?, scheduler(&other, LONG)?];
    let log = Ran::default();
    let jobs = Arc::clone(&log);
    let worker =
        run(Worker::new(&queue).queues(["default", "other"]).handle(move |Tick(name): Tick| {
            jobs.lock().push(name);
            async {}
        }));
    let (short, long) = (Rule::every(SHORT)?, Rule::every(LONG)?);
    let options = PushOptions::new().to("other");
    queue.put_schedule("stored", &short, tick("first").with(options)).await?;
    ran(&log, "first").await?;
    assert!(queue.stats("other").await?.pushed_total > 0);
    let listed = eventually("its registration", async || {
        let schedules = queue.schedules().await.ok()?;
        schedules.into_iter().find(|schedule| schedule.name == "stored")
    })
    .await?;
    assert_eq!(
        (listed.job.as_str(), listed.queue.as_str(), listed.paused),
        ("tick", "other", false)
    );

    other.put_schedule("stored", &short, tick("second")).await?;
    ran(&log, "second").await?;
    // Paused: nothing runs, but on request.
    queue.pause_schedule("stored", true).await?;
    assert!(queue.schedules().await?.iter().any(|schedule| schedule.paused));
    let settled = async || {
        let before = queue.stats("default").await?.pushed_total;
        tokio::time::sleep(SHORT * 3).await;
        anyhow::Ok(queue.stats("default").await?.pushed_total == before)
    };
    eventually("the pause", async || settled().await.ok()?.then_some(())).await?;
    log.lock().clear();
    queue.run_schedule("stored").await?;
    ran(&log, "second").await?;
    assert!(settled().await?);
    queue.pause_schedule("stored", false).await?;
    eventually("the end of the pause", async || (log.lock().len() >= 3).then_some(())).await?;

    // A longer period from now on.
    queue.put_schedule("stored", &long, tick("third")).await?;
    eventually("the change", async || settled().await.ok()?.then_some(())).await?;
    assert!(!log.lock().iter().any(|name| name == "third"));
    assert!(queue.remove_schedule("stored").await? && !queue.remove_schedule("stored").await?);
    // The schedule in code is pushed by one of the schedulers, once.
    log.lock().clear();
    queue.run_schedule("code").await?;
    ran(&log, "code").await?;
    assert!(settled().await?);
    assert_eq!(log.lock().iter().filter(|name| *name == "code").count(), 1);
    // Created again at once, it is another schedule.
    queue.put_schedule("stored", &short, tick("again")).await?;
    ran(&log, "again").await?;
    for scheduler in schedulers {
        scheduler.abort();
    }
    worker.stop().await
}

async fn a_stored_schedule_takes_the_place_of_one_in_code(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    queue.put_schedule("code", &Rule::every(SHORT)?, tick("stored")).await?;
    let scheduler = scheduler(&queue, SHORT)?;
    let log = Ran::default();
    let jobs = Arc::clone(&log);
    let worker = run(Worker::new(&queue).handle(move |Tick(name): Tick| {
        jobs.lock().push(name);
        async {}
    }));
    eventually("runs", async || (log.lock().len() >= 5).then_some(())).await?;
    assert!(log.lock().iter().all(|name| name == "stored"), "{:?}", log.lock());
    assert!(queue.remove_schedule("code").await?);
    ran(&log, "code").await?;
    scheduler.abort();
    worker.stop().await
}

/// A scheduler that makes up for the runs of a day.
async fn a_schedule_does_not_run_for_a_time_before_its_creation(server: &Server) -> Result<()> {
    let queue = server.queue().await?;
    let (day, short) = (Rule::every(Duration::from_hours(24))?, Rule::every(SHORT)?);
    queue.put_schedule("daily", &day, tick("daily")).await?;
    // In the place of one in code, which would make up for its last run.
    queue.put_schedule("code", &day, tick("stored")).await?;
    queue.put_schedule("short", &short, tick("short")).await?;
    let scheduler = Scheduler::new(&queue).catch_up(Duration::from_hours(24));
    let scheduler = scheduler.every("code", Duration::from_hours(24), || tick("code"))?;
    let scheduler = scheduler.every("other", Duration::from_hours(24), || tick("other"))?;
    let scheduler = tokio::spawn(scheduler.run(std::future::pending::<()>()));
    let log = Ran::default();
    let jobs = Arc::clone(&log);
    let worker = run(Worker::new(&queue).handle(move |Tick(name): Tick| {
        jobs.lock().push(name);
        async {}
    }));
    ran(&log, "other").await?;
    log.lock().clear();
    let shorts = || log.lock().iter().filter(|name| *name == "short").count();
    eventually("some runs", async || (shorts() >= 3).then_some(())).await?;
    assert!(log.lock().iter().all(|name| name == "short"), "{:?}", log.lock());
    scheduler.abort();
    worker.stop().await
}
